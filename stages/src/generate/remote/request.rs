//! Writes a request to a server.

use std::io::Cursor;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use pagemill_pipeline::Image;
use serde_json::{Value as Json, json};

use crate::generate::ask::{Ask, Picture, Wanted};

/// The most that a hint may have: a server does not say how much its model reads.
const MAX_HINT_BYTES: usize = 16 << 10;

/// The most alternatives of a token that `OpenAI`'s protocol allows to ask for.
const TOP_LOGPROBS: usize = 20;

/// How a server is told the schema of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `OpenAI`'s.
    JsonSchema,
    /// That of servers from before, `json_object` with a schema beside it.
    JsonObject,
}

/// What a server understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) shape: Shape,
    /// Whether it tells the likelihoods of tokens.
    pub(super) logprobs: bool,
}

impl Dialect {
    /// What else a server may understand that refused a request; none if there is nothing left.
    pub(super) fn simpler(self, refusal: &str, wanted: &Wanted) -> Option<Self> {
        let scores = matches!(wanted, Wanted::Scores(_));
        let schema = scores
            || matches!(
                wanted,
                Wanted::Text {
                    grammar: Some(_),
                    ..
                }
            );
        if self.logprobs && scores && refusal.contains("logprobs") {
            return Some(Self {
                logprobs: false,
                ..self
            });
        }
        // llama-cpp-python and servers like it know schemas in this shape alone.
        (schema && self.shape == Shape::JsonSchema).then_some(Self {
            shape: Shape::JsonObject,
            ..self
        })
    }
}

/// The request, and what is to be said of it.
pub(super) fn chat_request(
    model: &str,
    ask: &Ask,
    dialect: Dialect,
) -> Result<(Json, Option<String>), String> {
    let mut text = ask.prompt.clone();
    let mut note = None;
    if let Some(hint) = ask.hint.as_deref().filter(|hint| !hint.is_empty()) {
        let end = hint.floor_char_boundary(MAX_HINT_BYTES);
        if end < hint.len() {
            note = Some(format!(
                "the words were cut from {} to {end} bytes",
                hint.len()
            ));
        }
        text = format!("{text}\n\n{}", &hint[..end]);
    }
    let content = match &ask.picture {
        Some(Picture::Pixels(image)) => {
            let url = format!(
                "data:image/png;base64,{}",
                BASE64_STANDARD.encode(png(image)?)
            );
            json!([
                { "type": "image_url", "image_url": { "url": url } },
                { "type": "text", "text": text },
            ])
        }
        Some(Picture::Patches(_)) => return Err("a server takes no patches".into()),
        // Not as a list of one part: some servers take lists for nothing, without a word.
        None => json!(text),
    };
    let mut messages = Vec::with_capacity(2);
    if let Some(system) = &ask.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": content }));
    let mut request = json!({ "model": model, "messages": messages, "stream": false });
    match &ask.wanted {
        Wanted::Text {
            sampling,
            limits,
            grammar,
        } => {
            request["max_tokens"] = json!(limits.max_new_tokens);
            request["temperature"] = json!(sampling.temperature);
            if sampling.temperature > 0.0 {
                request["top_p"] = json!(sampling.top_p);
                request["seed"] = json!(sampling.seed);
            }
            if !limits.stop.is_empty() {
                request["stop"] = json!(limits.stop);
            }
            if let Some(grammar) = grammar {
                request["response_format"] = response_format(&grammar.schema, dialect.shape);
            }
        }
        Wanted::Scores(labels) => {
            request["max_tokens"] = json!(64);
            request["temperature"] = json!(0);
            if dialect.logprobs {
                request["logprobs"] = json!(true);
                request["top_logprobs"] = json!(TOP_LOGPROBS);
            }
            request["response_format"] = response_format(&schema_of(labels), dialect.shape);
        }
    }
    Ok((request, note))
}

/// Tells a model that it said what it was not asked for.
pub(super) fn correction(said: &str, why: &str) -> [Json; 2] {
    let again =
        format!("That is not what was asked for: {why}. Answer again, in the form asked for.");
    [
        json!({ "role": "assistant", "content": said }),
        json!({ "role": "user", "content": again }),
    ]
}

/// One of the labels.
fn schema_of(labels: &[String]) -> Json {
    json!({ "type": "string", "enum": labels })
}

fn response_format(schema: &Json, shape: Shape) -> Json {
    match shape {
        Shape::JsonSchema => json!({
            "type": "json_schema",
            "json_schema": { "name": "answer", "schema": schema, "strict": true },
        }),
        Shape::JsonObject => json!({ "type": "json_object", "schema": schema }),
    }
}

fn png(image: &Image) -> Result<Vec<u8>, String> {
    let mut bytes = Cursor::new(Vec::new());
    let encoder =
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive);
    encoder
        .write_image(
            &image.pixels,
            image.width_px,
            image.height_px,
            ExtendedColorType::Rgb8,
        )
        .map_err(|error| format!("its picture cannot be sent: {error}"))?;
    Ok(bytes.into_inner())
}

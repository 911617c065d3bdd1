//! What a server is asked.

use std::borrow::Cow;
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

/// How a server is told the schema of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `OpenAI`'s.
    JsonSchema,
    /// That of servers from before, `json_object` with a schema beside it.
    JsonObject,
}

/// The request, and what is to be said of it.
pub(super) fn chat_request(
    model: &str,
    ask: &Ask,
    shape: Shape,
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
                request["response_format"] = response_format(&grammar.schema, shape);
            }
        }
        Wanted::Scores(labels) => {
            request["max_tokens"] = json!(64);
            request["temperature"] = json!(0);
            request["logprobs"] = json!(true);
            request["response_format"] = response_format(&schema_of(labels), shape);
        }
    }
    Ok((request, note))
}

impl Wanted {
    /// What the server is to keep to.
    pub(super) fn schema(&self) -> Option<Cow<'_, Json>> {
        match self {
            Self::Text { grammar, .. } => grammar
                .as_ref()
                .map(|grammar| Cow::Borrowed(&grammar.schema)),
            Self::Scores(labels) => Some(Cow::Owned(schema_of(labels))),
        }
    }
}

/// One of the labels.
fn schema_of(labels: &[String]) -> Json {
    json!({ "type": "string", "enum": labels })
}

pub(super) fn response_format(schema: &Json, shape: Shape) -> Json {
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

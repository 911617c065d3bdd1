//! `kind = "embed_text"`: text to one vector, with a sentence encoder.

use std::path::PathBuf;
use std::sync::Arc;

use pagemill_models::{Device, LoadOptions, ModelError, TextEncoder};
use pagemill_pipeline::{
    BatchPolicy, Field, FieldError, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig,
    StageError, Vectors,
};
use serde::Deserialize;

use crate::models::{self, Loaded};

/// No tokenizer makes a token of more bytes than this on average, so a longer
/// text needs no counting to be known to fill the model.
const MAX_BYTES_PER_TOKEN: usize = 64;

/// Settings of `kind = "embed_text"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedTextConfig {
    /// Name of the model, such as `sentence-transformers/all-MiniLM-L6-v2`, or
    /// the path of its folder.
    pub model: String,
    /// Where to compute: `cpu`, `cuda`, `cuda:1` or `metal`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Cuts texts at this many tokens; the model's own limit if it is not given.
    #[serde(default)]
    pub max_tokens: Option<usize>,
}

fn default_device() -> String {
    "cpu".into()
}

impl StageConfig for EmbedTextConfig {
    const KIND: &'static str = "embed_text";
    const ABOUT: &'static str = "text to one vector, with a sentence encoder";
    const EXAMPLE: &'static str = "model = \"sentence-transformers/all-MiniLM-L6-v2\"\n";

    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT]).adds([Field::VECTOR])
    }

    fn batch(&self) -> BatchPolicy {
        BatchPolicy::of_items(32, 20).with_max_tokens(8192)
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(EmbedText::new(self, resources)?))
    }
}

/// Adds a vector to each item that has text. An item whose text is empty or
/// white space passes without one.
pub struct EmbedText {
    folder: PathBuf,
    options: LoadOptions,
    /// Shared by all stages of the run that name the same model.
    loaded: Arc<Loaded<TextEncoder>>,
    /// Set by [`Stage::start`].
    encoder: Option<Arc<TextEncoder>>,
}

impl EmbedText {
    /// Checks the settings and finds the model.
    ///
    /// # Errors
    /// When the device is unknown, the model is not found, or it reads fewer
    /// tokens than `max_tokens`.
    pub fn new(config: &EmbedTextConfig, resources: &Resources) -> Result<Self, FieldError> {
        let device: Device = config.device.parse().map_err(|error: ModelError| {
            FieldError::new(
                "device",
                format_args!("names no device: `{}`", config.device),
                error.hint(),
            )
        })?;
        let (folder, card) = models::find(&config.model, resources)?;
        if let Some(max_tokens) = config.max_tokens {
            let n = card.max_tokens;
            if !(3..=n).contains(&max_tokens) {
                return Err(FieldError::new(
                    "max_tokens",
                    format_args!("must be from 3 to {n}, which is what the model reads"),
                    format_args!("leave it out for {n}"),
                ));
            }
        }
        let options = LoadOptions {
            device,
            max_tokens: config.max_tokens,
            ..LoadOptions::default()
        };
        let name = format!("{} {device} {:?}", folder.display(), config.max_tokens);
        Ok(Self {
            folder,
            options,
            loaded: resources.get_or_insert(&name, Loaded::default),
            encoder: None,
        })
    }
}

impl Stage for EmbedText {
    fn start(&mut self) -> Result<(), StageError> {
        let load = || TextEncoder::load(&self.folder, &self.options);
        self.encoder = Some(self.loaded.get_or_load(load).map_err(models::fatal)?);
        Ok(())
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let encoder = self.encoder.as_ref().ok_or_else(|| {
            StageError::fatal("`embed_text` has not been started", "call `start` first")
        })?;
        let texts: Vec<&str> = batch.iter().filter_map(text_to_encode).collect();
        // Results are in main memory when this returns: a blocked stage holds
        // nothing on the device.
        let vectors = encoder.encode_each(&texts).map_err(models::fatal)?;
        let mut vectors = vectors.into_iter();
        for mut item in batch {
            item.remove(&Field::VECTOR.name);
            if item.text().is_none() {
                outlet.dead_letter(item, ItemError::missing("embed", &Field::TEXT.name));
                continue;
            }
            if text_to_encode(&item).is_some() {
                match vectors.next().map(into_vectors) {
                    Some(Ok(vectors)) => item.set(Field::VECTOR.name, vectors),
                    Some(Err(error)) => {
                        outlet.dead_letter(item, error);
                        continue;
                    }
                    None => return Err(too_few()),
                }
            }
            outlet.send(item)?;
        }
        Ok(())
    }

    fn n_tokens(&self, item: &Item) -> usize {
        let text = item.text().unwrap_or_default();
        let Some(encoder) = &self.encoder else {
            return text.len().div_ceil(4).max(1);
        };
        let max_tokens = encoder.max_tokens();
        if text.trim().is_empty() {
            return 1; // It never reaches the model.
        }
        if text.len() > max_tokens.saturating_mul(MAX_BYTES_PER_TOKEN) {
            return max_tokens;
        }
        encoder.tokenizer().count(text).min(max_tokens)
    }
}

/// The item's text, unless there is nothing in it to encode.
fn text_to_encode(item: &Item) -> Option<&str> {
    item.text().filter(|text| !text.trim().is_empty())
}

fn into_vectors(encoded: Result<Vec<f32>, ModelError>) -> Result<Vectors, ItemError> {
    let failed = |error: &dyn std::fmt::Display| ItemError::new("embed", error);
    match encoded {
        Ok(vector) => Vectors::single(vector).ok_or_else(|| failed(&"the model gave no vector")),
        // The place within the batch says nothing to the reader.
        Err(error @ ModelError::NotFinite { .. }) => {
            Err(failed(&"the model gave a vector that is not finite").hint(error.hint()))
        }
        Err(error) => Err(failed(&error).hint(error.hint())),
    }
}

fn too_few() -> StageError {
    StageError::fatal(
        "the model gave fewer vectors than it was given texts",
        "report this",
    )
}

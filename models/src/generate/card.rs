//! Describes a generating model by its configuration alone.

use std::path::Path;

use crate::card::memory;
use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::loader::canonical_qwen_name;
use crate::open;
use crate::qwen::config::{self, QwenConfig};

use super::Generator;

/// What a [`Generator`] is, before it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorCard {
    /// The class name in `config.json`, such as `Qwen3VLForConditionalGeneration`.
    pub architecture: String,
    /// Whether it sees pictures.
    pub reads_images: bool,
    /// The most tokens of a prompt and its answer together.
    pub max_context: usize,
    /// Number of trained values.
    pub n_parameters: usize,
    /// Of these, those that `quantize` brings into fewer bits.
    pub n_quantizable: usize,
    /// Size of the weight files that are here.
    pub n_bytes: u64,
}

impl GeneratorCard {
    /// Memory of the weights once loaded, in bytes, as of [`crate::ModelCard::memory`].
    pub fn memory(&self) -> [(&'static str, u64); 4] {
        memory(self.n_parameters, self.n_quantizable)
    }

    /// Whether the files that are here have fewer bits than floats, which stay so in memory.
    pub fn is_stored_in_few_bits(&self) -> bool {
        self.n_bytes > 0 && self.n_bytes < self.n_parameters as u64 * 3 / 2
    }
}

impl Generator {
    /// Describes the model in `folder` without loading it; its weights may be elsewhere yet.
    ///
    /// # Errors
    /// The configuration is missing or malformed, or asks for what this crate does not compute.
    pub fn describe(folder: &Path) -> Result<GeneratorCard, ModelError> {
        let (base, json) = open::read_config(folder)?;
        let config = QwenConfig::parse(&json, &base.join("config.json"))?;
        if !config::speaks(&json) {
            return Err(Self::does_not_speak(config.architecture, &base));
        }
        let sizes = config.sizes();
        let output = if config.tied {
            0
        } else {
            config.text.vocab_size * config.text.hidden
        };
        let weights = Checkpoint::open(&base, canonical_qwen_name);
        Ok(GeneratorCard {
            reads_images: config.vision.is_some(),
            max_context: config.text.max_tokens,
            n_parameters: sizes.vision + sizes.layers + sizes.rest + output,
            n_quantizable: sizes.layers + output,
            n_bytes: weights.map_or(0, |weights| weights.n_bytes()),
            architecture: config.architecture,
        })
    }
}

/// Whether the folder of a whole model has one that writes and makes no vectors.
pub(crate) fn only_writes(folder: &Path, json: &serde_json::Value) -> bool {
    // A head for vectors may have been merged into a model that kept its name.
    let has_head = || {
        let weights = Checkpoint::open(folder, canonical_qwen_name);
        weights.is_ok_and(|weights| weights.shape("custom_text_proj.weight").is_some())
    };
    config::speaks(json) && !has_head()
}

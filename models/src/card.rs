//! A model's description, read without loading it.

use std::path::Path;

use crate::error::ModelError;
use crate::settings::EncoderSettings;
use crate::weights::Weights;

/// What a text encoder is, before it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The class name in `config.json`, such as `BertModel`.
    pub architecture: String,
    /// Length of its vectors.
    pub dim: usize,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// Number of trained values in the weight files.
    pub n_parameters: usize,
    /// Size of the weight files.
    pub n_bytes: u64,
}

/// Reads the configuration and the headers of the weight files.
pub(crate) fn describe(folder: &Path) -> Result<ModelCard, ModelError> {
    let settings = EncoderSettings::read(folder)?;
    let weights = Weights::open(folder)?;
    Ok(ModelCard {
        architecture: settings.architecture,
        dim: settings.bert.hidden_size,
        max_tokens: settings.max_tokens,
        n_parameters: weights.n_parameters(),
        n_bytes: weights.n_bytes(),
    })
}

//! A model's description, read without loading it.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::col::{N_QUERY_SUFFIX, PAGE_PROMPT};
use crate::dual;
use crate::encoder::EncoderKind;
use crate::error::ModelError;
use crate::loader::canonical_qwen_name;
use crate::open;
use crate::qwen::config::{Generation, QwenConfig};
use crate::settings::EncoderSettings;
use crate::vocabulary::Vocabulary;
use crate::weights::Weights;

/// What an encoder is, before it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The class name in `config.json`, such as `BertModel` or `ColQwen2_5`.
    pub architecture: String,
    /// The family it is of.
    pub kind: EncoderKind,
    /// Length of its vectors.
    pub dim: usize,
    /// Longest text in tokens, special tokens included.
    pub max_tokens: usize,
    /// Number of trained values.
    pub n_parameters: usize,
    /// Of these, those that `quantize` brings into fewer bits.
    pub n_quantizable: usize,
    /// Size of the weight files that are here.
    pub n_bytes: u64,
    /// What it reads beside a page and after a question; `None` where nothing.
    pub prompts: Option<Prompts>,
}

/// The text around a page and a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// Before a page's image.
    pub before_page: String,
    /// After it.
    pub after_page: String,
    /// After a question.
    pub after_question: String,
}

impl ModelCard {
    /// Memory of the weights once loaded, in bytes: at 32 and 16 bits, and with the language
    /// model at 8 and 4 (with the scales of `q8_0` and `q4_k`) and the rest at 32.
    pub fn memory(&self) -> [(&'static str, u64); 4] {
        memory(self.n_parameters, self.n_quantizable)
    }
}

/// As [`ModelCard::memory`], of so many numbers, of which so many are quantized.
pub(crate) fn memory(n_parameters: usize, n_quantizable: usize) -> [(&'static str, u64); 4] {
    let (all, few) = (n_parameters as u64, n_quantizable as u64);
    [
        ("f32", all * 4),
        ("bf16", all * 2),
        ("q8_0", (all - few) * 4 + few * 17 / 16),
        ("q4_k", (all - few) * 4 + few * 9 / 16),
    ]
}

/// Reads the configuration and, where they are here, the headers of the weight files.
pub(crate) fn describe(folder: &Path) -> Result<ModelCard, ModelError> {
    match EncoderKind::of(folder)? {
        EncoderKind::Sentence => {
            let settings = EncoderSettings::read(folder)?;
            let weights = Weights::open(folder)?;
            Ok(ModelCard {
                architecture: settings.architecture,
                kind: EncoderKind::Sentence,
                dim: settings.bert.hidden_size,
                max_tokens: settings.max_tokens,
                n_parameters: weights.n_parameters(),
                n_quantizable: 0,
                n_bytes: weights.n_bytes(),
                prompts: None,
            })
        }
        EncoderKind::LateInteraction => describe_late(folder),
        EncoderKind::Dual => dual::describe(folder),
    }
}

fn describe_late(folder: &Path) -> Result<ModelCard, ModelError> {
    let (base, config) = open::read_config(folder)?;
    let config = QwenConfig::parse(&config, &base.join("config.json"))?;
    // A card may be wanted before the weights are here.
    let weights = Checkpoint::open(&base, canonical_qwen_name).ok();
    let head = weights
        .as_ref()
        .and_then(|weights| weights.shape("custom_text_proj.weight")?.first().copied());
    let usual = match config.generation {
        Generation::Qwen2_5 => 128,
        Generation::Qwen3 => 320,
    };
    let dim = config.head_dim.or(head).unwrap_or(usual);
    let pad = Vocabulary::read_first(&[folder, &base]).map_or_else(
        |_| String::new(),
        |vocabulary| vocabulary.pad_token().to_owned(),
    );
    let [before, after] = PAGE_PROMPT;
    let sizes = config.sizes();
    Ok(ModelCard {
        kind: EncoderKind::LateInteraction,
        dim,
        max_tokens: config.text.max_tokens,
        n_parameters: sizes.vision + sizes.layers + sizes.rest + (config.text.hidden + 1) * dim,
        n_quantizable: sizes.layers,
        n_bytes: weights.map_or(0, |weights| weights.n_bytes()),
        prompts: Some(Prompts {
            before_page: before.into(),
            after_page: after.into(),
            after_question: pad.repeat(N_QUERY_SUFFIX),
        }),
        architecture: config.architecture,
    })
}

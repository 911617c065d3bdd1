//! Texts in, one vector each out.

use std::fmt;
use std::path::Path;

use crate::batch::TokenBatch;
use crate::bert::BertNetwork;
use crate::card::{self, ModelCard};
use crate::device::Device;
use crate::error::ModelError;
use crate::settings::{EncoderSettings, Pooling};
use crate::tokenizer::TextTokenizer;
use crate::weights::Weights;

/// How to load a [`TextEncoder`].
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to compute.
    pub device: Device,
    /// Cuts texts at this many tokens, special tokens included. `None`: at the model's own
    /// limit. More than the model's position table holds is an error.
    pub max_tokens: Option<usize>,
    /// The most tokens, padding included, in one pass of the network; a single longer text
    /// still gets its pass. Bounds the memory of a call of any size.
    pub max_pass_tokens: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            max_tokens: None,
            max_pass_tokens: 4096,
        }
    }
}

/// A BERT encoder of the sentence-transformers kind, such as
/// `sentence-transformers/all-MiniLM-L6-v2`.
///
/// ```no_run
/// use pagemill_models::{LoadOptions, ModelPlaces, TextEncoder, resolve};
///
/// # fn main() -> Result<(), pagemill_models::ModelError> {
/// let places = ModelPlaces::from_environment();
/// let folder = resolve("sentence-transformers/all-MiniLM-L6-v2", &places)?;
/// let encoder = TextEncoder::load(&folder, &LoadOptions::default())?;
/// let vectors = encoder.encode(&["a cat sits outside", "a dog runs"])?;
/// assert_eq!(vectors[0].len(), encoder.dim());
/// # Ok(())
/// # }
/// ```
pub struct TextEncoder {
    tokenizer: TextTokenizer,
    network: BertNetwork,
    pooling: Pooling,
    normalize: bool,
    dim: usize,
    max_pass_tokens: usize,
}

impl fmt::Debug for TextEncoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TextEncoder")
            .field("dim", &self.dim)
            .field("tokenizer", &self.tokenizer)
            .finish_non_exhaustive()
    }
}

impl TextEncoder {
    /// Loads the model in `folder`: `config.json`, `tokenizer.json` and
    /// `model.safetensors` (or its shards). Where sentence-transformers' `modules.json` is
    /// present, it decides pooling and normalization; otherwise vectors are the mean over
    /// the tokens, at length 1.
    ///
    /// # Errors
    /// A file is missing or damaged, the parts do not fit together, the model needs what
    /// this crate does not compute, or the device is not available.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
        let settings = EncoderSettings::read(folder)?;
        let max_tokens = options.max_tokens.unwrap_or(settings.max_tokens);
        let n_positions = settings.bert.max_position_embeddings;
        let invalid = |problem| ModelError::InvalidSetting {
            field: "max_tokens",
            problem,
            path: folder.to_owned(),
        };
        if max_tokens > n_positions {
            let problem = format!("is {max_tokens}, but the model has {n_positions} positions");
            return Err(invalid(problem));
        }
        let tokenizer = TextTokenizer::load(folder, max_tokens)?;
        if tokenizer.n_ids() > settings.bert.vocab_size {
            return Err(ModelError::InvalidSetting {
                field: "vocab_size",
                problem: format!(
                    "is {}, but the tokenizer has ids up to {}",
                    settings.bert.vocab_size,
                    tokenizer.n_ids() - 1
                ),
                path: folder.join("config.json"),
            });
        }
        let device = options.device.open()?;
        let weights = Weights::open(folder)?;
        let network = BertNetwork::load(&weights, &settings.bert, settings.activation, &device)?;
        tracing::debug!(
            architecture = settings.architecture,
            device = %options.device,
            n_parameters = weights.n_parameters(),
            max_tokens,
            path = %folder.display(),
            "loaded a text encoder"
        );
        Ok(Self {
            tokenizer,
            network,
            pooling: settings.pooling,
            normalize: settings.normalize,
            dim: settings.bert.hidden_size,
            max_pass_tokens: options.max_pass_tokens,
        })
    }

    /// Describes the model in `folder` without loading it: reads the configuration and the
    /// headers of the weight files.
    ///
    /// # Errors
    /// As for [`TextEncoder::load`], except that tensors are not looked at.
    pub fn describe(folder: &Path) -> Result<ModelCard, ModelError> {
        card::describe(folder)
    }

    /// Length of each vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Tokens at which a text is cut, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.tokenizer.max_tokens()
    }

    /// The tokenizer, for counting tokens while splitting text; clones share it.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The vectors of `texts`, in their order, each of [`TextEncoder::dim`] finite values.
    /// A vector does not depend on the texts beside it, beyond rounding (about 1e-7).
    ///
    /// # Errors
    /// A text cannot be tokenized, its vector is not finite ([`ModelError::NotFinite`] has
    /// its place), or the device fails. [`TextEncoder::encode_each`] keeps the others.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.encode_each(texts)?.into_iter().collect()
    }

    /// As [`TextEncoder::encode`], with one result for each text, so that a caller can set
    /// aside the texts that fail.
    ///
    /// # Errors
    /// Only what concerns all texts: the device fails.
    pub fn encode_each(
        &self,
        texts: &[&str],
    ) -> Result<Vec<Result<Vec<f32>, ModelError>>, ModelError> {
        let mut results: Vec<Result<Vec<f32>, ModelError>> = Vec::with_capacity(texts.len());
        let mut rows = Vec::with_capacity(texts.len()); // Place and ids of each sound text.
        for (place, ids) in self.tokenizer.encode_all(texts).into_iter().enumerate() {
            let ids = ids.map(|ids| rows.push((place, ids)));
            results.push(ids.map(|()| Vec::new()));
        }
        // Texts of like length share a pass; longest first, so that running out of memory
        // happens at once or never.
        rows.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
        let packed = !self.network.pads();
        for pass in passes(&rows, self.max_pass_tokens, packed) {
            let ids: Vec<&[u32]> = pass.iter().map(|(_, ids)| ids.as_slice()).collect();
            for ((place, _), vector) in pass.iter().zip(self.encode_pass(&ids)?) {
                results[*place] = vector.ok_or(ModelError::NotFinite { row: *place });
            }
        }
        Ok(results)
    }

    /// One pass of the network; `None` for a vector that is not finite.
    fn encode_pass(&self, rows: &[&[u32]]) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
        let batch = TokenBatch::new(rows);
        let hidden = self
            .network
            .forward(&batch)
            .and_then(|hidden| hidden.flatten_all()?.to_vec1::<f32>())
            .map_err(ModelError::compute("encoding a batch"))?; // [n * dim]
        let vector = |tokens: std::ops::Range<usize>| {
            let hidden = &hidden[tokens.start * self.dim..tokens.end * self.dim];
            let vector = pool(hidden, self.dim, self.pooling, self.normalize);
            vector
                .iter()
                .all(|value| value.is_finite())
                .then_some(vector)
        };
        Ok(batch.texts().map(vector).collect())
    }
}

/// Cuts rows, sorted by falling length, into passes of at most `max_tokens`, counting the
/// padding unless rows are packed. A row above the limit gets a pass of its own.
fn passes(
    rows: &[(usize, Vec<u32>)],
    max_tokens: usize,
    packed: bool,
) -> Vec<&[(usize, Vec<u32>)]> {
    let mut passes = Vec::new();
    let mut rest = rows;
    while let Some((_, longest)) = rest.first() {
        let mut n_tokens = 0;
        let fitting = rest.iter().take_while(|(_, ids)| {
            n_tokens += if packed { ids.len() } else { longest.len() };
            n_tokens <= max_tokens
        });
        let (pass, others) = rest.split_at(fitting.count().max(1));
        passes.push(pass);
        rest = others;
    }
    passes
}

/// One vector of a text's token vectors. `hidden`: `[tokens, dim]`, at least one token.
fn pool(hidden: &[f32], dim: usize, pooling: Pooling, normalize: bool) -> Vec<f32> {
    let mut vector = hidden[..dim].to_vec();
    if pooling == Pooling::Mean {
        for token in hidden[dim..].chunks_exact(dim) {
            for (sum, value) in vector.iter_mut().zip(token) {
                *sum += value;
            }
        }
        let n_tokens = (hidden.len() / dim) as f32;
        for value in &mut vector {
            *value /= n_tokens;
        }
    }
    if normalize {
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        // The bound is torch's: a zero vector stays zero.
        let length = if length < 1e-12 { 1e-12 } else { length };
        for value in &mut vector {
            *value /= length;
        }
    }
    vector
}

#[cfg(test)]
mod tests;

//! Reads the `config.json` of a Qwen2.5-VL or Qwen3-VL network, or of a Qwen2 or Qwen3 one, which
//! is the same without a tower.
//!
//! Two generations of files are in use. Those written by transformers 4 keep the language
//! model's fields at the top level, with `rope_theta` and `rope_scaling`; those of
//! transformers 5 put them into `text_config`, with `rope_parameters`.

mod check;

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use self::check::Check;
use crate::error::ModelError;
use crate::files;

/// The two generations of networks, which differ in more than their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Qwen2.5-VL: windowed vision attention, chunked M-RoPE.
    Qwen2_5,
    /// Qwen3-VL: interpolated positions, deepstack, interleaved M-RoPE.
    Qwen3,
}

/// Sizes beyond these belong to no model; they keep arithmetic on them from overflowing.
const MAX_WIDTH: usize = 1 << 20;
const MAX_DEPTH: usize = 1 << 12;

/// A whole network.
#[derive(Debug, Clone)]
pub(crate) struct QwenConfig {
    pub(crate) generation: Generation,
    /// The class in `architectures`, such as `ColQwen2_5`.
    pub(crate) architecture: String,
    pub(crate) text: TextConfig,
    /// Absent where the network only reads text.
    pub(crate) vision: Option<VisionConfig>,
    /// Stands in the prompt where an image's vectors go.
    pub(crate) image_token_id: u32,
    /// Tokens that end an answer, as far as the file names them.
    pub(crate) end_token_ids: Vec<u32>,
    /// Whether the output layer is the embedding table.
    pub(crate) tied: bool,
    /// Length of a head's vectors where the file says it: ColQwen3 has `embed_dim` or `dim`.
    pub(crate) head_dim: Option<usize>,
}

/// The language model.
#[derive(Debug, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "ways in which the generations differ"
)]
pub(crate) struct TextConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden: usize,
    pub(crate) wide: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) max_tokens: usize,
    pub(crate) rope_theta: f64,
    /// Rotated pairs of a head that follow the time, row and column of a token.
    pub(crate) mrope_section: [usize; 3],
    /// Whether those pairs alternate (Qwen3) instead of lying in three runs.
    pub(crate) interleaved: bool,
    /// Whether queries, keys and values have a bias.
    pub(crate) qkv_bias: bool,
    /// Whether the output projection of attention has one.
    pub(crate) output_bias: bool,
    /// Whether each head's queries and keys are normalized.
    pub(crate) qk_norm: bool,
}

/// The vision tower.
#[derive(Debug, Clone)]
pub(crate) struct VisionConfig {
    pub(crate) depth: usize,
    pub(crate) hidden: usize,
    pub(crate) wide: usize,
    pub(crate) n_heads: usize,
    pub(crate) patch: usize,
    /// Patches on each side of the square that becomes one token.
    pub(crate) merge: usize,
    /// Frames that one patch covers; a page is doubled to fill them.
    pub(crate) n_frames: usize,
    /// Width of the language model's tokens.
    pub(crate) out_hidden: usize,
    pub(crate) rope_theta: f64,
    /// Qwen2.5: side of an attention window, in pixels.
    pub(crate) window_px: usize,
    /// Qwen2.5: blocks that attend over the whole image.
    pub(crate) full_blocks: Vec<usize>,
    /// Qwen3: entries of the square position table.
    pub(crate) n_positions: usize,
    /// Qwen3: blocks whose output the language model's first layers get.
    pub(crate) deepstack: Vec<usize>,
}

impl VisionConfig {
    /// Width of one head.
    pub(crate) fn head_dim(&self) -> usize {
        self.hidden / self.n_heads
    }

    /// Qwen2.5: side of an attention window in merged tokens.
    pub(crate) fn window(&self) -> usize {
        (self.window_px / self.merge / self.patch).max(1)
    }
}

/// `config.json` or one of its parts, whichever has the field.
#[derive(Deserialize)]
struct RawText {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    attention_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize, Default, Clone)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    mrope_section: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct RawVision {
    depth: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_heads: Option<usize>,
    hidden_act: Option<String>,
    #[serde(alias = "in_chans")]
    in_channels: Option<usize>,
    patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    out_hidden_size: Option<usize>,
    rope_parameters: Option<RawRope>,
    window_size: Option<usize>,
    fullatt_block_indexes: Option<Vec<usize>>,
    num_position_embeddings: Option<usize>,
    deepstack_visual_indexes: Option<Vec<usize>>,
}

/// The generation that a `config.json` is of, by `model_type` or `architectures`.
pub(crate) fn generation(config: &Value) -> Option<Generation> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let model_type = text("model_type").unwrap_or_default();
    let architecture = config
        .pointer("/architectures/0")
        .and_then(Value::as_str)
        .unwrap_or_default();
    // Some checkpoints with code of their own name their own type and keep the network's
    // below `vlm_config` or in `text_config`.
    let below = config
        .pointer("/text_config/model_type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let is = |name: &str| {
        let compact = name.to_lowercase().replace(['_', '.', '-'], "");
        if compact.contains("qwen25vl") || compact.contains("colqwen25") {
            Some(Generation::Qwen2_5)
        } else if compact.contains("qwen3vl") || compact.contains("colqwen3") {
            Some(Generation::Qwen3)
        } else {
            None
        }
    };
    is(model_type)
        .or_else(|| is(architecture))
        .or_else(|| is(below))
}

/// The generation whose language model alone a `config.json` is of.
fn text_generation(config: &Value) -> Option<Generation> {
    match config.get("model_type").and_then(Value::as_str) {
        Some("qwen2") => Some(Generation::Qwen2_5),
        Some("qwen3") => Some(Generation::Qwen3),
        _ => None,
    }
}

/// Whether a `config.json` is of a network that speaks, rather than one with a head for vectors.
pub(crate) fn speaks(config: &Value) -> bool {
    let known = generation(config).or_else(|| text_generation(config));
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    known.is_some()
        && config.get("vlm_config").is_none()
        && match architecture {
            Some(name) => {
                name.ends_with("ForConditionalGeneration") || name.ends_with("ForCausalLM")
            }
            None => !model_type.is_some_and(|name| name.starts_with("col")),
        }
}

/// One id, or a list of them.
pub(crate) fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

impl QwenConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// It is missing or malformed, a field has a value that no network can have, or it asks
    /// for what this crate does not compute; the error names the field.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        Self::parse(&files::read_json(&path)?, &path)
    }

    /// As [`QwenConfig::read`], of the file's contents; `path` is for errors.
    pub(crate) fn parse(config: &Value, path: &Path) -> Result<Self, ModelError> {
        // Checkpoints that wrap the network keep its configuration one level down.
        let config = config
            .get("vlm_config")
            .filter(|inner| inner.is_object())
            .unwrap_or(config);
        let architecture = config
            .pointer("/architectures/0")
            .or_else(|| config.get("model_type"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let seeing = generation(config);
        let generation = seeing.or_else(|| text_generation(config));
        let generation = generation.ok_or_else(|| ModelError::Unsupported {
            field: "model_type".into(),
            found: architecture.clone(),
            supported: &["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"],
            path: path.to_owned(),
        })?;
        let json = |source| ModelError::Json {
            path: path.to_owned(),
            source,
        };
        let text_part = config.get("text_config").unwrap_or(config);
        let text: RawText = serde_json::from_value(text_part.clone()).map_err(json)?;
        let vision = config.get("vision_config").cloned().unwrap_or_default();
        let vision: Option<RawVision> = seeing
            .map(|_| serde_json::from_value(vision).map_err(json))
            .transpose()?;
        let number = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| config.get(*key)?.as_u64());
            found.and_then(|number| usize::try_from(number).ok())
        };
        let tied = config
            .get("tie_word_embeddings")
            .and_then(Value::as_bool)
            .or(text.tie_word_embeddings)
            .unwrap_or(false);
        let check = Check { path };
        let image_token_id = number(&["image_token_id"]).unwrap_or(151_655);
        let vision = vision.map(|vision| check.vision(&vision, generation));
        let vision = vision.transpose()?;
        let text = check.text(&text, generation, seeing.is_some())?;
        if let Some(vision) = &vision {
            check.halves(vision, &text, image_token_id)?;
        }
        let end = config.get("eos_token_id").filter(|id| !id.is_null());
        let end_token_ids = token_ids(end.or_else(|| text_part.get("eos_token_id")));
        Ok(Self {
            end_token_ids,
            generation,
            architecture,
            text,
            vision,
            image_token_id: image_token_id as u32,
            tied,
            head_dim: number(&["embed_dim", "dim"]),
        })
    }
}

/// Trained numbers of each part of a network, by its configuration alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) vision: usize,
    /// The matrices of the language model's layers, which may be quantized.
    pub(crate) layers: usize,
    /// Embeddings, norms and biases of the language model.
    pub(crate) rest: usize,
}

impl QwenConfig {
    /// How many numbers the network has, without a head or an output layer of its own.
    pub(crate) fn sizes(&self) -> Sizes {
        let text = &self.text;
        let (wide, narrow) = (
            text.n_heads * text.head_dim,
            text.n_kv_heads * text.head_dim,
        );
        let matrices = text.hidden * (2 * wide + 2 * narrow + 3 * text.wide);
        let mut vectors = 2 * text.hidden;
        if text.qkv_bias {
            vectors += wide + 2 * narrow;
        }
        if text.output_bias {
            vectors += text.hidden;
        }
        if text.qk_norm {
            vectors += 2 * text.head_dim;
        }
        Sizes {
            vision: self.vision_size(),
            layers: text.n_layers * matrices,
            rest: text.vocab_size * text.hidden + text.n_layers * vectors + text.hidden,
        }
    }

    fn vision_size(&self) -> usize {
        let Some(vision) = &self.vision else { return 0 };
        let hidden = vision.hidden;
        let square = hidden * vision.merge * vision.merge;
        let linear = |n_in: usize, n_out: usize| n_in * n_out + n_out;
        let patches = hidden * 3 * vision.n_frames * vision.patch * vision.patch;
        let attention = linear(hidden, 3 * hidden) + linear(hidden, hidden);
        let merger = linear(square, square) + linear(square, vision.out_hidden);
        match self.generation {
            Generation::Qwen2_5 => {
                let gated = 2 * linear(hidden, vision.wide) + linear(vision.wide, hidden);
                patches + vision.depth * (attention + gated + 2 * hidden) + merger + hidden
            }
            Generation::Qwen3 => {
                let plain = linear(hidden, vision.wide) + linear(vision.wide, hidden);
                let blocks = vision.depth * (attention + plain + 4 * hidden);
                let deepstack = vision.deepstack.len() * (merger + 2 * square);
                let table = vision.n_positions * hidden;
                patches + hidden + table + blocks + merger + 2 * hidden + deepstack
            }
        }
    }
}

#[cfg(test)]
mod tests;

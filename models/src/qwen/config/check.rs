//! From what a file says to what a network can be.

use std::path::Path;

use super::{
    Generation, MAX_DEPTH, MAX_WIDTH, RawRope, RawText, RawVision, TextConfig, VisionConfig,
};
use crate::error::ModelError;

/// Checks with the file's place at hand.
pub(super) struct Check<'a> {
    pub(super) path: &'a Path,
}

impl Check<'_> {
    fn invalid(&self, field: &'static str, problem: String) -> ModelError {
        ModelError::InvalidSetting {
            field,
            problem,
            path: self.path.to_owned(),
        }
    }

    fn unsupported(
        &self,
        field: &str,
        found: &dyn std::fmt::Display,
        supported: &'static [&'static str],
    ) -> ModelError {
        ModelError::Unsupported {
            field: field.into(),
            found: found.to_string(),
            supported,
            path: self.path.to_owned(),
        }
    }

    fn size(&self, field: &'static str, value: usize, most: usize) -> Result<usize, ModelError> {
        if (1..=most).contains(&value) {
            return Ok(value);
        }
        Err(self.invalid(field, format!("is {value}, and must be from 1 to {most}")))
    }

    /// Whether tower and language model fit together.
    pub(super) fn halves(
        &self,
        vision: &VisionConfig,
        text: &TextConfig,
        image_token_id: usize,
    ) -> Result<(), ModelError> {
        if vision.out_hidden != text.hidden {
            return Err(self.invalid(
                "out_hidden_size",
                format!(
                    "is {}, but the language model is {} wide",
                    vision.out_hidden, text.hidden
                ),
            ));
        }
        if image_token_id >= text.vocab_size {
            let problem = format!(
                "is {image_token_id}, but `vocab_size` is {}",
                text.vocab_size
            );
            return Err(self.invalid("image_token_id", problem));
        }
        if vision.deepstack.len() > text.n_layers {
            let problem = format!(
                "names {} blocks, but the language model has {} layers",
                vision.deepstack.len(),
                text.n_layers
            );
            return Err(self.invalid("deepstack_visual_indexes", problem));
        }
        Ok(())
    }

    /// One of the default kinds of rotary positions, without scaling.
    fn rope(&self, rope: &RawRope, field: &'static str) -> Result<(), ModelError> {
        match rope.rope_type.as_deref() {
            None | Some("default" | "mrope" | "axial") => Ok(()),
            Some(other) => Err(self.unsupported(field, &other, &["default", "mrope"])),
        }
    }

    fn theta(&self, theta: f64) -> Result<f64, ModelError> {
        if theta.is_finite() && theta > 1.0 {
            return Ok(theta);
        }
        Err(self.invalid("rope_theta", format!("is {theta}, and must be above 1")))
    }

    /// `seeing`: beside a vision tower, whose images have places.
    pub(super) fn text(
        &self,
        raw: &RawText,
        generation: Generation,
        seeing: bool,
    ) -> Result<TextConfig, ModelError> {
        let newer = generation == Generation::Qwen3;
        if let Some(other) = raw.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(self.unsupported("hidden_act", &other, &["silu"]));
        }
        if raw.use_sliding_window == Some(true) {
            return Err(self.unsupported("use_sliding_window", &true, &["false"]));
        }
        let hidden = self.size("hidden_size", raw.hidden_size, MAX_WIDTH)?;
        let n_heads = self.size("num_attention_heads", raw.num_attention_heads, MAX_WIDTH)?;
        let n_kv_heads = raw.num_key_value_heads.unwrap_or(n_heads);
        let n_kv_heads = self.size("num_key_value_heads", n_kv_heads, n_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            let problem = format!("is {n_kv_heads}, which does not divide {n_heads} heads");
            return Err(self.invalid("num_key_value_heads", problem));
        }
        if raw.head_dim.is_none() && !hidden.is_multiple_of(n_heads) {
            let problem = format!("is {hidden}, which {n_heads} heads do not divide");
            return Err(self.invalid("hidden_size", problem));
        }
        // Qwen3 falls back to 128 in its class, Qwen2.5 to an equal share.
        let fallback = if newer { 128 } else { hidden / n_heads };
        let head_dim = raw.head_dim.unwrap_or(fallback);
        let head_dim = self.size("head_dim", head_dim, MAX_WIDTH)?;
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let rope = rope.cloned().unwrap_or_default();
        self.rope(&rope, "rope_parameters.rope_type")?;
        let section = rope.mrope_section.clone().unwrap_or_else(|| {
            match generation {
                // Text counts alike in all three.
                _ if !seeing => vec![head_dim / 2, 0, 0],
                Generation::Qwen3 => vec![24, 20, 20],
                Generation::Qwen2_5 => vec![16, 24, 24],
            }
        });
        let mrope_section = <[usize; 3]>::try_from(section.as_slice()).ok();
        let fitting = mrope_section.filter(|section| {
            let sum: usize = section
                .iter()
                .fold(0, |sum, part| sum.saturating_add(*part));
            // Interleaved pairs that a section claims beyond the last one do not exist.
            newer || sum == head_dim / 2
        });
        let Some(mrope_section) = fitting.filter(|_| head_dim.is_multiple_of(2)) else {
            let problem = format!("is {section:?}, which does not fit heads of {head_dim}");
            return Err(self.invalid("mrope_section", problem));
        };
        let theta = rope.rope_theta.or(raw.rope_theta);
        let fallback = match generation {
            _ if !seeing => 1e4,
            Generation::Qwen3 => 5e6,
            Generation::Qwen2_5 => 1e6,
        };
        let norm_epsilon = raw.rms_norm_eps.unwrap_or(1e-6);
        if !(norm_epsilon.is_finite() && norm_epsilon >= 0.0) {
            return Err(self.invalid("rms_norm_eps", format!("is {norm_epsilon}")));
        }
        Ok(TextConfig {
            vocab_size: self.size("vocab_size", raw.vocab_size, 1 << 24)?,
            hidden,
            wide: self.size("intermediate_size", raw.intermediate_size, MAX_WIDTH)?,
            n_layers: self.size("num_hidden_layers", raw.num_hidden_layers, MAX_DEPTH)?,
            n_heads,
            n_kv_heads,
            head_dim,
            norm_epsilon: norm_epsilon as f32,
            max_tokens: raw.max_position_embeddings.unwrap_or(32_768).max(1),
            rope_theta: self.theta(theta.unwrap_or(fallback))?,
            mrope_section,
            interleaved: newer,
            qkv_bias: if newer {
                raw.attention_bias.unwrap_or(false)
            } else {
                true
            },
            output_bias: newer && raw.attention_bias.unwrap_or(false),
            qk_norm: newer,
        })
    }

    pub(super) fn vision(
        &self,
        raw: &RawVision,
        generation: Generation,
    ) -> Result<VisionConfig, ModelError> {
        let newer = generation == Generation::Qwen3;
        let supported: &[&str] = if newer {
            &["gelu_pytorch_tanh"]
        } else {
            &["silu"]
        };
        if let Some(other) = raw
            .hidden_act
            .as_deref()
            .filter(|name| !supported.contains(name))
        {
            return Err(self.unsupported("vision_config.hidden_act", &other, supported));
        }
        if let Some(other) = raw.in_channels.filter(|channels| *channels != 3) {
            return Err(self.unsupported("vision_config.in_channels", &other, &["3"]));
        }
        let rope = raw.rope_parameters.clone().unwrap_or_default();
        self.rope(&rope, "vision_config.rope_parameters.rope_type")?;
        // The classes' own defaults, which hub-style files rely on.
        let or = |value: Option<usize>, older: usize, new: usize| {
            value.unwrap_or(if newer { new } else { older })
        };
        let depth = self.size("vision_config.depth", or(raw.depth, 32, 27), MAX_DEPTH)?;
        let hidden = or(raw.hidden_size, 3584, 1152);
        let hidden = self.size("vision_config.hidden_size", hidden, MAX_WIDTH)?;
        let n_heads = or(raw.num_heads, 16, 16);
        let n_heads = self.size("vision_config.num_heads", n_heads, hidden)?;
        if !hidden.is_multiple_of(n_heads) || !(hidden / n_heads).is_multiple_of(4) {
            let problem = format!("is {hidden}: {n_heads} heads need a multiple of 4 each");
            return Err(self.invalid("vision_config.hidden_size", problem));
        }
        let patch = or(raw.patch_size, 14, 16);
        let merge = raw.spatial_merge_size.unwrap_or(2);
        let n_positions = raw.num_position_embeddings.unwrap_or(2304);
        let side = n_positions.isqrt();
        if newer && (n_positions == 0 || side * side != n_positions || n_positions > 1 << 24) {
            let problem = format!("is {n_positions}, and must be a square");
            return Err(self.invalid("vision_config.num_position_embeddings", problem));
        }
        let blocks = |field: &'static str, list: Option<&Vec<usize>>, usual: [usize; 4], n| {
            let list = list.map_or_else(|| usual[..n].to_vec(), Clone::clone);
            match list.iter().find(|block| **block >= depth) {
                Some(block) => {
                    let problem = format!("names block {block} of {depth}");
                    Err(self.invalid(field, problem))
                }
                None => Ok(list),
            }
        };
        let (full_blocks, deepstack) = if newer {
            let field = "deepstack_visual_indexes";
            let list = raw.deepstack_visual_indexes.as_ref();
            (Vec::new(), blocks(field, list, [8, 16, 24, 0], 3)?)
        } else {
            let list = raw.fullatt_block_indexes.as_ref();
            let list = blocks("fullatt_block_indexes", list, [7, 15, 23, 31], 4)?;
            (list, Vec::new())
        };
        let window_px = raw.window_size.unwrap_or(112);
        Ok(VisionConfig {
            depth,
            hidden,
            wide: self.size(
                "vision_config.intermediate_size",
                or(raw.intermediate_size, 3420, 4304),
                MAX_WIDTH,
            )?,
            n_heads,
            patch: self.size("vision_config.patch_size", patch, 1 << 10)?,
            merge: self.size("vision_config.spatial_merge_size", merge, 64)?,
            n_frames: self.size(
                "vision_config.temporal_patch_size",
                raw.temporal_patch_size.unwrap_or(2),
                64,
            )?,
            out_hidden: self.size(
                "vision_config.out_hidden_size",
                raw.out_hidden_size.unwrap_or(3584),
                MAX_WIDTH,
            )?,
            rope_theta: self.theta(rope.rope_theta.unwrap_or(10_000.0))?,
            window_px: self.size("vision_config.window_size", window_px, MAX_WIDTH)?,
            full_blocks,
            n_positions,
            deepstack,
        })
    }
}

//! The vision tower of Qwen2.5-VL (Qwen2.5-VL technical report, section 2.1).
//!
//! Patches of several images lie end to end, each image's in the order of its attention
//! windows: four patches that become one token stay together. Most blocks attend within a
//! window, some over the whole image, none across images.

use candle_core::{Result, Tensor};

use super::config::VisionConfig;
use super::layout;
use super::vision::{self, Rotation, Tower};
use crate::linear::Linear;
use crate::loader::Loader;
use crate::ops::{self, Activation, Mask, Span};
use crate::preprocess::Grid;

/// Hard-coded in the reference.
const EPSILON: f32 = 1e-6;

pub(crate) struct Vision2_5 {
    config: VisionConfig,
    patches: Linear,
    blocks: Vec<Block>,
    merger: Merger,
}

struct Block {
    norm1: Tensor, // [hidden]
    qkv: Linear,
    output: Linear,
    norm2: Tensor, // [hidden]
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Merger {
    norm: Tensor, // [hidden]
    wide: Linear,
    narrow: Linear,
}

impl Vision2_5 {
    /// Takes the tensors below `visual`.
    pub(crate) fn load(config: &VisionConfig, loader: &Loader<'_>) -> Self {
        let hidden = config.hidden;
        let block = |index: usize| {
            let name = |part: &str| format!("visual.blocks.{index}.{part}");
            let linear = |part: &str, n_in, n_out| loader.linear(&name(part), n_in, n_out, true);
            Block {
                norm1: loader.tensor(&name("norm1.weight"), &[hidden]),
                qkv: linear("attn.qkv", hidden, 3 * hidden),
                output: linear("attn.proj", hidden, hidden),
                norm2: loader.tensor(&name("norm2.weight"), &[hidden]),
                gate: linear("mlp.gate_proj", hidden, config.wide),
                up: linear("mlp.up_proj", hidden, config.wide),
                down: linear("mlp.down_proj", config.wide, hidden),
            }
        };
        let square = hidden * config.merge * config.merge;
        Self {
            patches: vision::load_patches(config, false, loader),
            blocks: (0..config.depth).map(block).collect(),
            merger: Merger {
                norm: loader.tensor("visual.merger.ln_q.weight", &[hidden]),
                wide: loader.linear("visual.merger.mlp.0", square, square, true),
                narrow: loader.linear("visual.merger.mlp.2", square, config.out_hidden, true),
            },
            config: config.clone(),
        }
    }
}

impl Tower for Vision2_5 {
    fn order(&self, grid: Grid) -> Option<Vec<usize>> {
        Some(layout::windows(grid, self.config.window()).0)
    }

    fn forward(&self, pixels: &Tensor, grids: &[Grid]) -> Result<(Tensor, Vec<Tensor>)> {
        let config = &self.config;
        let square = config.merge * config.merge;
        let window = config.window();
        let windows = grids
            .iter()
            .flat_map(|grid| layout::windows(*grid, window).1);
        let windows = vision::spans(windows.map(|n_tokens| n_tokens * square));
        let images = vision::spans(grids.iter().map(Grid::n_patches));
        let rotation = Rotation::new(config, grids, |grid| self.order(grid), pixels.device())?;

        let mut x = self.patches.forward(pixels)?; // [patches, hidden]
        for (index, block) in self.blocks.iter().enumerate() {
            let whole = config.full_blocks.contains(&index);
            let spans = if whole { &images } else { &windows };
            x = block.forward(&x, config, &rotation, spans)?;
        }
        let x = ops::rms_norm(&x, &self.merger.norm, EPSILON)?;
        let x = x.reshape(((), config.hidden * square))?; // [tokens, 4 * hidden]
        let x = self.merger.wide.forward(&x)?;
        let x = ops::activate(x, None, Activation::Gelu)?;
        let x = self.merger.narrow.forward(&x)?; // [tokens, out_hidden], window by window
        Ok((
            vision::restore(&x, grids, |grid| self.order(grid))?,
            Vec::new(),
        ))
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        config: &VisionConfig,
        rotation: &Rotation,
        spans: &[Span],
    ) -> Result<Tensor> {
        let normed = ops::rms_norm(x, &self.norm1, EPSILON)?;
        let (q, k, v) = rotation.split(&self.qkv.forward(&normed)?, config)?;
        let scale = 1.0 / (config.head_dim() as f32).sqrt();
        let attended = ops::attend(&q, &k, &v, spans, Mask::Full, scale)?;
        let x = ops::add(self.output.forward(&attended)?, x)?;
        let normed = ops::rms_norm(&x, &self.norm2, EPSILON)?;
        let gated = ops::silu_mul(&self.gate.forward(&normed)?, &self.up.forward(&normed)?)?;
        ops::add(self.down.forward(&gated)?, &x)
    }
}

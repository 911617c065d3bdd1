//! The vision tower of Qwen3-VL (Qwen3-VL technical report, section 2).
//!
//! Every block attends over the whole image. Positions come from a square table, interpolated
//! to the image's grid, besides the rotation. The output of some blocks goes to the language
//! model's first layers as well ("deepstack").

use candle_core::{D, Result, Tensor};

use super::config::VisionConfig;
use super::layout;
use super::vision::{self, Rotation, Tower};
use crate::linear::Linear;
use crate::loader::Loader;
use crate::ops::{self, Activation, Mask, Span};
use crate::preprocess::Grid;

/// Hard-coded in the reference.
const EPSILON: f32 = 1e-6;

pub(crate) struct Vision3 {
    config: VisionConfig,
    patches: Linear,
    positions: Tensor, // [side * side, hidden]
    blocks: Vec<Block>,
    merger: Merger,
    /// Block, and what makes tokens of its output.
    deepstack: Vec<(usize, Merger)>,
}

/// Weight and offset of a layer norm.
struct LayerNorm(Tensor, Tensor);

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    output: Linear,
    norm2: LayerNorm,
    wide: Linear,
    narrow: Linear,
}

struct Merger {
    norm: LayerNorm,
    /// Whether the norm is over the patches that are put together, or over each alone.
    norm_after: bool,
    wide: Linear,
    narrow: Linear,
}

impl LayerNorm {
    fn load(name: &str, width: usize, loader: &Loader<'_>) -> Self {
        let part = |part: &str| loader.tensor(&format!("{name}.{part}"), &[width]);
        Self(part("weight"), part("bias"))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.0, &self.1, EPSILON)
    }
}

impl Vision3 {
    /// Takes the tensors below `visual`.
    pub(crate) fn load(config: &VisionConfig, loader: &Loader<'_>) -> Self {
        let hidden = config.hidden;
        let block = |index: usize| {
            let name = |part: &str| format!("visual.blocks.{index}.{part}");
            let linear = |part: &str, n_in, n_out| loader.linear(&name(part), n_in, n_out, true);
            Block {
                norm1: LayerNorm::load(&name("norm1"), hidden, loader),
                qkv: linear("attn.qkv", hidden, 3 * hidden),
                output: linear("attn.proj", hidden, hidden),
                norm2: LayerNorm::load(&name("norm2"), hidden, loader),
                wide: linear("mlp.linear_fc1", hidden, config.wide),
                narrow: linear("mlp.linear_fc2", config.wide, hidden),
            }
        };
        let deepstack = config.deepstack.iter().enumerate();
        let deepstack = deepstack.map(|(index, block)| {
            let name = format!("visual.deepstack_merger_list.{index}");
            (*block, Merger::load(&name, true, config, loader))
        });
        Self {
            patches: vision::load_patches(config, true, loader),
            positions: loader.tensor("visual.pos_embed.weight", &[config.n_positions, hidden]),
            blocks: (0..config.depth).map(block).collect(),
            merger: Merger::load("visual.merger", false, config, loader),
            deepstack: deepstack.collect(),
            config: config.clone(),
        }
    }

    /// The position table at each patch, bilinearly: `[patches, hidden]`.
    fn interpolated(&self, grids: &[Grid]) -> Result<Tensor> {
        let side = self.config.n_positions.isqrt();
        let n: usize = grids.iter().map(Grid::n_patches).sum();
        let mut corners: [(Vec<u32>, Vec<f32>); 4] = Default::default();
        for (places, weights) in &mut corners {
            places.reserve(n);
            weights.reserve(n);
        }
        for grid in grids {
            let rows = layout::between(grid.rows, side);
            let columns = layout::between(grid.cols, side);
            for (row, column) in layout::patch_places(*grid) {
                let (top, bottom, down) = rows[row];
                let (left, right, across) = columns[column];
                let both = down * across;
                let four = [
                    (top, left, 1.0 - down - (across - both)),
                    (top, right, across - both),
                    (bottom, left, down - both),
                    (bottom, right, both),
                ];
                for ((row, column, weight), (places, weights)) in four.into_iter().zip(&mut corners)
                {
                    places.push((row * side + column) as u32);
                    weights.push(weight);
                }
            }
        }
        let device = self.positions.device();
        let mut sum: Option<Tensor> = None;
        for (places, weights) in corners {
            let places = Tensor::from_vec(places, n, device)?;
            let weights = Tensor::from_vec(weights, (n, 1), device)?;
            let weights = weights.to_dtype(self.positions.dtype())?;
            let part = self
                .positions
                .index_select(&places, 0)?
                .broadcast_mul(&weights)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        Ok(sum.expect("there are four corners"))
    }
}

impl Tower for Vision3 {
    fn order(&self, _grid: Grid) -> Option<Vec<usize>> {
        None
    }

    fn forward(&self, pixels: &Tensor, grids: &[Grid]) -> Result<(Tensor, Vec<Tensor>)> {
        let config = &self.config;
        let images = vision::spans(grids.iter().map(Grid::n_patches));
        let rotation = Rotation::new(config, grids, |_| None, pixels.device())?;
        let mut x = ops::add(self.patches.forward(pixels)?, &self.interpolated(grids)?)?;
        let mut deepstack = Vec::with_capacity(self.deepstack.len());
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, config, &rotation, &images)?;
            for (_, merger) in self.deepstack.iter().filter(|(block, _)| *block == index) {
                deepstack.push(merger.forward(&x)?);
            }
        }
        Ok((self.merger.forward(&x)?, deepstack))
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
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let (q, k, v) = rotation.split(&qkv, config)?;
        let scale = 1.0 / (config.head_dim() as f32).sqrt();
        let attended = ops::attend(&q, &k, &v, spans, Mask::Full, scale)?;
        let x = ops::add(self.output.forward(&attended)?, x)?;
        let wide = self.wide.forward(&self.norm2.forward(&x)?)?;
        let wide = ops::activate(wide, None, Activation::GeluTanh)?;
        ops::add(self.narrow.forward(&wide)?, &x)
    }
}

impl Merger {
    fn load(name: &str, norm_after: bool, config: &VisionConfig, loader: &Loader<'_>) -> Self {
        let square = config.hidden * config.merge * config.merge;
        let width = if norm_after { square } else { config.hidden };
        let linear =
            |part: &str, n_out| loader.linear(&format!("{name}.{part}"), square, n_out, true);
        Self {
            norm: LayerNorm::load(&format!("{name}.norm"), width, loader),
            norm_after,
            wide: linear("linear_fc1", square),
            narrow: linear("linear_fc2", config.out_hidden),
        }
    }

    /// `[patches, hidden]` to `[tokens, out_hidden]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = x.dim(D::Minus1)?;
        let square = self.wide.n_in();
        let x = if self.norm_after {
            self.norm.forward(&x.reshape(((), square))?)?
        } else {
            self.norm
                .forward(&x.reshape(((), hidden))?)?
                .reshape(((), square))?
        };
        let x = ops::activate(self.wide.forward(&x)?, None, Activation::Gelu)?;
        self.narrow.forward(&x)
    }
}

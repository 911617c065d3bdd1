//! Shares what the vision towers of both generations have in common.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::config::{Generation, QwenConfig, VisionConfig};
use super::layout::{self, Angles};
use super::vision_2_5::Vision2_5;
use super::vision_3::Vision3;
use crate::linear::Linear;
use crate::loader::Loader;
use crate::ops::{self, Span};
use crate::preprocess::{Grid, Patches};

/// From patches to the tokens that stand for an image.
pub(crate) trait Tower: Send + Sync {
    /// The order in which the tower wants an image's merged tokens; `None`: as they are.
    fn order(&self, grid: Grid) -> Option<Vec<usize>>;

    /// `pixels`: `[patches, 3 * patch * patch]` of all images, in the tower's order. Gives the
    /// tokens `[tokens, out_hidden]` in the images' own order, and as many more of that shape
    /// as the tower has deepstack levels.
    fn forward(&self, pixels: &Tensor, grids: &[Grid]) -> Result<(Tensor, Vec<Tensor>)>;
}

/// Loads the tower of a network, if it has one.
pub(crate) fn load(config: &QwenConfig, loader: &Loader<'_>) -> Option<Box<dyn Tower>> {
    let vision = config.vision.as_ref()?;
    Some(match config.generation {
        Generation::Qwen2_5 => Box::new(Vision2_5::load(vision, loader)),
        Generation::Qwen3 => Box::new(Vision3::load(vision, loader)),
    })
}

/// Lays the patches of several images end to end, in the tower's order, normalized.
///
/// On a device the bytes are copied as they are, a quarter of the floats, and normalized there.
pub(crate) fn pack(
    tower: &dyn Tower,
    images: &[&Patches],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let mut rows = Vec::new(); // Image and patch of each row.
    for (image, patches) in images.iter().enumerate() {
        let grid = patches.grid;
        let square = grid.merge * grid.merge;
        match tower.order(grid) {
            Some(order) => rows.extend(order.into_iter().flat_map(|token| {
                (token * square..(token + 1) * square).map(move |patch| (image, patch))
            })),
            None => rows.extend((0..grid.n_patches()).map(|patch| (image, patch))),
        }
    }
    let width = images.first().map_or(0, |image| image.patch_len());
    let n = rows.len();
    if device.is_cpu() {
        let mut pixels = vec![0_f32; n * width];
        pixels
            .par_chunks_mut(width.max(1))
            .zip(&rows)
            .for_each(|(row, (image, patch))| images[*image].normalized_patch(*patch, row));
        return Tensor::from_vec(pixels, (n, width), device)?.to_dtype(dtype);
    }
    let mut pixels = vec![0_u8; n * width];
    pixels
        .par_chunks_mut(width.max(1))
        .zip(&rows)
        .for_each(|(row, (image, patch))| row.copy_from_slice(images[*image].patch(*patch)));
    let pixels = Tensor::from_vec(pixels, (n, 3, width / 3), device)?.to_dtype(DType::F32)?;
    let Some(first) = images.first() else {
        return pixels.reshape((n, width));
    };
    let (mean, std) = first.mean_and_std();
    let channel = |values: [f32; 3]| Tensor::new(&values, device)?.reshape((1, 3, 1));
    let pixels = pixels
        .broadcast_sub(&channel(mean)?)?
        .broadcast_div(&channel(std)?)?;
    pixels.reshape((n, width))?.to_dtype(dtype)
}

/// Puts the tokens of several images, each in the tower's order, back into their own.
pub(crate) fn restore(
    tokens: &Tensor,
    grids: &[Grid],
    order: impl Fn(Grid) -> Option<Vec<usize>>,
) -> Result<Tensor> {
    let n = tokens.dim(0)?;
    let mut places = vec![0_u32; n];
    let mut start = 0;
    for grid in grids {
        let n_tokens = grid.n_tokens();
        let order = order(*grid).unwrap_or_else(|| (0..n_tokens).collect());
        for (place, token) in order.into_iter().enumerate() {
            places[start + token] = (start + place) as u32;
        }
        start += n_tokens;
    }
    tokens.index_select(&Tensor::from_vec(places, n, tokens.device())?, 0)
}

/// Stretches of so many rows each, which attend to themselves.
pub(crate) fn spans(sizes: impl IntoIterator<Item = usize>) -> Vec<Span> {
    let itself = |range: std::ops::Range<usize>| Span {
        queries: range.clone(),
        keys: range,
    };
    layout::ranges(sizes).into_iter().map(itself).collect()
}

/// The first layer: a patch's pixels, `[patches, 3 * patch * patch]`, to its vector.
///
/// The reference convolves two frames, of which a page fills both; adding the two halves of
/// the weight once saves half of the products.
pub(crate) fn load_patches(config: &VisionConfig, bias: bool, loader: &Loader<'_>) -> Linear {
    let patch = config.patch;
    let shape = [config.hidden, 3, config.n_frames, patch, patch];
    let weight = loader.tensor("visual.patch_embed.proj.weight", &shape);
    // A tensor that the loader has complained about is a scalar.
    let folded = weight
        .sum(2)
        .and_then(|sum| sum.flatten_from(1)?.contiguous());
    let bias = bias.then(|| loader.tensor("visual.patch_embed.proj.bias", &[config.hidden]));
    Linear::dense(folded.unwrap_or(weight), bias)
}

/// The rotary positions of all patches of a pass.
pub(crate) struct Rotation {
    cosines: Tensor, // [patches, head_dim / 2], f32
    sines: Tensor,
}

impl Rotation {
    pub(crate) fn new(
        config: &VisionConfig,
        grids: &[Grid],
        order: impl Fn(Grid) -> Option<Vec<usize>>,
        device: &Device,
    ) -> Result<Self> {
        let mut places = Vec::new();
        for grid in grids {
            let own: Vec<_> = layout::patch_places(*grid).collect();
            match order(*grid) {
                Some(order) => {
                    let square = grid.merge * grid.merge;
                    let token = |token: usize| &own[token * square..(token + 1) * square];
                    places.extend(order.into_iter().flat_map(token).copied());
                }
                None => places.extend(own),
            }
        }
        let longest = grids.iter().map(|grid| grid.rows.max(grid.cols)).max();
        let head_dim = config.head_dim();
        let n = places.len();
        let angles = Angles::of_patches(config.rope_theta, head_dim, longest.unwrap_or(0), &places);
        Ok(Self {
            cosines: Tensor::from_vec(angles.cosines, (n, head_dim / 2), device)?,
            sines: Tensor::from_vec(angles.sines, (n, head_dim / 2), device)?,
        })
    }

    /// Queries, keys and values, each `[patches, heads, head_dim]`, of what the fused
    /// projection gives, `[patches, 3 * hidden]`; queries and keys are turned, in f32.
    pub(crate) fn split(
        &self,
        qkv: &Tensor,
        config: &VisionConfig,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (heads, head_dim) = (config.n_heads, config.head_dim());
        let qkv = qkv.reshape(((), 3 * heads, head_dim))?;
        let turned = ops::rope(&qkv.narrow(1, 0, 2 * heads)?, &self.cosines, &self.sines)?;
        let (q, k) = (turned.narrow(1, 0, heads)?, turned.narrow(1, heads, heads)?);
        Ok((q, k, qkv.narrow(1, 2 * heads, heads)?))
    }
}

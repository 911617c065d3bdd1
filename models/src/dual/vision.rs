//! The image side: patches in, one vector an image out.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::config::{DualFamily, VisionConfig};
use super::positions::StretchedPositions;
use super::tower::{self, End, Mlp, Norm, Stack};
use crate::linear::Linear;
use crate::loader::Loader;
use crate::ops::{self, Mask, Span};
use crate::preprocess::{Grid, Patches};

/// A loaded image tower, with what makes one vector of its rows.
pub(super) struct VisionTower {
    patches: Linear,
    positions: Positions,
    layers: Stack,
    output_norm: Norm,
    pooling: Pooling,
    side: usize,
}

enum Positions {
    /// Of the only grid there is, a class token first where there is one: `[positions, width]`.
    Fixed(Tensor),
    Stretched(StretchedPositions),
}

enum Pooling {
    ClassToken {
        token: Tensor, // [width]
        /// Stands before the layers.
        input_norm: Norm,
        projection: Option<Linear>,
    },
    Head(Box<AttentionHead>),
}

/// SigLIP's pooling: a learned query attends to all patches of an image.
struct AttentionHead {
    probe: Tensor, // [1, 1, width]
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    norm: Norm,
    mlp: Mlp,
    n_heads: usize,
}

impl VisionTower {
    /// Asks the loader for every tensor first, so that it can name all that are missing;
    /// where one is, what comes after fails.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &VisionConfig,
        family: DualFamily,
    ) -> Result<Self> {
        let (tower, width) = (&config.tower, config.tower.width);
        let patches = load_patches(loader, config, family);
        let layers = Stack::load(loader, "vision_model", tower, Mask::Full);
        let output_norm = Norm::load(loader, "vision_model.post_layernorm", tower);
        let pooling = if family == DualFamily::Clip {
            Ok(Pooling::ClassToken {
                token: loader.tensor("vision_model.embeddings.class_embedding", &[width]),
                // Spelled so in the files.
                input_norm: Norm::load(loader, "vision_model.pre_layrnorm", tower),
                projection: config
                    .projection
                    .map(|n_out| loader.linear("visual_projection", width, n_out, false)),
            })
        } else {
            AttentionHead::load(loader, config).map(|head| Pooling::Head(Box::new(head)))
        };
        let n_positions = config.side * config.side + usize::from(family == DualFamily::Clip);
        let name = "vision_model.embeddings.position_embedding.weight";
        let table = loader.tensor(name, &[n_positions, width]);
        let positions = if family == DualFamily::Siglip2 {
            Positions::Stretched(StretchedPositions::new(&table, config.side)?)
        } else {
            Positions::Fixed(table)
        };
        Ok(Self {
            patches: patches?,
            positions,
            layers,
            output_norm,
            pooling: pooling?,
            side: config.side,
        })
    }

    /// One vector for each image, `[images, dim]`, of any length.
    ///
    /// `pixels` is `[patches, 3 * patch * patch]`, the rows of all images end to end, each
    /// image's from left to right and from top to bottom.
    ///
    /// # Errors
    /// An image of another size than the tower's only one, or the device fails.
    pub(super) fn forward(&self, pixels: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        let patches = self.patches.forward(pixels)?; // [patches, width]
        match &self.pooling {
            Pooling::ClassToken {
                token,
                input_norm,
                projection,
            } => {
                let (hidden, images) = self.embed(&patches, grids, Some(token))?;
                let hidden = input_norm.forward(&hidden)?;
                let first = self.layers.forward_end(hidden, &images, End::First)?;
                let pooled = self.output_norm.forward(&first)?; // [images, width]
                match projection {
                    Some(projection) => projection.forward(&pooled),
                    None => Ok(pooled),
                }
            }
            Pooling::Head(head) => {
                let (hidden, images) = self.embed(&patches, grids, None)?;
                let hidden = self.layers.forward(hidden, &images)?;
                head.forward(&self.output_norm.forward(&hidden)?, &images)
            }
        }
    }

    /// Adds class tokens and positions: `[rows, width]`, and the rows of each image.
    fn embed(
        &self,
        patches: &Tensor,
        grids: &[Grid],
        token: Option<&Tensor>,
    ) -> Result<(Tensor, Vec<Range<usize>>)> {
        let table = match &self.positions {
            Positions::Fixed(table) => table,
            Positions::Stretched(positions) => {
                let of = |grid: &Grid| positions.of(grid.rows, grid.cols);
                let tables = grids.iter().map(of).collect::<Result<Vec<_>>>()?;
                // Into the patches: one table alone is the cache's own, which must stay.
                let hidden = ops::add(patches.clone(), &Tensor::cat(&tables, 0)?)?;
                let sizes = grids.iter().map(|grid| grid.rows * grid.cols);
                return Ok((hidden, tower::end_to_end(sizes)));
            }
        };
        for Grid { rows, cols, .. } in grids {
            if (*rows, *cols) != (self.side, self.side) {
                let side = self.side;
                candle_core::bail!(
                    "an image of {rows} x {cols} patches, where the model reads {side} x {side}"
                );
            }
        }
        let (n_images, width) = (grids.len(), patches.dim(1)?);
        let mut hidden = patches.reshape((n_images, self.side * self.side, width))?;
        if let Some(token) = token {
            let tokens = token.broadcast_as((n_images, 1, width))?;
            hidden = Tensor::cat(&[&tokens, &hidden], 1)?;
        }
        let hidden = hidden.broadcast_add(table)?; // [images, positions, width]
        let sizes = std::iter::repeat_n(hidden.dim(1)?, n_images);
        Ok((hidden.flatten(0, 1)?, tower::end_to_end(sizes)))
    }
}

impl AttentionHead {
    /// As [`VisionTower::load`].
    fn load(loader: &Loader<'_>, config: &VisionConfig) -> Result<Self> {
        let width = config.tower.width;
        let name = "vision_model.head";
        let probe = loader.tensor(&format!("{name}.probe"), &[1, 1, width]);
        let weight = loader.tensor(
            &format!("{name}.attention.in_proj_weight"),
            &[3 * width, width],
        );
        let bias = loader.tensor(&format!("{name}.attention.in_proj_bias"), &[3 * width]);
        let attended = loader.linear(&format!("{name}.attention.out_proj"), width, width, true);
        let norm = Norm::load(loader, &format!("{name}.layernorm"), &config.tower);
        let mlp = Mlp::load(loader, &format!("{name}.mlp"), &config.tower);
        let part = |part: usize| {
            let own = |tensor: &Tensor| tensor.narrow(0, part * width, width);
            Ok::<_, candle_core::Error>(Linear::dense(own(&weight)?, Some(own(&bias)?)))
        };
        Ok(Self {
            probe,
            query: part(0)?,
            key: part(1)?,
            value: part(2)?,
            attended,
            norm,
            mlp,
            n_heads: config.tower.n_heads,
        })
    }

    /// `hidden` is `[rows, width]`, and `images` are each one's rows; the result is
    /// `[images, width]`.
    fn forward(&self, hidden: &Tensor, images: &[Range<usize>]) -> Result<Tensor> {
        let query = self.query.forward(&self.probe.flatten(0, 1)?)?; // [1, width]
        let query = query
            .broadcast_as((images.len(), query.dim(1)?))?
            .contiguous()?;
        let projected = [
            query,
            self.key.forward(hidden)?,
            self.value.forward(hidden)?,
        ];
        let span = |(row, image): (usize, &Range<usize>)| Span {
            queries: row..row + 1,
            keys: image.clone(),
        };
        let spans: Vec<Span> = images.iter().enumerate().map(span).collect();
        let attended = tower::attend(&projected, &spans, self.n_heads, Mask::Full)?;
        let attended = self.attended.forward(&attended)?;
        let wide = self.mlp.forward(&self.norm.forward(&attended)?)?;
        ops::add(wide, &attended)
    }
}

/// The first layer: a patch's pixels, `[3, patch, patch]`, to its vector. The reference
/// convolves without overlap, or lays SigLIP2's patches out as `[patch, patch, 3]`.
fn load_patches(loader: &Loader<'_>, config: &VisionConfig, family: DualFamily) -> Result<Linear> {
    let (width, patch) = (config.tower.width, config.patch_px);
    let name = "vision_model.embeddings.patch_embedding";
    let bias = family != DualFamily::Clip;
    let bias = bias.then(|| loader.tensor(&format!("{name}.bias"), &[width]));
    let name = format!("{name}.weight");
    let weight = if family == DualFamily::Siglip2 {
        let weight = loader.tensor(&name, &[width, patch * patch * 3]);
        let weight = weight.reshape((width, patch, patch, 3))?;
        weight.permute((0, 3, 1, 2))?.contiguous()?
    } else {
        loader.tensor(&name, &[width, 3, patch, patch])
    };
    Ok(Linear::dense(weight.flatten_from(1)?, bias))
}

/// The pixels of several images end to end, normalized: `[patches, 3 * patch * patch]`.
///
/// To a device the bytes go as they are, a quarter of the floats, and are normalized there.
pub(super) fn pack(images: &[&Patches], dtype: DType, device: &Device) -> Result<Tensor> {
    let Some(first) = images.first() else {
        candle_core::bail!("no images");
    };
    let width = first.patch_len();
    let places = images.iter().enumerate();
    let places = places.flat_map(|(image, patches)| {
        (0..patches.grid.n_patches()).map(move |patch| (image, patch))
    });
    let places: Vec<(usize, usize)> = places.collect();
    let n = places.len();
    if device.is_cpu() {
        let mut pixels = vec![0_f32; n * width];
        let rows = pixels.par_chunks_exact_mut(width).zip(&places);
        rows.for_each(|(row, (image, patch))| images[*image].normalized_patch(*patch, row));
        return Tensor::from_vec(pixels, (n, width), device)?.to_dtype(dtype);
    }
    let mut pixels = vec![0_u8; n * width];
    let rows = pixels.par_chunks_exact_mut(width).zip(&places);
    rows.for_each(|(row, (image, patch))| row.copy_from_slice(images[*image].patch(*patch)));
    let pixels = Tensor::from_vec(pixels, (n, 3, width / 3), device)?.to_dtype(DType::F32)?;
    let (mean, std) = first.mean_and_std();
    let channel = |values: [f32; 3]| Tensor::new(&values, device)?.reshape((1, 3, 1));
    let pixels = pixels
        .broadcast_sub(&channel(mean)?)?
        .broadcast_div(&channel(std)?)?;
    pixels.reshape((n, width))?.to_dtype(dtype)
}

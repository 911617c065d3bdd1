//! An image as the squares that a network reads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Grid;
use super::kernels::N_CHANNELS;

/// Patches that one core normalizes at a time.
const N_PATCHES_PER_TASK: usize = 128;

/// Turns a byte into what the network reads: `(byte - mean) / std`, each channel by its own.
///
/// Mean and std are those of the model's file for 0..=1, scaled to bytes in f32 as the
/// reference does; the results are equal to the bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Normalization {
    /// Red, green and blue, on the scale of bytes.
    mean: [f32; 3],
    /// Red, green and blue, on the scale of bytes.
    std: [f32; 3],
}

impl Normalization {
    /// `rescale` maps bytes to the scale of `mean` and `std`, 1/255 as a rule.
    pub(super) fn new(mean: [f64; 3], std: [f64; 3], rescale: f64) -> Self {
        let scale = (1.0 / rescale) as f32;
        Self {
            mean: mean.map(|mean| mean as f32 * scale),
            std: std.map(|std| std as f32 * scale),
        }
    }
}

/// How the reference lays out `pixel_values`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[patches, 3, frames, p, p]`, all frames the same.
    Frames(usize),
    /// `[3, height, width]`, not cut into patches.
    Picture,
    /// `[patches, p, p, 3]`.
    Interleaved,
}

/// An image after resizing and before normalization, cut into square patches.
///
/// It holds bytes: a fourth of what the network reads, and so cheaper to keep and to send to
/// a device. [`normalized_into`](Self::normalized_into) makes numbers of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// Rows and columns of patches.
    pub grid: Grid,
    pub(super) patch_px: usize,
    pub(super) layout: Layout,
    pub(super) normalization: Normalization,
    /// `[patches, 3, p, p]`. Patches are ordered by block, `grid.merge` patches wide and high,
    /// and within a block by row; a merge of 1 makes that the order of reading.
    pub(super) pixels: Vec<u8>,
}

impl Patches {
    /// Number of patches.
    pub fn n_patches(&self) -> usize {
        self.grid.n_patches()
    }

    /// Side of a patch.
    pub fn patch_px(&self) -> usize {
        self.patch_px
    }

    /// Memory that the pixels take.
    pub fn n_bytes(&self) -> usize {
        self.pixels.len()
    }

    /// The bytes, `[patches, 3, p, p]` in the model's order of patches.
    pub fn as_bytes(&self) -> &[u8] {
        &self.pixels
    }

    /// Mean and standard deviation of red, green and blue, on the scale of bytes: the network
    /// reads `(byte - mean) / std`, in f32.
    pub fn mean_and_std(&self) -> ([f32; 3], [f32; 3]) {
        (self.normalization.mean, self.normalization.std)
    }

    /// Values of one patch, `3 * p * p`.
    pub fn patch_len(&self) -> usize {
        N_CHANNELS * self.patch_px * self.patch_px
    }

    /// The bytes of one patch, `[3, p, p]`.
    ///
    /// # Panics
    /// When there is no such patch.
    pub fn patch(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.patch_len()..(index + 1) * self.patch_len()]
    }

    /// Writes one normalized patch, `[3, p, p]`, to the [`patch_len`](Self::patch_len) numbers
    /// of `out`.
    ///
    /// # Panics
    /// When there is no such patch.
    pub fn normalized_patch(&self, index: usize, out: &mut [f32]) {
        self.normalize(self.patch(index), out);
    }

    /// Whole patches.
    fn normalize(&self, pixels: &[u8], out: &mut [f32]) {
        Arch::new().dispatch(NormalizePlanes {
            normalization: self.normalization,
            plane: self.patch_px * self.patch_px,
            pixels,
            out,
        });
    }

    /// Writes the normalized pixels, `[patches, 3 * p * p]` f32, one frame only.
    ///
    /// # Panics
    /// When `out` has another length than [`n_bytes`](Self::n_bytes).
    pub fn normalized_into(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.pixels.len(), "one number for each byte");
        let n_per_task = N_PATCHES_PER_TASK * self.patch_len();
        out.par_chunks_mut(n_per_task)
            .zip(self.pixels.par_chunks(n_per_task))
            .for_each(|(out, pixels)| self.normalize(pixels, out));
    }

    /// The reference's `pixel_values` for this image alone.
    ///
    /// The Qwen family: `[patches, 3 * frames * p * p]`, each frame the same. CLIP and SigLIP:
    /// `[3, height, width]` of what the patches cover. `NaFlex`: `[patches, p * p * 3]`,
    /// without the reference's padding.
    pub fn pixel_values(&self) -> Vec<f32> {
        let p = self.patch_px;
        let plane = p * p;
        let mut one = vec![0.0; self.pixels.len()];
        self.normalized_into(&mut one);
        match self.layout {
            Layout::Frames(n_frames) => one
                .chunks_exact(plane)
                .flat_map(|plane| std::iter::repeat_n(plane, n_frames))
                .flatten()
                .copied()
                .collect(),
            Layout::Interleaved => one
                .chunks_exact(N_CHANNELS * plane)
                .flat_map(|patch| {
                    (0..plane).flat_map(move |pixel| {
                        (0..N_CHANNELS).map(move |c| patch[c * plane + pixel])
                    })
                })
                .collect(),
            Layout::Picture => {
                let (height, width) = (self.grid.rows * p, self.grid.cols * p);
                let mut values = vec![0.0; one.len()];
                for (patch, pixels) in one.chunks_exact(N_CHANNELS * plane).enumerate() {
                    let (row, column) = (patch / self.grid.cols, patch % self.grid.cols);
                    for (line, pixels) in pixels.chunks_exact(p).enumerate() {
                        let (channel, y) = (line / p, row * p + line % p);
                        let at = (channel * height + y) * width + column * p;
                        values[at..at + p].copy_from_slice(pixels);
                    }
                }
                values
            }
        }
    }
}

struct NormalizePlanes<'a> {
    normalization: Normalization,
    plane: usize,
    pixels: &'a [u8],
    out: &'a mut [f32],
}

impl WithSimd for NormalizePlanes<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(
        clippy::inline_always,
        reason = "compiled anew for each kind of instructions"
    )]
    fn with_simd<S: Simd>(self, _simd: S) {
        let planes = self.pixels.chunks_exact(self.plane);
        for (index, (out, pixels)) in self
            .out
            .chunks_exact_mut(self.plane)
            .zip(planes)
            .enumerate()
        {
            let (mean, std) = (
                self.normalization.mean[index % N_CHANNELS],
                self.normalization.std[index % N_CHANNELS],
            );
            for (out, pixel) in out.iter_mut().zip(pixels) {
                *out = (f32::from(*pixel) - mean) / std;
            }
        }
    }
}

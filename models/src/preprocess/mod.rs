//! Pixels to patches: resizing, cutting and normalizing as the Hugging Face processors do,
//! to the bit.
//!
//! [`ImageProcessor::read`] takes its settings from the model's folder, and
//! [`ImageProcessor::prepare`] turns a page into [`Patches`]. The reference throughout is the
//! torchvision back end of transformers' image processors, which resizes bytes with 16-bit
//! weights; their PIL back end differs from it by a level in a few pixels of a thousand.
//!
//! In the order of the data: `file` and `settings` (what the model's files say), `size` (to
//! which size, and which part of it), `axis` (weights), `resample` with `kernels` (bytes to
//! bytes), `patches` (bytes to numbers).

mod file;

mod settings;

mod size;

mod axis;

mod kernels;

mod resample;

mod patches;

use std::path::Path;

use self::patches::Layout;
use self::settings::{MAX_PIXELS, Resize, Settings, Sizing};
use self::size::Side;
use crate::error::ModelError;

pub use self::patches::Patches;
pub use self::settings::{Family, ProcessorOptions};
pub use self::size::ImageProblem;

/// The longest side that an image is resized to when only its middle is kept. It guards
/// against thin images, whose short side is enlarged and the long one with it.
const MAX_CROPPED_PX: f64 = 16_777_216.0;

/// An image that somebody else owns.
#[derive(Debug, Clone, Copy)]
pub struct RgbView<'a> {
    /// RGB, 8 bits each, `[height_px, width_px, 3]`, row-major without gaps.
    pub pixels: &'a [u8],
    /// Pixels in a row.
    pub width_px: u32,
    /// Rows.
    pub height_px: u32,
}

/// How an image is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Patches from top to bottom.
    pub rows: usize,
    /// Patches from left to right.
    pub cols: usize,
    /// Side of a block of patches that become one token; 1 where each patch is one.
    pub merge: usize,
}

impl Grid {
    /// Number of patches.
    pub fn n_patches(&self) -> usize {
        self.rows * self.cols
    }

    /// Tokens that the image takes up in the model's text; for models without text around
    /// their images, the number of patches.
    pub fn n_tokens(&self) -> usize {
        self.n_patches() / (self.merge * self.merge)
    }
}

/// What a model does to an image before its network sees it.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    settings: Settings,
}

impl ImageProcessor {
    /// Reads `processor_config.json` or `preprocessor_config.json` from a model's folder.
    ///
    /// `family` counts only where the file names no class of processor.
    ///
    /// # Errors
    /// Neither file is there, one is malformed, its settings contradict themselves or
    /// `options`, or they ask for what this crate does not compute.
    pub fn read(
        folder: &Path,
        family: Family,
        options: &ProcessorOptions,
    ) -> Result<Self, ModelError> {
        Self::read_first(&[folder], family, options)
    }

    /// Like [`read`](Self::read), from the first of `folders` that has one of the files: an
    /// adapter may come with its own or leave it to its base.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_first(
        folders: &[&Path],
        family: Family,
        options: &ProcessorOptions,
    ) -> Result<Self, ModelError> {
        let settings = Settings::read_first(folders, family, options)?;
        Ok(Self { settings })
    }

    /// Which preprocessing the files ask for.
    pub fn family(&self) -> Family {
        self.settings.family
    }

    /// Side of a patch.
    pub fn patch_px(&self) -> usize {
        self.settings.patch_px
    }

    /// How an image of these sides will be cut up, without touching its pixels.
    ///
    /// # Errors
    /// A side is 0, or the image is too thin.
    pub fn grid(&self, width_px: u32, height_px: u32) -> Result<Grid, ModelError> {
        let [height, width] = self.sides(width_px, height_px)?;
        Ok(self.grid_of(&height, &width))
    }

    /// Makes patches of an image, on all cores.
    ///
    /// # Errors
    /// The image has no pixels, another number of bytes than its sides call for, or is too
    /// thin.
    pub fn prepare(&self, image: RgbView<'_>) -> Result<Patches, ModelError> {
        let RgbView {
            pixels,
            width_px,
            height_px,
        } = image;
        let [height, width] = self.sides(width_px, height_px)?;
        let n_pixels = u64::from(width_px) * u64::from(height_px);
        let expected = n_pixels.saturating_mul(3);
        if pixels.len() as u64 != expected {
            let found = pixels.len();
            let problem = ImageProblem::WrongLength { found, expected };
            return Err(ModelError::UnfitImage {
                width_px,
                height_px,
                problem,
            });
        }
        let Settings {
            patch_px,
            filter,
            normalization,
            ..
        } = self.settings;
        let grid = self.grid_of(&height, &width);
        Ok(Patches {
            grid,
            patch_px,
            layout: match self.settings.sizing {
                Sizing::Qwen { n_frames, .. } => Layout::Frames(n_frames),
                Sizing::Fixed { .. } => Layout::Picture,
                Sizing::Naflex { .. } => Layout::Interleaved,
            },
            normalization,
            pixels: resample::to_patches(image, &height, &width, grid, patch_px, filter),
        })
    }

    /// A name for what this processor does: two with the same one make the same patches.
    pub fn key(&self) -> String {
        format!("{:?}", self.settings)
    }

    /// What becomes of height and width.
    fn sides(&self, width_px: u32, height_px: u32) -> Result<[Side; 2], ModelError> {
        let sides = if width_px == 0 || height_px == 0 {
            Err(ImageProblem::NoPixels)
        } else {
            self.try_sides(width_px, height_px)
        };
        sides.map_err(|problem| ModelError::UnfitImage {
            width_px,
            height_px,
            problem,
        })
    }

    fn try_sides(&self, width_px: u32, height_px: u32) -> Result<[Side; 2], ImageProblem> {
        let patch_px = self.settings.patch_px;
        let whole = |side: usize| Side::whole(side, patch_px);
        match self.settings.sizing {
            Sizing::Qwen {
                merge,
                min_pixels,
                max_pixels,
                ..
            } => {
                let factor_px = patch_px * merge;
                size::smart_resize(height_px, width_px, factor_px, min_pixels, max_pixels)
                    .map(|sides| sides.map(whole))
            }
            Sizing::Naflex { max_patches } => {
                Ok(size::largest_within(height_px, width_px, patch_px, max_patches).map(whole))
            }
            Sizing::Fixed { resize, crop } => {
                let [height, width] = match resize {
                    Resize::To(sides) => sides,
                    Resize::ShortestTo(shortest_px) => {
                        let whole_px = MAX_PIXELS / shortest_px as f64;
                        let most = if crop.is_some() {
                            MAX_CROPPED_PX
                        } else {
                            whole_px
                        };
                        size::shortest_to(height_px, width_px, shortest_px, most)?
                    }
                };
                Ok(match crop {
                    None => [whole(height), whole(width)],
                    Some([crop_height, crop_width]) => [
                        Side::center(height, crop_height, patch_px),
                        Side::center(width, crop_width, patch_px),
                    ],
                })
            }
        }
    }

    fn grid_of(&self, height: &Side, width: &Side) -> Grid {
        let merge = match self.settings.sizing {
            Sizing::Qwen { merge, .. } => merge,
            Sizing::Fixed { .. } | Sizing::Naflex { .. } => 1,
        };
        Grid {
            rows: height.n_patches,
            cols: width.n_patches,
            merge,
        }
    }
}

#[cfg(test)]
mod tests;

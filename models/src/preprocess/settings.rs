//! Reads the settings in a model's files for preparing its images.

use std::path::{Path, PathBuf};

use super::axis::Filter;
use super::file::{Channels, File, OLD_FILE, Size, SizeKeys, find};
use super::patches::Normalization;
use crate::error::ModelError;

// Bounds far above any model's settings, so that a damaged file cannot ask for all memory.
const MAX_PATCH_PX: f64 = 256.0;
const MAX_MERGE: f64 = 8.0;
const MAX_FRAMES: f64 = 8.0;
const MAX_SIDE_PX: f64 = 8192.0;
/// The area to which small images are enlarged.
const MAX_ENLARGED_PIXELS: f64 = 67_108_864.0;
/// The area that large images keep.
pub(super) const MAX_PIXELS: f64 = 268_435_456.0;

const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Kinds of preprocessing. The processor's own file decides where it names a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Qwen2.5-VL and Qwen3-VL: any shape, patches in merged blocks.
    Qwen,
    /// CLIP: the shorter side to a fixed length, then the middle.
    Clip,
    /// SigLIP and SigLIP2 of a fixed resolution: squeezed to that.
    Siglip,
    /// `SigLIP2` `NaFlex`: any shape, up to a number of patches.
    Siglip2,
}

/// What the processor's file does not know, or what the caller wants otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessorOptions {
    /// Side of a patch by the model's own configuration. CLIP and SigLIP need it; where the
    /// processor's file has one too, they must agree.
    pub patch_px: Option<usize>,
    /// Most tokens an image may become, in place of the file's limit. Only for families whose
    /// images differ in size.
    pub max_visual_tokens: Option<usize>,
}

/// Everything that decides what an image becomes.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) family: Family,
    pub(super) sizing: Sizing,
    pub(super) patch_px: usize,
    pub(super) filter: Filter,
    pub(super) normalization: Normalization,
}

/// How the size is found, and with it the order of patches.
#[derive(Debug, Clone)]
pub(super) enum Sizing {
    Qwen {
        /// Side of a block of patches that become one token.
        merge: usize,
        /// How often a picture is repeated to look like a film.
        n_frames: usize,
        min_pixels: u64,
        max_pixels: u64,
    },
    Fixed {
        resize: Resize,
        /// Height and width of the middle that is kept.
        crop: Option<[usize; 2]>,
    },
    Naflex {
        max_patches: usize,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Resize {
    /// Height and width.
    To([usize; 2]),
    ShortestTo(usize),
}

impl Settings {
    /// Reads the first of `folders` that has such settings.
    ///
    /// # Errors
    /// No folder has them, they are malformed, contradict themselves or `options`, or ask for
    /// what this crate does not compute.
    pub(super) fn read_first(
        folders: &[&Path],
        family: Family,
        options: &ProcessorOptions,
    ) -> Result<Self, ModelError> {
        for folder in folders {
            if let Some((file, path)) = find(folder)? {
                return Reader { file, path }.settings(family, options);
            }
        }
        Err(ModelError::MissingFile {
            file: OLD_FILE.into(),
            folder: folders
                .first()
                .map_or_else(PathBuf::new, |folder| folder.to_path_buf()),
        })
    }
}

/// Turns a file's fields into settings, each checked.
struct Reader {
    file: File,
    path: PathBuf,
}

impl Reader {
    fn settings(&self, family: Family, options: &ProcessorOptions) -> Result<Settings, ModelError> {
        let family = self.family(family)?;
        for (field, setting) in [
            ("do_resize", self.file.do_resize),
            ("do_rescale", self.file.do_rescale),
            ("do_normalize", self.file.do_normalize),
        ] {
            if setting == Some(false) {
                return Err(self.unsupported(field, "false", &["true"]));
            }
        }
        let (usual_filter, usual_mean, usual_std) = match family {
            Family::Qwen | Family::Clip => (Filter::Bicubic, CLIP_MEAN, CLIP_STD),
            Family::Siglip => (Filter::Bicubic, [0.5; 3], [0.5; 3]),
            Family::Siglip2 => (Filter::Bilinear, [0.5; 3], [0.5; 3]),
        };
        let patch_px = self.patch_px(family, options)?;
        Ok(Settings {
            family,
            sizing: match family {
                Family::Qwen => self.qwen(patch_px, options)?,
                Family::Clip | Family::Siglip => self.fixed(family, patch_px, options)?,
                Family::Siglip2 => self.naflex(patch_px, options)?,
            },
            patch_px,
            filter: self.filter(usual_filter)?,
            normalization: self.normalization(usual_mean, usual_std)?,
        })
    }

    /// The file's class, with or without what it says of the back end; ours is torchvision's.
    fn family(&self, fallback: Family) -> Result<Family, ModelError> {
        let (field, class) = match (
            &self.file.image_processor_type,
            &self.file.feature_extractor_type,
        ) {
            (Some(class), _) => ("image_processor_type", class),
            (None, Some(class)) => ("feature_extractor_type", class),
            (None, None) => return Ok(fallback),
        };
        let name = class.trim_end_matches("Fast").trim_end_matches("Pil");
        match name
            .trim_end_matches("ImageProcessor")
            .trim_end_matches("FeatureExtractor")
        {
            "Qwen2VL" | "Qwen2_5_VL" | "Qwen2_5VL" | "Qwen3VL" => Ok(Family::Qwen),
            "CLIP" => Ok(Family::Clip),
            "Siglip" => Ok(Family::Siglip),
            "Siglip2" => Ok(Family::Siglip2),
            _ => Err(self.unsupported(
                field,
                class,
                &[
                    "Qwen2VLImageProcessor",
                    "CLIPImageProcessor",
                    "SiglipImageProcessor",
                    "Siglip2ImageProcessor",
                ],
            )),
        }
    }

    fn patch_px(&self, family: Family, options: &ProcessorOptions) -> Result<usize, ModelError> {
        let usual = match family {
            Family::Qwen => Some(14),
            Family::Siglip2 => Some(16),
            Family::Clip | Family::Siglip => None,
        };
        let own = match self.file.patch_size {
            Some(size) => Some(self.whole("patch_size", size, MAX_PATCH_PX)?),
            None => usual,
        };
        match (own, options.patch_px) {
            (Some(own), Some(model)) if own != model => Err(self.invalid(
                "patch_size",
                format!("is {own}, but the model's patches are {model} pixels wide"),
            )),
            (None, None) => Err(self.invalid(
                "patch_size",
                "is neither here nor in the model's configuration".into(),
            )),
            (Some(patch_px), _) => Ok(patch_px),
            (None, Some(patch_px)) => self.whole("patch_size", patch_px as f64, MAX_PATCH_PX),
        }
    }

    fn qwen(&self, patch_px: usize, options: &ProcessorOptions) -> Result<Sizing, ModelError> {
        let merge = self.whole("merge_size", self.file.merge_size.unwrap_or(2.0), MAX_MERGE)?;
        let n_frames = self.file.temporal_patch_size.unwrap_or(2.0);
        let n_frames = self.whole("temporal_patch_size", n_frames, MAX_FRAMES)?;
        let keys = match self.file.size {
            None => SizeKeys {
                shortest_edge: Some(3136.0),
                longest_edge: Some(1_003_520.0),
                ..SizeKeys::default()
            },
            Some(Size::Keys(keys)) => keys,
            Some(Size::Side(_) | Size::HeightWidth(_)) => {
                let supported = &["shortest_edge, longest_edge"];
                return Err(self.unsupported("size", "only numbers", supported));
            }
        };
        let min = self
            .file
            .min_pixels
            .or(keys.shortest_edge)
            .or(keys.min_pixels);
        let max = self
            .file
            .max_pixels
            .or(keys.longest_edge)
            .or(keys.max_pixels);
        let (Some(min), Some(max)) = (min, max) else {
            let problem = "lacks `shortest_edge` or `longest_edge`, the least and most pixels";
            return Err(self.invalid("size", problem.into()));
        };
        let min = self.whole("size.shortest_edge", min, MAX_ENLARGED_PIXELS)?;
        let mut max = self.whole("size.longest_edge", max, MAX_PIXELS)?;
        if let Some(n_tokens) = options.max_visual_tokens {
            let token_pixels = (patch_px * merge).pow(2);
            let most = MAX_PIXELS / token_pixels as f64;
            max = token_pixels * self.whole("max_visual_tokens", n_tokens as f64, most)?;
        }
        Ok(Sizing::Qwen {
            merge,
            n_frames,
            min_pixels: min as u64,
            max_pixels: max as u64,
        })
    }

    fn fixed(
        &self,
        family: Family,
        patch_px: usize,
        options: &ProcessorOptions,
    ) -> Result<Sizing, ModelError> {
        if options.max_visual_tokens.is_some() {
            let problem = "cannot be set for a model whose images all have one size";
            return Err(self.invalid("max_visual_tokens", problem.into()));
        }
        if self.file.do_pad == Some(true) {
            return Err(self.unsupported("do_pad", "true", &["false"]));
        }
        let side = |field, side| self.whole(field, side, MAX_SIDE_PX);
        let resize = match (self.file.size, family) {
            (None, Family::Clip) => Resize::ShortestTo(224),
            (None, _) => Resize::To([224; 2]),
            (Some(Size::Side(shortest)), _) => Resize::ShortestTo(side("size", shortest)?),
            (Some(Size::HeightWidth([height, width])), _) => {
                Resize::To([side("size", height)?, side("size", width)?])
            }
            (Some(Size::Keys(keys)), _) => match keys {
                SizeKeys {
                    shortest_edge: Some(shortest),
                    longest_edge: None,
                    ..
                } => Resize::ShortestTo(side("size.shortest_edge", shortest)?),
                SizeKeys {
                    height: Some(height),
                    width: Some(width),
                    shortest_edge: None,
                    max_height: None,
                    max_width: None,
                    ..
                } => Resize::To([side("size.height", height)?, side("size.width", width)?]),
                _ => {
                    let supported = &["shortest_edge", "height, width"];
                    return Err(self.unsupported("size", &keys.names(), supported));
                }
            },
        };
        let is_cropped = self.file.do_center_crop.unwrap_or(family == Family::Clip);
        let crop = if is_cropped {
            Some(self.crop(family)?)
        } else {
            None
        };
        let smallest = match (crop, resize) {
            (Some([height, width]), _) | (None, Resize::To([height, width])) => height.min(width),
            (None, Resize::ShortestTo(side)) => side,
        };
        if smallest < patch_px {
            let problem = format!("is {patch_px}, more than the {smallest} of an image's side");
            return Err(self.invalid("patch_size", problem));
        }
        Ok(Sizing::Fixed { resize, crop })
    }

    fn crop(&self, family: Family) -> Result<[usize; 2], ModelError> {
        let [height, width] = match self.file.crop_size {
            None if family == Family::Clip => [224.0; 2],
            None => {
                let problem = "is missing, though `do_center_crop` is true";
                return Err(self.invalid("crop_size", problem.into()));
            }
            Some(Size::Side(side)) => [side; 2],
            Some(Size::HeightWidth(sides)) => sides,
            Some(Size::Keys(SizeKeys {
                height: Some(height),
                width: Some(width),
                ..
            })) => [height, width],
            Some(Size::Keys(keys)) => {
                return Err(self.unsupported("crop_size", &keys.names(), &["height, width"]));
            }
        };
        let side = |side| self.whole("crop_size", side, MAX_SIDE_PX);
        Ok([side(height)?, side(width)?])
    }

    fn naflex(&self, patch_px: usize, options: &ProcessorOptions) -> Result<Sizing, ModelError> {
        let most = MAX_PIXELS / (patch_px as f64).powi(2);
        let (field, max) = match options.max_visual_tokens {
            Some(n_tokens) => ("max_visual_tokens", n_tokens as f64),
            None => (
                "max_num_patches",
                self.file.max_num_patches.unwrap_or(256.0),
            ),
        };
        let max_patches = self.whole(field, max, most)?;
        Ok(Sizing::Naflex { max_patches })
    }

    fn filter(&self, usual: Filter) -> Result<Filter, ModelError> {
        // PIL's numbers.
        match self.file.resample {
            None => Ok(usual),
            Some(2.0) => Ok(Filter::Bilinear),
            Some(3.0) => Ok(Filter::Bicubic),
            Some(other) => {
                let supported = &["2 (bilinear)", "3 (bicubic)"];
                Err(self.unsupported("resample", &other.to_string(), supported))
            }
        }
    }

    fn normalization(&self, mean: [f64; 3], std: [f64; 3]) -> Result<Normalization, ModelError> {
        let mean = self.file.image_mean.map_or(mean, Channels::each);
        let std = self.file.image_std.map_or(std, Channels::each);
        let rescale = self.file.rescale_factor.unwrap_or(1.0 / 255.0);
        let is_usable = |value: f64| value.is_finite() && (1e-6..=1e6).contains(&value);
        if !is_usable(rescale) {
            let problem = format!("is {rescale}, not a positive number such as 1/255");
            return Err(self.invalid("rescale_factor", problem));
        }
        if mean.iter().any(|mean| mean.abs() > 1e6) {
            return Err(self.invalid("image_mean", format!("is {mean:?}, which is out of range")));
        }
        if !std.iter().all(|std| is_usable(*std)) {
            let problem = format!("is {std:?}, not three positive numbers");
            return Err(self.invalid("image_std", problem));
        }
        Ok(Normalization::new(mean, std, rescale))
    }

    /// A whole number of at least 1.
    fn whole(&self, field: &'static str, value: f64, most: f64) -> Result<usize, ModelError> {
        if value.fract() == 0.0 && (1.0..=most.floor()).contains(&value) {
            return Ok(value as usize);
        }
        let problem = format!("is {value}, not a whole number from 1 to {}", most.floor());
        Err(self.invalid(field, problem))
    }

    fn invalid(&self, field: &'static str, problem: String) -> ModelError {
        let path = self.path.clone();
        ModelError::InvalidSetting {
            field,
            problem,
            path,
        }
    }

    fn unsupported(
        &self,
        field: &str,
        found: &str,
        supported: &'static [&'static str],
    ) -> ModelError {
        ModelError::Unsupported {
            field: field.to_owned(),
            found: found.to_owned(),
            supported,
            path: self.path.clone(),
        }
    }
}

#[cfg(test)]
mod tests;

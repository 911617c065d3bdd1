//! The files of a processor's settings, in all the forms they had.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::ModelError;
use crate::files;

/// Settings of the image processor among others', and those alone.
pub(super) const NEW_FILE: &str = "processor_config.json";
pub(super) const OLD_FILE: &str = "preprocessor_config.json";

/// The fields that change a result. Numbers are floats, so that a negative or fractional one
/// gets a message of ours.
#[derive(Debug, Default, Deserialize)]
pub(super) struct File {
    pub(super) image_processor_type: Option<String>,
    /// Its name before 2022.
    pub(super) feature_extractor_type: Option<String>,
    pub(super) do_resize: Option<bool>,
    pub(super) do_rescale: Option<bool>,
    pub(super) do_normalize: Option<bool>,
    pub(super) do_center_crop: Option<bool>,
    pub(super) do_pad: Option<bool>,
    pub(super) size: Option<Size>,
    pub(super) crop_size: Option<Size>,
    pub(super) resample: Option<f64>,
    pub(super) rescale_factor: Option<f64>,
    pub(super) image_mean: Option<Channels>,
    pub(super) image_std: Option<Channels>,
    pub(super) patch_size: Option<f64>,
    pub(super) merge_size: Option<f64>,
    pub(super) temporal_patch_size: Option<f64>,
    pub(super) min_pixels: Option<f64>,
    pub(super) max_pixels: Option<f64>,
    pub(super) max_num_patches: Option<f64>,
}

/// A size in any of the forms that were in use.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Side(f64),
    HeightWidth([f64; 2]),
    Keys(SizeKeys),
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct SizeKeys {
    pub(super) height: Option<f64>,
    pub(super) width: Option<f64>,
    pub(super) shortest_edge: Option<f64>,
    pub(super) longest_edge: Option<f64>,
    pub(super) min_pixels: Option<f64>,
    pub(super) max_pixels: Option<f64>,
    pub(super) max_height: Option<f64>,
    pub(super) max_width: Option<f64>,
}

impl SizeKeys {
    /// The keys that are there, as a message shows them.
    pub(super) fn names(&self) -> String {
        let keys = [
            ("height", self.height),
            ("width", self.width),
            ("shortest_edge", self.shortest_edge),
            ("longest_edge", self.longest_edge),
            ("min_pixels", self.min_pixels),
            ("max_pixels", self.max_pixels),
            ("max_height", self.max_height),
            ("max_width", self.max_width),
        ];
        let given = keys.iter().filter(|(_, value)| value.is_some());
        given.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

/// One number for each channel, or one for all.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Channels {
    Same(f64),
    Each([f64; 3]),
}

impl Channels {
    pub(super) fn each(self) -> [f64; 3] {
        match self {
            Self::Same(value) => [value; 3],
            Self::Each(values) => values,
        }
    }
}

/// [`NEW_FILE`], which since 2025 holds the settings of all of a model's processors.
#[derive(Deserialize)]
struct ProcessorFile {
    image_processor: Option<File>,
}

/// One folder's settings, if it has any. The newer file wins, if they are in it at all.
pub(super) fn find(folder: &Path) -> Result<Option<(File, PathBuf)>, ModelError> {
    let path = folder.join(NEW_FILE);
    let processor: Option<ProcessorFile> = files::read_optional_json(&path)?;
    if let Some(file) = processor.and_then(|processor| processor.image_processor) {
        return Ok(Some((file, path)));
    }
    let path = folder.join(OLD_FILE);
    Ok(files::read_optional_json(&path)?.map(|file| (file, path)))
}

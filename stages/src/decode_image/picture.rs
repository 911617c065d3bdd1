//! One picture's bytes to upright RGB pixels over white.

use std::io::Cursor;

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, RgbaImage,
};
use pagemill_pipeline::{Image, ItemError};
use serde::{Deserialize, Serialize};

use crate::cage::tidy;
use crate::pixels::Shrinker;

/// What one picture may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureLimits {
    /// Pixels that it may claim to have.
    pub max_pixels: u64,
    /// Memory for its pixels, as decoded and as RGB.
    pub max_bytes: u64,
}

/// The kinds of pictures that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PictureFormat {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// TIFF, which may hold several.
    Tiff,
    /// WebP.
    WebP,
}

impl PictureFormat {
    /// The format behind a media type, if it is one that we decode.
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "image/png" => Some(Self::Png),
            "image/jpeg" => Some(Self::Jpeg),
            "image/tiff" => Some(Self::Tiff),
            "image/webp" => Some(Self::WebP),
            _ => None,
        }
    }
}

impl From<PictureFormat> for ImageFormat {
    fn from(format: PictureFormat) -> Self {
        match format {
            PictureFormat::Png => Self::Png,
            PictureFormat::Jpeg => Self::Jpeg,
            PictureFormat::Tiff => Self::Tiff,
            PictureFormat::WebP => Self::WebP,
        }
    }
}

/// Why a picture cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum PictureError {
    #[error("it has {width_px} x {height_px} px, and `limits.pixels` is {max_pixels}")]
    TooManyPixels {
        width_px: u32,
        height_px: u32,
        max_pixels: u64,
    },
    #[error("decoding it takes {needed_mb} MB, and `limits.memory_mb` is {max_mb}")]
    TooMuchMemory { needed_mb: u64, max_mb: u64 },
    #[error("decoding it takes more than the {max_mb} MB of `limits.memory_mb`")]
    MemoryRanOut { max_mb: u64 },
    #[error("it has no pixels")]
    Empty,
    #[error("it is damaged ({0})")]
    Damaged(String),
    #[error("it ends before the picture does")]
    CutOff,
    #[error("it is of a kind that cannot be read ({0})")]
    Unsupported(String),
    #[error("its size could not be changed ({0})")]
    Shrink(String),
}

impl PictureError {
    /// With a library's words made fit to be stored and printed.
    pub(crate) fn tidied(self) -> Self {
        match self {
            Self::Damaged(words) => Self::Damaged(tidy(&words)),
            Self::Unsupported(words) => Self::Unsupported(tidy(&words)),
            Self::Shrink(words) => Self::Shrink(tidy(&words)),
            other => other,
        }
    }

    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::TooManyPixels { .. } => {
                "raise `limits.pixels` if the picture is meant to be so large"
            }
            Self::TooMuchMemory { .. } | Self::MemoryRanOut { .. } => {
                "raise `limits.memory_mb` if the picture is meant to be so large"
            }
            Self::CutOff => "copy or download it again",
            Self::Empty | Self::Damaged(_) => "open it in a picture viewer, and save it again",
            Self::Unsupported(_) => "convert it to PNG",
            Self::Shrink(_) => "report this",
        }
    }
}

impl From<PictureError> for ItemError {
    fn from(error: PictureError) -> Self {
        Self::new("decode", &error).hint(error.hint())
    }
}

/// Decodes a picture, shrinks it and turns it upright. Nothing of its claimed
/// size is allocated before the limits are checked.
pub(super) fn decode(
    bytes: &[u8],
    format: PictureFormat,
    limits: &PictureLimits,
    shrinker: &mut Shrinker,
) -> Result<Image, PictureError> {
    let max_mb = limits.max_bytes >> 20;
    let failed = |error: ImageError| match error {
        ImageError::Limits(_) => PictureError::MemoryRanOut { max_mb },
        ImageError::Unsupported(error) => PictureError::Unsupported(error.to_string()),
        ImageError::Decoding(error) => PictureError::Damaged(error.to_string()),
        other => PictureError::Damaged(other.to_string()),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format.into());
    let mut allowed = Limits::default();
    allowed.max_alloc = Some(limits.max_bytes);
    reader.limits(allowed);
    let mut decoder = reader.into_decoder().map_err(failed)?;

    let (width_px, height_px) = decoder.dimensions();
    let n_pixels = u64::from(width_px) * u64::from(height_px);
    if n_pixels == 0 {
        return Err(PictureError::Empty);
    }
    if n_pixels > limits.max_pixels {
        return Err(PictureError::TooManyPixels {
            width_px,
            height_px,
            max_pixels: limits.max_pixels,
        });
    }
    if format == PictureFormat::Jpeg && is_cut_off(bytes) {
        return Err(PictureError::CutOff);
    }
    // As decoded, and as RGB unless that is the same buffer.
    let n_bytes = decoder.total_bytes();
    let is_rgb8 = decoder.color_type() == image::ColorType::Rgb8;
    let needed = n_bytes.saturating_add(if is_rgb8 { 0 } else { n_pixels * 3 });
    if needed > limits.max_bytes {
        return Err(PictureError::TooMuchMemory {
            needed_mb: needed.div_ceil(1 << 20),
            max_mb,
        });
    }
    // A picture whose metadata is damaged is shown as it lies.
    let orientation = decoder.orientation().ok();
    let picture = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let rgb = over_white(picture);

    let shrunk = shrinker
        .shrink("decode", &rgb, width_px, height_px)
        .map_err(|error| PictureError::Shrink(error.reason))?;
    let orientation =
        orientation.filter(|turn| *turn != image::metadata::Orientation::NoTransforms);
    let Some(orientation) = orientation else {
        let (pixels, width_px, height_px) = match shrunk {
            Some(shrunk) => (shrunk.pixels, shrunk.width_px, shrunk.height_px),
            None => (rgb.into_raw().into(), width_px, height_px),
        };
        return Image::new(pixels, width_px, height_px, None).ok_or(PictureError::Empty);
    };
    let lying = match shrunk {
        // The smaller picture is turned: a copy of it is cheaper.
        Some(shrunk) => {
            let pixels = shrunk.pixels.to_vec();
            RgbImage::from_raw(shrunk.width_px, shrunk.height_px, pixels)
                .ok_or(PictureError::Empty)?
        }
        None => rgb,
    };
    let mut upright = DynamicImage::ImageRgb8(lying);
    upright.apply_orientation(orientation);
    let (width_px, height_px) = (upright.width(), upright.height());
    Image::new(upright.into_rgb8().into_raw(), width_px, height_px, None).ok_or(PictureError::Empty)
}

/// Whether a JPEG lacks its end. The decoder paints what is missing gray, and
/// says nothing.
fn is_cut_off(jpeg: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2; // After the mark that begins the file.
    // The metadata is skipped: a preview in it has an end of its own.
    while let Some([0xff, marker, high, low]) = jpeg.get(at..at + 4) {
        if *marker == START_OF_SCAN {
            return !jpeg[at..].windows(2).any(|pair| pair == [0xff, 0xd9]);
        }
        // Marks may be filled up with 0xff.
        at += match marker {
            0xff => 1,
            _ => 2 + usize::from(u16::from_be_bytes([*high, *low])),
        };
    }
    false // What the decoder makes of so odd a file is its own affair.
}

/// RGB8 of any picture; what is transparent shows white paper.
fn over_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let transparent: RgbaImage = picture.into_rgba8();
    let (width_px, height_px) = transparent.dimensions();
    let mut opaque = RgbImage::new(width_px, height_px);
    for (from, to) in transparent.pixels().zip(opaque.pixels_mut()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        let blend = |channel: u32| ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        to.0 = [blend(red), blend(green), blend(blue)];
    }
    opaque
}

//! `kind = "thumbnail"`: a small encoded picture beside each page image.

use std::io::Cursor;

use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageResult};
use pagemill_pipeline::{
    Field, FieldError, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig, StageError,
    Value,
};
use serde::Deserialize;

use crate::pixels::{self, Shrinker};

/// Longest side of a WebP picture, and far more than a thumbnail needs.
const MAX_LONG_SIDE_PX: u32 = 16_383;

/// Settings of `kind = "thumbnail"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThumbnailConfig {
    /// Longest side of the thumbnail; a smaller page keeps its size.
    pub long_side_px: u32,
    /// How it is encoded.
    pub format: ThumbnailFormat,
    /// Quality of a JPEG, from 1 to 100; 80 if it is not given.
    pub quality: Option<u8>,
}

/// How thumbnails are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThumbnailFormat {
    /// The smallest.
    Jpeg,
    /// Without loss.
    Png,
    /// Without loss, smaller than PNG.
    Webp,
}

impl Default for ThumbnailConfig {
    fn default() -> Self {
        Self {
            long_side_px: 256,
            format: ThumbnailFormat::Jpeg,
            quality: None,
        }
    }
}

impl StageConfig for ThumbnailConfig {
    const KIND: &'static str = "thumbnail";
    const ABOUT: &'static str = "adds a small encoded picture of each page image";
    const EXAMPLE: &'static str = "long_side_px = 256\nformat = \"jpeg\"\nquality = 80\n";

    fn fields(&self) -> Fields {
        Fields::reads([Field::IMAGE])
            .adds([Field::THUMBNAIL])
            .to_every_item()
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Thumbnail::new(self)?))
    }
}

/// Adds a small encoded picture to each page.
pub struct Thumbnail {
    shrinker: Shrinker,
    format: ThumbnailFormat,
    quality: u8, // Invariant: from 1 to 100.
}

impl Thumbnail {
    /// Checks the settings.
    ///
    /// # Errors
    /// When the side or the quality is out of range.
    pub fn new(config: &ThumbnailConfig) -> Result<Self, FieldError> {
        if !(1..=MAX_LONG_SIDE_PX).contains(&config.long_side_px) {
            return Err(FieldError::new(
                "long_side_px",
                format_args!("must be from 1 to {MAX_LONG_SIDE_PX}"),
                "leave it out for 256",
            ));
        }
        if config.quality.is_some() && config.format != ThumbnailFormat::Jpeg {
            return Err(FieldError::new(
                "quality",
                "has a meaning only where `format` is `jpeg`",
                "remove it: the other formats lose nothing",
            ));
        }
        let quality = config.quality.unwrap_or(80);
        if !(1..=100).contains(&quality) {
            return Err(FieldError::new(
                "quality",
                "must be from 1 to 100",
                "leave it out for 80",
            ));
        }
        Ok(Self {
            shrinker: Shrinker::new(config.long_side_px),
            format: config.format,
            quality,
        })
    }

    fn thumbnail(&mut self, item: &Item) -> Result<Bytes, ItemError> {
        const ACTION: &str = "make a thumbnail of";
        let image = item
            .image()
            .ok_or_else(|| ItemError::missing(ACTION, &Field::IMAGE.name))?;
        pixels::check(ACTION, image)?;
        let (width_px, height_px) = (image.width_px, image.height_px);
        let shrunk = self
            .shrinker
            .shrink(ACTION, &image.pixels, width_px, height_px)?;
        let encoded = match &shrunk {
            Some(shrunk) => self.encode(&shrunk.pixels, shrunk.width_px, shrunk.height_px),
            None => self.encode(&image.pixels, width_px, height_px),
        };
        encoded.map_err(|error| {
            ItemError::new(ACTION, error).hint("report this: any page image can be encoded")
        })
    }

    /// Encodes RGB8 pixels.
    fn encode(&self, pixels: &[u8], width_px: u32, height_px: u32) -> ImageResult<Bytes> {
        let mut encoded = Vec::new();
        let target = Cursor::new(&mut encoded);
        let color = ExtendedColorType::Rgb8;
        match self.format {
            ThumbnailFormat::Jpeg => JpegEncoder::new_with_quality(target, self.quality)
                .write_image(pixels, width_px, height_px, color),
            ThumbnailFormat::Png => {
                PngEncoder::new_with_quality(target, CompressionType::Fast, FilterType::Adaptive)
                    .write_image(pixels, width_px, height_px, color)
            }
            ThumbnailFormat::Webp => {
                WebPEncoder::new_lossless(target).write_image(pixels, width_px, height_px, color)
            }
        }?;
        Ok(Bytes::from(encoded))
    }
}

impl Stage for Thumbnail {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |item| {
            let encoded = self.thumbnail(item)?;
            item.set(Field::THUMBNAIL.name, Value::Bytes(encoded));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use image::ImageFormat;
    use pagemill_pipeline::testing::run_stage;

    use super::*;
    use crate::testing::{blank_page, page_of};

    fn thumbnail(format: ThumbnailFormat) -> Thumbnail {
        let config = ThumbnailConfig {
            long_side_px: 100,
            format,
            quality: None,
        };
        Thumbnail::new(&config).unwrap()
    }

    fn bytes_of(item: &Item) -> &[u8] {
        match item.get("thumbnail") {
            Some(Value::Bytes(bytes)) => bytes,
            other => panic!("no thumbnail but {other:?}"),
        }
    }

    #[test]
    fn a_thumbnail_of_each_format_shows_the_page() {
        for (format, expected) in [
            (ThumbnailFormat::Jpeg, ImageFormat::Jpeg),
            (ThumbnailFormat::Png, ImageFormat::Png),
            (ThumbnailFormat::Webp, ImageFormat::WebP),
        ] {
            let page = page_of([200, 10, 10].repeat(400 * 200), 400, 200);
            let out = run_stage(&mut thumbnail(format), [page]);
            assert!(out.dead.is_empty() && out.sent[0].image().is_some());
            let encoded = bytes_of(&out.sent[0]);
            assert_eq!(image::guess_format(encoded).unwrap(), expected);
            let picture = image::load_from_memory(encoded).unwrap().into_rgb8();
            assert_eq!(picture.dimensions(), (100, 50));
            let [red, green, _] = picture.get_pixel(50, 25).0;
            assert!(red > 190 && green < 20);
        }
    }

    #[test]
    fn a_page_that_is_small_already_keeps_its_size() {
        let out = run_stage(&mut thumbnail(ThumbnailFormat::Jpeg), [blank_page(3, 1)]);
        let picture = image::load_from_memory(bytes_of(&out.sent[0])).unwrap();
        assert_eq!((picture.width(), picture.height()), (3, 1));
    }

    #[test]
    fn sets_an_empty_page_aside_and_goes_on() {
        let pages = [
            blank_page(0, 9),
            Item::of_text("a.pdf", "").with_page(1),
            blank_page(9, 9),
        ];
        let out = run_stage(&mut thumbnail(ThumbnailFormat::Png), pages);
        assert_eq!(out.sent.len(), 1);
        let reasons: Vec<&str> = out.dead.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "cannot make a thumbnail of `a.pdf#1`: the image has no pixels",
                "cannot make a thumbnail of `a.pdf#1`: it has no `image`",
            ]
        );
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_by_name() {
        let complaint = |config: ThumbnailConfig| Thumbnail::new(&config).err().unwrap();
        let default = ThumbnailConfig::default;
        let error = complaint(ThumbnailConfig {
            long_side_px: 0,
            ..default()
        });
        assert_eq!(error.to_string(), "`long_side_px` must be from 1 to 16383");
        let error = complaint(ThumbnailConfig {
            quality: Some(101),
            ..default()
        });
        assert_eq!(error.to_string(), "`quality` must be from 1 to 100");
        let error = complaint(ThumbnailConfig {
            quality: Some(80),
            format: ThumbnailFormat::Png,
            ..default()
        });
        assert_eq!(
            error.to_string(),
            "`quality` has a meaning only where `format` is `jpeg`"
        );
    }
}

//! `kind = "decode_image"`: PNG, JPEG, TIFF and WebP documents to page images.
//!
//! A picture is a page like any other: upright, RGB, over white. A TIFF may
//! hold several, and each becomes a page.

mod picture;
mod tiff_pages;

use bytes::Bytes;
use pagemill_pipeline::{
    Field, FieldError, FieldType, Fields, Image, Item, ItemError, Outlet, Resources, Stage,
    StageConfig, StageError, Word,
};
use serde::Deserialize;

use crate::media;
use crate::pixels::Shrinker;
use picture::{PictureError, PictureLimits};
use tiff_pages::TiffPages;

/// Number of pages of the document.
const PAGE_COUNT: Field = Field::new("page_count", FieldType::Integer);
/// What made the image: `image`, after the library that decodes.
const RENDERER: Field = Field::new("renderer", FieldType::Text);

/// Settings of `kind = "decode_image"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeImageConfig {
    /// A picture with more pixels is set aside without being decoded.
    pub max_pixels: u64,
    /// A picture that takes more memory while it is decoded is set aside.
    pub max_memory_mb: u32,
    /// A larger picture is shrunk to this side as soon as it is decoded, so
    /// that what waits on the edges stays small.
    pub long_side_px: u32,
}

impl Default for DecodeImageConfig {
    fn default() -> Self {
        Self {
            // What Pillow calls a decompression bomb: 512 MB as RGB.
            max_pixels: 178_956_970,
            max_memory_mb: 1024,
            long_side_px: 2048,
        }
    }
}

impl StageConfig for DecodeImageConfig {
    const KIND: &'static str = "decode_image";
    const ABOUT: &'static str = "PNG, JPEG, TIFF and WebP documents to page images";
    const EXAMPLE: &'static str = "long_side_px = 2048\nmax_pixels = 100_000_000\n";

    fn fields(&self) -> Fields {
        // It keeps `document`, and what an earlier stage has made of other
        // documents, because those pass through it.
        let adds = [
            Field::IMAGE,
            Field::WORDS,
            Field::TEXT,
            PAGE_COUNT,
            RENDERER,
        ];
        Fields::reads([Field::DOCUMENT])
            .uses(adds.clone())
            .adds(adds)
            .one_to_many()
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(DecodeImage::new(self)?))
    }
}

/// Decodes picture documents; others pass on unchanged.
pub struct DecodeImage {
    limits: PictureLimits,
    shrinker: Shrinker,
}

impl DecodeImage {
    /// Checks the settings.
    ///
    /// # Errors
    /// When one of them is 0.
    pub fn new(config: &DecodeImageConfig) -> Result<Self, FieldError> {
        let refuse = |field, hint| Err(FieldError::new(field, "must be at least 1", hint));
        if config.max_pixels == 0 {
            return refuse("max_pixels", "leave it out for 178,956,970");
        }
        if config.max_memory_mb == 0 {
            return refuse("max_memory_mb", "leave it out for 1024 MB");
        }
        if config.long_side_px == 0 {
            return refuse("long_side_px", "leave it out for 2048");
        }
        Ok(Self {
            limits: PictureLimits {
                max_pixels: config.max_pixels,
                max_bytes: u64::from(config.max_memory_mb) << 20,
            },
            shrinker: Shrinker::new(config.long_side_px),
        })
    }

    fn decode_document(
        &mut self,
        item: Item,
        bytes: &Bytes,
        outlet: &mut Outlet<'_>,
    ) -> Result<(), StageError> {
        let Some(format) = picture::format_of(&item.origin().media_type) else {
            let reason = format!(
                "`{}` is no kind of picture it reads",
                item.origin().media_type
            );
            let error =
                ItemError::new("decode", reason).hint("convert it to PNG, JPEG, TIFF or WebP");
            outlet.dead_letter(item, error);
            return Ok(());
        };
        if format != image::ImageFormat::Tiff {
            let decoded = picture::decode(bytes, format, &self.limits, &mut self.shrinker);
            return send_page(&item, 1, 1, decoded, outlet);
        }
        let mut pages = match TiffPages::find(bytes) {
            Ok(pages) => pages,
            Err(error) => {
                outlet.dead_letter(item, error.into());
                return Ok(());
            }
        };
        let n_pages = pages.n_pages();
        for index in 0..n_pages {
            if outlet.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            let document = pages.only(index);
            let decoded = picture::decode(document, format, &self.limits, &mut self.shrinker);
            send_page(&item, index as u32 + 1, n_pages as u32, decoded, outlet)?;
        }
        if pages.is_cut_off() {
            let missing = item.child().with_page(n_pages as u32 + 1);
            outlet.dead_letter(missing, PictureError::CutOff.into());
        }
        Ok(())
    }
}

fn send_page(
    item: &Item,
    page: u32,
    n_pages: u32,
    decoded: Result<Image, PictureError>,
    outlet: &mut Outlet<'_>,
) -> Result<(), StageError> {
    let mut page = item.child().with_page(page);
    match decoded {
        Ok(image) => {
            page.set(Field::IMAGE.name, image);
            // Present though empty: the page is one like any other to the
            // stages that read text.
            page.set(Field::WORDS.name, Vec::<Word>::new());
            page.set(Field::TEXT.name, "");
            page.set(PAGE_COUNT.name, n_pages);
            page.set(RENDERER.name, "image");
            outlet.send(page)
        }
        Err(error) => {
            outlet.dead_letter(page, error.into());
            Ok(())
        }
    }
}

impl Stage for DecodeImage {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            let is_picture = item.origin().media_type.starts_with(media::PICTURE);
            if !is_picture || item.image().is_some() {
                outlet.send(item)?;
                continue;
            }
            if let Some(bytes) = item.document().cloned() {
                self.decode_document(item, &bytes, outlet)?;
            } else {
                let error = ItemError::missing("decode", &Field::DOCUMENT.name);
                outlet.dead_letter(item, error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

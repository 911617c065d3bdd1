//! `kind = "resize"`: page images to the size that an encoder takes.

use std::sync::Arc;

use pagemill_pipeline::{
    Field, FieldError, Fields, Image, Item, ItemError, Outlet, Resources, Stage, StageConfig,
    StageError,
};
use serde::Deserialize;

use crate::pixels::{self, Shrinker};

/// Settings of `kind = "resize"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeConfig {
    /// Longest side after resizing, in pixels. Smaller pages pass unchanged.
    pub long_side_px: u32,
}

impl StageConfig for ResizeConfig {
    const KIND: &'static str = "resize";
    const ABOUT: &'static str = "shrinks page images so that their longest side fits";
    const EXAMPLE: &'static str = "long_side_px = 1024\n";

    fn fields(&self) -> Fields {
        Fields::reads([Field::IMAGE]).replaces([Field::IMAGE])
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Resize::new(self)?))
    }
}

/// Shrinks page images so that their longest side fits the encoder.
pub struct Resize {
    shrinker: Shrinker,
}

impl Resize {
    /// Checks the settings.
    ///
    /// # Errors
    /// When `long_side_px` is 0.
    pub fn new(config: &ResizeConfig) -> Result<Self, FieldError> {
        if config.long_side_px == 0 {
            return Err(FieldError::new(
                "long_side_px",
                "must be at least 1",
                "use the encoder's input side, such as 1024",
            ));
        }
        Ok(Self {
            shrinker: Shrinker::new(config.long_side_px),
        })
    }

    /// The smaller image; `None` if it is small enough.
    fn resize(&mut self, item: &Item) -> Result<Option<Image>, ItemError> {
        const ACTION: &str = "resize";
        let image = item
            .image()
            .ok_or_else(|| ItemError::missing(ACTION, &Field::IMAGE.name))?;
        pixels::check(ACTION, image)?;
        let (width_px, height_px) = (image.width_px, image.height_px);
        let shrunk = self
            .shrinker
            .shrink(ACTION, &image.pixels, width_px, height_px)?;
        Ok(shrunk.map(|shrunk| {
            let scale =
                shrunk.width_px.max(shrunk.height_px) as f32 / width_px.max(height_px) as f32;
            Image {
                pixels: shrunk.pixels,
                width_px: shrunk.width_px,
                height_px: shrunk.height_px,
                dpi: image.dpi.map(|dpi| dpi * scale),
            }
        }))
    }
}

impl Stage for Resize {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |item| {
            if let Some(image) = self.resize(item)? {
                item.set(Field::IMAGE.name, Arc::new(image));
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use pagemill_pipeline::testing::run_stage;

    use super::*;
    use crate::testing::{blank_page, page_of};

    fn resize(long_side_px: u32) -> Resize {
        Resize::new(&ResizeConfig { long_side_px }).unwrap()
    }

    #[test]
    fn a_large_page_is_shrunk_with_its_resolution() {
        let mut page = blank_page(200, 100);
        page.set(
            "image",
            Image::new(vec![7; 200 * 100 * 3], 200, 100, Some(144.0)).unwrap(),
        );
        let out = run_stage(&mut resize(100), [page]);
        let image = out.sent[0].image().unwrap();
        assert_eq!(
            (image.width_px, image.height_px, image.dpi),
            (100, 50, Some(72.0))
        );
        assert_eq!(image.pixels.len(), 100 * 50 * 3);
        assert!(image.pixels.iter().all(|channel| *channel == 7));
    }

    #[test]
    fn a_page_that_fits_passes_with_the_same_pixels() {
        let page = blank_page(100, 50);
        let pixels = page.image().unwrap().pixels.as_ptr();
        let out = run_stage(&mut resize(100), [page]);
        assert_eq!(out.sent[0].image().unwrap().pixels.as_ptr(), pixels);
    }

    #[test]
    fn a_strip_one_pixel_wide_keeps_its_pixel() {
        let out = run_stage(&mut resize(10), [blank_page(1, 1000)]);
        let image = out.sent[0].image().unwrap();
        assert_eq!((image.width_px, image.height_px), (1, 10));
    }

    #[test]
    fn sets_an_empty_page_aside_and_goes_on() {
        let out = run_stage(&mut resize(100), [blank_page(0, 9), blank_page(9, 9)]);
        assert_eq!(out.sent.len(), 1);
        assert_eq!(
            out.dead[0].1,
            "cannot resize `a.pdf#1`: the image has no pixels"
        );
    }

    #[test]
    fn sets_aside_what_has_too_few_bytes_or_no_image() {
        let no_image = Item::of_text("a.pdf", "").with_page(2);
        let out = run_stage(&mut resize(2), [page_of(vec![0; 5], 3, 3), no_image]);
        assert!(out.sent.is_empty());
        let reasons: Vec<&str> = out.dead.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "cannot resize `a.pdf#1`: the image has 5 bytes, and 3 x 3 px take 27",
                "cannot resize `a.pdf#2`: it has no `image`",
            ]
        );
    }

    #[test]
    fn a_side_of_zero_is_refused() {
        let error = ResizeConfig { long_side_px: 0 }
            .build(&Resources::default())
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "`long_side_px` must be at least 1");
    }
}

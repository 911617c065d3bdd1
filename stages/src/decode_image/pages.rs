//! A picture document as the worker sees it: pages, of which most have but one.

use pagemill_pipeline::Image;

use super::picture::{self, PictureError, PictureFormat, PictureLimits};
use super::tiff_pages::TiffPages;
use crate::cage::protocol::{PageLimits, PageProblem, PageReply, PageText, Refusal};
use crate::pixels::Shrinker;
use crate::render_pdf::renderer::OpenDocument;

/// A picture document whose pages are known.
pub(crate) struct PicturePages<'a> {
    pages: Pages<'a>,
    format: PictureFormat,
    limits: PictureLimits,
    shrinker: Option<Shrinker>,
}

enum Pages<'a> {
    One(&'a [u8]),
    Tiff(TiffPages<'a>),
}

impl<'a> PicturePages<'a> {
    /// Finds the pages; none is decoded yet.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn open(
        document: &'a [u8],
        format: PictureFormat,
        limits: PictureLimits,
    ) -> Result<Self, Refusal> {
        let pages = if format == PictureFormat::Tiff {
            Pages::Tiff(TiffPages::find(document).map_err(Refusal::Picture)?)
        } else {
            Pages::One(document)
        };
        Ok(Self {
            pages,
            format,
            limits,
            shrinker: None,
        })
    }

    fn decode(&mut self, index: u32, long_side_px: u32) -> Result<Image, PictureError> {
        let document = match &mut self.pages {
            Pages::One(document) => document,
            Pages::Tiff(pages) => pages.only(index as usize),
        };
        let shrinker = self
            .shrinker
            .get_or_insert_with(|| Shrinker::new(long_side_px));
        picture::decode(document, self.format, &self.limits, shrinker)
    }
}

impl OpenDocument for PicturePages<'_> {
    fn n_pages(&self) -> u32 {
        match &self.pages {
            Pages::One(_) => 1,
            Pages::Tiff(pages) => pages.n_pages() as u32, // At most 100,000.
        }
    }

    fn is_cut_off(&self) -> bool {
        matches!(&self.pages, Pages::Tiff(pages) if pages.is_cut_off())
    }

    fn render(
        &mut self,
        index: u32,
        limits: PageLimits,
        _words: bool,
        pixels: &mut [u8],
    ) -> Result<PageReply, PageProblem> {
        if index >= self.n_pages() {
            return Err("there is no such page".into());
        }
        let decoded = self.decode(index, limits.long_side_px);
        let image = decoded.map_err(PageProblem::Picture)?;
        let target = pixels
            .get_mut(..image.pixels.len())
            .ok_or("the image does not fit its buffer")?;
        target.copy_from_slice(&image.pixels);
        Ok(PageReply {
            width_px: image.width_px,
            height_px: image.height_px,
            // A picture has no size on paper: a pixel is a point.
            width_pt: image.width_px as f32,
            height_pt: image.height_px as f32,
            text: PageText::default(),
        })
    }
}

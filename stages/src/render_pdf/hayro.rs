//! Pages by hayro, in pure Rust: for files that pdfium refuses and for
//! machines without libpdfium.

use std::sync::Arc;

use ::hayro::hayro_interpret::font::{Glyph, GlyphRun};
use ::hayro::hayro_interpret::hayro_cmap::BfString;
use ::hayro::hayro_interpret::{
    BlendMode, ClipPath, Context, Device, DrawMode, DrawProps, Image, ImageDrawProps,
    InterpreterCache, InterpreterSettings, SoftMask, TransformExt, interpret_page,
};
use ::hayro::hayro_syntax::page::Page;
use ::hayro::hayro_syntax::{DecryptionError, LoadPdfError, Pdf};
use ::hayro::kurbo::{Affine, BezPath, Point, Rect};
use ::hayro::vello_cpu::color::palette::css::WHITE;
use ::hayro::{PixmapSettings, RenderCache, RenderSettings, render};
use memmap2::Mmap;

use super::renderer::{OpenDocument, PageSize};
use super::words::{CharBox, TextCollector};
use crate::cage::protocol::{PageLimits, PageProblem, PageReply, PageText, Refusal};

/// Opens the document in `bytes`.
///
/// # Errors
/// Why hayro refuses it.
pub fn open(bytes: &Arc<Mmap>, password: Option<&str>) -> Result<Pdf, Refusal> {
    Pdf::new_with_password(Arc::clone(bytes), password.unwrap_or_default()).map_err(refusal)
}

fn refusal(error: LoadPdfError) -> Refusal {
    let reason = match error {
        LoadPdfError::Decryption(DecryptionError::PasswordProtected) => return Refusal::Encrypted,
        LoadPdfError::Decryption(DecryptionError::UnsupportedAlgorithm) => {
            "its encryption is of an unknown kind"
        }
        LoadPdfError::Decryption(_) => "its encryption is damaged",
        LoadPdfError::Invalid => "it is damaged or no PDF at all",
    };
    Refusal::Malformed {
        reason: reason.to_owned(),
    }
}

/// A document opened by hayro.
pub struct HayroDocument<'a> {
    pdf: &'a Pdf,
    cache: RenderCache<'a>,
    text_cache: InterpreterCache<'a>,
    settings: InterpreterSettings,
}

impl<'a> HayroDocument<'a> {
    /// Gets ready to render pages of `pdf`.
    pub fn new(pdf: &'a Pdf) -> Self {
        Self {
            pdf,
            cache: RenderCache::new(),
            text_cache: InterpreterCache::new(),
            settings: InterpreterSettings::default(),
        }
    }

    /// Interprets the page once more, with a device that only listens.
    fn read_text(&self, page: &Page<'a>, size: &PageSize) -> PageText {
        let bounds = Rect::new(0.0, 0.0, size.width_pt.into(), size.height_pt.into());
        // Page coordinates to the page as displayed, y down, in points.
        let display = page.initial_transform(true).to_kurbo();
        let settings = self.settings.clone();
        let mut context =
            Context::new(display, bounds, &self.text_cache, self.pdf.xref(), settings);
        let mut listener = Listener {
            collector: TextCollector::new(),
            pen: None,
        };
        interpret_page(page, &mut context, &mut listener);
        listener.collector.finish()
    }
}

impl OpenDocument for HayroDocument<'_> {
    fn n_pages(&self) -> u32 {
        u32::try_from(self.pdf.pages().len()).unwrap_or(u32::MAX)
    }

    fn render(
        &mut self,
        index: u32,
        limits: PageLimits,
        words: bool,
        pixels: &mut [u8],
    ) -> Result<PageReply, PageProblem> {
        let page = self
            .pdf
            .pages()
            .get(index as usize)
            .ok_or("there is no such page")?;
        let (width_pt, height_pt) = page.render_dimensions();
        let size = PageSize::fit(width_pt, height_pt, limits)?;
        // hayro rounds down: a hundredth of a pixel more, so that it lands on ours.
        let scale = |side_px: u32, side_pt: f32| (side_px as f32 + 0.01) / side_pt;
        let scaled = PixmapSettings {
            x_scale: scale(size.width_px, width_pt),
            y_scale: scale(size.height_px, height_pt),
            bg_color: WHITE,
        };
        let image = render(
            page,
            &self.cache,
            &self.settings,
            &RenderSettings::default(),
            &scaled,
        );
        if (u32::from(image.width()), u32::from(image.height())) != (size.width_px, size.height_px)
        {
            return Err("the image came out in another size".into());
        }
        // RGBA on an opaque background: the alpha says nothing.
        let (from, _) = image.data_as_u8_slice().as_chunks::<4>();
        let (to, _) = pixels.as_chunks_mut::<3>();
        if to.len() < from.len() {
            return Err("the image does not fit its buffer".into());
        }
        for (to, from) in to.iter_mut().zip(from) {
            to.copy_from_slice(&from[..3]);
        }
        let text = if words {
            self.read_text(page, &size)
        } else {
            PageText::default()
        };
        let PageSize {
            width_px,
            height_px,
            ..
        } = size;
        Ok(PageReply {
            width_px,
            height_px,
            width_pt,
            height_pt,
            text,
        })
    }
}

/// A device that draws nothing and writes down the glyphs.
///
/// PDF knows no spaces and lines, only glyphs and places: a gap of a fifth of
/// the type size is a space, a step off the line or backwards a new line.
struct Listener {
    collector: TextCollector,
    /// Where the glyph before ended, and its type size.
    pen: Option<(Point, f64)>,
}

impl Listener {
    fn hear(&mut self, glyph: &Glyph<'_>, place: Affine) {
        let advance = match glyph {
            Glyph::Outline(glyph) => glyph.advance_width(),
            Glyph::Type3(glyph) => glyph.advance_width(),
        };
        // Glyph space: 1000 units are the type size; the text stands on y = 0.
        let advance = f64::from(advance.unwrap_or(500.0));
        let start = place * Point::new(0.0, 0.0);
        let end = place * Point::new(advance, 0.0);
        let size_pt = (place * Point::new(0.0, 1000.0) - start).hypot();
        if !(size_pt.is_finite() && size_pt > 0.0) {
            return;
        }
        if let Some((pen, pen_size_pt)) = self.pen {
            let along = (end - start) / (end - start).hypot().max(f64::MIN_POSITIVE);
            let step = start - pen;
            let (forward, aside) = (step.dot(along), step.cross(along));
            let em_pt = size_pt.max(pen_size_pt);
            if aside.abs() > 0.5 * em_pt || forward < -em_pt {
                self.collector.line_break();
            } else if forward > 0.2 * em_pt {
                self.collector.space();
            }
        }
        self.pen = Some((end, size_pt));
        // From the deepest descender to the highest ascender, about.
        let corner = |x: f64, y: f64| {
            let point = place * Point::new(x, y);
            (point.x as f32, point.y as f32)
        };
        let bounds = CharBox::around(corner(0.0, -220.0), corner(advance, 780.0));
        match glyph.as_unicode() {
            Some(BfString::Char(character)) => self.collector.push(character, bounds),
            Some(BfString::String(text)) => {
                text.chars()
                    .for_each(|character| self.collector.push(character, bounds));
            }
            None => {}
        }
    }
}

impl<'a> Device<'a> for Listener {
    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, _: &DrawMode) {
        for glyph in run.glyphs() {
            if self.collector.is_full() {
                return;
            }
            self.hear(glyph, props.transform * glyph.transform());
        }
    }

    fn draw_path(&mut self, _: &BezPath, _: DrawProps<'a>, _: &DrawMode) {}
    fn push_clip_path(&mut self, _: &ClipPath) {}
    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'a>>, _: BlendMode) {}
    fn draw_image(&mut self, _: Image<'a, '_>, _: ImageDrawProps<'a>) {}
    fn pop_clip(&mut self) {}
    fn pop_transparency_group(&mut self) {}
}

//! Pages by pdfium, Google's C++ library.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pdfium_render::prelude::{
    PdfBitmap, PdfBitmapFormat, PdfDocument, PdfPage, PdfPageIndex, PdfPageTextChar,
    PdfRenderConfig, Pdfium, PdfiumError, PdfiumInternalError,
};

use super::renderer::{OpenDocument, PageSize, padded_row_bytes};
use super::words::{CharBox, TextCollector};
use crate::cage::protocol::{PageLimits, PageProblem, PageReply, PageText, Refusal};

/// pdfium's mark for a hyphen that only the line's end called for; older
/// builds use the first.
const LINE_HYPHENS: [u32; 2] = [0xfffe, 0x2];

/// pdfium takes one call at a time in a process. A worker makes but one; in a
/// program that renders without workers this keeps its threads apart.
fn alone() -> MutexGuard<'static, ()> {
    static CALL: Mutex<()> = Mutex::new(());
    CALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads the library at `path`.
///
/// # Errors
/// Why it cannot be used.
pub fn load(path: &Path) -> Result<Pdfium, String> {
    let _alone = alone();
    match Pdfium::bind_to_library(path) {
        Ok(bindings) => Ok(Pdfium::new(bindings)),
        // Another thread of a program that renders without workers was first.
        Err(PdfiumError::PdfiumLibraryBindingsAlreadyInitialized) => Ok(Pdfium::default()),
        Err(PdfiumError::LoadLibraryError(error)) => Err(error.to_string()),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// A document opened by pdfium.
pub struct PdfiumDocument<'a> {
    document: ManuallyDrop<PdfDocument<'a>>,
}

impl Drop for PdfiumDocument<'_> {
    fn drop(&mut self) {
        let _alone = alone();
        // SAFETY: the field is not used after this.
        unsafe { ManuallyDrop::drop(&mut self.document) }
    }
}

impl<'a> PdfiumDocument<'a> {
    /// Opens the document in `bytes`.
    ///
    /// # Errors
    /// Why pdfium refuses it.
    pub fn open(
        pdfium: &'a Pdfium,
        bytes: &'a [u8],
        password: Option<&str>,
    ) -> Result<Self, Refusal> {
        let _alone = alone();
        let document = pdfium
            .load_pdf_from_byte_slice(bytes, password)
            .map_err(refusal)?;
        Ok(Self {
            document: ManuallyDrop::new(document),
        })
    }
}

fn refusal(error: PdfiumError) -> Refusal {
    let reason = match error {
        PdfiumError::PdfiumLibraryInternalError(error) => match error {
            PdfiumInternalError::PasswordError => return Refusal::Encrypted,
            PdfiumInternalError::SecurityError => "its encryption is of an unknown kind".into(),
            PdfiumInternalError::FormatError => "it is damaged or no PDF at all".into(),
            PdfiumInternalError::PageError => "its pages cannot be found".into(),
            error => format!("it cannot be read ({error:?})"),
        },
        error => format!("it cannot be read ({error:?})"),
    };
    Refusal::Malformed { reason }
}

impl OpenDocument for PdfiumDocument<'_> {
    fn n_pages(&self) -> u32 {
        let _alone = alone();
        u32::try_from(self.document.pages().len()).unwrap_or(0)
    }

    fn render(
        &mut self,
        index: u32,
        limits: PageLimits,
        words: bool,
        pixels: &mut [u8],
    ) -> Result<PageReply, PageProblem> {
        let _alone = alone();
        let index = PdfPageIndex::try_from(index).map_err(|_| "there is no such page")?;
        let page = self
            .document
            .pages()
            .get(index)
            .map_err(|error| match error {
                PdfiumError::PageIndexOutOfBounds => "there is no such page".to_owned(),
                _ => "the page cannot be loaded".to_owned(),
            })?;
        // Both as displayed: crop box and rotation are taken into account.
        let size = PageSize::fit(page.width().value, page.height().value, limits)?;
        draw(&page, &size, pixels).map_err(|error| format!("it cannot be drawn ({error:?})"))?;
        let text = if words {
            read_text(&page, &size)
        } else {
            PageText::default()
        };
        let PageSize {
            width_pt,
            height_pt,
            width_px,
            height_px,
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

/// How to draw a page of this size: annotations and form fields too, on white.
fn render_config(size: &PageSize) -> PdfRenderConfig {
    PdfRenderConfig::new()
        .set_fixed_size(size.width_px as i32, size.height_px as i32)
        .set_format(PdfBitmapFormat::BGR)
        // Red first in memory, so that nothing has to be swapped afterwards.
        .set_reverse_byte_order(true)
}

fn draw(page: &PdfPage<'_>, size: &PageSize, pixels: &mut [u8]) -> Result<(), PdfiumError> {
    let pixels = pixels
        .get_mut(..size.n_bytes_padded())
        .ok_or(PdfiumError::ImageBufferTooSmall)?;
    let (width_px, height_px) = (size.width_px as i32, size.height_px as i32);
    let mut bitmap = PdfBitmap::from_bytes(width_px, height_px, PdfBitmapFormat::BGR, pixels)?;
    page.render_into_bitmap_with_config(&mut bitmap, &render_config(size))?;
    drop(bitmap);
    // pdfium pads rows to whole words; close the gaps, from the front.
    let (row, padded) = (size.width_px as usize * 3, padded_row_bytes(size.width_px));
    if row != padded {
        for y in 1..size.height_px as usize {
            pixels.copy_within(y * padded..y * padded + row, y * row);
        }
    }
    Ok(())
}

/// Reads a page's text; a page whose text cannot be read has none.
fn read_text(page: &PdfPage<'_>, size: &PageSize) -> PageText {
    let mut collector = TextCollector::new();
    let (Ok(text), Some(display)) = (page.text(), Display::of(page, size)) else {
        return collector.finish();
    };
    let mut pending_surrogate = None;
    for character in text.chars().iter() {
        if collector.is_full() {
            break;
        }
        let code = character.unicode_value();
        if LINE_HYPHENS.contains(&code) {
            collector.push_line_hyphen(display.bounds(&character));
            continue;
        }
        // Characters beyond 16 bits come in two halves.
        let high = pending_surrogate.take();
        if (0xd800..0xdc00).contains(&code) {
            pending_surrogate = Some(code);
            continue;
        }
        let code = match high {
            Some(high) if (0xdc00..0xe000).contains(&code) => {
                0x1_0000 + ((high - 0xd800) << 10) + (code - 0xdc00)
            }
            _ => code,
        };
        if let Some(unicode) = char::from_u32(code) {
            let bounds = if unicode.is_whitespace() {
                None
            } else {
                display.bounds(&character)
            };
            collector.push(unicode, bounds);
        }
    }
    collector.finish()
}

/// From the page's own coordinates (y up, before crop and rotation) to those
/// of the page as displayed (y down).
struct Display {
    /// The displayed page's top left corner.
    origin: (f32, f32),
    /// The step along the displayed page's width: one point long.
    right: (f32, f32),
    /// The step along its height.
    down: (f32, f32),
}

impl Display {
    /// pdfium knows crop box and rotation: ask it where three corners are.
    fn of(page: &PdfPage<'_>, size: &PageSize) -> Option<Self> {
        let config = render_config(size);
        let corner = |x_px: u32, y_px: u32| {
            let (x, y) = page
                .pixels_to_points(x_px as i32, y_px as i32, &config)
                .ok()?;
            Some((x.value, y.value))
        };
        let origin = corner(0, 0)?;
        let step =
            |to: (f32, f32), length: f32| ((to.0 - origin.0) / length, (to.1 - origin.1) / length);
        Some(Self {
            origin,
            right: step(corner(size.width_px, 0)?, size.width_pt),
            down: step(corner(0, size.height_px)?, size.height_pt),
        })
    }

    fn bounds(&self, character: &PdfPageTextChar<'_>) -> Option<CharBox> {
        let bounds = character.loose_bounds().ok()?;
        let point = |x: f32, y: f32| {
            let (x, y) = (x - self.origin.0, y - self.origin.1);
            (
                x * self.right.0 + y * self.right.1,
                x * self.down.0 + y * self.down.1,
            )
        };
        CharBox::around(
            point(bounds.left().value, bounds.top().value),
            point(bounds.right().value, bounds.bottom().value),
        )
    }
}

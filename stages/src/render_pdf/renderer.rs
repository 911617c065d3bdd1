//! Defines what renderers and image decoders do for a worker.

use crate::cage::protocol::{PageLimits, PageProblem, PageReply, Refusal};

/// A document that a renderer has opened.
pub trait OpenDocument {
    /// Number of pages that the document claims to have.
    fn n_pages(&self) -> u32;

    /// Whether the last page names another one that the document does not hold.
    fn is_cut_off(&self) -> bool {
        false
    }

    /// Renders page `index` (from 0) into the front of `pixels` (RGB8,
    /// `[height, width, 3]`, no padding; white where the page is empty) and
    /// reads its text if `words` says so.
    ///
    /// # Errors
    /// Why the page cannot be rendered.
    fn render(
        &mut self,
        index: u32,
        limits: PageLimits,
        words: bool,
        pixels: &mut [u8],
    ) -> Result<PageReply, PageProblem>;
}

/// The sizes of a page: on paper and in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageSize {
    /// Width as displayed, in points.
    pub width_pt: f32,
    /// Height as displayed, in points.
    pub height_pt: f32,
    /// Width of the image.
    pub width_px: u32,
    /// Height of the image.
    pub height_px: u32,
}

impl PageSize {
    /// Scales a page so that its longer side is `long_side_px`, whatever its
    /// box says: a page of a square mile gets no more pixels than a stamp. If
    /// that were too many pixels, both sides are smaller.
    ///
    /// # Errors
    /// The page has no size.
    pub fn fit(width_pt: f32, height_pt: f32, limits: PageLimits) -> Result<Self, String> {
        if ![width_pt, height_pt]
            .iter()
            .all(|side| side.is_finite() && *side > 0.0)
        {
            return Err(format!("it has no size ({width_pt} x {height_pt} points)"));
        }
        let shape = f64::from(width_pt.min(height_pt)) / f64::from(width_pt.max(height_pt));
        let mut longer = limits.long_side_px;
        let mut shorter = (f64::from(longer) * shape).round().max(1.0) as u32;
        if u64::from(longer) * u64::from(shorter) > limits.pixels {
            // Rounded down, so that there are not too many once more.
            let most = limits.pixels.clamp(1, longer.into()) as u32;
            longer = ((limits.pixels as f64 / shape).sqrt() as u32).clamp(1, most);
            shorter = (f64::from(longer) * shape).max(1.0) as u32;
        }
        let is_wide = width_pt > height_pt;
        Ok(Self {
            width_pt,
            height_pt,
            width_px: if is_wide { longer } else { shorter },
            height_px: if is_wide { shorter } else { longer },
        })
    }

    /// Bytes that pdfium needs for the image: it wants rows of whole 32-bit words.
    pub fn n_bytes_padded(&self) -> usize {
        padded_row_bytes(self.width_px) * self.height_px as usize
    }
}

/// Bytes of one row in a buffer of pdfium's.
pub fn padded_row_bytes(width_px: u32) -> usize {
    (width_px as usize * 3).next_multiple_of(4)
}

/// Room for any page whose longer side is `long_side_px`.
pub fn page_buffer_bytes(long_side_px: u32) -> usize {
    padded_row_bytes(long_side_px) * long_side_px as usize
}

/// Tries no password, then each of `passwords`; answers which one was right.
///
/// # Errors
/// [`Refusal::Encrypted`] when none of them opens the document.
pub fn with_passwords<T>(
    passwords: &[String],
    mut open: impl FnMut(Option<&str>) -> Result<T, Refusal>,
) -> Result<(T, Option<&str>), Refusal> {
    let tries = std::iter::once(None).chain(passwords.iter().map(|word| Some(word.as_str())));
    for password in tries {
        match open(password) {
            Err(Refusal::Encrypted) => {}
            Err(refusal) => return Err(refusal),
            Ok(opened) => return Ok((opened, password)),
        }
    }
    Err(Refusal::Encrypted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(long_side_px: u32) -> PageLimits {
        PageLimits {
            long_side_px,
            pixels: u64::MAX,
        }
    }

    fn pixels(width_pt: f32, height_pt: f32, long_side_px: u32) -> (u32, u32) {
        let size = PageSize::fit(width_pt, height_pt, side(long_side_px)).unwrap();
        (size.width_px, size.height_px)
    }

    #[test]
    fn a_page_with_too_many_pixels_is_made_smaller() {
        for (width_pt, height_pt) in [(595.0, 842.0), (9.0, 9.0), (f32::MAX, 1.0), (1.0, 9e9)] {
            for pixels in [1, 2, 99, 500_000] {
                let limits = PageLimits {
                    pixels,
                    ..side(1024)
                };
                let size = PageSize::fit(width_pt, height_pt, limits).unwrap();
                let n_pixels = u64::from(size.width_px) * u64::from(size.height_px);
                assert!(n_pixels > 0 && n_pixels <= pixels && size.width_px <= 1024);
            }
        }
        let limits = PageLimits {
            pixels: 500_000,
            ..side(1024)
        };
        let size = PageSize::fit(595.0, 842.0, limits).unwrap();
        assert_eq!((size.width_px, size.height_px), (594, 841));
    }

    #[test]
    fn the_longer_side_is_what_was_asked_for() {
        assert_eq!(pixels(595.0, 842.0, 1024), (724, 1024));
        assert_eq!(pixels(842.0, 595.0, 1024), (1024, 724));
        assert_eq!(pixels(1.0, 1.0, 7), (7, 7));
    }

    #[test]
    fn a_page_box_of_any_size_gives_an_image_within_the_cap() {
        assert_eq!(pixels(f32::MAX, 1.0, 1024), (1024, 1));
        assert_eq!(pixels(f32::MIN_POSITIVE, f32::MAX, 1024), (1, 1024));
        for (width, height) in [
            (0.0, 9.0),
            (f32::NAN, 9.0),
            (9.0, f32::INFINITY),
            (-1.0, 9.0),
        ] {
            assert!(PageSize::fit(width, height, side(1024)).is_err());
        }
    }

    #[test]
    fn the_buffer_holds_every_page_that_fits_the_cap() {
        for side_px in [1, 2, 3, 1023, 1024] {
            let size = PageSize::fit(9.0, 9.0, side(side_px)).unwrap();
            assert!(size.n_bytes_padded() <= page_buffer_bytes(side_px));
        }
    }
}

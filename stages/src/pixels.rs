//! Shrinking pictures: what `decode_image`, `resize` and `thumbnail` share.

use fast_image_resize::images::{Image as Target, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use pagemill_pipeline::{BufferPool, Image, ItemError, PixelBuffer};

/// Buffers kept for the next page; those in flight are not counted.
const MAX_IDLE_BUFFERS: usize = 8;

/// Working memory kept from one page to the next; a huge page gives it back.
const MAX_KEPT_BYTES: usize = 32 << 20;

/// Shrinks pictures so that their longest side fits, and uses its memory again.
pub(crate) struct Shrinker {
    long_side_px: u32, // Invariant: at least 1.
    resizer: Resizer,
    options: ResizeOptions,
    pool: BufferPool,
}

/// Pixels with a new size.
pub(crate) struct Shrunk {
    /// RGB8, `[height_px, width_px, 3]`.
    pub(crate) pixels: PixelBuffer,
    pub(crate) width_px: u32,
    pub(crate) height_px: u32,
}

impl Shrinker {
    /// Shrinks to `long_side_px`, which is at least 1.
    pub(crate) fn new(long_side_px: u32) -> Self {
        Self {
            long_side_px: long_side_px.max(1),
            resizer: Resizer::new(),
            options: ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)),
            pool: BufferPool::new(MAX_IDLE_BUFFERS),
        }
    }

    /// Shrinks RGB8 pixels; `None` if they fit already.
    ///
    /// `action` is what the stage does, for the dead letter.
    pub(crate) fn shrink(
        &mut self,
        action: &'static str,
        pixels: &[u8],
        width_px: u32,
        height_px: u32,
    ) -> Result<Option<Shrunk>, ItemError> {
        let Some((new_width_px, new_height_px)) = fit(width_px, height_px, self.long_side_px)
        else {
            return Ok(None);
        };
        let failed = |error: &dyn std::fmt::Display| {
            ItemError::new(action, error).hint("report this: the pixels do not fit the sides")
        };
        let source = ImageRef::new(width_px, height_px, pixels, PixelType::U8x3)
            .map_err(|error| failed(&error))?;
        let n_bytes = new_width_px as usize * new_height_px as usize * 3;
        let mut buffer = self.pool.zeroed(n_bytes);
        let mut target =
            Target::from_slice_u8(new_width_px, new_height_px, &mut buffer, PixelType::U8x3)
                .map_err(|error| failed(&error))?;
        self.resizer
            .resize(&source, &mut target, &self.options)
            .map_err(|error| failed(&error))?;
        if self.resizer.size_of_internal_buffers() > MAX_KEPT_BYTES {
            self.resizer.reset_internal_buffers();
        }
        Ok(Some(Shrunk {
            pixels: buffer,
            width_px: new_width_px,
            height_px: new_height_px,
        }))
    }
}

/// The size that fits `long_side_px` at the same proportions; `None` if the
/// picture fits already.
fn fit(width_px: u32, height_px: u32, long_side_px: u32) -> Option<(u32, u32)> {
    let longest = width_px.max(height_px);
    if longest <= long_side_px {
        return None;
    }
    // In u64 and rounded: exact for all sides, and a thin strip keeps a pixel.
    let scale = |side: u32| {
        let scaled = u64::from(side) * u64::from(long_side_px) + u64::from(longest) / 2;
        ((scaled / u64::from(longest)) as u32).max(1)
    };
    Some((scale(width_px), scale(height_px)))
}

/// Checks that an image has the pixels that its sides claim; its fields are
/// public, so a stage of the user's own may have made it of anything.
pub(crate) fn check(action: &'static str, image: &Image) -> Result<(), ItemError> {
    let (width_px, height_px) = (image.width_px, image.height_px);
    if width_px == 0 || height_px == 0 {
        return Err(ItemError::new(action, "the image has no pixels")
            .hint("look at the stage that made the image"));
    }
    let n_bytes = image.n_pixels().saturating_mul(3);
    if image.pixels.len() as u64 != n_bytes {
        let found = image.pixels.len();
        let reason =
            format!("the image has {found} bytes, and {width_px} x {height_px} px take {n_bytes}");
        return Err(ItemError::new(action, reason).hint("look at the stage that made the image"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_side_fits_and_the_shorter_follows() {
        assert_eq!(fit(2000, 1000, 500), Some((500, 250)));
        assert_eq!(fit(1000, 2000, 500), Some((250, 500)));
        assert_eq!(fit(500, 500, 500), None);
        assert_eq!(fit(3, 1, 500), None);
        assert_eq!(fit(10_000, 1, 100), Some((100, 1)));
        assert_eq!(fit(u32::MAX, u32::MAX, 7), Some((7, 7)));
    }
}

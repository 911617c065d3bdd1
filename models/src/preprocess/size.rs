//! To which size an image is resized, and which part of that its patches cover.

use std::ops::Range;

/// Sides whose ratio is above this are an error for the Qwen family, as in the reference.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// Why an image cannot become patches.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageProblem {
    /// A side is 0.
    #[error("it has no pixels")]
    NoPixels,

    /// The pixels are not three bytes for each pixel of the width and height.
    #[error("it comes with {found} bytes instead of {expected}")]
    WrongLength {
        /// Bytes given.
        found: usize,
        /// Bytes that width and height call for.
        expected: u64,
    },

    /// The model takes no image this thin.
    #[error("one side is {ratio:.0} times the other, and the model takes at most {limit:.0} times")]
    TooThin {
        /// The longer side over the shorter.
        ratio: f64,
        /// The largest ratio that works.
        limit: f64,
    },
}

impl ImageProblem {
    /// What to do about it, as one sentence without a full stop.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::NoPixels => "set the image aside".into(),
            Self::WrongLength { .. } => {
                "give RGB pixels of 3 bytes each, rows from top to bottom without gaps".into()
            }
            Self::TooThin { .. } => {
                "cut the image into pieces that are less thin, or set it aside".into()
            }
        }
    }
}

/// What becomes of one side of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Side {
    /// Its length after resizing.
    pub(super) resized_px: usize,
    /// The part of the resized side that the patches show.
    pub(super) kept: Range<usize>,
    /// Black pixels before that part.
    pub(super) margin_px: usize,
    /// Patches along the side.
    pub(super) n_patches: usize,
}

impl Side {
    /// A side that is cut into whole patches; what is left over no patch shows.
    pub(super) fn whole(resized_px: usize, patch_px: usize) -> Self {
        let n_patches = resized_px / patch_px;
        Self {
            resized_px,
            kept: 0..n_patches * patch_px,
            margin_px: 0,
            n_patches,
        }
    }

    /// The middle of a side, with black on both ends where the side is shorter than that.
    pub(super) fn center(resized_px: usize, crop_px: usize, patch_px: usize) -> Self {
        let n_patches = crop_px / patch_px;
        let shown_px = n_patches * patch_px;
        let first = resized_px.saturating_sub(crop_px) / 2;
        let margin_px = (crop_px.saturating_sub(resized_px) / 2).min(shown_px);
        let n_kept = resized_px.min(shown_px - margin_px);
        Self {
            resized_px,
            kept: first..first + n_kept,
            margin_px,
            n_patches,
        }
    }
}

/// `smart_resize` of the Qwen family: both sides multiples of `factor_px`, the area within
/// `min_pixels..=max_pixels` where that is possible, the shape kept as nearly as possible.
///
/// Returns height and width. The order of operations is the reference's, since every rounding
/// shows.
pub(super) fn smart_resize(
    height_px: u32,
    width_px: u32,
    factor_px: usize,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<[usize; 2], ImageProblem> {
    let [height, width] = [height_px, width_px].map(f64::from);
    let ratio = height.max(width) / height.min(width);
    if ratio > MAX_ASPECT_RATIO {
        let limit = MAX_ASPECT_RATIO;
        return Err(ImageProblem::TooThin { ratio, limit });
    }
    let factor = factor_px as f64;
    let [min_pixels, max_pixels] = [min_pixels, max_pixels].map(|pixels| pixels as f64);
    // Python's `round` takes the even neighbour of a half.
    let rounded = [height, width].map(|side| (side / factor).round_ties_even() * factor);
    let area = rounded[0] * rounded[1];
    let resized = if area > max_pixels {
        let shrink = (height * width / max_pixels).sqrt();
        [height, width].map(|side| factor.max((side / shrink / factor).floor() * factor))
    } else if area < min_pixels {
        let enlarge = (min_pixels / (height * width)).sqrt();
        [height, width].map(|side| (side * enlarge / factor).ceil() * factor)
    } else {
        rounded
    };
    Ok(resized.map(|side| side as usize))
}

/// The largest size of `SigLIP2`'s `NaFlex` with at most `max_patches` patches and about the
/// image's shape, both sides multiples of a patch. Returns height and width.
///
/// The search and its end are the reference's: where two sizes are possible, the steps decide.
pub(super) fn largest_within(
    height_px: u32,
    width_px: u32,
    patch_px: usize,
    max_patches: usize,
) -> [usize; 2] {
    const STEP: f64 = 1e-5;
    let patch = patch_px as f64;
    let scaled = |scale: f64| {
        [height_px, width_px].map(|side| {
            let side = (f64::from(side) * scale / patch).ceil() * patch;
            side.max(patch)
        })
    };
    let (mut low, mut high) = (STEP / 10.0, 100.0);
    while high - low >= STEP {
        let scale = f64::midpoint(low, high);
        let [height, width] = scaled(scale);
        if (height / patch) * (width / patch) <= max_patches as f64 {
            low = scale;
        } else {
            high = scale;
        }
    }
    scaled(low).map(|side| side as usize)
}

/// The size whose shorter side is `shortest_px` and whose shape is the image's, the longer
/// side rounded down. Returns height and width.
///
/// Thin images fail when the longer side grows beyond `longest_px`.
pub(super) fn shortest_to(
    height_px: u32,
    width_px: u32,
    shortest_px: usize,
    longest_px: f64,
) -> Result<[usize; 2], ImageProblem> {
    let [short, long] = [height_px.min(width_px), height_px.max(width_px)].map(f64::from);
    let resized = shortest_px as f64 * long / short;
    if resized > longest_px {
        return Err(ImageProblem::TooThin {
            ratio: long / short,
            limit: (longest_px / shortest_px as f64).floor(),
        });
    }
    let longest_px = resized as usize;
    Ok(if width_px <= height_px {
        [longest_px, shortest_px]
    } else {
        [shortest_px, longest_px]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_the_even_multiple() {
        let at = |height, width| smart_resize(height, width, 28, 3136, 1_003_520).unwrap();
        assert_eq!(at(42, 70), [56, 56]);
        assert_eq!(at(98, 126), [112, 112]);
        assert_eq!(at(1, 1), [56, 56]);
        assert_eq!(at(1754, 1240), [1176, 840]);
    }

    #[test]
    fn the_ratio_of_the_sides_may_be_200_and_no_more() {
        assert!(smart_resize(200, 1, 28, 3136, 1_003_520).is_ok());
        let error = smart_resize(10, 30_000, 28, 3136, 1_003_520).unwrap_err();
        assert_eq!(
            error.to_string(),
            "one side is 3000 times the other, and the model takes at most 200 times"
        );
    }

    #[test]
    fn a_crop_takes_the_middle_and_fills_up_what_is_missing() {
        let side = |kept, margin_px| Side {
            resized_px: 9,
            kept,
            margin_px,
            n_patches: 2,
        };
        assert_eq!(Side::center(9, 4, 2), side(2..6, 0));
        assert_eq!(Side::center(9, 9, 4), side(0..8, 0));
        assert_eq!(Side::center(9, 12, 6), side(0..9, 1));
        // The last patch's end lies within the margin at the far end.
        assert_eq!(Side::center(9, 14, 5), side(0..8, 2));
        assert_eq!(Side::whole(9, 4), side(0..8, 0));
    }

    #[test]
    fn the_longer_side_is_rounded_down_unless_it_grows_without_end() {
        assert_eq!(shortest_to(97, 60, 64, 1e7), Ok([103, 64]));
        assert_eq!(shortest_to(60, 97, 64, 1e7), Ok([64, 103]));
        assert_eq!(shortest_to(7, 7, 64, 1e7), Ok([64, 64]));
        let error = shortest_to(1, u32::MAX, 64, 1e7).unwrap_err();
        assert!(matches!(error, ImageProblem::TooThin { limit, .. } if limit > 1.5e5));
    }

    #[test]
    fn naflex_uses_as_many_patches_as_it_may() {
        assert_eq!(largest_within(64, 64, 16, 40), [96, 96]);
        assert_eq!(largest_within(1, 1, 16, 256), [112, 112]);
        assert_eq!(largest_within(10, 30_000, 16, 256), [16, 4096]);
    }
}

//! The picture of `pagemill search --explain`: where on a page a question's words are.

use std::ops::Range;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use pagemill::sinks::lancedb::{MultiVector, PageDetail};
use pagemill::sinks::maxsim::similarities;

use crate::{Hinted, why};

/// Longest side of the page and of its map, in pixels.
const PAGE_PX: u32 = 720;
/// Longest side of one word's map.
const WORD_PX: u32 = 232;
const GAP_PX: u32 = 12;
const LINE_PX: u32 = 20;
/// More words than these are left out, from the end.
const MAX_WORDS: usize = 24;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);
const INK: Rgb<u8> = Rgb([32, 32, 40]);
const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);

/// A question as the model reads it.
pub(crate) struct Asked<'a> {
    pub(crate) text: &'a str,
    /// `[tokens, dim]`.
    pub(crate) vectors: &'a MultiVector,
    /// Each word, and its tokens.
    pub(crate) words: Vec<(String, Range<usize>)>,
}

/// Draws the page, the page with the parts that answer the question, and a small map for each
/// word, and writes it as PNG.
pub(crate) fn write(path: &Path, asked: &Asked<'_>, page: &PageDetail) -> Result<(), Hinted> {
    let picture = draw(asked, page)?;
    picture
        .save_with_format(path, image::ImageFormat::Png)
        .map_err(|error| {
            let problem = format!(
                "cannot write the picture ({}): {}",
                why(&error),
                path.display()
            );
            Hinted::failed(problem, "check the folder, its permissions and the disk")
        })
}

fn draw(asked: &Asked<'_>, page: &PageDetail) -> Result<RgbImage, Hinted> {
    let lacks = |what: &str, hint: &str| {
        Hinted::failed(
            format!("the page cannot be explained: its row has no {what}"),
            hint,
        )
    };
    let rerun = "make the table with `embed_image`, which adds it, and without pooling after it";
    let vectors = page
        .vectors
        .as_ref()
        .ok_or_else(|| lacks("`vectors`", rerun))?;
    let places = [page.patch_start, page.patch_rows, page.patch_cols];
    let [Some(start), Some(rows), Some(cols)] = places.map(|n| n.map(|n| n as usize)) else {
        return Err(lacks("`patch_rows`", rerun));
    };
    if rows == 0 || cols == 0 || start + rows * cols > vectors.n() {
        return Err(lacks("vectors for each of its patches", rerun));
    }
    let thumbnail = page.thumbnail.as_ref().ok_or_else(|| {
        lacks(
            "`thumbnail`",
            "put a `thumbnail` stage into the pipeline, and run it again",
        )
    })?;
    let thumbnail = image::load_from_memory(thumbnail)
        .map_err(|error| lacks("thumbnail that can be read", &error.to_string()))?
        .to_rgb8();

    let n_vectors = vectors.n();
    let all = similarities(&asked.vectors.values, &vectors.values, vectors.dim);
    let map = |token: usize| &all[token * n_vectors + start..][..rows * cols];
    let words: Vec<_> = asked
        .words
        .iter()
        .filter(|(_, tokens)| !tokens.is_empty())
        .collect();
    let word_maps: Vec<Vec<f32>> = words
        .iter()
        .map(|(_, tokens)| {
            let tokens = tokens.clone().map(|token| stretched(map(token)));
            mean(tokens.collect())
        })
        .collect();
    let whole = mean(word_maps.clone());
    Ok(lay_out(
        asked.text,
        &thumbnail,
        (rows, cols),
        &whole,
        &words,
        &word_maps,
    ))
}

/// Brings a map's least and greatest similarity to 0 and 1: what matters is where a word is
/// more at home, not how much.
fn stretched(map: &[f32]) -> Vec<f32> {
    let least = map.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = (greatest - least).max(1e-6);
    map.iter().map(|value| (value - least) / range).collect()
}

fn mean(maps: Vec<Vec<f32>>) -> Vec<f32> {
    let n = maps.len().max(1) as f32;
    let sums = maps.into_iter().reduce(|mut sums, map| {
        for (sum, value) in sums.iter_mut().zip(map) {
            *sum += value;
        }
        sums
    });
    let sums = sums.unwrap_or_default();
    stretched(&sums.into_iter().map(|sum| sum / n).collect::<Vec<_>>())
}

fn lay_out(
    question: &str,
    thumbnail: &RgbImage,
    grid: (usize, usize),
    whole: &[f32],
    words: &[&(String, Range<usize>)],
    word_maps: &[Vec<f32>],
) -> RgbImage {
    let page = scaled(thumbnail, PAGE_PX);
    let small = scaled(thumbnail, WORD_PX);
    let width = (2 * page.width() + 3 * GAP_PX).max(480);
    let n_in_row = ((width - GAP_PX) / (small.width() + GAP_PX)).max(1);
    let n_words = words.len().min(MAX_WORDS) as u32;
    let row_px = small.height() + LINE_PX + GAP_PX;
    let words_at = LINE_PX + page.height() + 3 * GAP_PX;
    let height = words_at + n_words.div_ceil(n_in_row) * row_px;
    let mut canvas = RgbImage::from_pixel(width, height, PAPER);
    write_line(&mut canvas, question, GAP_PX, GAP_PX, width - 2 * GAP_PX);
    let top = LINE_PX + 2 * GAP_PX;
    put(&mut canvas, &page, GAP_PX, top);
    put(
        &mut canvas,
        &heated(&page, grid, whole),
        page.width() + 2 * GAP_PX,
        top,
    );
    for (index, ((word, _), map)) in words.iter().zip(word_maps).take(MAX_WORDS).enumerate() {
        let (row, column) = (index as u32 / n_in_row, index as u32 % n_in_row);
        let x = GAP_PX + column * (small.width() + GAP_PX);
        let y = words_at + row * row_px;
        write_line(&mut canvas, word.trim(), x, y, small.width());
        put(&mut canvas, &heated(&small, grid, map), x, y + LINE_PX);
    }
    canvas
}

fn scaled(picture: &RgbImage, long_side_px: u32) -> RgbImage {
    let longest = picture.width().max(picture.height()).max(1);
    let side = |side: u32| (side * long_side_px / longest).max(1);
    let (width, height) = (side(picture.width()), side(picture.height()));
    imageops::resize(picture, width, height, FilterType::Triangle)
}

fn put(canvas: &mut RgbImage, picture: &RgbImage, x: u32, y: u32) {
    imageops::replace(canvas, picture, x.into(), y.into());
}

/// The page, paler, with the map over it.
fn heated(page: &RgbImage, (rows, cols): (usize, usize), map: &[f32]) -> RgbImage {
    let mut heated = page.clone();
    let (width, height) = (page.width() as usize, page.height() as usize);
    for (x, y, pixel) in heated.enumerate_pixels_mut() {
        let (row, col) = (y as usize * rows / height, x as usize * cols / width);
        let value = map
            .get(row * cols + col)
            .copied()
            .unwrap_or(0.0)
            .clamp(0.0, 1.0);
        // Squared, so that only what stands out is seen.
        let strength = 0.75 * value * value;
        let heat = [255.0, 210.0 * (1.0 - value) + 40.0, 20.0];
        for (channel, heat) in pixel.0.iter_mut().zip(heat) {
            let faded = 0.7 * f32::from(*channel) + 0.3 * 255.0;
            *channel = (faded * (1.0 - strength) + heat * strength) as u8;
        }
    }
    heated
}

/// Writes as much of a line as there is room for.
fn write_line(canvas: &mut RgbImage, line: &str, x: u32, y: u32, room_px: u32) {
    let width = get_raster_width(FONT.0, FONT.1) as u32;
    for (place, letter) in (0..room_px / width).zip(line.chars()) {
        let Some(raster) =
            get_raster(letter, FONT.0, FONT.1).or_else(|| get_raster('?', FONT.0, FONT.1))
        else {
            continue;
        };
        for (dy, row) in raster.rows().enumerate() {
            for (dx, ink) in row.iter().enumerate() {
                let (x, y) = (x + place * width + dx as u32, y + dy as u32);
                if let Some(pixel) = canvas.get_pixel_mut_checked(x, y) {
                    for (channel, full) in pixel.0.iter_mut().zip(INK.0) {
                        let (paper, full, ink) =
                            (u16::from(*channel), u16::from(full), u16::from(*ink));
                        *channel = ((paper * (255 - ink) + full * ink) / 255) as u8;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thumbnail() -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        RgbImage::from_pixel(40, 60, Rgb([200, 200, 200]))
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    /// A page of 2 x 2 patches, whose third is like the question's only word.
    fn page() -> PageDetail {
        let values = vec![0.0, 1.0, 0.1, 1.0, 0.0, 1.0, 1.0, 0.0, 0.2, 1.0];
        PageDetail {
            vectors: Some(MultiVector { values, dim: 2 }),
            thumbnail: Some(thumbnail()),
            patch_rows: Some(2),
            patch_cols: Some(2),
            patch_start: Some(1),
        }
    }

    fn asked(vectors: &MultiVector) -> Asked<'_> {
        Asked {
            text: "torque",
            vectors,
            words: vec![("torque".into(), 0..1)],
        }
    }

    #[test]
    fn the_part_that_is_like_the_question_glows() {
        let vectors = MultiVector {
            values: vec![1.0, 0.0],
            dim: 2,
        };
        let picture = draw(&asked(&vectors), &page()).unwrap();
        // The map is right of the page; its third patch is at the lower left.
        let left = 480 + 2 * GAP_PX;
        let top = LINE_PX + 2 * GAP_PX;
        let blue = |x: u32, y: u32| picture.get_pixel(left + x, top + y).0[2];
        assert!(blue(100, 600) < 100, "{}", blue(100, 600));
        assert!(blue(400, 100) > 180 && blue(400, 600) > 180);
        let page_itself = picture.get_pixel(GAP_PX + 100, top + 600).0;
        assert_eq!(page_itself, [200, 200, 200]);
    }

    #[test]
    fn a_row_that_lacks_something_says_what() {
        let vectors = MultiVector {
            values: vec![1.0, 0.0],
            dim: 2,
        };
        let error = |page: PageDetail| draw(&asked(&vectors), &page).unwrap_err().problem;
        let pooled = PageDetail {
            patch_rows: None,
            ..page()
        };
        assert!(error(pooled).ends_with("its row has no `patch_rows`"));
        let bare = PageDetail {
            thumbnail: None,
            ..page()
        };
        assert!(error(bare).ends_with("its row has no `thumbnail`"));
        let short = PageDetail {
            patch_rows: Some(9),
            ..page()
        };
        assert!(error(short).ends_with("vectors for each of its patches"));
    }
}

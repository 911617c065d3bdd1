use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::loader::Dtype;
use crate::preprocess::Grid;
use crate::reference::{Expected, difference, own, patches, shared};

const TOLERANCE: f32 = 1e-5;

/// The rows of a picture's patches, `[patches, 3 * patch * patch]`.
struct Picture {
    grid: Grid,
    pixels: Vec<f32>,
}

const OPTIONS: DualOptions = DualOptions {
    max_visual_tokens: None,
    max_tokens: None,
    pass_limit: 1024,
};

fn load_encoder(folder: &Path) -> DualEncoder {
    DualEncoder::load(folder, &LoaderOptions::default(), &OPTIONS)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// A folder of the same files, to be changed by a test.
fn copy_of(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Cuts `[3, side, side]` into patches, each `[3, patch, patch]`.
fn cut(pixels: &[f32], side: usize, patch: usize) -> Picture {
    let n = side / patch;
    let mut rows = Vec::with_capacity(3 * n * patch * n * patch);
    for place in 0..n * n {
        let (row, col) = (place / n * patch, place % n * patch);
        for line in 0..3 * patch {
            let start = (line / patch * side + row + line % patch) * side + col;
            rows.extend_from_slice(&pixels[start..start + patch]);
        }
    }
    Picture {
        grid: Grid {
            rows: n,
            cols: n,
            merge: 1,
        },
        pixels: rows,
    }
}

/// From `[patches, patch * patch, 3]` to `[patches, 3, patch * patch]`.
fn channels_first(pixels: &[f32], patch: usize) -> Vec<f32> {
    let of_patch = |row: &[f32]| {
        let channel = |channel| {
            row.iter()
                .skip(channel)
                .step_by(3)
                .copied()
                .collect::<Vec<_>>()
        };
        [channel(0), channel(1), channel(2)].concat()
    };
    pixels
        .chunks_exact(3 * patch * patch)
        .flat_map(of_patch)
        .collect()
}

/// The pictures of a file whose `pixel_values` are as the family's processor makes them.
fn pictures(expected: &Expected, patch: usize) -> Vec<Picture> {
    let (shape, numbers) = expected.floats("in.pixel_values");
    let each = numbers.chunks_exact(numbers.len() / shape[0]);
    if !expected.contains("in.spatial_shapes") {
        return each.map(|pixels| cut(pixels, shape[2], patch)).collect();
    }
    let (_, grids) = expected.integers("in.spatial_shapes");
    let picture = |(pixels, grid): (&[f32], &[i64])| {
        let (rows, cols) = (grid[0] as usize, grid[1] as usize);
        let pixels = channels_first(&pixels[..rows * cols * 3 * patch * patch], patch);
        Picture {
            grid: Grid {
                rows,
                cols,
                merge: 1,
            },
            pixels,
        }
    };
    each.zip(grids.chunks_exact(2)).map(picture).collect()
}

fn texts(expected: &Expected) -> Vec<Vec<u32>> {
    let (shape, ids) = expected.integers("in.input_ids");
    let ids = ids
        .chunks_exact(shape[1])
        .map(|row| row.iter().map(|id| *id as u32).collect());
    let mut ids: Vec<Vec<u32>> = ids.collect();
    if expected.contains("in.attention_mask") {
        let (_, mask) = expected.integers("in.attention_mask");
        for (ids, mask) in ids.iter_mut().zip(mask.chunks_exact(shape[1])) {
            ids.truncate(mask.iter().sum::<i64>() as usize);
        }
    }
    ids
}

/// Vectors as they leave the tower.
fn seen(encoder: &DualEncoder, pictures: &[&Picture]) -> Tensor {
    let (tower, _) = encoder.vision.as_ref().unwrap();
    let grids: Vec<Grid> = pictures.iter().map(|picture| picture.grid).collect();
    let n: usize = grids.iter().map(|grid| grid.rows * grid.cols).sum();
    let pixels: Vec<f32> = pictures
        .iter()
        .flat_map(|p| p.pixels.iter().copied())
        .collect();
    let width = pixels.len() / n;
    tower
        .forward(
            &Tensor::from_vec(pixels, (n, width), &Device::Cpu).unwrap(),
            &grids,
        )
        .unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn check(what: &str, ours: &Tensor, expected: &Expected, name: &str, tolerance: f32) {
    let (shape, theirs) = expected.floats(name);
    assert_eq!(ours.dims(), shape, "{what} {name}");
    let difference = difference(&numbers(ours), theirs);
    println!("{what} {name}: {difference:e}");
    assert!(difference <= tolerance, "{what} {name}: {difference:e}");
}

/// Everything that a file of `shared/reference` says about one model.
fn check_shared(name: &str) {
    let Some(folder) = shared(name) else { return };
    let model = copy_of(&folder.join("model"));
    let settings = "preprocessor_config.json"; // Lies beside that folder.
    fs::copy(folder.join(settings), model.path().join(settings)).unwrap();
    let encoder = load_encoder(model.path());
    let expected = Expected::read(&folder.join("fixture.safetensors"));
    let pictures = pictures(&expected, 16);
    let all: Vec<&Picture> = pictures.iter().collect();
    let together = seen(&encoder, &all);
    let images = tower::unit(&together).unwrap();
    check(name, &images, &expected, "out.image_embeds", TOLERANCE);
    if expected.contains("out.image_pooled") {
        check(name, &together, &expected, "out.image_pooled", TOLERANCE);
    }
    if expected.contains("mid.vision_model.head") {
        check(
            name,
            &together,
            &expected,
            "mid.vision_model.head",
            TOLERANCE,
        );
    }
    let ids = texts(&expected);
    let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let text = encoder.embed_ids(&ids).unwrap();
    check(name, &text, &expected, "out.text_embeds", TOLERANCE);

    // Alone, and in another order.
    for (row, picture) in pictures.iter().enumerate() {
        let alone = tower::unit(&seen(&encoder, &[picture])).unwrap();
        let beside = images.narrow(0, row, 1).unwrap();
        let difference = difference(&numbers(&alone), &numbers(&beside));
        assert!(
            difference <= 1e-6,
            "{name} image {row} alone: {difference:e}"
        );
    }
    for (row, ids) in ids.iter().enumerate() {
        let alone = encoder.embed_ids(&[ids]).unwrap();
        let beside = text.narrow(0, row, 1).unwrap();
        let difference = difference(&numbers(&alone), &numbers(&beside));
        assert!(
            difference <= 1e-6,
            "{name} text {row} alone: {difference:e}"
        );
    }
    let backwards: Vec<&Picture> = pictures.iter().rev().collect();
    let backwards = tower::unit(&seen(&encoder, &backwards)).unwrap();
    let last = backwards.narrow(0, pictures.len() - 1, 1).unwrap();
    let first = images.narrow(0, 0, 1).unwrap();
    let difference = difference(&numbers(&last), &numbers(&first));
    assert!(difference <= 1e-6, "{name} in reverse: {difference:e}");
}

#[test]
fn clip_with_an_early_configuration_agrees_with_the_reference() {
    check_shared("clip_eos2");
}

#[test]
fn clip_with_a_true_end_token_agrees_with_the_reference() {
    check_shared("clip_eos_real");
}

#[test]
fn siglip_agrees_with_the_reference() {
    check_shared("siglip");
}

#[test]
fn siglip2_agrees_with_the_reference_in_any_shape() {
    check_shared("siglip2");
}

/// Everything that a folder of `models/fixtures` says, from files and text to vectors.
fn check_own(name: &str) {
    let folder = own(name);
    let encoder = load_encoder(&folder);
    let expected = Expected::read(&folder.join("expected.safetensors"));
    let pictures = own_pictures(&encoder, &folder, &expected);
    let all: Vec<&Patches> = pictures.iter().collect();
    let images = vectors(encoder.embed_images(&all, Precision::F32));
    let queries = expected.strings("queries");
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    let texts = vectors(encoder.embed_texts(&queries, Precision::F32));
    for (what, ours) in [("image", &images), ("text", &texts)] {
        for (index, ours) in ours.iter().enumerate() {
            let (shape, theirs) = expected.floats(&format!("{what}.{index}"));
            assert_eq!(shape, [1, encoder.dim()]);
            let difference = difference(ours, theirs);
            println!("{name} {what}.{index}: {difference:e}");
            assert!(
                difference <= TOLERANCE,
                "{name} {what}.{index}: {difference:e}"
            );
        }
    }
    for (index, picture) in pictures.iter().enumerate() {
        let grid = format!("grid.{index}");
        if expected.contains(&grid) {
            let ours = [picture.grid.rows as i64, picture.grid.cols as i64];
            assert_eq!(ours, expected.integers(&grid).1);
        }
        let alone = vectors(encoder.embed_images(&[picture], Precision::F32)).remove(0);
        assert!(
            difference(&alone, &images[index]) <= 1e-6,
            "{name} image.{index} alone"
        );
    }
    for (index, query) in queries.iter().enumerate() {
        let alone = vectors(encoder.embed_texts(&[query], Precision::F32)).remove(0);
        assert!(
            difference(&alone, &texts[index]) <= 1e-6,
            "{name} text.{index} alone"
        );
    }
}

fn own_pictures(encoder: &DualEncoder, folder: &Path, expected: &Expected) -> Vec<Patches> {
    let processor = encoder.processor().unwrap();
    let files = expected.strings("images");
    files
        .iter()
        .map(|file| patches(processor, &folder.join(file)))
        .collect()
}

fn vectors(embeddings: Result<Vec<Result<Embedding, ModelError>>, ModelError>) -> Vec<Vec<f32>> {
    embeddings
        .unwrap()
        .into_iter()
        .map(|embedding| embedding.unwrap().to_f32())
        .collect()
}

#[test]
fn small_clips_agree_with_the_reference_from_files_and_text_on() {
    check_own("clip");
    check_own("clip_old");
}

#[test]
fn a_small_siglip_agrees_with_the_reference_from_files_and_text_on() {
    check_own("siglip");
}

#[test]
fn a_small_siglip2_agrees_with_the_reference_from_files_and_text_on() {
    check_own("siglip2");
}

#[test]
fn what_the_tables_do_not_hold_is_an_error_and_no_panic() {
    let encoder = load_encoder(&own("clip"));
    let too_long = [3; 25];
    for ids in [&[][..], &[9999], &too_long] {
        assert!(encoder.embed_ids(&[ids]).is_err(), "{ids:?}");
    }
    let (tower, _) = encoder.vision.as_ref().unwrap();
    let pixels = Tensor::zeros((12, 3 * 16 * 16), DType::F32, &Device::Cpu).unwrap();
    let grid = Grid {
        rows: 4,
        cols: 3,
        merge: 1,
    };
    let error = tower.forward(&pixels, &[grid]).unwrap_err().to_string();
    assert!(
        error.starts_with("an image of 4 x 3 patches, where the model reads 3 x 3"),
        "{error}"
    );
}

#[test]
fn sixteen_bits_point_the_same_way() {
    for name in ["clip", "siglip2"] {
        let expected = Expected::read(&own(name).join("expected.safetensors"));
        for dtype in [Dtype::F16, Dtype::BF16] {
            let options = LoaderOptions {
                dtype,
                ..LoaderOptions::default()
            };
            let encoder = DualEncoder::load(&own(name), &options, &OPTIONS).unwrap();
            let pictures = own_pictures(&encoder, &own(name), &expected);
            let pictures: Vec<&Patches> = pictures.iter().collect();
            let ours = vectors(encoder.embed_images(&pictures, Precision::F32));
            for (index, ours) in ours.iter().enumerate() {
                let theirs = expected.floats(&format!("image.{index}")).1;
                let cosine: f32 = ours.iter().zip(theirs).map(|(a, b)| a * b).sum();
                assert!(cosine >= 0.999, "{name} {dtype} image.{index}: {cosine}");
            }
        }
    }
}

mod loading;

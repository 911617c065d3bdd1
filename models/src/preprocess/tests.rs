//! Against the reference's processors, and what is refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;

/// A processor of these settings.
fn processor(
    settings: &serde_json::Value,
    family: Family,
    options: &ProcessorOptions,
) -> Result<ImageProcessor, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    fs::write(path, settings.to_string()).unwrap();
    ImageProcessor::read(folder.path(), family, options)
}

fn qwen(settings: &serde_json::Value) -> ImageProcessor {
    processor(settings, Family::Qwen, &ProcessorOptions::default()).unwrap()
}

fn clip() -> ImageProcessor {
    let options = ProcessorOptions {
        patch_px: Some(16),
        ..ProcessorOptions::default()
    };
    processor(&serde_json::json!({}), Family::Clip, &options).unwrap()
}

fn view(pixels: &[u8], width_px: u32, height_px: u32) -> RgbView<'_> {
    RgbView {
        pixels,
        width_px,
        height_px,
    }
}

/// `testdata/cases.json`, which `scripts/fixtures/preprocess.py` writes.
#[derive(Deserialize)]
struct Cases {
    processors: HashMap<String, Settings>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Settings {
    patch_px: usize,
    settings: serde_json::Value,
}

#[derive(Deserialize)]
struct Case {
    processor: String,
    width: u32,
    height: u32,
    number: u64,
    max_visual_tokens: Option<usize>,
    /// The reference's message.
    error: Option<String>,
    #[serde(default)]
    rows: usize,
    #[serde(default, rename = "columns")]
    cols: usize,
    #[serde(default)]
    sum: String,
}

/// The script's picture of that number: noise with flat parts.
fn picture(case: &Case) -> Vec<u8> {
    let n_bytes = u64::from(case.width) * u64::from(case.height) * 3;
    let first = case.number.wrapping_mul(0x9E37_79B9);
    (first..first + n_bytes)
        .map(|i| {
            let z = (i ^ (i >> 7)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 32;
            match (i >> 9) & 3 {
                0 if z & 256 == 0 => 0,
                0 => 255,
                _ => z as u8,
            }
        })
        .collect()
}

/// The script's sum over every bit of every value.
fn fingerprint(values: &[f32]) -> String {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut power = 1_u64;
    let sum = values.iter().fold(0_u64, |sum, value| {
        power = power.wrapping_mul(STEP);
        sum.wrapping_add((u64::from(value.to_bits()) + 1).wrapping_mul(power))
    });
    format!("{sum:016x}")
}

#[test]
fn pixel_values_equal_the_reference_to_the_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/preprocess/testdata/cases.json");
    let cases: Cases = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for case in &cases.cases {
        let of = &cases.processors[&case.processor];
        let options = ProcessorOptions {
            patch_px: Some(of.patch_px),
            max_visual_tokens: case.max_visual_tokens,
        };
        let processor = processor(&of.settings, Family::Clip, &options).unwrap();
        let pixels = picture(case);
        let made = processor.prepare(view(&pixels, case.width, case.height));
        let is_right = match (&made, &case.error) {
            (Err(error), Some(_)) => error.to_string().contains("at most 200 times"),
            (Ok(patches), None) => {
                assert_eq!(
                    processor.grid(case.width, case.height).unwrap(),
                    patches.grid
                );
                (patches.grid.rows, patches.grid.cols) == (case.rows, case.cols)
                    && fingerprint(&patches.pixel_values()) == case.sum
            }
            _ => false,
        };
        if !is_right {
            let found = made.map(|patches| patches.grid);
            let Case {
                processor,
                width,
                height,
                number,
                ..
            } = case;
            wrong.push(format!(
                "{processor}, {width} x {height}, picture {number}: {found:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn one_frame_of_each_patch_is_what_the_whole_has() {
    let settings = serde_json::json!({"max_pixels": 9408, "patch_size": 14});
    let pixels: Vec<u8> = (0..150 * 90 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let patches = qwen(&settings).prepare(view(&pixels, 150, 90)).unwrap();
    assert_eq!(patches.n_bytes(), patches.n_patches() * 3 * 14 * 14);
    let mut all = vec![0.0; patches.n_bytes()];
    patches.normalized_into(&mut all);
    let reference = patches.pixel_values();
    let (mean, std) = patches.mean_and_std();
    for index in 0..patches.n_patches() {
        let mut one = vec![0.0; patches.patch_len()];
        patches.normalized_patch(index, &mut one);
        assert_eq!(one, all[index * 588..(index + 1) * 588]);
        let of_reference = &reference[index * 1176..(index + 1) * 1176];
        for channel in 0..3 {
            let own = &one[channel * 196..(channel + 1) * 196];
            let [first, second] = [0, 1].map(|frame| (channel * 2 + frame) * 196);
            assert_eq!(own, &of_reference[first..first + 196]);
            assert_eq!(own, &of_reference[second..second + 196]);
            let bytes = &patches.patch(index)[channel * 196..(channel + 1) * 196];
            for (value, byte) in own.iter().zip(bytes) {
                let expected = (f32::from(*byte) - mean[channel]) / std[channel];
                assert_eq!(value.to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn an_image_that_cannot_be_prepared_says_why() {
    let qwen = qwen(&serde_json::json!({}));
    let said = |result: Result<Patches, ModelError>| {
        let error = result.unwrap_err();
        (error.to_string(), error.hint())
    };
    let thin = vec![0; 30_000 * 10 * 3];
    assert_eq!(
        said(qwen.prepare(view(&thin, 30_000, 10))),
        (
            "cannot prepare an image of 30000 x 10 pixels: one side is 3000 times the other, and \
             the model takes at most 200 times"
                .into(),
            "cut the image into pieces that are less thin, or set it aside".into(),
        )
    );
    assert_eq!(
        said(qwen.prepare(view(&[], 0, 10))).0,
        "cannot prepare an image of 0 x 10 pixels: it has no pixels"
    );
    assert_eq!(
        said(clip().prepare(view(&[0; 11], 2, 2))).0,
        "cannot prepare an image of 2 x 2 pixels: it comes with 11 bytes instead of 12"
    );
    // Sides whose product does not fit a number, and nothing is allocated for them.
    let huge = said(clip().prepare(view(&[0; 12], u32::MAX, u32::MAX))).0;
    assert!(huge.contains("12 bytes instead of"), "{huge}");
    assert!(qwen.grid(u32::MAX, u32::MAX).is_ok());
    assert!(clip().grid(1, u32::MAX).is_err());
}

#[test]
fn the_smallest_and_the_thinnest_images_are_prepared() {
    let one = qwen(&serde_json::json!({}))
        .prepare(view(&[9, 99, 199], 1, 1))
        .unwrap();
    assert_eq!(
        one.grid,
        Grid {
            rows: 4,
            cols: 4,
            merge: 2
        }
    );
    assert_eq!(one.grid.n_tokens(), 4);
    let planes = one
        .as_bytes()
        .chunks_exact(14 * 14)
        .zip([9, 99, 199].iter().cycle());
    assert!(
        planes
            .into_iter()
            .all(|(plane, value)| plane.iter().all(|byte| byte == value))
    );
    // The middle of a line that would be 672,000 pixels long.
    let thin: Vec<u8> = (0..30_000 * 10 * 3).map(|i| (i % 251) as u8).collect();
    let middle = clip().prepare(view(&thin, 30_000, 10)).unwrap();
    assert_eq!(
        middle.grid,
        Grid {
            rows: 14,
            cols: 14,
            merge: 1
        }
    );
}

#[test]
fn processors_of_one_key_are_the_same() {
    let base = serde_json::json!({"image_processor_type": "Qwen2VLImageProcessor"});
    let same = serde_json::json!({"image_processor_type": "Qwen2VLImageProcessorFast",
        "min_pixels": 3136, "resample": 3, "processor_class": "ColQwen2_5_Processor"});
    let other = serde_json::json!({"rescale_factor": 0.004});
    assert_eq!(qwen(&base).key(), qwen(&same).key());
    assert_ne!(qwen(&base).key(), qwen(&other).key());
}

/// A folder of outputs made by the reference implementations, if this machine has it.
fn reference(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PAGEMILL_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let folder = root.join("reference").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: there is no reference/{name}");
    None
}

/// A picture as PIL's `convert("RGB")` reads it.
fn open(path: &Path) -> (Vec<u8>, u32, u32) {
    let image = image::open(path).unwrap().to_rgb8();
    let (width, height) = image.dimensions();
    (image.into_raw(), width, height)
}

#[test]
fn smart_resize_agrees_with_the_reference() {
    #[derive(Deserialize)]
    struct Case {
        height: u32,
        width: u32,
        factor: usize,
        min_pixels: u64,
        max_pixels: u64,
        result: serde_json::Value,
    }
    let Some(folder) = reference("preproc") else {
        return;
    };
    let cases = fs::read(folder.join("smart_resize_cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    assert_eq!(cases.len(), 106);
    for case in cases {
        let Case {
            height,
            width,
            factor,
            min_pixels,
            max_pixels,
            result,
        } = case;
        let ours = size::smart_resize(height, width, factor, min_pixels, max_pixels);
        match ours {
            Ok(sides) => assert_eq!(result, serde_json::json!(sides), "{height} x {width}"),
            Err(_) => assert!(result.is_string(), "{height} x {width}"),
        }
    }
}

#[test]
fn the_references_qwen_pages_are_prepared_to_the_bit() {
    let Some(folder) = reference("preproc") else {
        return;
    };
    for name in ["q25", "q3"] {
        let settings = fs::read(folder.join(format!("{name}_preprocessor_config.json"))).unwrap();
        let processor = qwen(&serde_json::from_slice(&settings).unwrap());
        let tensors = fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&tensors).unwrap();
        let mut n_checked = 0;
        for file in fs::read_dir(folder.join("png")).unwrap() {
            let path = file.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let Ok(resized) = tensors.tensor(&format!("{stem}.resized_torch_u8_hwc")) else {
                continue;
            };
            let (pixels, width, height) = open(&path);
            let patches = processor.prepare(view(&pixels, width, height)).unwrap();
            let (p, grid) = (patches.patch_px(), patches.grid);
            assert_eq!(resized.shape(), [grid.rows * p, grid.cols * p, 3]);
            let expected = resized.data();
            for (place, byte) in patches.as_bytes().iter().enumerate() {
                let (index, place) = (place / (3 * p * p), place % (3 * p * p));
                let (channel, y, x) = (place / (p * p), place / p % p, place % p);
                let (block, within) = (index / 4, index % 4);
                let row = block / (grid.cols / 2) * 2 + within / 2;
                let column = block % (grid.cols / 2) * 2 + within % 2;
                let at = ((row * p + y) * grid.cols * p + column * p + x) * 3 + channel;
                assert_eq!(
                    *byte, expected[at],
                    "{name}, {stem}, {row}, {column}, {place}"
                );
            }
            if let Ok(values) = tensors.tensor(&format!("{stem}.pixel_values_torch")) {
                let ours: Vec<u8> = patches
                    .pixel_values()
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                assert!(ours == values.data(), "{name}, {stem}");
            }
            n_checked += 1;
        }
        assert_eq!(n_checked, 7, "{name}");
    }
}

#[test]
fn the_references_clip_and_siglip_images_are_prepared_to_the_bit() {
    for (name, family) in [
        ("clip_eos2", Family::Clip),
        ("siglip", Family::Siglip),
        ("siglip2", Family::Siglip2),
    ] {
        let Some(folder) = reference(name) else {
            return;
        };
        let options = ProcessorOptions {
            patch_px: Some(16),
            ..ProcessorOptions::default()
        };
        let processor = ImageProcessor::read(&folder, family, &options).unwrap();
        let tensors = fs::read(folder.join("fixture.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&tensors).unwrap();
        let values = tensors.tensor("in.pixel_values").unwrap();
        let n_image_bytes = values.data().len() / 3;
        for (index, expected) in values.data().chunks_exact(n_image_bytes).enumerate() {
            let (pixels, width, height) = open(&folder.join(format!("png/{index}.png")));
            let patches = processor.prepare(view(&pixels, width, height)).unwrap();
            let ours: Vec<u8> = patches
                .pixel_values()
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            // NaFlex is padded to its number of patches.
            assert!(ours == expected[..ours.len()], "{name}, {index}");
            assert!(expected[ours.len()..].iter().all(|byte| *byte == 0));
        }
    }
}

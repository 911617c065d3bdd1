//! Measures the time of a page's preprocessing on this machine.
//!
//! ```text
//! cargo run --release -p pagemill-models --example preprocess_per_page -- [model folder] [pages]
//! ```
//!
//! Without a folder it prepares as ColQwen2.5 does, with at most 768 visual tokens. The page is
//! A4 at 150 dots per inch.
#![allow(clippy::print_stdout, reason = "its answer is what it prints")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use pagemill_models::{Family, ImageProcessor, ProcessorOptions, RgbView};

const WIDTH_PX: u32 = 1240;
const HEIGHT_PX: u32 = 1754;

const SETTINGS: &str = r#"{"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14,
    "size": {"shortest_edge": 3136, "longest_edge": 602112}}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let own = tempfile::tempdir()?;
    fs::write(own.path().join("preprocessor_config.json"), SETTINGS)?;
    let folder = arguments
        .next()
        .map_or_else(|| own.path().to_owned(), PathBuf::from);
    let n_pages: usize = arguments.next().map_or(Ok(200), |count| count.parse())?;

    // CLIP and SigLIP do not say how wide their patches are; 16 is as good as any here.
    let mut options = ProcessorOptions::default();
    let processor = ImageProcessor::read(&folder, Family::Qwen, &options).or_else(|_| {
        options.patch_px = Some(16);
        ImageProcessor::read(&folder, Family::Qwen, &options)
    })?;
    let pixels = page();
    let image = RgbView {
        pixels: &pixels,
        width_px: WIDTH_PX,
        height_px: HEIGHT_PX,
    };
    let patches = processor.prepare(image)?;
    let mut values = vec![0.0; patches.n_bytes()];
    let grid = patches.grid;
    println!(
        "{WIDTH_PX} x {HEIGHT_PX} pixels to {} x {} patches of {}",
        grid.rows,
        grid.cols,
        processor.patch_px()
    );
    let median = |mut work: Box<dyn FnMut() + '_>| {
        let mut times: Vec<f64> = (0..n_pages.max(1))
            .map(|_| {
                let started = Instant::now();
                work();
                started.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[0])
    };
    let prepare = || drop(processor.prepare(image));
    let both = || {
        if let Ok(patches) = processor.prepare(image) {
            patches.normalized_into(&mut values);
        }
    };
    for (what, work) in [
        ("pixels to patches", Box::new(prepare) as Box<dyn FnMut()>),
        ("and normalized", Box::new(both)),
    ] {
        let (median, best) = median(work);
        println!("{what:18} {median:6.2} ms a page, at best {best:.2}");
    }
    Ok(())
}

/// A page of lines on white.
fn page() -> Vec<u8> {
    let mut pixels = vec![255; WIDTH_PX as usize * HEIGHT_PX as usize * 3];
    for (y, row) in pixels.chunks_exact_mut(WIDTH_PX as usize * 3).enumerate() {
        if y % 22 < 12 {
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let is_ink = ((x * 2_654_435_761 + y / 3 * 40_503) >> 7) % 4 == 0;
                if is_ink && (100..1140).contains(&x) {
                    pixel.fill((x * y % 90) as u8);
                }
            }
        }
    }
    pixels
}

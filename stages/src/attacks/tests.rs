//! Every attack in the cage, with a healthy document after each.

use std::time::{Duration, Instant};

use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Resources, StageConfig};

use super::*;
use crate::cage::testing::worker_command;
use crate::cage::{DocumentLimits, WorkerCommand};
use crate::render_pdf::testing::{pdfium, three_pages};
use crate::render_pdf::{RenderPdfConfig, RenderSetup};
use crate::{DecodeImage, DecodeImageConfig};

const LIMITS: DocumentLimits = DocumentLimits {
    page_s: 1,
    document_s: 2,
    memory_mb: 256,
    pixels: 178_956_970,
};

/// Two renderers open a document and its page, each twice at the most; a page
/// may begin in the last moment of the document. Besides, machines are busy.
const MOST: Duration = Duration::from_secs(12);

/// A word in the command lines of these workers, and of no others.
fn marked(mark: &str) -> WorkerCommand {
    let mut worker = worker_command("");
    worker.arguments.push(mark.into());
    worker
}

/// Processes whose command line has the word.
fn n_left(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has_mark = |entry: &std::fs::DirEntry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.windows(mark.len()).any(|word| word == mark.as_bytes()))
    };
    processes.filter(has_mark).count()
}

fn report(name: &str, began: Instant, n_pages: usize, reason: &str) {
    let elapsed = began.elapsed();
    println!(
        "{:>5} ms, {n_pages} pages: {name} {reason}",
        elapsed.as_millis()
    );
    assert!(elapsed < MOST, "`{name}` took {elapsed:?}");
}

#[test]
fn no_pdf_costs_more_than_its_limits_or_harms_the_next() {
    let mark = format!("attacked-renderer-{}", std::process::id());
    let resources = Resources::default();
    let setup = RenderSetup {
        worker: marked(&mark),
        pdfium: pdfium(),
    };
    resources.insert(RenderPdfConfig::KIND, setup);
    let config = RenderPdfConfig {
        long_side_px: 300,
        limits: LIMITS,
        ..RenderPdfConfig::default()
    };
    let mut stage = config.build(&resources).unwrap();
    let pdf = |name: &str, bytes| Item::of_document(name, "application/pdf", bytes);
    for attack in pdfs::all() {
        let began = Instant::now();
        let out = run_stage(&mut *stage, [pdf("attack.pdf", attack.bytes)]);
        assert!(out.error.is_none(), "{}: {:?}", attack.name, out.error);
        let reason = out.dead.first().map_or("", |(_, reason)| reason);
        report(attack.name, began, out.sent.len(), reason);
        let out = run_stage(&mut *stage, [pdf("mill.pdf", three_pages())]);
        assert_eq!(
            (out.sent.len(), out.dead.len()),
            (3, 0),
            "after {}",
            attack.name
        );
    }
    drop(stage);
    assert_eq!(n_left(&mark), 0);
}

#[test]
fn no_picture_costs_more_than_its_limits_or_harms_the_next() {
    let mark = format!("attacked-decoder-{}", std::process::id());
    let config = DecodeImageConfig {
        limits: LIMITS,
        ..DecodeImageConfig::default()
    };
    let mut stage = DecodeImage::new(&config, marked(&mark)).unwrap();
    let mut healthy = std::io::Cursor::new(Vec::new());
    image::GrayImage::new(9, 9)
        .write_to(&mut healthy, image::ImageFormat::Png)
        .unwrap();
    for attack in pictures::all() {
        let began = Instant::now();
        let item = Item::of_document("attack.img", attack.media_type, attack.bytes);
        let out = run_stage(&mut stage, [item]);
        assert!(out.error.is_none(), "{}: {:?}", attack.name, out.error);
        let reason = out.dead.first().map_or("", |(_, reason)| reason);
        report(attack.name, began, out.sent.len(), reason);
        let item = Item::of_document("mill.png", "image/png", healthy.get_ref().clone());
        let out = run_stage(&mut stage, [item]);
        assert_eq!(
            (out.sent.len(), out.dead.len()),
            (1, 0),
            "after {}",
            attack.name
        );
    }
    drop(stage);
    assert_eq!(n_left(&mark), 0);
}

#[test]
fn each_is_small_and_has_a_name_of_its_own() {
    let attacks = documents();
    let mut names: Vec<_> = attacks.iter().map(|attack| attack.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), attacks.len());
    for attack in attacks {
        assert!(attack.bytes.len() < 16 << 20, "{}", attack.name);
    }
}

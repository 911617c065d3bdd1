//! Runs a pipeline inside a program.
//!
//! As a task beside its others: this one renders documents, shows how far it
//! is, and answers questions about the pages that it has so far. Run it with
//! `cargo run --example embedded`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use pagemill::stages::{ReadFilesConfig, RenderPdfConfig};
use pagemill::{Field, Item, ItemError, Pipeline, RunControl, filter, map, sink_fn, stage};

/// Words of each page, by the page's name: what the rest of the program looks at.
type Pages = Arc<Mutex<BTreeMap<String, String>>>;

fn main() -> ExitCode {
    // PDFs are rendered in processes of their own: this program, started again.
    // So this comes first, before there is a runtime.
    if let Some(code) = pagemill::run_worker_if_asked() {
        return code;
    }
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    match runtime.block_on(program()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn pipeline(pages: &Pages) -> Result<Pipeline, pagemill::ConfigError> {
    let files = ReadFilesConfig {
        include: ["paper.pdf", "slides.pdf", "scan.pdf"]
            .map(Into::into)
            .to_vec(),
        ..ReadFilesConfig::new("examples/documents")
    };
    let render = RenderPdfConfig {
        long_side_px: 512,
        ..RenderPdfConfig::default()
    };
    let lower = map(|item: Item| {
        let text = item
            .text()
            .ok_or_else(|| ItemError::missing("read", "text"))?;
        let lower = text.to_lowercase();
        Ok(item.with("text", lower))
    });
    let lower = lower.reads([Field::TEXT]).replaces([Field::TEXT]);
    let has_text = filter(|item| item.text().is_some_and(|text| !text.is_empty()));
    let pages = Arc::clone(pages);
    let publish = sink_fn(move |batch: Vec<Item>| {
        let rows = batch
            .iter()
            .filter_map(|item| Some((item.label().to_string(), item.text()?.to_owned())));
        pages.lock().expect("nobody panicked").extend(rows);
        async { Ok(()) }
    });
    Pipeline::builder("pages")
        .source("files", files)
        .node(stage("render", render).input("files").workers(2))
        .stage("has_text", has_text.reads([Field::TEXT]))
        .stage("lower", lower)
        .sink("publish", publish.reads([Field::TEXT]))
        .build(&pagemill::resources())
}

async fn program() -> Result<(), Box<dyn std::error::Error>> {
    let (pages, control) = (Pages::default(), RunControl::default());
    let pipeline = pipeline(&pages)?;
    let steered = control.clone();
    let mut run = tokio::spawn(async move { pipeline.run(&steered).await });
    let mut snapshots = Box::pin(control.snapshots(Duration::from_millis(100)));
    let report = loop {
        tokio::select! {
            ended = &mut run => break ended??,
            Some(now) = snapshots.next() => {
                // The other tasks of the program go on meanwhile.
                let n_pages = pages.lock().expect("nobody panicked").len();
                println!("{} of {} documents, {n_pages} pages so far", now.documents_done, now.documents_expected);
            }
        }
    };
    let pages = pages.lock().expect("nobody panicked");
    assert_eq!(report.totals.documents_done, 3);
    assert_eq!(report.totals.items_stored as usize, pages.len());
    assert!(pages.keys().any(|page| page.ends_with("paper.pdf#1")));
    println!("{}", report.to_text());
    Ok(())
}

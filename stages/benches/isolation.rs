//! Measures the cost of the sandbox. The same pages by `isolation` = cage, process and none.
//!
//! `make bench` prints ratios of one run, on all cores and on one: time and
//! processor time (of all processes) against `none`, which renders in the
//! program itself. The three take turns, document by document, so that whatever
//! else the machine does falls on all alike.
//!
//! ```sh
//! cargo bench -p pagemill-stages --bench isolation -- libpdfium.so FOLDER
//! ```

#![allow(clippy::print_stdout, missing_docs)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Resources, Stage, StageConfig};
use pagemill_stages::RenderPdfConfig;
use pagemill_stages::cage::{Isolation, run_worker_if_asked};
use pagemill_stages::render_pdf::{ProcessBudget, RenderSetup};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

const ROUNDS: usize = 15;

struct Contestant {
    isolation: Isolation,
    stage: Box<dyn Stage>,
    /// Of each round.
    elapsed: Vec<Duration>,
    n_ticks: u64,
    n_pages: usize,
}

fn main() -> ExitCode {
    if let Some(code) = run_worker_if_asked() {
        return code;
    }
    // Cargo adds an argument of its own.
    let mut arguments = std::env::args_os().skip(1).filter(|text| text != "--bench");
    let cache = std::env::var_os("PAGEMILL_CACHE").unwrap_or_default();
    let cached = PathBuf::from(cache).join("pdfium/libpdfium.so");
    let pdfium = arguments.next().map_or(cached, PathBuf::from);
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/documents");
    let folder = arguments.next().unwrap_or(samples.into());
    let mut documents = Vec::new();
    for entry in std::fs::read_dir(folder)
        .expect("a folder with PDFs")
        .flatten()
    {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "pdf") {
            documents.push(std::fs::read(path).expect("a file"));
        }
    }
    let setup = RenderSetup {
        pdfium: Some(pdfium).filter(|path| path.is_file()),
        ..RenderSetup::default()
    };
    let renderer = setup.pdfium.as_ref().map_or("hayro", |_| "pdfium");
    println!("{renderer}, all cores");
    measure(&documents, &setup);
    let mut core = CpuSet::new();
    core.set(sched_getcpu());
    match sched_setaffinity(None, &core) {
        Ok(()) => {
            println!("{renderer}, one core");
            // What is started from here on stays on it.
            measure(&documents, &setup);
        }
        Err(error) => println!("no figures for one core: {error}"),
    }
    ExitCode::SUCCESS
}

fn measure(documents: &[Vec<u8>], setup: &RenderSetup) {
    let resources = Resources::default();
    resources.insert(RenderPdfConfig::KIND, setup.clone());
    let mut contestants = [Isolation::Cage, Isolation::Process, Isolation::None].map(|isolation| {
        let config = RenderPdfConfig {
            isolation,
            // One process each: a large document does not borrow another's.
            budget: Some(ProcessBudget::default()),
            ..RenderPdfConfig::default()
        };
        Contestant {
            isolation,
            stage: config.build(&resources).expect("sound settings"),
            elapsed: Vec::new(),
            n_ticks: 0,
            n_pages: 0,
        }
    });
    // The first round warms up.
    for round in 0..=ROUNDS {
        let mut elapsed = [Duration::ZERO; 3];
        for (index, document) in documents.iter().enumerate() {
            for turn in 0..3 {
                let turn = (turn + round + index) % 3;
                let contestant = &mut contestants[turn];
                let item = Item::of_document("a.pdf", "application/pdf", document.clone());
                let (began, ticks) = (Instant::now(), ticks());
                let out = run_stage(&mut *contestant.stage, [item]);
                elapsed[turn] += began.elapsed();
                if round > 0 {
                    contestant.n_ticks += crate::ticks() - ticks;
                    contestant.n_pages += out.sent.len();
                }
            }
        }
        if round > 0 {
            for (contestant, elapsed) in contestants.iter_mut().zip(elapsed) {
                contestant.elapsed.push(elapsed);
            }
        }
    }
    let none = (median(&contestants[2].elapsed), contestants[2].n_ticks);
    for contestant in &contestants {
        let time = median(&contestant.elapsed);
        let n_pages = contestant.n_pages / ROUNDS;
        println!(
            "{:>7}: {n_pages} pages, median {:.1} ms a page; {:.3} of none; processor time {:.3} of none",
            format!("{:?}", contestant.isolation).to_lowercase(),
            time * 1000.0 / n_pages.max(1) as f64,
            time / none.0,
            contestant.n_ticks as f64 / none.1.max(1) as f64,
        );
    }
}

fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Processor time of this process and its children so far, in nanoseconds.
fn ticks() -> u64 {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_process = |folder: PathBuf| {
        let status = std::fs::read_to_string(folder.join("stat")).ok()?;
        let (_, fields) = status.rsplit_once(") ")?;
        let parent = fields.split(' ').nth(1)?;
        let is_ours = parent == own || folder.ends_with(&own);
        is_ours.then_some(())?;
        let tasks = std::fs::read_dir(folder.join("task")).ok()?.flatten();
        let times = tasks.filter_map(|task| {
            let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            times.split(' ').next()?.parse::<u64>().ok()
        });
        Some(times.sum::<u64>())
    };
    processes.filter_map(|entry| of_process(entry.path())).sum()
}

//! Measures whether memory stays flat when the sink is slower than the source, and when a branch
//! in front of a join drops most pages.
//!
//! - 20,000 pages of 1024 x 768 pixels (2.4 MB each, 47 GB in all) go from a
//!   source through a stage into a sink that takes ten times as long for each.
//!   `PAGES` in the environment sets another number.
//! - 3,000 such pages of one document go through two branches, of which one
//!   keeps one page in ten, into a sink that joins them. `JOINED_PAGES` sets
//!   another number.
//!
//! The peak of the process's resident memory must stay within the sum of the
//! edges' budgets and a constant, and the last quarter of a run must need no
//! more than the first.

#![allow(clippy::print_stdout, missing_docs, dead_code)]

mod kinds;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use kinds::Folder;
use pagemill::pipeline::{
    BufferPool, Delivery, Field, FieldError, Fields, Image, Item, Outlet, Resources, Sink,
    SinkConfig, SinkInput, Stage, StageConfig, StageError,
};
use serde::Deserialize;

const WIDTH_PX: u32 = 1024;
const HEIGHT_PX: u32 = 768;
/// What a page costs the stage that makes it; the sink takes ten times as long.
const SOURCE_TIME: Duration = Duration::from_micros(200);
/// Budget of each edge.
const EDGE_MB: u64 = 64;
/// Beyond the budgets: a page in each node's hands, a batch of the sink, idle
/// buffers, the queues themselves, and what the allocator keeps.
const CONSTANT_MB: u64 = 64;

/// Resident memory after each page that was stored, in KiB.
static RESIDENT: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// One document to `n` pages with pixels.
#[derive(Debug, Deserialize)]
struct PagesConfig {
    n: u32,
}

impl StageConfig for PagesConfig {
    const KIND: &'static str = "pages";
    const ABOUT: &'static str = "makes pages";
    const EXAMPLE: &'static str = "n = 1";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
            .adds([Field::IMAGE])
            .one_to_many()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Pages(self.n, BufferPool::new(8))))
    }
}

struct Pages(u32, BufferPool);

impl Stage for Pages {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            for page in 1..=self.0 {
                let since = Instant::now();
                let mut pixels = self.1.zeroed((WIDTH_PX * HEIGHT_PX * 3) as usize);
                pixels.fill(page as u8);
                let image = Image {
                    pixels,
                    width_px: WIDTH_PX,
                    height_px: HEIGHT_PX,
                    dpi: None,
                };
                kinds::compute(SOURCE_TIME.saturating_sub(since.elapsed()));
                outlet.send(item.child().with_page(page).with("image", image))?;
            }
        }
        Ok(())
    }
}

/// Takes ten times as long for a page as making it took.
#[derive(Debug, Deserialize)]
struct SlowConfig {}

impl SinkConfig for SlowConfig {
    const KIND: &'static str = "slow";
    const ABOUT: &'static str = "takes its time";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::reads([Field::IMAGE])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(Slow))
    }
}

struct Slow;

impl Sink for Slow {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            for Delivery { item, ack } in batch {
                tokio::time::sleep(SOURCE_TIME * 10).await;
                drop(item);
                ack.durable();
                let mut resident = RESIDENT.lock().unwrap_or_else(PoisonError::into_inner);
                resident.push(resident_kb());
            }
            Ok(())
        })
    }
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Passes one page in ten on.
#[derive(Debug, Deserialize)]
struct ThinConfig {}

impl StageConfig for ThinConfig {
    const KIND: &'static str = "thin";
    const ABOUT: &'static str = "keeps one page in ten";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::reads([Field::IMAGE])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Thin))
    }
}

struct Thin;

impl Stage for Thin {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let is_kept = |item: &Item| item.key().page.is_some_and(|page| page % 10 == 0);
        let mut kept = batch.into_iter().filter(is_kept);
        kept.try_for_each(|item| outlet.send(item))
    }
}

/// Runs the nodes behind the stage `pages`, which makes `n_pages`, and checks the
/// memory. `n_edges` of the edges hold pixels.
fn measure(what: &str, n_pages: u32, nodes: &str, n_edges: u64) {
    let folder = Folder::new();
    let edge = format!("edge = {{ max_items = 64, max_bytes = {} }}", EDGE_MB << 20);
    let toml = format!(
        "{}[p.source.items]\nkind = 'items'\n\
         [p.stage.pages]\nkind = 'pages'\ninput = 'items'\nn = {n_pages}\nEDGE\n{nodes}",
        folder.head(true)
    );
    let registry = kinds::registry()
        .stage::<PagesConfig>()
        .stage::<ThinConfig>()
        .sink::<SlowConfig>();
    let base_kb = resident_kb();
    let (elapsed, report) = kinds::run(&toml.replace("EDGE", &edge), &registry);
    assert_eq!(report.totals.items_stored, u64::from(n_pages));

    let resident = std::mem::take(&mut *RESIDENT.lock().unwrap_or_else(PoisonError::into_inner));
    let peak_mb = |part: &[u64]| {
        let peak_kb = part.iter().max().copied().unwrap_or(0);
        peak_kb.saturating_sub(base_kb) >> 10
    };
    let quarter = resident.len() / 4;
    let (first, last) = (&resident[..quarter], &resident[resident.len() - quarter..]);
    let allowed_mb = n_edges * EDGE_MB + CONSTANT_MB;
    let (peak, first, last) = (peak_mb(&resident), peak_mb(first), peak_mb(last));
    println!(
        "{n_pages} pages in {:.0} s, {what}: peak {peak} MiB over the {} MiB before it; \
         {n_edges} edges of {EDGE_MB} MiB and {CONSTANT_MB} MiB allow {allowed_mb}",
        elapsed.as_secs_f64(),
        base_kb >> 10,
    );
    let held = report.totals.nodes.iter().map(|node| node.most_held_items);
    println!(
        "peak in the first quarter {first} MiB, in the last {last} MiB; at most {} items held by a join",
        held.max().unwrap_or(0)
    );
    assert!(peak <= allowed_mb, "memory grew beyond the budgets");
    // A short run has hardly begun in its first quarter.
    let more_mb = if kinds::is_short() { 32 } else { 4 };
    assert!(last <= first + more_mb, "memory grew while the run went on");
}

fn pages(variable: &str, otherwise: u32) -> u32 {
    let pages = std::env::var(variable).ok();
    let pages = pages.and_then(|pages| pages.parse().ok());
    let part = if kinds::is_short() { 10 } else { 1 };
    pages.unwrap_or(otherwise / part)
}

fn main() {
    // The edge into `pages` holds one document of a word.
    measure(
        "the sink ten times slower than the source",
        pages("PAGES", 20_000),
        "[p.stage.pass]\nkind = 'work'\ninput = 'pages'\nwork_us = 0\nbatch_of = 1\nEDGE\n\
         [p.sink.end]\nkind = 'slow'\ninput = 'pass'\nEDGE\n",
        2,
    );
    measure(
        "one branch of the join keeps one page in ten",
        pages("JOINED_PAGES", 3_000),
        "[p.stage.pass]\nkind = 'work'\ninput = 'pages'\nwork_us = 0\nbatch_of = 1\nEDGE\n\
         [p.stage.thin]\nkind = 'thin'\ninput = 'pages'\nEDGE\n\
         [p.sink.end]\nkind = 'slow'\njoin = ['pass', 'thin']\nunmatched = 'pass'\nEDGE\n",
        4,
    );
}

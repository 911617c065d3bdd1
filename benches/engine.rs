//! What does an edge cost an item, and what does overlapping gain?
//!
//! `make bench` prints both. The first is the time that five more stages which
//! only pass items on add to a run, per item and edge, at batch 1 and at batch
//! 64. The second runs two stages of known work side by side and one after the
//! other.

#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pagemill::pipeline::{
    BatchPolicy, Delivery, Field, FieldError, Fields, Item, Outlet, Registry, Resources, Sink,
    SinkConfig, SinkInput, Source, SourceConfig, SourceOutlet, Stage, StageConfig, StageError,
};
use pagemill::{ConfigFile, RunControl};
use serde::Deserialize;

/// Items of one document, so that the document's own cost does not count.
#[derive(Deserialize)]
struct ItemsConfig {}

impl SourceConfig for ItemsConfig {
    const KIND: &'static str = "items";
    const ABOUT: &'static str = "sends one document";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Items))
    }
}

struct Items;

impl Source for Items {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async move { outlet.send(Item::of_text("a.txt", "text")).await })
    }
}

/// One item to `n`.
#[derive(Deserialize)]
struct SpreadConfig {
    n: u32,
}

impl StageConfig for SpreadConfig {
    const KIND: &'static str = "spread";
    const ABOUT: &'static str = "makes many of one";
    const EXAMPLE: &'static str = "n = 1";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT]).one_to_many()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Spread(self.n)))
    }
}

struct Spread(u32);

impl Stage for Spread {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            for page in 1..=self.0 {
                outlet.send(item.clone().with_page(page))?;
            }
        }
        Ok(())
    }
}

/// Passes items on after so much computing.
#[derive(Deserialize)]
struct WorkConfig {
    work_us: u64,
    batch_of: usize,
}

impl StageConfig for WorkConfig {
    const KIND: &'static str = "work";
    const ABOUT: &'static str = "computes for a while";
    const EXAMPLE: &'static str = "work_us = 0\nbatch_of = 1";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
    }
    fn batch(&self) -> BatchPolicy {
        BatchPolicy::of_items(self.batch_of, 0)
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Work(Duration::from_micros(self.work_us))))
    }
}

struct Work(Duration);

impl Stage for Work {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            compute(self.0);
            outlet.send(item)?;
        }
        Ok(())
    }
}

fn compute(time: Duration) {
    let since = Instant::now();
    let mut sum = 0_u64;
    while !time.is_zero() && since.elapsed() < time {
        sum = (0..100).fold(sum, |sum, n| {
            black_box(sum.wrapping_mul(31).wrapping_add(n))
        });
    }
    black_box(sum);
}

/// Forgets what it stores.
#[derive(Deserialize)]
struct NowhereConfig {}

impl SinkConfig for NowhereConfig {
    const KIND: &'static str = "nowhere";
    const ABOUT: &'static str = "forgets";
    const EXAMPLE: &'static str = "";
    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(Nowhere))
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        for delivery in batch {
            delivery.ack.durable();
        }
        Box::pin(async { Ok(()) })
    }
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Runs `n_items` through `n_stages` stages of `work_us` each.
fn run(n_items: u32, n_stages: usize, work_us: u64, batch_of: usize) -> Duration {
    let folder = std::env::temp_dir().join(format!("pagemill-bench-{}", std::process::id()));
    let mut toml = format!(
        "[p]\ndead_letters = '{}'\n[p.source.items]\nkind = 'items'\n[p.stage.s0]\n\
         kind = 'spread'\ninput = 'items'\nn = {n_items}\n",
        folder.display()
    );
    for stage in 1..=n_stages {
        toml += &format!(
            "[p.stage.s{stage}]\nkind = 'work'\ninput = 's{}'\nwork_us = {work_us}\n\
             batch_of = {batch_of}\nedge = {{ max_items = 1024 }}\n",
            stage - 1
        );
    }
    toml += &format!("[p.sink.end]\nkind = 'nowhere'\ninput = 's{n_stages}'\n");
    let registry = Registry::new()
        .source::<ItemsConfig>()
        .stage::<SpreadConfig>()
        .stage::<WorkConfig>()
        .sink::<NowhereConfig>();
    let file = ConfigFile::parse(Path::new("bench"), &toml, &[], &registry, &|_| None)
        .expect("a sound configuration");
    let pipeline = file
        .build(&file.pipelines()[0], &Resources::default())
        .expect("nothing to refuse");
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let since = Instant::now();
    let report = runtime
        .block_on(pipeline.run(&RunControl::default()))
        .expect("nothing fails");
    let elapsed = since.elapsed();
    assert_eq!(report.totals.items_stored, u64::from(n_items));
    let _ = std::fs::remove_dir_all(folder);
    elapsed
}

/// The middle of five.
fn median(mut time: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..5).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    times[2]
}

/// Items of a run that measures an edge.
const N: u32 = 100_000;
/// Stages that are added.
const MORE: usize = 5;
/// Work of a stage on an item, and items, of the run that measures overlap.
const WORK_US: u64 = 500;
const PAGES: u32 = 1000;

fn main() {
    println!("an edge and a stage that only passes items on, {N} items, median of 5:");
    for batch_of in [1, 64] {
        let per_item = median(|| {
            let (few, many) = (run(N, 1, 0, batch_of), run(N, 1 + MORE, 0, batch_of));
            (many.as_secs_f64() - few.as_secs_f64()) * 1e6 / f64::from(N) / MORE as f64
        });
        println!("  batch {batch_of:>3}: {per_item:.2} us an item and edge");
    }
    let ratio = median(|| {
        let one_after_another = f64::from(PAGES) * 2.0 * WORK_US as f64 / 1e6;
        one_after_another / run(PAGES, 2, WORK_US, 1).as_secs_f64()
    });
    println!(
        "two stages of {WORK_US} us an item on two cores: overlapped {ratio:.2} times as fast as \
         their work one after another (2.00 is the most)"
    );
}

//! Synthetic kinds that the benchmarks of the engine are made of.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pagemill::pipeline::{
    BatchPolicy, Delivery, Field, FieldError, Fields, Item, Outlet, Registry, Report, Resources,
    Sink, SinkConfig, SinkInput, Source, SourceConfig, SourceOutlet, Stage, StageConfig,
    StageError,
};
use pagemill::{ConfigFile, RunControl};
use serde::Deserialize;

/// Whether the benchmark is to do a part of its work, and to fail where a figure is far
/// from what it should be: `PAGEMILL_BENCH=short`.
pub fn is_short() -> bool {
    std::env::var("PAGEMILL_BENCH").is_ok_and(|value| value == "short")
}

/// Fails where a short run has more than `most` of something. The limit is wide: it
/// finds what has become many times as slow on any machine.
pub fn limit(what: &str, found: f64, most: f64) {
    assert!(
        !is_short() || found <= most,
        "{found:.2} {what}, and not {most}"
    );
}

/// So many documents of a word; one, so that a document's own cost does not count.
#[derive(Debug, Deserialize)]
struct ItemsConfig {
    #[serde(default = "one")]
    n_documents: usize,
}

fn one() -> usize {
    1
}

impl SourceConfig for ItemsConfig {
    const KIND: &'static str = "items";
    const ABOUT: &'static str = "sends one document";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Items(self.n_documents)))
    }
}

struct Items(usize);

impl Source for Items {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async move {
            for number in 0..self.0 {
                outlet
                    .send(Item::of_text(format!("{number}.txt"), "text"))
                    .await?;
            }
            Ok(())
        })
    }
}

/// One item to `n`.
#[derive(Debug, Deserialize)]
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
#[derive(Debug, Deserialize)]
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

pub fn compute(time: Duration) {
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
#[derive(Debug, Deserialize)]
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

/// Where a run keeps its files; removed with it.
pub struct Folder(std::path::PathBuf);

impl Folder {
    pub fn new() -> Self {
        Self(std::env::temp_dir().join(format!("pagemill-bench-{}", std::process::id())))
    }

    /// The head of a pipeline `p` that keeps its files here.
    pub fn head(&self, ledger: bool) -> String {
        let place = self.0.display();
        let ledger = if ledger {
            format!("'{place}/ledger'")
        } else {
            "false".to_owned()
        };
        format!("[p]\ndead_letters = '{place}/dead'\nledger = {ledger}\n")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The kinds of this file.
pub fn registry() -> Registry {
    Registry::new()
        .source::<ItemsConfig>()
        .stage::<SpreadConfig>()
        .stage::<WorkConfig>()
        .sink::<NowhereConfig>()
}

/// Runs the pipeline that `toml` describes; how long it took, and its report.
pub fn run(toml: &str, registry: &Registry) -> (Duration, Report) {
    let file = ConfigFile::parse(Path::new("bench"), toml, &[], registry, &|_| None)
        .unwrap_or_else(|error| panic!("{error}"));
    let pipeline = file
        .build(&file.pipelines()[0], &Resources::default())
        .expect("nothing to refuse");
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let since = Instant::now();
    let report = runtime
        .block_on(pipeline.run(&RunControl::default()))
        .expect("nothing fails");
    (since.elapsed(), report)
}

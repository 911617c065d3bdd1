//! For the tests of sources: a source with nothing behind it but a sink that
//! keeps what it is given.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use pagemill_pipeline::{
    ConfigFile, DeadLetter, Delivery, Ended, Fields, Item, Registry, Report, Resources, RunControl,
    RunError, RunOptions, Sink, SinkConfig, SinkInput, SourceConfig, StageError, read_dead_letters,
};
use pagemill_pipeline::{FieldError, FieldSet};
use serde::Deserialize;
use tokio::sync::Notify;

/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A folder that a source is run in, again and again.
pub(crate) struct Runs {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) options: RunOptions,
    pub(crate) control: RunControl,
    pub(crate) kept: Arc<Kept>,
}

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) items: Vec<Item>,
    /// URIs of documents that were removed.
    pub(crate) removed: Vec<String>,
    pub(crate) letters: Vec<DeadLetter>,
    pub(crate) report: Report,
}

impl Runs {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            options: RunOptions::default(),
            control: RunControl::default(),
            kept: Arc::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a file below `documents`, whole at once.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let (path, aside) = (self.path("documents").join(name), self.path("aside"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&aside, bytes).unwrap();
        std::fs::rename(aside, path).unwrap();
    }

    /// What comes after `documents/` in a URI.
    pub(crate) fn name_of<'a>(&self, uri: &'a str) -> &'a str {
        let documents = format!("{}/", self.path("documents").display());
        uri.strip_prefix(&documents).unwrap_or(uri)
    }

    /// Waits until the run has gone on for so long.
    pub(crate) async fn until(&self, elapsed_s: f64) {
        let is_early = || {
            let now = self.control.snapshot();
            now.is_none_or(|now| now.elapsed_s < elapsed_s)
        };
        while is_early() {
            tokio::task::yield_now().await;
        }
    }

    /// Runs a source of this kind with these settings to its end.
    pub(crate) async fn run<C: SourceConfig>(&self, settings: &str) -> Ran {
        let (ran, error) = self.run_to_end::<C>(settings).await;
        assert!(error.is_none(), "{error:?}");
        ran
    }

    /// The same of a run that may fail.
    pub(crate) async fn run_to_end<C: SourceConfig>(
        &self,
        settings: &str,
    ) -> (Ran, Option<RunError>) {
        let letters = self.path("letters");
        let toml = format!(
            "[p]\ndead_letters = {letters:?}\nledger = {:?}\n\
             [p.source.it]\nkind = \"{}\"\n{settings}\n\
             [p.sink.keep]\nkind = \"keep\"\ninput = \"it\"\n",
            self.path("ledger"),
            C::KIND,
        );
        let registry = Registry::new().source::<C>().sink::<KeepConfig>();
        let file = ConfigFile::parse(Path::new("t.toml"), &toml, &[], &registry, &|_| None);
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let resources = Resources::default();
        resources.insert("", Arc::clone(&self.kept));
        let pipeline = file
            .build(file.pipeline(None).unwrap(), &resources)
            .unwrap();
        let pipeline = pipeline.with_options(self.options.clone());
        let report = tokio::time::timeout(PATIENCE, pipeline.run(&self.control)).await;
        let (report, error) = match report.expect("the run ends") {
            Ok(report) => (report, None),
            Err(mut error) => (*error.report.take().expect("it has begun"), Some(error)),
        };
        let (items, removed) = self.kept.take();
        let ran = Ran {
            items,
            removed,
            letters: read_dead_letters(&letters).unwrap(),
            report,
        };
        (ran, error)
    }
}

impl Ran {
    pub(crate) fn uris(&self) -> Vec<&str> {
        self.items.iter().map(|item| &*item.origin().uri).collect()
    }
}

/// What the sink was given.
#[derive(Default)]
pub(crate) struct Kept {
    items: Mutex<Vec<Item>>,
    removed: Mutex<Vec<String>>,
    /// What it was told that it would get.
    pub(crate) fields: Mutex<FieldSet>,
    came: Notify,
}

impl Kept {
    fn take(&self) -> (Vec<Item>, Vec<String>) {
        let lock = PoisonError::into_inner;
        let items = std::mem::take(&mut *self.items.lock().unwrap_or_else(lock));
        let lock = PoisonError::into_inner;
        let removed = std::mem::take(&mut *self.removed.lock().unwrap_or_else(lock));
        (items, removed)
    }

    /// Waits until so many documents were stored and so many removed; takes them.
    pub(crate) async fn wait_for(
        &self,
        n_stored: usize,
        n_removed: usize,
    ) -> (Vec<Item>, Vec<String>) {
        let enough = async {
            loop {
                let came = self.came.notified();
                let n_items = self.items.lock().unwrap().len();
                if n_items >= n_stored && self.removed.lock().unwrap().len() >= n_removed {
                    return self.take();
                }
                came.await;
            }
        };
        let taken = tokio::time::timeout(PATIENCE, enough).await;
        taken.expect("what is waited for comes")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepConfig {}

struct Keep(Arc<Kept>);

impl SinkConfig for KeepConfig {
    const KIND: &'static str = "keep";
    const ABOUT: &'static str = "keeps items";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::stores_all().uses([pagemill_pipeline::Field::DOCUMENT])
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        let kept = resources.get::<Arc<Kept>>("").expect("put in by `Runs`");
        Ok(Box::new(Keep(Arc::clone(&kept))))
    }
}

impl Sink for Keep {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        *self.0.fields.lock().unwrap() = input.fields.clone();
        Box::pin(async { Ok(()) })
    }
    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async {
            for Delivery { item, ack } in batch {
                self.0.items.lock().unwrap().push(item);
                ack.durable();
            }
            self.0.came.notify_one();
            Ok(())
        })
    }
    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            if ended.document.is_removal() {
                let uri = ended.document.origin().uri.to_string();
                self.0.removed.lock().unwrap().push(uri);
            }
            ended.ack.durable();
            self.0.came.notify_one();
            Ok(())
        })
    }
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

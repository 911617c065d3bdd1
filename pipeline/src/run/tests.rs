//! The engine as a whole: kinds in memory, wired from TOML.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use serde::Deserialize;

use crate::{
    BatchPolicy, ConfigFile, Delivery, Ended, Field, FieldError, Fields, Item, ItemError, Outlet,
    Registry, Report, Resources, RunControl, RunError, Sink, SinkConfig, SinkInput, Source,
    SourceConfig, SourceOutlet, Stage, StageConfig, StageError, StopReason,
};

/// What the sinks of a test saw, by sink.
#[derive(Default)]
struct Seen {
    stored: Mutex<Vec<String>>,
    ended: Mutex<Vec<String>>,
}

impl Seen {
    fn add(list: &Mutex<Vec<String>>, what: String) {
        list.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
    }

    fn counts(list: &Mutex<Vec<String>>) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for what in list.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *counts.entry(what.clone()).or_default() += 1;
        }
        counts
    }
}

/// Sends `n` documents of text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CountConfig {
    n: usize,
    /// Goes on until it is asked to stop.
    #[serde(default)]
    endless: bool,
}

impl SourceConfig for CountConfig {
    const KIND: &'static str = "count";
    const ABOUT: &'static str = "sends documents";
    const EXAMPLE: &'static str = "n = 3";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Count {
            n: if self.endless { usize::MAX } else { self.n },
        }))
    }
}

struct Count {
    n: usize,
}

impl Source for Count {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async move {
            for number in 0..self.n {
                if outlet.is_draining() {
                    break;
                }
                outlet
                    .send(Item::of_text(format!("{number}.txt"), "text"))
                    .await?;
            }
            Ok(())
        })
    }
}

/// Splits each item into `parts`, or fails at documents whose URI says so.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitConfig {
    parts: u32,
    #[serde(default)]
    panic_at: Option<String>,
    #[serde(default)]
    dead_at: Option<String>,
    #[serde(default)]
    fatal_at: Option<String>,
    #[serde(default)]
    batch_of: Option<usize>,
}

impl StageConfig for SplitConfig {
    const KIND: &'static str = "split";
    const ABOUT: &'static str = "splits items";
    const EXAMPLE: &'static str = "parts = 2";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT]).one_to_many()
    }
    fn batch(&self) -> BatchPolicy {
        BatchPolicy::of_items(self.batch_of.unwrap_or(1), 0)
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        if self.parts > 1000 {
            return Err(FieldError::new("parts", "must be at most 1000", "use 10"));
        }
        Ok(Box::new(Split {
            parts: self.parts,
            panic_at: self.panic_at.clone(),
            dead_at: self.dead_at.clone(),
            fatal_at: self.fatal_at.clone(),
        }))
    }
}

struct Split {
    parts: u32,
    panic_at: Option<String>,
    dead_at: Option<String>,
    fatal_at: Option<String>,
}

impl Stage for Split {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            let is_at = |uri: &Option<String>| uri.as_deref() == Some(&*item.origin().uri);
            assert!(!is_at(&self.panic_at), "poison");
            if is_at(&self.fatal_at) {
                return Err(StageError::fatal("the disk is gone", "plug it in"));
            }
            if is_at(&self.dead_at) {
                outlet.dead_letter(item, ItemError::new("split", "it is odd"));
                continue;
            }
            if self.parts == 1 {
                outlet.send(item)?;
                continue;
            }
            for part in 1..=self.parts {
                outlet.send(item.clone().with_page(1).with_part(part))?;
            }
        }
        Ok(())
    }
}

/// Remembers what it stored, acks at the document's end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryConfig {
    #[serde(default)]
    broken: bool,
}

impl SinkConfig for MemoryConfig {
    const KIND: &'static str = "memory";
    const ABOUT: &'static str = "remembers";
    const EXAMPLE: &'static str = "";
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        let seen = resources.get::<Arc<Seen>>("").expect("every test sets it");
        Ok(Box::new(Memory {
            seen: Arc::clone(&seen),
            held: Vec::new(),
            broken: self.broken,
        }))
    }
}

struct Memory {
    seen: Arc<Seen>,
    held: Vec<Delivery>,
    broken: bool,
}

impl Sink for Memory {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        self.held.extend(batch);
        let broken = self.broken;
        Box::pin(async move {
            if broken {
                Err(StageError::fatal("the table is gone", "make it"))
            } else {
                Ok(())
            }
        })
    }

    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        let Ended { document, ack, .. } = ended;
        ack.durable();
        Seen::add(&self.seen.ended, document.origin().uri.to_string());
        let id = document.origin().id;
        let (of_it, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|d| d.item.key().document == id);
        self.held = held;
        let of_it: Vec<Delivery> = of_it;
        for delivery in of_it {
            if !document.has_failed() {
                Seen::add(&self.seen.stored, delivery.item.label().to_string());
                delivery.ack.durable();
            }
        }
        Box::pin(async { Ok(()) })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        assert!(
            self.held.is_empty(),
            "every document ended before the sink finished"
        );
        Box::pin(async { Ok(()) })
    }
}

fn registry() -> Registry {
    Registry::new()
        .source::<CountConfig>()
        .stage::<SplitConfig>()
        .sink::<MemoryConfig>()
}

struct Ran {
    ended: Result<Report, RunError>,
    seen: Arc<Seen>,
    folder: tempfile::TempDir,
}

impl Ran {
    fn report(&self) -> &Report {
        self.ended.as_ref().expect("the run ended well")
    }

    /// Everything stored, each exactly `times` times.
    fn assert_stored_each(&self, n: usize, times: usize) {
        let counts = Seen::counts(&self.seen.stored);
        assert_eq!(counts.len(), n);
        assert!(counts.values().all(|count| *count == times), "{counts:?}");
    }
}

fn run_with(control: &RunControl, toml: &str) -> Ran {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().display();
    let places = format!("dead_letters = '{place}'\nledger = '{place}/ledger'\n");
    let toml = toml.replacen("[p]\n", &format!("[p]\n{places}"), 1);
    let file = ConfigFile::parse(Path::new("test.toml"), &toml, &[], &registry(), &|_| None)
        .expect("a sound configuration");
    let (resources, seen) = (Resources::default(), Arc::<Seen>::default());
    resources.insert("", Arc::clone(&seen));
    let pipeline = file
        .build(&file.pipelines()[0], &resources)
        .expect("it builds");
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let ended = runtime.block_on(pipeline.run(control));
    Ran {
        ended,
        seen,
        folder,
    }
}

fn run(toml: &str) -> Ran {
    run_with(&RunControl::default(), toml)
}

const LINE: &str = "[p]\n[p.source.a]\nkind = 'count'\nn = 40\n[p.stage.b]\nkind = 'split'\n\
                    input = 'a'\nparts = 3\nworkers = 2\n";

#[test]
fn every_item_is_stored_once_and_every_document_ends_once() {
    let ran = run(&format!("{LINE}[p.sink.c]\nkind = 'memory'\ninput = 'b'\n"));
    ran.assert_stored_each(120, 1);
    assert_eq!(Seen::counts(&ran.seen.ended).len(), 40);
    let totals = &ran.report().totals;
    assert_eq!(
        (
            totals.documents_done,
            totals.items_stored,
            totals.dead_letters
        ),
        (40, 120, 0)
    );
    assert_eq!(ran.report().stopped, StopReason::Finished);
    let b = totals
        .nodes
        .iter()
        .find(|node| node.name == "b")
        .expect("it ran");
    assert_eq!((b.items, b.items_out, b.workers), (40, 120, 2));
}

#[test]
fn edges_of_one_item_and_one_byte_lose_nothing() {
    let ran = run(&format!(
        "{LINE}edge = {{ max_items = 1, max_bytes = 1 }}\n[p.sink.c]\nkind = 'memory'\ninput = 'b'\n\
         edge = {{ max_items = 1, max_bytes = 1 }}\n"
    ));
    ran.assert_stored_each(120, 1);
}

#[test]
fn a_fan_out_stores_every_item_in_every_sink() {
    let ran = run(&format!(
        "{LINE}[p.sink.c]\nkind = 'memory'\ninput = 'b'\n[p.sink.d]\nkind = 'memory'\ninput = 'b'\n"
    ));
    ran.assert_stored_each(120, 2);
    assert!(
        Seen::counts(&ran.seen.ended)
            .values()
            .all(|count| *count == 2)
    );
    assert_eq!(ran.report().totals.documents_done, 40);
}

#[test]
fn a_union_of_two_branches_waits_for_both() {
    let ran = run(&format!(
        "{LINE}[p.stage.e]\nkind = 'split'\ninput = 'a'\nparts = 1\n\
         edge = {{ max_items = 1, max_bytes = 1 }}\n\
         [p.sink.c]\nkind = 'memory'\ninput = ['b', 'e']\n"
    ));
    assert_eq!(Seen::counts(&ran.seen.stored).len(), 160);
    assert_eq!(Seen::counts(&ran.seen.ended).len(), 40);
}

#[test]
fn a_bad_item_is_set_aside_with_its_reason_and_the_rest_goes_on() {
    let ran = run(
        "[p]\n[p.source.a]\nkind = 'count'\nn = 5\n[p.stage.b]\nkind = 'split'\ninput = 'a'\n\
         parts = 1\ndead_at = '3.txt'\n[p.sink.c]\nkind = 'memory'\ninput = 'b'\n",
    );
    ran.assert_stored_each(4, 1);
    let totals = &ran.report().totals;
    assert_eq!((totals.documents_done, totals.documents_set_aside), (4, 1));
    let letters = crate::read_dead_letters(ran.folder.path()).expect("readable");
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].error, "cannot split `3.txt`: it is odd");
    assert_eq!(
        (letters[0].node.as_str(), letters[0].document.as_str()),
        ("b", "3.txt")
    );
}

#[test]
fn a_panic_costs_the_item_that_caused_it_not_its_batch() {
    let ran = run(
        "[p]\n[p.source.a]\nkind = 'count'\nn = 50\n[p.stage.b]\nkind = 'split'\ninput = 'a'\n\
         parts = 1\npanic_at = '7.txt'\nbatch = { max_items = 8, max_wait_ms = 5 }\n\
         [p.sink.c]\nkind = 'memory'\ninput = 'b'\n",
    );
    ran.assert_stored_each(49, 1);
    let letters = crate::read_dead_letters(ran.folder.path()).expect("readable");
    assert_eq!(letters.len(), 1);
    assert_eq!(
        letters[0].error,
        "cannot handle `7.txt`: the stage panicked: poison"
    );
}

#[test]
fn what_the_pipeline_cannot_survive_stops_the_run_and_says_what_to_do() {
    let ran = run(
        "[p]\n[p.source.a]\nkind = 'count'\nn = 50\n[p.stage.b]\nkind = 'split'\ninput = 'a'\n\
         parts = 2\nfatal_at = '7.txt'\n[p.sink.c]\nkind = 'memory'\ninput = 'b'\n",
    );
    let error = ran.ended.as_ref().expect_err("the disk is gone");
    assert_eq!(
        error.to_string(),
        "pipeline `p` stopped at `b`: the disk is gone"
    );
    assert_eq!(error.error.hint(), Some("plug it in"));
    let counts = Seen::counts(&ran.seen.stored);
    assert!(
        !counts.keys().any(|label| label.starts_with("7.txt")),
        "{counts:?}"
    );
}

#[test]
fn a_broken_sink_stops_the_run_although_its_edge_is_full() {
    let ran = run(&format!(
        "{LINE}edge = {{ max_items = 1, max_bytes = 1 }}\n\
         [p.sink.c]\nkind = 'memory'\ninput = 'b'\nbroken = true\n"
    ));
    let error = ran.ended.as_ref().expect_err("the table is gone");
    assert_eq!(
        error.to_string(),
        "pipeline `p` stopped at `c`: the table is gone"
    );
    let report = error.report.as_ref().expect("it had begun");
    assert_eq!(
        (report.totals.items_stored, report.totals.documents_done),
        (0, 0)
    );
}

#[test]
fn draining_stores_whole_documents_and_cancelling_ends_at_once() {
    let endless = "[p]\n[p.source.a]\nkind = 'count'\nn = 0\nendless = true\n[p.stage.b]\n\
                   kind = 'split'\ninput = 'a'\nparts = 3\n[p.sink.c]\nkind = 'memory'\ninput = 'b'\n";
    for drains in [true, false] {
        let control = RunControl::default();
        let ran = std::thread::scope(|scope| {
            let running = scope.spawn(|| run_with(&control, endless));
            let has_stored = || control.snapshot().is_some_and(|now| now.items_stored > 0);
            while !has_stored() {
                std::thread::yield_now();
            }
            if drains {
                control.drain();
            } else {
                control.cancel();
            }
            running.join().expect("no panic")
        });
        let totals = &ran.report().totals;
        if drains {
            assert_eq!(ran.report().stopped, StopReason::Drained);
            assert_eq!(totals.items_stored, totals.documents_done * 3);
            assert_eq!(
                Seen::counts(&ran.seen.stored).len() as u64,
                totals.items_stored
            );
        } else {
            assert_eq!(ran.report().stopped, StopReason::Cancelled);
        }
    }
}

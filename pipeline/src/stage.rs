//! What a source, a stage and a sink are: the three traits that every kind implements.

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::batch::BatchPolicy;
use crate::document::{Ack, Document};
use crate::error::{FieldError, ItemError, StageError};
use crate::fields::{FieldSet, Fields};
use crate::item::Item;
use crate::key::DocumentId;
use crate::ledger::Stager;
use crate::meter::{Meters, ModelMeter};
use crate::metrics::SinkMeter;
use crate::source_outlet::SourceOutlet;

/// One step of a pipeline. It owns no queue, thread or clock: the runner calls
/// it, so a test needs only a value and an [`Outlet`].
///
/// The runner builds as many as `workers` says and gives each a thread of its
/// own; a stage never sees another one's items.
pub trait Stage: Send {
    /// Runs once, on the stage's own thread, before the first batch: load the
    /// model, start the worker process. It overlaps with other stages' work.
    ///
    /// # Errors
    /// What the stage cannot work without.
    fn start(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    /// Handles one batch. `outlet.send` blocks while the edge is full; a stage
    /// sees nothing else of backpressure.
    ///
    /// # Errors
    /// Only what the pipeline cannot survive. One bad item goes to
    /// [`Outlet::dead_letter`], and the batch goes on.
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError>;

    /// Runs once, after the last batch, for stages that hold items back.
    ///
    /// # Errors
    /// As [`Stage::process`].
    fn finish(&mut self, _outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        Ok(())
    }

    /// How many tokens the item will cost once padded, for `batch.max_tokens`.
    /// The default counts four bytes of text as a token.
    fn n_tokens(&self, item: &Item) -> usize {
        item.text().map_or(1, |text| text.len().div_ceil(4).max(1))
    }

    /// The number of pages that [`Stage::process`] would make of a document,
    /// without making any, for [`Pipeline::dry_run`](crate::Pipeline::dry_run).
    /// It is the number that the stage announces by [`Outlet::expect_pages`].
    /// [`Stage::start`] has not been called.
    ///
    /// # Errors
    /// As [`Stage::process`].
    fn count_pages(&mut self, _document: &Item) -> Result<PageCount, StageError> {
        Ok(PageCount::Unknown)
    }
}

/// What a stage makes of a document; see [`Stage::count_pages`].
#[derive(Debug)]
pub enum PageCount {
    /// The stage makes no pages of this document: it passes on.
    Unknown,
    /// So many pages.
    Pages(u32),
    /// The document would be set aside as a whole, for this reason.
    Unreadable(ItemError),
}

/// Where a stage puts what it made.
pub struct Outlet<'a> {
    port: &'a mut dyn OutletPort,
}

/// What is behind an [`Outlet`]: the runner's edges, or a test's vectors.
pub(crate) trait OutletPort {
    fn send(&mut self, item: Item) -> Result<(), StageError>;
    fn dead_letter(&mut self, item: Item, error: ItemError);
    fn stored_pages(&self, _document: &Item) -> BTreeSet<u32> {
        BTreeSet::new()
    }
    fn expect_pages(&mut self, _document: &Item, _n_pages: u32) {}
    fn leaves_unfinished(&mut self, _document: &Item) -> bool {
        false
    }
    fn is_cancelled(&self) -> bool;
}

impl<'a> Outlet<'a> {
    pub(crate) fn new(port: &'a mut dyn OutletPort) -> Self {
        Self { port }
    }

    /// Sends an item on. Blocks while the edge is full.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] when the run stops; pass it on with `?`.
    pub fn send(&mut self, item: Item) -> Result<(), StageError> {
        self.port.send(item)
    }

    /// Changes each item of a batch and sends it on; one that cannot be changed
    /// is set aside with the reason.
    ///
    /// # Errors
    /// As [`Outlet::send`].
    pub fn each(
        &mut self,
        batch: Vec<Item>,
        mut change: impl FnMut(&mut Item) -> Result<(), ItemError>,
    ) -> Result<(), StageError> {
        for mut item in batch {
            match change(&mut item) {
                Ok(()) => self.send(item)?,
                Err(error) => self.dead_letter(item, error),
            }
        }
        Ok(())
    }

    /// Sets one item aside with the reason; the run goes on.
    pub fn dead_letter(&mut self, item: Item, error: ItemError) {
        self.port.dead_letter(item, error);
    }

    /// The pages of `document` (from 1) that an earlier run has stored already,
    /// as this stage makes them, so that making them can be spared. What is
    /// sent nevertheless is passed over.
    pub fn stored_pages(&self, document: &Item) -> BTreeSet<u32> {
        self.port.stored_pages(document)
    }

    /// Announces that `n_pages` pages are made of `document`, those that are
    /// stored already among them. Call it before the first is sent: progress and
    /// the time that is left are counted in pages.
    pub fn expect_pages(&mut self, document: &Item, n_pages: u32) {
        self.port.expect_pages(document, n_pages);
    }

    /// Whether the rest of the pages of `document` is left to the next run, because
    /// this run drains and the pages sent so far are kept. A stage that makes pages
    /// asks before each page: after `true` it sends nothing more of the document
    /// and returns `Ok`. The document's old rows stay until a run finishes it.
    pub fn leaves_unfinished(&mut self, document: &Item) -> bool {
        self.port.leaves_unfinished(document)
    }

    /// Whether the run is stopping now: a stage with a long loop looks here.
    pub fn is_cancelled(&self) -> bool {
        self.port.is_cancelled()
    }
}

/// Brings items into the graph. It runs on tokio, so that it may wait for a
/// network, a folder or a channel.
pub trait Source: Send {
    /// Sends items until there are no more, or until
    /// [`SourceOutlet::is_draining`].
    ///
    /// # Errors
    /// Only what the pipeline cannot survive; a file that cannot be read goes
    /// to [`SourceOutlet::dead_letter`].
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>>;

    /// Whether the next run sends a document again that this run left unfinished, as
    /// a source does that lists a folder. A run that drains stops inside such
    /// documents; it finishes those of other sources.
    fn sends_again(&self) -> bool {
        false
    }
}

/// An item that reached a sink, with the promise that is kept by storing it.
#[derive(Debug)]
pub struct Delivery {
    /// The item.
    pub item: Item,
    /// To be released once the item is durable.
    pub ack: Ack,
}

impl Delivery {
    /// Takes those out of `waiting` that can be staged, whole pages at a time; see
    /// [`Stager`]. Each page is asked about once: it may become whole while its
    /// items are looked at, and a page must not be staged in part.
    pub fn take_whole_pages(waiting: &mut Vec<Self>) -> Vec<Self> {
        let mut is_whole: HashMap<usize, bool> = HashMap::new();
        let mut can_be_staged = |delivery: &Self| {
            let ack = &delivery.ack;
            ack.page()
                .is_some_and(|page| *is_whole.entry(page).or_insert_with(|| ack.can_be_staged()))
        };
        let (whole, rest) = std::mem::take(waiting)
            .into_iter()
            .partition(|delivery| can_be_staged(delivery));
        *waiting = rest;
        whole
    }
}

/// Every item of a document that will ever reach a sink has been passed to it.
#[derive(Debug)]
pub struct Ended {
    /// The document; see [`Document::has_failed`], [`Document::is_interrupted`] and
    /// [`Document::is_removal`].
    pub document: Arc<Document>,
    /// To be released once the document's rows, or their absence, are durable.
    pub ack: Ack,
}

/// What a sink learns before its first batch.
#[derive(Debug, Clone)]
pub struct SinkInput {
    /// The fields that reach the sink: its columns.
    pub fields: FieldSet,
    /// Name of the pipeline, for messages.
    pub pipeline: String,
    /// Name of the sink's node.
    pub node: String,
    /// Hash of the configuration that makes this sink's rows.
    pub fingerprint: String,
    /// Identifies the run's pipeline and ledger on this machine: files that a
    /// killed run left unfinished are removed by the next run of the same writer.
    pub writer: String,
    /// Where the sink notes what is durable of a document that has not ended
    /// yet; none where the run cannot resume inside a document.
    pub stager: Option<Stager>,
    /// Where it tells how long its commits take.
    pub meter: SinkMeter,
}

/// A document that a sink holds: what the ledger is rebuilt from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// The document.
    pub id: DocumentId,
    /// Its path or URL.
    pub uri: String,
    /// Name of the source that brought it; empty where the rows do not give it.
    pub source: String,
    /// Hash of the bytes that its rows were made from, as rows give it.
    pub content_hash: String,
    /// Hash of the configuration that made its rows; empty where rows are
    /// missing or contradict each other, so that the document is made again.
    pub fingerprint: String,
    /// Number of rows.
    pub n_rows: u64,
}

/// What a sink says of what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inventory {
    /// It cannot say: the ledger is believed.
    Unknown,
    /// It holds what it held when it gave this mark.
    Unchanged,
    /// Every document that this pipeline has stored in it. Rows of other
    /// pipelines are theirs: a run neither counts, replaces nor removes them.
    Documents(Vec<StoredDocument>),
}

/// Rows of an unfinished document that an earlier run staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedRows {
    /// The document.
    pub document: DocumentId,
    /// What the sink gave to [`Stager::stage`].
    pub payload: Vec<u8>,
}

/// Stores items. It runs on tokio, so that it may wait for a disk or a database.
///
/// A sink holds each delivery's [`Ack`] until the item is durable, then
/// releases it. An ack that is dropped instead leaves its document undone.
pub trait Sink: Send {
    /// Runs once before the first batch: open or make the table.
    ///
    /// # Errors
    /// What the run cannot start without.
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>>;

    /// What the sink holds, asked once after `open`. `mark` is what
    /// [`Sink::mark`] gave last; if nothing has changed since,
    /// [`Inventory::Unchanged`] saves the reading.
    ///
    /// # Errors
    /// As [`Sink::open`].
    fn inventory<'a>(
        &'a mut self,
        _mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        Box::pin(async { Ok(Inventory::Unknown) })
    }

    /// What the sink holds, asked of one that is not open and will not be, for
    /// [`Pipeline::dry_run`](crate::Pipeline::dry_run): it must not write, make or
    /// remove anything. The default is that it cannot tell.
    ///
    /// # Errors
    /// As [`Sink::open`].
    fn peek<'a>(
        &'a mut self,
        _input: &'a SinkInput,
        _mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        Box::pin(async { Ok(Inventory::Unknown) })
    }

    /// Names the place of the rows and their version, after each commit. `None`
    /// when somebody else has written between this sink's commits, so that the
    /// next run reads the inventory.
    fn mark(&self) -> Option<String> {
        None
    }

    /// Drops rows that cannot be read any more, because files of theirs are gone.
    /// Returns how many rows that were. Called between `open` and `inventory` by
    /// [`Pipeline::repair_ledger`](crate::Pipeline::repair_ledger) only.
    ///
    /// # Errors
    /// As [`Sink::open`].
    fn repair(&mut self) -> BoxFuture<'_, Result<u64, StageError>> {
        Box::pin(async { Ok(0) })
    }

    /// Whether it stages rows of documents that have not ended, where it gets a
    /// [`Stager`]. A run that drains stops inside documents only where all their
    /// sinks do; it finishes the others.
    fn can_stage(&self) -> bool {
        false
    }

    /// Takes over rows that an earlier run staged, once after `open`, where this
    /// is the run that may, even if there are none: what else earlier runs of the
    /// same writer left behind can be removed then. Says of
    /// each whether it is still whole. Those of a document that then comes with
    /// [`Document::is_resumed`] are stored with it, the others dropped.
    ///
    /// # Errors
    /// As [`Sink::open`].
    fn adopt(&mut self, rows: Vec<StagedRows>) -> BoxFuture<'_, Result<Vec<bool>, StageError>> {
        Box::pin(async move { Ok(vec![false; rows.len()]) })
    }

    /// Takes a batch. It may hold the items back to write more of them at once.
    ///
    /// # Errors
    /// When the outside is broken (disk full, table gone). The sink keeps what
    /// it was given, so that [`Sink::idle`] can try again; otherwise the run
    /// stops, and what was not acked is done again by the next run.
    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>>;

    /// The document's items have all come: now its rows can replace the old
    /// ones as a whole. A removal comes without items. Of a document that
    /// [is interrupted](Document::is_interrupted) the whole pages are staged instead,
    /// and kept until the next run; see [`Sink::can_stage`].
    ///
    /// # Errors
    /// As [`Sink::store`].
    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        ended.ack.durable();
        Box::pin(async { Ok(()) })
    }

    /// Called when nothing has come for a while: write what is held back.
    ///
    /// # Errors
    /// As [`Sink::store`].
    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }

    /// Runs once, after the last batch: write what is held back, build indexes.
    ///
    /// # Errors
    /// As [`Sink::store`].
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>>;
}

/// Where the rows of a sink are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkPlace {
    /// The same for every spelling of one place, such as `lancedb:/data/db/pages`.
    pub identity: String,
    /// The setting that would have to change for another place: `table`.
    pub setting: &'static str,
}

/// What the nodes of a run share: loaded models, the places of files.
///
/// Values are found by their type and a name, so that two stages which name
/// the same model load it once.
#[derive(Clone, Default)]
pub struct Resources {
    values: Arc<Mutex<ResourceMap>>,
    pub(crate) meters: Arc<Meters>,
}

type ResourceMap = HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>;

impl Resources {
    /// Puts a value in, replacing one of the same type and name.
    pub fn insert<T: Send + Sync + 'static>(&self, name: &str, value: T) {
        self.lock()
            .insert((TypeId::of::<T>(), name.to_owned()), Arc::new(value));
    }

    /// The value of this type and name.
    pub fn get<T: Send + Sync + 'static>(&self, name: &str) -> Option<Arc<T>> {
        let value = self
            .lock()
            .get(&(TypeId::of::<T>(), name.to_owned()))
            .cloned()?;
        value.downcast().ok()
    }

    /// The value of this type and name; the first caller makes it, while the
    /// others wait.
    #[expect(clippy::missing_panics_doc, reason = "the slot's key holds its type")]
    pub fn get_or_insert<T: Send + Sync + 'static>(
        &self,
        name: &str,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut values = self.lock();
        let slot = values
            .entry((TypeId::of::<T>(), name.to_owned()))
            .or_insert_with(|| Arc::new(make()));
        Arc::clone(slot)
            .downcast()
            .expect("the slot's key holds its type")
    }

    /// Counts what a model does that is shared under `key`; the report calls it `name`.
    pub fn model_meter(&self, key: &str, name: &str) -> ModelMeter {
        self.meters.get(key, name)
    }

    fn lock(&self) -> MutexGuard<'_, ResourceMap> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of one kind of stage: what its TOML table deserializes into.
///
/// `deny_unknown_fields` on the type makes a misspelt setting an error.
pub trait StageConfig: DeserializeOwned + Debug + Send + Sync + 'static {
    /// The value of `kind` in TOML.
    const KIND: &'static str;

    /// One line on what it does, for `pagemill check` and the docs.
    const ABOUT: &'static str;

    /// Settings (without the engine's keys) that build: used by docs and tests.
    const EXAMPLE: &'static str;

    /// Settings that hold a path: `~` at the start of one is the home folder.
    const PATHS: &'static [&'static str] = &[];

    /// What the graph check carries along the edges.
    fn fields(&self) -> Fields;

    /// How the kind wants its items batched where the file does not say: one
    /// at a time, unless the kind has a reason.
    fn batch(&self) -> BatchPolicy {
        BatchPolicy::default()
    }

    /// On how many threads the kind works where the file does not say: one, unless
    /// its workers mostly wait, as for a model that they share or for a server.
    fn workers(&self) -> usize {
        1
    }

    /// The settings that rows depend on, as text: a part of the fingerprint.
    ///
    /// The default is the `Debug` text of the deserialized settings, so a default
    /// that is written out changes nothing. Override it where some settings change
    /// no row: limits, passwords, isolation, devices, addresses, timeouts.
    fn row_settings(&self) -> String {
        format!("{self:?}")
    }

    /// What else the rows depend on than the settings, such as the weights of a
    /// model: a part of the fingerprint.
    fn revision(&self, _resources: &Resources) -> String {
        String::new()
    }

    /// Makes one worker's stage. It is called at check time too, so it checks
    /// settings and finds files, and leaves what takes long to [`Stage::start`].
    ///
    /// # Errors
    /// A setting that cannot be used.
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError>;
}

/// Settings of one kind of source; see [`StageConfig`].
pub trait SourceConfig: DeserializeOwned + Send + Sync + 'static {
    /// The value of `kind` in TOML.
    const KIND: &'static str;
    /// One line on what it does.
    const ABOUT: &'static str;
    /// Settings that build.
    const EXAMPLE: &'static str;
    /// Settings that hold a path: `~` at the start of one is the home folder.
    const PATHS: &'static [&'static str] = &[];
    /// The fields that its items have.
    fn fields(&self) -> Fields;
    /// Whether it goes on until it is asked to stop.
    fn is_continuous(&self) -> bool {
        false
    }
    /// The folder or address that documents come from, as their URIs begin, so that
    /// two sources of the same documents are found.
    fn place(&self) -> Option<String> {
        None
    }
    /// Makes the source.
    ///
    /// # Errors
    /// A setting that cannot be used.
    fn build(&self, resources: &Resources) -> Result<Box<dyn Source>, FieldError>;
}

/// Settings of one kind of sink; see [`StageConfig`].
pub trait SinkConfig: DeserializeOwned + Send + Sync + 'static {
    /// The value of `kind` in TOML.
    const KIND: &'static str;
    /// One line on what it does.
    const ABOUT: &'static str;
    /// Settings that build.
    const EXAMPLE: &'static str;
    /// Settings that hold a path: `~` at the start of one is the home folder.
    const PATHS: &'static [&'static str] = &[];
    /// The fields it must have, beside all those that it stores where they are.
    fn fields(&self) -> Fields {
        Fields::stores_all()
    }
    /// Where its rows are, for the pipeline of this name: the sink's identity in the
    /// ledger, whatever its node is called. Two sinks of one pipeline must differ.
    fn place(&self, _pipeline: &str) -> Option<SinkPlace> {
        None
    }
    /// The settings that rows depend on, as text; see [`StageConfig::row_settings`].
    fn row_settings(&self) -> String {
        String::new()
    }
    /// Makes the sink.
    ///
    /// # Errors
    /// A setting that cannot be used.
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError>;
}

//! Defines a sink, what it is given and what it returns, and its settings: the traits
//! that every kind of sink implements.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::document::{Ack, Document};
use crate::error::{FieldError, StageError};
use crate::fields::{FieldSet, Fields};
use crate::item::Item;
use crate::key::{DocumentId, Key};
use crate::ledger::Stager;
use crate::metrics::SinkMeter;
use crate::resources::Resources;
use crate::value::Value;

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
    /// Whether an item was set aside that could have come to this sink. If none came,
    /// the sink keeps the rows that it has.
    pub has_lost_items: bool,
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

    /// What reads rows of this pipeline back, asked for once after `inventory` or `peek`. A
    /// document whose content is the same need not be made from its source where only
    /// later stages have changed: its rows are sent on from the last stage that has not.
    fn row_reader(&self) -> Option<Arc<dyn RowReader>> {
        None
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

/// Reads the rows that a sink has stored.
pub trait RowReader: Send + Sync {
    /// The rows of the document that this pipeline has stored, all of them; `None` if
    /// not every one of `fields` can be read from them.
    ///
    /// # Errors
    /// A table that cannot be read.
    fn find<'a>(
        &'a self,
        document: DocumentId,
        fields: &'a FieldSet,
    ) -> BoxFuture<'a, Result<Option<Vec<FoundRow>>, StageError>>;

    /// The values of `fields` in these rows of one document, in the order of `rows`. A
    /// row without a value for a field leaves it out. Values are those that were
    /// stored; only vectors may have come to have fewer bits.
    ///
    /// # Errors
    /// A table that cannot be read, or rows that are gone.
    fn read<'a>(
        &'a self,
        rows: &'a [FoundRow],
        fields: &'a FieldSet,
    ) -> BoxFuture<'a, Result<Vec<RowValues>, StageError>>;
}

/// The values of a row, by the names of the fields.
pub type RowValues = Vec<(String, Value)>;

/// A row that a [`RowReader`] has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRow {
    /// Key of the item that was stored.
    pub key: Key,
    /// Hash of the bytes that the row was made from.
    pub content_hash: String,
    /// Hash of the configuration that made it.
    pub fingerprint: String,
    /// Where the reader finds it.
    pub place: u64,
}

/// Where the rows of a sink are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkPlace {
    /// The same for every spelling of one place, such as `lancedb:/data/db/pages`.
    pub identity: String,
    /// The setting that would have to change for another place: `table`.
    pub setting: &'static str,
}

/// Settings of one kind of sink; see [`StageConfig`](crate::StageConfig).
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
    /// The settings that rows depend on, as text; see [`StageConfig::row_settings`](crate::StageConfig::row_settings).
    fn row_settings(&self) -> String {
        String::new()
    }
    /// Makes the sink.
    ///
    /// # Errors
    /// A setting that cannot be used.
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError>;
}

//! A table in memory that keeps what a table on disk must: a document's rows
//! change as a whole, in one commit, and rows of unfinished documents can be
//! staged beside it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use serde::Deserialize;

use super::stages::world;
use super::{World, lock};
use crate::{
    Ack, Delivery, DocumentId, Ended, FieldError, FieldSet, FoundRow, Inventory, Item, Key,
    Resources, RowReader, RowValues, Sink, SinkConfig, SinkInput, SinkPlace, StageError,
    StagedRows, Stager, StoredDocument,
};

/// The tables, by name: what a crash leaves behind. Clones are the same tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables(Arc<Mutex<BTreeMap<String, Table>>>);

/// One table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    version: u64,
    documents: BTreeMap<DocumentId, Rows>,
    /// Rows in no version of the table, by their number.
    staged: BTreeMap<u64, Vec<Row>>,
    n_staged: u64,
    /// Whether the next commit cannot be done.
    pub(crate) n_failures: u32,
}

#[derive(Debug, Clone)]
struct Rows {
    stored: StoredDocument,
    rows: Vec<Row>,
}

/// A row: what tests compare, and what it is read back from.
#[derive(Debug, Clone)]
struct Row {
    text: String,
    key: Key,
    fields: RowValues,
}

impl Rows {
    fn texts(&self) -> impl Iterator<Item = String> {
        self.rows.iter().map(|row| row.text.clone())
    }
}

impl Table {
    /// Somebody else has committed something.
    pub(crate) fn touch(&mut self) {
        self.version += 1;
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Takes a document out, as somebody else would.
    pub(crate) fn remove(&mut self, id: DocumentId) {
        self.documents.remove(&id);
        self.touch();
    }

    /// Changes what the rows of a document say they are, behind the back of the ledger.
    pub(crate) fn relabel(&mut self, id: DocumentId, change: impl FnOnce(&mut StoredDocument)) {
        let known = self.documents.get_mut(&id).expect("it is stored");
        change(&mut known.stored);
    }

    /// Has the first row of a document there twice, in the place of the last one.
    pub(crate) fn repeat_row(&mut self, id: DocumentId) {
        let known = self.documents.get_mut(&id).expect("it is stored");
        known.rows.pop();
        known.rows.push(known.rows[0].clone());
    }

    /// Takes one row of a document out, as somebody else would.
    pub(crate) fn remove_row(&mut self, id: DocumentId) {
        if let Some(known) = self.documents.get_mut(&id) {
            known.rows.pop();
            known.stored.n_rows -= 1;
        }
        self.touch();
    }
}

impl Tables {
    /// The tables as they are now, on their own from now on.
    pub(crate) fn snapshot(&self) -> Self {
        Self(Arc::new(Mutex::new(lock(&self.0).clone())))
    }

    pub(crate) fn with<T>(&self, table: &str, change: impl FnOnce(&mut Table) -> T) -> T {
        change(lock(&self.0).entry(table.to_owned()).or_default())
    }

    /// All rows, in order.
    pub(crate) fn rows(&self, table: &str) -> Vec<String> {
        self.with(table, |table| {
            let rows = table.documents.values().flat_map(Rows::texts);
            let mut rows: Vec<String> = rows.collect();
            rows.sort();
            rows
        })
    }

    /// The rows of one document, in order.
    pub(crate) fn rows_of(&self, table: &str, id: DocumentId) -> Vec<String> {
        self.with(table, |table| {
            let known = table.documents.get(&id).into_iter();
            let mut rows: Vec<String> = known.flat_map(Rows::texts).collect();
            rows.sort();
            rows
        })
    }

    pub(crate) fn holds(&self, table: &str, id: DocumentId) -> bool {
        self.with(table, |table| table.documents.contains_key(&id))
    }

    /// Takes everything out of a table, as somebody else would.
    pub(crate) fn clear(&self, table: &str) {
        self.with(table, |table| {
            table.documents.clear();
            table.touch();
        });
    }
}

/// Stores rows in a table of the test.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one setting of a test"
)]
pub(super) struct TableConfig {
    table: String,
    /// Documents in a commit.
    #[serde(default = "two")]
    commit_every: usize,
    /// Rows that are staged together.
    #[serde(default = "two")]
    stage_every: usize,
    /// Cannot say what it holds.
    #[serde(default)]
    is_mute: bool,
    /// Stages no rows of documents that have not ended.
    #[serde(default)]
    keeps_no_pages: bool,
    /// Is identified by its table, whatever its node is called.
    #[serde(default)]
    has_place: bool,
    /// Lets documents be made from its rows.
    #[serde(default)]
    reads_back: bool,
    /// A field that it cannot give back.
    #[serde(default)]
    lacks: Option<String>,
}

fn two() -> usize {
    2
}

impl SinkConfig for TableConfig {
    const KIND: &'static str = "table";
    const ABOUT: &'static str = "stores rows";
    const EXAMPLE: &'static str = "table = 't'";
    fn place(&self, _: &str) -> Option<SinkPlace> {
        self.has_place.then(|| SinkPlace {
            identity: format!("table:{}", self.table),
            setting: "table",
        })
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(TableSink {
            table: self.table.clone(),
            commit_every: self.commit_every,
            stage_every: self.stage_every,
            is_mute: self.is_mute,
            keeps_no_pages: self.keeps_no_pages,
            reads_back: self.reads_back,
            lacks: self.lacks.clone(),
            world: world(resources),
            stager: None,
            fingerprint: String::new(),
            coming: BTreeMap::new(),
            complete: Vec::new(),
            adopted: BTreeMap::new(),
            version: None,
        }))
    }
}

struct TableSink {
    table: String,
    commit_every: usize,
    stage_every: usize,
    is_mute: bool,
    keeps_no_pages: bool,
    reads_back: bool,
    lacks: Option<String>,
    world: Arc<World>,
    stager: Option<Stager>,
    fingerprint: String,
    coming: BTreeMap<DocumentId, Coming>,
    complete: Vec<(Ended, Coming)>,
    /// What an earlier run staged.
    adopted: BTreeMap<DocumentId, Vec<u64>>,
    /// The version after this sink's last commit, if nobody else has committed.
    version: Option<u64>,
}

/// A document that has not been committed.
#[derive(Default)]
struct Coming {
    held: Vec<Delivery>,
    staged: Vec<u64>,
    /// Of what is staged.
    acks: Vec<Ack>,
}

/// A row: the item's label, its text, and the marks that stages left.
fn row(item: &Item) -> Row {
    let marks = item
        .fields()
        .filter_map(|(name, _)| name.strip_prefix("m_"));
    let mut marks: Vec<&str> = marks.collect();
    marks.sort_unstable();
    let text = item.text().unwrap_or_default();
    let fields = item.fields();
    Row {
        text: format!("{} {text} {}", item.label(), marks.concat()),
        key: item.key(),
        fields: fields
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect(),
    }
}

/// Reads rows of a table back.
struct Reader {
    table: String,
    lacks: Option<String>,
    world: Arc<World>,
}

impl RowReader for Reader {
    fn find<'a>(
        &'a self,
        document: DocumentId,
        fields: &'a FieldSet,
    ) -> BoxFuture<'a, Result<Option<Vec<FoundRow>>, StageError>> {
        let found = self.world.tables.with(&self.table, |table| {
            let known = table.documents.get(&document).into_iter();
            let rows = known.flat_map(|known| {
                known.rows.iter().zip(0..).map(|(row, place)| FoundRow {
                    key: row.key,
                    content_hash: known.stored.content_hash.clone(),
                    fingerprint: known.stored.fingerprint.clone(),
                    place,
                })
            });
            rows.collect()
        });
        let lacks = self.lacks.as_ref();
        let lacks_one = lacks.is_some_and(|name| fields.get(name).is_some());
        Box::pin(async move { Ok((!lacks_one).then_some(found)) })
    }

    fn read<'a>(
        &'a self,
        rows: &'a [FoundRow],
        fields: &'a FieldSet,
    ) -> BoxFuture<'a, Result<Vec<RowValues>, StageError>> {
        let read = self.world.tables.with(&self.table, |table| {
            let values = rows.iter().filter_map(|found| {
                let known = table.documents.get(&found.key.document)?;
                let row = known.rows.iter().find(|row| row.key == found.key)?;
                let values = row.fields.iter();
                let values = values.filter(|(name, _)| fields.get(name).is_some());
                Some(values.cloned().collect())
            });
            values.collect()
        });
        let crossed = self.world.faults.cross("table: read back");
        Box::pin(async { crossed.map(|()| read) })
    }
}

impl TableSink {
    /// Stages what is whole.
    fn stage(&mut self) -> Result<(), StageError> {
        let Some(stager) = &self.stager else {
            return Ok(());
        };
        for coming in self.coming.values_mut() {
            let whole = Delivery::take_whole_pages(&mut coming.held);
            let last = whole.last().map(|delivery| delivery.ack.document());
            let is_interrupted = last.is_some_and(|document| document.is_interrupted());
            if whole.is_empty() || (whole.len() < self.stage_every && !is_interrupted) {
                coming.held.extend(whole);
                continue;
            }
            let rows: Vec<Row> = whole.iter().map(|delivery| row(&delivery.item)).collect();
            let mut acks: Vec<Ack> = whole.into_iter().map(|delivery| delivery.ack).collect();
            self.world.faults.cross("table: before staging")?;
            let number = self.world.tables.with(&self.table, |table| {
                table.n_staged += 1;
                table.staged.insert(table.n_staged, rows);
                table.n_staged
            });
            self.world
                .faults
                .cross("table: before noting what is staged")?;
            stager.stage(&mut acks, number.to_le_bytes().to_vec())?;
            self.world.faults.cross("table: after staging")?;
            coming.staged.push(number);
            coming.acks.append(&mut acks);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StageError> {
        if self.complete.is_empty() {
            return Ok(());
        }
        self.world.faults.cross("table: before a commit")?;
        let committed = self.world.tables.with(&self.table, |table| {
            if table.n_failures > 0 {
                table.n_failures -= 1;
                return Err(StageError::fatal("the table is locked", "unlock it"));
            }
            let is_ours = self.version == Some(table.version);
            table.version += 1;
            for (ended, coming) in &self.complete {
                let origin = ended.document.origin();
                let adopted = self.adopted.get(&origin.id);
                let adopted = adopted.filter(|_| ended.document.is_resumed());
                let numbers = adopted.into_iter().flatten().chain(&coming.staged);
                let staged = numbers.filter_map(|number| table.staged.remove(number));
                let mut rows: Vec<Row> = staged.flatten().collect();
                rows.extend(coming.held.iter().map(|delivery| row(&delivery.item)));
                if rows.is_empty() {
                    table.documents.remove(&origin.id);
                    continue;
                }
                let stored = StoredDocument {
                    id: origin.id,
                    uri: origin.uri.to_string(),
                    source: origin.source.to_string(),
                    content_hash: origin.content_hash.to_string(),
                    fingerprint: self.fingerprint.clone(),
                    n_rows: rows.len() as u64,
                };
                table.documents.insert(origin.id, Rows { stored, rows });
            }
            Ok(is_ours.then_some(table.version))
        });
        self.version = committed?;
        self.world.faults.cross("table: after a commit")?;
        for (ended, coming) in self.complete.drain(..) {
            let held = coming.held.into_iter().map(|delivery| delivery.ack);
            held.chain(coming.acks).for_each(Ack::durable);
            ended.ack.durable();
        }
        self.world.faults.cross("table: after the acks")
    }

    fn end(&mut self, ended: Ended) -> Result<(), StageError> {
        let id = ended.document.origin().id;
        if ended.document.is_interrupted() {
            self.world
                .faults
                .cross("table: end of an interrupted document")?;
            self.stage()?;
            // What is staged stays, for the next run.
            self.adopted.remove(&id);
        }
        let coming = self.coming.remove(&id);
        if ended.document.has_failed() {
            return Ok(());
        }
        self.complete.push((ended, coming.unwrap_or_default()));
        self.world.faults.cross("table: end of a document")?;
        if self.complete.len() >= self.commit_every {
            self.commit()?;
        }
        Ok(())
    }
}

impl Sink for TableSink {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        if self.can_stage() {
            self.stager.clone_from(&input.stager);
        }
        self.fingerprint.clone_from(&input.fingerprint);
        let opened = self.world.faults.cross("table: open");
        Box::pin(async { opened })
    }

    fn inventory<'a>(
        &'a mut self,
        mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        let inventory = self.world.tables.with(&self.table, |table| {
            self.version = Some(table.version);
            if mark == Some(table.version.to_string().as_str()) {
                return Inventory::Unchanged;
            }
            let documents = table.documents.values();
            Inventory::Documents(documents.map(|known| known.stored.clone()).collect())
        });
        let is_mute = self.is_mute;
        Box::pin(async move {
            Ok(if is_mute {
                Inventory::Unknown
            } else {
                inventory
            })
        })
    }

    fn peek<'a>(
        &'a mut self,
        _: &'a SinkInput,
        mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        self.inventory(mark)
    }

    fn row_reader(&self) -> Option<Arc<dyn RowReader>> {
        let reader = || -> Arc<dyn RowReader> {
            Arc::new(Reader {
                table: self.table.clone(),
                lacks: self.lacks.clone(),
                world: Arc::clone(&self.world),
            })
        };
        self.reads_back.then(reader)
    }

    fn mark(&self) -> Option<String> {
        self.version.map(|version| version.to_string())
    }

    fn can_stage(&self) -> bool {
        !self.keeps_no_pages
    }

    fn adopt(&mut self, rows: Vec<StagedRows>) -> BoxFuture<'_, Result<Vec<bool>, StageError>> {
        let mut is_whole = Vec::new();
        for rows in rows {
            let number = rows.payload.try_into().map(u64::from_le_bytes);
            let number = number.expect("it is what was staged");
            let tables = &self.world.tables;
            is_whole.push(tables.with(&self.table, |table| table.staged.contains_key(&number)));
            self.adopted.entry(rows.document).or_default().push(number);
        }
        Box::pin(async { Ok(is_whole) })
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            for delivery in batch {
                let id = delivery.item.key().document;
                self.coming.entry(id).or_default().held.push(delivery);
            }
            self.world.faults.cross("table: store")?;
            tokio::task::yield_now().await;
            self.stage()
        })
    }

    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move { self.end(ended) })
    }

    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move { self.commit() })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            self.world.faults.cross("table: finish")?;
            self.commit()?;
            // Their documents did not come.
            let adopted = mem::take(&mut self.adopted);
            self.world.tables.with(&self.table, |table| {
                for number in adopted.values().flatten() {
                    table.staged.remove(number);
                }
            });
            self.world.n_finished.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }
}

//! Stores one row an item in a LanceDB table (`kind = "lancedb"`).
//!
//! Every row has `document_id`, `document` (path or URL), `content_hash`,
//! `media_type`, `fingerprint` (of the configuration that made it), `pipeline`, `source`,
//! `page` and `part`, then a column for each field: `text` as a string, `vector` as a
//! fixed-size list, `vectors` as a list of them in 16 bits, `words` as a list
//! of records with boxes, `thumbnail` and other bytes as they are.
//!
//! A document's rows replace those of an earlier run in one commit, after its
//! last item has come. While it is still coming, its rows are written and synced
//! every few seconds, in files that no version of the table knows; the ledger
//! notes them, so that a run that is stopped goes on after them. Reading is
//! [`TableReader`]'s.

mod cleanup;
mod coming;
mod commit;
mod config;
mod index;
mod inventory;
mod journal;
mod read_back;
mod repair;
mod rows;
mod schema;
mod search;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use lance::table::format::Fragment;
use pagemill_pipeline::{
    Delivery, Document, DocumentId, Ended, Field, FieldError, Inventory, Item, RowReader, Sink,
    SinkInput, SinkMeter, StageError, StagedRows, Stager,
};

pub use self::config::{CommitConfig, Durability, LanceDbConfig};
pub use self::index::{IndexConfig, VectorIndexConfig};
pub use self::search::{
    FirstStep, Hit, MultiVector, PageDetail, Question, SearchMode, SearchQuery, TableError,
    TableReader,
};

use self::coming::{Ready, Rows};
use self::commit::{Table, Writer};
use self::config::{NAME_HINT, is_table_name};
use self::read_back::TableRows;
use self::schema::Columns;
use self::upkeep::Upkeep;
use crate::columns::Totals;
use crate::row::MadeBy;

/// A document that is still coming holds at most so much in memory; the rest
/// of it waits in files that belong to no version of the table yet.
const SPILL_BYTES: usize = 32 << 20;

/// A journal of so many files is shortened to those that are under way.
const MAX_NOTED: usize = 10_000;

/// Stores rows in a LanceDB table, each document's as a whole.
pub struct LanceDb {
    config: LanceDbConfig,
    /// Set by `open`.
    opened: Option<Opened>,
    /// Set by `peek`: reads the rows of the table that was looked at.
    peeked: Option<Arc<TableRows>>,
    /// Documents that are still coming, by the address of their [`Document`]:
    /// one that comes twice at a time is two of them.
    coming: HashMap<usize, Rows>,
    ready: Ready,
    /// When documents that are still coming were staged last.
    staged: Instant,
    /// Whether this run takes over what earlier ones left.
    is_heir: bool,
}

struct Opened {
    table: Table,
    columns: Columns,
    made_by: MadeBy,
    indexes_text: bool,
    stager: Option<Stager>,
    meter: SinkMeter,
    /// Rows that an earlier run staged, of documents that have not come yet, and
    /// those of documents that this run leaves to the next one.
    adopted: HashMap<DocumentId, Vec<Fragment>>,
    upkeep: Upkeep,
}

impl LanceDb {
    /// Checks the settings; nothing is opened yet.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn new(config: LanceDbConfig) -> Result<Self, FieldError> {
        config.check()?;
        Ok(Self {
            config,
            opened: None,
            peeked: None,
            coming: HashMap::new(),
            ready: Ready::default(),
            staged: Instant::now(),
            is_heir: false,
        })
    }

    fn table_name<'a>(&'a self, input: &'a SinkInput) -> Result<&'a str, StageError> {
        let name = self.config.table.as_deref().unwrap_or(&input.pipeline);
        if !is_table_name(name) {
            return Err(StageError::fatal(
                format_args!("the pipeline's name `{name}` is no name for a table"),
                format_args!("set `table`: {NAME_HINT}"),
            ));
        }
        Ok(name)
    }

    fn writer(&self, input: &SinkInput) -> Writer {
        Writer {
            pipeline: input.pipeline.clone(),
            id: input.writer.clone(),
            durability: self.config.durability,
        }
    }

    fn opened(&mut self) -> &mut Opened {
        self.opened
            .as_mut()
            .expect("the runner opens a sink before it hands anything over")
    }

    /// Writes what has come of the document, for the commit that is to follow.
    async fn write_early(&mut self, key: usize) -> Result<(), StageError> {
        let (Some(rows), Some(opened)) = (self.coming.get_mut(&key), self.opened.as_mut()) else {
            return Ok(());
        };
        if let Some(stager) = opened.stager.clone() {
            rows.stage(opened, &stager).await?;
        }
        if rows.n_bytes >= SPILL_BYTES {
            rows.spill(opened).await?;
        }
        Ok(())
    }

    /// Stages what has waited for long, document by document.
    async fn stage_if_due(&mut self) -> Result<(), StageError> {
        let max_wait = Duration::from_millis(self.config.commit.max_wait_ms);
        if self.opened().stager.is_none() || self.staged.elapsed() < max_wait {
            return Ok(());
        }
        let keys: Vec<usize> = self.coming.keys().copied().collect();
        for key in keys {
            self.write_early(key).await?;
        }
        self.staged = Instant::now();
        Ok(())
    }

    async fn commit_if_due(&mut self) -> Result<(), StageError> {
        let limits = self.config.commit;
        let max_wait = Duration::from_millis(limits.max_wait_ms);
        let is_due = self.ready.n_rows >= limits.max_rows
            || self.ready.n_bytes >= limits.max_bytes
            || self
                .ready
                .since
                .is_some_and(|since| since.elapsed() >= max_wait);
        if is_due { self.commit().await } else { Ok(()) }
    }

    /// Commits the documents that are complete, and releases their acks. What
    /// cannot be committed waits on.
    async fn commit(&mut self) -> Result<(), StageError> {
        if self.ready.documents.is_empty() {
            return Ok(());
        }
        let since = Instant::now();
        let opened = self
            .opened
            .as_mut()
            .expect("the runner opens a sink before it hands anything over");
        let documents: Vec<DocumentId> = self.ready.ids().collect();
        let (items, totals) = (self.ready.items(), self.ready.totals());
        let mut fragments = self.ready.fragments();
        if !items.is_empty() {
            let written = opened.write(items, &totals).await?;
            fragments.extend(written);
        }
        failpoint("written")?;
        if opened.table.schema().is_some() {
            opened.table.replace(&documents, fragments).await?;
        }
        failpoint("committed")?;
        let ready = std::mem::take(&mut self.ready);
        opened.meter.commit(since.elapsed());
        ready.durable();
        failpoint("acked")?;
        opened.upkeep.committed();
        if opened.indexes_text {
            opened.table.make_text_index(&Field::TEXT.name).await?;
        }
        opened.upkeep.go_on(&opened.table, false);
        self.settle_journal(MAX_NOTED).await;
        Ok(())
    }

    async fn end(&mut self, ended: Ended) -> Result<(), StageError> {
        let Ended {
            document,
            has_lost_items,
            ack,
        } = ended;
        let id = document.origin().id;
        if self.ready.ids().any(|waiting| waiting == id) {
            // The same document again: one commit replaces a document once. It comes
            // before the rows leave `coming`, where the cleanup sees that they are staged.
            self.commit().await?;
        }
        let rows = self.coming.remove(&address(&document));
        if document.has_failed() {
            return self.leave_undone(&document, rows).await;
        }
        // What was staged of a version that is not resumed is nobody's any more.
        let adopted = self.opened().adopted.remove(&id);
        let adopted = adopted.filter(|_| document.is_resumed());
        let mut rows = match rows {
            Some(rows) => rows,
            // Nothing of it could be made now: what an earlier run made is better.
            None if has_lost_items && adopted.is_none() => {
                ack.durable();
                return Ok(());
            }
            // It has become empty, or is gone, and so are its rows.
            None => Rows::new(id),
        };
        rows.staged.extend(adopted.into_iter().flatten());
        rows.end = Some(ack);
        self.ready.push(rows);
        self.commit_if_due().await
    }

    /// Keeps the staged rows of a document that the next run goes on with. The acks
    /// go undone; what was only written is removed with the journal.
    async fn leave_undone(
        &mut self,
        document: &Document,
        rows: Option<Rows>,
    ) -> Result<(), StageError> {
        let Some(mut rows) = rows else {
            return Ok(());
        };
        let opened = self.opened();
        let staged = match opened.stager.clone() {
            Some(stager) if document.is_interrupted() => rows.stage(opened, &stager).await,
            _ => Ok(()),
        };
        let kept = opened.adopted.entry(rows.document).or_default();
        kept.append(&mut rows.staged);
        staged
    }
}

impl Opened {
    /// Writes rows that belong to no version of the table yet; makes the table
    /// if there is none.
    async fn write(
        &mut self,
        items: Vec<Item>,
        totals: &Totals,
    ) -> Result<Vec<Fragment>, StageError> {
        if self.table.schema().is_none() {
            self.table.create(self.columns.table_schema(&items)).await?;
            if let Some(schema) = self.table.schema() {
                self.columns.check(self.table.name(), &schema)?;
            }
        }
        loop {
            let schema = self.table.schema().expect("made above");
            let columns = self.columns.to_add(&schema, &items);
            if columns.is_empty() {
                break;
            }
            self.table.add_columns(columns).await?;
        }
        let schema = self.table.schema().expect("made above");
        let batch = rows::batch(self.table.name(), &schema, &self.made_by, totals, &items)?;
        drop(items);
        self.table.write(batch).await
    }
}

impl Sink for LanceDb {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async move {
            let columns = Columns::new(&input.fields)?;
            let name = self.table_name(input)?;
            let table = Table::open(&self.config.uri, name, self.writer(input)).await?;
            if let Some(schema) = table.schema() {
                columns.check(name, &schema)?;
            }
            self.opened = Some(Opened {
                table,
                columns,
                made_by: MadeBy::of(input),
                stager: input.stager.clone(),
                meter: input.meter.clone(),
                adopted: HashMap::new(),
                upkeep: Upkeep::new(self.config.index),
                indexes_text: self.config.text_index
                    && input.fields.get(&Field::TEXT.name) == Some(Field::TEXT.ty),
            });
            Ok(())
        })
    }

    fn inventory<'a>(
        &'a mut self,
        mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        Box::pin(async move { self.opened().table.inventory(mark).await })
    }

    fn peek<'a>(
        &'a mut self,
        input: &'a SinkInput,
        mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        Box::pin(async move {
            let columns = Columns::new(&input.fields)?;
            let name = self.table_name(input)?;
            let mut table = Table::peek(&self.config.uri, name, self.writer(input)).await?;
            if let Some(schema) = table.schema() {
                columns.check(name, &schema)?;
            }
            let held = table.inventory(mark).await?;
            self.peeked = table.rows().map(Arc::new);
            Ok(held)
        })
    }

    fn row_reader(&self) -> Option<Arc<dyn RowReader>> {
        if let Some(opened) = &self.opened {
            return Some(Arc::new(opened.table.rows()?));
        }
        let peeked = self.peeked.clone()?;
        Some(peeked)
    }

    fn mark(&self) -> Option<String> {
        self.opened.as_ref()?.table.mark()
    }

    fn repair(&mut self) -> BoxFuture<'_, Result<u64, StageError>> {
        Box::pin(async move { self.opened().table.drop_broken().await })
    }

    fn can_stage(&self) -> bool {
        true
    }

    fn adopt(&mut self, rows: Vec<StagedRows>) -> BoxFuture<'_, Result<Vec<bool>, StageError>> {
        Box::pin(async move {
            let opened = self.opened();
            let taken_in = opened.table.data_files();
            let mut is_whole = Vec::with_capacity(rows.len());
            for StagedRows { document, payload } in rows {
                let fragments = opened.table.find_staged(&payload, &taken_in).await;
                is_whole.push(fragments.is_some());
                let known = opened.adopted.entry(document).or_default();
                known.extend(fragments.into_iter().flatten());
            }
            self.is_heir = true;
            self.sweep().await;
            Ok(is_whole)
        })
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            let mut large = Vec::new();
            for delivery in batch {
                let key = address(delivery.ack.document());
                let id = delivery.item.origin().id;
                let rows = self.coming.entry(key).or_insert_with(|| Rows::new(id));
                rows.push(delivery);
                if rows.n_bytes >= SPILL_BYTES && !large.contains(&key) {
                    large.push(key);
                }
            }
            for key in large {
                self.write_early(key).await?;
            }
            self.stage_if_due().await?;
            self.commit_if_due().await
        })
    }

    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(self.end(ended))
    }

    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            self.commit().await?;
            self.stage_if_due().await?;
            let opened = self.opened();
            opened.upkeep.go_on(&opened.table, true);
            Ok(())
        })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            self.commit().await?;
            let opened = self.opened();
            opened.upkeep.finish(&mut opened.table).await;
            self.settle_journal(1).await;
            // Staged rows of documents that have changed since are nobody's by now.
            if self.is_heir {
                self.sweep().await;
            }
            Ok(())
        })
    }
}

/// Where tests break a commit off.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "the one of the tests can fail")]
fn failpoint(step: &str) -> Result<(), StageError> {
    tracing::trace!(step, "a commit goes on");
    Ok(())
}

#[cfg(test)]
use tests::failpoint;

/// Tells the arrivals of documents apart.
fn address(document: &Document) -> usize {
    std::ptr::from_ref(document).addr()
}

#[cfg(test)]
mod tests;

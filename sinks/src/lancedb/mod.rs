//! `kind = "lancedb"`: one row an item, in a LanceDB table.
//!
//! Every row has `document_id`, `document` (path or URL), `content_hash`,
//! `media_type`, `fingerprint` (of the configuration that made it), `page` and
//! `part`, then a column for each field: `text` as a string, `vector` as a
//! fixed-size list, `vectors` as a list of them in 16 bits, `words` as a list
//! of records with boxes, `thumbnail` and other bytes as they are.
//!
//! A document's rows replace those of an earlier run in one commit, after its
//! last item has come. Reading is [`TableReader`]'s.

mod commit;
mod rows;
mod schema;
mod search;
mod upkeep;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use lance::table::format::Fragment;
use pagemill_pipeline::{
    Ack, Delivery, Document, DocumentId, Field, FieldError, Item, Resources, Sink, SinkConfig,
    SinkInput, StageError,
};
use serde::Deserialize;

pub use self::search::{Hit, SearchMode, SearchQuery, TableError, TableReader};

use self::commit::Table;
use self::schema::Columns;

/// A document that is still coming holds at most so much in memory; the rest
/// of it waits in files that belong to no version of the table yet.
const SPILL_BYTES: usize = 32 << 20;

/// Settings of `kind = "lancedb"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanceDbConfig {
    /// Folder of the database; it is made if there is none.
    pub uri: String,
    /// Name of the table; without it, that of the pipeline.
    #[serde(default)]
    pub table: Option<String>,
    /// Whether the column `text` gets a full-text index.
    #[serde(default = "yes")]
    pub text_index: bool,
    /// What a stored row survives.
    #[serde(default)]
    pub durability: Durability,
    /// When complete documents are committed.
    #[serde(default)]
    pub commit: CommitConfig,
}

fn yes() -> bool {
    true
}

/// What a stored row survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The end of the process, and of the machine's power: files are synced
    /// before a document counts as done.
    #[default]
    Power,
    /// The end of the process, in whatever way. A local table is written a
    /// little faster; after a power cut it may need to be made anew.
    Process,
}

/// When complete documents are committed: as soon as one of these is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommitConfig {
    /// So many rows wait.
    pub max_rows: usize,
    /// So many bytes wait.
    pub max_bytes: usize,
    /// A document has waited for so long.
    pub max_wait_ms: u64,
}

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            max_rows: 4096,
            max_bytes: 64 << 20,
            max_wait_ms: 5000,
        }
    }
}

impl SinkConfig for LanceDbConfig {
    const KIND: &'static str = "lancedb";
    const ABOUT: &'static str = "stores rows in a LanceDB table, each document's as a whole";
    const EXAMPLE: &'static str = "uri = \"data/lancedb\"\ntable = \"pages\"";

    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(LanceDb::new(self.clone())?))
    }
}

/// Stores rows in a LanceDB table, each document's as a whole.
pub struct LanceDb {
    config: LanceDbConfig,
    /// Set by `open`.
    opened: Option<Opened>,
    /// Documents that are still coming, by the address of their [`Document`]:
    /// one that comes twice at a time is two of them.
    coming: HashMap<usize, Rows>,
    ready: Ready,
}

struct Opened {
    table: Table,
    columns: Columns,
    fingerprint: String,
    indexes_text: bool,
}

/// What has come of one document.
struct Rows {
    document: DocumentId,
    items: Vec<Item>,
    n_bytes: usize,
    /// Rows that are written, but in no version of the table.
    fragments: Vec<Fragment>,
    acks: Vec<Ack>,
}

impl Rows {
    fn new(document: DocumentId) -> Self {
        Self {
            document,
            items: Vec::new(),
            n_bytes: 0,
            fragments: Vec::new(),
            acks: Vec::new(),
        }
    }
}

/// A document of which nothing more comes.
struct Ended {
    rows: Option<Rows>,
    document: DocumentId,
    has_failed: bool,
    n_dead: u64,
}

/// Documents that wait for the next commit.
#[derive(Default)]
struct Ready {
    documents: Vec<Rows>,
    n_rows: usize,
    n_bytes: usize,
    since: Option<Instant>,
}

impl LanceDb {
    /// Checks the settings; nothing is opened yet.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn new(config: LanceDbConfig) -> Result<Self, FieldError> {
        if config.uri.is_empty() {
            return Err(FieldError::new(
                "uri",
                "must not be empty",
                "write the folder of the database, such as \"data/lancedb\"",
            ));
        }
        if let Some(table) = config.table.as_deref().filter(|name| !is_table_name(name)) {
            return Err(FieldError::new(
                "table",
                format_args!("`{table}` is no name for a table"),
                NAME_HINT,
            ));
        }
        if config.commit.max_rows == 0 || config.commit.max_bytes == 0 {
            return Err(FieldError::new(
                "commit",
                "must let at least one row and one byte wait",
                "leave `max_rows` and `max_bytes` out, or raise them",
            ));
        }
        Ok(Self {
            config,
            opened: None,
            coming: HashMap::new(),
            ready: Ready::default(),
        })
    }

    fn opened(&mut self) -> &mut Opened {
        self.opened
            .as_mut()
            .expect("the runner opens a sink before it hands anything over")
    }

    async fn spill(&mut self, key: usize) -> Result<(), StageError> {
        let Some(rows) = self.coming.get_mut(&key) else {
            return Ok(());
        };
        let items = std::mem::take(&mut rows.items);
        rows.n_bytes = 0;
        let fragments = self.opened().write(items).await?;
        if let Some(rows) = self.coming.get_mut(&key) {
            rows.fragments.extend(fragments);
        }
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

    /// Commits the documents that are complete, and releases their acks.
    async fn commit(&mut self) -> Result<(), StageError> {
        let ready = std::mem::take(&mut self.ready);
        if ready.documents.is_empty() {
            return Ok(());
        }
        let mut documents = Vec::with_capacity(ready.documents.len());
        let (mut items, mut fragments, mut acks) = (Vec::new(), Vec::new(), Vec::new());
        for rows in ready.documents {
            documents.push(rows.document);
            items.extend(rows.items);
            fragments.extend(rows.fragments);
            acks.extend(rows.acks);
        }
        let opened = self.opened();
        if !items.is_empty() {
            fragments.extend(opened.write(items).await?);
        }
        if opened.table.schema().is_some() {
            opened.table.replace(&documents, fragments).await?;
        }
        for ack in acks {
            ack.durable();
        }
        if opened.indexes_text {
            opened.table.make_text_index(&Field::TEXT.name).await?;
        }
        Ok(())
    }

    async fn end(&mut self, ended: Ended) -> Result<(), StageError> {
        if ended.has_failed {
            // The acks go undone, so that the next run does it again.
            if let Some(rows) = ended.rows {
                self.opened().table.discard(&rows.fragments).await;
            }
            return Ok(());
        }
        let rows = match ended.rows {
            Some(rows) => rows,
            // Nothing of it could be made now: what an earlier run made is better.
            None if ended.n_dead > 0 => return Ok(()),
            // It has become empty, and so do its rows.
            None => Rows::new(ended.document),
        };
        let waits = |waiting: &Rows| waiting.document == rows.document;
        if self.ready.documents.iter().any(waits) {
            // The same document again: one commit replaces a document once.
            self.commit().await?;
        }
        self.ready.n_rows += rows.acks.len();
        self.ready.n_bytes += rows.n_bytes;
        self.ready.since.get_or_insert_with(Instant::now);
        self.ready.documents.push(rows);
        self.commit_if_due().await
    }
}

impl Opened {
    /// Writes rows that belong to no version of the table yet; makes the table
    /// if there is none.
    async fn write(&mut self, items: Vec<Item>) -> Result<Vec<Fragment>, StageError> {
        if self.table.schema().is_none() {
            self.table.create(self.columns.schema(&items)).await?;
            if let Some(schema) = self.table.schema() {
                self.columns.check(self.table.name(), &schema)?;
            }
        }
        if let Some(schema) = self.table.schema() {
            let columns = self.columns.to_add(&schema, &items);
            if !columns.is_empty() {
                self.table.add_columns(columns).await?;
            }
        }
        let schema = self.table.schema().expect("made above");
        let batch = rows::batch(self.table.name(), &schema, &self.fingerprint, &items)?;
        drop(items);
        self.table.write(batch).await
    }
}

impl Sink for LanceDb {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async move {
            let columns = Columns::new(&input.fields)?;
            let name = self.config.table.as_deref().unwrap_or(&input.pipeline);
            if !is_table_name(name) {
                return Err(StageError::fatal(
                    format_args!("the pipeline's name `{name}` is no name for a table"),
                    format_args!("set `table`: {NAME_HINT}"),
                ));
            }
            let table = Table::open(&self.config.uri, name, self.config.durability).await?;
            if let Some(schema) = table.schema() {
                columns.check(name, &schema)?;
            }
            self.opened = Some(Opened {
                table,
                columns,
                fingerprint: input.fingerprint.clone(),
                indexes_text: self.config.text_index
                    && input.fields.get(&Field::TEXT.name) == Some(Field::TEXT.ty),
            });
            Ok(())
        })
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            for Delivery { item, ack } in batch {
                let key = address(ack.document());
                let rows = self
                    .coming
                    .entry(key)
                    .or_insert_with(|| Rows::new(item.origin().id));
                rows.n_bytes += item.n_bytes();
                rows.items.push(item);
                rows.acks.push(ack);
                if rows.n_bytes >= SPILL_BYTES {
                    self.spill(key).await?;
                }
            }
            self.commit_if_due().await
        })
    }

    fn end_document(&mut self, document: &Document) -> BoxFuture<'_, Result<(), StageError>> {
        let ended = Ended {
            rows: self.coming.remove(&address(document)),
            document: document.origin().id,
            has_failed: document.has_failed(),
            n_dead: document.n_dead(),
        };
        Box::pin(self.end(ended))
    }

    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(self.commit())
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            self.commit().await?;
            self.opened().table.tidy().await;
            Ok(())
        })
    }
}

/// Tells the arrivals of documents apart.
fn address(document: &Document) -> usize {
    std::ptr::from_ref(document).addr()
}

const NAME_HINT: &str = "use letters, digits, `_`, `-` and `.`, such as \"pages\"";

/// What LanceDB takes for a name.
fn is_table_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

#[cfg(test)]
mod tests;

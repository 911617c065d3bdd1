//! Writing to a table so that a document's rows are there once, or not at all.
//!
//! Rows are written to data files first, which nobody sees. Then one commit
//! takes the new files in and the document's old rows out. The commit carries
//! the ids of its documents: of two writers with the same document, the second
//! is refused, reads the table again, and takes the rows of the first one out.
//! (`merge_insert` does not notice the second writer, and a plain append does
//! not conflict with anything, so every writer must use this form.)

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::transaction::{Operation, TransactionBuilder, UpdateMode};
use lance::dataset::write::merge_insert::inserted_rows::{FilterType, KeyExistenceFilter};
use lance::dataset::{
    CommitBuilder, DeleteBuilder, InsertBuilder, NewColumnTransform, WriteMode, WriteParams,
};
use lance::io::ObjectStoreParams;
use lance::table::format::Fragment;
use lance::{Dataset, Error};
use lancedb::connection::LanceFileVersion;
use object_store::path::Path as ObjectPath;
use pagemill_pipeline::{DocumentId, StageError};

use super::Durability;
use super::journal::{JournaledStore, WriteJournal};
use crate::row::{DOCUMENT_ID, PIPELINE};

/// How often a commit is tried while other writers get in first.
const MAX_ATTEMPTS: u32 = 32;

/// Who writes to a table, and how.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    /// Only rows of this pipeline are replaced and removed.
    pub(super) pipeline: String,
    /// See [`SinkInput::writer`](pagemill_pipeline::SinkInput).
    pub(super) id: String,
    pub(super) durability: Durability,
}

/// A table that this process writes to.
pub(super) struct Table {
    pub(super) name: String,
    uri: String,
    /// The folder of a local database.
    folder: Option<String>,
    store: Option<ObjectStoreParams>,
    /// The version that was read or committed last; `None` while there is no table.
    pub(super) dataset: Option<Arc<Dataset>>,
    /// Whether `make_text_index` has nothing left to do.
    pub(super) has_text_index: bool,
    /// The version up to which every change of rows is known: of the inventory,
    /// or a commit of ours since.
    pub(super) known_version: Option<u64>,
    /// Our commits since then.
    own: HashSet<String>,
    pub(super) pipeline: String,
    /// Of the files of a local table.
    pub(super) journal: Option<Arc<WriteJournal>>,
}

impl Table {
    /// Opens the table `name` in the folder or at the URL `uri`; there need not be one yet.
    ///
    /// # Errors
    /// A folder that cannot be written, a table that cannot be read.
    pub(super) async fn open(uri: &str, name: &str, writer: Writer) -> Result<Self, StageError> {
        let folder = if is_local(uri) {
            Some(writable_folder(uri)?)
        } else {
            None
        };
        let mut table = Self::new(folder, uri, name, writer);
        table.reload().await?;
        Ok(table)
    }

    /// Opens the table to look at it: nothing is made or changed.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub(super) async fn peek(uri: &str, name: &str, writer: Writer) -> Result<Self, StageError> {
        let folder = is_local(uri).then(|| absolute_folder(uri)).transpose()?;
        let mut table = Self::new(folder, uri, name, writer);
        let journal = table.journal.as_ref();
        if journal.is_none_or(|journal| journal.has_table()) {
            table.reload().await?;
        }
        Ok(table)
    }

    fn new(folder: Option<String>, uri: &str, name: &str, writer: Writer) -> Self {
        let (uri, store, journal) = if let Some(folder) = &folder {
            let path = format!("{folder}/{name}.lance");
            let journal = Arc::new(WriteJournal::new(Path::new(&path), &writer.id));
            let store = JournaledStore {
                journal: Arc::clone(&journal),
                syncs: writer.durability == Durability::Power,
            };
            let store = ObjectStoreParams {
                object_store_wrapper: Some(Arc::new(store)),
                ..ObjectStoreParams::default()
            };
            // Only this scheme writes through the store that can be wrapped.
            let uri = format!("file-object-store://{}", url_path(&path));
            (uri, Some(store), Some(journal))
        } else {
            (remote_uri(uri, name), None, None)
        };
        Self {
            name: name.to_owned(),
            uri,
            folder,
            store,
            dataset: None,
            has_text_index: false,
            known_version: None,
            own: HashSet::new(),
            pipeline: writer.pipeline,
            journal,
        }
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The table's columns, once there is one.
    pub(super) fn schema(&self) -> Option<SchemaRef> {
        let dataset = self.dataset.as_ref()?;
        Some(Arc::new(Schema::from(dataset.schema())))
    }

    /// Makes the table; if another writer was first, opens that one.
    pub(super) async fn create(&mut self, schema: Schema) -> Result<(), StageError> {
        // Of two that make a table at one moment, lance lets the second one
        // write over the first one's. On an object store nothing prevents it.
        let _lock = match &self.folder {
            Some(folder) => Some(lock(folder, &self.name).await?),
            None => None,
        };
        self.reload().await?;
        if self.dataset.is_some() {
            return Ok(());
        }
        let params = WriteParams {
            mode: WriteMode::Create,
            // Later formats scan multi-vectors about three times slower.
            data_storage_version: Some(LanceFileVersion::V2_0),
            ..self.write_params()
        };
        let empty = RecordBatch::new_empty(Arc::new(schema));
        let created = InsertBuilder::new(self.uri.as_str())
            .with_params(&params)
            .execute(vec![empty])
            .await;
        match created {
            Ok(dataset) => {
                self.dataset = Some(Arc::new(dataset));
                Ok(())
            }
            Err(Error::DatasetAlreadyExists { .. }) => self.reload().await,
            Err(error) if is_conflict(&error) => self.reload().await,
            Err(error) => Err(self.cannot("make", error)),
        }
    }

    /// Adds columns that are null in the rows that are there. If another writer
    /// was first, takes the table as that one left it: the caller looks again.
    pub(super) async fn add_columns(&mut self, columns: Vec<Field>) -> Result<(), StageError> {
        let mut dataset = Dataset::clone(self.latest()?);
        let added = NewColumnTransform::AllNulls(Arc::new(Schema::new(columns)));
        match dataset.add_columns(added, None, None).await {
            Ok(()) => {
                self.dataset = Some(Arc::new(dataset));
                Ok(())
            }
            Err(error) if is_conflict(&error) => self.reload().await,
            Err(error) => {
                let problem = self.cannot("add a column to", error);
                // A column of that name may be there by now.
                let before = self.schema();
                self.reload().await?;
                if self.schema() == before {
                    Err(problem)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Writes rows that nobody sees before [`Table::replace`] takes them in.
    pub(super) async fn write(&self, rows: RecordBatch) -> Result<Vec<Fragment>, StageError> {
        let params = WriteParams {
            mode: WriteMode::Append,
            ..self.write_params()
        };
        let written = InsertBuilder::new(Arc::clone(self.latest()?))
            .with_params(&params)
            .execute_uncommitted(vec![rows])
            .await
            .map_err(|error| self.cannot("write to", error))?;
        match written.operation {
            Operation::Append { fragments } => Ok(fragments),
            other => Err(StageError::fatal(
                format_args!("an append to table `{}` became {}", self.name, other.name()),
                "this is a bug in pagemill",
            )),
        }
    }

    /// In one commit: the rows of `documents` go, those in `fragments` come.
    pub(super) async fn replace(
        &mut self,
        documents: &[DocumentId],
        fragments: Vec<Fragment>,
    ) -> Result<(), StageError> {
        for attempt in 1..=MAX_ATTEMPTS {
            match self.try_replace(documents, fragments.clone()).await {
                Ok(dataset) => {
                    self.dataset = Some(dataset);
                    let own = std::mem::take(&mut self.own);
                    self.note_version(&own).await;
                    return Ok(());
                }
                Err(error) if is_conflict(&error) => {
                    tracing::debug!(table = self.name, attempt, %error, "another writer was first");
                    tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 5)).await;
                    self.reload().await?;
                }
                Err(error) => return Err(self.cannot("write to", error)),
            }
        }
        Err(StageError::fatal(
            format_args!(
                "other writers changed table `{}` at each of {MAX_ATTEMPTS} attempts to write to it",
                self.name
            ),
            "run fewer pipelines into one table, or raise `commit.max_rows`",
        ))
    }

    async fn try_replace(
        &mut self,
        documents: &[DocumentId],
        fragments: Vec<Fragment>,
    ) -> lance::Result<Arc<Dataset>> {
        let dataset = self.dataset.clone();
        let dataset = &dataset.ok_or_else(|| Error::internal("the table was not made"))?;
        let ids: Vec<String> = documents.iter().map(|id| format!("'{id}'")).collect();
        // Names of pipelines are letters, digits, `_` and `-`.
        let old_rows = format!(
            "{DOCUMENT_ID} IN ({}) AND {PIPELINE} = '{}'",
            ids.join(", "),
            self.pipeline
        );
        let deletion = DeleteBuilder::new(Arc::clone(dataset), old_rows)
            .execute_uncommitted()
            .await?;
        if deletion.num_deleted_rows == 0 && fragments.is_empty() {
            return Ok(Arc::clone(dataset));
        }
        let Operation::Delete {
            updated_fragments,
            deleted_fragment_ids,
            ..
        } = deletion.transaction.operation
        else {
            return Err(Error::internal("a deletion is `Operation::Delete`"));
        };
        let key = dataset
            .schema()
            .field(DOCUMENT_ID)
            .ok_or_else(|| Error::internal("the table has a column `document_id`"))?
            .id;
        let operation = Operation::Update {
            removed_fragment_ids: deleted_fragment_ids,
            updated_fragments,
            new_fragments: fragments,
            fields_modified: Vec::new(),
            compacted_sstables: Vec::new(),
            // Every column has new values, so no index covers the new rows yet.
            fields_for_preserving_frag_bitmap: dataset
                .schema()
                .fields_pre_order()
                .map(|field| field.id as u32)
                .collect(),
            update_mode: Some(UpdateMode::RewriteRows),
            inserted_rows_filter: Some(KeyExistenceFilter {
                field_ids: vec![key],
                filter: FilterType::ExactSet(documents.iter().map(key_of).collect::<HashSet<_>>()),
            }),
            updated_fragment_offsets: None,
        };
        let transaction = TransactionBuilder::new(dataset.version().version, operation).build();
        self.own.insert(transaction.uuid.clone());
        let mut commit = CommitBuilder::new(Arc::clone(dataset));
        if let Some(rows) = deletion.affected_rows {
            commit = commit.with_affected_rows(rows);
        }
        Ok(Arc::new(Box::pin(commit.execute(transaction)).await?))
    }

    pub(super) async fn reload(&mut self) -> Result<(), StageError> {
        let mut builder = DatasetBuilder::from_uri(&self.uri);
        if let Some(dataset) = &self.dataset {
            builder = builder.with_session(dataset.session());
        }
        if let Some(store) = &self.store {
            builder = builder.with_store_params(store.clone());
        }
        self.dataset = match builder.load().await {
            Ok(dataset) => Some(Arc::new(dataset)),
            Err(Error::DatasetNotFound { .. } | Error::NotFound { .. }) => None,
            Err(error) => return Err(self.cannot("open", error)),
        };
        Ok(())
    }

    fn write_params(&self) -> WriteParams {
        WriteParams {
            store_params: self.store.clone(),
            ..WriteParams::default()
        }
    }

    pub(super) fn latest(&self) -> Result<&Arc<Dataset>, StageError> {
        self.dataset.as_ref().ok_or_else(|| {
            StageError::fatal(
                format_args!("table `{}` is gone", self.name),
                "do not remove a table while a pipeline writes to it; run again to make it anew",
            )
        })
    }

    pub(super) fn cannot(&self, act: &str, error: Error) -> StageError {
        StageError::cannot_store(
            format_args!("cannot {act} table `{}`", self.name),
            "mend the cause (no permission, files removed) and run again: what was stored stays",
            error,
        )
    }
}

/// Waits until no other process makes the table `name`; until the file is dropped.
async fn lock(folder: &str, name: &str) -> Result<File, StageError> {
    let path = Path::new(folder).join(format!(".{name}.lock"));
    let locked = tokio::task::spawn_blocking(move || {
        let mut options = File::options();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        match file.lock() {
            // A file system without locks.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(file),
            locked => locked.map(|()| file),
        }
    });
    let locked = locked.await.map_err(std::io::Error::other);
    let locked = locked.and_then(|locked| locked);
    locked.map_err(|error| cannot_write(folder, error))
}

fn key_of(document: &DocumentId) -> u64 {
    let mut key = [0; 8];
    key.copy_from_slice(&document.as_bytes()[..8]);
    u64::from_le_bytes(key)
}

fn is_conflict(error: &Error) -> bool {
    matches!(
        error,
        Error::RetryableCommitConflict { .. }
            | Error::CommitConflict { .. }
            | Error::TooMuchWriteContention { .. }
    )
}

/// Files that were made to see whether a folder can be written.
static N_PROBES: AtomicU64 = AtomicU64::new(0);

/// Makes the folder and checks that files can be made in it; its absolute path.
fn writable_folder(uri: &str) -> Result<String, StageError> {
    let cannot = |error| cannot_write(uri, error);
    let text = absolute_folder(uri)?;
    let folder = Path::new(&text);
    std::fs::create_dir_all(folder).map_err(cannot)?;
    // Two sinks of one process may look at one moment.
    let number = N_PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = folder.join(format!(".pagemill-{}-{number}", std::process::id()));
    std::fs::write(&probe, b"").map_err(cannot)?;
    std::fs::remove_file(&probe).map_err(cannot)?;
    Ok(text)
}

fn absolute_folder(uri: &str) -> Result<String, StageError> {
    let folder = std::path::absolute(Path::new(uri)).map_err(|error| cannot_write(uri, error))?;
    folder.to_str().map(str::to_owned).ok_or_else(|| {
        StageError::fatal(
            format_args!("the folder `{uri}` has a name that is not UTF-8"),
            "set `uri` to a folder with another name",
        )
    })
}

fn cannot_write(uri: &str, error: std::io::Error) -> StageError {
    StageError::cannot_store(
        format_args!("cannot write to the folder `{uri}`"),
        "set `uri` to a folder that this user may write to",
        error,
    )
}

/// Whether the database is a folder of this machine.
pub(super) fn is_local(uri: &str) -> bool {
    !uri.contains("://")
}

/// The folder that a URI names, where it is on this machine.
pub(super) fn local_path(uri: &str) -> Option<Cow<'_, str>> {
    if is_local(uri) {
        return Some(uri.into());
    }
    let (scheme, rest) = uri.split_once("://")?;
    let is_file = ["file", "file-object-store"].contains(&&*scheme.to_ascii_lowercase());
    let path = ObjectPath::from_url_path(rest).ok().filter(|_| is_file)?;
    Some(format!("/{path}").into())
}

/// The URL of the table `name` in a database that is no folder.
pub(super) fn remote_uri(uri: &str, name: &str) -> String {
    format!("{}/{name}.lance", uri.trim_end_matches('/'))
}

/// A path as the path of a URL.
fn url_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes any text");
        }
    }
    encoded
}

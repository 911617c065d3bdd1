//! Part files in a folder: what the sinks `jsonl` and `parquet` have in common.
//!
//! A part holds the rows of whole documents. It is written beside its place,
//! under a name that begins with a dot and ends in `.partial`, and appears by
//! being renamed. New documents go to a new part; a document that comes again
//! is replaced in the part that holds it, which is written anew and renamed
//! over the old one. So each document stands in one part or in none, whenever
//! the process ends, and a reader sees all of its rows or none.
//!
//! Small parts are merged (`merge.rs`): their rows are written beside the
//! newest of them, renamed over it, and then the others are removed. Between
//! the rename and the removals a document stands in two parts, with the same
//! rows. A run that is killed there leaves them so; the next one keeps the
//! document in the later part. A reader that lists the folder in that moment
//! counts it twice, and none misses it.

mod faults;
mod folder;
mod manifest;
mod merge;
mod place;
mod store;
mod tally;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use pagemill_pipeline::{
    Delivery, DocumentId, Ended, FieldError, Inventory, Item, Sink, SinkInput, SinkPlace,
    StageError, StoredDocument, resolved,
};
use serde::Deserialize;

pub(crate) use self::manifest::{list_from_json, list_to_json};
pub(crate) use self::tally::{RowHead, Tally};

use self::store::Store;
use crate::lancedb::Durability;

/// When complete documents become a part: as soon as one of these is reached.
/// Small parts are merged until one has `max_rows` rows or a file of `max_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartConfig {
    /// So many rows wait.
    pub max_rows: usize,
    /// So many bytes wait.
    pub max_bytes: usize,
    /// A document has waited for so long.
    pub max_wait_ms: u64,
}

impl Default for PartConfig {
    fn default() -> Self {
        Self {
            max_rows: 100_000,
            max_bytes: 64 << 20,
            max_wait_ms: 5000,
        }
    }
}

/// The settings that all formats have.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) folder: PathBuf,
    pub(crate) limits: PartConfig,
    pub(crate) durability: Durability,
}

/// The identity of a sink that writes parts into this folder.
pub(crate) fn place(folder: &Path) -> SinkPlace {
    let clean = resolved(folder).unwrap_or_else(|_| folder.to_owned());
    SinkPlace {
        identity: format!("parts:{}", clean.display()),
        setting: "path",
    }
}

/// How the rows of a part are written and read.
pub(crate) trait Format: Send + 'static {
    /// What the names of parts end in.
    const EXTENSION: &'static str;

    /// Learns what the rows look like; `newest` is the newest part, if there is one.
    ///
    /// # Errors
    /// Rows that do not fit those that are there.
    fn open(&mut self, input: &SinkInput, newest: Option<&Path>) -> Result<(), StageError>;

    /// The documents that a part has rows of.
    ///
    /// # Errors
    /// A file that is no part.
    fn documents(&self, part: &Path) -> Result<Vec<StoredDocument>, PartError>;

    /// Writes a part of these rows, which are of these documents.
    ///
    /// # Errors
    /// What cannot be read or written, and rows that do not fit each other.
    fn write(
        &mut self,
        file: &File,
        rows: &[Rows<'_>],
        documents: &[StoredDocument],
    ) -> Result<(), PartError>;
}

/// Rows that go into a part.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Made from these.
    Items(&'a [Item]),
    /// Copied from another part, except those of the documents `without`.
    Part {
        path: &'a Path,
        without: &'a HashSet<DocumentId>,
    },
}

/// Why a part cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("line {line} is no row of a document")]
    Line {
        line: usize,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// A sink that writes part files.
pub(crate) struct PartSink<F: Format> {
    store: Arc<Mutex<Store<F>>>,
}

impl<F: Format> PartSink<F> {
    /// Checks the settings; nothing is opened yet.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(crate) fn new(settings: Settings, format: F) -> Result<Self, FieldError> {
        if settings.folder.as_os_str().is_empty() {
            return Err(FieldError::new(
                "path",
                "must not be empty",
                "write the folder of the parts, such as \"data/pages\"",
            ));
        }
        if settings.limits.max_rows == 0 || settings.limits.max_bytes == 0 {
            return Err(FieldError::new(
                "part",
                "must let at least one row and one byte wait",
                "leave `max_rows` and `max_bytes` out, or raise them",
            ));
        }
        Ok(Self {
            store: Arc::new(Mutex::new(Store::new(settings, format))),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Store<F>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and syncs files on a thread that may wait for a disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store<F>) -> Result<T, StageError> + Send + 'static,
    ) -> Result<T, StageError> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.unwrap_or_else(|error| {
            Err(StageError::caused(
                "writing a part ended in a panic",
                "this is a bug in pagemill",
                error,
            ))
        })
    }
}

impl<F: Format> Sink for PartSink<F> {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        let input = input.clone();
        Box::pin(self.blocking(move |store| store.open(&input)))
    }

    fn inventory<'a>(
        &'a mut self,
        mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        let inventory = self.lock().inventory(mark);
        Box::pin(async { Ok(inventory) })
    }

    fn peek<'a>(
        &'a mut self,
        _input: &'a SinkInput,
        mark: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Inventory, StageError>> {
        let mark = mark.map(str::to_owned);
        Box::pin(self.blocking(move |store| store.peek(mark.as_deref())))
    }

    fn mark(&self) -> Option<String> {
        self.lock().mark()
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            let is_due = {
                let mut store = self.lock();
                store.take(batch);
                store.is_due()
            };
            if is_due {
                self.blocking(Store::write_due).await?;
            }
            Ok(())
        })
    }

    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            let is_due = {
                let mut store = self.lock();
                store.end(ended);
                store.is_due()
            };
            if is_due {
                self.blocking(Store::write_due).await?;
            }
            Ok(())
        })
    }

    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(self.blocking(Store::idle))
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(self.blocking(Store::finish))
    }
}

#[cfg(test)]
mod tests;

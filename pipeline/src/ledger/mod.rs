//! The ledger: what is done, so that the next run need not do it again.
//!
//! Rows are the truth; the ledger is a cache beside them. A run asks each sink
//! for its inventory when the mark that the sink left no longer fits, and
//! believes the sink. A document is done for each sink on its own: a sink that
//! lacks it gets it, and the others are left alone. Of a document that was not
//! finished the ledger knows the pages that are durable already, as rows that a
//! sink has staged.

mod copy;
mod document;
mod file;
mod progress;
mod rates;
mod read_back;
mod reconcile;
mod resume;
mod store;

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use document::{LedgerDocument, StoredIn};
pub(crate) use progress::{Progress, Standing, Wanted};
pub(crate) use rates::{NodeRate, Rates};

use crate::document::Ack;
use crate::error::StageError;
use crate::graph::SinkKey;
use crate::key::DocumentId;
use store::{StagedPart, Store};

/// The durable record of what one pipeline has done.
#[derive(Debug)]
pub struct Ledger {
    store: Store,
    /// Held by the one run that resumes inside documents; released with the process.
    lock: Option<File>,
    /// Whether it is a copy in memory: nobody else has it.
    is_copy: bool,
}

impl Ledger {
    /// Opens the ledger of `pipeline` in `folder`, making it where it is absent.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open(folder: &Path, pipeline: &str) -> Result<Self, StageError> {
        Ok(Self {
            store: Store::open(&place(folder, pipeline, "db"))?,
            lock: None,
            is_copy: false,
        })
    }

    /// A copy of the ledger in memory: what is changed in it changes nothing on disk.
    pub(crate) fn copy(folder: &Path, pipeline: &str) -> Result<Self, StageError> {
        Ok(Self {
            store: Store::copy(&place(folder, pipeline, "db"))?,
            lock: None,
            is_copy: true,
        })
    }

    /// Whether no other run resumes inside documents while this one is open.
    fn is_only_one(&self) -> bool {
        self.is_copy || self.lock.is_some()
    }

    /// Opens the ledger, or nothing where no run has made one yet.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open_existing(folder: &Path, pipeline: &str) -> Result<Option<Self>, StageError> {
        let is_there = place(folder, pipeline, "db").exists();
        is_there.then(|| Self::open(folder, pipeline)).transpose()
    }

    /// The same, and tries to be the one run that stages: two that did would
    /// take over each other's rows.
    pub(crate) fn open_for_run(folder: &Path, pipeline: &str) -> Result<Self, StageError> {
        let mut ledger = Self::open(folder, pipeline)?;
        let path = place(folder, pipeline, "lock");
        let opened = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = opened.map_err(|error| {
            let problem = format!("cannot use the ledger `{}`", path.display());
            StageError::cannot_store(problem, "make the folder writable", error)
        })?;
        match file.try_lock() {
            Ok(()) => ledger.lock = Some(file),
            Err(TryLockError::WouldBlock) => tracing::info!(
                pipeline,
                "another run of this pipeline is under way: this one does not resume inside documents"
            ),
            // A file system without locks.
            Err(TryLockError::Error(error)) => tracing::debug!(%error, "the ledger is not locked"),
        }
        Ok(ledger)
    }

    /// Every document that is known, in order of URI.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn documents(&self) -> Result<Vec<LedgerDocument>, StageError> {
        self.store.documents()
    }

    /// The documents that were begun and not finished, with their pages that are
    /// durable already: those that the next run does not make again.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn unfinished(&self) -> Result<Vec<(DocumentId, BTreeSet<u32>)>, StageError> {
        let staged = self.store.staged()?;
        let ids: BTreeSet<DocumentId> = staged.iter().map(|part| part.id).collect();
        ids.into_iter()
            .map(|id| {
                let pages = self.store.pages(id)?.into_iter();
                Ok((id, pages.map(|(_, page)| page).collect()))
            })
            .collect()
    }

    /// Has these documents done again by the next run.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn undo(&self, documents: &[DocumentId]) -> Result<(), StageError> {
        self.store.change(|to| {
            documents.iter().try_for_each(|id| {
                to.undo(*id)?;
                to.forget_staged(*id)
            })
        })
    }

    /// Notes how many dead letters are left of each of these documents, after
    /// some were removed by hand.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn set_dead(&self, documents: &[(DocumentId, u64)]) -> Result<(), StageError> {
        self.store.change(|to| {
            let mut documents = documents.iter();
            documents.try_for_each(|(id, n_dead)| to.set_dead(*id, *n_dead))
        })
    }
}

fn place(folder: &Path, pipeline: &str, extension: &str) -> PathBuf {
    folder.join(format!("{pipeline}.{extension}"))
}

/// Where a sink notes rows that are durable, though in no version of its table:
/// a run that is stopped goes on after them.
#[derive(Debug, Clone)]
pub struct Stager {
    progress: Arc<Progress>,
    sink: SinkKey,
}

impl Stager {
    /// Notes that the rows of these items of one document are durable and that
    /// `payload` is enough to find them: it comes back through
    /// [`Sink::adopt`](crate::Sink::adopt). Only the items that
    /// [`Delivery::take_whole_pages`](crate::Delivery::take_whole_pages) returned.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn stage(&self, acks: &mut [Ack], payload: Vec<u8>) -> Result<(), StageError> {
        let Some(document) = acks.first().map(|ack| Arc::clone(ack.document())) else {
            return Ok(());
        };
        let Some(ledger) = self.progress.ledger() else {
            return Ok(());
        };
        let origin = document.origin();
        let pages = acks.iter().filter_map(Ack::page_of);
        let part = StagedPart {
            id: origin.id,
            uri: origin.uri.to_string(),
            source: document.arrival().source.to_string(),
            content_hash: origin.content_hash.to_string(),
            fingerprint: self.sink.fingerprint.clone(),
            sink: self.sink.identity.clone(),
            pages: pages.map(|(node, page)| (node.to_string(), page)).collect(),
            n_rows: acks.len() as u64,
            payload,
        };
        ledger.store.change(|to| {
            to.stage(&part)?;
            // Only now, and under the ledger's lock: of two sinks the second
            // one notes the page, when the rows of both are noted.
            acks.iter_mut().for_each(Ack::staged);
            for (node, page) in document.take_pages_done() {
                to.page_done(origin.id, &node, page)?;
            }
            Ok(())
        })
    }
}

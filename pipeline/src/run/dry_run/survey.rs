//! Counts documents while the sources of a dry run go through them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::forecast::DocumentForecast;
use super::page_counter::{Broken, DocumentPages, PageCounter};
use crate::document::{Partial, Resumed};
use crate::error::ItemError;
use crate::item::Item;
use crate::key::{Key, Origin};
use crate::ledger::Standing;
use crate::secrets::Secrets;

/// A document that a run would send.
pub(crate) struct Surveyed {
    pub(crate) item: Item,
    /// Its source's node.
    pub(crate) source: Arc<str>,
    /// The sinks that it is made for, where others hold it.
    pub(crate) partial: Option<Arc<Partial>>,
    /// Pages that an earlier run has stored.
    pub(crate) resumed: Option<Arc<Resumed>>,
    /// The stage that stored rows would be sent on from, and the number of their
    /// pages, where it would be made from those.
    pub(crate) from_rows: Option<(Arc<str>, u64)>,
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Counted {
    pub(super) documents: DocumentForecast,
    /// Documents that are made again, by the sink that lacks them.
    pub(super) made_again_for: BTreeMap<String, u64>,
    pub(super) n_bytes: u64,
    pub(super) n_pages: u64,
    /// Pages by the node that makes them.
    pub(super) pages_by_node: BTreeMap<Arc<str>, u64>,
    /// Pages of documents that are made from stored rows, by the stage behind which
    /// they are sent on.
    pub(super) pages_from_rows: BTreeMap<Arc<str>, u64>,
}

/// The counts of a dry run, which all its sources share.
pub(crate) struct Survey {
    counted: Mutex<Counted>,
    counter: PageCounter,
    secrets: Secrets,
}

impl Survey {
    pub(super) fn new(counter: PageCounter, secrets: Secrets) -> Self {
        Self {
            counted: Mutex::default(),
            counter,
            secrets,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts, with the documents that the sources passed over.
    pub(super) fn counts(&self, n_unchanged: u64) -> Counted {
        let mut counted = self.lock().clone();
        counted.documents.unchanged += n_unchanged;
        counted
    }

    /// Counts a document that a run would send.
    ///
    /// # Errors
    /// When a stage cannot go on.
    pub(crate) async fn count(&self, standing: Standing, document: Surveyed) -> Result<(), Broken> {
        let origin = Arc::clone(document.item.origin());
        let bytes = document.item.document().map(|bytes| bytes.len());
        let n_bytes = bytes.unwrap_or_else(|| document.item.n_bytes()) as u64;
        let from_rows = document.from_rows.clone();
        let pages = match &from_rows {
            // Nothing opens it.
            Some(_) => DocumentPages::default(),
            None => self.counter.count(document).await?,
        };
        if pages.by_node.is_empty()
            && let Some((node, error)) = pages.unreadable.first()
        {
            self.count_unreadable(node, &origin, error);
            return Ok(());
        }
        let mut counted = self.lock();
        let documents = &mut counted.documents;
        match standing {
            Standing::New => documents.new += 1,
            Standing::Changed => documents.changed += 1,
            Standing::MadeAgain(sinks) => {
                documents.made_again += 1;
                for sink in sinks {
                    *counted.made_again_for.entry(sink.to_string()).or_default() += 1;
                }
            }
        }
        counted.n_bytes += n_bytes;
        if let Some((stage, n_pages)) = from_rows {
            counted.documents.from_rows += 1;
            *counted.pages_from_rows.entry(stage).or_default() += n_pages;
            return Ok(());
        }
        // As the progress of a run counts: one without pages is one page, and where
        // several nodes make pages of it, the largest number counts.
        let n_pages = pages.by_node.iter().map(|(_, n_pages)| *n_pages).max();
        counted.n_pages += n_pages.unwrap_or(1);
        for (node, n_pages) in pages.by_node {
            *counted.pages_by_node.entry(node).or_default() += n_pages;
        }
        Ok(())
    }

    /// Counts a document that a run would set aside as a whole.
    pub(crate) fn count_unreadable(&self, node: &str, origin: &Origin, error: &ItemError) {
        let error = self.secrets.redact_item(error);
        let message = error.message(&origin.label(Key::document(origin.id)));
        tracing::warn!(node, hint = error.hint.as_deref(), "{message}");
        self.lock().documents.unreadable += 1;
    }

    /// Counts documents that are gone from their source and whose rows stay.
    pub(crate) fn count_gone(&self, n_documents: u64) {
        self.lock().documents.gone += n_documents;
    }

    /// Counts a document that is gone from its source, with its rows.
    pub(crate) fn count_removed(&self) {
        let mut counted = self.lock();
        counted.documents.gone += 1;
        counted.documents.removed += 1;
    }
}

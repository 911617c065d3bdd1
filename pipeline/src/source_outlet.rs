//! What a source sends through.

use std::sync::Arc;

use crate::edge::{EdgeSender, Stop};
use crate::error::{ItemError, StageError};
use crate::item::Item;
use crate::key::{Key, Origin};
use crate::metrics::{NodeMetrics, Spent, add_one};
use crate::run::Shared;

/// Where a source puts the documents that it found. Clones send to the same place.
#[derive(Clone)]
pub struct SourceOutlet {
    pub(crate) node: Arc<str>,
    pub(crate) edges: Arc<Vec<EdgeSender>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<NodeMetrics>,
}

impl SourceOutlet {
    /// Sends a document on. Waits while the edge is full.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] when the run stops; pass it on with `?`.
    pub async fn send(&self, mut item: Item) -> Result<(), StageError> {
        self.shared
            .dead_letters
            .forget(&item.key().document.to_string())?;
        item.token = Some(self.shared.tracker.begin(item.origin()));
        NodeMetrics::count(&self.metrics.items_out, 1);
        let Some((last, others)) = self.edges.split_last() else {
            return Ok(());
        };
        for edge in others {
            let waited = edge.send_async(item.clone()).await?;
            self.metrics.spend(Spent::Blocked, waited);
        }
        let waited = last.send_async(item).await?;
        self.metrics.spend(Spent::Blocked, waited);
        Ok(())
    }

    /// Sets a document aside that could not even be read.
    ///
    /// # Errors
    /// When the dead letter cannot be written.
    pub fn dead_letter(&self, uri: &str, error: &ItemError) -> Result<(), StageError> {
        let origin = Origin::new(uri, "", &[]);
        self.shared.dead_letters.forget(&origin.id.to_string())?;
        let key = Key::document(origin.id);
        self.shared
            .dead_letters
            .write(&self.node, &origin, key, error, false)?;
        tracing::warn!(
            node = &*self.node,
            hint = error.hint.as_deref(),
            "{}",
            error.message(&origin.label(key))
        );
        NodeMetrics::count(&self.metrics.dead_letters, 1);
        add_one(&self.shared.metrics.dead_letters);
        add_one(&self.shared.metrics.documents_set_aside);
        Ok(())
    }

    /// Says how many documents will come, for the progress bar. Adds up over calls.
    pub fn expect(&self, n_documents: usize) {
        let expected = &self.shared.metrics.documents_expected;
        expected.fetch_add(n_documents as u64, std::sync::atomic::Ordering::AcqRel);
    }

    /// Counts a document that need not be read again.
    pub fn skip(&self) {
        add_one(&self.shared.metrics.documents_skipped);
    }

    /// Whether the source is asked to stop: send no more and return.
    pub fn is_draining(&self) -> bool {
        self.stop().is_draining()
    }

    /// Waits until the source is asked to stop; for `tokio::select!`.
    pub async fn draining(&self) {
        self.stop().draining().await;
    }

    fn stop(&self) -> &Stop {
        &self.shared.stop
    }
}

//! Decides which documents a run that drains leaves unfinished.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::Shared;
use crate::document::Document;
use crate::graph::{Node, Work};
use crate::metrics::{RunMetrics, add_one};

/// The parts of a graph that let the next run go on inside a document.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Sources whose documents come again.
    sources: HashSet<Arc<str>>,
    /// Sinks that keep none of the pages of a document that does not end.
    sinks_without_staging: BTreeSet<usize>,
}

impl Unfinished {
    pub(super) fn of(nodes: &[Node]) -> Self {
        let mut unfinished = Self::default();
        let mut n_sinks = 0;
        for node in nodes {
            match &node.work {
                Work::Source(source) if source.sends_again() => {
                    unfinished.sources.insert(Arc::clone(&node.name));
                }
                Work::Sink(sink) => {
                    if !sink.can_stage() {
                        unfinished.sinks_without_staging.insert(n_sinks);
                    }
                    n_sinks += 1;
                }
                Work::Source(_) | Work::Stage { .. } => {}
            }
        }
        unfinished
    }

    /// Whether the next run makes only those pages that this one has not made.
    fn allows(&self, document: &Document) -> bool {
        let mut sinks = self.sinks_without_staging.iter();
        self.sources.contains(&document.arrival().source)
            && !sinks.any(|sink| document.is_wanted_by(*sink))
            && document.can_be_interrupted()
    }
}

impl Shared {
    /// Interrupts the document if the run drains and the next one can go on with it.
    pub(super) fn leaves_unfinished(&self, document: &Document) -> bool {
        let leaves = self.stop.is_draining()
            && self.progress.can_stage()
            && self.unfinished.allows(document);
        if leaves {
            document.interrupt();
        }
        leaves
    }
}

/// Counts a document that has settled without being whole.
pub(super) fn count(metrics: &RunMetrics, document: &Document) {
    if document.has_lost_items() {
        add_one(&metrics.documents_failed);
        return;
    }
    let n_pages = document.n_pages_durable();
    tracing::info!(
        n_pages,
        "`{}` is unfinished: the next run makes the pages that are missing",
        document.origin().uri
    );
    metrics.count_unfinished(n_pages);
}

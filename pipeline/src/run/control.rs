//! Lets a program control a run: to stop it, and to see how far it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::IntervalStream;

use super::Shared;
use crate::cancellation::Stop;
use crate::edge::Budget;
use crate::meter::MetersSince;
use crate::metrics::{NodeMetrics, Role, Spent, read};
use crate::report::{NodeReport, Snapshot};

/// Steers and watches a run from outside. Clones steer the same run.
#[derive(Clone, Default)]
pub struct RunControl {
    pub(super) stop: Arc<Stop>,
    pub(super) watched: Arc<Mutex<Option<Arc<Watched>>>>,
    pub(super) started: Arc<watch::Sender<bool>>,
}

/// A run as it is seen from outside.
pub(super) struct Watched {
    pub(super) shared: Arc<Shared>,
    pub(super) nodes: Vec<WatchedNode>,
    pub(super) models: MetersSince,
    pub(super) started: Instant,
}

pub(super) struct WatchedNode {
    pub(super) name: Arc<str>,
    pub(super) role: Role,
    pub(super) workers: usize,
    pub(super) metrics: Arc<NodeMetrics>,
    /// Of the edges that lead to it.
    pub(super) budgets: Vec<Arc<Budget>>,
}

impl RunControl {
    /// Stops the sources; what is under way is finished and stored. Where the next
    /// run can go on inside a document, stages make no further pages of it: those
    /// that were made are kept, and the next run makes the others.
    pub fn drain(&self) {
        self.stop.drain();
    }

    /// Stops now: what is not durable is done again by the next run.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Waits until the sinks are open and the sources run: the moment from which
    /// documents come in. Ends with `false` when the run and its controls are
    /// gone before that.
    pub fn started(&self) -> impl Future<Output = bool> + use<> {
        let mut started = self.started.subscribe();
        async move { started.wait_for(|started| *started).await.is_ok() }
    }

    /// How far the run is, now and then every so often: for a progress line or
    /// a dashboard. The stream begins with the run and never ends by itself.
    pub fn snapshots(&self, every: Duration) -> impl Stream<Item = Snapshot> + use<> {
        let control = self.clone();
        IntervalStream::new(tokio::time::interval(every))
            .filter_map(move |_| std::future::ready(control.snapshot()))
    }

    /// How far the run is; `None` before it has begun.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.as_ref().map(|watched| watched.snapshot())
    }
}

impl Watched {
    pub(super) fn snapshot(&self) -> Snapshot {
        let (metrics, progress) = (&self.shared.metrics, &self.shared.progress);
        let (pages, pages_per_s) = self.shared.pages.now();
        let nodes = self.node_reports();
        let sinks = nodes.iter().filter(|node| node.role == Role::Sink);
        Snapshot {
            elapsed_s: self.started.elapsed().as_secs_f64(),
            documents_expected: read(&metrics.documents_expected),
            documents_done: read(&metrics.documents_done),
            documents_skipped: read(&metrics.documents_skipped),
            documents_set_aside: read(&metrics.documents_set_aside),
            documents_removed: read(&metrics.documents_removed),
            documents_unfinished: read(&metrics.documents_unfinished),
            pages_unfinished: read(&metrics.pages_unfinished),
            documents_refilled: self.shared.refilled.n_documents(),
            documents_under_way: self.shared.tracker.n_moving(),
            documents_counted: pages.n_documents,
            documents_in_part: pages.documents_in_part,
            pages_expected: pages.n_expected,
            pages_done: pages.n_done,
            pages_per_s,
            pages_resumed: read(&progress.n_pages_resumed),
            items_received: sinks.map(|sink| sink.items).sum(),
            items_stored: self.shared.tracker.n_durable(),
            dead_letters: read(&metrics.dead_letters),
            dead_letters_before: read(&progress.n_dead_before),
            nodes,
            models: self.models.reports(),
        }
    }
}

impl Watched {
    fn node_reports(&self) -> Vec<NodeReport> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .map(|(place, node)| {
                let gather = self.shared.gathers.get(&place);
                node.report(gather.map_or(0, |gather| gather.most_held()))
            })
            .collect()
    }
}

impl WatchedNode {
    fn report(&self, most_held_items: usize) -> NodeReport {
        let metrics = &self.metrics;
        let counter = if self.role == Role::Source {
            &metrics.items_out
        } else {
            &metrics.items_in
        };
        let held = self.budgets.iter().map(|budget| budget.held());
        let (queue_items, queue_bytes) = held.fold((0, 0), |(items, bytes), held| {
            (items + held.0, bytes + held.1)
        });
        NodeReport {
            name: self.name.to_string(),
            role: self.role,
            workers: self.workers,
            items: read(counter),
            items_out: read(&metrics.items_out),
            items_dropped: read(&metrics.dropped),
            batches: read(&metrics.batches),
            retries: read(&metrics.retries),
            dead_letters: read(&metrics.dead_letters),
            busy_s: metrics.seconds(Spent::Busy),
            starved_s: metrics.seconds(Spent::Starved),
            blocked_s: metrics.seconds(Spent::Blocked),
            queue_items,
            queue_bytes,
            most_held_items,
            batch_sizes: metrics.batch_sizes(),
            tokens: read(&metrics.tokens),
            padded_tokens: read(&metrics.padded_tokens),
            commit_times_ms: metrics.commit_times_ms(),
            commit_s: metrics.commit_s(),
        }
    }
}

/// Cancels a run whose future is dropped before its end.
pub(super) struct CancelOnDrop(pub(super) Option<Arc<Stop>>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.cancel();
        }
    }
}

//! Counts what every node does while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Brings items in.
    Source,
    /// Changes them.
    Stage,
    /// Stores them.
    Sink,
}

impl Role {
    /// The name of its table in TOML.
    pub fn table(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Stage => "stage",
            Self::Sink => "sink",
        }
    }
}

/// Counters of one node, added to by all its workers.
#[derive(Debug, Default)]
pub(crate) struct NodeMetrics {
    pub(crate) items_in: AtomicU64,
    pub(crate) items_out: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
    pub(crate) batches: AtomicU64,
    /// Items that no edge took.
    pub(crate) dropped: AtomicU64,
    /// Batches and items that were tried again.
    pub(crate) retries: AtomicU64,
    /// Batches by size: of 1 item, up to 2, up to 4, and so on.
    batch_sizes: [AtomicU64; N_BUCKETS],
    /// Tokens of the items, and tokens after padding.
    pub(crate) tokens: AtomicU64,
    pub(crate) padded_tokens: AtomicU64,
    /// Commits of a sink by time: up to 1 ms, up to 2 ms, up to 4 ms, and so on.
    commit_times: [AtomicU64; N_BUCKETS],
    commit_ns: AtomicU64,
    busy_ns: AtomicU64,
    starved_ns: AtomicU64,
    blocked_ns: AtomicU64,
}

/// Buckets of a histogram, each twice as wide as the one before; the last has no end.
pub(crate) const N_BUCKETS: usize = 16;

/// The bucket of a value: 0 for up to 1, 1 for up to 2, 2 for up to 4.
fn bucket(value: u64) -> usize {
    let width = u64::BITS - value.saturating_sub(1).leading_zeros();
    (width as usize).min(N_BUCKETS - 1)
}

/// Where a sink tells how long its commits take.
#[derive(Debug, Clone, Default)]
pub struct SinkMeter {
    pub(crate) metrics: Arc<NodeMetrics>,
}

impl SinkMeter {
    /// A commit took so long.
    pub fn commit(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        NodeMetrics::count(&self.metrics.commit_times[bucket(millis)], 1);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.metrics.commit_ns.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// What a worker's time went into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spent {
    /// Working.
    Busy,
    /// Waiting for input.
    Starved,
    /// Waiting for room downstream.
    Blocked,
}

impl NodeMetrics {
    pub(crate) fn spend(&self, on: Spent, time: Duration) {
        let counter = match on {
            Spent::Busy => &self.busy_ns,
            Spent::Starved => &self.starved_ns,
            Spent::Blocked => &self.blocked_ns,
        };
        counter.fetch_add(
            u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn count_batch(&self, n_items: usize) {
        Self::count(&self.items_in, n_items);
        Self::count(&self.batches, 1);
        Self::count(&self.batch_sizes[bucket(n_items as u64)], 1);
    }

    pub(crate) fn batch_sizes(&self) -> Vec<u64> {
        self.batch_sizes.iter().map(read).collect()
    }

    pub(crate) fn commit_times_ms(&self) -> Vec<u64> {
        self.commit_times.iter().map(read).collect()
    }

    pub(crate) fn commit_s(&self) -> f64 {
        Duration::from_nanos(read(&self.commit_ns)).as_secs_f64()
    }

    pub(crate) fn count(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn seconds(&self, on: Spent) -> f64 {
        let counter = match on {
            Spent::Busy => &self.busy_ns,
            Spent::Starved => &self.starved_ns,
            Spent::Blocked => &self.blocked_ns,
        };
        Duration::from_nanos(counter.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// Counters of the whole run.
#[derive(Debug, Default)]
pub(crate) struct RunMetrics {
    /// Documents that the source expects to bring in; 0 while it does not know.
    pub(crate) documents_expected: AtomicU64,
    pub(crate) documents_done: AtomicU64,
    pub(crate) documents_set_aside: AtomicU64,
    pub(crate) documents_failed: AtomicU64,
    pub(crate) documents_skipped: AtomicU64,
    pub(crate) documents_removed: AtomicU64,
    /// Documents that a run which drains has left to the next one.
    pub(crate) documents_unfinished: AtomicU64,
    /// Their pages that the next run need not make.
    pub(crate) pages_unfinished: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
}

impl RunMetrics {
    /// A document was left to the next run, with so many pages durable.
    pub(crate) fn count_unfinished(&self, n_pages: u64) {
        add_one(&self.documents_unfinished);
        self.pages_unfinished.fetch_add(n_pages, Ordering::AcqRel);
    }
}

pub(crate) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::AcqRel);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_double_in_width_and_the_last_has_no_end() {
        let values = [0, 1, 2, 3, 4, 5, 8, 9, 1 << 14, u64::MAX];
        assert_eq!(values.map(bucket), [0, 0, 1, 2, 2, 3, 3, 4, 14, 15]);
    }
}

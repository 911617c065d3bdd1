//! What every node measures while it runs.

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
    busy_ns: AtomicU64,
    starved_ns: AtomicU64,
    blocked_ns: AtomicU64,
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
    pub(crate) dead_letters: AtomicU64,
}

pub(crate) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::AcqRel);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Acquire)
}

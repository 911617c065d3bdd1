//! Counts the items that gathering nodes hold, of one document or of one page.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many items each node holds, by its place in the graph.
#[derive(Debug, Default)]
pub(super) struct Holders(Mutex<BTreeMap<usize, u64>>);

impl Holders {
    /// The counts, none of them 0; while this is kept, none of them changes.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node at `place` holds one more.
    pub(super) fn hold(&self, place: usize) {
        *self.lock().entry(place).or_default() += 1;
    }

    /// The node at `place` no longer holds one.
    pub(super) fn release(&self, place: usize) {
        let mut held_by = self.lock();
        if let Some(n_held) = held_by.get_mut(&place) {
            *n_held -= 1;
            if *n_held == 0 {
                held_by.remove(&place);
            }
        }
    }

    /// The first node, in the order of the graph, that holds any.
    pub(super) fn first(&self) -> Option<usize> {
        self.lock().keys().next().copied()
    }
}

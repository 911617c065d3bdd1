//! Counts the items of one page that are in flight and held, to notice when the page stalls.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use super::holders::Holders;

/// The items made from one page that are still in the graph.
///
/// An item that a node begins to hold is counted as held before it stops being
/// in flight, and one that is released is in flight before it stops being held.
/// So whoever finds none in flight while the holders are locked has found all.
#[derive(Debug, Default)]
pub(super) struct PageItems {
    in_flight: AtomicU64,
    /// Items that each gathering node holds, by its place in the graph.
    held_by: Holders,
}

impl PageItems {
    /// One more is in flight.
    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    /// One is no longer in flight. Returns whether the page has stalled: none
    /// is in flight, and some are held.
    pub(super) fn leave(&self) -> bool {
        self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.held_by.first().is_some()
    }

    /// The node at `place` holds one that is in flight until [`PageItems::leave`].
    pub(super) fn hold(&self, place: usize) {
        self.held_by.hold(place);
    }

    /// The node at `place` no longer holds one.
    pub(super) fn release(&self, place: usize) {
        self.held_by.release(place);
    }

    /// The places of the nodes that hold items, in the order of the graph.
    pub(super) fn holders(&self) -> Vec<usize> {
        self.held_by.lock().keys().copied().collect()
    }

    /// Whether none is in flight and none of `places` holds one.
    pub(super) fn is_stalled_behind(&self, places: &BTreeSet<usize>) -> bool {
        let held_by = self.held_by.lock();
        let is_held_before = held_by.keys().any(|place| places.contains(place));
        !is_held_before && self.in_flight.load(Ordering::SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_stalls_with_the_last_item_in_flight_if_some_are_held() {
        let items = PageItems::default();
        items.enter();
        items.enter();
        items.hold(3);
        assert!(!items.leave(), "another is in flight");
        assert!(items.leave());
        assert_eq!(items.holders(), [3]);
        items.enter();
        items.release(3);
        assert!(!items.leave(), "none is held");
    }

    #[test]
    fn a_page_is_not_stalled_behind_a_node_that_holds_items() {
        let items = PageItems::default();
        items.enter();
        items.hold(3);
        assert!(
            !items.is_stalled_behind(&BTreeSet::new()),
            "one is in flight"
        );
        items.leave();
        assert!(items.is_stalled_behind(&BTreeSet::from([1, 2])));
        assert!(!items.is_stalled_behind(&BTreeSet::from([1, 3])));
    }
}

//! Counts one item: a token while it moves, an ack while it is in a sink.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Document, HELD, IN_FLIGHT, PageCounts, PageOf, Unit};
use crate::key::Key;
use crate::page_progress::PageInFlight;

/// Counts one item of a document as moving for as long as it lives.
#[derive(Debug)]
pub(crate) struct Token {
    document: Arc<Document>,
    unit: Option<Arc<Unit>>,
    /// The page that the item is of, for the progress line.
    page: Option<Arc<PageInFlight>>,
    /// [`IN_FLIGHT`] or [`HELD`].
    counts_as: u64,
    held_by: usize,
    /// Which item of its batch it is, or was made from: a union may bring
    /// several of one key.
    slot: usize,
}

impl Token {
    pub(super) fn in_flight(document: Arc<Document>) -> Self {
        Self {
            document,
            unit: None,
            page: None,
            counts_as: IN_FLIGHT,
            held_by: 0,
            slot: 0,
        }
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn set_slot(&mut self, slot: usize) {
        self.slot = slot;
    }

    pub(crate) fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// Whether the item was made from a page.
    pub(crate) fn is_of_page(&self) -> bool {
        self.unit.is_some()
    }

    /// Whether the item was made from this page.
    pub(crate) fn is_of(&self, unit: &Arc<Unit>) -> bool {
        let ours = self.unit.as_ref();
        ours.is_some_and(|ours| Arc::ptr_eq(ours, unit))
    }

    /// Counts the item as one of the page that `node` makes, from now on.
    pub(crate) fn join_page(&mut self, node: &Arc<str>, page: u32, counts: PageCounts) {
        let maker = self.document.page_maker.get_or_init(|| Arc::clone(node));
        if maker != node {
            self.document.stall_as_a_whole();
        }
        let unit = self.document.unit(node, page, counts);
        unit.counts.fetch_add(IN_FLIGHT, Ordering::SeqCst);
        if let Some(items) = &unit.items {
            items.enter();
        }
        if let Some(old) = self.unit.replace(unit) {
            self.document.leave_page(&old, IN_FLIGHT);
        }
    }

    /// Lets the progress line follow the page that the item is of. Items made
    /// of it are of the same page.
    pub(crate) fn follow_page(&mut self, follow: impl FnOnce() -> Option<Arc<PageInFlight>>) {
        if self.page.is_none() {
            self.page = follow();
        }
    }

    /// The item leaves a node under a key of this page. A key of another page
    /// than the item was made from may be what a join waits for.
    pub(crate) fn check_page(&self, page: Option<u32>) {
        if let Some(unit) = &self.unit
            && unit.items.is_some()
            && page != Some(unit.page)
        {
            self.document.stall_as_a_whole();
        }
    }

    /// Whether both items were made from one page.
    pub(crate) fn shares_page(&self, other: &Self) -> bool {
        other.unit.as_ref().is_some_and(|unit| self.is_of(unit))
    }

    /// A token for an item of this key that is made from the same page, if the
    /// key is one of that page.
    pub(crate) fn of_same_page(&self, key: Key) -> Option<Self> {
        let unit = self.unit.as_ref()?;
        let is_of_page = unit.items.is_some()
            && key.document == self.document.origin.id
            && key.page == Some(unit.page);
        is_of_page.then(|| self.clone())
    }

    /// More of the page was to come, and may not: no page of the document can
    /// be taken for done, or for stalled, any more before the whole of it is.
    pub(crate) fn break_off_page(&self) {
        let has_loose_pages = &self.document.has_loose_pages;
        has_loose_pages.store(true, Ordering::SeqCst);
        self.document.stall_as_a_whole();
    }

    /// The item of `other` has become a part of this one's.
    pub(crate) fn merge_page(&self, other: &Self) {
        let is_same = self.shares_page(other) || !(self.is_of_page() || other.is_of_page());
        if !is_same {
            self.break_off_page();
        }
    }

    /// The item has reached the sink that stands `sink`-th: it moves no more,
    /// but is not durable yet.
    pub(crate) fn arrive(mut self, sink: usize) -> Ack {
        let document = Arc::clone(&self.document);
        document.unacked.fetch_add(1, Ordering::SeqCst);
        let unit = self.unit.take();
        if let Some(unit) = &unit {
            unit.counts.fetch_sub(IN_FLIGHT - 1, Ordering::SeqCst);
            document.leave_page_items(unit);
        }
        drop(self);
        Ack {
            document,
            unit,
            sink: Some(sink),
            is_durable: false,
        }
    }

    /// The item is held by the gathering node that stands `place`-th in the graph.
    pub(crate) fn hold(&mut self, place: usize) {
        if self.counts_as == HELD {
            return;
        }
        (self.counts_as, self.held_by) = (HELD, place);
        self.document.held_by.hold(place);
        if let Some(unit) = &self.unit
            && let Some(items) = &unit.items
        {
            items.hold(place);
            self.document.leave_page_items(unit);
        }
        self.document.moved(IN_FLIGHT - HELD);
    }

    /// The item moves on.
    pub(crate) fn let_go(&mut self) {
        if self.counts_as == IN_FLIGHT {
            return;
        }
        self.document
            .moving
            .fetch_add(IN_FLIGHT - HELD, Ordering::SeqCst);
        if let Some(items) = self.unit.as_ref().and_then(|unit| unit.items.as_ref()) {
            items.enter();
            items.release(self.held_by);
        }
        self.document.held_by.release(self.held_by);
        self.counts_as = IN_FLIGHT;
    }
}

impl Clone for Token {
    fn clone(&self) -> Self {
        self.document.moving.fetch_add(IN_FLIGHT, Ordering::SeqCst);
        if let Some(unit) = &self.unit {
            unit.counts.fetch_add(IN_FLIGHT, Ordering::SeqCst);
            if let Some(items) = &unit.items {
                items.enter();
            }
        }
        Self {
            document: Arc::clone(&self.document),
            unit: self.unit.clone(),
            page: self.page.clone(),
            counts_as: IN_FLIGHT,
            held_by: 0,
            slot: self.slot,
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(unit) = self.unit.take() {
            match &unit.items {
                Some(items) if self.counts_as == HELD => items.release(self.held_by),
                Some(_) => self.document.leave_page_items(&unit),
                None => {}
            }
            self.document.leave_page(&unit, IN_FLIGHT);
        }
        if self.counts_as == HELD {
            self.document.held_by.release(self.held_by);
        }
        self.document.moved(self.counts_as);
    }
}

/// The promise to store one item, or the end of a document: made when it
/// reaches a sink, kept by [`Ack::durable`]. Dropping it instead marks the
/// document as failed, so that the next run does it again.
#[derive(Debug)]
#[must_use = "an ack that is dropped leaves its document undone"]
pub struct Ack {
    document: Arc<Document>,
    /// The page that the item was made from, until it is staged.
    unit: Option<Arc<Unit>>,
    /// The sink that the item reached; none for the end of a document.
    sink: Option<usize>,
    is_durable: bool,
}

impl Ack {
    /// For the end of a document, whose count of what is unacked has it already.
    pub(super) fn of_end(document: &Arc<Document>, is_durable: bool) -> Self {
        Self {
            document: Arc::clone(document),
            unit: None,
            sink: None,
            is_durable,
        }
    }

    /// The item is durable.
    pub fn durable(mut self) {
        self.is_durable = true;
    }

    /// The document that the item belongs to.
    pub fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// Whether all items of this one's page are in their sinks or set aside,
    /// so that the page can be staged; see [`Stager`](crate::Stager). Items of
    /// no page, and those that are staged already, cannot.
    pub(crate) fn can_be_staged(&self) -> bool {
        let unit = self.unit.as_ref();
        // In this order: whoever loses an item of the page marks the document before.
        unit.is_some_and(|unit| unit.counts.load(Ordering::SeqCst) < IN_FLIGHT)
            && self.document.has_whole_pages()
    }

    /// Identifies the page that the item was made from, until it is staged.
    pub fn page(&self) -> Option<usize> {
        self.unit.as_ref().map(|unit| Arc::as_ptr(unit).addr())
    }

    /// The page that the item was made from.
    pub(crate) fn page_of(&self) -> Option<PageOf> {
        self.unit.as_deref().map(Unit::page_of)
    }

    /// Whether an earlier run has staged the page of the item in this sink.
    pub(crate) fn is_staged_before(&self) -> bool {
        let (Some(unit), Some(sink)) = (&self.unit, self.sink) else {
            return false;
        };
        let resumed = self.document.arrival.resumed.as_ref();
        let staged = resumed.and_then(|resumed| resumed.staged.get(&sink));
        staged.is_some_and(|staged| staged.contains(&unit.page_of()))
    }

    /// The item goes no further: its row is durable since an earlier run.
    pub(crate) fn drop_duplicate(mut self) {
        self.staged();
        self.sink = None; // The row was counted when it was staged.
        self.is_durable = true;
    }

    /// The item is staged: durable, though in no version of the table yet.
    pub(crate) fn staged(&mut self) {
        if let Some(unit) = self.unit.take() {
            self.document.leave_page(&unit, 1);
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if self.is_durable {
            // Not staged but stored for good: a later run would not find it
            // among the rows to take over, and replace it by what comes then.
            if self.unit.is_some() {
                let has_loose_pages = &self.document.has_loose_pages;
                has_loose_pages.store(true, Ordering::SeqCst);
            }
            self.staged();
            if let Some(sink) = self.sink {
                let rows = &self.document.rows;
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                *rows.entry(sink).or_default() += 1;
                drop(rows);
                self.document.n_stored.fetch_add(1, Ordering::AcqRel);
                let n_durable = &self.document.tracker.n_durable;
                n_durable.fetch_add(1, Ordering::AcqRel);
            }
        } else if !self.document.is_interrupted() {
            // Its page stays undone.
            self.document.fail();
        } // Every sink drops the acks of an interrupted document. The items that
        // were not staged stay in the counts of their pages: none passes for done.
        self.document.acked();
    }
}

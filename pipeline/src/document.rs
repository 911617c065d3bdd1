//! Follows every item of a document from its source to the last sink.
//!
//! A document's items are counted twice over: those that *move* (in an edge or
//! a stage, or held by a node that gathers) and those *unacked* (in a sink, not
//! durable yet). When nothing moves any more, every sink is told that it has
//! seen the whole document; when every sink has made that durable, the
//! document is settled. While all that moves is held by gathering nodes,
//! nothing can come to complete what they hold: the document is *stalled*, and
//! the first of them in the order of the graph lets go. Where a join gets its
//! pages from one node, the items of each page are counted in the same way, and
//! a *page* stalls while the rest of the document moves.

mod holders;
mod page_items;
mod token;
mod tracker;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::key::{Key, Origin};
use crate::ledger::StoredIn;

use holders::Holders;
use page_items::PageItems;
pub use token::Ack;
pub(crate) use token::Token;
use tracker::Shared;
pub(crate) use tracker::{Event, Tracker};

/// One in flight, in the upper half of the count; held items are in the lower half.
const IN_FLIGHT: u64 = 1 << 32;
const HELD: u64 = 1;

/// How a document came in: what the ledger and the dead letters say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The source that sent it.
    pub(crate) source: Arc<str>,
    /// What the source tells its version by without reading it, such as size and time.
    pub(crate) state: Option<Arc<str>>,
    /// What the source can make the document from again, beyond its URI.
    pub(crate) input: Option<Arc<str>>,
    /// It is gone: its rows go too.
    pub(crate) is_removal: bool,
    /// What an earlier run has staged.
    pub(crate) resumed: Option<Arc<Resumed>>,
    /// Which sinks it is made for, where the others hold it already.
    pub(crate) partial: Option<Arc<Partial>>,
    /// Dead letters of earlier runs that still hold.
    pub(crate) n_dead_kept: u64,
}

/// A document that some sinks lack and others hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Partial {
    /// The sinks that lack it.
    pub(crate) wanted: BTreeSet<usize>,
    /// What the others hold, by their identity.
    pub(crate) kept: BTreeMap<String, StoredIn>,
    /// Its dead letters so far.
    pub(crate) n_dead: u64,
}

impl Partial {
    /// Whether one of these sinks lacks the document.
    pub(crate) fn is_wanted_by_any(&self, sinks: &BTreeSet<usize>) -> bool {
        !self.wanted.is_disjoint(sinks)
    }
}

/// What an earlier run has staged of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// Pages that need not be made again, by the key of the node that makes them.
    pub(crate) pages: HashMap<String, BTreeSet<u32>>,
    /// Pages that each sink has staged: made again for another sink, they are
    /// dropped in front of this one.
    pub(crate) staged: HashMap<usize, HashSet<PageOf>>,
    /// Rows that each sink has staged.
    pub(crate) rows: BTreeMap<usize, u64>,
}

impl Resumed {
    /// Whether some node has made page `page`.
    pub(crate) fn has_page(&self, page: u32) -> bool {
        self.pages.values().any(|pages| pages.contains(&page))
    }
}

/// A page, by the key of the node that made it.
pub(crate) type PageOf = (Arc<str>, u32);

/// What the pages that a node makes are counted for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PageCounts {
    /// Resuming inside a document.
    pub(crate) for_resuming: bool,
    /// Joins that release what they hold when its page stalls.
    pub(crate) for_joins: bool,
}

/// A page of a document on its way: what resuming inside a document goes by,
/// and what joins wait for.
#[derive(Debug)]
pub(crate) struct Unit {
    node: Arc<str>,
    page: u32,
    is_for_resuming: bool,
    /// Counted where a join waits for the pages of `node`.
    items: Option<PageItems>,
    /// Its items that move, in the upper half, and those in sinks that are
    /// neither staged nor durable.
    counts: AtomicU64,
}

impl Unit {
    pub(crate) fn page_of(&self) -> PageOf {
        (Arc::clone(&self.node), self.page)
    }

    /// The node that made the page.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// The number of the page.
    pub(crate) fn page(&self) -> u32 {
        self.page
    }

    /// The places of the nodes that hold items of the page.
    pub(crate) fn holders(&self) -> Vec<usize> {
        let items = self.items.as_ref();
        items.map(PageItems::holders).unwrap_or_default()
    }
}

/// What a run knows of one document.
#[derive(Debug)]
pub struct Document {
    origin: Arc<Origin>,
    arrival: Arrival,
    /// In flight and held.
    moving: AtomicU64,
    /// Items in sinks, and one for the end that the sinks are told of.
    unacked: AtomicU64,
    is_settled: AtomicBool,
    n_stored: AtomicU64,
    n_dead: AtomicU64,
    failed: AtomicBool,
    /// Whether the run, which drains, makes no more pages of it.
    is_interrupted: AtomicBool,
    /// Pages that the ledger knows to be staged, beside those of earlier runs.
    n_pages_staged: AtomicU64,
    /// Whether no page of the document can be taken for done before the whole of
    /// it is: items of one page were made by two nodes, a page broke off, or a
    /// sink has stored items of a page without staging them.
    has_loose_pages: AtomicBool,
    /// Whether no page of the document can stall before the whole of it does:
    /// see [`Document::stall_as_a_whole`].
    stalls_as_a_whole: AtomicBool,
    /// The node that made the first page that was counted.
    page_maker: OnceLock<Arc<str>>,
    /// What was set aside, and by which node.
    dead: Mutex<HashMap<Key, BTreeSet<Arc<str>>>>,
    /// Durable items, by sink.
    rows: Mutex<BTreeMap<usize, u64>>,
    /// Items that each gathering node holds.
    held_by: Holders,
    /// Pages under way, by the node that made them.
    units: Mutex<HashMap<PageOf, Arc<Unit>>>,
    /// Pages that are done and that the ledger has not heard of.
    pages_done: Mutex<Vec<PageOf>>,
    tracker: Arc<Shared>,
}

impl Document {
    /// Where the document comes from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Items of the document that are durable.
    pub fn n_stored(&self) -> u64 {
        self.n_stored.load(Ordering::Acquire)
    }

    /// Items of the document that were set aside so far.
    pub fn n_dead(&self) -> u64 {
        self.n_dead.load(Ordering::Acquire)
    }

    /// Whether the document is not whole, because items of it were lost to a failure
    /// or because it [is interrupted](Document::is_interrupted): its rows must not be
    /// stored, and the old ones stay.
    pub fn has_failed(&self) -> bool {
        self.has_lost_items() || self.is_interrupted()
    }

    /// Whether items of it were lost to a failure.
    pub(crate) fn has_lost_items(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether a run that drains has left the document unfinished. The pages that
    /// were made are whole: a sink stages them when the document ends, so that
    /// the next run makes only the others.
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Acquire)
    }

    /// Whether the document is gone from its source, so that its rows go too.
    pub fn is_removal(&self) -> bool {
        self.arrival.is_removal
    }

    /// Whether the run goes on where an earlier one stopped: what
    /// [`Sink::adopt`](crate::Sink::adopt) took over belongs to it.
    pub fn is_resumed(&self) -> bool {
        self.arrival.resumed.is_some()
    }

    pub(crate) fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    pub(crate) fn count_dead(&self, node: &Arc<str>, key: Key) {
        self.n_dead.fetch_add(1, Ordering::AcqRel);
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.entry(key).or_default().insert(Arc::clone(node));
    }

    /// Whether a node that `is_meant` accepts has set an item aside.
    pub(crate) fn has_dead_at(&self, is_meant: impl Fn(&str) -> bool) -> bool {
        let dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.values().flatten().any(|node| is_meant(node))
    }

    /// Whether one of `nodes` has set aside the item of this key, or the page
    /// or document that it is of.
    pub(crate) fn has_dead(&self, nodes: &BTreeSet<Arc<str>>, key: Key) -> bool {
        let dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        let page = Key { part: None, ..key };
        let keys = [key, page, Key::document(key.document)];
        let is_dead = |key| dead.get(key).is_some_and(|by| !by.is_disjoint(nodes));
        keys.iter().any(is_dead)
    }

    /// Durable rows of this run, by sink.
    pub(crate) fn rows(&self) -> BTreeMap<usize, u64> {
        let mut rows = self
            .rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(resumed) = &self.arrival.resumed {
            for (sink, n_rows) in &resumed.rows {
                *rows.entry(*sink).or_default() += n_rows;
            }
        }
        rows
    }

    /// Whether it is made for the sink that stands `place`-th.
    pub(crate) fn is_wanted_by(&self, place: usize) -> bool {
        let partial = self.arrival.partial.as_ref();
        partial.is_none_or(|partial| partial.wanted.contains(&place))
    }

    /// Whether it is made for one of these sinks.
    pub(crate) fn is_wanted_by_any(&self, sinks: &BTreeSet<usize>) -> bool {
        let partial = self.arrival.partial.as_ref();
        partial.is_none_or(|partial| partial.is_wanted_by_any(sinks))
    }

    /// Whether it is made for some of the sinks only.
    pub(crate) fn is_partial(&self) -> bool {
        self.arrival.partial.is_some()
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// No further page of the document is made in this run. To be called while an
    /// item of it is in flight, so that the sinks know when the document ends.
    pub(crate) fn interrupt(&self) {
        self.is_interrupted.store(true, Ordering::Release);
    }

    /// Whether the pages made so far can be staged while others are missing.
    pub(crate) fn can_be_interrupted(&self) -> bool {
        !self.is_removal() && self.has_whole_pages()
    }

    /// Pages that the next run need not make, should this one not finish the document.
    pub(crate) fn n_pages_durable(&self) -> u64 {
        let resumed = self.arrival.resumed.as_ref();
        let n_resumed = resumed.map_or(0, |resumed| {
            resumed.pages.values().map(BTreeSet::len).sum::<usize>()
        });
        n_resumed as u64 + self.n_pages_staged.load(Ordering::Acquire)
    }

    /// Has no page of the document staged: it is made from rows that are stored, and
    /// a run that resumed inside it could not tell by whom its pages were made.
    pub(crate) fn stage_no_pages(&self) {
        self.has_loose_pages.store(true, Ordering::SeqCst);
    }

    /// Whether an earlier run has staged what `node` makes as page `page`.
    pub(crate) fn has_page(&self, node: &str, page: u32) -> bool {
        let resumed = self.arrival.resumed.as_ref();
        resumed.is_some_and(|resumed| {
            let pages = resumed.pages.get(node);
            pages.is_some_and(|pages| pages.contains(&page))
        })
    }

    /// The unit of a page that `node` makes.
    fn unit(&self, node: &Arc<str>, page: u32, counts: PageCounts) -> Arc<Unit> {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        let unit = units.entry((Arc::clone(node), page)).or_insert_with(|| {
            Arc::new(Unit {
                node: Arc::clone(node),
                page,
                is_for_resuming: counts.for_resuming,
                items: counts.for_joins.then(PageItems::default),
                counts: AtomicU64::new(0),
            })
        });
        Arc::clone(unit)
    }

    /// What an earlier run has staged of the pages that `node` makes.
    pub(crate) fn stored_pages(&self, node: &str) -> BTreeSet<u32> {
        let resumed = self.arrival.resumed.as_ref();
        resumed
            .and_then(|resumed| resumed.pages.get(node).cloned())
            .unwrap_or_default()
    }

    /// Takes `amount` off the counts of a page; one that is done is noted for the ledger.
    fn leave_page(&self, unit: &Arc<Unit>, amount: u64) {
        if unit.counts.fetch_sub(amount, Ordering::SeqCst) != amount {
            return;
        }
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        units.remove(&(Arc::clone(&unit.node), unit.page));
        drop(units);
        if !unit.is_for_resuming {
            return;
        }
        let mut done = self
            .pages_done
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        done.push((Arc::clone(&unit.node), unit.page));
    }

    /// Pages that came to be done since this was last asked.
    pub(crate) fn take_pages_done(&self) -> Vec<PageOf> {
        let mut done = self
            .pages_done
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let done = std::mem::take(&mut *done);
        if self.has_whole_pages() {
            let n_staged = done.len() as u64;
            self.n_pages_staged.fetch_add(n_staged, Ordering::AcqRel);
            done
        } else {
            Vec::new()
        }
    }

    /// Whether a page of which nothing moves has all its items in sinks or dead letters.
    ///
    /// A page of which items were lost has no items left either. Whoever loses one
    /// marks the document before: see `fail`, and `Stop::cancel` for what is
    /// dropped on its way.
    pub(crate) fn has_whole_pages(&self) -> bool {
        !self.has_loose_pages.load(Ordering::SeqCst)
            && !self.has_lost_items()
            && !self.tracker.stop.is_cancelled()
    }

    /// The first node, in the order of the graph, that holds items of the document.
    pub(crate) fn first_holder(&self) -> Option<usize> {
        self.held_by.first()
    }

    /// Whether all that moves is held, and `place` is the first that holds.
    pub(crate) fn is_stalled_at(&self, place: usize) -> bool {
        // What is let go moves before it is no longer held, and what is held is
        // so before it no longer moves: with the holders locked, none is missed.
        let held_by = self.held_by.lock();
        held_by.keys().next() == Some(&place) && self.moving.load(Ordering::SeqCst) < IN_FLIGHT
    }

    /// An item of the document does not tell, or tells wrongly, which page it was
    /// made from: it has lost its token, its key names another page, or two nodes
    /// have made pages. From now on only the document as a whole can stall.
    pub(crate) fn stall_as_a_whole(&self) {
        self.stalls_as_a_whole.store(true, Ordering::SeqCst);
    }

    /// Whether all items of the page are held, and by none of the nodes at `places`.
    pub(crate) fn is_page_stalled_behind(&self, page: &Unit, places: &BTreeSet<usize>) -> bool {
        let items = page.items.as_ref();
        // In this order: an item that breaks the rule is in flight when that is noted.
        items.is_some_and(|items| items.is_stalled_behind(places))
            && !self.stalls_as_a_whole.load(Ordering::SeqCst)
    }

    /// An item of the page is no longer in flight.
    fn leave_page_items(self: &Arc<Self>, unit: &Arc<Unit>) {
        if unit.items.as_ref().is_some_and(PageItems::leave) {
            self.tracker.observe(Event::PageStalled(self, unit));
        }
    }

    /// Takes `amount` off what moves, and acts on what became nothing.
    fn moved(self: &Arc<Self>, amount: u64) {
        let after = self.moving.fetch_sub(amount, Ordering::SeqCst) - amount;
        if after == 0 {
            let end = Ack::of_end(self, true);
            self.tracker.observe(Event::Ended(self, end));
        } else if after < IN_FLIGHT && amount >= IN_FLIGHT - HELD {
            self.tracker.observe(Event::Stalled(self));
        }
    }

    fn acked(self: &Arc<Self>) {
        if self.unacked.fetch_sub(1, Ordering::SeqCst) == 1
            && !self.is_settled.swap(true, Ordering::SeqCst)
        {
            self.tracker.observe(Event::Settled(self));
        }
    }

    /// An ack for the end of the document, for one sink.
    pub(crate) fn end_ack(self: &Arc<Self>) -> Ack {
        self.unacked.fetch_add(1, Ordering::SeqCst);
        Ack::of_end(self, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn tracker() -> (Tracker, Log, Arc<Origin>) {
        let (tracker, log) = (Tracker::default(), Log::default());
        let seen = Arc::clone(&log);
        tracker.observe(move |event| {
            seen.lock().expect("no thread panicked").push(match event {
                Event::Stalled(_) | Event::PageStalled(..) => "stalled",
                Event::Ended(..) => "ended",
                Event::Settled(document) if document.has_failed() => "failed",
                Event::Settled(_) => "done",
            });
        });
        (
            tracker,
            log,
            Arc::new(Origin::new("a.pdf", "application/pdf", b"")),
        )
    }

    fn events(log: &Log) -> Vec<&'static str> {
        log.lock().expect("no thread panicked").clone()
    }

    #[test]
    fn a_document_ends_with_its_last_item_and_is_done_with_its_last_ack() {
        let (tracker, log, origin) = tracker();
        let first = tracker.begin(&origin);
        let second = first.clone();
        let ack = first.arrive(0);
        assert!(events(&log).is_empty());
        let other = second.arrive(0);
        assert_eq!(events(&log), ["ended"]);
        ack.durable();
        assert_eq!(events(&log), ["ended"]);
        other.durable();
        assert_eq!(events(&log), ["ended", "done"]);
        assert_eq!(tracker.n_alive(), 0);
    }

    #[test]
    fn an_ack_that_is_dropped_leaves_the_document_undone() {
        let (tracker, log, origin) = tracker();
        drop(tracker.begin(&origin).arrive(0));
        assert_eq!(events(&log), ["ended", "failed"]);
    }

    #[test]
    fn a_document_without_rows_ends_and_is_done_at_once() {
        let (tracker, log, origin) = tracker();
        drop(tracker.begin(&origin));
        assert_eq!(events(&log), ["ended", "done"]);
    }

    #[test]
    fn an_item_made_from_scratch_joins_only_while_its_document_is_in_flight() {
        let (tracker, log, origin) = tracker();
        let token = tracker.begin(&origin);
        let joined = tracker.token_for(origin.id).expect("still in flight");
        drop(token);
        assert!(events(&log).is_empty());
        let ack = joined.arrive(0);
        assert!(tracker.token_for(origin.id).is_none());
        ack.durable();
        assert_eq!(events(&log), ["ended", "done"]);
    }
}

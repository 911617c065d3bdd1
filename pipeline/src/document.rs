//! Follows every item of a document from its source to the last sink.
//!
//! A document's items are counted twice over: those that *move* (in an edge or
//! a stage, or held by a node that gathers) and those *unacked* (in a sink, not
//! durable yet). When nothing moves any more, every sink is told that it has
//! seen the whole document; when every sink has made that durable, the
//! document is settled. While all that moves is held by gathering nodes,
//! nothing can come to complete what they hold: the document is *stalled*, and
//! the first of them in the order of the graph lets go.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::Notify;

use crate::edge::Stop;
use crate::error::StageError;
use crate::key::{DocumentId, Key, Origin};

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
}

/// What an earlier run has staged of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// Pages, by the node that made them.
    pub(crate) pages: HashMap<String, BTreeSet<u32>>,
    /// Sinks that have rows.
    pub(crate) sinks: BTreeSet<usize>,
}

impl Resumed {
    /// Whether some node has made page `page`.
    pub(crate) fn has_page(&self, page: u32) -> bool {
        self.pages.values().any(|pages| pages.contains(&page))
    }
}

/// A page, by the node that made it.
pub(crate) type PageOf = (Arc<str>, u32);

/// A page of a document on its way: what resuming inside a document goes by.
#[derive(Debug)]
pub(crate) struct Unit {
    node: Arc<str>,
    page: u32,
    /// Its items that move, in the upper half, and those in sinks that are
    /// neither staged nor durable.
    counts: AtomicU64,
}

impl Unit {
    pub(crate) fn page_of(&self) -> PageOf {
        (Arc::clone(&self.node), self.page)
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
    /// Whether no page of the document can be taken for done before the whole of
    /// it is: items of one page were made by two nodes, a page broke off, or a
    /// sink has stored items of a page without staging them.
    has_loose_pages: AtomicBool,
    /// What was set aside, and by which node.
    dead: Mutex<HashMap<Key, BTreeSet<Arc<str>>>>,
    /// Durable items, by sink.
    rows: Mutex<BTreeMap<usize, u64>>,
    /// Items that each gathering node holds.
    held_by: Mutex<BTreeMap<usize, u64>>,
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

    /// Whether items of it were lost to a failure: its rows must not be stored.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
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
            for sink in &resumed.sinks {
                *rows.entry(*sink).or_default() += 1;
            }
        }
        rows
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
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
    fn unit(&self, node: &Arc<str>, page: u32) -> Arc<Unit> {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        let unit = units.entry((Arc::clone(node), page)).or_insert_with(|| {
            Arc::new(Unit {
                node: Arc::clone(node),
                page,
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
        // A page of which items were lost has no items left either. Whoever
        // loses one says so before: see `fail`, and `Stop::cancel` for what is
        // dropped on its way.
        let is_whole = !self.has_loose_pages.load(Ordering::SeqCst)
            && !self.has_failed()
            && !self.tracker.stop.is_cancelled();
        if is_whole { done } else { Vec::new() }
    }

    fn held_by(&self) -> MutexGuard<'_, BTreeMap<usize, u64>> {
        self.held_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_longer_held_by(&self, place: usize) {
        let mut held_by = self.held_by();
        if let Some(n_held) = held_by.get_mut(&place) {
            *n_held -= 1;
            if *n_held == 0 {
                held_by.remove(&place);
            }
        }
    }

    /// The first node, in the order of the graph, that holds items of the document.
    pub(crate) fn first_holder(&self) -> Option<usize> {
        self.held_by().keys().next().copied()
    }

    /// Whether all that moves is held, and `place` is the first that holds.
    pub(crate) fn is_stalled_at(&self, place: usize) -> bool {
        // In this order: what is let go moves before it is no longer held.
        self.first_holder() == Some(place) && self.moving.load(Ordering::SeqCst) < IN_FLIGHT
    }

    /// Takes `amount` off what moves, and acts on what became nothing.
    fn moved(self: &Arc<Self>, amount: u64) {
        let after = self.moving.fetch_sub(amount, Ordering::SeqCst) - amount;
        if after == 0 {
            let end = Ack {
                document: Arc::clone(self),
                unit: None,
                sink: None,
                is_durable: true,
            };
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
        Ack {
            document: Arc::clone(self),
            unit: None,
            sink: None,
            is_durable: false,
        }
    }
}

/// What happened to a document.
pub(crate) enum Event<'a> {
    /// All that moves is held by nodes that gather.
    Stalled(&'a Arc<Document>),
    /// All its items are in their sinks or set aside. The ack stands for this
    /// event: it is dropped when there is one for each sink, and before the
    /// sinks are told. So a document is settled within the call of the sink
    /// that makes it durable, and the ledger hears of it no later than of the
    /// sink's mark.
    Ended(&'a Arc<Document>, Ack),
    /// All of them are durable, or set aside, or lost.
    Settled(&'a Arc<Document>),
}

type Observer = Box<dyn Fn(Event<'_>) + Send + Sync>;

#[derive(Default)]
struct Shared {
    stop: Arc<Stop>,
    alive: Mutex<HashMap<DocumentId, Arc<Document>>>,
    /// Documents that a source is about to send.
    claimed: Mutex<HashSet<DocumentId>>,
    observer: RwLock<Option<Observer>>,
    /// Documents with items that move.
    n_moving: AtomicU64,
    /// Woken when the last of them has ended.
    none_moving: Notify,
    /// Woken when a document has settled.
    settled: Notify,
    n_durable: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn alive(&self) -> MutexGuard<'_, HashMap<DocumentId, Arc<Document>>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, HashSet<DocumentId>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the document unless it is under way, or claimed by another.
    fn try_claim(&self, id: DocumentId) -> bool {
        let alive = self.alive();
        !alive.contains_key(&id) && self.claimed().insert(id)
    }

    fn observe(&self, event: Event<'_>) {
        let has_ended = matches!(event, Event::Ended(..));
        let settled = match &event {
            Event::Settled(document) => Some(Arc::clone(document)),
            _ => None,
        };
        let observer = self.observer.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(observer) = observer.as_ref() {
            observer(event);
        }
        drop(observer);
        // Only now: who waits for this must find the observer's work done.
        if let Some(document) = settled {
            let mut alive = self.alive();
            // A later arrival of the same document may already be under way.
            if alive
                .get(&document.origin.id)
                .is_some_and(|known| Arc::ptr_eq(known, &document))
            {
                alive.remove(&document.origin.id);
            }
            drop(alive);
            self.settled.notify_waiters();
        }
        if has_ended && self.n_moving.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none_moving.notify_waiters();
        }
    }
}

/// The documents of a run that are under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tracker {
    shared: Arc<Shared>,
}

/// The right to send a document: nobody else sends one of this id meanwhile.
pub(crate) struct Claim {
    tracker: Arc<Shared>,
    id: DocumentId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.tracker.claimed().remove(&self.id);
        self.tracker.settled.notify_waiters();
    }
}

impl Tracker {
    /// For a run that `stop` stops.
    pub(crate) fn new(stop: Arc<Stop>) -> Self {
        let shared = Shared {
            stop,
            ..Shared::default()
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Calls `observer` at each event from now on, on the thread that caused it.
    pub(crate) fn observe(&self, observer: impl Fn(Event<'_>) + Send + Sync + 'static) {
        *self
            .shared
            .observer
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(Box::new(observer));
    }

    /// Waits until no document has items in flight, or the run is cancelled.
    pub(crate) async fn all_ended(&self, stop: &Stop) {
        loop {
            let ended = self.shared.none_moving.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.shared.n_moving.load(Ordering::Acquire) == 0 {
                return;
            }
            tokio::select! {
                () = ended => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Waits until an earlier arrival of the document is settled, and claims
    /// the next one: two versions of it must not overtake each other, whichever
    /// sources they come from.
    ///
    /// # Errors
    /// [`StageError::Cancelled`].
    pub(crate) async fn claim(&self, id: DocumentId) -> Result<Claim, StageError> {
        let stop = &self.shared.stop;
        loop {
            let settled = self.shared.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if stop.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            if self.shared.try_claim(id) {
                return Ok(Claim {
                    tracker: Arc::clone(&self.shared),
                    id,
                });
            }
            tokio::select! {
                () = settled => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Items that sinks have made durable.
    pub(crate) fn n_durable(&self) -> u64 {
        self.shared.n_durable.load(Ordering::Acquire)
    }

    /// Documents that have items under way.
    pub(crate) fn n_moving(&self) -> u64 {
        self.shared.n_moving.load(Ordering::Acquire)
    }

    /// Begins to follow a document that a source sent.
    pub(crate) fn begin(&self, origin: &Arc<Origin>) -> Token {
        self.begin_arrival(origin, Arrival::default())
    }

    /// The same, with how it came in.
    pub(crate) fn begin_arrival(&self, origin: &Arc<Origin>, arrival: Arrival) -> Token {
        let document = Arc::new(Document {
            origin: Arc::clone(origin),
            arrival,
            moving: AtomicU64::new(IN_FLIGHT),
            unacked: AtomicU64::new(1),
            is_settled: AtomicBool::new(false),
            n_stored: AtomicU64::new(0),
            n_dead: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            has_loose_pages: AtomicBool::new(false),
            dead: Mutex::default(),
            rows: Mutex::default(),
            held_by: Mutex::default(),
            units: Mutex::default(),
            pages_done: Mutex::default(),
            tracker: Arc::clone(&self.shared),
        });
        self.shared.n_moving.fetch_add(1, Ordering::AcqRel);
        self.shared.alive().insert(origin.id, Arc::clone(&document));
        Token::in_flight(document)
    }

    /// A token for an item that a stage made from scratch, if its document is under way.
    pub(crate) fn token_for(&self, id: DocumentId) -> Option<Token> {
        let document = Arc::clone(self.shared.alive().get(&id)?);
        // Once nothing is in flight the sinks have been told so: too late to join.
        let joined = document
            .moving
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |moving| {
                (moving >= IN_FLIGHT).then_some(moving + IN_FLIGHT)
            });
        joined.ok().map(|_| Token::in_flight(document))
    }

    /// Number of documents under way.
    #[cfg(test)]
    pub(crate) fn n_alive(&self) -> usize {
        self.shared.alive().len()
    }
}

/// Counts one item of a document as moving for as long as it lives.
#[derive(Debug)]
pub(crate) struct Token {
    document: Arc<Document>,
    unit: Option<Arc<Unit>>,
    /// [`IN_FLIGHT`] or [`HELD`].
    counts_as: u64,
    held_by: usize,
    /// Which item of its batch it is, or was made from: a union may bring
    /// several of one key.
    slot: usize,
}

impl Token {
    fn in_flight(document: Arc<Document>) -> Self {
        Self {
            document,
            unit: None,
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

    /// Counts the item as one of the page that `node` makes, from now on.
    pub(crate) fn join_page(&mut self, node: &Arc<str>, page: u32) {
        let unit = self.document.unit(node, page);
        unit.counts.fetch_add(IN_FLIGHT, Ordering::SeqCst);
        if let Some(old) = self.unit.replace(unit) {
            self.document.leave_page(&old, IN_FLIGHT);
        }
    }

    /// More of the page was to come, and may not: no page of the document can
    /// be taken for done any more before the whole of it is.
    pub(crate) fn break_off_page(&self) {
        let has_loose_pages = &self.document.has_loose_pages;
        has_loose_pages.store(true, Ordering::SeqCst);
    }

    /// The item of `other` has become a part of this one's.
    pub(crate) fn merge_page(&self, other: &Self) {
        let is_same = match (&self.unit, &other.unit) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (None, None) => true,
            _ => false,
        };
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
        *self.document.held_by().entry(place).or_default() += 1;
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
        self.document.no_longer_held_by(self.held_by);
        self.counts_as = IN_FLIGHT;
    }
}

impl Clone for Token {
    fn clone(&self) -> Self {
        self.document.moving.fetch_add(IN_FLIGHT, Ordering::SeqCst);
        if let Some(unit) = &self.unit {
            unit.counts.fetch_add(IN_FLIGHT, Ordering::SeqCst);
        }
        Self {
            document: Arc::clone(&self.document),
            unit: self.unit.clone(),
            counts_as: IN_FLIGHT,
            held_by: 0,
            slot: self.slot,
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(unit) = self.unit.take() {
            self.document.leave_page(&unit, IN_FLIGHT);
        }
        if self.counts_as == HELD {
            self.document.no_longer_held_by(self.held_by);
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
    pub fn can_be_staged(&self) -> bool {
        let unit = self.unit.as_ref();
        unit.is_some_and(|unit| unit.counts.load(Ordering::SeqCst) < IN_FLIGHT)
    }

    /// The page that the item was made from.
    pub(crate) fn page_of(&self) -> Option<PageOf> {
        self.unit.as_deref().map(Unit::page_of)
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
        } else {
            // Its page stays undone.
            self.document.fail();
        }
        self.document.acked();
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
                Event::Stalled(_) => "stalled",
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

//! Follows every item of a document from its source to the last sink.
//!
//! A document's items are counted twice over: those *in flight* (in an edge or
//! a stage) and those *unacked* (in a sink, not durable yet). When the first
//! count falls to nothing, every sink is told that it has seen the whole
//! document; when both have, the document is done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::Notify;

use crate::edge::Stop;
use crate::key::{DocumentId, Origin};

/// One in flight, in the upper half of the count; unacked items are in the lower half.
const IN_FLIGHT: u64 = 1 << 32;

/// What a run knows of one document.
#[derive(Debug)]
pub struct Document {
    origin: Arc<Origin>,
    counts: AtomicU64,
    n_stored: AtomicU64,
    n_dead: AtomicU64,
    failed: AtomicBool,
    tracker: Arc<Shared>,
}

impl Document {
    /// Where the document comes from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Items of the document that were set aside so far.
    pub fn n_dead(&self) -> u64 {
        self.n_dead.load(Ordering::Acquire)
    }

    /// Whether items of it were lost to a failure: its rows must not be stored.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn count_dead(&self) {
        self.n_dead.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Takes `amount` off the counts and acts on what became nothing.
    fn settle(self: &Arc<Self>, amount: u64) {
        let before = self.counts.fetch_sub(amount, Ordering::AcqRel);
        let after = before.wrapping_sub(amount);
        if before >= IN_FLIGHT && after < IN_FLIGHT {
            self.tracker.observe(Event::Ended(self));
        }
        if after == 0 {
            self.tracker.observe(Event::Settled(self));
        }
    }
}

/// What happened to a document.
pub(crate) enum Event<'a> {
    /// All its items are in their sinks or set aside.
    Ended(&'a Arc<Document>),
    /// All of them are durable, or set aside, or lost.
    Settled(&'a Arc<Document>),
}

type Observer = Box<dyn Fn(Event<'_>) + Send + Sync>;

#[derive(Default)]
struct Shared {
    alive: Mutex<HashMap<DocumentId, Arc<Document>>>,
    observer: RwLock<Option<Observer>>,
    /// Documents with items in flight.
    n_moving: AtomicU64,
    /// Woken when the last of them has ended.
    none_moving: Notify,
    n_durable: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn observe(&self, event: Event<'_>) {
        if let Event::Settled(document) = &event {
            let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
            // A later arrival of the same document may already be under way.
            if alive
                .get(&document.origin.id)
                .is_some_and(|known| Arc::ptr_eq(known, document))
            {
                alive.remove(&document.origin.id);
            }
        }
        let observer = self.observer.read().unwrap_or_else(PoisonError::into_inner);
        let has_ended = matches!(event, Event::Ended(_));
        if let Some(observer) = observer.as_ref() {
            observer(event);
        }
        // Only now: who waits for this must find the observer's work done.
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

impl Tracker {
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

    /// Items that sinks have made durable.
    pub(crate) fn n_durable(&self) -> u64 {
        self.shared.n_durable.load(Ordering::Acquire)
    }

    /// Begins to follow a document that a source sent.
    pub(crate) fn begin(&self, origin: &Arc<Origin>) -> Token {
        let document = Arc::new(Document {
            origin: Arc::clone(origin),
            counts: AtomicU64::new(IN_FLIGHT),
            n_stored: AtomicU64::new(0),
            n_dead: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            tracker: Arc::clone(&self.shared),
        });
        self.shared.n_moving.fetch_add(1, Ordering::AcqRel);
        let mut alive = self
            .shared
            .alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        alive.insert(origin.id, Arc::clone(&document));
        Token { document }
    }

    /// A token for an item that a stage made from scratch, if its document is under way.
    pub(crate) fn token_for(&self, id: DocumentId) -> Option<Token> {
        let alive = self
            .shared
            .alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let document = Arc::clone(alive.get(&id)?);
        drop(alive);
        // Once nothing is in flight the sinks have been told so: too late to join.
        let joined = document
            .counts
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |counts| {
                (counts >= IN_FLIGHT).then_some(counts + IN_FLIGHT)
            });
        joined.ok().map(|_| Token { document })
    }

    /// Number of documents under way.
    #[cfg(test)]
    pub(crate) fn n_alive(&self) -> usize {
        self.shared
            .alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

/// Counts one item of a document as in flight for as long as it lives.
#[derive(Debug)]
pub(crate) struct Token {
    document: Arc<Document>,
}

impl Token {
    pub(crate) fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// The item reached a sink: it is in flight no more, but not durable yet.
    pub(crate) fn arrive(self) -> Ack {
        let document = Arc::clone(&self.document);
        document.counts.fetch_add(1, Ordering::AcqRel);
        drop(self);
        Ack {
            document,
            is_durable: false,
        }
    }
}

impl Clone for Token {
    fn clone(&self) -> Self {
        self.document.counts.fetch_add(IN_FLIGHT, Ordering::AcqRel);
        Self {
            document: Arc::clone(&self.document),
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.document.settle(IN_FLIGHT);
    }
}

/// The promise to store one item: made when it reaches a sink, kept by
/// [`Ack::durable`]. Dropping it instead marks the document as failed, so that
/// the next run does it again.
#[derive(Debug)]
#[must_use = "an ack that is dropped leaves its document undone"]
pub struct Ack {
    document: Arc<Document>,
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
}

impl Drop for Ack {
    fn drop(&mut self) {
        let document = &self.document;
        if self.is_durable {
            document.n_stored.fetch_add(1, Ordering::AcqRel);
            document.tracker.n_durable.fetch_add(1, Ordering::AcqRel);
        } else {
            document.fail();
        }
        document.settle(1);
    }
}

impl Document {
    /// Items of the document that are durable.
    pub fn n_stored(&self) -> u64 {
        self.n_stored.load(Ordering::Acquire)
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
                Event::Ended(_) => "ended",
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
        let ack = first.arrive();
        assert!(events(&log).is_empty());
        let other = second.arrive();
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
        drop(tracker.begin(&origin).arrive());
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
        let ack = joined.arrive();
        assert!(tracker.token_for(origin.id).is_none());
        ack.durable();
        assert_eq!(events(&log), ["ended", "done"]);
    }
}

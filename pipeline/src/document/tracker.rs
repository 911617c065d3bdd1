//! The documents of a run that are under way.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use tokio::sync::Notify;

use super::{Ack, Arrival, Document, Holders, IN_FLIGHT, Token, Unit};
use crate::cancellation::Stop;
use crate::error::StageError;
use crate::key::{DocumentId, Origin};

/// What happened to a document.
pub(crate) enum Event<'a> {
    /// All that moves is held by nodes that gather.
    Stalled(&'a Arc<Document>),
    /// All that moves of one page is held by nodes that gather.
    PageStalled(&'a Arc<Document>, &'a Arc<Unit>),
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

/// What the documents of a run share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) stop: Arc<Stop>,
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
    pub(super) n_durable: AtomicU64,
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

    pub(super) fn observe(&self, event: Event<'_>) {
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
            is_interrupted: AtomicBool::new(false),
            n_pages_staged: AtomicU64::new(0),
            has_loose_pages: AtomicBool::new(false),
            stalls_as_a_whole: AtomicBool::new(false),
            page_maker: OnceLock::new(),
            dead: Mutex::default(),
            rows: Mutex::default(),
            held_by: Holders::default(),
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

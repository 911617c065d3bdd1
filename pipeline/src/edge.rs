//! Bounded edges: a queue between two nodes that holds so many items and bytes.
//!
//! The items of all edges into one node travel through one channel, which lets
//! any number of workers take from it. Each edge has a [`Budget`] of its own:
//! a sender reserves room before it sends, and the room is free again when a
//! worker takes the item off the queue. An item larger than the whole budget
//! passes when the edge is empty, so nothing can be too large to move.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Deserialize;
use tokio::sync::Notify;

use crate::cancellation::{CANCEL_CHECK, Stop};
use crate::document::Token;
use crate::error::{ItemError, StageError};
use crate::expression::Expression;
use crate::item::Item;
use crate::sink::Ended;

/// What an edge may hold: the engine's key `edge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeLimits {
    /// Items that may wait.
    pub max_items: usize,
    /// Bytes that the waiting items may hold.
    pub max_bytes: usize,
}

impl Default for EdgeLimits {
    /// 64 items or 64 MiB: some twenty pages at 1024 px.
    fn default() -> Self {
        Self {
            max_items: 64,
            max_bytes: 64 << 20,
        }
    }
}

#[derive(Debug, Default)]
struct Held {
    items: usize,
    bytes: usize,
    /// Senders asleep: a taker wakes one only if there is one.
    sleepers: usize,
}

/// The room of one edge.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: EdgeLimits,
    held: Mutex<Held>,
    room: Condvar,
    room_async: Notify,
}

impl Budget {
    pub(crate) fn new(limits: EdgeLimits) -> Self {
        Self {
            limits,
            held: Mutex::default(),
            room: Condvar::new(),
            room_async: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an item of `n_bytes` fits now.
    fn fits(&self, held: &Held, n_bytes: usize) -> bool {
        held.items == 0
            || (held.items < self.limits.max_items
                && held.bytes.saturating_add(n_bytes) <= self.limits.max_bytes)
    }

    fn try_reserve(&self, n_bytes: usize) -> bool {
        let mut held = self.lock();
        let fits = self.fits(&held, n_bytes);
        if fits {
            held.items += 1;
            held.bytes = held.bytes.saturating_add(n_bytes);
        }
        fits
    }

    /// Blocks until there is room for `n_bytes` and, if `take`, reserves it.
    /// Returns how long it waited.
    fn wait(&self, n_bytes: usize, take: bool, stop: &Stop) -> Result<Duration, StageError> {
        let mut held = self.lock();
        let mut waited = Duration::ZERO;
        if !self.fits(&held, n_bytes) {
            let since = Instant::now();
            held.sleepers += 1;
            while !self.fits(&held, n_bytes) && !stop.is_cancelled() {
                held = self
                    .room
                    .wait_timeout(held, CANCEL_CHECK)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            held.sleepers -= 1;
            waited = since.elapsed();
        }
        if stop.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        if take {
            held.items += 1;
            held.bytes = held.bytes.saturating_add(n_bytes);
        }
        Ok(waited)
    }

    async fn reserve_async(&self, n_bytes: usize, stop: &Stop) -> Result<Duration, StageError> {
        self.wait_async(stop, || self.try_reserve(n_bytes)).await
    }

    /// Waits until `is_there` finds room, asking again each time that some becomes free.
    async fn wait_async(
        &self,
        stop: &Stop,
        is_there: impl Fn() -> bool,
    ) -> Result<Duration, StageError> {
        if stop.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        if is_there() {
            return Ok(Duration::ZERO);
        }
        let since = Instant::now();
        loop {
            let room = self.room_async.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if is_there() {
                return Ok(since.elapsed());
            }
            tokio::select! {
                () = room => {}
                () = stop.cancelled() => return Err(StageError::Cancelled),
            }
        }
    }

    fn release(&self, n_bytes: usize) {
        let mut held = self.lock();
        held.items = held.items.saturating_sub(1);
        held.bytes = held.bytes.saturating_sub(n_bytes);
        let sleepers = held.sleepers;
        drop(held);
        // Sleepers want different amounts of room: each looks for itself.
        if sleepers > 0 {
            self.room.notify_all();
        }
        self.room_async.notify_waiters();
    }

    /// Items and bytes that wait now.
    pub(crate) fn held(&self) -> (usize, usize) {
        let held = self.lock();
        (held.items, held.bytes)
    }
}

/// What travels through a node's channel.
#[derive(Debug)]
pub(crate) enum Message {
    /// An item and the budget that it occupies.
    Item {
        item: Item,
        n_bytes: usize,
        budget: Arc<Budget>,
        /// Which of the node's inputs it came from.
        port: usize,
    },
    /// To sinks only: every item of the document has been sent.
    Ended(Ended),
}

/// The receiving end of a node: one channel, whatever number of edges.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    pub(crate) receiver: Receiver<Message>,
    /// Wakes a sink's task; a worker's thread waits on the channel itself.
    pub(crate) arrived: Arc<Notify>,
}

/// Makes a node's channel. The sender is cloned for each edge; `arrived` wakes the node's task.
pub(crate) fn inbox(arrived: Arc<Notify>) -> (Mailbox, Inbox) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the budgets of the edges bound it"
    )]
    let (sender, receiver) = unbounded();
    (
        Mailbox {
            sender: Some(sender),
            arrived: Arc::clone(&arrived),
        },
        Inbox { receiver, arrived },
    )
}

/// The sending end of a node's channel, without a budget.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    sender: Option<Sender<Message>>,
    arrived: Arc<Notify>,
}

impl Mailbox {
    /// Puts a message in; false when the node is gone.
    pub(crate) fn put(&self, message: Message) -> bool {
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.send(message).is_ok());
        self.arrived.notify_one();
        sent
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // Disconnect first, then wake the task, so that it sees the end.
        self.sender = None;
        self.arrived.notify_one();
    }
}

/// The sending end of one edge.
#[derive(Debug, Clone)]
pub(crate) struct EdgeSender {
    pub(crate) mailbox: Mailbox,
    pub(crate) budget: Arc<Budget>,
    /// Which of the node's inputs this is.
    pub(crate) port: usize,
    /// Which items it takes.
    pub(crate) route: Route,
    /// Fields that some node further on looks at; the others are let go here.
    pub(crate) carries: Arc<Carries>,
    /// The sinks that it leads to, by their places among the sinks.
    pub(crate) sinks: Arc<BTreeSet<usize>>,
    pub(crate) stop: Arc<Stop>,
}

/// Which items an edge takes.
#[derive(Debug, Clone, Default)]
pub(crate) enum Route {
    /// All.
    #[default]
    Always,
    /// Those of which the expression holds.
    When(Arc<Expression>),
    /// Those that no [`Route::When`] of the same node takes.
    Otherwise,
}

/// The edges of a node that take an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Takers {
    All,
    Some(Vec<bool>),
    /// Some would, but lead only to sinks that hold the document already.
    Spared,
}

impl Takers {
    pub(crate) fn takes(&self, edge: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(takes) => takes[edge],
            Self::Spared => false,
        }
    }

    /// Whether the item goes nowhere because it is stored already.
    pub(crate) fn is_spared(&self) -> bool {
        matches!(self, Self::Spared)
    }

    /// Leaves out the edges that lead only to sinks which hold the item's document.
    fn for_wanted(self, edges: &[EdgeSender], item: &Item) -> Self {
        let document = item.token.as_ref().map(Token::document);
        let Some(document) = document.filter(|document| document.is_partial()) else {
            return self;
        };
        let takes = edges
            .iter()
            .enumerate()
            .map(|(number, edge)| self.takes(number) && document.is_wanted_by_any(&edge.sinks));
        let takes: Vec<bool> = takes.collect();
        let is_taken = (0..edges.len()).any(|edge| self.takes(edge));
        if is_taken && !takes.contains(&true) {
            return Self::Spared;
        }
        Self::Some(takes)
    }

    /// The last edge that takes the item: it gets the item itself, the others copies.
    pub(crate) fn last(&self, n_edges: usize) -> Option<usize> {
        (0..n_edges).rev().find(|edge| self.takes(*edge))
    }
}

/// Which fields an edge carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Whatever the items have.
    All,
    /// Those that somebody reads.
    Only(BTreeSet<Cow<'static, str>>),
}

impl EdgeSender {
    /// Which of a node's edges take the item.
    pub(crate) fn takers(edges: &[Self], item: &Item) -> Result<Takers, ItemError> {
        Self::routed(edges, item).map(|takers| takers.for_wanted(edges, item))
    }

    fn routed(edges: &[Self], item: &Item) -> Result<Takers, ItemError> {
        let always = |edge: &Self| matches!(edge.route, Route::Always);
        if edges.iter().all(always) {
            return Ok(Takers::All);
        }
        let mut takes = Vec::with_capacity(edges.len());
        let mut is_chosen = false;
        for edge in edges {
            takes.push(match &edge.route {
                Route::Always => true,
                Route::Otherwise => false,
                Route::When(expression) => {
                    let takes = expression.takes(item)?;
                    is_chosen |= takes;
                    takes
                }
            });
        }
        if !is_chosen {
            for (takes, edge) in takes.iter_mut().zip(edges) {
                *takes |= matches!(edge.route, Route::Otherwise);
            }
        }
        Ok(Takers::Some(takes))
    }

    fn prepare(&self, mut item: Item) -> (Item, usize) {
        if let Carries::Only(names) = self.carries.as_ref() {
            item.retain(|name| names.contains(name));
        }
        let n_bytes = item.n_bytes();
        (item, n_bytes)
    }

    fn put(&self, item: Item, n_bytes: usize) -> Result<(), StageError> {
        let budget = Arc::clone(&self.budget);
        if self.mailbox.put(Message::Item {
            item,
            n_bytes,
            budget,
            port: self.port,
        }) {
            Ok(())
        } else {
            Err(StageError::Cancelled) // The node that read here has stopped the run.
        }
    }

    /// Sends an item; blocks while the edge is full. Returns how long it waited.
    pub(crate) fn send(&self, item: Item) -> Result<Duration, StageError> {
        let (item, n_bytes) = self.prepare(item);
        let waited = self.budget.wait(n_bytes, true, &self.stop)?;
        self.put(item, n_bytes)?;
        Ok(waited)
    }

    /// The same for a task.
    pub(crate) async fn send_async(&self, item: Item) -> Result<Duration, StageError> {
        let (item, n_bytes) = self.prepare(item);
        let waited = self.budget.reserve_async(n_bytes, &self.stop).await?;
        self.put(item, n_bytes)?;
        Ok(waited)
    }

    /// The same as [`EdgeSender::wait_for_room`] for a task.
    pub(crate) async fn room_async(&self) -> Result<Duration, StageError> {
        let budget = &self.budget;
        let is_there = || budget.fits(&budget.lock(), 0);
        budget.wait_async(&self.stop, is_there).await
    }

    /// Blocks until the edge has room for something. Returns how long it waited.
    pub(crate) fn wait_for_room(&self) -> Result<Duration, StageError> {
        self.budget.wait(0, false, &self.stop)
    }
}

impl Message {
    /// Takes the item off the edge and gives its room back.
    pub(crate) fn take(self) -> Taken {
        match self {
            Self::Item {
                item,
                n_bytes,
                budget,
                port,
            } => {
                budget.release(n_bytes);
                Taken::Item(item, port)
            }
            Self::Ended(ended) => Taken::Ended(ended),
        }
    }
}

/// A message off the queue.
pub(crate) enum Taken {
    Item(Item, usize),
    Ended(Ended),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(max_items: usize, max_bytes: usize) -> (EdgeSender, Inbox) {
        let (mailbox, inbox) = inbox(Arc::default());
        let sender = EdgeSender {
            mailbox,
            budget: Arc::new(Budget::new(EdgeLimits {
                max_items,
                max_bytes,
            })),
            port: 0,
            route: Route::default(),
            carries: Arc::new(Carries::All),
            sinks: Arc::default(),
            stop: Arc::default(),
        };
        (sender, inbox)
    }

    fn item(n_bytes: usize) -> Item {
        let record = Item::of_text("a", "").n_bytes();
        Item::of_text("a", &"x".repeat(n_bytes - record))
    }

    #[test]
    fn an_edge_is_full_at_its_items_or_its_bytes_whichever_comes_first() {
        let (sender, _inbox) = edge(2, 1000);
        sender.send(item(400)).expect("empty");
        assert!(!sender.budget.try_reserve(601), "over the bytes");
        sender.send(item(400)).expect("room for a second");
        assert!(!sender.budget.try_reserve(1), "over the items");
        assert_eq!(sender.budget.held(), (2, 800));
    }

    #[test]
    fn an_item_larger_than_the_budget_passes_when_the_edge_is_empty() {
        let (sender, inbox) = edge(8, 1000);
        sender.send(item(5000)).expect("passes alone");
        assert!(!sender.budget.try_reserve(1));
        inbox.receiver.recv().expect("sent").take();
        assert_eq!(sender.budget.held(), (0, 0));
    }

    #[test]
    fn a_full_edge_blocks_until_something_is_taken() {
        let (sender, inbox) = edge(1, 1 << 20);
        sender.send(item(200)).expect("empty");
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| sender.send(item(300)));
            // Taking what is there is what lets the second one in.
            inbox.receiver.recv().expect("the first").take();
            blocked.join().expect("no panic").expect("room was made");
        });
        assert_eq!(sender.budget.held(), (1, 300));
    }

    #[test]
    fn a_cancelled_run_wakes_a_blocked_sender() {
        let (sender, _inbox) = edge(1, 1 << 20);
        sender.send(item(200)).expect("empty");
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| sender.send(item(200)));
            sender.stop.cancel();
            assert!(matches!(
                blocked.join().expect("no panic"),
                Err(StageError::Cancelled)
            ));
        });
    }

    #[tokio::test]
    async fn a_task_waits_for_room_as_a_thread_does() {
        let (sender, inbox) = edge(1, 1 << 20);
        sender.send_async(item(200)).await.expect("empty");
        let taker = tokio::task::spawn_blocking(move || {
            inbox.receiver.recv().expect("the first").take();
            inbox
        });
        sender.send_async(item(200)).await.expect("room was made");
        drop(taker.await.expect("no panic"));
    }

    #[test]
    fn an_edge_carries_only_the_fields_that_somebody_reads() {
        let (mut sender, inbox) = edge(8, 1 << 20);
        sender.carries = Arc::new(Carries::Only(BTreeSet::from(["text".into()])));
        sender
            .send(item(200).with("image_caption", "big"))
            .expect("empty");
        let Taken::Item(item, _) = inbox.receiver.recv().expect("sent").take() else {
            panic!("an item was sent");
        };
        assert_eq!(
            item.fields().map(|(name, _)| name).collect::<Vec<_>>(),
            ["text"]
        );
    }
}

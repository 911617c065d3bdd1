//! Forming batches: by items, by cost, by waiting time, like sizes together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, select_biased};
use serde::Deserialize;

use crate::edge::{Message, Taken};
use crate::error::ItemError;
use crate::gather::{Gather, LetGo};
use crate::item::Item;
use crate::metrics::NodeMetrics;

/// When a batch is full: the engine's key `batch`. A limit that is not given
/// does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchPolicy {
    /// Items in a batch.
    pub max_items: usize,
    /// Pixels of all images in a batch.
    pub max_pixels: Option<u64>,
    /// Tokens after padding: the longest item's tokens times the items.
    pub max_tokens: Option<usize>,
    /// How long an incomplete batch waits for more, from its first item.
    pub max_wait_ms: u64,
}

impl Default for BatchPolicy {
    /// One item at a time, without waiting.
    fn default() -> Self {
        Self {
            max_items: 1,
            max_pixels: None,
            max_tokens: None,
            max_wait_ms: 0,
        }
    }
}

impl BatchPolicy {
    /// Up to `max_items`, waiting `max_wait_ms` for them.
    pub fn of_items(max_items: usize, max_wait_ms: u64) -> Self {
        Self {
            max_items,
            max_wait_ms,
            ..Self::default()
        }
    }

    /// With a limit on padded tokens.
    #[must_use]
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        Self {
            max_tokens: Some(max_tokens),
            ..self
        }
    }
}

/// An item that waits for its batch, with what it costs.
struct Waiting {
    item: Item,
    n_tokens: usize,
    n_pixels: u64,
    /// Counts arrivals: the smallest has waited longest.
    arrival: u64,
}

/// Takes items off a node's channel and forms batches of them.
pub(crate) struct Batcher {
    policy: BatchPolicy,
    receiver: Receiver<Message>,
    gather: Option<Arc<Gather>>,
    waiting: Vec<Waiting>,
    /// What a gathering node let go that is no item to be batched.
    let_go: VecDeque<Next>,
    n_arrived: u64,
    closed: bool,
    /// Tokens of the last batch, and tokens after padding.
    padded: (u64, u64),
}

/// What [`Batcher::next`] found.
pub(crate) enum Next {
    Batch(Vec<Item>),
    /// Items that are worked on together or not at all.
    Group(Vec<Item>),
    /// An item for which a join found no partner.
    SetAside(Item, ItemError),
    /// Nothing came for `patience`; the caller looks whether the run was cancelled.
    Nothing,
    /// Nothing will come any more.
    Closed,
}

impl Batcher {
    pub(crate) fn new(
        policy: BatchPolicy,
        receiver: Receiver<Message>,
        gather: Option<Arc<Gather>>,
    ) -> Self {
        Self {
            policy,
            receiver,
            gather,
            waiting: Vec::new(),
            let_go: VecDeque::new(),
            n_arrived: 0,
            closed: false,
            padded: (0, 0),
        }
    }

    /// Counts the padding of the last batch.
    pub(crate) fn padding(&mut self, metrics: &NodeMetrics) {
        let (tokens, padded) = std::mem::take(&mut self.padded);
        metrics.tokens.fetch_add(tokens, Ordering::Relaxed);
        metrics.padded_tokens.fetch_add(padded, Ordering::Relaxed);
    }

    /// The next batch. Waits at most `patience` for a first item.
    pub(crate) fn next(&mut self, patience: Duration, n_tokens: impl Fn(&Item) -> usize) -> Next {
        if self.waiting.is_empty() && self.let_go.is_empty() {
            let has_taken = self.take(Instant::now() + patience, &n_tokens);
            if self.closed {
                for let_go in self.gather.take().iter().flat_map(|gather| gather.close()) {
                    self.let_go(let_go, &n_tokens);
                }
                if self.waiting.is_empty() && self.let_go.is_empty() {
                    return Next::Closed;
                }
            } else if !has_taken {
                return Next::Nothing;
            }
        }
        if let Some(next) = self.let_go.pop_front() {
            return next;
        }
        if self.waiting.is_empty() {
            return Next::Nothing; // A gathering node took it.
        }
        let deadline = Instant::now() + Duration::from_millis(self.policy.max_wait_ms);
        let window = self.window();
        while self.waiting.len() < window && self.let_go.is_empty() && !self.closed {
            // What waits already is taken at once; only a batch that is not
            // full yet waits for more.
            let until = if self.is_full() {
                Instant::now()
            } else {
                deadline
            };
            if !self.take(until, &n_tokens) {
                break;
            }
        }
        Next::Batch(self.cut())
    }

    /// How many items to look at. Where padding costs, a few batches' worth, so
    /// that items of like size can go together.
    fn window(&self) -> usize {
        const BATCHES_TO_SORT: usize = 4;
        let sorted = self.policy.max_tokens.is_some() && self.policy.max_items > 1;
        self.policy
            .max_items
            .saturating_mul(if sorted { BATCHES_TO_SORT } else { 1 })
    }

    fn is_full(&self) -> bool {
        let (n_items, longest, n_pixels) =
            self.waiting
                .iter()
                .fold((0, 0, 0), |(n_items, longest, n_pixels), waiting| {
                    (
                        n_items + 1,
                        waiting.n_tokens.max(longest),
                        waiting.n_pixels + n_pixels,
                    )
                });
        n_items >= self.policy.max_items || self.exceeds(n_items + 1, longest, n_pixels)
    }

    fn exceeds(&self, n_items: usize, longest: usize, n_pixels: u64) -> bool {
        n_items > self.policy.max_items
            || self
                .policy
                .max_tokens
                .is_some_and(|max| longest.saturating_mul(n_items) > max)
            || self.policy.max_pixels.is_some_and(|max| n_pixels > max)
    }

    /// Takes one message; false when none came until `deadline`.
    fn take(&mut self, deadline: Instant, n_tokens: &impl Fn(&Item) -> usize) -> bool {
        let message = match &self.gather {
            None => self.receiver.recv_deadline(deadline),
            Some(gather) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let messages = &self.receiver;
                let stalled = gather.stalled();
                // First what releases items, so that what is held does not grow.
                let received = select_biased! {
                    recv(stalled) -> stalled => {
                        if let Ok(stalled) = stalled {
                            for let_go in gather.flush_stalled(&stalled) {
                                self.let_go(let_go, n_tokens);
                            }
                        }
                        return true;
                    }
                    recv(messages) -> message => message.map_err(|_| RecvTimeoutError::Disconnected),
                    default(left) => Err(RecvTimeoutError::Timeout),
                };
                received
            }
        };
        match message {
            Ok(message) => {
                if let Taken::Item(item, port) = message.take() {
                    let gather = self.gather.clone();
                    let let_go = match gather {
                        None => Some(LetGo::Item(item)),
                        Some(gather) => gather.accept(port, item),
                    };
                    if let Some(let_go) = let_go {
                        self.let_go(let_go, n_tokens);
                    }
                }
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                self.closed = true;
                false
            }
        }
    }

    fn let_go(&mut self, let_go: LetGo, n_tokens: &impl Fn(&Item) -> usize) {
        match let_go {
            LetGo::Item(item) => {
                let n_pixels = item.image().map_or(0, |image| image.n_pixels());
                let (n_tokens, arrival) = (n_tokens(&item), self.n_arrived);
                self.n_arrived += 1;
                self.waiting.push(Waiting {
                    item,
                    n_tokens,
                    n_pixels,
                    arrival,
                });
            }
            LetGo::Group(items) => self.let_go.push_back(Next::Group(items)),
            LetGo::SetAside(item, error) => self.let_go.push_back(Next::SetAside(item, error)),
        }
    }

    /// Cuts a batch around the item that has waited longest: its neighbours in
    /// size, as many as the limits allow. So no item waits for ever.
    fn cut(&mut self) -> Vec<Item> {
        if self.policy.max_tokens.is_some() {
            self.waiting
                .sort_by_key(|waiting| (waiting.n_tokens, waiting.arrival));
        }
        let oldest = (0..self.waiting.len())
            .min_by_key(|index| self.waiting[*index].arrival)
            .expect("called with at least one item");
        let (mut from, mut to) = (oldest, oldest + 1);
        let (length, mut n_pixels) = (self.waiting[oldest].n_tokens, self.waiting[oldest].n_pixels);
        loop {
            // The neighbour that is nearer in size goes first.
            let below = from.checked_sub(1).map(|index| &self.waiting[index]);
            let above = self.waiting.get(to);
            let distance = |waiting: &Waiting| waiting.n_tokens.abs_diff(length);
            let next = [(below, true), (above, false)]
                .into_iter()
                .filter_map(|(waiting, is_below)| waiting.map(|waiting| (waiting, is_below)))
                .filter(|(waiting, _)| {
                    let longest = self.waiting[to - 1].n_tokens.max(waiting.n_tokens);
                    !self.exceeds(to - from + 1, longest, n_pixels + waiting.n_pixels)
                })
                .min_by_key(|(waiting, _)| distance(waiting));
            let Some((waiting, is_below)) = next else {
                break;
            };
            n_pixels += waiting.n_pixels;
            if is_below {
                from -= 1;
            } else {
                to += 1;
            }
        }
        let mut batch: Vec<Waiting> = self.waiting.drain(from..to).collect();
        if self.policy.max_tokens.is_some() {
            let n_tokens = batch.iter().map(|waiting| waiting.n_tokens as u64);
            let longest = n_tokens.clone().max().unwrap_or(0);
            self.padded = (n_tokens.sum(), longest * batch.len() as u64);
        }
        batch.sort_by_key(|waiting| waiting.arrival);
        batch.into_iter().map(|waiting| waiting.item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::edge::{Budget, Carries, EdgeLimits, EdgeSender, Route, inbox};

    const PATIENCE: Duration = Duration::from_millis(1);

    fn batches(policy: BatchPolicy, lengths: &[usize]) -> Vec<Vec<usize>> {
        let (mailbox, inbox) = inbox(Arc::default());
        let sender = EdgeSender {
            mailbox,
            budget: Arc::new(Budget::new(EdgeLimits {
                max_items: 1000,
                max_bytes: 1 << 30,
            })),
            port: 0,
            route: Route::default(),
            carries: Arc::new(Carries::All),
            sinks: Arc::default(),
            stop: Arc::default(),
        };
        for length in lengths {
            sender
                .send(Item::of_text("a", &"x".repeat(*length)))
                .expect("room");
        }
        drop(sender);
        let mut batcher = Batcher::new(policy, inbox.receiver, None);
        let mut formed = Vec::new();
        let length = |item: &Item| item.text().map_or(0, str::len);
        while let Next::Batch(batch) = batcher.next(PATIENCE, length) {
            formed.push(batch.iter().map(length).collect());
        }
        formed
    }

    #[test]
    fn the_default_takes_one_item_at_a_time_in_order() {
        assert_eq!(batches(BatchPolicy::default(), &[3, 1, 2]), [[3], [1], [2]]);
    }

    #[test]
    fn a_batch_holds_at_most_max_items() {
        let policy = BatchPolicy::of_items(2, 0);
        assert_eq!(batches(policy, &[1, 2, 3]), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn padded_tokens_are_the_longest_times_the_items_and_like_sizes_go_together() {
        let policy = BatchPolicy::of_items(4, 0).with_max_tokens(40);
        let formed = batches(policy, &[10, 1, 10, 1, 10, 1, 10, 1]);
        assert!(formed.contains(&vec![10, 10, 10, 10]), "{formed:?}");
        assert!(formed.contains(&vec![1, 1, 1, 1]), "{formed:?}");
    }

    #[test]
    fn an_item_over_the_limit_forms_a_batch_alone_and_none_is_lost() {
        let policy = BatchPolicy::of_items(4, 0).with_max_tokens(20);
        let mut all: Vec<usize> = batches(policy, &[50, 5, 7, 60, 5]).concat();
        all.sort_unstable();
        assert_eq!(all, [5, 5, 7, 50, 60]);
    }

    #[test]
    fn an_incomplete_batch_goes_when_the_channel_closes() {
        let policy = BatchPolicy::of_items(100, 60_000);
        assert_eq!(batches(policy, &[1, 2]), [[1, 2]]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_no_item_is_lost_and_no_limit_exceeded(
            lengths in proptest::collection::vec(0_usize..60, 0..80),
            max_items in 1_usize..9,
            max_tokens in proptest::option::of(1_usize..200),
        ) {
            let policy = BatchPolicy { max_items, max_tokens, ..BatchPolicy::default() };
            let formed = batches(policy, &lengths);
            for batch in &formed {
                let longest = batch.iter().max().copied().unwrap_or_default();
                let is_alone = batch.len() == 1;
                proptest::prop_assert!(batch.len() <= max_items);
                proptest::prop_assert!(
                    is_alone || max_tokens.is_none_or(|max| longest * batch.len() <= max)
                );
            }
            let (mut all, mut sent) = (formed.concat(), lengths);
            all.sort_unstable();
            sent.sort_unstable();
            proptest::prop_assert_eq!(all, sent);
        }
    }
}

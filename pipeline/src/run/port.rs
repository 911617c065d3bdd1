//! Implements a worker's [`Outlet`](crate::Outlet): the edges that leave its node.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::document::{PageCounts, Token};
use crate::edge::EdgeSender;
use crate::error::{ItemError, StageError};
use crate::item::Item;
use crate::key::Key;
use crate::metrics::NodeMetrics;
use crate::retry::OnError;
use crate::run::Shared;
use crate::stage::OutletPort;

pub(super) struct Port {
    pub(super) node: Arc<str>,
    /// What the pages that the node makes are noted under.
    pub(super) page_key: Arc<str>,
    pub(super) edges: Arc<Vec<EdgeSender>>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) on_error: OnError,
    /// How long the sends of this batch waited for room.
    pub(super) blocked: Duration,
    /// What left the node in this attempt at a batch, sent or set aside.
    pub(super) left: Vec<Leaving>,
    /// What left in earlier attempts: it must not leave a second time.
    pub(super) left_before: HashMap<Leaving, usize>,
    /// Items of this batch that failed and may be tried again.
    pub(super) failed: Vec<(Item, ItemError)>,
    /// Keeps the page that was sent last from being taken for done while more
    /// of it may come.
    pub(super) last_page: Option<Token>,
    /// What pages are counted for; none where nobody counts them.
    pub(super) page_counts: Option<PageCounts>,
    /// The token of a group that is all of one page: an item that is made from
    /// scratch for that page belongs to it.
    pub(super) group: Option<Token>,
}

/// An item of a batch, by the place in it, and the key of what was made of it.
pub(super) type Leaving = (usize, Key);

/// The place in its batch of the item, or of that which it was made from.
pub(super) fn slot(item: &Item) -> usize {
    item.token.as_ref().map_or(usize::MAX, Token::slot)
}

/// What the pages that `node` makes are counted for. Where joins wait for the
/// pages of one node, those of all nodes are counted, to notice a document
/// whose pages two nodes make.
pub(super) fn page_counts(shared: &Shared, node: &str) -> Option<PageCounts> {
    let counts = PageCounts {
        for_resuming: shared.progress.can_stage(),
        for_joins: shared.gathers.values().any(|g| g.releases_pages_of(node)),
    };
    let is_counted = counts.for_resuming || shared.gathers.values().any(|g| g.releases_pages());
    is_counted.then_some(counts)
}

/// The token of a group whose items are all of one page.
pub(super) fn token_of_page(group: &[Item]) -> Option<Token> {
    let mut tokens = group.iter().map(|item| item.token.as_ref());
    let first = tokens.next()??;
    let is_one_page = tokens.all(|token| token.is_some_and(|token| token.shares_page(first)));
    is_one_page.then(|| first.clone())
}

impl Port {
    /// Blocks until every edge has room for something.
    pub(super) fn wait_for_room(&self) -> Result<Duration, StageError> {
        self.edges
            .iter()
            .try_fold(Duration::ZERO, |sum, edge| Ok(sum + edge.wait_for_room()?))
    }

    /// Forgets the batch before.
    pub(super) fn begin(&mut self) {
        self.left.clear();
        self.left_before.clear();
        self.failed.clear();
        self.last_page = None;
        self.group = None;
    }

    /// A further attempt at the batch begins: what has left stays so.
    pub(super) fn begin_again(&mut self) {
        for leaving in self.left.drain(..) {
            *self.left_before.entry(leaving).or_default() += 1;
        }
    }

    /// Whether anything has left in some attempt.
    pub(super) fn has_any_left(&self) -> bool {
        !self.left.is_empty() || self.left_before.values().any(|n| *n > 0)
    }

    /// Whether the item itself has left in some attempt.
    pub(super) fn has_left(&self, item: &Item) -> bool {
        let leaving = (slot(item), item.key());
        self.left.contains(&leaving) || self.left_before.contains_key(&leaving)
    }

    /// Notes that an item leaves; false if an earlier attempt sent it.
    pub(super) fn leaves(&mut self, item: &Item) -> bool {
        let leaving = (slot(item), item.key());
        // Empty in the first attempt, which is nearly always the only one.
        let left_before = self.left_before.get_mut(&leaving).filter(|n| **n > 0);
        let is_new = left_before.is_none();
        if let Some(n) = left_before {
            *n -= 1;
        }
        self.left.push(leaving);
        is_new
    }

    /// Rows cannot be taken for the items of earlier stages.
    fn forget_recipes(&self) {
        if let Err(error) = self.shared.progress.forget_recipes() {
            self.shared.fail(&self.node, error);
        }
    }

    /// Checks that a stage which says that it is one to one has handled each item of
    /// `batch` once and under its key. `before` is how many had left and failed before.
    pub(super) fn check_one_to_one(&self, batch: &[Item], before: (usize, usize)) {
        let leaving = |item: &Item| (slot(item), item.key());
        let left = self.left.iter().skip(before.0).copied();
        let failed = self.failed.iter().skip(before.1);
        let failed = failed.map(|(item, _)| leaving(item));
        // Mostly they leave in the order in which they came.
        if left
            .clone()
            .chain(failed.clone())
            .eq(batch.iter().map(leaving))
        {
            return;
        }
        let n_handled = left.clone().count() + failed.clone().count();
        let handled: HashSet<Leaving> = left.chain(failed).collect();
        let is_handled = |item: &Item| handled.contains(&leaving(item));
        if n_handled != batch.len() || !batch.iter().all(is_handled) {
            tracing::debug!(
                node = &*self.node,
                "not one item for each: no document is made from rows that come from here"
            );
            self.forget_recipes();
        }
    }

    /// Gives the item a token, and counts it with its page. False if an earlier
    /// run has stored that page.
    fn admit(&mut self, item: &mut Item) -> bool {
        let key = item.key();
        let tracker = &self.shared.tracker;
        let token = item.token.take();
        let token = token.or_else(|| self.group.as_ref()?.of_same_page(key));
        // Made from scratch: it belongs to its document while that is under
        // way, and begins one otherwise.
        let token = token.or_else(|| {
            let token = tracker.token_for(key.document)?;
            token.document().stall_as_a_whole();
            Some(token)
        });
        let mut token = token.unwrap_or_else(|| {
            self.forget_recipes();
            tracker.begin(item.origin())
        });
        if token.is_of_page() {
            token.check_page(key.page);
        } else if let (Some(page), Some(counts)) = (key.page, self.page_counts) {
            if token.document().has_page(&self.page_key, page) {
                return false;
            }
            token.join_page(&self.page_key, page, counts);
            self.last_page = Some(token.clone());
        }
        if let Some(page) = key.page {
            token.follow_page(|| self.shared.pages.follow(key.document, page));
        }
        item.token = Some(token);
        true
    }

    /// The pages of `document` that the node need not make, since earlier runs did.
    fn staged_before(&self, document: &Item) -> BTreeSet<u32> {
        let token = document.token.as_ref().filter(|token| !token.is_of_page());
        let stored = token.map(|token| token.document().stored_pages(&self.page_key));
        stored.unwrap_or_default()
    }

    /// Sets an item aside for good.
    pub(super) fn set_aside(&mut self, item: &Item, error: &ItemError) {
        let shared = &self.shared;
        let set_aside = shared.set_aside(&self.node, &self.metrics, self.on_error, item, error);
        if let Err(error) = set_aside {
            shared.fail(&self.node, error);
        }
    }
}

impl OutletPort for Port {
    fn send(&mut self, mut item: Item) -> Result<(), StageError> {
        if !self.leaves(&item) || !self.admit(&mut item) {
            return Ok(());
        }
        NodeMetrics::count(&self.metrics.items_out, 1);
        let takers = match EdgeSender::takers(&self.edges, &item) {
            Ok(takers) => takers,
            Err(error) => {
                self.set_aside(&item, &error);
                return Ok(());
            }
        };
        let Some(last) = takers.last(self.edges.len()) else {
            if !takers.is_spared() {
                NodeMetrics::count(&self.metrics.dropped, 1);
            }
            return Ok(());
        };
        for (number, edge) in self.edges[..last].iter().enumerate() {
            if takers.takes(number) {
                self.blocked += edge.send(item.clone())?;
            }
        }
        self.blocked += self.edges[last].send(item)?;
        Ok(())
    }

    fn dead_letter(&mut self, mut item: Item, error: ItemError) {
        if matches!(self.on_error, OnError::Retry(_)) && !self.has_left(&item) {
            self.failed.push((item, error));
        } else if self.leaves(&item) && self.admit(&mut item) {
            self.set_aside(&item, &error);
        }
    }

    fn stored_pages(&self, document: &Item) -> BTreeSet<u32> {
        let stored = self.staged_before(document);
        let n_resumed = &self.shared.progress.n_pages_resumed;
        n_resumed.fetch_add(stored.len() as u64, Ordering::Relaxed);
        stored
    }

    fn expect_pages(&mut self, document: &Item, n_pages: u32) {
        let n_resumed = self.staged_before(document).len() as u64;
        let id = document.key().document;
        self.shared.pages.expect(id, n_pages.into(), n_resumed);
    }

    fn leaves_unfinished(&mut self, document: &Item) -> bool {
        let token = document.token.as_ref().filter(|token| !token.is_of_page());
        token.is_some_and(|token| self.shared.leaves_unfinished(token.document()))
    }

    fn is_cancelled(&self) -> bool {
        self.shared.stop.is_cancelled()
    }
}

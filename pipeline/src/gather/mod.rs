//! Nodes that wait for several items before they work: joins, and stages that
//! make one item of many.
//!
//! What a gathering node takes off its queue it holds outside of any budget and
//! never refuses: so two branches of a diamond cannot wait for each other,
//! however small their edges are. How far one branch runs ahead of the other,
//! and so what is held, is bounded by the edges of the slower one.
//!
//! A join releases an item when each input has sent one of its key. An item that
//! finds no partner is released when its page stalls: every item that was made
//! from the page and is still in the graph is held, so nothing can come that the
//! item waits for. This is exact only where all inputs get their pages from one
//! node (see [`Upstream::page_makers`]); elsewhere, and for items of no page, the
//! join waits until the whole document stalls. A stage that makes one item of a
//! page gathers in the same way, one that makes one item of a document always
//! waits for the document.

mod held;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use serde::Deserialize;
use tokio::sync::Notify;

use self::held::{ByKey, Held};
use crate::document::{Document, Unit};
use crate::error::ItemError;
use crate::item::Item;

/// What becomes of an item for which a join has found no partner: the engine's
/// key `unmatched`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    /// It is set aside.
    #[default]
    DeadLetter,
    /// It passes with the fields that it has.
    Pass,
    /// It goes nowhere.
    Drop,
}

/// What a node waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The same key from each input, whose names these are.
    Join {
        inputs: Vec<Arc<str>>,
        unmatched: Unmatched,
    },
    /// All items of a document.
    Document,
    /// All items of a page.
    Page,
}

/// What the graph has in front of a gathering node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upstream {
    /// The places of the nodes from which items come here.
    pub(crate) places: BTreeSet<usize>,
    /// The names of the same nodes.
    pub(crate) names: BTreeSet<Arc<str>>,
    /// The keys of the nodes by whose pages the node waits: see [`Pipeline::upstream`](crate::Pipeline).
    pub(crate) page_makers: BTreeSet<Arc<str>>,
}

/// A document that has stalled, or one page of it: what is held of it is to be released.
#[derive(Debug)]
pub(crate) struct Stalled {
    document: Arc<Document>,
    page: Option<Arc<Unit>>,
}

/// What a gathering node holds, shared by its workers.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Where the node stands in the graph.
    place: usize,
    rule: Rule,
    held: Mutex<Held>,
    stall: Sender<Stalled>,
    stalled: Receiver<Stalled>,
    /// Wakes a sink's task.
    arrived: Arc<Notify>,
    upstream: Upstream,
    /// Workers that may still take items off the queue.
    n_taking: AtomicUsize,
}

/// What a gathering node lets go.
#[derive(Debug)]
pub(crate) enum LetGo {
    /// An item to work on as any other.
    Item(Item),
    /// Items that are worked on together.
    Group(Vec<Item>),
    /// An item to be set aside.
    SetAside(Item, ItemError),
}

impl Gather {
    pub(crate) fn new(place: usize, rule: Rule, n_workers: usize, upstream: Upstream) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a page that stalls is one message, and the edges bound the pages"
        )]
        let (stall, stalled) = crossbeam_channel::unbounded();
        Self {
            place,
            rule,
            held: Mutex::default(),
            stall,
            stalled,
            arrived: Arc::default(),
            upstream,
            n_taking: AtomicUsize::new(n_workers),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What wakes the node's task, if it is a sink.
    pub(crate) fn arrived(&self) -> Arc<Notify> {
        Arc::clone(&self.arrived)
    }

    /// The largest number of items that the node held at one time.
    pub(crate) fn most_held(&self) -> usize {
        self.lock().most_items()
    }

    /// Whether the node releases items when their page stalls.
    pub(crate) fn releases_pages(&self) -> bool {
        !self.upstream.page_makers.is_empty()
    }

    /// The same for pages that the node `maker` makes.
    pub(crate) fn releases_pages_of(&self, maker: &str) -> bool {
        self.upstream.page_makers.contains(maker)
    }

    /// The documents and pages that have stalled here: each is to be flushed.
    pub(crate) fn stalled(&self) -> &Receiver<Stalled> {
        &self.stalled
    }

    /// Queues a document that has stalled with this node as the first that holds items of it.
    pub(crate) fn stall(&self, document: &Arc<Document>) {
        self.queue(Stalled {
            document: Arc::clone(document),
            page: None,
        });
    }

    /// Queues a page that has stalled, if this node can release what it holds of it.
    pub(crate) fn stall_page(&self, document: &Arc<Document>, page: &Arc<Unit>) {
        if self.is_page_stalled(document, page) {
            self.queue(Stalled {
                document: Arc::clone(document),
                page: Some(Arc::clone(page)),
            });
        }
    }

    fn queue(&self, stalled: Stalled) {
        // The receiver is a part of `self`.
        let _alive = self.stall.send(stalled);
        self.arrived.notify_one();
    }

    /// Whether nothing of the page can come here any more.
    fn is_page_stalled(&self, document: &Document, page: &Unit) -> bool {
        self.releases_pages_of(page.node())
            && document.is_page_stalled_behind(page, &self.upstream.places)
    }

    /// One of the node's workers has found its queue closed. The last of them
    /// lets go all that is held: nothing can complete it any more, even where
    /// a document has not stalled, because a stage further on holds its items
    /// back until this node has ended.
    pub(crate) fn close(&self) -> Vec<LetGo> {
        if self.n_taking.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Vec::new();
        }
        let documents = self.lock().documents();
        let let_go = documents.iter().map(|document| self.flush(document));
        let_go.flatten().collect()
    }

    /// Takes an item of the input that stands `port`-th; the item that it
    /// completes, if it does.
    pub(crate) fn accept(&self, port: usize, mut item: Item) -> Option<LetGo> {
        let key = item.key();
        let Some(token) = item.token.as_mut() else {
            return Some(LetGo::Item(item));
        };
        let document = Arc::clone(token.document());
        let (n_inputs, port, is_join) = match &self.rule {
            Rule::Join { inputs, .. } => (inputs.len(), port, true),
            Rule::Document | Rule::Page => (1, 0, false),
        };
        let mut held = self.lock();
        if !is_join || !held.has_all_but(&document, key, port) {
            token.hold(self.place);
            held.push(&document, n_inputs, port, item);
            return None;
        }
        let mut parts = held.take_pair(&document, key);
        if parts[port].is_some() {
            // An earlier one of the same input went first.
            token.hold(self.place);
            held.push(&document, n_inputs, port, item);
        } else {
            parts[port] = Some(item);
        }
        drop(held);
        merge(parts.into_iter().flatten()).map(LetGo::Item)
    }

    /// The item that would have been made of a group: what is set aside for all of it.
    pub(crate) fn whole_of(&self, group: &[Item]) -> Option<Item> {
        let first = group.first()?;
        let mut whole = Item::new(Arc::clone(first.origin()));
        whole.token.clone_from(&first.token);
        Some(match (&self.rule, first.key().page) {
            (Rule::Page, Some(page)) => whole.with_page(page),
            _ => whole,
        })
    }

    /// Lets go what is held of a document or a page that was queued as stalled.
    /// Since then a node before this one may have closed, and let its items go.
    pub(crate) fn flush_stalled(&self, stalled: &Stalled) -> Vec<LetGo> {
        let Stalled { document, page } = stalled;
        match page {
            Some(page) if self.is_page_stalled(document, page) => {
                let held = self.lock().take_page(document, page);
                self.let_go(held, document)
            }
            None if document.is_stalled_at(self.place) => self.flush(document),
            _ => Vec::new(),
        }
    }

    /// Lets go what is held of a document.
    fn flush(&self, document: &Arc<Document>) -> Vec<LetGo> {
        let held = self.lock().take_document(document);
        self.let_go(held, document)
    }

    fn let_go(&self, mut held: ByKey, document: &Document) -> Vec<LetGo> {
        // All of them first: the page must not seem to stall again in between.
        let items = held.values_mut().flatten().flatten();
        for token in items.filter_map(|item| item.token.as_mut()) {
            token.let_go();
        }
        let mut let_go = Vec::new();
        match &self.rule {
            Rule::Join { inputs, unmatched } => {
                for mut slots in held.into_values() {
                    while slots.iter().any(|slot| !slot.is_empty()) {
                        let parts: Vec<Option<Item>> =
                            slots.iter_mut().map(VecDeque::pop_front).collect();
                        let_go.extend(self.unmatched_of(parts, inputs, *unmatched, document));
                    }
                }
            }
            Rule::Document => {
                let items: Vec<Item> = held.into_values().flatten().flatten().collect();
                if !items.is_empty() {
                    let_go.push(LetGo::Group(items));
                }
            }
            Rule::Page => {
                let mut pages: BTreeMap<Option<u32>, Vec<Item>> = BTreeMap::new();
                for item in held.into_values().flatten().flatten() {
                    pages.entry(item.key().page).or_default().push(item);
                }
                let_go.extend(pages.into_values().map(LetGo::Group));
            }
        }
        let_go
    }

    fn unmatched_of(
        &self,
        parts: Vec<Option<Item>>,
        inputs: &[Arc<str>],
        unmatched: Unmatched,
        document: &Document,
    ) -> Option<LetGo> {
        let missing: Vec<&str> = inputs
            .iter()
            .zip(&parts)
            .filter(|(_, part)| part.is_none())
            .map(|(name, _)| &**name)
            .collect();
        let missing = missing.join("`, `");
        let item = merge(parts.into_iter().flatten())?;
        match unmatched {
            Unmatched::Pass => Some(LetGo::Item(item)),
            Unmatched::Drop => None,
            // Its partner's dead letter stands for it.
            Unmatched::DeadLetter if document.has_dead(&self.upstream.names, item.key()) => None,
            Unmatched::DeadLetter => {
                let error = ItemError::new("join", format_args!("`{missing}` sent nothing for it"))
                    .hint("set `unmatched = \"pass\"` or `\"drop\"` where that is as it should be");
                Some(LetGo::SetAside(item, error))
            }
        }
    }
}

/// The item moves on.
fn moving(mut item: Item) -> Item {
    if let Some(token) = item.token.as_mut() {
        token.let_go();
    }
    item
}

/// One item of the parts: where several have a field, the last one's is kept.
fn merge(parts: impl Iterator<Item = Item>) -> Option<Item> {
    let mut parts = parts.map(moving);
    let mut merged = parts.next()?;
    for part in parts {
        if let (Some(ours), Some(theirs)) = (&merged.token, &part.token) {
            ours.merge_page(theirs);
        }
        for (name, value) in part.fields() {
            merged.set(name.to_owned(), value.clone());
        }
    }
    Some(merged)
}

//! Nodes that wait for several items before they work: joins, and stages that
//! make one item of many.
//!
//! What a gathering node takes off its queue it holds outside of any budget and
//! never refuses: so two branches of a diamond cannot wait for each other,
//! however small their edges are. How far one branch runs ahead of the other,
//! and so what is held, is bounded by the edges of the slower one.
//!
//! A join lets an item go when each input has sent one of its key. The rest
//! goes when the document stalls: all that is left of it is held, so nothing
//! can come that it waits for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use serde::Deserialize;
use tokio::sync::Notify;

use crate::document::{Document, Token};
use crate::error::ItemError;
use crate::item::Item;
use crate::key::Key;

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

/// What has come of one document.
#[derive(Debug, Default)]
struct Held {
    /// By key, then by input, in order of arrival.
    items: BTreeMap<Key, Vec<VecDeque<Item>>>,
}

impl Held {
    /// Of one of its items.
    fn token(&self) -> Option<&Token> {
        let mut items = self.items.values().flatten().flatten();
        items.next()?.token.as_ref()
    }
}

/// What a gathering node holds, shared by its workers.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Where the node stands in the graph.
    place: usize,
    rule: Rule,
    /// By the address of the [`Document`], which the tokens of its items keep alive.
    held: Mutex<HashMap<usize, Held>>,
    stall: Sender<Arc<Document>>,
    stalled: Receiver<Arc<Document>>,
    /// Wakes a sink's task.
    arrived: Arc<Notify>,
    /// The nodes from which items come here.
    before: BTreeSet<Arc<str>>,
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
    pub(crate) fn new(
        place: usize,
        rule: Rule,
        n_workers: usize,
        before: BTreeSet<Arc<str>>,
    ) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a document that stalls is one message, and the edges bound the documents"
        )]
        let (stall, stalled) = crossbeam_channel::unbounded();
        Self {
            place,
            rule,
            held: Mutex::default(),
            stall,
            stalled,
            arrived: Arc::default(),
            before,
            n_taking: AtomicUsize::new(n_workers),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What wakes the node's task, if it is a sink.
    pub(crate) fn arrived(&self) -> Arc<Notify> {
        Arc::clone(&self.arrived)
    }

    /// The documents that have stalled here: each is to be flushed.
    pub(crate) fn stalled(&self) -> &Receiver<Arc<Document>> {
        &self.stalled
    }

    /// Says that a document has stalled with this node as the first that holds items of it.
    pub(crate) fn stall(&self, document: &Arc<Document>) {
        // The receiver is a part of `self`.
        let _alive = self.stall.send(Arc::clone(document));
        self.arrived.notify_one();
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// One of the node's workers has found its queue closed. The last of them
    /// lets go all that is held: nothing can complete it any more, even where
    /// a document has not stalled, because a stage further on holds its items
    /// back until this node has ended.
    pub(crate) fn close(&self) -> Vec<LetGo> {
        if self.n_taking.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Vec::new();
        }
        let documents: Vec<Arc<Document>> = {
            let held = self.lock();
            let tokens = held.values().filter_map(Held::token);
            tokens.map(|token| Arc::clone(token.document())).collect()
        };
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
        let document = Arc::as_ptr(token.document()).addr();
        let n_inputs = match &self.rule {
            Rule::Join { inputs, .. } => inputs.len(),
            Rule::Document | Rule::Page => 1,
        };
        let mut all = self.lock();
        let slots = all
            .entry(document)
            .or_default()
            .items
            .entry(key)
            .or_insert_with(|| vec![VecDeque::new(); n_inputs]);
        let is_join = matches!(self.rule, Rule::Join { .. });
        let is_matched = is_join
            && slots
                .iter()
                .enumerate()
                .all(|(number, slot)| number == port || !slot.is_empty());
        if !is_matched {
            token.hold(self.place);
            slots[if is_join { port } else { 0 }].push_back(item);
            return None;
        }
        let mut parts: Vec<Item> = Vec::with_capacity(n_inputs);
        let mut item = Some(item);
        for (number, slot) in slots.iter_mut().enumerate() {
            if number == port && slot.is_empty() {
                parts.extend(item.take());
            } else {
                parts.extend(slot.pop_front());
            }
        }
        // An earlier one of the same input went first.
        if let Some(mut later) = item {
            if let Some(token) = later.token.as_mut() {
                token.hold(self.place);
            }
            slots[port].push_back(later);
        }
        if slots.iter().all(VecDeque::is_empty) {
            let held = all.entry(document).or_default();
            held.items.remove(&key);
            if held.items.is_empty() {
                all.remove(&document);
            }
        }
        drop(all);
        merge(parts).map(LetGo::Item)
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

    /// Lets go what is held of a document of which it was said that it has
    /// stalled. Since then a node before this one may have closed, and let it go.
    pub(crate) fn flush_stalled(&self, document: &Arc<Document>) -> Vec<LetGo> {
        if document.is_stalled_at(self.place) {
            self.flush(document)
        } else {
            Vec::new()
        }
    }

    /// Lets go what is held of a document.
    fn flush(&self, document: &Arc<Document>) -> Vec<LetGo> {
        let held = self.lock().remove(&Arc::as_ptr(document).addr());
        let Some(held) = held else {
            return Vec::new();
        };
        let mut let_go = Vec::new();
        match &self.rule {
            Rule::Join { inputs, unmatched } => {
                for mut slots in held.items.into_values() {
                    while slots.iter().any(|slot| !slot.is_empty()) {
                        let parts: Vec<Option<Item>> =
                            slots.iter_mut().map(VecDeque::pop_front).collect();
                        let_go.extend(self.unmatched_of(parts, inputs, *unmatched, document));
                    }
                }
            }
            Rule::Document => {
                let items = held.items.into_values().flatten().flatten();
                let_go.push(LetGo::Group(items.map(moving).collect()));
            }
            Rule::Page => {
                let mut pages: BTreeMap<Option<u32>, Vec<Item>> = BTreeMap::new();
                for item in held.items.into_values().flatten().flatten() {
                    pages.entry(item.key().page).or_default().push(moving(item));
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
        let item = merge(parts.into_iter().flatten().collect())?;
        match unmatched {
            Unmatched::Pass => Some(LetGo::Item(item)),
            Unmatched::Drop => None,
            // Its partner's dead letter stands for it.
            Unmatched::DeadLetter if document.has_dead(&self.before, item.key()) => None,
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
fn merge(parts: Vec<Item>) -> Option<Item> {
    let mut parts = parts.into_iter().map(moving);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Event, Tracker};

    fn join(unmatched: Unmatched) -> Gather {
        let inputs = vec![Arc::from("left"), Arc::from("right")];
        let before = inputs.iter().cloned().collect();
        Gather::new(0, Rule::Join { inputs, unmatched }, 1, before)
    }

    fn page(tracker: &Tracker, root: &Item, page: u32) -> Item {
        let mut item = root.child().with_page(page);
        item.token = tracker.token_for(root.key().document);
        item
    }

    fn document(tracker: &Tracker) -> Item {
        let mut root = Item::of_text("a.pdf", "");
        root.token = Some(tracker.begin(root.origin()));
        root
    }

    #[test]
    fn a_join_lets_an_item_go_when_each_input_has_sent_its_key() {
        let (tracker, gather) = (Tracker::default(), join(Unmatched::default()));
        let root = document(&tracker);
        let left = page(&tracker, &root, 1)
            .with("text", "old")
            .with("a", 1_u32);
        assert!(gather.accept(0, left).is_none());
        assert!(gather.accept(1, page(&tracker, &root, 2)).is_none());
        let right = page(&tracker, &root, 1).with("text", "new");
        let Some(LetGo::Item(merged)) = gather.accept(1, right) else {
            panic!("both have come");
        };
        assert_eq!(merged.text(), Some("new"));
        assert!(merged.get("a").is_some());
        assert!(!gather.is_empty());
    }

    #[test]
    fn items_of_one_key_are_paired_in_order() {
        let (tracker, gather) = (Tracker::default(), join(Unmatched::default()));
        let root = document(&tracker);
        for text in ["one", "two"] {
            let item = page(&tracker, &root, 1).with("text", text);
            assert!(gather.accept(0, item).is_none());
        }
        for text in ["one", "two"] {
            let Some(LetGo::Item(merged)) = gather.accept(1, page(&tracker, &root, 1)) else {
                panic!("its partner waits");
            };
            assert_eq!(merged.text(), Some(text));
        }
        assert!(gather.is_empty());
    }

    #[test]
    fn a_document_stalls_when_all_that_moves_is_held() {
        let (tracker, gather) = (Tracker::default(), join(Unmatched::default()));
        let stalls: Arc<Mutex<Vec<Option<usize>>>> = Arc::default();
        let seen = Arc::clone(&stalls);
        tracker.observe(move |event| {
            if let Event::Stalled(document) = event {
                let mut seen = seen.lock().expect("no thread panicked");
                seen.push(document.first_holder());
            }
        });
        let root = document(&tracker);
        let known = Arc::clone(root.token.as_ref().expect("set").document());
        assert!(gather.accept(0, page(&tracker, &root, 1)).is_none());
        assert!(stalls.lock().expect("no panic").is_empty());
        drop(root);
        assert_eq!(*stalls.lock().expect("no panic"), [Some(0)]);
        let let_go = gather.flush(&known);
        assert!(matches!(
            &let_go[..],
            [LetGo::SetAside(item, error)]
                if error.message(&item.label()) == "cannot join `a.pdf#1`: `right` sent nothing for it"
        ));
        assert!(gather.is_empty());
    }

    #[test]
    fn an_unmatched_item_passes_or_is_dropped_as_the_file_says() {
        for (unmatched, n_left) in [(Unmatched::Pass, 1), (Unmatched::Drop, 0)] {
            let (tracker, gather) = (Tracker::default(), join(unmatched));
            let root = document(&tracker);
            let known = Arc::clone(root.token.as_ref().expect("set").document());
            assert!(gather.accept(1, page(&tracker, &root, 1)).is_none());
            assert_eq!(gather.flush(&known).len(), n_left);
        }
    }

    #[test]
    fn many_to_one_gathers_a_document_or_each_of_its_pages_in_order_of_key() {
        for (rule, expected) in [
            (Rule::Document, vec![vec![1, 1, 2]]),
            (Rule::Page, vec![vec![1, 1], vec![2]]),
        ] {
            let tracker = Tracker::default();
            let gather = Gather::new(0, rule, 1, BTreeSet::new());
            let root = document(&tracker);
            let known = Arc::clone(root.token.as_ref().expect("set").document());
            for (number, part) in [(2, 1), (1, 2), (1, 1)] {
                let item = page(&tracker, &root, number).with_part(part);
                assert!(gather.accept(0, item).is_none());
            }
            let groups: Vec<Vec<u32>> = gather
                .flush(&known)
                .into_iter()
                .map(|let_go| match let_go {
                    LetGo::Group(items) => {
                        items.iter().filter_map(|item| item.key().page).collect()
                    }
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(groups, expected);
        }
    }
}

//! Stores the items that a gathering node holds, by document and key.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::document::{Document, Unit};
use crate::item::Item;
use crate::key::Key;

/// Items of one key: for each input a queue in order of arrival.
pub(super) type Slots = Vec<VecDeque<Item>>;

/// Items of one document.
pub(super) type ByKey = BTreeMap<Key, Slots>;

/// All that a gathering node holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// By the address of the [`Document`], which the tokens of its items keep alive.
    documents: HashMap<usize, ByKey>,
    n_items: usize,
    most_items: usize,
}

fn address(document: &Arc<Document>) -> usize {
    Arc::as_ptr(document).addr()
}

fn count(items: &ByKey) -> usize {
    items.values().flatten().map(VecDeque::len).sum()
}

impl Held {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// The largest number of items that were held at one time.
    pub(super) fn most_items(&self) -> usize {
        self.most_items
    }

    /// The documents of which it holds items.
    pub(super) fn documents(&self) -> Vec<Arc<Document>> {
        let first = |items: &ByKey| {
            let item = items.values().flatten().flatten().next()?;
            item.token
                .as_ref()
                .map(|token| Arc::clone(token.document()))
        };
        self.documents.values().filter_map(first).collect()
    }

    /// Whether each input except `port` has an item of this key here.
    pub(super) fn has_all_but(&self, document: &Arc<Document>, key: Key, port: usize) -> bool {
        let items = self.documents.get(&address(document));
        items
            .and_then(|items| items.get(&key))
            .is_some_and(|slots| {
                let mut slots = slots.iter().enumerate();
                slots.all(|(number, slot)| number == port || !slot.is_empty())
            })
    }

    /// Adds an item of the input `port`, of `n_inputs`.
    pub(super) fn push(
        &mut self,
        document: &Arc<Document>,
        n_inputs: usize,
        port: usize,
        item: Item,
    ) {
        let items = self.documents.entry(address(document)).or_default();
        let slots = items.entry(item.key());
        let slots = slots.or_insert_with(|| vec![VecDeque::new(); n_inputs]);
        slots[port].push_back(item);
        self.n_items += 1;
        self.most_items = self.most_items.max(self.n_items);
    }

    /// Removes the earliest item of the key from each input, in the order of the inputs.
    pub(super) fn take_pair(&mut self, document: &Arc<Document>, key: Key) -> Vec<Option<Item>> {
        let Some(items) = self.documents.get_mut(&address(document)) else {
            return Vec::new();
        };
        let Some(slots) = items.get_mut(&key) else {
            return Vec::new();
        };
        let parts: Vec<Option<Item>> = slots.iter_mut().map(VecDeque::pop_front).collect();
        if slots.iter().all(VecDeque::is_empty) {
            items.remove(&key);
            if items.is_empty() {
                self.documents.remove(&address(document));
            }
        }
        self.n_items -= parts.iter().flatten().count();
        parts
    }

    /// Removes what is held of a document.
    pub(super) fn take_document(&mut self, document: &Arc<Document>) -> ByKey {
        let items = self.documents.remove(&address(document));
        let items = items.unwrap_or_default();
        self.n_items -= count(&items);
        items
    }

    /// Removes what is held of one page, if all of it counts as `unit`.
    pub(super) fn take_page(&mut self, document: &Arc<Document>, unit: &Arc<Unit>) -> ByKey {
        let Some(items) = self.documents.get_mut(&address(document)) else {
            return ByKey::new();
        };
        let first = Key::document(document.origin().id).with_page(unit.page());
        let of_page = first..=first.with_part(u32::MAX);
        let is_of_unit = |item: &Item| item.token.as_ref().is_some_and(|token| token.is_of(unit));
        let mut page = items.range(of_page.clone());
        if !page.all(|(_, slots)| slots.iter().flatten().all(is_of_unit)) {
            return ByKey::new();
        }
        let page: ByKey = items.extract_if(of_page, |_, _| true).collect();
        if items.is_empty() {
            self.documents.remove(&address(document));
        }
        self.n_items -= count(&page);
        page
    }
}

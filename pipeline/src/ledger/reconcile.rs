//! Brings the ledger into line with what the sinks hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::read_back::forget_whole;
use super::store::Changes;
use super::{LedgerDocument, Progress, StoredIn};
use crate::error::StageError;
use crate::graph::SinkKey;
use crate::key::DocumentId;
use crate::sink::{Inventory, StoredDocument};

/// What the sinks answered when the run began: each one's inventory and mark.
pub(crate) type Inventories = Vec<(Inventory, Option<String>)>;

impl Progress {
    /// Believes the sinks where they differ from the ledger.
    pub(crate) fn reconcile(&self, inventories: &Inventories) -> Result<(), StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        let is_read =
            |(inventory, _): &(Inventory, _)| matches!(inventory, Inventory::Documents(_));
        if !inventories.iter().any(is_read) {
            return Ok(());
        }
        let known = ledger.store.documents()?.into_iter();
        let mut documents = Documents::new(known);
        self.believe(inventories, &mut documents);
        ledger.store.change(|to| {
            for document in documents.changed() {
                to.update(document)?;
            }
            self.note_marks(to, inventories)
        })
    }

    /// Forgets everything, and takes what the sinks hold for it. `n_dead` gives the
    /// dead letters that there are. Returns how many documents are known then.
    pub(crate) fn rebuild(
        &self,
        inventories: &Inventories,
        n_dead: &HashMap<DocumentId, u64>,
    ) -> Result<usize, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(0);
        };
        // What the ledger counted is worth knowing: a sink may not see that rows are gone.
        let mut documents = Documents::new(ledger.store.documents().unwrap_or_default());
        self.believe(inventories, &mut documents);
        documents.keep_only_stored();
        ledger.store.change(|to| {
            to.remove_all()?;
            for document in documents.all.values_mut() {
                document.n_dead = n_dead.get(&document.id).copied().unwrap_or(0);
                document.state = None;
                forget_whole(document);
                to.update(document)?;
            }
            self.note_marks(to, inventories)
        })?;
        Ok(documents.all.len())
    }

    fn believe(&self, inventories: &Inventories, documents: &mut Documents) {
        for (sink, (inventory, _)) in self.sinks.iter().zip(inventories) {
            let Inventory::Documents(held) = inventory else {
                continue;
            };
            let n_strange = documents.take_over(sink, held);
            if n_strange > 0 {
                tracing::warn!(
                    sink = &*sink.node,
                    place = sink.identity,
                    hint = "another run, a changed configuration or a lost ledger made them: \
                            run one configuration into one place; those whose source is here \
                            are made again",
                    "{n_strange} documents there have rows of other settings, which this ledger \
                     does not know"
                );
            }
        }
    }

    fn note_marks(&self, to: &Changes<'_>, inventories: &Inventories) -> rusqlite::Result<()> {
        for ((inventory, mark), sink) in inventories.iter().zip(&self.sinks) {
            if matches!(inventory, Inventory::Documents(_)) {
                to.set_mark(&sink.identity, mark.as_deref())?;
            }
        }
        Ok(())
    }
}

/// The documents of the ledger, on their way to what the sinks hold.
struct Documents {
    all: BTreeMap<DocumentId, LedgerDocument>,
    changed: BTreeSet<DocumentId>,
}

impl Documents {
    fn new(known: impl IntoIterator<Item = LedgerDocument>) -> Self {
        let all = known.into_iter().map(|known| (known.id, known));
        Self {
            all: all.collect(),
            changed: BTreeSet::new(),
        }
    }

    fn changed(&self) -> impl Iterator<Item = &LedgerDocument> {
        self.changed.iter().filter_map(|id| self.all.get(id))
    }

    /// Only documents that some sink has rows of.
    fn keep_only_stored(&mut self) {
        let has_rows = |known: &LedgerDocument| known.stored.values().any(|it| it.n_rows > 0);
        self.all.retain(|_, known| has_rows(known));
    }

    /// Takes over what one sink holds. Returns how many documents have rows of
    /// another configuration that the ledger did not know of.
    fn take_over(&mut self, sink: &SinkKey, held: &[StoredDocument]) -> usize {
        let held: HashMap<DocumentId, &StoredDocument> =
            held.iter().map(|held| (held.id, held)).collect();
        for known in self.all.values_mut() {
            let has_rows = |stored: &StoredIn| stored.n_rows > 0;
            let is_gone = !held.contains_key(&known.id)
                && known.stored.get(&sink.identity).is_some_and(has_rows);
            if is_gone {
                known.stored.remove(&sink.identity);
                self.changed.insert(known.id);
            }
        }
        let mut n_strange = 0;
        for (id, held) in held {
            let known = self.all.entry(id).or_insert_with(|| new_document(held));
            let before = known.stored.get(&sink.identity);
            let Some(now) = believed(before, held, known.n_dead) else {
                continue;
            };
            let is_strange = !held.fingerprint.is_empty()
                && held.fingerprint != sink.fingerprint
                && before.is_none_or(|before| before.fingerprint != held.fingerprint);
            n_strange += usize::from(is_strange);
            known.stored.insert(sink.identity.clone(), now);
            if known.source.is_empty() {
                known.source.clone_from(&held.source);
            }
            self.changed.insert(id);
        }
        n_strange
    }
}

/// What the ledger is to say of a document that a sink holds; nothing where it
/// says that already.
fn believed(before: Option<&StoredIn>, held: &StoredDocument, n_dead: u64) -> Option<StoredIn> {
    let mut now = StoredIn {
        content_hash: held.content_hash.clone(),
        fingerprint: held.fingerprint.clone(),
        n_rows: held.n_rows,
        is_whole: false,
    };
    let Some(before) = before else {
        return Some(now);
    };
    let is_same_version =
        before.content_hash == now.content_hash && before.fingerprint == now.fingerprint;
    now.is_whole = before.is_whole && is_same_version && before.n_rows == now.n_rows;
    // Nothing could be made of its present content, so the sink kept the rows
    // of an earlier one.
    let keeps_older = before.n_rows == 0 && n_dead > 0;
    if *before == now || keeps_older {
        return None;
    }
    if is_same_version {
        // Somebody else has removed or added rows.
        now.fingerprint.clear();
    }
    Some(now)
}

/// A document of which only a sink tells.
fn new_document(held: &StoredDocument) -> LedgerDocument {
    LedgerDocument {
        id: held.id,
        uri: held.uri.clone(),
        source: held.source.clone(),
        state: None,
        content_hash: held.content_hash.clone(),
        is_undone: false,
        stored: BTreeMap::new(),
        n_dead: 0,
    }
}

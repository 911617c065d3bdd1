//! What a run asks of its ledger, and tells it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::Changes;
use super::{Ledger, LedgerDocument, StagedPart, Stager};
use crate::document::{Document, Resumed};
use crate::error::StageError;
use crate::key::{DocumentId, Origin};
use crate::source_outlet::KnownDocument;
use crate::stage::{Inventory, StagedRows, StoredDocument};

/// A document that an earlier run has begun.
#[derive(Debug)]
struct Resumable {
    content_hash: String,
    resumed: Arc<Resumed>,
}

/// What became of a document, on its way into the ledger.
#[derive(Debug)]
enum Outcome {
    Done(LedgerDocument),
    Removed(DocumentId),
}

#[derive(Debug, Default)]
struct Pending {
    outcomes: Vec<Outcome>,
    /// Marks that sinks gave since the last write.
    marks: BTreeMap<usize, Option<String>>,
}

/// A run's side of the ledger. Without one, everything is done anew.
#[derive(Debug)]
pub(crate) struct Progress {
    ledger: Option<Ledger>,
    fingerprint: String,
    sinks: Vec<Arc<str>>,
    /// Whether the graph lets a run resume inside a document.
    can_stage: bool,
    resumable: Mutex<HashMap<DocumentId, Resumable>>,
    pending: Mutex<Pending>,
    /// Pages that were not made again because an earlier run had staged them.
    pub(crate) n_pages_resumed: AtomicU64,
    /// Dead letters of documents that were passed over.
    pub(crate) n_dead_before: AtomicU64,
}

/// What the sinks answered when the run began: each one's inventory.
pub(crate) type Inventories = Vec<(Inventory, Option<String>)>;

impl Progress {
    pub(crate) fn new(
        ledger: Option<Ledger>,
        fingerprint: String,
        sinks: Vec<Arc<str>>,
        can_stage: bool,
    ) -> Self {
        let is_locked = ledger.as_ref().is_some_and(|ledger| ledger.lock.is_some());
        Self {
            ledger,
            fingerprint,
            sinks,
            can_stage: can_stage && is_locked,
            resumable: Mutex::default(),
            pending: Mutex::default(),
            n_pages_resumed: AtomicU64::new(0),
            n_dead_before: AtomicU64::new(0),
        }
    }

    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Whether pages are counted, so that a run can resume inside a document.
    pub(crate) fn can_stage(&self) -> bool {
        self.can_stage
    }

    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// For the sink that stands `place`-th.
    pub(crate) fn stager(self: &Arc<Self>, place: usize) -> Option<Stager> {
        self.can_stage.then(|| Stager {
            progress: Arc::clone(self),
            sink: Arc::clone(&self.sinks[place]),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mark that a sink left.
    pub(crate) fn mark(&self, place: usize) -> Result<Option<String>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        ledger.store.mark(&self.sinks[place])
    }

    // What a source asks.

    /// Whether a document with this content is stored; its state is then noted.
    pub(crate) fn is_stored(
        &self,
        node: &str,
        origin: &Origin,
        state: Option<&str>,
    ) -> Result<bool, StageError> {
        let Some((ledger, known)) = self.record(origin.id)? else {
            return Ok(false);
        };
        let is_stored = known.fingerprint == self.fingerprint
            && known.content_hash == origin.content_hash.to_string();
        if is_stored {
            self.n_dead_before
                .fetch_add(known.n_dead, Ordering::Relaxed);
            if known.state.as_deref() != state || known.source != node {
                let known = LedgerDocument {
                    source: node.to_owned(),
                    state: state.map(str::to_owned),
                    ..known
                };
                ledger.store.change(|to| to.put(&known))?;
            }
        }
        Ok(is_stored)
    }

    /// Whether the document is stored from the version that `state` names.
    pub(crate) fn is_current(&self, id: DocumentId, state: &str) -> Result<bool, StageError> {
        let Some((_, known)) = self.record(id)? else {
            return Ok(false);
        };
        let is_current =
            known.fingerprint == self.fingerprint && known.state.as_deref() == Some(state);
        if is_current {
            self.n_dead_before
                .fetch_add(known.n_dead, Ordering::Relaxed);
        }
        Ok(is_current)
    }

    fn record(&self, id: DocumentId) -> Result<Option<(&Ledger, LedgerDocument)>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        Ok(ledger.store.document(id)?.map(|known| (ledger, known)))
    }

    /// The documents that `source` sent, and those of which only the tables tell.
    pub(crate) fn known(&self, source: &str) -> Result<Vec<KnownDocument>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(Vec::new());
        };
        let known = ledger.store.documents()?.into_iter();
        let known = known.filter(|known| known.source.is_empty() || known.source == source);
        Ok(known
            .map(|known| KnownDocument {
                uri: known.uri,
                state: known.state,
            })
            .collect())
    }

    /// What need not be made again of a document that now comes.
    pub(crate) fn resume(&self, origin: &Origin) -> Result<Option<Arc<Resumed>>, StageError> {
        let found = self.resumable().remove(&origin.id);
        let Some(found) = found else {
            return Ok(None);
        };
        if found.content_hash == origin.content_hash.to_string() {
            return Ok(Some(found.resumed));
        }
        self.lost(&[origin.id])?;
        Ok(None)
    }

    fn resumable(&self) -> MutexGuard<'_, HashMap<DocumentId, Resumable>> {
        self.resumable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    // What the run tells.

    /// A document is settled.
    pub(crate) fn settled(&self, document: &Document) {
        if self.ledger.is_none() {
            return;
        }
        let origin = document.origin();
        let outcome = if document.is_removal() {
            Outcome::Removed(origin.id)
        } else {
            let arrival = document.arrival();
            let rows = document.rows();
            let rows = rows
                .into_iter()
                .map(|(place, n_rows)| (self.sinks[place].to_string(), n_rows));
            Outcome::Done(LedgerDocument {
                id: origin.id,
                uri: origin.uri.to_string(),
                source: arrival.source.to_string(),
                state: arrival.state.as_deref().map(str::to_owned),
                content_hash: origin.content_hash.to_string(),
                fingerprint: self.fingerprint.clone(),
                rows: rows.collect(),
                n_dead: document.n_dead(),
            })
        };
        self.pending().outcomes.push(outcome);
    }

    /// A sink has committed.
    pub(crate) fn set_mark(&self, place: usize, mark: Option<String>) {
        if self.ledger.is_some() {
            self.pending().marks.insert(place, mark);
        }
    }

    /// Writes what has become known, in one transaction.
    pub(crate) fn flush(&self) -> Result<(), StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        let pending = std::mem::take(&mut *self.pending());
        tracing::trace!(n = pending.outcomes.len(), "documents go into the ledger");
        if pending.outcomes.is_empty() && pending.marks.is_empty() {
            return Ok(());
        }
        ledger.store.change(|to| {
            for outcome in &pending.outcomes {
                match outcome {
                    Outcome::Done(document) => to.put(document)?,
                    Outcome::Removed(id) => to.remove(*id)?,
                }
            }
            for (place, mark) in &pending.marks {
                to.set_mark(&self.sinks[*place], mark.as_deref())?;
            }
            Ok(())
        })
    }

    /// How many documents wait to be written.
    pub(crate) fn n_pending(&self) -> usize {
        self.pending().outcomes.len()
    }

    // What happens before the sources start.

    /// Has these documents done again.
    pub(crate) fn undo(&self, documents: &[DocumentId]) -> Result<(), StageError> {
        self.ledger
            .as_ref()
            .map_or(Ok(()), |ledger| ledger.undo(documents))
    }

    /// Believes the sinks where they differ from the ledger.
    pub(crate) fn reconcile(&self, inventories: &Inventories) -> Result<(), StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        let held: Vec<Option<HashMap<DocumentId, &StoredDocument>>> = inventories
            .iter()
            .map(|(inventory, _)| match inventory {
                Inventory::Documents(documents) => {
                    Some(documents.iter().map(|known| (known.id, known)).collect())
                }
                Inventory::Unknown | Inventory::Unchanged => None,
            })
            .collect();
        if held.iter().all(Option::is_none) {
            return Ok(());
        }
        let known = ledger.store.documents()?;
        let known: HashMap<DocumentId, LedgerDocument> =
            known.into_iter().map(|known| (known.id, known)).collect();
        let undone = known.values().filter(|known| {
            let lacks = |(place, held): (usize, &Option<HashMap<DocumentId, &StoredDocument>>)| {
                held.as_ref().is_some_and(|held| {
                    let n_rows = known.rows.get(&*self.sinks[place]).copied().unwrap_or(0);
                    match held.get(&known.id) {
                        Some(stored) => !is_same(known, stored),
                        None => n_rows > 0,
                    }
                })
            };
            held.iter().enumerate().any(lacks)
        });
        let undone: Vec<DocumentId> = undone.map(|known| known.id).collect();
        let found = self.found_in_all(&held, &known);
        ledger.store.change(|to| {
            for id in &undone {
                to.undo(*id)?;
            }
            for document in &found {
                to.put(document)?;
            }
            self.note_marks(to, inventories)
        })
    }

    /// Documents that every sink holds and that the ledger does not know so.
    fn found_in_all(
        &self,
        held: &[Option<HashMap<DocumentId, &StoredDocument>>],
        known: &HashMap<DocumentId, LedgerDocument>,
    ) -> Vec<LedgerDocument> {
        let Some(Some(first)) = held.first() else {
            return Vec::new();
        };
        // One that is to be done again is not done because its old rows are there.
        let is_new = |stored: &&&StoredDocument| {
            known
                .get(&stored.id)
                .is_none_or(|known| !known.fingerprint.is_empty() && !is_same(known, stored))
        };
        let in_all = |stored: &&&StoredDocument| {
            held.iter().all(|held| {
                held.as_ref()
                    .and_then(|held| held.get(&stored.id))
                    .is_some_and(|other| {
                        other.content_hash == stored.content_hash
                            && other.fingerprint == stored.fingerprint
                    })
            })
        };
        let found = first.values().filter(is_new).filter(in_all);
        found
            .map(|stored| LedgerDocument {
                id: stored.id,
                uri: stored.uri.clone(),
                source: known
                    .get(&stored.id)
                    .map_or_else(String::new, |known| known.source.clone()),
                state: None,
                content_hash: stored.content_hash.clone(),
                fingerprint: stored.fingerprint.clone(),
                rows: held
                    .iter()
                    .zip(&self.sinks)
                    .filter_map(|(held, sink)| {
                        let n_rows = held.as_ref()?.get(&stored.id)?.n_rows;
                        Some((sink.to_string(), n_rows))
                    })
                    .collect(),
                n_dead: 0,
            })
            .collect()
    }

    fn note_marks(&self, to: &Changes<'_>, inventories: &Inventories) -> rusqlite::Result<()> {
        for ((inventory, mark), sink) in inventories.iter().zip(&self.sinks) {
            if matches!(inventory, Inventory::Documents(_)) {
                to.set_mark(sink, mark.as_deref())?;
            }
        }
        Ok(())
    }

    /// Forgets everything, and takes what the sinks hold for it.
    pub(crate) fn rebuild(&self, inventories: &Inventories) -> Result<usize, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(0);
        };
        ledger.store.change(|to| {
            to.remove_all()?;
            Ok(())
        })?;
        self.reconcile(inventories)?;
        Ok(ledger.store.documents()?.len())
    }

    /// What each sink staged of documents that this run may resume.
    pub(crate) fn staged(&self) -> Result<Vec<Vec<StagedRows>>, StageError> {
        let mut by_sink: Vec<Vec<StagedRows>> = self.sinks.iter().map(|_| Vec::new()).collect();
        let Some(ledger) = self.ledger.as_ref().filter(|_| self.can_stage) else {
            return Ok(by_sink);
        };
        let mut parts: BTreeMap<DocumentId, Vec<StagedPart>> = BTreeMap::new();
        for part in ledger.store.staged()? {
            parts.entry(part.id).or_default().push(part);
        }
        let mut resumable = HashMap::new();
        let mut kept = Vec::new();
        let documents: Vec<DocumentId> = parts.keys().copied().collect();
        for (id, mut parts) in parts {
            let content_hash = parts[0].content_hash.clone();
            let is_usable = parts.iter().all(|part| {
                part.fingerprint == self.fingerprint
                    && part.content_hash == content_hash
                    && self.sinks.iter().any(|sink| **sink == *part.sink)
            });
            if !is_usable {
                continue;
            }
            let mut pages = ledger.store.pages(id)?;
            keep_whole(&mut parts, &mut pages);
            let mut resumed = Resumed::default();
            for (node, page) in &pages {
                resumed.pages.entry(node.clone()).or_default().insert(*page);
            }
            for part in &parts {
                let place = self.sinks.iter().position(|sink| **sink == *part.sink);
                let place = place.expect("checked above");
                resumed.sinks.insert(place);
                by_sink[place].push(StagedRows {
                    document: id,
                    payload: part.payload.clone(),
                });
            }
            let resumed = Arc::new(resumed);
            resumable.insert(
                id,
                Resumable {
                    content_hash,
                    resumed,
                },
            );
            kept.push((id, parts, pages));
        }
        // What is not taken over must not count a second time.
        ledger.store.change(|to| {
            for id in &documents {
                to.forget_staged(*id)?;
            }
            for (id, parts, pages) in &kept {
                parts.iter().try_for_each(|part| to.stage(part))?;
                for (node, page) in pages {
                    to.page_done(*id, node, *page)?;
                }
            }
            Ok(())
        })?;
        *self.resumable() = resumable;
        Ok(by_sink)
    }

    /// Rows of these documents were staged and are not whole any more.
    pub(crate) fn lost(&self, documents: &[DocumentId]) -> Result<(), StageError> {
        self.resumable().retain(|id, _| !documents.contains(id));
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        ledger
            .store
            .change(|to| documents.iter().try_for_each(|id| to.forget_staged(*id)))
    }
}

/// A part with a page that another sink lacks is made again, and so are the
/// other pages in it.
fn keep_whole(parts: &mut Vec<StagedPart>, pages: &mut BTreeSet<(String, u32)>) {
    loop {
        let n_before = parts.len();
        parts.retain(|part| {
            let is_whole = part.pages.is_subset(pages);
            if !is_whole {
                pages.retain(|page| !part.pages.contains(page));
            }
            is_whole
        });
        if parts.len() == n_before {
            return;
        }
    }
}

/// Whether the sink holds what the ledger says.
fn is_same(known: &LedgerDocument, stored: &StoredDocument) -> bool {
    known.content_hash == stored.content_hash && known.fingerprint == stored.fingerprint
}

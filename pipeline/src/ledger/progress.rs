//! Answers what a run asks of its ledger, and records what the run did.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::resume::Resumable;
use super::{Ledger, LedgerDocument, Stager, StoredIn};
use crate::document::{Document, Partial};
use crate::error::StageError;
use crate::graph::SinkKey;
use crate::key::{DocumentId, Origin};
use crate::source_outlet::KnownDocument;

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

/// The sinks that a document is to be made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// None: each holds it already.
    Nothing,
    /// All of them.
    Everything,
    /// Some, while the others hold it already.
    Some(Arc<Partial>),
}

impl Wanted {
    /// The sinks that hold the document already, where others lack it.
    pub(crate) fn partial(&self) -> Option<&Arc<Partial>> {
        match self {
            Self::Some(partial) => Some(partial),
            Self::Nothing | Self::Everything => None,
        }
    }
}

/// Why a document is made, or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No sink has seen it.
    New,
    /// The sinks hold another content of it.
    Changed,
    /// Its content is the same: these sinks lack it, or hold rows of other
    /// settings, or it is to be done again.
    MadeAgain(Vec<Arc<str>>),
}

/// A run's side of the ledger. Without one, everything is done in each run.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(super) ledger: Option<Ledger>,
    pub(super) sinks: Vec<SinkKey>,
    /// The sources of the pipeline.
    sources: HashSet<Arc<str>>,
    /// Whether the graph lets a run resume inside a document.
    pub(super) can_stage: bool,
    pub(super) resumable: Mutex<HashMap<DocumentId, Resumable>>,
    pending: Mutex<Pending>,
    /// Whether the recipes of this run's sinks were found not to hold.
    pub(super) has_no_recipes: AtomicBool,
    /// Pages that were not made again because an earlier run had staged them.
    pub(crate) n_pages_resumed: AtomicU64,
    /// Dead letters of documents that were passed over.
    pub(crate) n_dead_before: AtomicU64,
}

impl Progress {
    pub(crate) fn new(
        ledger: Option<Ledger>,
        sinks: Vec<SinkKey>,
        sources: HashSet<Arc<str>>,
        can_stage: bool,
    ) -> Result<Self, StageError> {
        if let Some(ledger) = &ledger {
            let identities = sinks.iter().map(|sink| &*sink.identity);
            ledger.store.use_sinks(identities)?;
        }
        let is_locked = ledger.as_ref().is_some_and(Ledger::is_only_one);
        Ok(Self {
            ledger,
            sinks,
            sources,
            can_stage: can_stage && is_locked,
            resumable: Mutex::default(),
            pending: Mutex::default(),
            has_no_recipes: AtomicBool::new(false),
            n_pages_resumed: AtomicU64::new(0),
            n_dead_before: AtomicU64::new(0),
        })
    }

    /// The sinks of the pipeline, in order.
    pub(crate) fn sinks(&self) -> &[SinkKey] {
        &self.sinks
    }

    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Whether what the run does is noted.
    pub(crate) fn has_ledger(&self) -> bool {
        self.ledger.is_some()
    }

    /// Whether pages are counted, so that a run can resume inside a document.
    pub(crate) fn can_stage(&self) -> bool {
        self.can_stage
    }

    /// Whether this is the one run of the pipeline that takes over what earlier
    /// runs left: it holds the ledger's lock, or there is no ledger.
    pub(crate) fn is_heir(&self) -> bool {
        let ledger = self.ledger.as_ref();
        ledger.is_none_or(Ledger::is_only_one)
    }

    /// For the sink that stands `place`-th.
    pub(crate) fn stager(self: &Arc<Self>, place: usize) -> Option<Stager> {
        self.can_stage.then(|| Stager {
            progress: Arc::clone(self),
            sink: self.sinks[place].clone(),
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
        ledger.store.mark(&self.sinks[place].identity)
    }

    // What a source asks.

    /// The sinks that lack the document with this content. Where none does, its
    /// state is noted.
    pub(crate) fn wanted(
        &self,
        node: &str,
        origin: &Origin,
        state: Option<&str>,
    ) -> Result<Wanted, StageError> {
        let Some((ledger, known)) = self.record(origin.id)? else {
            return Ok(Wanted::Everything);
        };
        let content_hash = origin.content_hash.to_string();
        let n_lacking = self.lacking(&known, &content_hash).count();
        if n_lacking == self.sinks.len() {
            return Ok(Wanted::Everything);
        }
        if n_lacking > 0 {
            return Ok(Wanted::Some(Arc::new(self.partial(&known, &content_hash))));
        }
        self.passed_over(&known)?;
        let is_same = known.content_hash == content_hash
            && known.state.as_deref() == state
            && known.source == node;
        if !is_same {
            let known = LedgerDocument {
                source: node.to_owned(),
                state: state.map(str::to_owned),
                content_hash,
                ..known
            };
            ledger.store.change(|to| to.put(&known))?;
        }
        Ok(Wanted::Nothing)
    }

    /// Why [`Progress::wanted`] answers that some sinks lack the document.
    pub(crate) fn standing(&self, origin: &Origin) -> Result<Standing, StageError> {
        let Some((_, known)) = self.record(origin.id)? else {
            return Ok(Standing::New);
        };
        let content_hash = origin.content_hash.to_string();
        let lacking = self.lacking(&known, &content_hash);
        let lacking: Vec<Arc<str>> = lacking.map(|sink| Arc::clone(&sink.node)).collect();
        let mut stored = known.stored.values();
        let is_same = known.content_hash == content_hash
            || stored.any(|stored| stored.content_hash == content_hash);
        Ok(if is_same {
            Standing::MadeAgain(lacking)
        } else {
            Standing::Changed
        })
    }

    /// The sinks that do not hold the document with this content.
    fn lacking<'a>(
        &'a self,
        known: &'a LedgerDocument,
        content_hash: &'a str,
    ) -> impl Iterator<Item = &'a SinkKey> {
        let sinks = self.sinks.iter();
        sinks.filter(|sink| !known.is_in(sink, content_hash))
    }

    fn partial(&self, known: &LedgerDocument, content_hash: &str) -> Partial {
        let (mut wanted, mut kept) = (BTreeSet::new(), BTreeMap::new());
        for (place, sink) in self.sinks.iter().enumerate() {
            let stored = known.stored.get(&sink.identity);
            match stored.filter(|_| known.is_in(sink, content_hash)) {
                Some(stored) => _ = kept.insert(sink.identity.clone(), stored.clone()),
                None => _ = wanted.insert(place),
            }
        }
        let n_dead = known.n_dead;
        Partial {
            wanted,
            kept,
            n_dead,
        }
    }

    /// Whether the document is stored from the version that `state` names.
    pub(crate) fn is_current(&self, id: DocumentId, state: &str) -> Result<bool, StageError> {
        let Some((_, known)) = self.record(id)? else {
            return Ok(false);
        };
        let is_current = known.state.as_deref() == Some(state) && known.is_done(&self.sinks);
        if is_current {
            self.passed_over(&known)?;
        }
        Ok(is_current)
    }

    /// A document is not made, since every sink holds it. What is staged of another
    /// version of it is nobody's any more.
    fn passed_over(&self, known: &LedgerDocument) -> Result<(), StageError> {
        self.n_dead_before
            .fetch_add(known.n_dead, Ordering::Relaxed);
        if self.has_resumable(known.id) {
            self.lost(&[known.id])?;
        }
        Ok(())
    }

    pub(super) fn record(
        &self,
        id: DocumentId,
    ) -> Result<Option<(&Ledger, LedgerDocument)>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        Ok(ledger.store.document(id)?.map(|known| (ledger, known)))
    }

    /// The documents that `source` brought, and those of sources that the pipeline
    /// has no more: a source may have been renamed. Among them are those that were
    /// begun and never finished.
    pub(crate) fn known(&self, source: &str) -> Result<Vec<KnownDocument>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(Vec::new());
        };
        let is_of = |of: &str| of == source || !self.sources.contains(of);
        let stored = ledger.store.documents()?.into_iter();
        let stored = stored.filter(|known| is_of(&known.source));
        let stored = stored.map(|LedgerDocument { uri, state, .. }| KnownDocument { uri, state });
        let staged = ledger.store.only_staged()?.into_iter();
        let staged = staged.filter(|(_, of)| is_of(of));
        let staged = staged.map(|(uri, _)| KnownDocument { uri, state: None });
        Ok(stored.chain(staged).collect())
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
            Outcome::Done(self.record_of(document))
        };
        self.pending().outcomes.push(outcome);
    }

    fn record_of(&self, document: &Document) -> LedgerDocument {
        let (origin, arrival) = (document.origin(), document.arrival());
        let content_hash = origin.content_hash.to_string();
        let n_dead = document.n_dead() + arrival.n_dead_kept;
        let rows = document.rows();
        // Of pages that an earlier run set aside no letter may be left to count.
        let is_whole = n_dead == 0 && !document.is_resumed();
        let sinks = self.sinks.iter().enumerate();
        let wanted = sinks.filter(|(place, _)| document.is_wanted_by(*place));
        let stored = wanted.map(|(place, sink)| {
            let stored = StoredIn {
                content_hash: content_hash.clone(),
                fingerprint: sink.fingerprint.clone(),
                n_rows: rows.get(&place).copied().unwrap_or(0),
                is_whole,
            };
            (sink.identity.clone(), stored)
        });
        let mut stored: BTreeMap<String, StoredIn> = stored.collect();
        if let Some(partial) = &arrival.partial {
            stored.extend(partial.kept.clone());
        }
        LedgerDocument {
            id: origin.id,
            uri: origin.uri.to_string(),
            source: arrival.source.to_string(),
            state: arrival.state.as_deref().map(str::to_owned),
            content_hash,
            is_undone: false,
            stored,
            n_dead,
        }
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
                to.set_mark(&self.sinks[*place].identity, mark.as_deref())?;
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
}

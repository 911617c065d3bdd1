//! Finds what an interrupted run staged of documents that it had not finished.
//!
//! Each sink notes the pages whose rows it has staged, and the ledger those of
//! which nothing is left to stage anywhere. A page is made again if some sink
//! that wants it has not staged it; a sink that has it drops what then comes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::{Progress, StagedPart, Wanted};
use crate::document::Resumed;
use crate::error::StageError;
use crate::key::{DocumentId, Origin};
use crate::sink::StagedRows;

/// A document that an earlier run has begun.
#[derive(Debug, Default)]
pub(crate) struct Resumable {
    content_hash: String,
    /// Pages of which every sink has staged what it gets, by the keys of their nodes.
    done: BTreeSet<(String, u32)>,
    /// What each sink has staged.
    staged: BTreeMap<usize, StagedPages>,
}

#[derive(Debug, Default)]
struct StagedPages {
    pages: BTreeSet<(String, u32)>,
    n_rows: u64,
}

impl Resumable {
    /// What a run that makes the document for these sinks need not make.
    fn resume(&self, wanted: &[usize]) -> Resumed {
        let nothing = BTreeSet::new();
        let staged_in = |sink: &usize| self.staged.get(sink).map_or(&nothing, |it| &it.pages);
        let mut sinks = wanted.iter();
        let first = sinks.next().map_or(&nothing, staged_in).clone();
        let mut spared = sinks.map(staged_in).fold(first, |mut both, pages| {
            both.retain(|page| pages.contains(page));
            both
        });
        spared.extend(self.done.iter().cloned());
        let mut resumed = Resumed::default();
        for (node, page) in spared {
            resumed.pages.entry(node).or_default().insert(page);
        }
        for sink in wanted {
            let Some(staged) = self.staged.get(sink) else {
                continue;
            };
            let pages = staged.pages.iter();
            let pages = pages.map(|(node, page)| (Arc::from(node.as_str()), *page));
            resumed.staged.insert(*sink, pages.collect());
            resumed.rows.insert(*sink, staged.n_rows);
        }
        resumed
    }
}

impl Progress {
    fn resumable(&self) -> MutexGuard<'_, HashMap<DocumentId, Resumable>> {
        self.resumable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether rows of the document are staged that no run has asked for.
    pub(super) fn has_resumable(&self, id: DocumentId) -> bool {
        self.resumable().contains_key(&id)
    }

    /// What need not be made again of a document that now comes.
    pub(crate) fn resume(
        &self,
        origin: &Origin,
        wanted: &Wanted,
    ) -> Result<Option<Arc<Resumed>>, StageError> {
        let found = self.resumable().remove(&origin.id);
        let Some(found) = found else {
            return Ok(None);
        };
        if found.content_hash != origin.content_hash.to_string() {
            self.lost(&[origin.id])?;
            return Ok(None);
        }
        let all = 0..self.sinks.len();
        let wanted: Vec<usize> = match wanted.partial() {
            Some(partial) => partial.wanted.iter().copied().collect(),
            None => all.collect(),
        };
        Ok(Some(Arc::new(found.resume(&wanted))))
    }

    /// What each sink staged of documents that this run may resume. `keys` are
    /// those of the nodes of the graph.
    pub(crate) fn staged(
        &self,
        keys: &BTreeSet<Arc<str>>,
    ) -> Result<Vec<Vec<StagedRows>>, StageError> {
        let mut by_sink: Vec<Vec<StagedRows>> = self.sinks.iter().map(|_| Vec::new()).collect();
        let Some(ledger) = self.ledger.as_ref().filter(|_| self.can_stage) else {
            return Ok(by_sink);
        };
        let mut parts: BTreeMap<DocumentId, Vec<StagedPart>> = BTreeMap::new();
        for part in ledger.store.staged()? {
            parts.entry(part.id).or_default().push(part);
        }
        let documents: Vec<DocumentId> = parts.keys().copied().collect();
        let (mut resumable, mut kept) = (HashMap::new(), Vec::new());
        for (id, parts) in parts {
            let found = self.usable(id, parts, keys)?;
            let Some((of_document, parts)) = found else {
                continue;
            };
            for (sink, part) in &parts {
                by_sink[*sink].push(StagedRows {
                    document: id,
                    payload: part.payload.clone(),
                });
            }
            kept.push((id, parts, of_document.done.clone()));
            resumable.insert(id, of_document);
        }
        // What is not taken over must not count a second time.
        ledger.store.change(|to| {
            for id in &documents {
                to.forget_staged(*id)?;
            }
            for (id, parts, pages) in &kept {
                parts.iter().try_for_each(|(_, part)| to.stage(part))?;
                for (node, page) in pages {
                    to.page_done(*id, node, *page)?;
                }
            }
            Ok(())
        })?;
        *self.resumable() = resumable;
        Ok(by_sink)
    }

    /// Those parts of a document that fit the present configuration and that no
    /// sink has committed, each with its sink.
    #[expect(clippy::type_complexity, reason = "one caller takes it apart at once")]
    fn usable(
        &self,
        id: DocumentId,
        parts: Vec<StagedPart>,
        keys: &BTreeSet<Arc<str>>,
    ) -> Result<Option<(Resumable, Vec<(usize, StagedPart)>)>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        let known = ledger.store.document(id)?;
        // One content at a time is under way: others are of versions that were given up.
        let Some(content_hash) = parts.last().map(|part| part.content_hash.clone()) else {
            return Ok(None);
        };
        let mut of_document = Resumable {
            content_hash,
            ..Resumable::default()
        };
        let (mut usable, mut fits_all) = (Vec::new(), true);
        for part in parts {
            let sink = self.sinks.iter().position(|sink| {
                sink.identity == part.sink && sink.fingerprint == part.fingerprint
            });
            let is_of_graph = part.pages.iter().all(|(node, _)| keys.contains(&**node));
            let is_of_content = part.content_hash == of_document.content_hash;
            let Some(sink) = sink.filter(|_| is_of_graph && is_of_content) else {
                fits_all = false;
                continue;
            };
            let is_committed = known
                .as_ref()
                .is_some_and(|known| known.is_in(&self.sinks[sink], &part.content_hash));
            if is_committed {
                continue; // Its rows are in the table, which the sink does not get again.
            }
            let staged = of_document.staged.entry(sink).or_default();
            staged.pages.extend(part.pages.iter().cloned());
            staged.n_rows += part.n_rows;
            usable.push((sink, part));
        }
        if fits_all {
            of_document.done = ledger.store.pages(id)?;
        }
        let is_of_graph = |(node, _): &(String, u32)| keys.contains(node.as_str());
        of_document.done.retain(is_of_graph);
        Ok((!usable.is_empty()).then_some((of_document, usable)))
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

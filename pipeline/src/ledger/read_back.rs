//! Answers of which documents the stored rows can be read back, and as what.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::{LedgerDocument, Progress, StoredIn};
use crate::error::StageError;
use crate::graph::Recipe;
use crate::key::{DocumentId, Origin};

impl Progress {
    /// The recipes of all fingerprints that are known; see [`Recipe`]. `own` are those
    /// of this run's sinks. Where a run noted another one for the same fingerprint, only
    /// what both say is true of all its rows: a fingerprint covers neither the fields of
    /// a source nor the kind of the sink.
    pub(crate) fn recipes(&self, own: &[Recipe]) -> Result<HashMap<String, Recipe>, StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(HashMap::new());
        };
        let known = ledger.store.recipes()?;
        let mut recipes = known.clone();
        for (sink, own) in self.sinks.iter().zip(own) {
            let fingerprint = sink.fingerprint.clone();
            let recipe = recipes.entry(fingerprint).or_insert_with(|| own.clone());
            *recipe = recipe.common(own);
        }
        let mut fingerprints = self.sinks.iter().map(|sink| &sink.fingerprint);
        if fingerprints.any(|fingerprint| recipes.get(fingerprint) != known.get(fingerprint)) {
            ledger.store.change(|to| {
                let mut sinks = self.sinks.iter();
                sinks.try_for_each(|sink| {
                    to.set_recipe(&sink.fingerprint, &recipes[&sink.fingerprint])
                })
            })?;
        }
        Ok(recipes)
    }

    /// A stage has begun a document of its own: what the rows of this run's sinks
    /// were made from is not known by their document any more.
    pub(crate) fn forget_recipes(&self) -> Result<(), StageError> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        if self.has_no_recipes.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        ledger.store.change(|to| {
            let mut sinks = self.sinks.iter();
            sinks.try_for_each(|sink| to.set_recipe(&sink.fingerprint, &Recipe::unknown()))
        })
    }

    /// What each sink holds of this content as a whole, by the place of the sink.
    pub(crate) fn whole(&self, origin: &Origin) -> Result<Vec<(usize, StoredIn)>, StageError> {
        let known = self.record(origin.id)?.map(|(_, known)| known);
        let Some(known) = known.filter(|known| !known.is_undone) else {
            return Ok(Vec::new());
        };
        let content_hash = origin.content_hash.to_string();
        let is_whole = |stored: &&StoredIn| {
            stored.is_whole && stored.n_rows > 0 && stored.content_hash == content_hash
        };
        let sinks = self.sinks.iter().enumerate();
        let whole = sinks.filter_map(|(place, sink)| {
            let stored = known.stored.get(&sink.identity).filter(is_whole)?;
            Some((place, stored.clone()))
        });
        Ok(whole.collect())
    }

    /// The rows of a document cannot be read: the next run makes it from its source.
    pub(crate) fn doubt_rows(&self, id: DocumentId) -> Result<(), StageError> {
        let Some((ledger, mut known)) = self.record(id)? else {
            return Ok(());
        };
        forget_whole(&mut known);
        ledger.store.change(|to| to.update(&known))
    }
}

/// Whether the rows of the document are whole is not known any more.
pub(super) fn forget_whole(known: &mut LedgerDocument) {
    for stored in known.stored.values_mut() {
        stored.is_whole = false;
    }
}

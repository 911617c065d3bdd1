//! Drops rows whose data files are gone, so that the table can be read again.

use std::collections::HashSet;
use std::sync::Arc;

use lance::Error;
use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, TransactionBuilder};
use lance::table::format::Fragment;
use pagemill_pipeline::StageError;

use super::commit::Table;

impl Table {
    /// Removes the fragments whose files are gone, in one commit. Returns how many
    /// rows that were.
    ///
    /// # Errors
    /// A table that cannot be read or written, or that another writer changes.
    pub(super) async fn drop_broken(&mut self) -> Result<u64, StageError> {
        self.reload().await?;
        let broken = self.broken_fragments().await?;
        let Some(dataset) = self.dataset.clone().filter(|_| !broken.is_empty()) else {
            return Ok(0);
        };
        let lost: HashSet<u64> = broken.iter().copied().collect();
        let fragments = dataset.manifest().fragments.iter();
        let n_rows = fragments
            .filter(|fragment| lost.contains(&fragment.id))
            .filter_map(Fragment::num_rows)
            .sum::<usize>() as u64;
        let operation = Operation::Delete {
            updated_fragments: Vec::new(),
            deleted_fragment_ids: broken,
            predicate: "the data files are gone".to_owned(),
        };
        let transaction = TransactionBuilder::new(dataset.version().version, operation).build();
        let committed = CommitBuilder::new(dataset).execute(transaction).await;
        let committed = committed.map_err(|error: Error| self.cannot("repair", error))?;
        self.dataset = Some(Arc::new(committed));
        Ok(n_rows)
    }
}

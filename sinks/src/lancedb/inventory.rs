//! What a table holds: the truth that the ledger is compared with.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, StringArray};
use futures::TryStreamExt as _;
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance::table::format::Fragment;
use pagemill_pipeline::{DocumentId, Inventory, Secrets, StageError, StoredDocument};

use super::commit::Table;
use crate::row::{CONTENT_HASH, DOCUMENT, DOCUMENT_ID, FINGERPRINT};

impl Table {
    /// The documents of the table; nothing if it is as it was when it had `mark`.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub(super) async fn inventory(&mut self, mark: Option<&str>) -> Result<Inventory, StageError> {
        self.known_version = Some(self.version());
        if mark.is_some() && self.mark().as_deref() == mark {
            return Ok(Inventory::Unchanged);
        }
        let Some(dataset) = self.dataset.clone() else {
            return Ok(Inventory::Documents(Vec::new()));
        };
        let documents = read(&dataset).await;
        let documents = documents.map_err(|error| self.cannot("read", error))?;
        Ok(Inventory::Documents(documents))
    }

    /// Names the table and its version; `None` once somebody else has changed
    /// its rows since the inventory.
    pub(super) fn mark(&self) -> Option<String> {
        let version = self.known_version?;
        // The ledger keeps it, which is no place for a password in a URL.
        let uri = Secrets::default().redact(self.uri()).into_owned();
        Some(format!("{uri}@{version}"))
    }

    fn version(&self) -> u64 {
        let dataset = self.dataset.as_ref();
        dataset.map_or(0, |dataset| dataset.version().version)
    }

    /// Notes the version that was committed last, if every change of rows up to
    /// it is one of `own`.
    pub(super) async fn note_version(&mut self, own: &HashSet<String>) {
        let Some(known) = self.known_version else {
            return;
        };
        let (Some(dataset), now) = (self.dataset.clone(), self.version()) else {
            return;
        };
        for version in known + 1..=now {
            if !is_own_or_harmless(&dataset, version, own).await {
                self.known_version = None;
                return;
            }
        }
        self.known_version = Some(now);
    }

    /// Fragments that were staged, if all their files are still there.
    pub(super) async fn find_staged(&self, payload: &[u8]) -> Option<Vec<Fragment>> {
        let dataset = self.dataset.as_ref()?;
        let fragments: Vec<Fragment> = serde_json::from_slice(payload).ok()?;
        let store = dataset.object_store(None).await.ok()?;
        for file in fragments.iter().flat_map(|fragment| &fragment.files) {
            let path = dataset.data_dir().join(file.path.as_str());
            if !store.exists(&path).await.unwrap_or(false) {
                return None;
            }
        }
        Some(fragments)
    }
}

/// Whether a version changed no rows, or is one of ours.
async fn is_own_or_harmless(dataset: &Dataset, version: u64, own: &HashSet<String>) -> bool {
    let Ok(Some(transaction)) = dataset.read_transaction_by_version(version).await else {
        return false; // Pruned: who knows.
    };
    match transaction.operation {
        Operation::CreateIndex { .. }
        | Operation::Rewrite { .. }
        | Operation::Merge { .. }
        | Operation::Project { .. }
        | Operation::ReserveFragments { .. }
        | Operation::UpdateConfig { .. } => true,
        // The empty table.
        Operation::Overwrite { .. } => version == 1,
        _ => own.contains(&transaction.uuid),
    }
}

async fn read(dataset: &Dataset) -> lance::Result<Vec<StoredDocument>> {
    let mut scanner = dataset.scan();
    scanner.project(&[DOCUMENT_ID, DOCUMENT, CONTENT_HASH, FINGERPRINT])?;
    let mut batches = scanner.try_into_stream().await?;
    let mut documents: HashMap<DocumentId, StoredDocument> = HashMap::new();
    while let Some(batch) = batches.try_next().await? {
        let column = |name: &str| -> Option<&StringArray> {
            batch.column_by_name(name)?.as_string_opt::<i32>()
        };
        let (Some(ids), Some(uris), Some(hashes), Some(fingerprints)) = (
            column(DOCUMENT_ID),
            column(DOCUMENT),
            column(CONTENT_HASH),
            column(FINGERPRINT),
        ) else {
            return Err(lance::Error::internal(
                "the table lacks the columns of every row",
            ));
        };
        for row in 0..batch.num_rows() {
            let Some(id) = DocumentId::from_hex(ids.value(row)) else {
                continue; // A row of somebody else's.
            };
            let known = documents.entry(id).or_insert_with(|| StoredDocument {
                id,
                uri: uris.value(row).to_owned(),
                content_hash: hashes.value(row).to_owned(),
                fingerprint: fingerprints.value(row).to_owned(),
                n_rows: 0,
            });
            known.n_rows += 1;
            let is_same = known.content_hash == hashes.value(row)
                && known.fingerprint == fingerprints.value(row)
                && !hashes.is_null(row);
            if !is_same {
                // No commit of ours leaves this: it is to be made again.
                known.fingerprint.clear();
            }
        }
    }
    Ok(documents.into_values().collect())
}

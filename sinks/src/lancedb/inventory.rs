//! Reads what a table holds: the truth that the ledger is compared with.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::UInt32Type;
use futures::TryStreamExt as _;
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance::index::DatasetIndexExt as _;
use lance::table::format::Fragment;
use pagemill_pipeline::{DocumentId, Inventory, Secrets, StageError, StoredDocument};

use super::commit::Table;
use super::journal::Named;
use crate::row::{
    CONTENT_HASH, DOCUMENT, DOCUMENT_ID, DOCUMENT_ROWS, FINGERPRINT, PIPELINE, SOURCE,
};

impl Table {
    /// The documents that this pipeline has in the table; nothing if the table is
    /// as it was when it had `mark`.
    ///
    /// # Errors
    /// A table that cannot be read, or whose files are gone.
    pub(super) async fn inventory(&mut self, mark: Option<&str>) -> Result<Inventory, StageError> {
        self.known_version = Some(self.version());
        let Some(dataset) = self.dataset.clone() else {
            // A table that was removed is not the one that the mark names.
            return Ok(Inventory::Documents(Vec::new()));
        };
        self.check_files(&dataset).await?;
        if mark.is_some() && self.mark().as_deref() == mark {
            return Ok(Inventory::Unchanged);
        }
        let held = read(&dataset, &self.pipeline).await;
        let held = held.map_err(|error| self.cannot("read", error))?;
        held.warn(&self.name, &self.pipeline);
        Ok(Inventory::Documents(held.documents))
    }

    /// Names the table and its version; `None` once somebody else has changed
    /// its rows since the inventory.
    pub(super) fn mark(&self) -> Option<String> {
        let version = self.known_version?;
        // The ledger keeps it, which is no place for a password in a URL.
        let uri = Secrets::default().redact(self.uri()).into_owned();
        // A table that was made again counts its versions from 1 again.
        let dataset = self.dataset.as_ref().filter(|_| version == self.version());
        let made_at = dataset.map_or(0, |dataset| dataset.manifest().timestamp_nanos);
        Some(format!("{uri}@{version}/{made_at}"))
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

    /// Names of the data files of the present version.
    pub(super) fn data_files(&self) -> HashSet<String> {
        let dataset = self.dataset.iter();
        dataset.flat_map(|dataset| data_files(dataset)).collect()
    }

    /// Fragments that were staged, if all their files are still there and are not
    /// among those of the table, which `taken_in` are.
    pub(super) async fn find_staged(
        &self,
        payload: &[u8],
        taken_in: &HashSet<String>,
    ) -> Option<Vec<Fragment>> {
        let dataset = self.dataset.as_ref()?;
        let fragments: Vec<Fragment> = serde_json::from_slice(payload).ok()?;
        let store = dataset.object_store(None).await.ok()?;
        for file in fragments.iter().flat_map(|fragment| &fragment.files) {
            let path = dataset.data_dir().join(file.path.as_str());
            if taken_in.contains(&file.path) || !store.exists(&path).await.unwrap_or(false) {
                return None;
            }
        }
        Some(fragments)
    }

    /// The fragments of the present version whose data files are gone.
    pub(super) async fn broken_fragments(&self) -> Result<Vec<u64>, StageError> {
        let Some(dataset) = &self.dataset else {
            return Ok(Vec::new());
        };
        let there = files_there(dataset).await;
        let there = there.map_err(|error| self.cannot("list the files of", error))?;
        let is_gone = |fragment: &&Fragment| {
            let mut files = fragment.files.iter().filter(|file| file.base_id.is_none());
            files.any(|file| !there.contains(&file.path))
        };
        let fragments = dataset.manifest().fragments.iter();
        Ok(fragments
            .filter(is_gone)
            .map(|fragment| fragment.id)
            .collect())
    }

    async fn check_files(&self, dataset: &Dataset) -> Result<(), StageError> {
        let broken = self.broken_fragments().await?;
        if broken.is_empty() {
            return Ok(());
        }
        let n_all = dataset.manifest().fragments.len();
        Err(StageError::fatal(
            format_args!(
                "{} of the {n_all} data files of table `{}` are gone from its folder",
                broken.len(),
                self.name
            ),
            format_args!(
                "put them back from a backup, or run `pagemill ledger repair {}`: it drops the \
                 rows that are lost, and the next run makes their documents again",
                self.pipeline
            ),
        ))
    }

    /// Every file that a retained version of the table names.
    pub(super) async fn named_files(&self) -> Result<Named, StageError> {
        let Some(dataset) = &self.dataset else {
            return Ok(Named::default());
        };
        let named = named_files(dataset).await;
        named.map_err(|error| self.cannot("read the versions of", error))
    }
}

/// Names of the data files of one version.
fn data_files(dataset: &Dataset) -> impl Iterator<Item = String> {
    let fragments = dataset.manifest().fragments.iter();
    fragments.flat_map(|fragment| fragment.files.iter().map(|file| file.path.clone()))
}

async fn named_files(dataset: &Dataset) -> lance::Result<Named> {
    let mut named = Named::default();
    for version in dataset.versions().await? {
        let dataset = match dataset.checkout_version(version.version).await {
            Ok(dataset) => dataset,
            // Removed meanwhile as an old one.
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        named
            .files
            .extend(data_files(&dataset).map(|file| format!("data/{file}")));
        let manifest = dataset.manifest();
        for fragment in manifest.fragments.iter() {
            if let Some(deletions) = &fragment.deletion_file {
                let suffix = deletions.file_type.suffix();
                let (id, read, number) = (fragment.id, deletions.read_version, deletions.id);
                named
                    .files
                    .insert(format!("_deletions/{id}-{read}-{number}.{suffix}"));
            }
        }
        if let Some(transaction) = &manifest.transaction_file {
            named.files.insert(format!("_transactions/{transaction}"));
        }
        for index in dataset.load_indices().await?.iter() {
            named.indices.insert(index.uuid.to_string());
        }
    }
    Ok(named)
}

/// The names in the folder of the data files.
async fn files_there(dataset: &Dataset) -> lance::Result<HashSet<String>> {
    let store = dataset.object_store(None).await?;
    let names = store.read_dir(dataset.data_dir()).await;
    match names {
        Ok(names) => Ok(names.into_iter().collect()),
        Err(lance::Error::NotFound { .. }) => Ok(HashSet::new()),
        Err(error) => Err(error),
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

/// What was found in a table.
#[derive(Debug, Default)]
struct Held {
    documents: Vec<StoredDocument>,
    /// Documents of other pipelines, by pipeline.
    n_of_others: BTreeMap<String, usize>,
    /// Documents of which other pipelines have rows too.
    n_shared: usize,
}

impl Held {
    fn warn(&self, table: &str, pipeline: &str) {
        for (other, n_documents) in &self.n_of_others {
            tracing::info!(
                table,
                pipeline = other,
                n_documents,
                "another pipeline has rows there"
            );
        }
        if self.n_shared > 0 {
            tracing::warn!(
                table,
                pipeline,
                hint = "each pipeline keeps its own rows, so a search finds such a document \
                        twice: give each pipeline a `table` of its own",
                "{} documents are stored by several pipelines",
                self.n_shared
            );
        }
    }
}

/// The rows of one document and pipeline.
struct Counted {
    stored: StoredDocument,
    /// How many rows there should be, as a row tells.
    n_expected: Option<u32>,
}

impl Counted {
    /// The document; one with missing or contradicting rows is to be made again.
    fn checked(mut self) -> StoredDocument {
        if self.n_expected.map(u64::from) != Some(self.stored.n_rows) {
            self.stored.fingerprint.clear();
        }
        self.stored
    }
}

async fn read(dataset: &Dataset, pipeline: &str) -> lance::Result<Held> {
    const TEXTS: [&str; 6] = [
        DOCUMENT_ID,
        DOCUMENT,
        CONTENT_HASH,
        FINGERPRINT,
        PIPELINE,
        SOURCE,
    ];
    let mut scanner = dataset.scan();
    scanner.project(&TEXTS.iter().chain(&[DOCUMENT_ROWS]).collect::<Vec<_>>())?;
    let mut batches = scanner.try_into_stream().await?;
    let mut own: HashMap<DocumentId, Counted> = HashMap::new();
    let mut others: HashMap<DocumentId, String> = HashMap::new();
    while let Some(batch) = batches.try_next().await? {
        let texts = TEXTS.map(|name| column(&batch, name));
        let [
            Some(ids),
            Some(uris),
            Some(hashes),
            Some(fingerprints),
            Some(pipelines),
            Some(sources),
        ] = texts
        else {
            return Err(lance::Error::internal(
                "the table lacks the columns of every row",
            ));
        };
        let totals = batch.column_by_name(DOCUMENT_ROWS);
        let totals = totals.and_then(|totals| totals.as_primitive_opt::<UInt32Type>());
        for row in 0..batch.num_rows() {
            let Some(id) = DocumentId::from_hex(ids.value(row)) else {
                continue; // A row of somebody else's.
            };
            if pipelines.value(row) != pipeline {
                others
                    .entry(id)
                    .or_insert_with(|| pipelines.value(row).to_owned());
                continue;
            }
            let known = own.entry(id).or_insert_with(|| Counted {
                stored: StoredDocument {
                    id,
                    uri: uris.value(row).to_owned(),
                    source: sources.value(row).to_owned(),
                    content_hash: hashes.value(row).to_owned(),
                    fingerprint: fingerprints.value(row).to_owned(),
                    n_rows: 0,
                },
                n_expected: None,
            });
            known.stored.n_rows += 1;
            let total = totals.filter(|totals| totals.is_valid(row));
            known.n_expected = known.n_expected.max(total.map(|totals| totals.value(row)));
            let is_same = known.stored.content_hash == hashes.value(row)
                && known.stored.fingerprint == fingerprints.value(row)
                && !hashes.is_null(row);
            if !is_same {
                // No commit of ours leaves this: it is to be made again.
                known.stored.fingerprint.clear();
            }
        }
    }
    let n_shared = others.keys().filter(|id| own.contains_key(id)).count();
    let mut n_of_others = BTreeMap::new();
    for other in others.into_values() {
        *n_of_others.entry(other).or_default() += 1;
    }
    Ok(Held {
        documents: own.into_values().map(Counted::checked).collect(),
        n_of_others,
        n_shared,
    })
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Option<&'a StringArray> {
    batch.column_by_name(name)?.as_string_opt::<i32>()
}

//! The folder of the parts: which part holds which document, and how parts
//! come, change and go.

mod merging;
mod opening;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use pagemill_pipeline::{DocumentId, Inventory, SinkInput, StageError, StoredDocument};

use super::faults::{Faults, Step};
use super::manifest::{self, Part, Stamp};
use super::place::{cannot_write_to, claim, lock, make_folder, remove_partial};
use super::{Format, PartError, Rows};

pub(super) const WRITE_HINT: &str =
    "mend the cause (no permission, files removed) and run again: what was stored stays";

/// A folder that this process alone writes to.
#[expect(
    clippy::struct_excessive_bools,
    reason = "what is known of the folder changes one by one"
)]
pub(super) struct Folder {
    path: PathBuf,
    extension: &'static str,
    /// Whether files are synced.
    syncs: bool,
    /// Held as long as the folder is open; the end of the process releases it.
    /// None where the folder is only looked at.
    _lock: Option<File>,
    parts: BTreeMap<u64, Part>,
    /// The part that holds a document.
    holders: HashMap<DocumentId, u64>,
    /// Parts whose rows are in another one as well, and which are to go.
    merged: BTreeSet<u64>,
    /// Parts that others have changed since the folder was opened.
    changed: BTreeSet<u64>,
    /// Whether the parts are those that were found to need no merging.
    is_settled: bool,
    /// Whether the names of the parts are durable.
    is_synced: bool,
    /// Whether the manifest tells of the parts as they are.
    has_manifest: bool,
    /// Made when it is asked for, as it is asked for often.
    mark: Option<String>,
    faults: Faults,
}

impl Folder {
    /// Opens the folder, making it where it is absent, and mends what an
    /// earlier run left when it was killed.
    ///
    /// # Errors
    /// A folder that cannot be written, a part that cannot be read, another writer.
    pub(super) fn open<F: Format>(
        path: &Path,
        syncs: bool,
        format: &mut F,
        input: &SinkInput,
        faults: Faults,
    ) -> Result<Self, StageError> {
        if path.is_file() {
            return Err(StageError::fatal(
                format_args!("`{}` is a file, and rows go to a folder", path.display()),
                "remove or rename the file: rows are written as part files in a folder of that name",
            ));
        }
        let given = path;
        let cannot = |error: io::Error| cannot_write_to(given, error);
        let path = std::path::absolute(path).map_err(cannot)?;
        make_folder(&path, syncs).map_err(cannot)?;
        let lock = lock(&path)?;
        remove_partial(&path).map_err(cannot)?;
        let mut folder = Self::new::<F>(path.clone(), syncs, Some(lock), faults);
        let numbers = folder.numbers().map_err(cannot)?;
        claim(&path, &input.pipeline, !numbers.is_empty())?;
        let newest = numbers.last().map(|number| folder.path_of(*number));
        format.open(input, newest.as_deref())?;
        let doubles = folder.read(&numbers, format)?;
        if !doubles.is_empty() {
            tracing::warn!(
                folder = %path.display(),
                n_parts = doubles.len(),
                "documents stood in a later part as well: their rows are taken out of the others"
            );
        }
        for (number, documents) in doubles {
            folder.put(format, Some(number), &documents, Vec::new(), Vec::new())?;
        }
        folder.sync()?;
        folder.save_manifest();
        Ok(folder)
    }

    /// Reads what the folder holds, and changes nothing; `None` where there is none.
    ///
    /// # Errors
    /// A folder or part that cannot be read.
    pub(super) fn peek<F: Format>(path: &Path, format: &F) -> Result<Option<Self>, StageError> {
        let cannot = |error: io::Error| {
            StageError::caused(
                format_args!("cannot read the folder `{}`", path.display()),
                "set `path` to a folder that this user may read and write to",
                error,
            )
        };
        let path = std::path::absolute(path).map_err(cannot)?;
        if !path.exists() {
            return Ok(None);
        }
        let mut folder = Self::new::<F>(path.clone(), false, None, Faults::default());
        let numbers = folder.numbers().map_err(cannot)?;
        folder.read(&numbers, format)?;
        Ok(Some(folder))
    }

    fn new<F: Format>(path: PathBuf, syncs: bool, lock: Option<File>, faults: Faults) -> Self {
        Self {
            path,
            extension: F::EXTENSION,
            syncs,
            _lock: lock,
            parts: BTreeMap::new(),
            holders: HashMap::new(),
            merged: BTreeSet::new(),
            changed: BTreeSet::new(),
            is_settled: false,
            is_synced: true,
            has_manifest: true,
            mark: None,
            faults,
        }
    }

    /// The part that holds a document.
    pub(super) fn holder(&self, document: DocumentId) -> Option<u64> {
        self.holders.get(&document).copied()
    }

    /// Every document that the parts hold.
    pub(super) fn documents(&self) -> Vec<StoredDocument> {
        let parts = self.parts.iter();
        let held = parts.filter(|(number, _)| !self.merged.contains(number));
        held.flat_map(|(_, part)| part.documents.clone()).collect()
    }

    /// The documents; nothing if the parts are as they were when they had `mark`.
    pub(super) fn inventory(&mut self, mark: Option<&str>) -> Inventory {
        if mark == Some(self.mark()) {
            return Inventory::Unchanged;
        }
        Inventory::Documents(self.documents())
    }

    /// Names the folder and the state of its parts.
    pub(super) fn mark(&mut self) -> &str {
        let (path, parts) = (&self.path, &self.parts);
        self.mark.get_or_insert_with(|| {
            // A later release of Rust may hash otherwise: then the inventory is read once more.
            let mut hasher = DefaultHasher::new();
            for (number, part) in parts {
                (number, part.stamp).hash(&mut hasher);
            }
            format!("{}#{:016x}", path.display(), hasher.finish())
        })
    }

    /// Puts rows into the part `number`, in place of those that it has of the
    /// documents `replaced`; without a number, into a new part. A part without
    /// rows goes. [`Folder::sync`] makes it durable.
    ///
    /// # Errors
    /// What cannot be written; then it may be tried again.
    pub(super) fn put<F: Format>(
        &mut self,
        format: &mut F,
        number: Option<u64>,
        replaced: &HashSet<DocumentId>,
        rows: Vec<Rows<'_>>,
        documents: Vec<StoredDocument>,
    ) -> Result<(), StageError> {
        let Some(number) = number else {
            if documents.is_empty() {
                return Ok(());
            }
            let number = self.parts.keys().next_back().map_or(1, |last| last + 1);
            return self.write(format, number, &rows, documents);
        };
        self.at(Step::BeforeRewriting, number)?;
        let path = self.path_of(number);
        let old = self.parts.get(&number).map(|part| &part.documents[..]);
        let kept = old.unwrap_or_default().iter();
        let mut all: Vec<StoredDocument> = kept
            .filter(|document| !replaced.contains(&document.id))
            .cloned()
            .collect();
        let mut all_rows = Vec::with_capacity(rows.len() + 1);
        if !all.is_empty() {
            all_rows.push(Rows::Part {
                path: &path,
                without: replaced,
            });
        }
        all.extend(documents);
        all_rows.extend(rows);
        if all.is_empty() {
            self.remove(number)?;
        } else {
            self.write(format, number, &all_rows, all)?;
        }
        self.at(Step::AfterRewriting, number)
    }

    /// Writes a part beside its place, then renames it.
    fn write<F: Format>(
        &mut self,
        format: &mut F,
        number: u64,
        rows: &[Rows<'_>],
        documents: Vec<StoredDocument>,
    ) -> Result<(), StageError> {
        let path = self.path_of(number);
        let partial = self.path.join(format!(".{}.partial", self.name_of(number)));
        let written = (|| {
            self.faults.at(Step::BeforeWrite)?;
            let file = File::create(&partial)?;
            format.write(&file, rows, &documents)?;
            self.faults.at(Step::AfterWrite)?;
            if self.syncs {
                file.sync_all()?;
            }
            self.faults.at(Step::AfterSync)?;
            let stamp = Stamp::of(&file.metadata()?);
            self.faults.at(Step::BeforeRename)?;
            fs::rename(&partial, &path)?;
            Ok(stamp)
        })();
        match written {
            Ok(stamp) => {
                self.record(number, Some(Part { stamp, documents }));
                self.at(Step::AfterRename, number)
            }
            Err(error) => {
                if !self.faults.has_died() {
                    // It may be what filled the disk; what stays goes when the folder is opened.
                    let _ = fs::remove_file(&partial);
                }
                Err(self.cannot_write(error, number))
            }
        }
    }

    fn remove(&mut self, number: u64) -> Result<(), StageError> {
        self.at(Step::BeforeRemoval, number)?;
        match fs::remove_file(self.path_of(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.cannot_write(error.into(), number));
            }
            _ => self.record(number, None),
        }
        self.at(Step::AfterRemoval, number)
    }

    /// Keeps account of a part that has come, changed or gone.
    fn record(&mut self, number: u64, part: Option<Part>) {
        let old = self.parts.remove(&number);
        for document in old.iter().flat_map(|part| &part.documents) {
            if self.holder(document.id) == Some(number) {
                self.holders.remove(&document.id);
            }
        }
        if let Some(part) = part {
            let ids = part.documents.iter().map(|document| (document.id, number));
            self.holders.extend(ids);
            self.parts.insert(number, part);
        }
        self.changed.remove(&number);
        self.is_settled = false;
        self.is_synced = false;
        self.has_manifest = false;
        self.mark = None;
    }

    /// Makes durable which parts there are.
    ///
    /// # Errors
    /// A folder that cannot be synced; then it may be tried again.
    pub(super) fn sync(&mut self) -> Result<(), StageError> {
        if self.is_synced {
            return Ok(());
        }
        let synced = (|| {
            self.faults.at(Step::BeforeFolderSync)?;
            if self.syncs {
                File::open(&self.path)?.sync_all()?;
            }
            self.faults.at(Step::AfterFolderSync)
        })();
        synced.map_err(|error| {
            let path = self.path.display();
            or_stage_error(
                error.into(),
                format_args!("cannot sync `{path}`"),
                WRITE_HINT,
            )
        })?;
        self.is_synced = true;
        Ok(())
    }

    /// Writes the manifest if it does not tell of the parts as they are.
    pub(super) fn save_manifest(&mut self) {
        if self.has_manifest {
            return;
        }
        let saved = (|| {
            self.faults.at(Step::BeforeManifest)?;
            manifest::write(&self.path, &self.parts, |number| self.name_of(number))?;
            self.faults.at(Step::AfterManifest)
        })();
        match saved {
            Ok(()) => self.has_manifest = true,
            Err(error) => tracing::warn!(
                folder = %self.path.display(),
                %error,
                "cannot note which part holds which document: the next run reads the parts"
            ),
        }
    }

    /// Where a file that is no part yet can be written.
    pub(super) fn path_of_partial(&self, name: &str) -> PathBuf {
        self.path.join(format!(".{name}.partial"))
    }

    fn name_of(&self, number: u64) -> String {
        format!("part-{number:08}.{}", self.extension)
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.path.join(self.name_of(number))
    }

    fn at(&self, step: Step, number: u64) -> Result<(), StageError> {
        let step = self.faults.at(step);
        step.map_err(|error| self.cannot_write(error.into(), number))
    }

    fn cannot_write(&self, error: PartError, number: u64) -> StageError {
        let path = self.path_of(number);
        or_stage_error(
            error,
            format_args!("cannot write `{}`", path.display()),
            WRITE_HINT,
        )
    }
}

/// The error itself where it says all, or one with what could not be done.
pub(super) fn or_stage_error(
    error: PartError,
    problem: std::fmt::Arguments<'_>,
    hint: &str,
) -> StageError {
    match error {
        PartError::Stage(error) => error,
        error => StageError::cannot_store(problem, hint, error),
    }
}

//! Notes every file of a local table before it is written, so that the files
//! which a killed run left in no version of the table are found and removed.
//!
//! Each run appends to a file of its own in `.TABLE.writes/`, and holds a lock on
//! it that ends with the process. A file in the journal of a run that is gone is
//! removed only if no retained version names it and no ledger has it as staged;
//! files that nobody noted, such as those of other programs, are left alone.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lance::io::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
};

/// Folders of a table whose files only versions give a meaning.
const FOLDERS: [&str; 4] = ["data/", "_deletions/", "_indices/", "_transactions/"];

/// Journals that this process has begun.
static N_BEGUN: AtomicU64 = AtomicU64::new(0);

/// The journal of one run for one table.
#[derive(Debug)]
pub(super) struct WriteJournal {
    /// The table's folder.
    table: PathBuf,
    /// The folder of the journals.
    folder: PathBuf,
    /// Begins the names of this writer's journals.
    writer: String,
    own: Mutex<Option<Own>>,
}

/// The file that this run appends to.
#[derive(Debug)]
struct Own {
    path: PathBuf,
    file: File,
    n_noted: usize,
}

/// The journal of a run that has ended.
#[derive(Debug)]
pub(super) struct DeadJournal {
    path: PathBuf,
    _lock: File,
}

impl WriteJournal {
    /// Of the table in the folder `table`. Nothing is written yet.
    pub(super) fn new(table: &Path, writer: &str) -> Self {
        let name = table.file_stem().unwrap_or_default().to_string_lossy();
        Self {
            folder: table.with_file_name(format!(".{name}.writes")),
            table: table.to_owned(),
            writer: writer.to_owned(),
            own: Mutex::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, Option<Own>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many files this run has noted.
    pub(super) fn n_noted(&self) -> usize {
        self.own().as_ref().map_or(0, |own| own.n_noted)
    }

    /// Notes a file that is about to be written, if it is one of the table's.
    fn note(&self, location: &ObjectPath) -> io::Result<()> {
        let Some(file) = self.file_of(location) else {
            return Ok(());
        };
        let mut own = self.own();
        let own = match &mut *own {
            Some(own) => own,
            None => own.insert(self.begin()?),
        };
        own.n_noted += 1;
        // One write: a kill leaves the whole line or nothing of it.
        own.file.write_all(format!("{file}\n").as_bytes())
    }

    /// The file's path below the table's folder.
    fn file_of<'a>(&self, location: &'a ObjectPath) -> Option<&'a str> {
        let name = self.table.file_name()?.to_str()?;
        let location: &str = location.as_ref();
        let (_, file) = location.rsplit_once(&format!("{name}/"))?;
        is_of_table(file).then_some(file)
    }

    /// Whether there is a folder of the table.
    pub(super) fn has_table(&self) -> bool {
        self.table.exists()
    }

    fn begin(&self) -> io::Result<Own> {
        fs::create_dir_all(&self.folder)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        loop {
            let number = N_BEGUN.fetch_add(1, Ordering::Relaxed);
            let name = format!(
                "{}-{}-{}-{number}.log",
                self.writer,
                std::process::id(),
                now.as_nanos()
            );
            let path = self.folder.join(name);
            let file = File::options().append(true).create_new(true).open(&path)?;
            match file.try_lock() {
                // On a file system without locks nothing is ever swept.
                Ok(()) | Err(TryLockError::Error(_)) => {
                    let n_noted = 0;
                    return Ok(Own {
                        path,
                        file,
                        n_noted,
                    });
                }
                // A sweep took the file for a dead run's before it was locked.
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// The journals of earlier runs of this writer, which have ended. Each stays
    /// locked until it is dropped.
    pub(super) fn dead(&self) -> io::Result<Vec<DeadJournal>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let own = self.own().as_ref().map(|own| own.path.clone());
        let mut dead = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let rest = name.strip_prefix(&*self.writer);
            if rest.is_none_or(|rest| !rest.starts_with('-')) || Some(&path) == own.as_ref() {
                continue;
            }
            let file = match File::options().read(true).append(true).open(&path) {
                // Another run of this writer was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            // Without locks there is no telling whether its run has ended.
            if file.try_lock().is_ok() {
                dead.push(DeadJournal { path, _lock: file });
            }
        }
        Ok(dead)
    }

    /// Removes the files of these journals, except those that are `named` by a
    /// version or `staged`. A journal with nothing left in it is removed as well.
    /// Returns how many files were removed.
    pub(super) fn sweep(
        &self,
        dead: Vec<DeadJournal>,
        named: &Named,
        staged: &HashSet<String>,
    ) -> io::Result<usize> {
        let mut n_removed = 0;
        for journal in dead {
            let text = fs::read_to_string(&journal.path)?;
            let (left, n) = self.remove_unnamed(&text, named, staged)?;
            n_removed += n;
            if left.is_empty() {
                fs::remove_file(&journal.path)?;
            }
        }
        Ok(n_removed)
    }

    /// Does the same for the files of this run, which has nothing under way, and
    /// shortens its journal to what is staged.
    pub(super) fn settle(&self, named: &Named, staged: &HashSet<String>) -> io::Result<usize> {
        let mut own = self.own();
        let Some(journal) = own.as_ref() else {
            return Ok(0);
        };
        let text = fs::read_to_string(&journal.path)?;
        let (left, n_removed) = self.remove_unnamed(&text, named, staged)?;
        // The old journal is held until the new one is whole.
        let shorter = if left.is_empty() {
            None
        } else {
            let mut shorter = self.begin()?;
            let lines = left.join("\n") + "\n";
            shorter.file.write_all(lines.as_bytes())?;
            shorter.n_noted = left.len();
            Some(shorter)
        };
        fs::remove_file(&journal.path)?;
        *own = shorter;
        Ok(n_removed)
    }

    /// Returns the staged files among those of a journal, and how many were removed.
    fn remove_unnamed<'a>(
        &self,
        text: &'a str,
        named: &Named,
        staged: &HashSet<String>,
    ) -> io::Result<(Vec<&'a str>, usize)> {
        let (mut left, mut n_removed) = (Vec::new(), 0);
        for file in text.lines() {
            if !is_of_table(file) || file.split('/').any(|name| name == "..") {
                continue;
            }
            n_removed += remove_half_written(&self.table.join(file))?;
            if named.contains(file) {
                continue;
            }
            if staged.contains(file) {
                left.push(file);
                continue;
            }
            let path = self.table.join(file);
            match fs::remove_file(&path) {
                Ok(()) => n_removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            // The folder of an index that was never finished.
            if file.starts_with("_indices/")
                && let Some(folder) = path.parent()
            {
                let _not_empty = fs::remove_dir(folder);
            }
        }
        Ok((left, n_removed))
    }
}

/// Whether a path below the table's folder is of a file that only versions name.
fn is_of_table(file: &str) -> bool {
    FOLDERS.iter().any(|folder| file.starts_with(folder))
}

/// Removes what a kill left of a file that was being written: the store writes to
/// `FILE#1` (or the next free number) and renames.
fn remove_half_written(path: &Path) -> io::Result<usize> {
    for number in 1.. {
        let mut half = path.as_os_str().to_owned();
        half.push(format!("#{number}"));
        match fs::remove_file(half) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(number - 1),
            removed => removed?,
        }
    }
    Ok(0)
}

/// The files that the retained versions of a table name, by their paths below
/// its folder.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) files: HashSet<String>,
    /// Folders of indexes.
    pub(super) indices: HashSet<String>,
}

impl Named {
    pub(super) fn contains(&self, file: &str) -> bool {
        let index = file
            .strip_prefix("_indices/")
            .and_then(|rest| rest.split('/').next());
        self.files.contains(file) || index.is_some_and(|index| self.indices.contains(index))
    }
}

/// Gives lance a store that notes each file before it is written and, where
/// `syncs`, syncs it with its folder before the write counts as done.
#[derive(Debug)]
pub(super) struct JournaledStore {
    pub(super) journal: Arc<WriteJournal>,
    pub(super) syncs: bool,
}

impl WrappingObjectStore for JournaledStore {
    fn wrap(&self, _: &str, _: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Journaled {
            inner: LocalFileSystem::new().with_fsync(self.syncs),
            journal: Arc::clone(&self.journal),
        })
    }

    fn wrap_paginated(
        &self,
        _: &str,
        lister: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        Some(lister)
    }
}

#[derive(Debug)]
struct Journaled {
    inner: LocalFileSystem,
    journal: Arc<WriteJournal>,
}

impl Journaled {
    fn note(&self, location: &ObjectPath) -> object_store::Result<()> {
        let noted = self.journal.note(location);
        noted.map_err(|error| object_store::Error::Generic {
            store: "the journal of the table's files",
            source: Box::new(error),
        })
    }
}

impl fmt::Display for Journaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journaled({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Journaled {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.note(location)?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.note(location)?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(
        &self,
        location: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &ObjectPath,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.note(to)?;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: RenameOptions,
    ) -> object_store::Result<()> {
        self.note(to)?;
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let table = folder.path().join("t.lance");
        fs::create_dir_all(table.join("data")).expect("made");
        (folder, table)
    }

    /// Writes a file as lance would, and notes it before.
    fn write(journal: &WriteJournal, file: &str) {
        let location = ObjectPath::from_absolute_path(journal.table.join(file)).expect("a path");
        journal.note(&location).expect("noted");
        fs::write(journal.table.join(file), "rows").expect("written");
    }

    fn sweep(journal: &WriteJournal, named: &Named, staged: &HashSet<String>) -> usize {
        let dead = journal.dead().expect("listed");
        journal.sweep(dead, named, staged).expect("swept")
    }

    fn files(table: &Path) -> Vec<String> {
        let entries = fs::read_dir(table.join("data")).expect("a folder");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_dead_run_left_unnamed_is_removed_and_nothing_else() {
        let (_folder, table) = table();
        let dead = WriteJournal::new(&table, "w");
        for file in ["data/named", "data/staged", "data/orphan"] {
            write(&dead, file);
        }
        fs::write(table.join("data/named#1"), "half").expect("written");
        drop(dead);
        fs::write(table.join("data/foreign"), "rows").expect("written");
        let other = WriteJournal::new(&table, "other");
        write(&other, "data/others");
        drop(other);
        let named = Named {
            files: HashSet::from(["data/named".to_owned()]),
            ..Named::default()
        };
        let staged = HashSet::from(["data/staged".to_owned()]);
        let next = WriteJournal::new(&table, "w");
        assert_eq!(sweep(&next, &named, &staged), 2);
        assert_eq!(files(&table), ["foreign", "named", "others", "staged"]);
        // What was staged is removed once no ledger has it any more.
        assert_eq!(sweep(&next, &named, &HashSet::new()), 1);
        assert_eq!(files(&table), ["foreign", "named", "others"]);
    }

    #[test]
    fn the_files_of_a_run_that_is_alive_are_left_alone() {
        let (_folder, table) = table();
        let alive = WriteJournal::new(&table, "w");
        write(&alive, "data/coming");
        let second = WriteJournal::new(&table, "w");
        let nothing = HashSet::new();
        assert_eq!(sweep(&second, &Named::default(), &nothing), 0);
        assert_eq!(files(&table), ["coming"]);
        assert_eq!(
            alive.settle(&Named::default(), &nothing).expect("settled"),
            1
        );
        assert!(files(&table).is_empty());
        assert_eq!(fs::read_dir(&alive.folder).expect("a folder").count(), 0);
    }

    #[test]
    fn a_journal_names_no_file_outside_of_its_table() {
        let (folder, table) = table();
        let journal = WriteJournal::new(&table, "w");
        write(&journal, "data/a");
        let precious = folder.path().join("precious");
        fs::write(&precious, "rows").expect("written");
        let path = journal.own().as_ref().expect("begun").path.clone();
        drop(journal);
        fs::write(&path, "data/../../precious\n/etc/x\n_versions/1.manifest\n").expect("written");
        let next = WriteJournal::new(&table, "w");
        assert_eq!(sweep(&next, &Named::default(), &HashSet::new()), 0);
        assert!(precious.exists());
    }
}

//! Reading one file whole, and as it is at one moment.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pagemill_pipeline::{
    ContentHash, DocumentBytes, Field, Item, ItemError, Origin, StageError, Value,
};

use super::content;
use super::state::{Clock, FileState};
use crate::media::{self, Content};

pub(super) const PERMISSION_HINT: &str = "give the user of this program the right to read it";

/// How often a file that changes is read before it is set aside.
const MAX_ATTEMPTS: usize = 3;

/// How long a file that changes is left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// How files are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader {
    /// A larger file is not read.
    pub(crate) max_bytes: u64,
    pub(crate) clock: Clock,
    /// How the user can keep a file from being read at all.
    pub(crate) leave_out: &'static str,
}

/// A file as it was at one moment.
#[derive(Debug)]
pub(crate) struct ReadFile {
    pub(crate) bytes: DocumentBytes,
    pub(crate) hash: ContentHash,
    pub(crate) state: FileState,
    /// When reading began.
    pub(crate) at: SystemTime,
}

/// What one attempt at a file gave.
#[derive(Debug)]
pub(crate) enum Attempt {
    Read(ReadFile),
    /// It is not what it was when reading began.
    Changed,
    Gone,
    Failed(ItemError),
}

impl ReadFile {
    /// What tells this version from later ones; nothing if one of the same
    /// `tick` of the clock could not be told.
    pub(crate) fn lasting_state(&self, tick: Duration) -> Option<FileState> {
        (!self.state.is_fresh(self.at, tick)).then_some(self.state)
    }
}

impl Reader {
    /// Reads the file at `path`; the inner error is its dead letter.
    ///
    /// # Errors
    /// When reading panics, which is our bug.
    pub(crate) async fn read(
        self,
        path: PathBuf,
    ) -> Result<Result<ReadFile, ItemError>, StageError> {
        for attempt in 1..=MAX_ATTEMPTS {
            let path = path.clone();
            match super::blocking(move || self.attempt(&path, None)).await? {
                Attempt::Read(file) => return Ok(Ok(file)),
                Attempt::Failed(error) => return Ok(Err(error)),
                Attempt::Gone => return Ok(Err(gone())),
                Attempt::Changed if attempt < MAX_ATTEMPTS => tokio::time::sleep(PAUSE).await,
                Attempt::Changed => {}
            }
        }
        let error = ItemError::new("read", "it keeps changing while it is read");
        Ok(Err(error.hint("wait until it is written, then run again")))
    }

    /// Reads and hashes a file once, if it still is as `expected`.
    pub(crate) fn attempt(self, path: &Path, expected: Option<FileState>) -> Attempt {
        self.try_read(path, expected).unwrap_or_else(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => return Attempt::Gone,
                io::ErrorKind::PermissionDenied => PERMISSION_HINT,
                _ => "check the disk, then run again",
            };
            Attempt::Failed(ItemError::new("read", describe(&error)).hint(hint))
        })
    }

    fn try_read(self, path: &Path, expected: Option<FileState>) -> io::Result<Attempt> {
        let failed = |reason: String, hint: &str| {
            Ok(Attempt::Failed(ItemError::new("read", reason).hint(hint)))
        };
        let at = (self.clock)();
        let mut file = open(path)?;
        let before = file.metadata()?;
        if !before.is_file() {
            let hint = format!("{}, or copy what it holds into a file", self.leave_out);
            return failed("it is no regular file".into(), &hint);
        }
        let (n_bytes, max_bytes) = (before.len(), self.max_bytes);
        let before = FileState::of(&before);
        if expected.is_some_and(|expected| expected != before) {
            return Ok(Attempt::Changed);
        }
        if n_bytes > max_bytes {
            return failed(
                format!("it has {n_bytes} bytes, and `max_file_bytes` is {max_bytes}"),
                "raise `max_file_bytes` if there is memory for it",
            );
        }
        let (bytes, hash) = match content::read(&mut file, n_bytes) {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                let reason = format!("there is no memory for its {n_bytes} bytes");
                return failed(reason, "lower `max_file_bytes`");
            }
            read => read?,
        };
        // By path: a file that was replaced keeps its old self behind `file`.
        let after = FileState::of(&std::fs::metadata(path)?);
        if bytes.len() as u64 != n_bytes || after != before {
            return Ok(Attempt::Changed);
        }
        Ok(Attempt::Read(ReadFile {
            bytes,
            hash,
            state: before,
            at,
        }))
    }

    /// Makes an item of bytes, if they are of a kind that a stage reads.
    pub(crate) fn document(
        self,
        uri: &str,
        bytes: impl Into<DocumentBytes>,
        hash: ContentHash,
    ) -> Result<Item, ItemError> {
        let bytes = bytes.into();
        let unsupported = |what: &str| {
            let reason = format!("its content is {what}, not a PDF, PNG, JPEG, TIFF or WebP");
            Err(ItemError::new("read", reason).hint(self.leave_out))
        };
        if bytes.is_empty() {
            let hint = format!("copy it again, or {}", self.leave_out);
            return Err(ItemError::new("read", "it is empty").hint(hint));
        }
        let media_type = match media::content(&bytes) {
            Content::Supported(media_type) => media_type,
            Content::Other(media_type) => return unsupported(&format!("`{media_type}`")),
            Content::Unknown => return unsupported("of no known kind"),
        };
        let origin = Origin::hashed(uri, media_type, hash, bytes.len() as u64);
        let item = Item::new(Arc::new(origin));
        Ok(item.with(Field::DOCUMENT.name, Value::Document(bytes)))
    }
}

/// There is no such file any more.
pub(super) fn gone() -> ItemError {
    ItemError::new("read", describe(&io::ErrorKind::NotFound.into()))
        .hint("it was removed since it was listed, or its path is wrong; run again")
}

/// Opens a file without waiting for the other end of a pipe that has taken
/// its place since the folder was listed.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// An error of the system in our words, where we have some.
pub(super) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "reading it is not permitted".into(),
        io::ErrorKind::NotFound => "it is gone".into(),
        _ => error.to_string(),
    }
}

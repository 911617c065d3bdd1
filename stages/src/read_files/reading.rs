//! Reading one file whole, and as it is at one moment.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pagemill_pipeline::{ContentHash, Field, Item, ItemError, Origin, StageError, Value};

use crate::media::{self, Content};

pub(super) const PERMISSION_HINT: &str = "give the user of this program the right to read it";

/// How often a file that changes is read before it is set aside.
const MAX_ATTEMPTS: usize = 3;

/// How long a file that changes is left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// What one attempt at a file gave.
#[derive(Debug)]
pub(super) enum Attempt {
    Read {
        bytes: Vec<u8>,
        hash: ContentHash,
    },
    /// It is not what it was when reading began.
    Changed,
    Failed(ItemError),
}

/// Reads the document at `path`; the inner error is its dead letter.
///
/// # Errors
/// When reading panics, which is our bug.
pub(super) async fn read_document(
    path: PathBuf,
    uri: &str,
    max_bytes: u64,
) -> Result<Result<Item, ItemError>, StageError> {
    for attempt in 1..=MAX_ATTEMPTS {
        let path = path.clone();
        match super::blocking(move || read_once(&path, max_bytes)).await? {
            Attempt::Read { bytes, hash } => return Ok(document(uri, bytes, hash)),
            Attempt::Failed(error) => return Ok(Err(error)),
            Attempt::Changed if attempt < MAX_ATTEMPTS => tokio::time::sleep(PAUSE).await,
            Attempt::Changed => {}
        }
    }
    let error = ItemError::new("read", "it keeps changing while it is read");
    Ok(Err(error.hint("wait until it is written, then run again")))
}

/// Makes an item of a file's bytes, if it is of a kind that a stage reads.
fn document(uri: &str, bytes: Vec<u8>, hash: ContentHash) -> Result<Item, ItemError> {
    let unsupported = |what: &str| {
        let reason = format!("its content is {what}, not a PDF, PNG, JPEG, TIFF or WebP");
        Err(ItemError::new("read", reason).hint("narrow `include`, or name it in `exclude`"))
    };
    if bytes.is_empty() {
        let hint = "copy it again, or name it in `exclude`";
        return Err(ItemError::new("read", "it is empty").hint(hint));
    }
    let media_type = match media::content(&bytes) {
        Content::Supported(media_type) => media_type,
        Content::Other(media_type) => return unsupported(&format!("`{media_type}`")),
        Content::Unknown => return unsupported("of no known kind"),
    };
    let origin = Origin::hashed(uri, media_type, hash, bytes.len() as u64);
    let item = Item::new(Arc::new(origin));
    Ok(item.with(Field::DOCUMENT.name, Value::Document(Bytes::from(bytes))))
}

/// Reads and hashes a file once.
pub(super) fn read_once(path: &Path, max_bytes: u64) -> Attempt {
    match try_read(path, max_bytes) {
        Ok(attempt) => attempt,
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "it was removed since the folder was listed; run again",
                io::ErrorKind::PermissionDenied => PERMISSION_HINT,
                _ => "check the disk, then run again",
            };
            Attempt::Failed(ItemError::new("read", describe(&error)).hint(hint))
        }
    }
}

fn try_read(path: &Path, max_bytes: u64) -> io::Result<Attempt> {
    let failed =
        |reason: String, hint| Ok(Attempt::Failed(ItemError::new("read", reason).hint(hint)));
    let mut file = open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        let hint = "name it in `exclude`, or copy what it holds into a file";
        return failed("it is no regular file".into(), hint);
    }
    if before.len() > max_bytes {
        return failed(
            format!(
                "it has {} bytes, and `max_file_bytes` is {max_bytes}",
                before.len()
            ),
            "raise `max_file_bytes` if there is memory for it",
        );
    }
    let mut bytes = Vec::new();
    let n_expected = usize::try_from(before.len()).unwrap_or(usize::MAX);
    if bytes.try_reserve_exact(n_expected).is_err() {
        let reason = format!("there is no memory for its {n_expected} bytes");
        return failed(reason, "lower `max_file_bytes`");
    }
    // One byte more than it should have: a file that grows is found out, and
    // never read without end.
    file.by_ref()
        .take(before.len().saturating_add(1))
        .read_to_end(&mut bytes)?;
    // By path: a file that was replaced keeps its old self behind `file`.
    let after = std::fs::metadata(path)?;
    if bytes.len() as u64 != before.len() || state(&after) != state(&before) {
        return Ok(Attempt::Changed);
    }
    let hash = ContentHash::of(&bytes);
    Ok(Attempt::Read { bytes, hash })
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

/// What tells a file from its later self.
fn state(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

/// An error of the system in our words, where we have some.
pub(super) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "reading it is not permitted".into(),
        io::ErrorKind::NotFound => "it is gone".into(),
        _ => error.to_string(),
    }
}

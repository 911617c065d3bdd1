//! Getting a folder ready: it is there, it is ours, and it is clean.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use pagemill_pipeline::StageError;

const LOCK: &str = ".lock";

/// Names the pipeline whose rows a folder has.
const OWNER: &str = ".pipeline";

/// Makes a folder and those above it, each durably.
pub(super) fn make_folder(path: &Path, syncs: bool) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent();
    if let Some(parent) = parent {
        make_folder(parent, syncs)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match parent {
            Some(parent) if syncs => File::open(parent)?.sync_all(),
            _ => Ok(()),
        },
    }
}

/// The folder cannot be written.
pub(super) fn cannot_write_to(path: &Path, error: io::Error) -> StageError {
    StageError::cannot_store(
        format_args!("cannot write to the folder `{}`", path.display()),
        "set `path` to a folder that this user may write to, on a disk with room",
        error,
    )
}

/// Makes this process the one that writes to the folder.
pub(super) fn lock(path: &Path) -> Result<File, StageError> {
    let cannot = |error: io::Error| {
        StageError::caused(
            format_args!("cannot lock the folder `{}`", path.display()),
            "set `path` to a folder that this user may write to, on a file system with locks",
            error,
        )
    };
    let mut options = File::options();
    let options = options.create(true).truncate(false).write(true);
    let file = options.open(path.join(LOCK)).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StageError::fatal(
            format_args!("another run or sink writes to `{}`", path.display()),
            "wait until it has ended, or set `path` to a folder of its own",
        )),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// Notes the pipeline that writes to the folder, in `.pipeline`. Parts do not keep
/// the rows of two pipelines apart.
///
/// # Errors
/// Parts of another pipeline are there.
pub(super) fn claim(path: &Path, pipeline: &str, has_parts: bool) -> Result<(), StageError> {
    let marker = path.join(OWNER);
    let owner = fs::read_to_string(&marker).unwrap_or_default();
    let owner = owner.trim();
    if owner == pipeline {
        return Ok(());
    }
    if has_parts && !owner.is_empty() {
        return Err(StageError::fatal(
            format_args!("`{}` has the rows of pipeline `{owner}`", path.display()),
            format_args!(
                "set `path` to another folder; if the pipeline was renamed, write `{pipeline}` \
                 into the file `{OWNER}` there"
            ),
        ));
    }
    let written = fs::write(&marker, format!("{pipeline}\n"));
    written.map_err(|error| cannot_write_to(path, error))
}

/// Removes what a run that was killed had not brought to its place.
pub(super) fn remove_partial(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| {
            let ours = [".part-", ".rows-", ".documents."];
            name.ends_with(".partial") && ours.iter().any(|start| name.starts_with(start))
        });
        if is_ours {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

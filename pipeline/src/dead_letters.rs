//! Items set aside: one JSON file each, named by document, place and node.
//!
//! A document that is read again takes its old letters away first, so the
//! folder always holds what is wrong now.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{ItemError, StageError};
use crate::key::{Key, Origin};

/// One item that was set aside, as it is written to disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The pipeline that set it aside.
    pub pipeline: String,
    /// The node that could not handle it.
    pub node: String,
    /// URI of the document: the input to feed in again.
    pub document: String,
    /// The document's id.
    pub document_id: String,
    /// Hash of the document's bytes, where they could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
    /// Page, from 1, where the item is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Part of the page, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// The whole sentence: what could not be done with which item, and why.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// The dead letters of one pipeline.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    pipeline: String,
    folder: PathBuf,
    /// Documents that have letters of earlier runs, as hexadecimal ids.
    old: Mutex<HashSet<String>>,
}

impl DeadLetters {
    /// Opens the folder `root/pipeline`, making it where it is absent.
    pub(crate) fn open(root: &Path, pipeline: &str) -> Result<Self, StageError> {
        let folder = root.join(pipeline);
        let opened = fs::create_dir_all(&folder).and_then(|()| ids_in(&folder));
        let old = opened.map_err(|error| cannot_write(&folder, error))?;
        Ok(Self {
            pipeline: pipeline.to_owned(),
            folder,
            old: Mutex::new(old),
        })
    }

    /// Takes away the letters that earlier runs left for this document.
    pub(crate) fn forget(&self, document_id: &str) -> Result<(), StageError> {
        let had_letters = self
            .old
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(document_id);
        if !had_letters {
            return Ok(());
        }
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(document_id) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        remove().map_err(|error| cannot_write(&self.folder, error))
    }

    /// Writes one letter; the file appears whole, by rename.
    pub(crate) fn write(
        &self,
        node: &str,
        origin: &Origin,
        key: Key,
        error: &ItemError,
        was_read: bool,
    ) -> Result<(), StageError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let letter = DeadLetter {
            pipeline: self.pipeline.clone(),
            node: node.to_owned(),
            document: origin.uri.to_string(),
            document_id: key.document.to_string(),
            content_hash: was_read.then(|| origin.content_hash.to_string()),
            page: key.page,
            part: key.part,
            error: error.message(&origin.label(key)),
            hint: error.hint.clone(),
            at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        let place = |number: Option<u32>, mark: char| {
            number
                .map(|number| format!("-{mark}{number}"))
                .unwrap_or_default()
        };
        let name = format!(
            "{}{}{}-{node}.json",
            letter.document_id,
            place(letter.page, 'p'),
            place(letter.part, 'c')
        );
        let partial = self.folder.join(format!(".{name}.partial"));
        let written = serde_json::to_vec_pretty(&letter)
            .map_err(io::Error::other)
            .and_then(|json| fs::write(&partial, json))
            .and_then(|()| fs::rename(&partial, self.folder.join(&name)));
        written.map_err(|error| cannot_write(&self.folder, error))
    }
}

/// Reads every letter below `root`, oldest first. Files that are no letters are passed over.
///
/// # Errors
/// When a folder cannot be read.
pub fn read_dead_letters(root: &Path) -> io::Result<Vec<DeadLetter>> {
    let mut letters = Vec::new();
    let pipelines = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(letters),
        entries => entries?,
    };
    for pipeline in pipelines {
        let pipeline = pipeline?.path();
        if !pipeline.is_dir() {
            continue;
        }
        for entry in fs::read_dir(pipeline)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                letters.extend(serde_json::from_slice::<DeadLetter>(&fs::read(path)?).ok());
            }
        }
    }
    letters.sort_by(|a, b| (a.at_unix_ms, &a.error).cmp(&(b.at_unix_ms, &b.error)));
    Ok(letters)
}

/// The ids at the start of the letters' names.
fn ids_in(folder: &Path) -> io::Result<HashSet<String>> {
    const ID_DIGITS: usize = 32;
    let mut ids = HashSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        ids.extend(name.to_string_lossy().get(..ID_DIGITS).map(str::to_owned));
    }
    Ok(ids)
}

fn cannot_write(folder: &Path, error: io::Error) -> StageError {
    StageError::caused(
        format!("cannot write dead letters: {error}: {}", folder.display()),
        "make the folder writable, or name another one with `dead_letters` in the pipeline's table",
        error,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_written_read_back_and_forgotten_when_its_document_is_read_again() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let origin = Origin::new("a.pdf", "application/pdf", b"%PDF");
        let key = Key::document(origin.id).with_page(7);
        let error = ItemError::new("render", "the page has no size").hint("mend the file");
        let letters = DeadLetters::open(root.path(), "pages").expect("writable");
        letters
            .write("render", &origin, key, &error, true)
            .expect("written");

        let read = read_dead_letters(root.path()).expect("readable");
        assert_eq!(read.len(), 1);
        assert_eq!(
            read[0].error,
            "cannot render `a.pdf#7`: the page has no size"
        );
        assert_eq!(
            (read[0].page, read[0].hint.as_deref()),
            (Some(7), Some("mend the file"))
        );

        let letters = DeadLetters::open(root.path(), "pages").expect("writable");
        letters.forget(&origin.id.to_string()).expect("removed");
        assert!(read_dead_letters(root.path()).expect("readable").is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_with_a_remedy() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let file = root.path().join("file");
        fs::write(&file, "in the way").expect("written");
        let error = DeadLetters::open(&file, "pages").expect_err("a file is in the way");
        assert!(
            error.to_string().starts_with("cannot write dead letters"),
            "{error}"
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("`dead_letters`"))
        );
    }
}

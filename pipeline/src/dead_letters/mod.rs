//! Items set aside: one JSON file each, named by document, place and node.
//!
//! A document that is read again takes its old letters away first, so the
//! folder always holds what is wrong now.

mod filed;
mod index;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::{ItemError, StageError};
use crate::key::{Key, Origin};
use crate::secrets::Secrets;
use index::LetterIndex;

pub use filed::{FiledLetter, read_dead_letters, read_filed_letters};

/// One item that was set aside, as it is written to disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The pipeline that set it aside.
    pub pipeline: String,
    /// The node that could not handle it.
    pub node: String,
    /// URI of the document: the input to feed in again.
    pub document: String,
    /// The source that sent it, where it got so far.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What the source can make the document from, where the URI is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
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

/// Who is told of each letter.
pub(crate) type OnDeadLetter = Arc<dyn Fn(&DeadLetter) + Send + Sync>;

/// Letters that this process has begun to write.
static N_WRITTEN: AtomicU64 = AtomicU64::new(0);

/// The dead letters of one pipeline.
pub(crate) struct DeadLetters {
    pipeline: String,
    folder: Option<PathBuf>,
    told: Option<OnDeadLetter>,
    secrets: Secrets,
    /// The letters in the folder.
    index: Mutex<LetterIndex>,
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = f.debug_struct("DeadLetters");
        letters
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// Opens the folder `root/pipeline`, making it where it is absent.
    /// Without a root, letters are only told of in the log.
    pub(crate) fn open(root: Option<&Path>, pipeline: &str) -> Result<Self, StageError> {
        let Some(root) = root else {
            return Ok(Self {
                pipeline: pipeline.to_owned(),
                folder: None,
                told: None,
                secrets: Secrets::default(),
                index: Mutex::default(),
            });
        };
        let folder = root.join(pipeline);
        let opened = fs::create_dir_all(&folder).and_then(|()| LetterIndex::read(&folder));
        let index = opened.map_err(|error| cannot_write(&folder, error))?;
        Ok(Self {
            pipeline: pipeline.to_owned(),
            folder: Some(folder),
            told: None,
            secrets: Secrets::default(),
            index: Mutex::new(index),
        })
    }

    /// The same, with who is told of each letter.
    pub(crate) fn told_to(self, told: Option<OnDeadLetter>) -> Self {
        Self { told, ..self }
    }

    /// The same, with what no letter says.
    pub(crate) fn without(self, secrets: &Secrets) -> Self {
        let secrets = secrets.clone();
        Self { secrets, ..self }
    }

    /// Removes the letters of this document, except those that `is_kept` keeps by
    /// their page and node. Returns how many stay.
    pub(crate) fn forget(
        &self,
        document_id: &str,
        is_kept: impl Fn(Option<u32>, &str) -> bool,
    ) -> Result<u64, StageError> {
        let Some(folder) = &self.folder else {
            return Ok(0);
        };
        let removed = self.index().remove(document_id, is_kept);
        removed.map_err(|error| cannot_write(folder, error))
    }

    fn index(&self) -> MutexGuard<'_, LetterIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one letter; the file appears whole, by rename.
    pub(crate) fn write(
        &self,
        node: &str,
        origin: &Origin,
        key: Key,
        error: &ItemError,
        document: Option<&Document>,
    ) -> Result<(), StageError> {
        let input = document.and_then(|document| document.arrival().input.as_deref());
        self.write_with(node, origin, key, error, document, input)
    }

    /// The same for a document that was not read, with what it can be made from.
    pub(crate) fn write_unread(
        &self,
        node: &str,
        origin: &Origin,
        error: &ItemError,
        input: Option<&str>,
    ) -> Result<(), StageError> {
        self.write_with(node, origin, Key::document(origin.id), error, None, input)
    }

    fn write_with(
        &self,
        node: &str,
        origin: &Origin,
        key: Key,
        error: &ItemError,
        document: Option<&Document>,
        input: Option<&str>,
    ) -> Result<(), StageError> {
        if self.folder.is_none() && self.told.is_none() {
            return Ok(());
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let letter = DeadLetter {
            pipeline: self.pipeline.clone(),
            node: node.to_owned(),
            document: origin.uri.to_string(),
            source: document.map_or_else(
                || node.to_owned(),
                |document| document.arrival().source.to_string(),
            ),
            input: input.map(str::to_owned),
            document_id: key.document.to_string(),
            content_hash: document.map(|_| origin.content_hash.to_string()),
            page: key.page,
            part: key.part,
            error: self
                .secrets
                .redact(&error.message(&origin.label(key)))
                .into_owned(),
            hint: error
                .hint
                .as_ref()
                .map(|hint| self.secrets.redact(hint).into_owned()),
            at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        if let Some(folder) = &self.folder {
            self.file(folder, node, &letter)?;
        }
        if let Some(told) = &self.told {
            told(&letter);
        }
        Ok(())
    }

    fn file(&self, folder: &Path, node: &str, letter: &DeadLetter) -> Result<(), StageError> {
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
        // Two workers, or two runs, may set aside items of one key at once.
        let n_written = N_WRITTEN.fetch_add(1, Ordering::Relaxed);
        let partial = format!(".{name}.{}-{n_written}.partial", std::process::id());
        let partial = folder.join(partial);
        let written = serde_json::to_vec_pretty(letter)
            .map_err(io::Error::other)
            .and_then(|json| fs::write(&partial, json))
            .and_then(|()| fs::rename(&partial, folder.join(&name)));
        written.map_err(|error| {
            // It holds room on a disk that may have none.
            let _absent = fs::remove_file(&partial);
            cannot_write(folder, error)
        })?;
        // A run that follows changes may see the document again.
        self.index().insert(&name);
        Ok(())
    }
}

fn cannot_write(folder: &Path, error: io::Error) -> StageError {
    StageError::cannot_store(
        format_args!("cannot write dead letters to `{}`", folder.display()),
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
        let letters = DeadLetters::open(Some(root.path()), "pages").expect("writable");
        letters
            .write("render", &origin, key, &error, None)
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

        let letters = DeadLetters::open(Some(root.path()), "pages").expect("writable");
        letters
            .forget(&origin.id.to_string(), |_, _| false)
            .expect("removed");
        assert!(read_dead_letters(root.path()).expect("readable").is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_with_a_remedy() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let file = root.path().join("file");
        fs::write(&file, "in the way").expect("written");
        let error = DeadLetters::open(Some(&file), "pages").expect_err("a file is in the way");
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

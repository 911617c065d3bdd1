//! Items set aside: one JSON file each, named by document, place and node.
//!
//! A document that is read again takes its old letters away first, so the
//! folder always holds what is wrong now.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::{ItemError, StageError};
use crate::key::{Key, Origin};
use crate::secrets::Secrets;

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

/// A letter holds a line of input at most.
const MAX_LETTER_BYTES: u64 = 16 << 20;

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
    /// Documents that have letters of earlier runs, as hexadecimal ids.
    old: Mutex<HashSet<String>>,
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
                old: Mutex::default(),
            });
        };
        let folder = root.join(pipeline);
        let opened = fs::create_dir_all(&folder).and_then(|()| ids_in(&folder));
        let old = opened.map_err(|error| cannot_write(&folder, error))?;
        Ok(Self {
            pipeline: pipeline.to_owned(),
            folder: Some(folder),
            told: None,
            secrets: Secrets::default(),
            old: Mutex::new(old),
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

    /// Removes the letters that earlier runs left for this document, except those
    /// that `is_kept` keeps by their page and node. Returns how many stay.
    pub(crate) fn forget(
        &self,
        document_id: &str,
        is_kept: impl Fn(Option<u32>, &str) -> bool,
    ) -> Result<u64, StageError> {
        let had_letters = self
            .old
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(document_id);
        if !had_letters {
            return Ok(0);
        }
        let Some(folder) = &self.folder else {
            return Ok(0);
        };
        let remove = || -> io::Result<u64> {
            let mut n_kept = 0;
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let Some(rest) = name
                    .to_str()
                    .and_then(|name| name.strip_prefix(document_id))
                else {
                    continue;
                };
                if is_kept(page_in(rest), node_in(rest)) {
                    n_kept += 1;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(n_kept)
        };
        let n_kept = remove().map_err(|error| cannot_write(folder, error))?;
        if n_kept > 0 {
            let mut old = self.old.lock().unwrap_or_else(PoisonError::into_inner);
            old.insert(document_id.to_owned());
        }
        Ok(n_kept)
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
        written.map_err(|error| cannot_write(folder, error))?;
        // A run that follows changes may see the document again.
        let mut old = self.old.lock().unwrap_or_else(PoisonError::into_inner);
        old.insert(letter.document_id.clone());
        Ok(())
    }
}

/// A letter, and the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiledLetter {
    /// Sixteen hexadecimal digits that stay the same as long as the same node
    /// sets the same item aside.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub letter: DeadLetter,
}

impl FiledLetter {
    fn new(path: PathBuf, letter: DeadLetter) -> Self {
        const ID_DIGITS: usize = 16;
        // Two pipelines that read one document give their files the same name.
        let mut hasher = blake3::Hasher::new();
        hasher.update(letter.pipeline.as_bytes());
        hasher.update(b"/");
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        Self {
            id: hasher.finalize().to_hex()[..ID_DIGITS].to_owned(),
            path,
            letter,
        }
    }

    /// Removes the file. That it is gone already is no error.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Reads every letter below `root`, oldest first. Files that are no letters are passed over.
///
/// # Errors
/// When a folder cannot be read.
pub fn read_dead_letters(root: &Path) -> io::Result<Vec<DeadLetter>> {
    let letters = read_filed_letters(root)?.into_iter();
    Ok(letters.map(|filed| filed.letter).collect())
}

/// The same, with the files.
///
/// # Errors
/// When a folder cannot be read.
pub fn read_filed_letters(root: &Path) -> io::Result<Vec<FiledLetter>> {
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
                let letter = match read_letter(&path) {
                    // A run that reads the document again has taken it away.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    letter => letter?,
                };
                letters.extend(letter.map(|letter| FiledLetter::new(path, letter)));
            }
        }
    }
    letters.sort_by(|a, b| {
        let place = |filed: &FiledLetter| (filed.letter.at_unix_ms, filed.letter.error.clone());
        place(a).cmp(&place(b))
    });
    Ok(letters)
}

/// The letter in a file; none where somebody has put something else.
fn read_letter(path: &Path) -> io::Result<Option<DeadLetter>> {
    let metadata = fs::metadata(path)?;
    // A pipe would be waited for, and so would a file without end.
    if !metadata.is_file() || metadata.len() > MAX_LETTER_BYTES {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&fs::read(path)?).ok())
}

/// The page in the rest of a letter's name: 7 in `-p7-c2-render.json`.
fn page_in(rest: &str) -> Option<u32> {
    let digits = rest.strip_prefix("-p")?;
    digits.split('-').next()?.parse().ok()
}

/// The node in the rest of a letter's name: `render` in `-p7-c2-render.json`.
fn node_in(rest: &str) -> &str {
    let mut name = rest.strip_suffix(".json").unwrap_or(rest);
    for mark in ["-p", "-c"] {
        let place = name.strip_prefix(mark).and_then(|it| it.split_once('-'));
        if let Some((number, _)) = place
            && number.parse::<u32>().is_ok()
        {
            name = &name[mark.len() + number.len()..];
        }
    }
    name.strip_prefix('-').unwrap_or(name)
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
    fn a_filed_letter_has_an_id_of_its_own_in_each_pipeline_and_can_be_removed_twice() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let origin = Origin::new("a.pdf", "application/pdf", b"%PDF");
        let error = ItemError::new("render", "the page has no size");
        for pipeline in ["pages", "text"] {
            let letters = DeadLetters::open(Some(root.path()), pipeline).expect("writable");
            let key = Key::document(origin.id);
            letters
                .write("render", &origin, key, &error, None)
                .expect("written");
        }
        let filed = read_filed_letters(root.path()).expect("readable");
        assert_eq!(filed.len(), 2);
        assert_ne!(filed[0].id, filed[1].id);
        assert_eq!(filed[0].id.len(), 16);
        filed[0].remove().expect("removed");
        filed[0].remove().expect("gone already");
        let left = read_filed_letters(root.path()).expect("readable");
        assert_eq!(left, filed[1..]);
    }

    #[test]
    fn what_somebody_else_put_among_the_letters_is_passed_over() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let origin = Origin::new("a.pdf", "application/pdf", b"%PDF");
        let letters = DeadLetters::open(Some(root.path()), "pages").expect("writable");
        let error = ItemError::new("render", "the page has no size");
        let key = Key::document(origin.id).with_page(7);
        letters
            .write("render", &origin, key, &error, None)
            .expect("written");
        let folder = root.path().join("pages");
        fs::create_dir(folder.join("folder.json")).expect("made");
        for (name, content) in [
            ("empty.json", ""),
            ("cut.json", "{\"pipeline\": \"pages\", \"node"),
            ("other.json", "{\"pipeline\": 7}"),
            ("deep.json", &"[".repeat(100_000)),
            ("ü.json", "[]"),
        ] {
            fs::write(folder.join(name), content).expect("written");
        }
        let huge = fs::File::create(folder.join("huge.json")).expect("made");
        huge.set_len(1 << 40).expect("a file with a hole");
        std::os::unix::fs::symlink("/dev/zero", folder.join("endless.json")).expect("made");
        std::os::unix::fs::symlink("nowhere", folder.join("gone.json")).expect("made");
        assert_eq!(read_dead_letters(root.path()).expect("readable").len(), 1);
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

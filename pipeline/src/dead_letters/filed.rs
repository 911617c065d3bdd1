//! Reads the letters of earlier runs back from their files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::DeadLetter;

/// A letter holds a line of input at most.
const MAX_LETTER_BYTES: u64 = 16 << 20;

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

#[cfg(test)]
mod tests {
    use super::super::DeadLetters;
    use super::*;
    use crate::error::ItemError;
    use crate::key::{Key, Origin};

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
}

//! The files of a folder of dead letters, by document: read once, when a run
//! begins, and kept up to date with what the run writes and removes.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Hexadecimal digits of a document's id, with which a letter's name begins.
const ID_DIGITS: usize = 32;

/// The names of the letters in one folder, by the id of their document.
#[derive(Debug, Default)]
pub(super) struct LetterIndex {
    folder: PathBuf,
    /// What follows the id in each name: `-p7-c2-render.json`.
    rests: HashMap<String, BTreeSet<String>>,
}

impl LetterIndex {
    /// Lists the folder.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let mut index = Self {
            folder: folder.to_owned(),
            rests: HashMap::new(),
        };
        for entry in fs::read_dir(folder)? {
            // A letter's name is ASCII; any other file is somebody else's.
            if let Some(name) = entry?.file_name().to_str() {
                index.insert(name);
            }
        }
        Ok(index)
    }

    /// Adds the letter of this name.
    pub(super) fn insert(&mut self, name: &str) {
        let Some((id, rest)) = name.split_at_checked(ID_DIGITS) else {
            return;
        };
        if id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            let rests = self.rests.entry(id.to_owned()).or_default();
            rests.insert(rest.to_owned());
        }
    }

    /// Removes the letters of a document, except those that `is_kept` keeps by
    /// their page and node. Returns how many stay.
    pub(super) fn remove(
        &mut self,
        document_id: &str,
        is_kept: impl Fn(Option<u32>, &str) -> bool,
    ) -> io::Result<u64> {
        let Some(rests) = self.rests.get_mut(document_id) else {
            return Ok(0);
        };
        let removed: Vec<String> = rests
            .iter()
            .filter(|rest| !is_kept(page_in(rest), node_in(rest)))
            .cloned()
            .collect();
        for rest in removed {
            let path = self.folder.join(format!("{document_id}{rest}"));
            match fs::remove_file(path) {
                // `pagemill dead-letters drop` may have removed it meanwhile.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => rests.remove(&rest),
            };
        }
        let n_kept = rests.len() as u64;
        if rests.is_empty() {
            self.rests.remove(document_id);
        }
        Ok(n_kept)
    }
}

/// The page in what follows the id in a letter's name: 7 in `-p7-c2-render.json`.
fn page_in(rest: &str) -> Option<u32> {
    let digits = rest.strip_prefix("-p")?;
    digits.split('-').next()?.parse().ok()
}

/// The node in what follows the id: `render` in `-p7-c2-render.json`.
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn names_in(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).expect("readable");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    fn folder_with(names: &[String]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in names {
            fs::write(folder.path().join(name), "{}").expect("written");
        }
        folder
    }

    #[test]
    fn letters_are_removed_by_document_and_those_that_are_kept_stay() {
        let names = ["-render.json", "-p7-c2-embed.json", "-p8-embed.json"];
        let names = names.map(|rest| format!("{ID}{rest}"));
        let other = format!("{}-render.json", ID.replace('0', "f"));
        let folder = folder_with(&[names.as_slice(), std::slice::from_ref(&other)].concat());
        let mut index = LetterIndex::read(folder.path()).expect("readable");
        let is_kept = |page: Option<u32>, node: &str| page == Some(7) && node == "embed";
        assert_eq!(index.remove(ID, is_kept).expect("removed"), 1);
        let left = BTreeSet::from([names[1].clone(), other.clone()]);
        assert_eq!(names_in(folder.path()), left);
        // The letter that stayed is still known, so a later version removes it.
        index.remove(ID, |_, _| false).expect("removed");
        assert_eq!(names_in(folder.path()), BTreeSet::from([other]));
    }

    #[test]
    fn a_letter_that_somebody_removed_meanwhile_is_no_error() {
        let name = format!("{ID}-render.json");
        let folder = folder_with(std::slice::from_ref(&name));
        let mut index = LetterIndex::read(folder.path()).expect("readable");
        fs::remove_file(folder.path().join(&name)).expect("removed");
        index
            .remove(ID, |_, _| false)
            .expect("nothing is left to remove");
        assert!(index.rests.is_empty());
    }

    #[test]
    fn the_folder_is_listed_once_however_many_documents_have_letters() {
        let id = |number: u32| format!("{number:0ID_DIGITS$x}");
        let names = |number| format!("{}-render.json", id(number));
        let folder = folder_with(&(0..20).map(names).collect::<Vec<_>>());
        let mut index = LetterIndex::read(folder.path()).expect("readable");
        // What appears in the folder later would be found by listing it again.
        let foreign = format!("{}-foreign.json", id(0));
        fs::write(folder.path().join(&foreign), "{}").expect("written");
        for number in 0..20 {
            index.remove(&id(number), |_, _| false).expect("removed");
        }
        assert_eq!(names_in(folder.path()), BTreeSet::from([foreign]));
    }

    #[test]
    fn names_that_are_no_letters_are_left_alone() {
        let mut index = LetterIndex::default();
        let partial = format!(".{ID}-render.json.1-1.partial");
        for name in ["", "notes.txt", &"ü".repeat(40), &partial] {
            index.insert(name);
        }
        assert!(index.rests.is_empty());
    }
}

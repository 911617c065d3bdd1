//! The letters that the commands are about, and how they are named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pagemill::pipeline::{FiledLetter, read_filed_letters};
use pagemill::{ConfigFile, Graph};

use super::Place;
use crate::Hinted;

/// The letters of a configuration's pipelines, oldest first.
pub(super) struct Letters {
    pub(super) file: ConfigFile,
    pub(super) all: Vec<FiledLetter>,
    /// Digits of the ids that tell them apart.
    n_digits: usize,
}

impl Letters {
    pub(super) fn read(place: &Place) -> anyhow::Result<Self> {
        let file = place.config.read()?;
        let roots: BTreeSet<&Path> = file
            .pipelines()
            .iter()
            .filter_map(Graph::dead_letters)
            .collect();
        let mut letters = Vec::new();
        for root in roots {
            letters.extend(filed_letters(root)?);
        }
        letters.sort_by_key(|filed| filed.letter.at_unix_ms);
        let n_digits = n_digits(&letters);
        for name in &place.pipelines {
            // One that is gone from the file may have left letters.
            if !letters.iter().any(|filed| filed.letter.pipeline == *name) {
                file.pipeline(Some(name))?;
            }
        }
        if !place.pipelines.is_empty() {
            letters.retain(|filed| place.pipelines.contains(&filed.letter.pipeline));
        }
        Ok(Self {
            file,
            all: letters,
            n_digits,
        })
    }

    pub(super) fn id<'a>(&self, filed: &'a FiledLetter) -> &'a str {
        &filed.id[..self.n_digits]
    }

    /// Those that `ids` name.
    pub(super) fn choose(&self, ids: &[String]) -> Result<Vec<&FiledLetter>, Hinted> {
        let mut chosen: Vec<&FiledLetter> = Vec::new();
        for id in ids {
            for filed in self.find(id)? {
                if !chosen.contains(&filed) {
                    chosen.push(filed);
                }
            }
        }
        Ok(chosen)
    }

    /// All letters of a document, or the one whose id begins so.
    fn find(&self, id: &str) -> Result<Vec<&FiledLetter>, Hinted> {
        let letters = self.all.iter();
        let of_document: Vec<_> = letters
            .clone()
            .filter(|filed| is_same_document(&filed.letter.document, id))
            .collect();
        if !of_document.is_empty() {
            return Ok(of_document);
        }
        let begins =
            |filed: &&FiledLetter| !id.is_empty() && filed.id.starts_with(&id.to_ascii_lowercase());
        let found: Vec<_> = letters.filter(begins).collect();
        match found.len() {
            1 => Ok(found),
            0 => Err(Hinted::usage(
                format!("no dead letter is called `{id}`, and none is of such a document"),
                if self.all.is_empty() {
                    "there are no dead letters"
                } else {
                    "`pagemill dead-letters list` shows the ids and the documents"
                },
            )),
            _ => {
                let ids = found
                    .iter()
                    .map(|filed| format!("`{}`", self.id(filed)))
                    .collect::<Vec<_>>();
                Err(Hinted::usage(
                    format!("several dead letters are called `{id}`"),
                    format!("write more of the id: {}", ids.join(", ")),
                ))
            }
        }
    }
}

/// Reads the letters below a folder.
pub(crate) fn filed_letters(root: &Path) -> Result<Vec<FiledLetter>, Hinted> {
    read_filed_letters(root).map_err(|error| {
        Hinted::failed(
            format!("cannot read dead letters: {error}: {}", root.display()),
            "make the folder readable, or name another one with `dead_letters` in the pipeline's table",
        )
    })
}

/// As few digits as tell all letters apart, and at least 8.
fn n_digits(letters: &[FiledLetter]) -> usize {
    const LEAST: usize = 8;
    const MOST: usize = 16;
    let is_enough = |n_digits: &usize| {
        let ids: BTreeSet<&str> = letters.iter().map(|filed| &filed.id[..*n_digits]).collect();
        ids.len() == letters.len()
    };
    (LEAST..MOST).find(is_enough).unwrap_or(MOST)
}

/// Whether a user means the document at `uri`: by its very name, or by another
/// way to write the same path.
fn is_same_document(uri: &str, named: &str) -> bool {
    let components = |path: &str| -> PathBuf { Path::new(path).components().collect() };
    if uri == named || components(uri) == components(named) {
        return true;
    }
    let canonical = |path: &str| Path::new(path).canonicalize().ok();
    canonical(named).is_some_and(|named| canonical(uri) == Some(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_known_by_each_way_to_write_its_path() {
        assert!(is_same_document("input/a.pdf", "input/a.pdf"));
        assert!(is_same_document("input/a.pdf", "input//a.pdf"));
        assert!(!is_same_document("input/a.pdf", "a.pdf"));
        assert!(!is_same_document("stdin:0", ""));
    }
}

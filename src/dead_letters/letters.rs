//! The letters that the commands are about, and how they are named.

use std::collections::BTreeSet;
use std::path::Path;

use pagemill::pipeline::{FiledLetter, read_filed_letters};
use pagemill::{ConfigFile, Graph};

use super::Place;
use crate::Hinted;
use crate::document_names::Named;

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
        let name = Named::new(id);
        let of = |is_same: &dyn Fn(&str) -> bool| -> Vec<_> {
            let letters = letters.clone();
            letters
                .filter(|filed| is_same(&filed.letter.document))
                .collect()
        };
        let mut of_document = of(&|uri| name.is(uri));
        if of_document.is_empty()
            && let Ok(file) = Path::new(id).canonicalize()
        {
            of_document = of(&|uri| Path::new(uri).canonicalize().is_ok_and(|path| path == file));
        }
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

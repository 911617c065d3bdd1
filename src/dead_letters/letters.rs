//! The letters that the commands are about, and how they are named.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use pagemill::pipeline::{FiledLetter, read_filed_letters};
use pagemill::{ConfigFile, Graph};

use super::Place;
use crate::Hinted;
use crate::document_names::{Named, components};

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
        let lookup = Lookup::new(&self.all);
        let mut chosen: Vec<usize> = Vec::new();
        let mut is_chosen = vec![false; self.all.len()];
        for id in ids {
            for number in self.find(&lookup, id)? {
                if !std::mem::replace(&mut is_chosen[number], true) {
                    chosen.push(number);
                }
            }
        }
        let chosen = chosen.into_iter();
        Ok(chosen.map(|number| &self.all[number]).collect())
    }

    /// All letters of a document, or the one whose id begins so.
    fn find(&self, lookup: &Lookup<'_>, id: &str) -> Result<Vec<usize>, Hinted> {
        let of_document = lookup.of_document(id);
        if !of_document.is_empty() {
            return Ok(of_document);
        }
        let found = lookup.with_id(id);
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
                    .map(|number| format!("`{}`", self.id(&self.all[*number])))
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
fn filed_letters(root: &Path) -> Result<Vec<FiledLetter>, Hinted> {
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

/// Finds letters by what a user may call them; each index is built once.
struct Lookup<'a> {
    letters: &'a [FiledLetter],
    by_id: BTreeMap<&'a str, Vec<usize>>,
    /// By the document's path as its components, so that `a//b` is `a/b`.
    by_path: HashMap<PathBuf, Vec<usize>>,
    /// By the path without links and `..`: it takes a look at the disk for each.
    by_canonical: OnceCell<HashMap<PathBuf, Vec<usize>>>,
}

impl<'a> Lookup<'a> {
    fn new(letters: &'a [FiledLetter]) -> Self {
        let mut by_id: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, filed) in letters.iter().enumerate() {
            by_id.entry(&filed.id).or_default().push(number);
        }
        Self {
            letters,
            by_id,
            by_path: by(letters, |uri| Some(components(uri))),
            by_canonical: OnceCell::new(),
        }
    }

    /// The letters of the document that `named` means: by its very name, or by
    /// another way to write the same path.
    fn of_document(&self, named: &str) -> Vec<usize> {
        let paths = Named::new(named).paths();
        let found = paths.iter().filter_map(|path| self.by_path.get(path));
        let found: BTreeSet<usize> = found.flatten().copied().collect();
        if !found.is_empty() {
            return found.into_iter().collect();
        }
        let by_canonical = || by(self.letters, canonical);
        canonical(named)
            .and_then(|path| self.by_canonical.get_or_init(by_canonical).get(&path))
            .cloned()
            .unwrap_or_default()
    }

    /// The letters whose ids begin with `start`.
    fn with_id(&self, start: &str) -> Vec<usize> {
        let start = start.to_ascii_lowercase();
        if start.is_empty() {
            return Vec::new();
        }
        let from = self.by_id.range(start.as_str()..);
        from.take_while(|(id, _)| id.starts_with(&start))
            .flat_map(|(_, numbers)| numbers.iter().copied())
            .collect()
    }
}

/// The numbers of the letters, by a path that `of` makes of their document.
fn by(
    letters: &[FiledLetter],
    of: impl Fn(&str) -> Option<PathBuf>,
) -> HashMap<PathBuf, Vec<usize>> {
    let mut numbers: HashMap<PathBuf, Vec<usize>> = HashMap::new();
    for (number, filed) in letters.iter().enumerate() {
        if let Some(path) = of(&filed.letter.document) {
            numbers.entry(path).or_default().push(number);
        }
    }
    numbers
}

fn canonical(path: &str) -> Option<PathBuf> {
    Path::new(path).canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filed(id: &str, document: &str) -> FiledLetter {
        let letter = serde_json::json!({
            "pipeline": "p", "node": "n", "document": document, "document_id": "",
            "error": "cannot", "at_unix_ms": 0,
        });
        FiledLetter {
            id: id.into(),
            path: PathBuf::from(format!("{id}.json")),
            letter: serde_json::from_value(letter).expect("a letter"),
        }
    }

    #[test]
    fn a_document_is_known_by_each_way_to_write_its_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.pdf");
        std::fs::write(&path, "").expect("written");
        let absolute = path.to_string_lossy();
        let letters = [
            filed("01", "input/a.pdf"),
            filed("02", "stdin:0"),
            filed("03", &absolute),
            filed("04", "input/a.pdf"),
        ];
        let lookup = Lookup::new(&letters);
        assert_eq!(lookup.of_document("input/a.pdf"), [0, 3]);
        assert_eq!(lookup.of_document("input//./a.pdf"), [0, 3]);
        let round_about = folder
            .path()
            .join("../")
            .join(folder.path().file_name().expect("a folder has a name"));
        let round_about = round_about.join("a.pdf");
        assert_eq!(lookup.of_document(&round_about.to_string_lossy()), [2]);
        for other in ["a.pdf", "", "stdin:1"] {
            assert!(lookup.of_document(other).is_empty(), "{other}");
        }
    }

    #[test]
    fn a_letter_is_found_by_the_start_of_its_id() {
        let letters = ["0a1", "0a2", "0b1"].map(|id| filed(id, id));
        let lookup = Lookup::new(&letters);
        assert_eq!(lookup.with_id("0A"), [0, 1]);
        assert_eq!(lookup.with_id("0b1"), [2]);
        for other in ["", "0c", "0a11", "ü"] {
            assert!(lookup.with_id(other).is_empty(), "{other}");
        }
    }
}

//! Learns what the parts of a folder hold when it is opened.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;

use pagemill_pipeline::{DocumentId, StageError, StoredDocument};

use super::{Folder, or_stage_error};
use crate::parts::manifest::{self, Part, Stamp};
use crate::parts::{Format, PartError};

impl Folder {
    /// The numbers of the parts that are there, rising.
    pub(super) fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| {
                let number = name
                    .strip_prefix("part-")?
                    .split('.')
                    .next()?
                    .parse()
                    .ok()?;
                (self.name_of(number) == name).then_some(number)
            });
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Learns what each part holds; the documents of which a later part has
    /// rows too, by the part that they have to leave.
    pub(super) fn read<F: Format>(
        &mut self,
        numbers: &[u64],
        format: &F,
    ) -> Result<BTreeMap<u64, HashSet<DocumentId>>, StageError> {
        let mut known = manifest::read(&self.path);
        // What the manifest notes of parts that are not as it notes them.
        let mut noted = Vec::new();
        let mut read = BTreeSet::new();
        for &number in numbers {
            let path = self.path_of(number);
            let part = fs::metadata(&path)
                .map_err(PartError::Io)
                .and_then(|metadata| {
                    let stamp = Stamp::of(&metadata);
                    match known.remove(&self.name_of(number)) {
                        Some(part) if part.stamp == stamp => Ok(part),
                        other => {
                            noted.extend(other.into_iter().flat_map(|part| part.documents));
                            read.insert(number);
                            self.has_manifest = false;
                            let documents = format.documents(&path)?;
                            Ok(Part { stamp, documents })
                        }
                    }
                });
            let part = part.map_err(|error| {
                let hint = "remove this file and run again: its documents are then made anew";
                or_stage_error(
                    error,
                    format_args!("cannot read `{}`", path.display()),
                    hint,
                )
            })?;
            self.parts.insert(number, part);
        }
        self.has_manifest &= known.is_empty();
        noted.extend(known.into_values().flat_map(|part| part.documents));
        self.distrust_incomplete(&read, noted);
        Ok(self.hold())
    }

    /// Clears the fingerprint of documents with fewer rows than were `noted` of
    /// the same version, so that they are made again: somebody deleted some.
    fn distrust_incomplete(&mut self, read: &BTreeSet<u64>, noted: Vec<StoredDocument>) {
        let noted = noted.into_iter().map(|document| (document.id, document));
        let noted: HashMap<DocumentId, StoredDocument> = noted.collect();
        let is_incomplete = |found: &StoredDocument| {
            noted.get(&found.id).is_some_and(|noted| {
                noted.n_rows > found.n_rows
                    && noted.content_hash == found.content_hash
                    && noted.fingerprint == found.fingerprint
            })
        };
        let mut n_documents = 0;
        for (_, part) in self
            .parts
            .iter_mut()
            .filter(|(number, _)| read.contains(number))
        {
            for document in part.documents.iter_mut().filter(|it| is_incomplete(it)) {
                document.fingerprint.clear();
                n_documents += 1;
            }
        }
        if n_documents > 0 {
            tracing::warn!(
                folder = %self.path.display(),
                n_documents,
                "rows of documents are missing from their parts: these documents are made again"
            );
        }
    }

    /// Learns which part holds which document; those that stand in a later part
    /// as well, by the part that they have to leave.
    fn hold(&mut self) -> BTreeMap<u64, HashSet<DocumentId>> {
        let mut doubles: BTreeMap<u64, HashSet<DocumentId>> = BTreeMap::new();
        for (&number, part) in &self.parts {
            for document in &part.documents {
                if let Some(earlier) = self.holders.insert(document.id, number) {
                    doubles.entry(earlier).or_default().insert(document.id);
                }
            }
        }
        doubles
    }
}

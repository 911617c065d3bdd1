//! Merges small parts of a folder into one, and removes those that are in it.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use pagemill_pipeline::StageError;

use super::Folder;
use crate::parts::faults::Step;
use crate::parts::manifest::Stamp;
use crate::parts::merge::{self, Size};
use crate::parts::{Format, Rows};

impl Folder {
    /// Merges small parts, into one of `limits` at most. False if there are none.
    ///
    /// # Errors
    /// What cannot be read or written; all rows are there nevertheless.
    pub(in super::super) fn merge<F: Format>(
        &mut self,
        format: &mut F,
        limits: Size,
    ) -> Result<bool, StageError> {
        self.remove_merged()?;
        let Some((kept, others)) = self.small_parts(limits) else {
            return Ok(false);
        };
        self.at(Step::BeforeMerging, kept)?;
        let numbers = || others.iter().copied().chain([kept]);
        let paths: Vec<PathBuf> = numbers().map(|number| self.path_of(number)).collect();
        let nothing = HashSet::new();
        let rows = paths.iter().map(|path| Rows::Part {
            path,
            without: &nothing,
        });
        let rows: Vec<Rows<'_>> = rows.collect();
        let parts = numbers().filter_map(|number| self.parts.get(&number));
        let documents = parts.flat_map(|part| part.documents.clone()).collect();
        let before = self.parts.get(&kept).map(|part| part.stamp);
        let written = self.write(format, kept, &rows, documents);
        if self.parts.get(&kept).map(|part| part.stamp) != before {
            // It is in its place, whatever could not be done after that.
            self.merged.extend(others);
        }
        written?;
        self.remove_merged()?;
        self.at(Step::AfterMerging, kept)?;
        Ok(true)
    }

    /// The newest of the small parts that are to become one, and the others.
    fn small_parts(&mut self, limits: Size) -> Option<(u64, Vec<u64>)> {
        while !self.is_settled {
            let unchanged = self.parts.iter();
            let unchanged = unchanged.filter(|(number, _)| !self.changed.contains(number));
            let mut chosen = merge::choose(unchanged.map(|(n, part)| (*n, part.size())), limits);
            let n_changed = self.changed.len();
            for number in &chosen {
                let metadata = fs::metadata(self.path_of(*number));
                // What others wrote into it was not counted.
                let is_as_it_was =
                    metadata.is_ok_and(|it| Stamp::of(&it) == self.parts[number].stamp);
                if !is_as_it_was {
                    self.changed.insert(*number);
                }
            }
            if self.changed.len() > n_changed {
                continue;
            }
            if let Some(kept) = chosen.pop() {
                return Some((kept, chosen));
            }
            self.is_settled = true;
        }
        None
    }

    /// Removes parts whose rows are in another one. No document may change
    /// before that: one that is removed would still stand in such a part.
    ///
    /// # Errors
    /// What cannot be removed; then it may be tried again.
    pub(in super::super) fn remove_merged(&mut self) -> Result<(), StageError> {
        if self.merged.is_empty() {
            return Ok(());
        }
        // The rows are durable in their new part first.
        self.sync()?;
        while let Some(&number) = self.merged.first() {
            self.remove(number)?;
            self.merged.remove(&number);
        }
        self.sync()
    }
}

//! Removes files that are in no version of the table: what this run wrote in vain,
//! and what killed runs of the same pipeline left.
//!
//! The rows are durable without it, so what goes wrong is only logged.

use std::collections::HashSet;
use std::error::Error;

use super::LanceDb;

/// How many files were removed.
type Removed = Result<usize, Box<dyn Error + Send + Sync>>;

impl LanceDb {
    /// Removes the files that this run has written in vain, once so many files
    /// were noted that the journal is worth shortening.
    pub(super) async fn settle_journal(&mut self, at_least: usize) {
        let removed = self.remove_own(at_least).await;
        self.log(&removed, "files that were written in vain");
    }

    /// Removes what earlier runs of this pipeline left behind when they were killed.
    pub(super) async fn sweep(&mut self) {
        let removed = self.remove_of_dead_runs().await;
        self.log(&removed, "files that a killed run left");
    }

    fn log(&mut self, removed: &Removed, what: &str) {
        let table = self.opened().table.name();
        match removed {
            Ok(0) => {}
            Ok(n_files) => tracing::info!(table, n_files, "{what} are removed"),
            Err(error) => tracing::warn!(table, %error, "{what} stay"),
        }
    }

    async fn remove_own(&mut self, at_least: usize) -> Removed {
        let opened = self.opened();
        let Some(journal) = opened.table.journal.clone() else {
            return Ok(0);
        };
        // Work beside the run has files under way that no version names yet.
        if journal.n_noted() < at_least || opened.upkeep.is_under_way() {
            return Ok(0);
        }
        let named = opened.table.named_files().await?;
        Ok(journal.settle(&named, &self.staged_files())?)
    }

    async fn remove_of_dead_runs(&mut self) -> Removed {
        let opened = self.opened();
        let Some(journal) = opened.table.journal.clone() else {
            return Ok(0);
        };
        let dead = journal.dead()?;
        if dead.is_empty() {
            return Ok(0); // Nearly always: no version is read.
        }
        let named = opened.table.named_files().await?;
        Ok(journal.sweep(dead, &named, &self.staged_files())?)
    }

    /// The files of rows that are written and in no version of the table yet.
    fn staged_files(&self) -> HashSet<String> {
        let coming = self.coming.values().chain(&self.ready.documents);
        let coming = coming.flat_map(|rows| rows.staged.iter().chain(&rows.spilled));
        let adopted = self.opened.as_ref().into_iter();
        let adopted = adopted.flat_map(|opened| opened.adopted.values().flatten());
        let files = coming.chain(adopted).flat_map(|fragment| &fragment.files);
        files.map(|file| format!("data/{}", file.path)).collect()
    }
}

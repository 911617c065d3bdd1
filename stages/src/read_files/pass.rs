//! Reading a folder once, from its first file to its last.

use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use pagemill_pipeline::{FeedAgain, ItemError, Provenance, Prune, SourceOutlet, StageError};

use super::listing::{Found, Listed, Listing, Observed, is_at_or_below};
use super::read_ahead::{ReadAhead, Reserved};
use super::reading::{ReadFile, Reader, gone};
use super::state::COARSE_TICK;
use super::{READ_AHEAD, blocking};

/// Files that the ledger is asked about at once.
const CHUNK: usize = 1000;

/// What reads a folder, once or for good.
#[derive(Clone)]
pub(super) struct Pass {
    pub(super) listing: Arc<Listing>,
    pub(super) reader: Reader,
    pub(super) read_ahead: ReadAhead,
    pub(super) outlet: SourceOutlet,
    /// Whether the folder is followed, unless this is a dry run.
    pub(super) is_watched: bool,
}

/// What became of one file.
struct Outcome {
    uri: String,
    /// The document, or why there is none.
    file: Result<ReadFile, ItemError>,
    /// The room that it takes until it is sent.
    _reserved: Reserved,
}

/// Documents of earlier runs that a listing lacks.
#[derive(Default)]
struct Missing {
    uris: Vec<String>,
    /// All documents of earlier runs at the root or below it.
    n_known: usize,
}

impl Pass {
    /// Sends what is new or has changed and, where that is asked for, removes what is gone.
    pub(super) async fn run(self) -> Result<(), StageError> {
        let pass = self.clone();
        let listed = self
            .unless_draining(blocking(move || pass.list()))
            .await
            .transpose()?;
        let Some(listed) = listed else {
            return Ok(());
        };
        let (listed, missing) = listed?;
        self.outlet.expect(listed.found.len());
        if listed.found.is_empty() {
            let path = self.listing.root.display();
            tracing::warn!(%path, "no file is chosen by `include` and `exclude`");
        }
        let missing = self.confirm(&listed, missing);
        let mut found = listed.found.into_iter();
        loop {
            let chunk: Vec<Found> = found.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                return self.prune(missing).await;
            }
            let pass = self.clone();
            let undone = blocking(move || pass.undone(chunk));
            let Some(undone) = self.unless_draining(undone).await else {
                return Ok(());
            };
            if !self.send_all(undone??).await? {
                return Ok(());
            }
        }
    }

    /// What is there, and what is not any more.
    fn list(&self) -> Result<(Listed, Missing), StageError> {
        let listed = self.listing.list();
        // A dry run counts those that stay, too.
        if self.outlet.prune() == Prune::No && !self.outlet.is_dry_run() {
            return Ok((listed, Missing::default()));
        }
        let root = &self.listing.uri;
        let known: Vec<String> = self
            .known()?
            .filter(|uri| is_at_or_below(uri, root))
            .collect();
        let missing = Missing {
            n_known: known.len(),
            uris: listed.missing(root, known),
        };
        Ok((listed, missing))
    }

    /// The URIs of the documents to remove. Where no file at all was found, that is
    /// none, and the run fails at its end: it cannot tell a folder that was emptied
    /// from one that is not mounted, or from a pattern that chooses nothing.
    fn confirm(&self, listed: &Listed, missing: Missing) -> Vec<String> {
        let Missing { uris, n_known } = missing;
        let (path, n_missing) = (self.listing.root.display(), uris.len());
        if n_missing == 0 {
            return uris;
        }
        let removes = match self.outlet.prune() {
            Prune::All => true,
            Prune::Gone => listed.has_files(),
            // Watching follows deletions, and takes a folder without files for one
            // that is not mounted.
            Prune::No => self.is_watched && listed.has_files(),
        };
        if removes {
            if !self.outlet.is_dry_run() {
                tracing::warn!(
                    %path,
                    "{n_known} documents are known, {n_missing} of them are gone or no longer \
                     chosen: removing them"
                );
            }
            return uris;
        }
        if self.outlet.prune() == Prune::Gone && !self.is_watched {
            let problem = format!(
                "pruning is refused: no file was found, and {n_known} documents are known: `{path}`"
            );
            let hint = "look whether the folder is mounted, and at `include` and `exclude`; if the \
                        documents are gone for good, run again with `--prune=all`";
            self.outlet.fail_at_end(StageError::fatal(problem, hint));
        } else {
            // Only a dry run comes here: it counts those that stay.
            self.outlet.count_gone(uris.len());
        }
        Vec::new()
    }

    /// The URIs of what earlier runs have stored or set aside.
    pub(super) fn known(&self) -> Result<impl Iterator<Item = String> + use<>, StageError> {
        let known = self.outlet.known()?;
        Ok(known.into_iter().map(|document| document.uri))
    }

    /// Those files that the ledger does not know as they are.
    fn undone(&self, chunk: Vec<Found>) -> Result<Vec<Found>, StageError> {
        let mut undone = Vec::new();
        for found in chunk {
            let is_done = match &found.file {
                Ok(seen) if !seen.state.is_fresh(seen.at, COARSE_TICK) => {
                    let state = seen.state.to_string();
                    self.outlet.is_done(&found.uri, &state)?
                }
                _ => false,
            };
            if !is_done {
                undone.push(found);
            }
        }
        Ok(undone)
    }

    /// Reads and sends; `false` if the run is asked to stop meanwhile.
    async fn send_all(&self, found: Vec<Found>) -> Result<bool, StageError> {
        // One after the other, in the order in which they are sent.
        let reserved = stream::iter(found).then(|found| {
            let pass = self.clone();
            async move { pass.reserve(found).await }
        });
        let documents = reserved.map(|reserved| async {
            let (found, reserved) = reserved?;
            self.read(found, reserved).await
        });
        let mut documents = Box::pin(documents.buffered(READ_AHEAD));
        loop {
            match self.unless_draining(documents.next()).await {
                None => return Ok(false),
                Some(None) => return Ok(true),
                Some(Some(read)) => self.send(read?).await?,
            }
        }
    }

    async fn reserve(&self, found: Found) -> Result<(Found, Reserved), StageError> {
        let n_bytes = found.file.as_ref().map_or(0, |seen| seen.state.n_bytes());
        let reserved = self.read_ahead.reserve(n_bytes, self.outlet.room()).await?;
        Ok((found, reserved))
    }

    async fn read(&self, found: Found, reserved: Reserved) -> Result<Outcome, StageError> {
        let file = match found.file {
            Ok(_) => self.reader.read(found.path).await?,
            Err(error) => Err(error),
        };
        Ok(Outcome {
            uri: found.uri,
            file,
            _reserved: reserved,
        })
    }

    async fn send(&self, outcome: Outcome) -> Result<(), StageError> {
        let Outcome {
            uri,
            file,
            _reserved,
        } = outcome;
        let read = file.and_then(|file| {
            let state = file.lasting_state(COARSE_TICK).map(|it| it.to_string());
            let item = self.reader.document(&uri, file.bytes, file.hash)?;
            Ok((item, Provenance { state, input: None }))
        });
        match read {
            Ok((item, provenance)) => self.outlet.send_from(item, provenance).await,
            Err(error) => self.outlet.dead_letter(&uri, &error),
        }
    }

    /// Removes what was missing in the listing and still is.
    async fn prune(&self, missing: Vec<String>) -> Result<(), StageError> {
        for uri in missing {
            let (pass, looked_for) = (self.clone(), uri.clone());
            let is_gone = blocking(move || pass.is_gone(&looked_for));
            match self.unless_draining(is_gone).await.transpose()? {
                None => return Ok(()),
                Some(true) => self.outlet.remove(&uri).await?,
                Some(false) => {}
            }
        }
        Ok(())
    }

    fn is_gone(&self, uri: &str) -> bool {
        let path = self.listing.path_of(uri);
        match path.map_or(Observed::Nothing, |path| self.listing.look(&path)) {
            Observed::Nothing => self.listing.root.exists(),
            Observed::There(listed) => !listed.missing(uri, [uri.to_owned()]).is_empty(),
            Observed::Unclear => false,
        }
    }

    /// Reads those of `retries` that are files of this source, and nothing else.
    pub(super) async fn feed_again(self, retries: Vec<FeedAgain>) -> Result<(), StageError> {
        let pass = self.clone();
        let (found, readable_again) = blocking(move || pass.find(retries)).await?;
        for uri in readable_again {
            // Its letter was about the folder. An ordinary run reads what is in it.
            self.outlet.remove(&uri).await?;
        }
        self.outlet.expect(found.len());
        self.send_all(found).await?;
        Ok(())
    }

    /// What is now where the letters say, and folders among it that are in order.
    fn find(&self, retries: Vec<FeedAgain>) -> (Vec<Found>, Vec<String>) {
        let (mut found, mut readable_again, mut odd) = (Vec::new(), Vec::new(), Vec::new());
        // Where a source keeps the input, the URI is not enough for it.
        for retry in retries.into_iter().filter(|retry| retry.input.is_none()) {
            let uri = retry.uri;
            let Some(path) = self.listing.path_of(&uri) else {
                continue;
            };
            match self.listing.look(&path) {
                Observed::There(listed) => {
                    let own = listed.found.into_iter().find(|found| found.uri == uri);
                    if own.is_none() && path.is_dir() && listed.unseen.is_empty() {
                        readable_again.push(uri);
                    }
                    found.extend(own);
                }
                Observed::Unclear => odd.push((uri, path)),
                Observed::Nothing if uri.contains('%') => odd.push((uri, path)),
                Observed::Nothing => found.extend(self.not_there(uri, path)),
            }
        }
        if odd.is_empty() {
            return (found, readable_again);
        }
        let mut all = self.listing.list().found;
        for (uri, path) in odd {
            match all.iter().position(|found| found.uri == uri) {
                Some(place) => found.push(all.swap_remove(place)),
                None => found.extend(self.not_there(uri, path)),
            }
        }
        (found, readable_again)
    }

    /// A file that is to be read and is gone; one that the patterns do not
    /// choose may be another source's.
    fn not_there(&self, uri: String, path: PathBuf) -> Option<Found> {
        let file = Err(gone());
        (!path.exists() && self.listing.concerns(&path)).then_some(Found { uri, path, file })
    }

    /// Waits for something, unless the run is asked to stop first.
    pub(super) async fn unless_draining<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.outlet.draining() => None,
            done = wait => Some(done),
        }
    }
}

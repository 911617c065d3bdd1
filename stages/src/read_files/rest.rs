//! Decides when watched files are checked, read and removed (debouncing).
//!
//! A plan without a clock, a disk or a thread: it is told what was seen when,
//! and says what to do next. What changes is left alone until it has *rested*:
//! until it was seen twice the same, `rest` apart, or its times say that it
//! has been as it is for so long. The same holds for what is gone, so that an
//! editor which replaces a file by way of another name removes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagemill_pipeline::ItemError;

use super::Watching;
use super::listing::{Found, Listed, Listing, Observed, Seen, is_at_or_below};

/// Paths that are looked at, and files that the ledger is asked about, in one go.
const BATCH: usize = 1000;

/// Paths that may wait; above that, everything is listed instead.
const MAX_WAITING: usize = 100_000;

/// How often a root that is gone is looked for.
const ROOT_CHECK: Duration = Duration::from_secs(5);

/// Time between two listings, in multiples of what one takes.
const RESCAN_PAUSE: u32 = 4;

/// What a path is like. The same version need not be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    File(super::state::FileState),
    /// It cannot be read, and why.
    Problem(String),
    Gone,
}

/// What is known of one document.
#[derive(Debug, Default)]
struct Document {
    /// The version that was sent, set aside or found done.
    handled: Option<Version>,
    /// The version that is in a queue, or being worked on.
    queued: Option<Version>,
    /// This run or an earlier one has sent it or set it aside.
    is_stored: bool,
    /// Where its name is not UTF-8, so that the URI does not say it.
    odd_path: Option<PathBuf>,
}

/// Something to find out, one at a time.
#[derive(Debug)]
pub(super) enum Scan {
    /// List everything; answer with [`Plan::listed`].
    Everything,
    /// Look at these; answer with [`Plan::looked`].
    Look(Vec<PathBuf>),
    /// Ask the ledger about these files; answer with [`Plan::checked`].
    Check(Vec<Job>),
}

/// Something to do about one document; several may be under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) uri: String,
    pub(super) path: PathBuf,
    pub(super) what: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    /// Read it, if it is still as it was seen.
    Read(Seen),
    /// Write a dead letter.
    SetAside(ItemError),
    /// Remove its rows, if it is still gone.
    Remove,
}

impl Job {
    fn version(&self) -> Version {
        match &self.what {
            Work::Read(seen) => Version::File(seen.state),
            Work::SetAside(error) => Version::Problem(error.reason.clone()),
            Work::Remove => Version::Gone,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plan {
    listing: Arc<Listing>,
    watching: Watching,
    /// By URI, so that what lies below a folder lies together.
    documents: BTreeMap<String, Document>,
    /// Paths that will be looked at, and what was there when they were last.
    waiting: HashMap<Arc<Path>, Option<Version>>,
    schedule: BTreeSet<(Instant, Arc<Path>)>,
    /// What was seen before at the paths that are being looked at.
    looking: HashMap<PathBuf, Option<Version>>,
    /// Rested files that the ledger has not been asked about.
    unchecked: VecDeque<Job>,
    /// Removals and dead letters.
    quick: VecDeque<Job>,
    reads: VecDeque<Job>,
    /// Documents that a job is under way for.
    busy: HashSet<String>,
    scan_began: Option<Instant>,
    next_listing: Instant,
    /// No listing before that.
    pause_until: Instant,
    root: RootState,
    /// Whether what is not found is gone. It is not where nothing was found since
    /// the start: the folder may be waiting for its disk.
    trusts_absence: bool,
    /// Whether it is however often the folder goes.
    removes_all: bool,
}

/// What the last listing says of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootState {
    There,
    /// It is gone, or cannot be listed.
    Lost,
    /// It has held no file since the start, and earlier runs have stored some.
    Empty,
}

impl Plan {
    /// Begins with a listing of everything. `known` are the URIs that earlier
    /// runs have stored or set aside. If `removes_all`, they are removed even where
    /// nothing at all is found.
    pub(super) fn new(
        listing: Arc<Listing>,
        watching: Watching,
        known: impl IntoIterator<Item = String>,
        removes_all: bool,
        now: Instant,
    ) -> Self {
        let own = known.into_iter();
        let own = own.filter(|uri| is_at_or_below(uri, &listing.uri));
        let stored = || Document {
            is_stored: true,
            ..Document::default()
        };
        let documents: BTreeMap<String, Document> = own.map(|uri| (uri, stored())).collect();
        Self {
            trusts_absence: removes_all || documents.is_empty(),
            removes_all,
            documents,
            listing,
            watching,
            waiting: HashMap::new(),
            schedule: BTreeSet::new(),
            looking: HashMap::new(),
            unchecked: VecDeque::new(),
            quick: VecDeque::new(),
            reads: VecDeque::new(),
            busy: HashSet::new(),
            scan_began: None,
            next_listing: now,
            pause_until: now,
            root: RootState::There,
        }
    }

    /// Something happened at `path`.
    pub(super) fn event(&mut self, now: Instant, path: &Path) {
        if path == self.listing.root || self.waiting.len() >= MAX_WAITING {
            self.list_soon(now);
        } else {
            self.wait(path, None, now + self.watching.rest);
        }
    }

    /// Something happened, and nobody knows where.
    pub(super) fn list_soon(&mut self, now: Instant) {
        let soon = (now + self.watching.rest).max(self.pause_until);
        self.next_listing = self.next_listing.min(soon);
    }

    /// What to find out next, if nothing is being found out.
    pub(super) fn next_scan(&mut self, now: Instant) -> Option<Scan> {
        if self.scan_began.is_some() {
            return None;
        }
        let scan = if self.next_listing <= now {
            Scan::Everything
        } else if self.schedule.first().is_some_and(|(due, _)| *due <= now) {
            self.look(now)
        } else if self.unchecked.is_empty() {
            return None;
        } else {
            let n_jobs = self.unchecked.len().min(BATCH);
            Scan::Check(self.unchecked.drain(..n_jobs).collect())
        };
        self.scan_began = Some(now);
        Some(scan)
    }

    fn look(&mut self, now: Instant) -> Scan {
        let mut paths = Vec::new();
        while paths.len() < BATCH {
            let Some((due, path)) = self.schedule.pop_first() else {
                break;
            };
            if due > now {
                self.schedule.insert((due, path));
                break;
            }
            let seen = self.waiting.remove(&path).flatten();
            self.looking.insert(path.to_path_buf(), seen);
            paths.push(path.to_path_buf());
        }
        // A name that is not UTF-8 may be written like another file's, which
        // only a listing of everything finds out.
        if paths.iter().any(|path| path.to_str().is_none()) {
            return Scan::Everything;
        }
        Scan::Look(paths)
    }

    /// When to ask again, should nothing happen before.
    pub(super) fn wake_at(&self) -> Instant {
        let due = self.schedule.first().map(|(due, _)| *due);
        due.map_or(self.next_listing, |due| due.min(self.next_listing))
    }

    /// Everything was listed, or the root is gone. Returns the state of the root
    /// if it has changed.
    pub(super) fn listed(&mut self, now: Instant, listed: Option<Listed>) -> Option<RootState> {
        let took = self.scan_ended(now);
        let root = match &listed {
            None => RootState::Lost,
            Some(listed) if !self.trusts_absence && !listed.has_files() => RootState::Empty,
            Some(_) => RootState::There,
        };
        // Everything was listed: there is nothing that a further listing would find.
        self.trusts_absence |= root == RootState::There;
        // What comes back in its place may be the folder that waits for its disk.
        self.trusts_absence &= root != RootState::Lost || self.removes_all;
        let before = std::mem::replace(&mut self.root, root);
        let rescan = match root {
            RootState::There => self.watching.rescan,
            RootState::Lost | RootState::Empty => self.watching.rescan.min(ROOT_CHECK),
        };
        self.next_listing = now + rescan.max(took * RESCAN_PAUSE);
        if let Some(listed) = listed {
            self.pause_until = now + took * RESCAN_PAUSE;
            let place = self.listing.uri.clone();
            self.take_in(now, &place, listed);
        } else {
            self.forget_what_seems_gone();
        }
        self.looking.clear();
        (before != root).then_some(root)
    }

    /// The paths of [`Scan::Look`] were looked at; `None` if the root is gone,
    /// so that what is missing says nothing.
    pub(super) fn looked(&mut self, now: Instant, seen: Option<Vec<(PathBuf, Observed)>>) {
        self.scan_ended(now);
        if seen.is_none() {
            self.forget_what_seems_gone();
            self.next_listing = now;
        }
        for (path, observed) in seen.into_iter().flatten() {
            let uri = self.listing.uri_of(&path);
            match observed {
                Observed::There(listed) => self.take_in(now, &uri, listed),
                Observed::Unclear => self.list_soon(now),
                Observed::Nothing => self.nothing_at(now, &path, &uri),
            }
        }
        self.looking.clear();
    }

    /// The ledger was asked about these; `true` for what is done as it is.
    pub(super) fn checked(&mut self, now: Instant, jobs: Vec<(Job, bool)>) {
        self.scan_ended(now);
        for (job, is_done) in jobs {
            if !is_done {
                self.reads.push_back(job);
            } else if let Some(document) = self.documents.get_mut(&job.uri) {
                document.handled = Some(job.version());
                document.queued.take_if(|queued| *queued == job.version());
                document.is_stored = true;
            }
        }
    }

    /// What to do next; several jobs may be under way, each for another document.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        for queue in [&mut self.quick, &mut self.reads] {
            let mut place = 0;
            while let Some(job) = queue.get(place) {
                let document = self.documents.get(&job.uri);
                let is_wanted = document
                    .and_then(|document| document.queued.as_ref())
                    .is_some_and(|queued| *queued == job.version());
                if !is_wanted {
                    queue.remove(place); // Something newer was seen since.
                } else if self.busy.contains(&job.uri) {
                    place += 1;
                } else {
                    self.busy.insert(job.uri.clone());
                    return queue.remove(place);
                }
            }
        }
        None
    }

    /// A job has ended. If it was not `carried_out`, things were no longer as
    /// they had been seen.
    pub(super) fn done(&mut self, now: Instant, job: &Job, carried_out: bool) {
        self.busy.remove(&job.uri);
        let Some(document) = self.documents.get_mut(&job.uri) else {
            return;
        };
        let version = job.version();
        let is_latest = document.queued.take_if(|queued| *queued == version);
        if !carried_out {
            self.wait(&job.path, None, now + self.watching.rest);
        } else if version != Version::Gone {
            document.handled = Some(version);
            document.is_stored = true;
        } else if is_latest.is_some() {
            self.documents.remove(&job.uri);
        } else {
            // It came back while its rows were being removed.
            (document.handled, document.is_stored) = (None, false);
            self.wait(&job.path, None, now + self.watching.rest);
        }
    }

    fn scan_ended(&mut self, now: Instant) -> Duration {
        let began = self.scan_began.take().unwrap_or(now);
        now.saturating_duration_since(began)
    }

    /// Sees to it that `path` is looked at; what waits already keeps its time.
    fn wait(&mut self, path: &Path, seen: Option<Version>, due: Instant) {
        if !self.waiting.contains_key(path) {
            let path: Arc<Path> = path.into();
            self.schedule.insert((due, Arc::clone(&path)));
            self.waiting.insert(path, seen);
        }
    }

    /// Takes in all that is at `place` and below it.
    fn take_in(&mut self, now: Instant, place: &str, listed: Listed) {
        if !self.trusts_absence && listed.has_files() {
            self.trusts_absence = true;
            self.list_soon(now); // For what is missing elsewhere.
        }
        if self.trusts_absence {
            for uri in listed.missing(place, self.at_or_below(place)) {
                let document = self.documents.get(&uri);
                let odd_path = document.and_then(|document| document.odd_path.clone());
                if let Some(path) = odd_path.or_else(|| self.listing.path_of(&uri)) {
                    self.missing(now, uri, &path);
                }
            }
        }
        for found in listed.found {
            self.see(now, found);
        }
    }

    fn at_or_below(&self, place: &str) -> Vec<String> {
        let own = self.documents.get_key_value(place);
        let folder = format!("{}/", place.trim_end_matches('/'));
        let below = self.documents.range(folder.clone()..);
        let below = below.take_while(|(uri, _)| uri.starts_with(&folder));
        own.into_iter()
            .chain(below)
            .map(|(uri, _)| uri.clone())
            .collect()
    }

    fn see(&mut self, now: Instant, found: Found) {
        let Found { uri, path, file } = found;
        let (what, age) = match file {
            Ok(seen) => (Work::Read(seen), seen.state.age(seen.at)),
            Err(error) => (Work::SetAside(error), Duration::ZERO),
        };
        let job = Job { uri, path, what };
        let version = job.version();
        if let Some(document) = self.documents.get_mut(&job.uri) {
            if document.handled.as_ref() == Some(&version) {
                document.queued = None; // A removal that is no longer due.
                return;
            }
            if document.queued.as_ref() == Some(&version) {
                return;
            }
        }
        let before = self.looking.get(&job.path).and_then(Option::as_ref);
        let rest = self.watching.rest;
        if age < rest && before != Some(&version) {
            self.wait(&job.path, Some(version), now + rest.saturating_sub(age));
            return;
        }
        let document = self.documents.entry(job.uri.clone()).or_default();
        document.queued = Some(version);
        if job.path.to_str().is_none() {
            document.odd_path = Some(job.path.clone());
        }
        match job.what {
            Work::Read(_) => self.unchecked.push_back(job),
            _ => self.quick.push_back(job),
        }
    }

    /// A document is not where it was.
    fn missing(&mut self, now: Instant, uri: String, path: &Path) {
        let Some(document) = self.documents.get_mut(&uri) else {
            return;
        };
        if document.queued == Some(Version::Gone) {
            return;
        }
        if self.looking.get(path) != Some(&Some(Version::Gone)) {
            let due = now + self.watching.rest;
            self.wait(path, Some(Version::Gone), due);
        } else if document.is_stored || self.busy.contains(&uri) {
            document.queued = Some(Version::Gone);
            self.quick.push_back(Job {
                uri,
                path: path.to_owned(),
                what: Work::Remove,
            });
        } else {
            self.documents.remove(&uri); // It was never read.
        }
    }

    /// Nothing is at `path`: neither a file nor, if it was a folder, what was in it.
    fn nothing_at(&mut self, now: Instant, path: &Path, uri: &str) {
        if !self.trusts_absence {
            return;
        }
        let documents = self.at_or_below(uri);
        let before = self.looking.get(path).cloned().flatten();
        if documents.is_empty() {
            return;
        }
        if before != Some(Version::Gone) {
            let due = now + self.watching.rest;
            self.wait(path, Some(Version::Gone), due);
            return;
        }
        for uri in documents {
            let document = self.documents.get(&uri);
            let odd_path = document.and_then(|document| document.odd_path.clone());
            if let Some(path) = odd_path.or_else(|| self.listing.path_of(&uri)) {
                self.looking.insert(path.clone(), Some(Version::Gone));
                self.missing(now, uri, &path);
            }
        }
    }

    /// The root is gone, and everything with it: that says nothing about the files.
    fn forget_what_seems_gone(&mut self) {
        self.waiting.clear();
        self.schedule.clear();
        self.looking.clear();
        let documents = &mut self.documents;
        self.quick.retain(|job| {
            let is_removal = matches!(job.what, Work::Remove);
            if let (true, Some(document)) = (is_removal, documents.get_mut(&job.uri)) {
                document.queued.take_if(|queued| *queued == Version::Gone);
            }
            !is_removal
        });
    }
}

#[cfg(test)]
mod tests;

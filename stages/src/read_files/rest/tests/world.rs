//! A disk, a ledger and a clock for the plan: all made up.

use std::time::{SystemTime, UNIX_EPOCH};

use globset::GlobSet;

use super::super::*;
use crate::read_files::state::FileState;

const REST: Duration = Duration::from_secs(1);
const RESCAN: Duration = Duration::from_mins(1);
pub(super) const ROOT: &str = "/watched";

/// A disk, a ledger and a clock that are all made up, and a plan that is
/// carried out on them.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) began: Instant,
    pub(super) now: Instant,
    /// Size and time of change, since the beginning, of each file.
    pub(super) files: BTreeMap<String, (u64, Duration)>,
    /// Places that may not be read.
    pub(super) locked: Vec<String>,
    /// Files that the ledger knows as they are.
    pub(super) done: Vec<String>,
    pub(super) has_root: bool,
    /// How long a listing takes.
    pub(super) listing_takes: Duration,
    /// Jobs that were begun and are not carried out.
    pub(super) held_back: bool,
    pub(super) held: Vec<Job>,
    /// Versions of files whose rows there are.
    pub(super) rows: BTreeMap<String, (u64, Duration)>,
    pub(super) log: Vec<String>,
    pub(super) n_listings: usize,
    pub(super) n_looks: usize,
}

impl World {
    /// `known` are names of files in the ledger.
    pub(super) fn new(known: &[&str]) -> Self {
        let listing = Listing {
            root: ROOT.into(),
            uri: ROOT.into(),
            include: GlobSet::empty(),
            exclude: GlobSet::empty(),
            follow_links: false,
            clock: SystemTime::now,
        };
        let watching = Watching {
            rest: REST,
            rescan: RESCAN,
        };
        let known = known.iter().map(|name| format!("{ROOT}/{name}"));
        let now = Instant::now();
        Self {
            plan: Plan::new(Arc::new(listing), watching, known, false, now),
            began: now,
            now,
            files: BTreeMap::new(),
            locked: Vec::new(),
            done: Vec::new(),
            has_root: true,
            listing_takes: Duration::ZERO,
            held_back: false,
            held: Vec::new(),
            rows: BTreeMap::new(),
            log: Vec::new(),
            n_listings: 0,
            n_looks: 0,
        }
    }

    /// A world whose first listing is over, with these old files read.
    pub(super) fn with(names: &[&str]) -> Self {
        let mut world = Self::new(&[]);
        for name in names {
            world.put_old(name);
        }
        world.run(3.0);
        world.log.clear();
        world
    }

    /// Time since 1970: the world begins an hour later.
    pub(super) fn time(&self) -> Duration {
        Duration::from_hours(1) + (self.now - self.began)
    }

    pub(super) fn put_old(&mut self, name: &str) {
        self.files.insert(name.into(), (1, Duration::from_secs(7)));
    }

    /// Changes a file without telling.
    pub(super) fn put(&mut self, name: &str) {
        let time = self.time();
        let file = self.files.entry(name.into()).or_insert((0, time));
        *file = (file.0 + 1, time);
    }

    pub(super) fn event(&mut self, name: &str) {
        let path = Path::new(ROOT).join(name);
        self.plan.event(self.now, &path);
    }

    pub(super) fn write(&mut self, name: &str) {
        self.put(name);
        self.event(name);
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.files.remove(name);
        self.event(name);
    }

    pub(super) fn found(&self, below: &str) -> Listed {
        let is_below = |name: &str| is_at_or_below(name, below) || below.is_empty();
        let mut listed = Listed::default();
        for place in self.locked.iter().filter(|place| is_below(place)) {
            let uri = format!("{ROOT}/{place}");
            listed.unseen.push(uri.clone());
            listed.found.push(Found {
                path: uri.clone().into(),
                uri,
                file: Err(ItemError::new("read", "reading it is not permitted")),
            });
        }
        let is_locked = |name: &str| self.locked.iter().any(|place| is_at_or_below(name, place));
        for (name, (n_bytes, changed)) in &self.files {
            if is_below(name) && !is_locked(name) {
                let uri = format!("{ROOT}/{name}");
                listed.found.push(Found {
                    path: uri.clone().into(),
                    uri,
                    file: Ok(Seen {
                        state: FileState::made_up(*n_bytes, *changed),
                        at: UNIX_EPOCH + self.time(),
                    }),
                });
            }
        }
        listed
    }

    pub(super) fn look(&self, path: &Path) -> Observed {
        let name = name_of(path.to_str().unwrap());
        let listed = self.found(name);
        if listed.found.is_empty() {
            Observed::Nothing
        } else {
            Observed::There(listed)
        }
    }

    pub(super) fn scan(&mut self, scan: Scan) {
        match scan {
            Scan::Everything => {
                self.n_listings += 1;
                self.now += self.listing_takes;
                let listed = self.has_root.then(|| self.found(""));
                if let Some(root) = self.plan.listed(self.now, listed) {
                    self.log.push(format!("the root is {root:?}"));
                }
            }
            Scan::Look(paths) => {
                self.n_looks += 1;
                let look = |path: PathBuf| {
                    let observed = self.look(&path);
                    (path, observed)
                };
                let seen = self.has_root.then(|| paths.into_iter().map(look).collect());
                self.plan.looked(self.now, seen);
            }
            Scan::Check(jobs) => {
                let check = |job: Job| {
                    let is_done = self.done.iter().any(|name| name == name_of(&job.uri));
                    (job, is_done)
                };
                let checked = jobs.into_iter().map(check).collect();
                self.plan.checked(self.now, checked);
            }
        }
    }

    pub(super) fn carry_out(&mut self, job: &Job) {
        let name = name_of(&job.uri).to_owned();
        let file = self.files.get(&name);
        let carried_out = match &job.what {
            Work::Read(seen) => {
                file.is_some_and(|(n, changed)| FileState::made_up(*n, *changed) == seen.state)
            }
            Work::Remove => file.is_none() && self.has_root,
            Work::SetAside(_) => true,
        };
        match (&job.what, file) {
            (Work::Read(_), Some(file)) if carried_out => {
                self.rows.insert(name.clone(), *file);
            }
            (Work::Remove, _) if carried_out => {
                self.rows.remove(&name);
            }
            _ => {}
        }
        let verb = match &job.what {
            Work::Read(_) => "read",
            Work::Remove => "remove",
            Work::SetAside(_) => "set aside",
        };
        let outcome = if carried_out { "" } else { " in vain" };
        self.log.push(format!("{verb} {name}{outcome}"));
        self.plan.done(self.now, job, carried_out);
    }

    /// Lets so many seconds pass.
    pub(super) fn run(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        loop {
            while let Some(scan) = self.plan.next_scan(self.now) {
                self.scan(scan);
            }
            while let Some(job) = self.plan.next_job() {
                if self.held_back {
                    self.held.push(job);
                } else {
                    self.carry_out(&job);
                }
            }
            let wake_at = self.plan.wake_at();
            if wake_at > end {
                self.now = self.now.max(end);
                return;
            }
            self.now = self.now.max(wake_at);
        }
    }

    pub(super) fn carry_out_held(&mut self) {
        self.held_back = false;
        for job in std::mem::take(&mut self.held) {
            self.carry_out(&job);
        }
    }

    /// What was done, in that order, since it was last asked for.
    pub(super) fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

pub(super) fn name_of(uri: &str) -> &str {
    uri.strip_prefix(ROOT).unwrap().trim_start_matches('/')
}

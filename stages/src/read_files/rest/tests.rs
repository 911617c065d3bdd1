use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use globset::GlobSet;

use super::*;
use crate::read_files::state::FileState;

const REST: Duration = Duration::from_secs(1);
const RESCAN: Duration = Duration::from_mins(1);
const ROOT: &str = "/watched";

/// A disk, a ledger and a clock that are all made up, and a plan that is
/// carried out on them.
struct World {
    plan: Plan,
    began: Instant,
    now: Instant,
    /// Size and time of change, since the beginning, of each file.
    files: BTreeMap<String, (u64, Duration)>,
    /// Places that may not be read.
    locked: Vec<String>,
    /// Files that the ledger knows as they are.
    done: Vec<String>,
    has_root: bool,
    /// How long a listing takes.
    listing_takes: Duration,
    /// Jobs that were begun and are not carried out.
    held_back: bool,
    held: Vec<Job>,
    /// Versions of files whose rows there are.
    rows: BTreeMap<String, (u64, Duration)>,
    log: Vec<String>,
    n_listings: usize,
    n_looks: usize,
}

impl World {
    /// `known` are names of files in the ledger.
    fn new(known: &[&str]) -> Self {
        let listing = Listing {
            root: ROOT.into(),
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
            plan: Plan::new(Arc::new(listing), watching, known, now),
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
    fn with(names: &[&str]) -> Self {
        let mut world = Self::new(&[]);
        for name in names {
            world.put_old(name);
        }
        world.run(3.0);
        world.log.clear();
        world
    }

    /// Time since 1970: the world begins an hour later.
    fn time(&self) -> Duration {
        Duration::from_hours(1) + (self.now - self.began)
    }

    fn put_old(&mut self, name: &str) {
        self.files.insert(name.into(), (1, Duration::from_secs(7)));
    }

    /// Changes a file without telling.
    fn put(&mut self, name: &str) {
        let time = self.time();
        let file = self.files.entry(name.into()).or_insert((0, time));
        *file = (file.0 + 1, time);
    }

    fn event(&mut self, name: &str) {
        let path = Path::new(ROOT).join(name);
        self.plan.event(self.now, &path);
    }

    fn write(&mut self, name: &str) {
        self.put(name);
        self.event(name);
    }

    fn delete(&mut self, name: &str) {
        self.files.remove(name);
        self.event(name);
    }

    fn found(&self, below: &str) -> Listed {
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

    fn look(&self, path: &Path) -> Observed {
        let name = name_of(path.to_str().unwrap());
        let listed = self.found(name);
        if listed.found.is_empty() {
            Observed::Nothing
        } else {
            Observed::There(listed)
        }
    }

    fn scan(&mut self, scan: Scan) {
        match scan {
            Scan::Everything => {
                self.n_listings += 1;
                self.now += self.listing_takes;
                let listed = self.has_root.then(|| self.found(""));
                if self.plan.listed(self.now, listed) {
                    self.log.push("news of the root".into());
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

    fn carry_out(&mut self, job: &Job) {
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
    fn run(&mut self, seconds: f64) {
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

    fn carry_out_held(&mut self) {
        self.held_back = false;
        for job in std::mem::take(&mut self.held) {
            self.carry_out(&job);
        }
    }

    /// What was done, in that order, since it was last asked for.
    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

fn name_of(uri: &str) -> &str {
    uri.strip_prefix(ROOT).unwrap().trim_start_matches('/')
}

#[test]
fn old_files_are_read_at_once_and_new_ones_when_they_have_rested() {
    let mut world = World::new(&[]);
    world.put_old("old.pdf");
    world.put("new.pdf");
    world.run(0.9);
    assert_eq!(world.log(), ["read old.pdf"]);
    world.run(0.2);
    assert_eq!(world.log(), ["read new.pdf"]);
    world.run(600.0);
    assert_eq!(world.log(), [""; 0]);
}

#[test]
fn what_the_ledger_knows_is_not_read() {
    let mut world = World::new(&["a.pdf", "b.pdf"]);
    world.put_old("a.pdf");
    world.put_old("b.pdf");
    world.done = vec!["a.pdf".into()];
    world.run(120.0);
    assert_eq!(world.log(), ["read b.pdf"]);
    // The ledger is not asked again for what has not changed since.
    world.done.clear();
    world.event("a.pdf");
    world.run(120.0);
    assert_eq!(world.log(), [""; 0]);
}

#[test]
fn a_file_that_is_being_written_waits_and_keeps_no_other_waiting() {
    let mut world = World::with(&[]);
    for second in 0..10 {
        world.write("slow.pdf");
        if second == 3 {
            world.write("quick.pdf");
        }
        world.run(0.5);
    }
    assert_eq!(world.log(), ["read quick.pdf"]);
    world.run(1.1);
    assert_eq!(world.log(), ["read slow.pdf"]);
}

#[test]
fn a_writer_that_pauses_longer_is_read_again_when_it_is_done() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.run(5.0);
    world.write("a.pdf");
    world.run(5.0);
    assert_eq!(world.log(), ["read a.pdf", "read a.pdf"]);
}

#[test]
fn a_file_whose_times_lie_ahead_rests_by_the_clock() {
    let mut world = World::with(&[]);
    let ahead = Duration::from_secs(1_000_000);
    world.files.insert("a.pdf".into(), (1, ahead));
    world.event("a.pdf");
    world.run(1.5);
    assert_eq!(world.log(), [""; 0]);
    world.run(1.0);
    assert_eq!(world.log(), ["read a.pdf"]);
}

#[test]
fn an_event_without_a_change_reads_nothing() {
    let mut world = World::with(&["a.pdf"]);
    world.event("a.pdf");
    world.event("never-was.pdf");
    world.run(10.0);
    assert_eq!(world.log(), [""; 0]);
    assert!(world.plan.documents.len() == 1 && world.plan.waiting.is_empty());
}

#[test]
fn a_deleted_file_is_removed_once_it_has_stayed_away() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.delete("a.pdf");
    world.run(1.5);
    assert_eq!(world.log(), [""; 0]);
    world.run(1.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
    world.run(120.0);
    assert_eq!(world.log(), [""; 0]);
    assert_eq!(world.plan.documents.len(), 1);
}

#[test]
fn what_was_deleted_while_nobody_looked_is_removed() {
    let mut world = World::new(&["a.pdf", "b.pdf"]);
    let listing = Arc::clone(&world.plan.listing);
    // `c.pdf` belongs to another folder.
    let known = ["/watched/a.pdf", "/watched/b.pdf", "/watched-too/c.pdf"];
    let known = known.map(str::to_owned);
    world.plan = Plan::new(listing, world.plan.watching, known, world.now);
    world.put_old("b.pdf");
    world.done = vec!["b.pdf".into()];
    world.run(3.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
}

#[test]
fn an_editor_that_replaces_a_file_removes_nothing() {
    let mut world = World::with(&["a.pdf"]);
    // It writes beside the file, moves the old one away and the new one there.
    world.write("a.pdf.new");
    world.run(0.2);
    world.delete("a.pdf");
    world.run(0.7);
    world.delete("a.pdf.new");
    world.write("a.pdf");
    world.run(10.0);
    assert_eq!(world.log(), ["read a.pdf"]);
}

#[test]
fn a_file_that_comes_and_goes_is_not_read_in_between() {
    let mut world = World::with(&[]);
    world.write("a.tmp");
    world.run(0.5);
    world.delete("a.tmp");
    world.run(10.0);
    assert_eq!(world.log(), [""; 0]);
    assert!(world.plan.documents.is_empty());
}

#[test]
fn a_file_with_a_new_name_is_read_and_its_old_name_removed() {
    let mut world = World::with(&["a.pdf"]);
    world.delete("a.pdf");
    world.write("b.pdf");
    world.run(10.0);
    assert_eq!(world.log(), ["read b.pdf", "remove a.pdf"]);
}

#[test]
fn folders_that_move_in_and_out_bring_and_take_their_files() {
    let mut world = World::with(&["in-1.pdf", "in/a.pdf", "in/deep/b.pdf", "inn.pdf"]);
    // The system tells of the folder only.
    world.files.remove("in/a.pdf");
    world.files.remove("in/deep/b.pdf");
    world.event("in");
    world.run(10.0);
    assert_eq!(world.log(), ["remove in/a.pdf", "remove in/deep/b.pdf"]);
    world.put_old("new/c.pdf");
    world.put("new/d.pdf");
    world.event("new");
    world.run(0.9);
    assert_eq!(world.log(), [""; 0]);
    world.run(1.2);
    assert_eq!(world.log(), ["read new/c.pdf", "read new/d.pdf"]);
}

#[test]
fn a_file_that_is_overwritten_while_it_is_read_is_read_again() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.held_back = true;
    world.run(2.0);
    world.put("a.pdf");
    world.carry_out_held();
    world.run(5.0);
    assert_eq!(world.log(), ["read a.pdf in vain", "read a.pdf"]);
}

#[test]
fn a_newer_version_waits_for_the_older_one_and_others_do_not() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.held_back = true;
    world.run(2.0);
    world.held_back = false;
    world.write("a.pdf");
    world.write("b.pdf");
    world.run(2.0);
    assert_eq!(world.log(), ["read b.pdf"]);
    world.carry_out_held();
    world.run(5.0);
    assert_eq!(world.log(), ["read a.pdf in vain", "read a.pdf"]);
}

#[test]
fn a_file_that_is_deleted_while_it_is_read_is_removed_afterwards() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.held_back = true;
    world.run(2.0);
    let file = world.files["a.pdf"];
    world.held_back = false;
    world.delete("a.pdf");
    world.run(3.0);
    assert_eq!(world.log(), [""; 0]);
    // It had been read before it was deleted.
    world.files.insert("a.pdf".into(), file);
    let job = world.held.pop().unwrap();
    world.plan.done(world.now, &job, true);
    world.files.remove("a.pdf");
    world.run(3.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
}

#[test]
fn a_file_that_comes_back_while_its_rows_are_removed_is_read_again() {
    let mut world = World::with(&["a.pdf"]);
    let file = world.files["a.pdf"];
    world.delete("a.pdf");
    world.held_back = true;
    world.run(3.0);
    world.files.insert("a.pdf".into(), file);
    world.event("a.pdf");
    world.held_back = false;
    world.run(3.0);
    let job = world.held.pop().unwrap();
    world.plan.done(world.now, &job, true);
    world.run(3.0);
    assert_eq!(world.log(), ["read a.pdf"]);
}

#[test]
fn a_removal_is_given_up_when_the_file_is_back_in_time() {
    let mut world = World::with(&["a.pdf"]);
    let file = world.files["a.pdf"];
    world.delete("a.pdf");
    world.held_back = true;
    world.run(3.0);
    world.files.insert("a.pdf".into(), file);
    world.carry_out_held();
    world.run(10.0);
    assert_eq!(world.log(), ["remove a.pdf in vain"]);
}

#[test]
fn a_burst_of_a_thousand_files_is_looked_at_in_few_goes() {
    let mut world = World::with(&[]);
    for _ in 0..5 {
        for n in 0..1000 {
            world.write(&format!("{n:04}.pdf"));
        }
        world.run(0.01);
    }
    world.run(5.0);
    let log = world.log();
    assert_eq!(
        (log.len(), &*log[0], &*log[999]),
        (1000, "read 0000.pdf", "read 0999.pdf")
    );
    assert!(world.n_looks <= 4, "{}", world.n_looks);
    assert_eq!(world.n_listings, 1);
}

#[test]
fn more_paths_than_can_wait_are_listed_instead() {
    let mut world = World::with(&[]);
    for n in 0..=MAX_WAITING {
        world.event(&n.to_string());
    }
    assert_eq!(world.plan.waiting.len(), MAX_WAITING);
    world.run(2.0);
    assert_eq!(world.n_listings, 2);
}

#[test]
fn what_the_system_did_not_tell_is_found_by_listing() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.put("a.pdf");
    world.files.remove("b.pdf");
    world.run(50.0);
    assert_eq!(world.log(), [""; 0]);
    world.run(15.0);
    assert_eq!(world.log(), ["read a.pdf", "remove b.pdf"]);
    // The system may say itself that it has lost something.
    world.put("c.pdf");
    world.plan.list_soon(world.now);
    world.run(3.0);
    assert_eq!(world.log(), ["read c.pdf"]);
}

#[test]
fn listing_a_large_folder_leaves_time_for_other_work() {
    let mut world = World::with(&[]);
    world.listing_takes = Duration::from_secs(30);
    let n_before = world.n_listings;
    for _ in 0..600 {
        world.plan.list_soon(world.now);
        world.run(1.0);
    }
    let n_listings = world.n_listings - n_before;
    assert!((3..=6).contains(&n_listings), "{n_listings}");
}

#[test]
fn a_root_that_is_gone_takes_no_rows_with_it() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.has_root = false;
    world.event("a.pdf");
    world.event("");
    world.run(600.0);
    assert_eq!(world.log(), ["news of the root"]);
    world.has_root = true;
    world.files.remove("a.pdf");
    world.put("b.pdf");
    world.run(10.0);
    assert_eq!(
        world.log(),
        ["news of the root", "read b.pdf", "remove a.pdf"]
    );
}

#[test]
fn a_root_that_goes_while_files_seem_deleted_takes_no_rows_with_it() {
    let mut world = World::with(&["a.pdf"]);
    world.delete("a.pdf");
    world.held_back = true;
    world.run(3.0);
    world.has_root = false;
    world.carry_out_held();
    world.run(20.0);
    assert_eq!(world.log(), ["remove a.pdf in vain", "news of the root"]);
}

#[test]
fn a_place_that_cannot_be_read_is_set_aside_once_and_keeps_its_rows() {
    let mut world = World::with(&["locked/a.pdf", "b.pdf"]);
    world.locked.push("locked".into());
    world.event("locked");
    world.run(600.0);
    assert_eq!(world.log(), ["set aside locked"]);
    world.locked.clear();
    world.event("locked");
    world.run(600.0);
    // Its letter goes, and what is in it is as it was.
    assert_eq!(world.log(), ["remove locked"]);
}

#[test]
fn a_name_that_is_not_utf8_is_followed_by_listing() {
    let mut world = World::with(&["a.pdf"]);
    let odd = Path::new(ROOT).join(OsStr::from_bytes(b"m\xfchle.pdf"));
    world.plan.event(world.now, &odd);
    world.run(5.0);
    assert_eq!((world.n_listings, world.n_looks), (2, 0));
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's linear congruential generator; its low bits are poor.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Does something to the disk, of which the system may fail to tell.
fn meddle(world: &mut World, dice: &mut Dice) {
    let folder = ["", "x/", "x/y/"][dice.roll(3) as usize];
    let name = format!("{folder}{}.pdf", dice.roll(4));
    let is_told = dice.roll(4) > 0;
    match dice.roll(10) {
        0..=3 => world.put(&name),
        4 | 5 => {
            world.files.remove(&name);
        }
        6 => {
            // A new name changes `ctime`.
            let new = format!("{}.pdf", dice.roll(4));
            if let Some((n_bytes, _)) = world.files.remove(&name) {
                world.files.insert(new.clone(), (n_bytes, world.time()));
                world.event(&new);
            }
        }
        7 => {
            world.files.retain(|name, _| !name.starts_with("x/"));
            world.event("x");
        }
        8 => world.has_root = dice.roll(2) == 0,
        _ => {
            if world.held_back {
                world.carry_out_held();
            } else {
                world.held_back = true;
            }
        }
    }
    if is_told {
        world.event(&name);
    }
}

#[test]
fn in_the_end_there_are_rows_of_what_is_there_and_of_nothing_else() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let mut world = World::new(&[]);
        for _ in 0..60 {
            meddle(&mut world, &mut dice);
            world.run(dice.roll(30) as f64 / 20.0);
        }
        world.has_root = true;
        world.carry_out_held();
        world.run(70.0);
        assert_eq!(world.rows, world.files, "seed {seed}");
        assert!(world.plan.busy.is_empty() && world.plan.waiting.is_empty());
        assert_eq!(world.plan.documents.len(), world.files.len());
    }
}

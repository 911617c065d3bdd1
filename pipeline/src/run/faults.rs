//! Tests what a run leaves behind when something goes wrong at any of its steps, or when it is
//! dropped or killed there: the next one makes good what is missing, and nothing that is durable
//! is made again.

use std::collections::BTreeSet;
use std::fs::File;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::test_kinds::{
    Faults, Place, RUNTIME, Ran, Strike, Tables, World, expected_rows, lock, mix, n_pages, uri,
};
use super::{RunControl, RunError};
use crate::{FeedAgain, Report};

/// A pipeline, and what its table holds in the end.
#[derive(Clone, Copy)]
struct Case {
    nodes: &'static str,
    n_documents: u32,
    n_parts: u32,
    marks: &'static str,
    tables: &'static [&'static str],
}

/// Source, one to many, batches, table.
const CHAIN: Case = Case {
    nodes: "[p.source.s]\nkind = 'papers'\nto = 5\n\
            [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
            [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nbatch = { max_items = 3 }\n\
            [p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'a'\n",
    n_documents: 5,
    n_parts: 1,
    marks: "a",
    tables: &["t"],
};

/// Two branches that join, and pages of several parts.
const DIAMOND: Case = Case {
    nodes: "[p.source.s]\nkind = 'papers'\nto = 4\n\
            [p.stage.p]\nkind = 'pages'\nparts = 2\ninput = 's'\nbatch = { max_items = 2 }\n\
            [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nbatch = { max_items = 2 }\n\
            [p.stage.b]\nkind = 'mark'\ntag = 'b'\ninput = 'p'\nedge = { max_items = 1 }\n\
            [p.sink.k]\nkind = 'table'\ntable = 't'\njoin = ['a', 'b']\n",
    n_documents: 4,
    n_parts: 2,
    marks: "ab",
    tables: &["t"],
};

/// Two tables of one chain.
const FORK: Case = Case {
    nodes: "[p.source.s]\nkind = 'papers'\nto = 4\n\
            [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
            [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nbatch = { max_items = 2 }\n\
            [p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'a'\n\
            [p.sink.l]\nkind = 'table'\ntable = 'u'\ncommit_every = 1\ninput = 'a'\n",
    n_documents: 4,
    n_parts: 1,
    marks: "a",
    tables: &["t", "u"],
};

impl Case {
    fn expected_rows(&self) -> Vec<String> {
        let numbers = 0..self.n_documents;
        let rows = numbers.flat_map(|n| expected_rows(n, 0, self.n_parts, self.marks));
        rows.collect()
    }

    /// Pages that must not be made again, as far as one table tells.
    fn durable_pages(&self, place: &Place) -> BTreeSet<(String, u32)> {
        if let [table] = self.tables {
            return place.durable_pages(self.n_documents, table);
        }
        // A document in one of two tables is made again for the other.
        let done = place.documents();
        let numbers = (0..self.n_documents).filter(|n| done.contains_key(&uri(*n)));
        let pages = numbers.flat_map(|n| (1..=n_pages(n)).map(move |page| (uri(n), page)));
        pages.collect()
    }

    /// Ledger and tables agree: what is done is there, and whole unless items
    /// of it were set aside.
    fn assert_agree(&self, place: &Place, at: &str) {
        for (uri, document) in place.documents() {
            for (sink, table) in ["k", "l"].iter().zip(self.tables) {
                let rows = place.tables.rows_of(table, document.id);
                let n_rows = document.rows().get(*sink).copied().unwrap_or(0);
                // Of what was resumed the ledger knows that it is there.
                assert_eq!(n_rows > 0, !rows.is_empty(), "{at}: {uri} in {table}");
                let number: u32 = uri[1..].parse().expect("its number");
                if document.n_dead == 0 {
                    let whole = expected_rows(number, 0, self.n_parts, self.marks);
                    assert_eq!(rows, whole, "{at}: {uri} in {table}");
                }
            }
        }
    }

    /// Runs undisturbed until nothing is left to do; then everything is as if
    /// nothing had happened.
    fn assert_recovers(&self, mut place: Place, at: &str) {
        self.assert_agree(&place, at);
        let durable = self.durable_pages(&place);
        let ran = place.run(self.nodes, World::new(&place.tables));
        ran.ended
            .as_ref()
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        let again: Vec<_> = ran.world.made().intersection(&durable).cloned().collect();
        assert!(again.is_empty(), "{at}: made again {again:?}");
        self.assert_agree(&place, at);
        let letters = place.letters();
        if !letters.is_empty() {
            let retry = |letter: crate::DeadLetter| FeedAgain {
                uri: letter.document,
                input: letter.input,
            };
            place.options.retries = Some(letters.into_iter().map(retry).collect());
            let ran = place.run(self.nodes, World::new(&place.tables));
            assert!(ran.ended.is_ok(), "{at}");
            assert!(place.letters().is_empty(), "{at}");
            place.options.retries = None;
        }
        for table in self.tables {
            assert_eq!(
                place.tables.rows(table),
                self.expected_rows(),
                "{at}: {table}"
            );
        }
        assert_eq!(place.n_staged(), 0, "{at}");
        self.assert_agree(&place, at);
        assert_eq!(place.documents().len(), self.n_documents as usize, "{at}");
        let ran = place.run(self.nodes, World::new(&place.tables));
        assert!(
            ran.world.made().is_empty(),
            "{at}: a run with nothing to do"
        );
    }

    /// Strikes at the step that stands `number`-th; false if the run has fewer.
    fn strike_at(&self, number: u64, panics: bool) -> bool {
        let place = Place::default();
        let strike = if panics { Strike::Panic } else { Strike::Break };
        let faults = Faults::new(number, strike);
        let ran = place.run(self.nodes, World::new(&place.tables).with_faults(faults));
        let Some(step) = ran.world.faults.struck_at() else {
            return false;
        };
        let at = format!("step {number}, {step}, panics: {panics}");
        self.assert_ended_so(&ran, &place, step, panics, &at);
        drop(ran);
        self.assert_recovers(place, &at);
        true
    }

    fn assert_ended_so(&self, ran: &Ran, place: &Place, step: &str, panics: bool, at: &str) {
        let is_of_stage = step.starts_with("pages") || step.starts_with("mark");
        let is_of_item = !step.ends_with("start") && !step.ends_with("finish");
        if panics && is_of_stage && is_of_item {
            let ended = ran.ended.as_ref();
            let report = ended.unwrap_or_else(|error| panic!("{at}: {error}"));
            let totals = &report.totals;
            let n_documents = totals.documents_done + totals.documents_set_aside;
            assert_eq!(n_documents, u64::from(self.n_documents), "{at}");
            assert!(
                place.letters().len() <= 1,
                "{at}: it costs one item at most"
            );
        } else {
            assert!(ran.ended.is_err(), "{at}");
        }
    }
}

/// Calls `work` with 0, 1, 2, ... on some threads until it is false.
fn on_threads(work: impl Fn(u64) -> bool + Sync) -> u64 {
    const N_THREADS: usize = 6;
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let run = || while work(next.fetch_add(1, Ordering::SeqCst)) {};
        let running: Vec<_> = (0..N_THREADS).map(|_| scope.spawn(run)).collect();
        for running in running {
            if let Err(panic) = running.join() {
                resume_unwind(panic);
            }
        }
    });
    next.load(Ordering::SeqCst) - N_THREADS as u64
}

#[test]
fn whatever_step_of_a_chain_panics_or_breaks_the_next_run_makes_it_good() {
    for panics in [true, false] {
        let n_steps = on_threads(|number| CHAIN.strike_at(number, panics));
        assert!(n_steps > 60, "{n_steps}");
    }
}

#[test]
fn whatever_step_of_a_diamond_panics_or_breaks_the_next_run_makes_it_good() {
    for panics in [true, false] {
        let n_steps = on_threads(|number| DIAMOND.strike_at(number, panics));
        assert!(n_steps > 60, "{n_steps}");
    }
}

#[test]
fn whatever_step_before_two_tables_panics_or_breaks_the_next_run_makes_it_good() {
    for panics in [true, false] {
        let n_steps = on_threads(|number| FORK.strike_at(number, panics));
        assert!(n_steps > 60, "{n_steps}");
    }
}

/// Many documents, for crashes.
const LONG: Case = Case {
    nodes: "[p.source.s]\nkind = 'papers'\nto = 60\n\
            [p.stage.p]\nkind = 'pages'\nparts = 2\nworkers = 2\ninput = 's'\n\
            [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nworkers = 2\n\
            batch = { max_items = 4 }\nedge = { max_items = 4 }\n\
            [p.sink.k]\nkind = 'table'\ntable = 't'\ncommit_every = 3\ninput = 'a'\n",
    n_documents: 60,
    n_parts: 2,
    marks: "a",
    tables: &["t"],
};

/// The same with two branches that join.
const LONG_DIAMOND: Case = Case {
    nodes: "[p.source.s]\nkind = 'papers'\nto = 60\n\
            [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
            [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nworkers = 2\n\
            [p.stage.b]\nkind = 'mark'\ntag = 'b'\ninput = 'p'\nbatch = { max_items = 3 }\n\
            [p.stage.c]\nkind = 'mark'\ntag = 'c'\njoin = ['a', 'b']\nworkers = 2\n\
            [p.sink.k]\nkind = 'table'\ntable = 't'\nstage_every = 1\ninput = 'c'\n",
    n_documents: 60,
    n_parts: 1,
    marks: "abc",
    tables: &["t"],
};

/// The same with two tables.
const LONG_FORK: Case = Case {
    nodes: "[p.source.s]\nkind = 'papers'\nto = 60\n\
            [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
            [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nbatch = { max_items = 3 }\n\
            [p.sink.k]\nkind = 'table'\ntable = 't'\nstage_every = 1\ninput = 'a'\n\
            [p.sink.l]\nkind = 'table'\ntable = 'u'\ncommit_every = 5\ninput = 'a'\n",
    n_documents: 60,
    n_parts: 1,
    marks: "a",
    tables: &["t", "u"],
};

/// What is left of a run that was killed.
struct Left {
    tables: Tables,
    ledger: String,
}

/// What came of a run that was to crash.
struct Crashed {
    /// Whether it came to the step.
    has_crashed: bool,
    made: BTreeSet<(String, u32)>,
}

/// Copies the ledger into the folder `to`, as it is at this moment.
fn copy_ledger(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    let ledger = rusqlite::Connection::open(from.join("p.db")).expect("it is there");
    let copy = to.join("p.db").display().to_string();
    ledger.execute("VACUUM INTO ?1", [copy]).expect("copied");
}

impl Case {
    /// Runs until the step that stands `number`-th, where the run is dropped,
    /// or killed: then all that stays is what was durable at that moment.
    fn crash_at(&self, place: &mut Place, number: u64, kills: bool) -> Crashed {
        let left: Arc<Mutex<Option<Left>>> = Arc::default();
        let old_ledger = place.folder.path().join(&place.ledger);
        let mut strike: Box<dyn Fn() + Send + Sync> = Box::new(|| {});
        if kills {
            let (tables, left) = (place.tables.clone(), Arc::clone(&left));
            let n_kills = place
                .ledger
                .split_once('-')
                .map_or(0, |(_, n)| n.parse().unwrap_or(0));
            let ledger = format!("ledger-{}", n_kills + 1_u32);
            let (from, to) = (old_ledger.clone(), place.folder.path().join(&ledger));
            strike = Box::new(move || {
                // The ledger first: what it tells of is in the tables then.
                copy_ledger(&from, &to);
                *lock(&left) = Some(Left {
                    tables: tables.snapshot(),
                    ledger: ledger.clone(),
                });
            });
        }
        let faults = Faults::new(number, Strike::Call(strike));
        let world = Arc::new(World::new(&place.tables).with_faults(faults));
        let pipeline = place.pipeline(self.nodes, &world);
        let control = RunControl::default();
        let has_crashed = RUNTIME.block_on(async {
            tokio::select! {
                biased;
                () = world.faults.has_struck.notified() => true,
                ended = pipeline.run(&control) => {
                    ended.expect("nothing went wrong");
                    false
                }
            }
        });
        drop(control);
        // Threads and tasks see after a while that the run was dropped.
        let ledger_lock = File::open(old_ledger.join("p.lock")).expect("it is there");
        while Arc::strong_count(&world) > 1 || ledger_lock.try_lock().is_err() {
            std::thread::yield_now();
        }
        drop(ledger_lock);
        if let Some(left) = lock(&left).take() {
            (place.tables, place.ledger) = (left.tables, left.ledger);
        }
        Crashed {
            has_crashed,
            made: world.made(),
        }
    }

    /// Crashes at random steps until everything is done; returns how often.
    fn crash(&self, seed: u64) -> u64 {
        const MAX_STEPS: u64 = 300;
        let (mut place, mut durable) = (Place::default(), BTreeSet::new());
        for n_crashes in 0.. {
            let random = mix(seed, n_crashes);
            let (number, kills) = (random % MAX_STEPS, random & (1 << 40) != 0);
            let at = format!("seed {seed}, crash {n_crashes} at step {number}, kills: {kills}");
            let crashed = self.crash_at(&mut place, number, kills);
            let again: Vec<_> = crashed.made.intersection(&durable).collect();
            assert!(again.is_empty(), "{at}: made again {again:?}");
            self.assert_agree(&place, &at);
            let before = std::mem::replace(&mut durable, self.durable_pages(&place));
            let lost: Vec<_> = before.difference(&durable).collect();
            assert!(lost.is_empty(), "{at}: no longer durable {lost:?}");
            if !crashed.has_crashed {
                self.assert_recovers(place, &at);
                return n_crashes;
            }
        }
        unreachable!("it counts for ever")
    }

    /// Crashes with so many seeds.
    fn crash_often(&self, n_seeds: u64) -> u64 {
        let n_crashes = AtomicU64::new(0);
        on_threads(|seed| {
            if seed < n_seeds {
                n_crashes.fetch_add(self.crash(seed), Ordering::SeqCst);
            }
            seed < n_seeds
        });
        n_crashes.into_inner()
    }
}

#[test]
fn a_run_that_crashes_goes_on_after_the_last_page_that_is_durable() {
    let n_crashes = LONG.crash_often(30);
    assert!(n_crashes > 200, "{n_crashes}");
}

#[test]
fn a_run_with_a_join_that_crashes_goes_on_after_the_last_page_that_is_durable() {
    let n_crashes = LONG_DIAMOND.crash_often(30);
    assert!(n_crashes > 200, "{n_crashes}");
}

#[test]
fn a_run_of_two_tables_that_crashes_comes_to_the_same_rows_in_both() {
    let n_crashes = LONG_FORK.crash_often(30);
    assert!(n_crashes > 200, "{n_crashes}");
}

#[test]
fn two_runs_of_overlapping_documents_do_not_disturb_each_other() {
    let nodes = |from: u32, to: u32| {
        LONG.nodes
            .replace("to = 60", &format!("from = {from}\nto = {to}"))
    };
    for _ in 0..5 {
        let place = Place::default();
        let run = |from, to| {
            let world = Arc::new(World::new(&place.tables));
            let pipeline = place.pipeline(&nodes(from, to), &world);
            async move { pipeline.run(&RunControl::default()).await }
        };
        let (one, other) = RUNTIME.block_on(async { tokio::join!(run(0, 40), run(20, 60)) });
        let n_done = |ended: Result<Report, RunError>| {
            let totals = ended.expect("neither breaks the other").totals;
            totals.documents_done + totals.documents_skipped
        };
        assert_eq!((n_done(one), n_done(other)), (40, 40));
        LONG.assert_recovers(place, "two runs");
    }
}

//! Tests what becomes of items that fail: retries, dead letters, and the end of the run.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::test_kinds::{Act, Place, World, lock};
use crate::StageError;

const SOURCE: &str = "[p.source.s]\nkind = 'papers'\nto = 4\n";
const TABLE: &str = "[p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'a'\n";

/// A stage that marks documents, with these keys of the engine.
fn marks(keys: &str) -> String {
    format!("{SOURCE}[p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 's'\n{keys}\n{TABLE}")
}

/// Does `act` with one item, the first `times` times.
fn at_first(label: &'static str, times: usize, act: Act) -> impl Fn(&str, &str) -> Act {
    let n_times: Mutex<HashMap<String, usize>> = Mutex::default();
    move |tag, item| {
        let mut n_times = lock(&n_times);
        let n = n_times.entry(format!("{tag} {item}")).or_default();
        *n += 1;
        if item == label && *n <= times {
            act
        } else {
            Act::Pass
        }
    }
}

/// Runs it with an item that `act` happens to, so many times; gives the rows.
fn run(place: &Place, keys: &str, times: usize, act: Act) -> (super::test_kinds::Ran, usize) {
    let world = World::new(&place.tables).with_hook(at_first("d002", times, act));
    let ran = place.run(&marks(keys), world);
    (ran, place.tables.rows("t").len())
}

const RETRY: &str = "on_error = 'retry'\nretry = { attempts = 2, base_ms = 0 }";

#[test]
fn an_item_that_fails_at_first_is_tried_again_alone() {
    for batch in ["", "batch = { max_items = 4, max_wait_ms = 1 }"] {
        let place = Place::default();
        let (ran, n_rows) = run(&place, &format!("{RETRY}\n{batch}"), 1, Act::SetAside);
        assert_eq!((n_rows, ran.counts("a")), (4, [4, 0, 1, 0]));
        assert!(place.letters().is_empty());
    }
}

#[test]
fn an_item_that_fails_each_time_is_set_aside_in_the_end() {
    let place = Place::default();
    let (ran, n_rows) = run(&place, RETRY, usize::MAX, Act::SetAside);
    assert_eq!((n_rows, ran.counts("a")), (3, [4, 0, 2, 1]));
    let letters = place.letters();
    assert_eq!(letters[0].error, "cannot mark `d002`: it is odd");
    assert_eq!(letters[0].input.as_deref(), Some("input 2"));
}

#[test]
fn what_breaks_a_stage_at_first_is_tried_again_and_nothing_leaves_twice() {
    for batch in ["", "batch = { max_items = 4, max_wait_ms = 1 }"] {
        let place = Place::default();
        let (ran, n_rows) = run(&place, &format!("{RETRY}\n{batch}"), 2, Act::Break);
        assert_eq!((n_rows, ran.counts("a")), (4, [4, 0, 2, 0]));
    }
}

#[test]
fn what_breaks_a_stage_each_time_stops_the_run() {
    let place = Place::default();
    let (ran, _) = run(&place, RETRY, usize::MAX, Act::Break);
    let error = ran.ended.expect_err("the pen is broken");
    assert_eq!(
        error.to_string(),
        "pipeline `p` stopped at `a`: the pen broke"
    );
    assert!(!place.documents().contains_key("d002"), "it is not done");
}

#[test]
fn a_panic_while_a_batch_is_tried_again_costs_the_item_alone() {
    let place = Place::default();
    let keys = format!("{RETRY}\nbatch = {{ max_items = 4, max_wait_ms = 1 }}");
    let broken = at_first("d001", 1, Act::Break);
    let world = World::new(&place.tables).with_hook(move |tag, item| match item {
        "d003" => Act::Panic,
        _ => broken(tag, item),
    });
    let ran = place.run(&marks(&keys), world);
    assert_eq!(place.tables.rows("t").len(), 3);
    assert_eq!(ran.counts("a")[3], 1);
}

#[test]
fn stop_stops_at_the_first_item_that_fails_and_says_what_to_do() {
    let place = Place::default();
    let (ran, _) = run(&place, "on_error = 'stop'", 1, Act::SetAside);
    let error = ran.ended.expect_err("it is to stop");
    let message = "pipeline `p` stopped at `a`: cannot mark `d002`: it is odd";
    assert_eq!(error.to_string(), message);
    let hint = "mend the document, or let `on_error` set such items aside";
    assert_eq!(error.error.hint(), Some(hint));
    assert!(place.letters().is_empty());
    assert!(!place.documents().contains_key("d002"), "it is not done");
}

#[test]
fn a_group_is_tried_again_as_a_whole_or_not_at_all() {
    let nodes = format!(
        "{SOURCE}[p.stage.p]\nkind = 'pages'\ninput = 's'\n\
         [p.stage.a]\nkind = 'book'\ninput = 'p'\n{RETRY}\n{TABLE}"
    );
    for (act, times, expected) in [
        (Act::Break, 1, (4, [10, 0, 1, 0])),
        (Act::SetAside, 1, (4, [10, 0, 1, 0])),
        (Act::SetAside, 9, (3, [10, 0, 2, 3])),
        (Act::Panic, 1, (3, [10, 0, 0, 1])),
    ] {
        let place = Place::default();
        let world = World::new(&place.tables).with_hook(at_first("d002", times, act));
        let ran = place.run(&nodes, world);
        let found = (place.tables.rows("t").len(), ran.counts("a"));
        assert_eq!(found, expected, "{act:?} {times} times");
    }
}

#[test]
fn a_sink_that_cannot_commit_at_first_tries_again_with_what_it_keeps() {
    // Of a commit when two documents are complete, and of the last one.
    for (to, n_failures) in [(4, 2), (1, 1)] {
        let place = Place::default();
        place
            .tables
            .with("t", |table| table.n_failures = n_failures);
        let nodes = marks("").replace("to = 4", &format!("to = {to}"));
        let ran = place.run(&format!("{nodes}{RETRY}\n"), World::new(&place.tables));
        assert_eq!(ran.counts("k")[2], u64::from(n_failures));
        // A sink has more to do at its end than to commit.
        assert_eq!(ran.world.n_finished.load(Ordering::SeqCst), 1);
        assert_eq!(place.tables.rows("t").len(), to);
        assert_eq!(place.documents().len(), to);
    }
}

#[test]
fn a_sink_that_can_never_commit_stops_the_run() {
    for keys in ["", RETRY] {
        let place = Place::default();
        place.tables.with("t", |table| table.n_failures = 100);
        let ran = place.run(&format!("{}{keys}\n", marks("")), World::new(&place.tables));
        let error = ran.ended.expect_err("the table is locked");
        assert_eq!(
            error.to_string(),
            "pipeline `p` stopped at `k`: the table is locked"
        );
        assert!(matches!(&error.error, StageError::Fatal { hint, .. } if hint == "unlock it"));
        assert!(place.documents().is_empty());
    }
}

#[test]
fn a_sink_that_joins_and_is_to_stop_stops_at_an_item_without_a_partner() {
    let nodes = format!(
        "{SOURCE}[p.stage.p]\nkind = 'pages'\ninput = 's'\n\
         [p.sink.k]\nkind = 'table'\ntable = 't'\njoin = ['s', 'p']\non_error = 'stop'\n"
    );
    let place = Place::default();
    let error = place.run(&nodes, World::new(&place.tables)).ended;
    let error = error.expect_err("a document is no page").to_string();
    assert!(error.contains("stopped at `k`: cannot join `d0"), "{error}");
}

#[test]
fn what_no_branch_takes_is_counted_where_it_left() {
    let place = Place::default();
    let nodes = marks("when = 'number != 2'\nelse = 'drop'");
    let ran = place.run(&nodes, World::new(&place.tables));
    assert_eq!(ran.counts("s"), [4, 1, 0, 0]);
    assert_eq!(place.tables.rows("t").len(), 3);
    // It is done all the same: nothing is to be stored of it.
    assert_eq!(place.documents().len(), 4);
}

#[test]
fn an_item_that_cannot_be_routed_is_set_aside_where_it_left() {
    let place = Place::default();
    let nodes = marks("when = '10 / number > 3'\nelse = 'drop'");
    let ran = place.run(&nodes, World::new(&place.tables));
    assert_eq!(ran.counts("s"), [4, 1, 0, 1]);
    assert_eq!(place.letters()[0].node, "s");
    assert_eq!(
        place.tables.rows("t"),
        ["d001 version 0 a", "d002 version 0 a"]
    );
}

//! Documents that are made from stored rows: which are, and that the rows equal those
//! of a run that makes everything from the sources.

mod refusals;

use std::collections::BTreeSet;

use super::test_kinds::{Act, Faults, Place, Ran, Strike, World, mix, uri};
use crate::DocumentId;

const SOURCE: &str = "[p.source.s]\nkind = 'papers'\nto = 5\nhas_states = true\n";

fn stage(name: &str, input: &str, settings: &str) -> String {
    format!("[p.stage.{name}]\ninput = {input}\n{settings}\n")
}

fn mark(name: &str, input: &str, tag: &str) -> String {
    stage(
        name,
        &format!("'{input}'"),
        &format!("kind = 'mark'\ntag = '{tag}'"),
    )
}

fn pages() -> String {
    stage("p", "'s'", "kind = 'pages'")
}

fn sink(name: &str, table: &str, input: &str) -> String {
    format!(
        "[p.sink.{name}]\nkind = 'table'\nhas_place = true\nreads_back = true\ntable = '{table}'\ninput = '{input}'\n"
    )
}

/// Pages with the mark `a`, and what follows.
fn nodes(rest: &str) -> String {
    format!("{SOURCE}{}{}{rest}", pages(), mark("a", "p", "a"))
}

fn run(place: &Place, nodes: &str) -> Ran {
    let ran = place.run(nodes, World::new(&place.tables));
    ran.report();
    ran
}

/// Runs it after a dry run, which foretells what is made from rows.
#[track_caller]
fn run_as_foretold(place: &Place, nodes: &str) -> Ran {
    let told = place.dry_run(nodes, World::new(&place.tables));
    let told = told.unwrap_or_else(|error| panic!("{nodes}\n{error}"));
    let ran = run(place, nodes);
    let totals = &ran.report().totals;
    assert_eq!(
        told.documents.from_rows, totals.documents_refilled,
        "{nodes}"
    );
    assert_eq!(told.pages, ran.world.made().len() as u64, "{nodes}");
    ran
}

/// Documents of which pages were made.
fn made(ran: &Ran) -> BTreeSet<String> {
    ran.world.made().into_iter().map(|(uri, _)| uri).collect()
}

fn all() -> BTreeSet<String> {
    (0..5).map(uri).collect()
}

/// The rows of a run that finds nothing.
fn fresh(nodes: &str, table: &str) -> Vec<String> {
    let place = Place::default();
    run(&place, nodes);
    place.tables.rows(table)
}

/// Runs one graph after the other; the second one makes no page, and its rows equal
/// those of a fresh run.
#[track_caller]
fn is_refilled(before: &str, after: &str) {
    let place = Place::default();
    run(&place, before);
    let ran = run_as_foretold(&place, after);
    assert_eq!(made(&ran), BTreeSet::new(), "{after}");
    assert_eq!(ran.report().totals.documents_refilled, 5);
    assert_eq!(place.tables.rows("t"), fresh(after, "t"), "{after}");
    // It is as after any run: nothing is left to do.
    let again = run(&place, after);
    assert_eq!(again.report().totals.documents_skipped, 5);
}

/// The same, where the second run makes every document from its source.
#[track_caller]
fn is_made_again(before: &str, after: &str) {
    let place = Place::default();
    run(&place, before);
    let ran = run_as_foretold(&place, after);
    assert_eq!(made(&ran), all(), "{after}");
    assert_eq!(ran.report().totals.documents_refilled, 0);
    assert_eq!(place.tables.rows("t"), fresh(after, "t"), "{after}");
}

#[test]
fn a_stage_that_is_added_at_the_end_renders_nothing() {
    let before = nodes(&sink("k", "t", "a"));
    is_refilled(
        &before,
        &nodes(&(mark("b", "a", "b") + &sink("k", "t", "b"))),
    );
    let split = stage("b", "'a'", "kind = 'split'\nparts = 3");
    is_refilled(&before, &nodes(&(split + &sink("k", "t", "b"))));
    let book = stage("b", "'a'", "kind = 'book'");
    is_refilled(&before, &nodes(&(book + &sink("k", "t", "b"))));
}

#[test]
fn a_later_stage_that_is_changed_or_removed_renders_nothing() {
    let marked = |tag| nodes(&(mark("b", "a", tag) + &mark("c", "b", "c") + &sink("k", "t", "c")));
    is_refilled(&marked("b"), &marked("x"));
    is_refilled(&marked("b"), &nodes(&sink("k", "t", "a")));
    // Behind what is changed, a condition, a join and a stage that splits.
    let rest = format!(
        "{}[p.stage.c]\nkind = 'mark'\ntag = 'c'\ninput = 'a'\nwhen = 'page < 3'\nelse = 'drop'\n\
         [p.stage.d]\nkind = 'mark'\ntag = 'd'\njoin = ['b', 'c']\nunmatched = 'pass'\n{}",
        mark("b", "a", "b"),
        stage("e", "'d'", "kind = 'split'\nparts = 2") + &sink("k", "t", "e"),
    );
    is_refilled(&marked("b"), &nodes(&rest));
}

#[test]
fn an_earlier_stage_that_is_changed_makes_every_document_again() {
    let after = |tag| {
        format!(
            "{SOURCE}{}{}{}",
            pages(),
            mark("a", "p", tag),
            sink("k", "t", "a")
        )
    };
    // The rows are items of `p` as well, which has not changed.
    is_refilled(&after("a"), &after("x"));
    let stubborn = after("a").replace("'pages'", "'pages'\nis_stubborn = true");
    is_made_again(&after("a"), &stubborn);
}

#[test]
fn rows_that_are_not_the_items_of_a_stage_make_every_document_again() {
    let whole = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    // Parts of pages are no pages.
    let split = |n| stage("c", "'a'", &format!("kind = 'split'\nparts = {n}"));
    let split = |n| nodes(&(split(n) + &sink("k", "t", "c")));
    is_made_again(&split(2), &split(3));
    is_made_again(&split(2), &whole);
    // Some of the pages are not all of them.
    let routed = sink("k", "t", "a") + "when = 'page < 3'\nelse = 'drop'\n";
    is_made_again(&nodes(&routed), &whole);
    // A join, and a union.
    let both = mark("b", "p", "b");
    let joined = both.clone() + &sink("k", "t", "a").replace("input = 'a'", "join = ['a', 'b']");
    is_made_again(&nodes(&joined), &whole);
    let union = both + &sink("k", "t", "a").replace("input = 'a'", "input = ['a', 'b']");
    is_made_again(&nodes(&union), &whole);
}

#[test]
fn documents_that_a_stage_brings_in_are_made_again_with_those_of_the_source() {
    let attach = |rest: &str| {
        let attach = stage("x", "'s'", "kind = 'attach'");
        let pages = pages().replace(
            "input = 's'",
            "input = 'x'\nwhen = 'number >= 0'\nelse = 'rest'",
        );
        let rest_of = mark("rest", "x", "r");
        format!("{SOURCE}{attach}{pages}{rest_of}{rest}")
    };
    let before = attach(&(mark("a", "p", "a") + &sink("k", "t", "a") + &sink("l", "u", "rest")));
    let after = attach(&(mark("a", "p", "b") + &sink("k", "t", "a") + &sink("l", "u", "rest")));
    is_made_again(&before, &after);
}

#[test]
fn two_sources_make_every_document_again() {
    let two = |rest: &str| {
        let pages = pages().replace("'s'", "['s', 'r']");
        let other = "[p.source.r]\nkind = 'papers'\nfrom = 9\nto = 9\n";
        format!("{SOURCE}{other}{pages}{}{rest}", mark("a", "p", "a"))
    };
    let before = two(&sink("k", "t", "a"));
    is_made_again(&before, &two(&(mark("b", "a", "b") + &sink("k", "t", "b"))));
}

#[test]
fn documents_with_dead_letters_or_other_content_are_made_again() {
    let place = Place::default();
    let before = nodes(&sink("k", "t", "a"));
    let odd = |tag: &str, item: &str| match (tag, item) {
        ("a", "d003#2") => Act::SetAside,
        _ => Act::Pass,
    };
    place
        .run(&before, World::new(&place.tables).with_hook(odd))
        .report();
    place
        .tables
        .with("t", |table| table.remove_row(DocumentId::of(&uri(1))));
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    let ran = run(&place, &after);
    assert_eq!(made(&ran), BTreeSet::from([uri(1), uri(3)]));
    assert_eq!(place.tables.rows("t"), fresh(&after, "t"));
    assert!(place.letters().is_empty());
    let changed = before.replace("to = 5", "to = 5\nversion = 1");
    assert_eq!(made(&run(&place, &changed)), all());
}

#[test]
fn a_ledger_that_was_lost_knows_no_whole_documents() {
    let place = Place::default();
    run(&place, &nodes(&sink("k", "t", "a")));
    std::fs::remove_dir_all(place.folder.path().join("ledger")).expect("removed");
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    assert_eq!(made(&run(&place, &after)), all());
}

#[test]
fn an_added_sink_is_filled_from_the_table_of_another() {
    let place = Place::default();
    run(&place, &nodes(&sink("k", "t", "a")));
    let version = |table: &str| place.tables.with(table, |table| table.version());
    let before = version("t");
    let two = nodes(&(sink("k", "t", "a") + &mark("b", "a", "b") + &sink("l", "u", "b")));
    assert_eq!(made(&run(&place, &two)), BTreeSet::new());
    assert_eq!(place.tables.rows("u"), fresh(&two, "u"));
    assert_eq!(version("t"), before);
    // What it gets comes from in front of the stage whose items the rows are.
    let three = two.clone() + &mark("c", "p", "c") + &sink("m", "v", "c");
    let ran = run(&place, &three);
    assert_eq!(made(&ran), BTreeSet::new());
    assert_eq!(place.tables.rows("v"), fresh(&three, "v"));
    assert_eq!(made(&run(&place, &three)), BTreeSet::new());
}

#[test]
fn new_dead_letters_of_later_stages_are_written_and_counted() {
    let place = Place::default();
    run(&place, &nodes(&sink("k", "t", "a")));
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    let odd = |tag: &str, item: &str| match (tag, item) {
        ("b", "d003#2") => Act::SetAside,
        _ => Act::Pass,
    };
    let ran = place.run(&after, World::new(&place.tables).with_hook(odd));
    assert_eq!(ran.report().totals.documents_refilled, 5);
    assert_eq!(place.documents()[&uri(3)].n_dead, 1);
    // Its rows are not whole any more.
    let third = nodes(&(mark("b", "a", "x") + &sink("k", "t", "b")));
    assert_eq!(made(&run(&place, &third)), BTreeSet::from([uri(3)]));
    assert_eq!(place.tables.rows("t"), fresh(&third, "t"));
}

#[test]
fn a_run_that_is_stopped_anywhere_goes_on_with_the_rows_of_an_undisturbed_one() {
    let before = nodes(&sink("k", "t", "a"));
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    let expected = fresh(&after, "t");
    for number in 0.. {
        let place = Place::default();
        run(&place, &before);
        let faults = Faults::new(number, Strike::Break);
        let world = World::new(&place.tables).with_faults(faults);
        let struck = place.run(&after, world).world.faults.struck_at();
        run(&place, &after);
        assert_eq!(place.tables.rows("t"), expected, "{number}: {struck:?}");
        if struck.is_none() {
            assert!(number > 20, "{number} steps");
            break;
        }
    }
}

#[test]
fn rows_of_random_changes_equal_those_of_fresh_runs() {
    let mut n_refilled = 0;
    for seed in 0..60 {
        let place = Place::default();
        let mut graph = random_graph(mix(seed, 0));
        run(&place, &graph);
        for step in 1..4 {
            graph = random_graph(mix(seed, step));
            let ran = run_as_foretold(&place, &graph);
            n_refilled += ran.report().totals.documents_refilled;
            let rows = place.tables.rows("t");
            assert_eq!(
                rows,
                fresh(&graph, "t"),
                "seed {seed}, step {step}\n{graph}"
            );
        }
    }
    assert!(n_refilled > 100, "{n_refilled} documents");
}

/// Pages, and up to five stages of few different kinds behind them.
fn random_graph(seed: u64) -> String {
    let mut graph = format!("{SOURCE}{}", pages());
    let (mut last, mut n_draws) = ("p".to_owned(), 0);
    let mut draw = |n: u64| {
        n_draws += 1;
        mix(seed, n_draws) % n
    };
    let mut is_split = false;
    for number in 0..draw(5) {
        let name = format!("n{number}");
        match draw(6) {
            0 if !is_split => {
                is_split = true;
                let settings = format!("kind = 'split'\nparts = {}", 1 + draw(2));
                graph += &stage(&name, &format!("'{last}'"), &settings);
            }
            1 => {
                let (left, right) = (format!("l{number}"), format!("r{number}"));
                graph += &mark(&left, &last, "l");
                graph += &mark(&right, &last, "r");
                if draw(2) == 0 {
                    graph += "when = 'page < 3'\nelse = 'drop'\n";
                }
                graph += &format!(
                    "[p.stage.{name}]\nkind = 'mark'\ntag = 'j'\njoin = ['{left}', '{right}']\n\
                     unmatched = 'pass'\n"
                );
            }
            _ => graph += &mark(&name, &last, ["a", "b"][draw(2) as usize]),
        }
        last = name;
    }
    graph + &sink("k", "t", &last)
}

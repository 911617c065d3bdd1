//! Tests what a run keeps that drains in the middle of a document, and what the next run then
//! makes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::RunControl;
use super::test_kinds::{Act, Faults, Place, RUNTIME, Ran, Strike, World, lock, uri};
use crate::{Ledger, StopReason};

const N_PAGES: u32 = 40;

/// One document of [`N_PAGES`] pages, in two tables, one of which stages slowly.
fn fork(source: &str) -> String {
    format!(
        "[p.source.s]\nkind = 'papers'\nto = 1\n{source}\n\
         [p.stage.p]\nkind = 'pages'\nn_pages = {N_PAGES}\nparts = 2\ninput = 's'\n\
         edge = {{ max_items = 1 }}\n\
         [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\nedge = {{ max_items = 4 }}\n\
         [p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'a'\nedge = {{ max_items = 1 }}\n\
         [p.sink.l]\nkind = 'table'\ntable = 'u'\nstage_every = 7\ninput = 'a'\n"
    )
}

/// The same with two branches that join in front of one table.
fn diamond() -> String {
    fork("")
        .replace("[p.sink.l]", "[p.stage.b]")
        .replace(
            "kind = 'table'\ntable = 'u'\nstage_every = 7\ninput = 'a'",
            "kind = 'mark'\ntag = 'b'\ninput = 'p'\nedge = { max_items = 3 }",
        )
        .replace("table = 't'\ninput = 'a'", "table = 't'\njoin = ['a', 'b']")
}

/// Runs, and drains while page `page` of the first document is made.
fn drain_at(place: &Place, nodes: &str, page: u32, faults: Faults) -> Ran {
    drain_with(place, nodes, page, faults, |_, _| Act::Pass)
}

/// The same, with a hook of the test.
fn drain_with(
    place: &Place,
    nodes: &str,
    page: u32,
    faults: Faults,
    hook: fn(&str, &str) -> Act,
) -> Ran {
    let control = RunControl::default();
    // The run's end, and not that of the hook, frees the ledger for the next run.
    let drained = Arc::new(Mutex::new(Some(control.clone())));
    let (to_drain, label) = (Arc::clone(&drained), format!("{}#{page}.1", uri(0)));
    let world = World::new(&place.tables).with_faults(faults);
    let world = Arc::new(world.with_hook(move |stage, item| {
        if stage == "pages"
            && item == label
            && let Some(control) = &*lock(&to_drain)
        {
            control.drain();
        }
        hook(stage, item)
    }));
    let pipeline = place.pipeline(nodes, &world);
    let ended = RUNTIME.block_on(pipeline.run(&control));
    lock(&drained).take();
    Ran { ended, world }
}

/// The pages that were made, each as often as it was.
fn made(ran: &Ran) -> Vec<u32> {
    lock(&ran.world.made)
        .iter()
        .map(|(_, page)| *page)
        .collect()
}

/// The pages of the first document that are durable while it is unfinished.
fn staged(place: &Place) -> BTreeSet<u32> {
    let ledger = Ledger::open(&place.folder.path().join("ledger"), "p").expect("opened");
    let unfinished = ledger.unfinished().expect("readable");
    unfinished
        .into_iter()
        .flat_map(|(_, pages)| pages)
        .collect()
}

fn undisturbed(nodes: &str) -> Vec<String> {
    let place = Place::default();
    place.run(nodes, World::new(&place.tables));
    place.tables.rows("t")
}

#[test]
fn a_drained_run_stops_after_the_page_it_is_sending_and_keeps_those_it_sent() {
    for nodes in [fork(""), diamond()] {
        let place = Place::default();
        let mut n_made = 0;
        for page in [10, 11, 25] {
            let ran = drain_at(&place, &nodes, page, Faults::default());
            assert_eq!(made(&ran), (n_made + 1..=page).collect::<Vec<_>>());
            n_made = page;
            assert_eq!(staged(&place), (1..=page).collect());
            assert!(place.tables.rows("t").is_empty());
            let report = ran.report();
            assert_eq!(report.stopped, StopReason::Drained);
            let totals = &report.totals;
            let unfinished = (totals.documents_unfinished, totals.pages_unfinished);
            assert_eq!(unfinished, (1, page.into()));
            assert_eq!((totals.documents_done, totals.dead_letters), (0, 0));
        }
        let ran = place.run(&nodes, World::new(&place.tables));
        assert_eq!(made(&ran), (26..=N_PAGES).collect::<Vec<_>>());
        let totals = &ran.report().totals;
        assert_eq!((totals.documents_done, totals.documents_unfinished), (1, 0));
        assert_eq!(totals.pages_resumed, 25);
        let expected = undisturbed(&nodes);
        assert_eq!(expected.len(), 2 * N_PAGES as usize);
        assert_eq!(place.tables.rows("t"), expected);
        assert_eq!(place.n_staged(), 0);
    }
}

#[test]
fn the_old_rows_stay_until_a_run_finishes_the_document() {
    let place = Place::default();
    place.run(&fork(""), World::new(&place.tables));
    let old = place.tables.rows("t");
    let changed = fork("version = 1");
    drain_at(&place, &changed, 3, Faults::default());
    assert_eq!(place.tables.rows("t"), old);
    // The ledger goes on with what it knew.
    assert!(place.documents().contains_key(&uri(0)));
    place.run(&changed, World::new(&place.tables));
    assert_eq!(place.tables.rows("t"), undisturbed(&changed));
}

#[test]
fn documents_that_are_not_begun_are_left_to_the_next_run() {
    let place = Place::default();
    let many = fork("").replace("to = 1", "to = 30");
    let ran = drain_at(&place, &many, 2, Faults::default());
    assert_eq!(made(&ran), [1, 2]);
    let totals = &ran.report().totals;
    assert!(totals.documents_unfinished >= 1, "{totals:?}");
    assert_eq!(totals.documents_under_way, 0);
    assert_eq!(totals.pages_unfinished, 2);
    place.run(&many, World::new(&place.tables));
    assert_eq!(place.tables.rows("t"), undisturbed(&many));
}

#[test]
fn a_document_of_which_all_pages_are_sent_is_finished() {
    let place = Place::default();
    let ran = drain_at(&place, &fork(""), N_PAGES, Faults::default());
    let totals = &ran.report().totals;
    assert_eq!((totals.documents_done, totals.documents_unfinished), (1, 0));
    assert_eq!(place.tables.rows("t"), undisturbed(&fork("")));
}

#[test]
fn a_document_that_no_run_could_go_on_with_is_finished() {
    let place = Place::default();
    let book = "[p.stage.b]\nkind = 'book'\ninput = 'p'\n\
                [p.sink.m]\nkind = 'table'\ntable = 'v'\ninput = 'b'\n";
    for nodes in [
        fork("is_once_only = true"),
        fork("").replace("table = 'u'", "table = 'u'\nkeeps_no_pages = true"),
        fork("") + book,
    ] {
        place.tables.clear("t");
        place.tables.clear("u");
        let ran = drain_at(&place, &nodes, 10, Faults::default());
        assert_eq!(made(&ran).len(), N_PAGES as usize, "{nodes}");
        let totals = &ran.report().totals;
        assert_eq!((totals.documents_done, totals.documents_unfinished), (1, 0));
    }
}

#[test]
fn a_page_that_was_set_aside_is_not_made_again_after_the_drain() {
    let place = Place::default();
    drain_with(
        &place,
        &fork(""),
        10,
        Faults::default(),
        |stage, item| match (stage, item) {
            ("a", "d000#4.1" | "d000#4.2") => Act::SetAside,
            _ => Act::Pass,
        },
    );
    assert_eq!(staged(&place), (1..=10).collect());
    let ran = place.run(&fork(""), World::new(&place.tables));
    assert_eq!(made(&ran), (11..=N_PAGES).collect::<Vec<_>>());
    assert_eq!(place.letters().len(), 2);
    assert_eq!(place.documents()[&uri(0)].n_dead, 2);
    assert_eq!(place.tables.rows("t").len(), 2 * N_PAGES as usize - 2);
}

#[test]
fn a_drained_run_that_breaks_at_any_step_leaves_what_the_next_one_needs() {
    for nodes in [fork(""), diamond()] {
        let expected = undisturbed(&nodes);
        let mut at = 0;
        loop {
            let place = Place::default();
            let first = drain_at(&place, &nodes, 4, Faults::new(at, Strike::Break));
            let Some(step) = first.world.faults.struck_at() else {
                break;
            };
            let durable = staged(&place);
            let ran = place.run(&nodes, World::new(&place.tables));
            let made: BTreeSet<u32> = made(&ran).into_iter().collect();
            assert!(made.is_disjoint(&durable), "{step} {at}: {durable:?}");
            let rows = place.tables.rows("t");
            assert_eq!(rows, expected, "{step} {at}");
            at += 1;
        }
        assert!(at > 20, "{at}");
    }
}

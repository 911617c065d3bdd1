//! Tests what a run takes over from earlier ones: what it passes over, replaces, removes, and goes
//! on with.

use std::collections::BTreeSet;

use super::RunOptions;
use super::test_kinds::{Act, Faults, Place, Strike, World, expected_rows, lock, uri};
use crate::{DocumentId, FeedAgain, Ledger};

/// A source with these settings, pages, and a table.
fn pages(source: &str, table: &str) -> String {
    format!(
        "[p.source.s]\nkind = 'papers'\n{source}\n\
         [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
         [p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'p'\n{table}\n"
    )
}

fn rows(numbers: &[u32], version: u32) -> Vec<String> {
    let numbers = numbers.iter();
    numbers
        .flat_map(|number| expected_rows(*number, version, 1, ""))
        .collect()
}

/// Which documents were made pages of.
fn made(world: &World) -> Vec<String> {
    let uris: BTreeSet<String> = world.made().into_iter().map(|(uri, _)| uri).collect();
    uris.into_iter().collect()
}

#[test]
fn a_document_with_the_same_content_is_counted_and_not_made_again() {
    let place = Place::default();
    let first = place.run(&pages("to = 4", ""), World::new(&place.tables));
    assert_eq!(first.report().totals.documents_done, 4);
    // Read again, and told by a state that the ledger does not know yet.
    for (source, n_read) in [("to = 4", 4), ("to = 4\nhas_states = true", 4)] {
        let ran = place.run(&pages(source, ""), World::new(&place.tables));
        let totals = &ran.report().totals;
        assert_eq!(
            (totals.documents_done, totals.documents_skipped),
            (0, n_read)
        );
        assert!(ran.world.made().is_empty());
    }
    assert_eq!(place.tables.rows("t"), rows(&[0, 1, 2, 3], 0));
}

#[test]
fn a_document_of_a_known_state_is_not_even_read() {
    let place = Place::default();
    let source = "to = 4\nhas_states = true";
    place.run(&pages(source, ""), World::new(&place.tables));
    // The source would break at the first send.
    let ran = place.run(
        &pages(source, ""),
        World::new(&place.tables).with_faults(Faults::new(u64::MAX, Strike::Panic)),
    );
    let totals = &ran.report().totals;
    assert_eq!((totals.documents_skipped, ran.counts("s")[0]), (4, 0));
    let states = place
        .documents()
        .into_values()
        .map(|document| document.state);
    assert!(
        states
            .into_iter()
            .all(|state| state.as_deref() == Some("state 0"))
    );
}

#[test]
fn a_document_that_changed_is_replaced_as_a_whole() {
    let place = Place::default();
    place.run(&pages("to = 4", ""), World::new(&place.tables));
    let ran = place.run(&pages("to = 2\nversion = 1", ""), World::new(&place.tables));
    assert_eq!(made(&ran.world), [uri(0), uri(1)]);
    let expected = [rows(&[0, 1], 1), rows(&[2, 3], 0)].concat();
    assert_eq!(place.tables.rows("t"), expected);
}

#[test]
fn a_configuration_that_makes_other_rows_makes_all_of_them_anew() {
    let place = Place::default();
    place.run(&pages("to = 3", ""), World::new(&place.tables));
    let other = pages("to = 3", "").replace("kind = 'pages'", "kind = 'pages'\nparts = 2");
    let ran = place.run(&other, World::new(&place.tables));
    assert_eq!(made(&ran.world).len(), 3);
    assert_eq!(place.tables.rows("t").len(), 12);
}

#[test]
fn what_is_gone_from_the_table_is_made_again() {
    let place = Place::default();
    place.run(&pages("to = 3", ""), World::new(&place.tables));
    place.tables.clear("t");
    let ran = place.run(&pages("to = 3", ""), World::new(&place.tables));
    assert_eq!(made(&ran.world).len(), 3);
    assert_eq!(place.tables.rows("t"), rows(&[0, 1, 2], 0));
    // A sink that cannot say what it holds is believed to hold it.
    let mute = pages("to = 3", "is_mute = true");
    place.tables.clear("t");
    let ran = place.run(&mute, World::new(&place.tables));
    assert!(ran.world.made().is_empty());
}

#[test]
fn a_removal_takes_the_rows_away_and_the_ledger_forgets_them() {
    let place = Place::default();
    place.run(&pages("to = 4", ""), World::new(&place.tables));
    let ran = place.run(
        &pages("to = 0\nremoves = [1, 2]", ""),
        World::new(&place.tables),
    );
    assert_eq!(ran.report().totals.documents_removed, 2);
    assert_eq!(place.tables.rows("t"), rows(&[0, 3], 0));
    let documents: Vec<String> = place.documents().into_keys().collect();
    assert_eq!(documents, [uri(0), uri(3)]);
}

#[test]
fn a_source_learns_what_it_sent_and_what_only_the_table_knows() {
    let place = Place::default();
    let two = "[p.source.other]\nkind = 'papers'\nfrom = 7\nto = 8\n";
    let nodes = pages("to = 2", "").replace("input = 's'", "input = ['s', 'other']");
    place.run(&format!("{two}{nodes}"), World::new(&place.tables));
    let known = |nodes: &str| {
        let ran = place.run(nodes, World::new(&place.tables));
        let mut known = lock(&ran.world.known).clone();
        known.sort();
        known
    };
    // Both sources sum up to each document once: each knows its own.
    let idle = format!("{two}{nodes}")
        .replace("to = 2", "to = 0")
        .replace("from = 7", "from = 8");
    assert_eq!(known(&idle), [uri(0), uri(1), uri(7)]);
    // Without its ledger, the rows tell whose a document was.
    std::fs::remove_dir_all(place.folder.path().join("ledger")).expect("removed");
    assert_eq!(known(&idle), [uri(0), uri(1), uri(7)]);
    // A source that the pipeline has no more may have been renamed.
    let alone = pages("to = 0", "");
    assert_eq!(known(&alone), [uri(0), uri(1), uri(7)]);
    assert_eq!(
        known(&alone.replace(".s]", ".t]").replace("'s'", "'t'")).len(),
        3
    );
}

#[test]
fn retries_feed_these_documents_and_no_other() {
    let nodes = |to: u32| {
        format!(
            "[p.source.s]\nkind = 'papers'\nto = {to}\n\
             [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
             [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\n\
             [p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'a'\n"
        )
    };
    let mut place = Place::default();
    let odd = |_: &str, label: &str| match label {
        "d001#2" => Act::SetAside,
        _ => Act::Pass,
    };
    place.run(&nodes(4), World::new(&place.tables).with_hook(odd));
    assert_eq!(place.letters().len(), 1);
    let ran = place.run(&nodes(4), World::new(&place.tables));
    assert_eq!(ran.report().totals.dead_letters_before, 1);
    let retry = |number| FeedAgain {
        uri: uri(number),
        input: None,
    };
    place.options = RunOptions {
        retries: Some(vec![retry(1), retry(6)]),
        ..RunOptions::default()
    };
    // The table tells all that it holds: what is to be done again is not done for that.
    place.tables.with("t", super::test_kinds::Table::touch);
    let ran = place.run(&nodes(8), World::new(&place.tables));
    assert_eq!(made(&ran.world), [uri(1), uri(6)]);
    assert!(place.letters().is_empty());
    assert_eq!(place.documents()[&uri(1)].n_dead, 0);
    assert_eq!(place.tables.rows("t").len(), 1 + 2 + 3 + 4 + 3);
}

#[test]
fn a_pipeline_without_a_ledger_does_everything_in_each_run() {
    let place = Place::default();
    for n_runs in 1..=2 {
        let world = std::sync::Arc::new(World::new(&place.tables));
        let folder = place.folder.path().display();
        let toml = format!(
            "[p]\ndead_letters = '{folder}'\nledger = false\n{}",
            pages("to = 3", "")
        );
        let pipeline = place.build(&toml, &world);
        let control = super::RunControl::default();
        let ended = super::test_kinds::RUNTIME.block_on(pipeline.run(&control));
        let totals = ended.expect("nothing went wrong").totals;
        assert_eq!(
            (totals.documents_done, world.made().len()),
            (3, 6),
            "run {n_runs}"
        );
        assert_eq!(place.tables.rows("t"), rows(&[0, 1, 2], 0));
        assert!(!place.folder.path().join("ledger").exists());
    }
}

#[test]
fn an_earlier_version_settles_before_the_next_is_sent() {
    let place = Place::default();
    // Each document is committed by itself, so that its next version can come.
    let nodes = pages("to = 4\nthen_version = 1", "commit_every = 1");
    let ran = place.run(&nodes, World::new(&place.tables));
    assert_eq!(ran.report().totals.documents_done, 8);
    assert_eq!(place.tables.rows("t"), rows(&[0, 1, 2, 3], 1));
    let hashes = place
        .documents()
        .into_values()
        .map(|document| document.content_hash);
    let expected = crate::ContentHash::of(b"version 1").to_string();
    assert!(hashes.into_iter().all(|hash| hash == expected));
}

/// Breaks a run when so many pages of one document of four are staged.
fn break_at_page(place: &Place, nodes: &str, page: u32) {
    let label = format!("{}#{page}", uri(3));
    let odd = move |_: &str, item: &str| {
        if item == label { Act::Break } else { Act::Pass }
    };
    let ran = place.run(nodes, World::new(&place.tables).with_hook(odd));
    assert!(ran.ended.is_err());
}

/// One document of four pages, on its way through a stage that may break.
fn one_document(stage: &str, table: &str) -> String {
    format!(
        "[p.source.s]\nkind = 'papers'\nfrom = 3\nto = 4\n\
         [p.stage.p]\nkind = 'pages'\ninput = 's'\n{stage}\
         edge = {{ max_items = 1, max_bytes = 1 }}\n\
         [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\n\
         edge = {{ max_items = 1, max_bytes = 1 }}\n\
         [p.sink.k]\nkind = 'table'\ntable = 't'\nstage_every = 1\ninput = 'a'\n{table}"
    )
}

#[test]
fn a_run_goes_on_after_the_pages_that_are_staged() {
    for stage in ["", "is_stubborn = true\n"] {
        let place = Place::default();
        let nodes = one_document(stage, "");
        break_at_page(&place, &nodes, 4);
        let staged = place.durable_pages(4, "t");
        let ran = place.run(&nodes, World::new(&place.tables));
        let expected = expected_rows(3, 0, 1, "a");
        assert_eq!(place.tables.rows("t"), expected, "{staged:?}");
        let totals = &ran.report().totals;
        assert_eq!(totals.pages_resumed, staged.len() as u64);
        // A stage that makes them nevertheless does so for nothing.
        assert_eq!(ran.counts("a")[0], 4 - staged.len() as u64);
        if stage.is_empty() {
            assert!(ran.world.made().is_disjoint(&staged));
        } else {
            assert_eq!(ran.world.made().len(), 4);
        }
    }
}

#[test]
fn staged_pages_of_other_content_or_another_configuration_are_made_again() {
    for change in [
        ("to = 4\n", "to = 4\nversion = 1\n"),
        ("tag = 'a'", "tag = 'b'"),
    ] {
        let place = Place::default();
        let nodes = one_document("", "");
        break_at_page(&place, &nodes, 4);
        let ran = place.run(
            &nodes.replace(change.0, change.1),
            World::new(&place.tables),
        );
        assert_eq!(
            (ran.world.made().len(), place.tables.rows("t").len()),
            (4, 4)
        );
        assert_eq!(ran.report().totals.pages_resumed, 0);
        assert_eq!(place.n_staged(), 0);
    }
}

/// A run of `before` that went well, and one of `nodes` that broke off with some of
/// the pages staged: how many, is a matter of the moment.
fn broken_off(before: Option<&str>, nodes: &str) -> Place {
    let places = std::iter::repeat_with(|| {
        let place = Place::default();
        if let Some(before) = before {
            let ran = place.run(before, World::new(&place.tables));
            assert!(ran.ended.is_ok());
        }
        break_at_page(&place, nodes, 4);
        place
    });
    let mut staged = places.take(100).filter(|place| place.n_staged() > 0);
    staged.next().expect("some page is staged in time")
}

#[test]
fn a_document_that_is_gone_before_it_was_ever_whole_is_known_and_removed() {
    let nodes = one_document("", "");
    let place = broken_off(None, &nodes);
    assert!(!place.documents().contains_key(&uri(3)));
    let gone = nodes.replace("from = 3\nto = 4", "to = 0\nremoves = [3]");
    let ran = place.run(&gone, World::new(&place.tables));
    assert_eq!(*lock(&ran.world.known), [uri(3)]);
    assert_eq!(place.n_staged(), 0);
    assert!(place.tables.rows("t").is_empty());
    let ran = place.run(&gone, World::new(&place.tables));
    assert!(lock(&ran.world.known).is_empty());
}

#[test]
fn a_document_that_is_again_what_is_stored_leaves_nothing_staged() {
    for state in ["", "has_states = true\n"] {
        let first = one_document("", "").replace("to = 4\n", &format!("to = 4\n{state}"));
        let second = first.replace("to = 4\n", "to = 4\nversion = 1\n");
        let place = broken_off(Some(&first), &second);
        let ran = place.run(&first, World::new(&place.tables));
        assert_eq!(ran.report().totals.documents_skipped, 1);
        assert_eq!(place.n_staged(), 0);
        assert_eq!(place.tables.rows("t"), expected_rows(3, 0, 1, "a"));
    }
}

#[test]
fn a_page_that_broke_off_is_made_again_as_a_whole() {
    let place = Place::default();
    let nodes = one_document("parts = 2\n", "");
    let panic = |tag: &str, item: &str| match (tag, item) {
        ("pages", "d003#3.2") => Act::Panic,
        _ => Act::Pass,
    };
    place.tables.with("t", |table| table.n_failures = 100);
    let ran = place.run(&nodes, World::new(&place.tables).with_hook(panic));
    assert!(ran.ended.is_err());
    assert!(!place.durable_pages(4, "t").contains(&(uri(3), 3)));
    place.tables.with("t", |table| table.n_failures = 0);
    let ran = place.run(&nodes, World::new(&place.tables));
    assert_eq!(ran.report().totals.documents_done, 1);
    assert_eq!(place.tables.rows("t"), expected_rows(3, 0, 2, "a"));
    assert!(place.letters().is_empty());
}

#[test]
fn a_document_that_its_source_gave_up_half_sent_is_not_done() {
    let place = Place::default();
    let hasty = pages("to = 0\nis_hasty = true", "").replace(
        "input = 's'",
        "input = 's'\nedge = { max_items = 1, max_bytes = 1 }",
    );
    let ran = place.run(&hasty, World::new(&place.tables));
    assert!(ran.ended.is_ok());
    let given_up = lock(&ran.world.known).pop().expect("the edge was full");
    let documents = place.documents();
    let number: usize = given_up[1..].parse().expect("its number");
    assert!(!documents.contains_key(&given_up));
    assert_eq!(documents.len(), number);
}

#[test]
fn a_graph_that_makes_one_item_of_many_stages_nothing() {
    let place = Place::default();
    let nodes = one_document("", "") + "[p.stage.b]\nkind = 'book'\ninput = 'p'\n";
    let nodes = nodes.replace(
        "table = 't'\nstage_every = 1\ninput = 'a'",
        "table = 't'\nstage_every = 1\ninput = ['a', 'b']",
    );
    break_at_page(&place, &nodes, 4);
    assert!(place.durable_pages(4, "t").is_empty());
    assert_eq!(place.n_staged(), 0);
    let ran = place.run(&nodes, World::new(&place.tables));
    assert_eq!(ran.world.made().len(), 4);
    assert_eq!(place.tables.rows("t").len(), 5);
}

#[test]
fn of_two_runs_of_a_pipeline_only_the_first_stages() {
    let place = Place::default();
    let folder = place.folder.path().join("ledger");
    let first = Ledger::open_for_run(&folder, "p").expect("opened");
    let nodes = one_document("", "");
    break_at_page(&place, &nodes, 4);
    assert!(place.durable_pages(4, "t").is_empty());
    drop(first);
}

#[test]
fn a_damaged_ledger_is_made_anew_from_the_table() {
    let place = Place::default();
    place.run(&pages("to = 3", ""), World::new(&place.tables));
    let path = place.folder.path().join("ledger/p.db");
    std::fs::write(&path, vec![7; 10_000]).expect("written");
    let ran = place.run(&pages("to = 3", ""), World::new(&place.tables));
    assert!(ran.world.made().is_empty());
    assert_eq!(ran.report().totals.documents_skipped, 3);
    assert!(path.with_extension("damaged").exists());
    assert_eq!(place.documents().len(), 3);
}

#[test]
fn what_is_undone_is_made_again_although_the_table_has_it() {
    let place = Place::default();
    place.run(&pages("to = 3", ""), World::new(&place.tables));
    let folder = place.folder.path().join("ledger");
    let ledger = Ledger::open(&folder, "p").expect("opened");
    ledger.undo(&[DocumentId::of(&uri(1))]).expect("undone");
    drop(ledger);
    place.tables.with("t", super::test_kinds::Table::touch);
    let ran = place.run(&pages("to = 3", ""), World::new(&place.tables));
    assert_eq!(made(&ran.world), [uri(1)]);
}

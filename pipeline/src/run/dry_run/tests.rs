use std::collections::BTreeMap;

use super::{DocumentForecast, Forecast};
use crate::run::test_kinds::{Act, Faults, Place, Strike, World, n_pages, uri};
use crate::{DocumentId, Prune, RunError, RunOptions};

/// A source with these settings, pages, a mark with this tag, and a table.
fn nodes(source: &str, tag: &str) -> String {
    format!(
        "[p.source.s]\nkind = 'papers'\n{source}\n\
         [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
         [p.stage.a]\nkind = 'mark'\ntag = '{tag}'\ninput = 'p'\n\
         [p.sink.k]\nkind = 'table'\ntable = 't'\ninput = 'a'\n"
    )
}

fn pages_of(numbers: impl IntoIterator<Item = u32>) -> u64 {
    numbers.into_iter().map(n_pages).map(u64::from).sum()
}

fn run(place: &Place, nodes: &str) {
    place.run(nodes, World::new(&place.tables)).report();
}

#[track_caller]
fn forecast(place: &Place, nodes: &str) -> Forecast {
    let ended = place.dry_run(nodes, World::new(&place.tables));
    ended.unwrap_or_else(|error: RunError| panic!("{error}"))
}

fn documents() -> DocumentForecast {
    DocumentForecast::default()
}

#[test]
fn before_the_first_run_every_document_is_new_and_no_folder_is_made() {
    let place = Place::default();
    let found = forecast(&place, &nodes("to = 6", "a"));
    let expected = DocumentForecast {
        new: 6,
        ..documents()
    };
    assert_eq!((found.documents, found.pages), (expected, pages_of(0..6)));
    assert!(found.bytes > 0);
    assert_eq!((found.pages_per_s, found.seconds), (None, None));
    let nodes: Vec<_> = found
        .nodes
        .iter()
        .map(|node| (&*node.name, node.pages, node.items))
        .collect();
    assert_eq!(
        nodes,
        [("p", Some(pages_of(0..6)), None), ("a", None, None)]
    );
}

#[test]
fn what_is_done_is_unchanged_and_what_is_new_is_counted_at_the_last_pace() {
    let place = Place::default();
    for states in ["", "has_states = true"] {
        run(&place, &nodes(&format!("to = 4\n{states}"), "a"));
        let found = forecast(&place, &nodes(&format!("to = 7\n{states}"), "a"));
        let expected = DocumentForecast {
            new: 3,
            unchanged: 4,
            ..documents()
        };
        assert_eq!((found.documents, found.pages), (expected, pages_of(4..7)));
        // A run without work leaves the rates of the run before it.
        let seconds = found.seconds.expect("a run has made pages");
        let rate = found.pages_per_s.expect("it has");
        assert!((seconds * rate - found.pages as f64).abs() < 1e-6);
        // One document in, for 2.5 pages out; one item for each page.
        let items: Vec<_> = found.nodes.iter().map(|node| node.items).collect();
        let n_documents = (pages_of(4..7) as f64 * 4.0 / pages_of(0..4) as f64).round();
        assert_eq!(items, [Some(n_documents as u64), Some(pages_of(4..7))]);
    }
}

#[test]
fn changed_and_gone_documents_are_counted() {
    let place = Place::default();
    run(&place, &nodes("to = 4", "a"));
    let found = forecast(&place, &nodes("to = 2\nversion = 1\nremoves = [2, 3]", "a"));
    let expected = DocumentForecast {
        changed: 2,
        gone: 2,
        removed: 2,
        ..documents()
    };
    assert_eq!((found.documents, found.pages), (expected, pages_of(0..2)));
    assert_eq!(place.documents().len(), 4);
}

#[test]
fn documents_that_other_settings_or_a_new_sink_make_again_name_the_sinks() {
    let place = Place::default();
    run(&place, &nodes("to = 4", "a"));
    let found = forecast(&place, &nodes("to = 4", "b"));
    let expected = DocumentForecast {
        made_again: 4,
        ..documents()
    };
    let for_k = BTreeMap::from([("k".to_owned(), 4)]);
    assert_eq!((found.documents, found.made_again_for), (expected, for_k));
    // The mark is another one now: nothing is known of it.
    let items: Vec<_> = found.nodes.iter().map(|node| node.items).collect();
    assert_eq!(items, [Some(4), None]);

    // The other sink gets every page of one document, made by another node.
    let sink = "[p.stage.q]\nkind = 'pages'\nparts = 2\ninput = 's'\n\
                [p.sink.l]\nkind = 'table'\ntable = 'u'\ninput = 'q'\n";
    let found = forecast(&place, &(nodes("to = 4", "a") + sink));
    let for_l = BTreeMap::from([("l".to_owned(), 4)]);
    assert_eq!((found.documents, found.made_again_for), (expected, for_l));
    let pages: Vec<_> = found
        .nodes
        .iter()
        .map(|node| (&*node.name, node.pages))
        .collect();
    let all = Some(pages_of(0..4));
    assert_eq!(pages, [("p", None), ("a", None), ("q", all)]);
}

#[test]
fn documents_that_are_made_from_stored_rows_are_told_from_those_of_the_source() {
    let readable = |source: &str, rest: &str, last: &str| {
        let nodes = nodes(source, "a").replace("input = 'a'", &format!("input = '{last}'"));
        nodes + "has_place = true\nreads_back = true\n" + rest
    };
    let place = Place::default();
    run(&place, &readable("to = 4", "", "a"));
    let behind = "[p.stage.b]\nkind = 'mark'\ntag = 'b'\ninput = 'a'\n";
    let found = forecast(&place, &readable("to = 4", behind, "b"));
    let mut expected = DocumentForecast {
        made_again: 4,
        from_rows: 4,
        ..documents()
    };
    assert_eq!(found.documents, expected);
    assert_eq!((found.pages, found.pages_from_rows), (0, pages_of(0..4)));
    // The last run made pages, which tells nothing of rows.
    assert!(found.pages_per_s.is_some() && found.seconds.is_none());

    // Some pages come from the source: only they pass the stages in front.
    let more = readable("to = 7", behind, "b");
    let found = forecast(&place, &more);
    expected.new = 3;
    assert_eq!(found.documents, expected);
    let pages = (found.pages, found.pages_from_rows);
    assert_eq!(pages, (pages_of(4..7), pages_of(0..4)));
    assert!(found.seconds.is_some());
    let items: Vec<_> = found.nodes.iter().map(|node| node.items).collect();
    assert_eq!(items[1..], [Some(pages_of(4..7)), None]);

    // The rates stay those of the run before: most pages did not pass all stages.
    run(&place, &more);
    let after = forecast(&place, &readable("to = 9", behind, "b"));
    assert_eq!(after.documents.new, 2);
    assert_eq!(after.pages_per_s, found.pages_per_s);
}

#[test]
fn a_table_that_lost_a_document_is_noticed() {
    let place = Place::default();
    run(&place, &nodes("to = 4", "a"));
    place
        .tables
        .with("t", |table| table.remove(DocumentId::of(&uri(1))));
    let found = forecast(&place, &nodes("to = 4", "a"));
    let expected = DocumentForecast {
        made_again: 1,
        unchanged: 3,
        ..documents()
    };
    assert_eq!((found.documents, found.pages), (expected, pages_of([1])));
}

#[test]
fn pages_that_an_interrupted_run_has_staged_are_not_counted() {
    let mut n_least = u64::MAX;
    for step in 0..200 {
        let place = Place::default();
        let faults = Faults::new(step, Strike::Break);
        let one = nodes("from = 3\nto = 4", "a");
        let ended = place.run(&one, World::new(&place.tables).with_faults(faults));
        if ended.ended.is_ok() {
            break;
        }
        let n_durable = place.durable_pages(4, "t").len() as u64;
        let found = forecast(&place, &one);
        let n_expected = u64::from(n_pages(3)) - n_durable;
        assert_eq!(found.pages, n_expected, "after step {step}");
        n_least = n_least.min(found.pages);
    }
    assert!(n_least < 4, "some run has staged pages");
}

#[test]
fn documents_that_cannot_be_opened_are_counted_as_unreadable() {
    let place = Place::default();
    let odd = |stage: &str, item: &str| match (stage, item) {
        ("count", "d001") => Act::SetAside,
        ("count", "d002") => Act::Panic,
        _ => Act::Pass,
    };
    let world = World::new(&place.tables).with_hook(odd);
    let found = place
        .dry_run(&nodes("to = 4", "a"), world)
        .expect("it ends");
    let expected = DocumentForecast {
        new: 2,
        unreadable: 2,
        ..documents()
    };
    assert_eq!((found.documents, found.pages), (expected, pages_of([0, 3])));
    assert!(!place.folder.path().join("letters").exists());
}

#[test]
fn a_stage_or_a_source_that_breaks_ends_the_dry_run_with_its_name() {
    let place = Place::default();
    let world = World::new(&place.tables).with_hook(|_, _| Act::Break);
    let error = place.dry_run(&nodes("to = 4", "a"), world);
    let error = error.expect_err("the stage breaks");
    assert_eq!(
        error.to_string(),
        "pipeline `p` stopped at `p`: the pen broke"
    );
    let world = World::new(&place.tables).with_faults(Faults::new(0, Strike::Panic));
    let error = place.dry_run(&nodes("to = 4", "a"), world);
    assert_eq!(error.expect_err("the source panics").node, "s");
}

#[test]
fn without_a_stage_that_makes_pages_a_document_counts_as_one_page() {
    let place = Place::default();
    let one = nodes("to = 3", "a").replace("input = 'p'", "input = 's'");
    let one = one.replace("[p.stage.p]\nkind = 'pages'\ninput = 's'\n", "");
    assert_eq!(forecast(&place, &one).pages, 3);
}

#[test]
fn only_the_branch_that_takes_a_document_counts_its_pages() {
    let place = Place::default();
    let one = nodes("to = 4", "a").replace(
        "kind = 'pages'\ninput = 's'",
        "kind = 'pages'\ninput = 's'\nwhen = 'number < 2'\nelse = 'drop'",
    );
    let found = forecast(&place, &one);
    let render = &found.nodes[0];
    assert_eq!(render.pages, Some(pages_of(0..2)));
    assert_eq!(found.documents.new, 4);
}

#[test]
fn pruning_is_what_the_options_say() {
    let mut place = Place::default();
    run(&place, &nodes("to = 2", "a"));
    place.options = RunOptions {
        prune: Prune::Gone,
        ..RunOptions::default()
    };
    let found = forecast(&place, &nodes("to = 2\nremoves = [1]", "a"));
    assert_eq!((found.documents.gone, found.documents.removed), (1, 1));
}

//! Joins and page groups hold a few items of a long document, whatever its branches drop.

use super::run;
use crate::Report;

/// Pages of the document: held all together they would be far above [`MAX_HELD`].
const N_PAGES: usize = 3_000;

/// With edges of one item each page between the first stage and the join waits
/// in one of a few places.
const MAX_HELD: usize = 24;

/// Runs one document of [`N_PAGES`] pages. Each entry is a node and the rest of
/// its table; all but the sink are of the kind `cut`.
fn report(nodes: &[(&str, &str)]) -> Report {
    let toml = |folder: &str| {
        let mut toml = format!("[p]\ndead_letters = '{folder}'\nledger = '{folder}/ledger'\n");
        toml += "[p.source.s]\nkind = 'texts'\nprefix = 'd'\nn = 1\n";
        toml += &format!("[p.stage.p]\nkind = 'cut'\ntag = 'p'\ninput = 's'\npages = {N_PAGES}\n");
        for (name, rest) in nodes {
            toml += &match *name {
                "k" => "[p.sink.k]\nkind = 'keep'\nacks = 'end'\n".to_owned(),
                name => format!("[p.stage.{name}]\nkind = 'cut'\ntag = '{name}'\n"),
            };
            toml += "edge = { max_items = 1 }\n";
            toml += &rest.replace("; ", "\n");
            toml += "\n";
        }
        toml
    };
    run(&toml).0.report
}

/// What came out, and the most that a node held at one time.
fn counts(nodes: &[(&str, &str)]) -> (u64, u64, usize) {
    let totals = report(nodes).totals;
    let most_held = totals.nodes.iter().map(|node| node.most_held_items).max();
    (
        totals.items_stored,
        totals.dead_letters,
        most_held.unwrap_or(0),
    )
}

fn assert_flat(nodes: &[(&str, &str)], n_stored: u64, n_dead: u64) {
    let (stored, dead, most_held) = counts(nodes);
    assert_eq!((stored, dead), (n_stored, n_dead));
    assert!(
        (1..=MAX_HELD).contains(&most_held),
        "{most_held} items were held at one time"
    );
}

#[test]
fn a_join_holds_a_few_items_while_the_other_branch_filters() {
    for (unmatched, n_stored) in [("drop", 300), ("pass", 3_000)] {
        assert_flat(
            &[
                ("a", "input = 'p'; keeps_one_in = 10"),
                ("b", "input = 'p'"),
                (
                    "j",
                    &format!("join = ['a', 'b']; unmatched = '{unmatched}'"),
                ),
                ("k", "input = 'j'"),
            ],
            n_stored,
            0,
        );
    }
}

#[test]
fn a_join_in_a_sink_holds_a_few_items_while_a_branch_filters() {
    assert_flat(
        &[
            ("a", "input = 'p'; keeps_one_in = 10"),
            ("b", "input = 'p'"),
            ("k", "join = ['b', 'a']; unmatched = 'pass'"),
        ],
        3_000,
        0,
    );
}

#[test]
fn a_join_holds_a_few_items_while_a_route_leads_most_of_them_elsewhere() {
    assert_flat(
        &[
            ("a", "input = 'p'; when = 'page % 10 == 0'; else = 'drop'"),
            ("b", "input = 'p'"),
            ("j", "join = ['a', 'b']; unmatched = 'drop'; workers = 2"),
            ("k", "input = 'j'"),
        ],
        300,
        0,
    );
}

#[test]
fn a_join_holds_a_few_items_while_a_branch_sets_pages_aside() {
    assert_flat(
        &[
            ("a", "input = 'p'; sets_aside_one_in = 10"),
            ("b", "input = 'p'"),
            ("j", "join = ['a', 'b']"),
            ("k", "input = 'j'"),
        ],
        2_700,
        300,
    );
}

#[test]
fn joins_within_joins_hold_a_few_items_each() {
    assert_flat(
        &[
            ("a", "input = 'p'"),
            ("b", "input = 'p'"),
            ("c", "input = 'b'; keeps_one_in = 10"),
            ("d", "input = 'b'"),
            ("i", "join = ['c', 'd']; unmatched = 'drop'"),
            ("j", "join = ['a', 'i']; unmatched = 'pass'"),
            ("k", "input = 'j'"),
        ],
        3_000,
        0,
    );
}

#[test]
fn parts_of_pages_are_joined_and_released_page_by_page() {
    assert_flat(
        &[
            ("q", "input = 'p'; parts = 2"),
            ("a", "input = 'q'; keeps_one_in = 10"),
            ("b", "input = 'q'"),
            ("j", "join = ['a', 'b']; unmatched = 'drop'"),
            ("k", "input = 'j'"),
        ],
        600,
        0,
    );
}

#[test]
fn a_join_behind_a_stage_that_gathers_pages_holds_a_few_items() {
    assert_flat(
        &[
            ("a", "input = 'p'; parts = 3"),
            ("f", "input = 'a'; keeps_one_in = 10"),
            ("g", "input = 'f'; gathers = true"),
            ("b", "input = 'p'"),
            ("j", "join = ['g', 'b']; unmatched = 'drop'"),
            ("k", "input = 'j'"),
        ],
        300,
        0,
    );
}

#[test]
fn a_group_of_a_page_is_complete_before_the_document_is() {
    assert_flat(
        &[
            ("a", "input = 'p'; parts = 3"),
            ("g", "input = 'a'; gathers = true"),
            ("k", "input = 'g'"),
        ],
        3_000,
        0,
    );
}

#[test]
fn where_two_nodes_make_the_pages_a_join_waits_for_the_whole_document() {
    let (stored, dead, most_held) = counts(&[
        ("q", "input = 's'; pages = 3000"),
        ("a", "input = 'p'; keeps_one_in = 10"),
        ("b", "input = 'q'"),
        ("j", "join = ['a', 'b']; unmatched = 'pass'"),
        ("k", "input = 'j'"),
    ]);
    assert_eq!((stored, dead), (3_000, 0));
    assert!(
        most_held >= 2_700,
        "{most_held} items were held at one time"
    );
}

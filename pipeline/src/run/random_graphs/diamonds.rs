//! Diamonds by hand: branches that part and meet again, with edges of one item
//! and one byte.

use super::run;

const EDGE: &str = "edge = { max_items = 1, max_bytes = 1 }\n";

/// Runs a pipeline of two documents. Each line names a node, and gives the rest
/// of its table.
fn stored(nodes: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let toml = |folder: &str| {
        let mut toml = format!("[p]\ndead_letters = '{folder}'\nledger = '{folder}/ledger'\n");
        toml += "[p.source.s]\nkind = 'texts'\nprefix = 'd'\nn = 2\n";
        for (name, rest) in nodes {
            let sets = rest.split_once("; ").map_or("", |(_, sets)| sets);
            let input = rest.split_once("; ").map_or(*rest, |(input, _)| input);
            let table = if *name == "k" { "sink" } else { "stage" };
            toml += &format!("[p.{table}.{name}]\n{input}\n{EDGE}");
            toml += &match *name {
                "k" => "kind = 'keep'\nacks = 'end'\n".to_owned(),
                name => format!("kind = 'cut'\ntag = '{name}'\n"),
            };
            toml += &sets.replace("; ", "\n");
            toml += "\n";
        }
        toml
    };
    let (ran, _) = run(&toml);
    // The marks that the branches left on each item say where it came along.
    let rows = ran.found.rows.into_iter().map(|(_, label, fields)| {
        let marks = fields.keys().filter_map(|name| name.strip_prefix("m_"));
        format!("{label} {}", marks.collect::<Vec<_>>().join(""))
    });
    let dead = ran.found.dead.into_iter();
    let dead = dead.map(|(node, label)| format!("{label} at {node}"));
    (rows.collect(), dead.collect())
}

/// The same lines for each of the two documents.
fn both(lines: &[&str]) -> Vec<String> {
    let documents = ["d-0", "d-1"].iter();
    let lines = documents.flat_map(|uri| lines.iter().map(move |line| format!("{uri}{line}")));
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

fn assert_comes_to(nodes: &[(&str, &str)], rows: &[&str], dead: &[&str]) {
    let (stored, mut set_aside) = stored(nodes);
    set_aside.sort();
    assert_eq!((stored, set_aside), (both(rows), both(dead)));
}

#[test]
fn a_diamond_of_two_branches_joins_each_page() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 3"),
            ("a", "input = 'p'"),
            ("b", "input = 'p'"),
            ("j", "join = ['a', 'b']"),
            ("k", "input = 'j'"),
        ],
        &["#1 abjp", "#2 abjp", "#3 abjp"],
        &[],
    );
}

#[test]
fn a_diamond_within_a_diamond_joins_each_page_once() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 3"),
            ("a", "input = 'p'"),
            ("b", "input = 'p'"),
            ("c", "input = 'b'"),
            ("d", "input = 'b'"),
            ("i", "join = ['c', 'd']"),
            ("j", "join = ['a', 'i']"),
            ("k", "input = 'j'"),
        ],
        &["#1 abcdijp", "#2 abcdijp", "#3 abcdijp"],
        &[],
    );
}

#[test]
fn two_joins_of_the_same_branches_can_be_joined_in_a_sink() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 2"),
            ("a", "input = 'p'"),
            ("b", "input = 'p'"),
            ("i", "join = ['a', 'b']"),
            ("j", "join = ['b', 'a']"),
            ("k", "join = ['i', 'j']"),
        ],
        &["#1 abijp", "#2 abijp"],
        &[],
    );
}

#[test]
fn what_a_branch_filters_away_is_unmatched() {
    for (unmatched, row, dead) in [
        ("dead_letter", &["#1 abjp", "#3 abjp"][..], &["#2 at j"][..]),
        ("drop", &["#1 abjp", "#3 abjp"], &[]),
        ("pass", &["#1 abjp", "#2 bjp", "#3 abjp"], &[]),
    ] {
        assert_comes_to(
            &[
                ("p", "input = 's'; pages = 3"),
                ("a", "input = 'p'; drops = 2"),
                ("b", "input = 'p'"),
                (
                    "j",
                    &format!("join = ['a', 'b']\nunmatched = '{unmatched}'"),
                ),
                ("k", "input = 'j'"),
            ],
            row,
            dead,
        );
    }
}

#[test]
fn the_letter_of_one_branch_stands_for_the_partner_in_the_other() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 3"),
            ("a", "input = 'p'; sets_aside = 2"),
            ("b", "input = 'p'"),
            ("j", "join = ['a', 'b']"),
            ("k", "input = 'j'"),
        ],
        &["#1 abjp", "#3 abjp"],
        &["#2 at a"],
    );
}

#[test]
fn a_letter_from_beside_the_diamond_stands_for_nothing() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 2"),
            ("a", "input = 'p'; drops = 2"),
            ("b", "input = 'p'"),
            ("x", "input = 'p'; sets_aside = 2"),
            ("j", "join = ['a', 'b']"),
            ("k", "input = ['j', 'x']"),
        ],
        &["#1 abjp", "#1 px"],
        &["#2 at j", "#2 at x"],
    );
}

#[test]
fn a_branch_of_pages_and_one_of_documents_do_not_meet_and_do_not_hang() {
    assert_comes_to(
        &[
            ("a", "input = 's'; pages = 4"),
            ("b", "input = 's'"),
            ("j", "join = ['a', 'b']\nunmatched = 'pass'"),
            ("k", "input = 'j'"),
        ],
        &["#1 aj", "#2 aj", "#3 aj", "#4 aj", " bj"],
        &[],
    );
}

#[test]
fn a_branch_that_splits_pages_and_gathers_them_again_joins_the_other() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 2"),
            ("a", "input = 'p'; parts = 3"),
            ("g", "input = 'a'; gathers = true"),
            ("b", "input = 'p'"),
            ("j", "join = ['g', 'b']"),
            ("k", "input = 'j'"),
        ],
        &["#1 abgjp", "#2 abgjp"],
        &[],
    );
}

#[test]
fn a_stage_that_holds_items_to_the_end_does_not_keep_a_join_waiting() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 3"),
            ("a", "input = 'p'; drops = 2"),
            ("b", "input = 'p'"),
            ("j", "join = ['a', 'b']\nunmatched = 'pass'\nworkers = 2"),
            ("l", "input = 'j'; is_late = true"),
            ("k", "input = 'l'"),
        ],
        &["#1 abjlp", "#2 bjlp", "#3 abjlp"],
        &[],
    );
}

#[test]
fn what_two_branches_send_under_one_key_is_told_apart_when_one_of_it_panics() {
    assert_comes_to(
        &[
            ("p", "input = 's'; pages = 2"),
            ("a", "input = 'p'"),
            ("b", "input = 'p'"),
            (
                "u",
                "input = ['a', 'b']\nbatch = { max_items = 8, max_wait_ms = 20 }; panics = 'a'",
            ),
            ("k", "input = 'u'"),
        ],
        &["#1 bpu", "#2 bpu"],
        &["#1 at u", "#2 at u"],
    );
}

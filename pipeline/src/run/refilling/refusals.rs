//! Rows that are not, or not surely, what the last unchanged stage made: no document is
//! made from them.

use super::*;
use crate::FeedAgain;

fn edit(name: &str, input: &str, settings: &str) -> String {
    stage(
        name,
        &format!("'{input}'"),
        &format!("kind = 'edit'\n{settings}"),
    )
}

/// A table that is not asked what it holds: the ledger is believed.
fn mute_sink(input: &str) -> String {
    sink("k", "t", input) + "is_mute = true\n"
}

#[test]
fn a_field_that_a_later_stage_changed_is_not_what_the_earlier_one_made() {
    let edited = |suffix: &str| {
        let edit = edit("e", "a", &format!("suffix = '{suffix}'"));
        nodes(&(edit + &sink("k", "t", "e")))
    };
    is_made_again(&edited("!"), &edited("?"));
    is_made_again(&edited("!"), &nodes(&sink("k", "t", "a")));
    // Behind the change the rows are as they were.
    let longer = edited("!").replace("input = 'e'", "input = 'b'");
    is_refilled(&edited("!"), &(longer + &mark("b", "e", "b")));
    // In front of it the text is not needed where nothing looks at it.
    let textless = |tag: &str| {
        let drop = edit("e", "b", "drops = 'text'");
        nodes(&(mark("b", "a", tag) + &drop + &sink("k", "t", "e")))
    };
    is_refilled(&textless("b"), &textless("x"));
}

#[test]
fn a_field_that_the_rows_lack_makes_every_document_again() {
    let dropped = nodes(&(edit("d", "a", "drops = 'number'") + &sink("k", "t", "d")));
    is_made_again(&dropped, &nodes(&sink("k", "t", "a")));
    // A condition looks at what no edge carries.
    let chosen = mark("b", "a", "b") + "when = 'number < 2'\nelse = 'drop'\n";
    let chosen = chosen + &edit("d", "b", "drops = 'number'") + &sink("k", "t", "d");
    is_made_again(&dropped, &nodes(&chosen));
    // The table cannot give it back.
    let lacking = |input: &str| sink("k", "t", input) + "lacks = 'text'\n";
    let after = nodes(&(mark("b", "a", "b") + &lacking("b")));
    is_made_again(&nodes(&lacking("a")), &after);
}

#[test]
fn a_stage_that_loses_items_and_does_not_say_so_makes_every_document_again() {
    let lossy = nodes(&(edit("d", "a", "last_page = 2") + &sink("k", "t", "d")));
    is_made_again(
        &lossy,
        &nodes(&(mark("b", "a", "b") + &sink("k", "t", "b"))),
    );
}

#[test]
fn rows_that_are_not_those_of_the_ledger_make_their_document_again() {
    let before = nodes(&mute_sink("a"));
    let after = nodes(&(mark("b", "a", "b") + &mute_sink("b")));
    let id = DocumentId::of(&uri(3));
    let spoilt: [&dyn Fn(&Place); 4] = [
        &|place| {
            place.tables.with("t", |table| {
                table.relabel(id, |stored| stored.fingerprint = "0123456789abcdef".into());
            });
        },
        &|place| {
            place.tables.with("t", |table| {
                table.relabel(id, |stored| stored.content_hash = "other bytes".into());
            });
        },
        &|place| place.tables.with("t", |table| table.remove_row(id)),
        &|place| place.tables.with("t", |table| table.repeat_row(id)),
    ];
    for (number, spoil) in spoilt.iter().enumerate() {
        let place = Place::default();
        run(&place, &before);
        spoil(&place);
        let ran = run_as_foretold(&place, &after);
        assert_eq!(made(&ran), BTreeSet::from([uri(3)]), "{number}");
        assert_eq!(place.tables.rows("t"), fresh(&after, "t"), "{number}");
    }
}

#[test]
fn a_document_that_was_resumed_is_made_from_its_source() {
    // A page that was set aside before the stop is not made again after it, and its
    // letter may be gone by then.
    let before = nodes(&sink("k", "t", "a"));
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    let expected = fresh(&after, "t");
    let mut n_lacking = 0;
    for number in 0.. {
        let place = Place::default();
        let odd = |tag: &str, item: &str| match (tag, item) {
            ("a", "d003#2") => Act::SetAside,
            _ => Act::Pass,
        };
        let world = World::new(&place.tables).with_hook(odd);
        let faults = Faults::new(number, Strike::Break);
        let ran = place.run(&before, world.with_faults(faults));
        if ran.ended.is_ok() {
            break;
        }
        // There is none if the run stopped before.
        let _ = std::fs::remove_dir_all(place.folder.path().join("letters"));
        run(&place, &before);
        let n_rows = place.tables.rows_of("t", DocumentId::of(&uri(3))).len();
        n_lacking += u32::from(n_rows < 4);
        run_as_foretold(&place, &after);
        assert_eq!(place.tables.rows("t"), expected, "after step {number}");
    }
    assert!(n_lacking > 0, "the set-aside page came back each time");
}

#[test]
fn a_document_that_is_to_be_done_again_is_made_from_its_source() {
    let mut place = Place::default();
    run(&place, &nodes(&sink("k", "t", "a")));
    place.options.retries = Some(vec![FeedAgain {
        uri: uri(1),
        input: None,
    }]);
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    assert_eq!(made(&run(&place, &after)), BTreeSet::from([uri(1)]));
    place.options.retries = None;
    assert_eq!(made(&run(&place, &after)), BTreeSet::new());
    assert_eq!(place.tables.rows("t"), fresh(&after, "t"));
}

#[test]
fn a_ledger_that_was_rebuilt_knows_no_whole_documents() {
    let place = Place::default();
    let before = nodes(&sink("k", "t", "a"));
    run(&place, &before);
    assert_eq!(place.rebuild(&before), 5);
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    assert_eq!(made(&run_as_foretold(&place, &after)), all());
}

#[test]
fn rows_that_cannot_be_read_are_not_tried_again() {
    let before = nodes(&sink("k", "t", "a"));
    let after = nodes(&(mark("b", "a", "b") + &sink("k", "t", "b")));
    for number in 0.. {
        let place = Place::default();
        run(&place, &before);
        let world = World::new(&place.tables).with_faults(Faults::new(number, Strike::Break));
        let ran = place.run(&after, world);
        let struck = ran.world.faults.struck_at();
        assert!(struck.is_some(), "no row was read back");
        if struck == Some("table: read back") {
            assert!(ran.ended.is_err());
            assert_eq!(made(&run_as_foretold(&place, &after)).len(), 1);
            assert_eq!(place.tables.rows("t"), fresh(&after, "t"));
            return;
        }
    }
}

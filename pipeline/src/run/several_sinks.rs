//! Several sinks, moved and renamed nodes, other settings: what is made again,
//! and for whom.

use std::collections::BTreeSet;

use super::test_kinds::{Act, Place, World, expected_rows, registry, uri};
use crate::{ConfigFile, DocumentId, Ledger, Resources};

/// A source, pages and a mark, and these sinks.
fn nodes(sinks: &str) -> String {
    format!(
        "[p.source.s]\nkind = 'papers'\nto = 4\nhas_states = true\n\
         [p.stage.p]\nkind = 'pages'\ninput = 's'\n\
         [p.stage.a]\nkind = 'mark'\ntag = 'a'\ninput = 'p'\n{sinks}"
    )
}

fn sink(name: &str, table: &str, input: &str) -> String {
    format!(
        "[p.sink.{name}]\nkind = 'table'\nhas_place = true\ntable = '{table}'\ninput = '{input}'\n"
    )
}

fn rows(marks: &str) -> Vec<String> {
    (0..4)
        .flat_map(|number| expected_rows(number, 0, 1, marks))
        .collect()
}

/// Runs; the documents that pages were made of.
fn made(place: &Place, nodes: &str) -> BTreeSet<String> {
    let ran = place.run(nodes, World::new(&place.tables));
    ran.report();
    ran.world.made().into_iter().map(|(uri, _)| uri).collect()
}

fn all() -> BTreeSet<String> {
    (0..4).map(uri).collect()
}

#[test]
fn a_sink_that_moves_to_another_table_gets_every_document() {
    let place = Place::default();
    made(&place, &nodes(&sink("k", "t", "a")));
    assert_eq!(made(&place, &nodes(&sink("k", "u", "a"))), all());
    assert_eq!(place.tables.rows("u"), rows("a"));
    // The table that it left is as it was, and is believed when the sink comes back.
    assert!(made(&place, &nodes(&sink("k", "t", "a"))).is_empty());
    assert_eq!(place.tables.rows("t"), rows("a"));
}

#[test]
fn a_sink_that_moves_to_another_input_gets_every_document() {
    let place = Place::default();
    let both = sink("k", "t", "a") + &sink("l", "u", "p");
    made(&place, &nodes(&both));
    let moved = sink("k", "t", "a") + &sink("l", "u", "a");
    assert_eq!(made(&place, &nodes(&moved)), all());
    assert_eq!(place.tables.rows("u"), rows("a"));
}

#[test]
fn names_and_an_added_sink_make_nothing_again_for_the_others() {
    let place = Place::default();
    made(&place, &nodes(&sink("k", "t", "a")));
    let version = |table: &str| place.tables.with(table, |table| table.version());
    let before = version("t");
    let renamed = nodes(&sink("other", "t", "b")).replace(".a]", ".b]");
    let renamed = renamed
        .replace(".p]", ".q]")
        .replace("input = 'p'", "input = 'q'");
    assert!(made(&place, &renamed).is_empty());
    // A second sink is filled, and nothing is written to the first one.
    let two = nodes(&(sink("k", "t", "a") + &sink("l", "u", "a")));
    assert_eq!(made(&place, &two), all());
    assert_eq!((place.tables.rows("u"), version("t")), (rows("a"), before));
    assert!(made(&place, &two).is_empty());
}

#[test]
fn a_document_that_one_of_two_sinks_lost_is_made_for_that_one() {
    let place = Place::default();
    let two = nodes(&(sink("k", "t", "a") + &sink("l", "u", "p")));
    made(&place, &two);
    place
        .tables
        .with("u", |table| table.remove(DocumentId::of(&uri(2))));
    let version = place.tables.with("t", |table| table.version());
    assert_eq!(made(&place, &two), BTreeSet::from([uri(2)]));
    assert_eq!(place.tables.rows("u"), rows(""));
    assert_eq!(place.tables.with("t", |table| table.version()), version);
    assert_eq!(place.documents().len(), 4);
}

#[test]
fn a_row_that_somebody_removed_is_made_again() {
    let place = Place::default();
    let one = nodes(&sink("k", "t", "a"));
    made(&place, &one);
    place
        .tables
        .with("t", |table| table.remove_row(DocumentId::of(&uri(3))));
    assert_eq!(made(&place, &one), BTreeSet::from([uri(3)]));
    assert_eq!(place.tables.rows("t"), rows("a"));
}

#[test]
fn the_dead_letters_of_a_sink_that_has_its_rows_stay() {
    let place = Place::default();
    let two = nodes(&(sink("k", "t", "a") + &sink("l", "u", "p")));
    let odd = |tag: &str, item: &str| match (tag, item) {
        ("a", "d003#2") => Act::SetAside,
        _ => Act::Pass,
    };
    place
        .run(&two, World::new(&place.tables).with_hook(odd))
        .report();
    assert_eq!(place.letters().len(), 1);
    place
        .tables
        .with("u", |table| table.remove(DocumentId::of(&uri(3))));
    assert_eq!(made(&place, &two), BTreeSet::from([uri(3)]));
    // `a` does not lead to the sink that lacked it, so its letter still holds.
    assert_eq!(place.letters().len(), 1);
    assert_eq!(place.documents()[&uri(3)].n_dead, 1);
}

#[test]
fn what_only_one_sink_holds_is_known_and_removed() {
    let place = Place::default();
    let two = nodes(&(sink("k", "t", "a") + &sink("l", "u", "p")));
    made(&place, &two);
    // As after a crash between the two commits of new documents.
    place.tables.clear("u");
    std::fs::remove_dir_all(place.folder.path().join("ledger")).expect("removed");
    let gone = two.replace("to = 4", "to = 0\nremoves = [0, 1, 2, 3]");
    let ran = place.run(&gone, World::new(&place.tables));
    let known = ran.world.known.lock().expect("no panic").len();
    assert_eq!((known, ran.report().totals.documents_removed), (4, 4));
    assert!(place.tables.rows("t").is_empty());
}

#[test]
fn a_garbled_ledger_is_put_aside_and_rebuilt_from_the_tables() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    // Behind the header, and behind the page that describes the tables.
    for start in [120, 4096 + 8] {
        let place = Place::default();
        let one = nodes(&sink("k", "t", "a"));
        made(&place, &one);
        let path = place.folder.path().join("ledger/p.db");
        let mut file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("opened");
        let n_bytes = file.metadata().expect("there").len();
        assert!(
            n_bytes > 8192,
            "the log was written into the file as it was closed"
        );
        for place in (start..n_bytes).step_by(7) {
            file.seek(SeekFrom::Start(place)).expect("within");
            file.write_all(&[0xa5]).expect("written");
        }
        drop(file);
        assert!(made(&place, &one).is_empty());
        assert!(path.with_extension("damaged").exists());
        assert_eq!(place.documents().len(), 4);
        assert_eq!(place.rebuild(&one), 4);
    }
}

#[test]
fn two_sinks_in_one_place_are_refused_with_both_places() {
    let toml = nodes(&(sink("k", "t", "a") + &sink("l", "t", "p")));
    let error = ConfigFile::parse("x.toml".as_ref(), &toml, &[], &registry(), &|_| None);
    let error = error.err().expect("refused").to_string();
    let expected = "the sinks `k` and `l` store rows in one place, `table:t`";
    assert_eq!(error.matches(expected).count(), 2, "{error}");
    assert!(
        error.contains("x.toml:15:9") && error.contains("x.toml:20:9"),
        "{error}"
    );
}

#[test]
fn pipelines_that_share_documents_and_a_table_are_warned_of() {
    let one = nodes(&sink("k", "t", "a"));
    let toml = format!("{one}{}", one.replace("p.", "q."));
    let warnings = |toml: &str| {
        let file = ConfigFile::parse("x.toml".as_ref(), toml, &[], &registry(), &|_| None);
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        file.warnings()
            .map(|warnings| warnings.render_warnings(false))
    };
    let warned = warnings(&toml).expect("they share both");
    let expected = "warning: the pipelines `p` and `q` both store documents of `papers`";
    assert!(warned.contains(expected), "{warned}");
    assert_eq!(warnings(&toml.replacen("'t'", "'u'", 1)), None);
}

#[test]
fn an_else_depends_on_what_its_siblings_take() {
    let fingerprint = |when: &str, otherwise: &str| {
        let first = sink("k", "t", "a");
        let first = first.replace(
            "input",
            &format!("when = '{when}'\nelse = '{otherwise}'\ninput"),
        );
        let toml = nodes(&(first + &sink("l", "u", "a") + &sink(otherwise, "v", "a")));
        let file = ConfigFile::parse("x.toml".as_ref(), &toml, &[], &registry(), &|_| None);
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let keys = file.pipelines()[0].sink_keys(&Resources::default());
        let of = |table: &str| {
            let mut keys = keys
                .iter()
                .filter(|key| key.identity == format!("table:{table}"));
            keys.next().expect("it is there").fingerprint.clone()
        };
        [of("t"), of("u"), of("v")]
    };
    let [t, u, v] = fingerprint("page < 3", "rest");
    let [t2, u2, v2] = fingerprint("page < 2", "rest");
    assert_eq!(u, u2);
    assert!(t != t2 && v != v2);
    assert_eq!(fingerprint("page < 3", "left"), [t, u, v]);
}

#[test]
fn rebuilding_counts_on_what_the_ledger_knew_and_forgets_the_marks() {
    let place = Place::default();
    let one = nodes(&sink("k", "t", "a"));
    made(&place, &one);
    place
        .tables
        .with("t", |table| table.remove_row(DocumentId::of(&uri(1))));
    let rebuilt = place.rebuild(&one);
    assert_eq!(rebuilt, 4);
    let ledger = Ledger::open(&place.folder.path().join("ledger"), "p").expect("opened");
    let documents = ledger.documents().expect("readable");
    let n_whole = documents.iter().filter(|document| {
        document
            .stored
            .values()
            .all(|stored| !stored.fingerprint.is_empty())
    });
    assert_eq!(n_whole.count(), 3);
    drop(ledger);
    assert_eq!(made(&place, &one), BTreeSet::from([uri(1)]));
}

//! `pagemill dead-letters` and `pagemill ledger`.

use std::fs;

use serde_json::Value;

use crate::support::{Mill, json, page_of, project, stderr, stdout};

/// A good document, a broken one and a locked one.
fn mill() -> Mill {
    let mill = Mill::new();
    let locked = fs::read(project().join("examples/documents/protected.pdf")).unwrap();
    mill.add("good.pdf", page_of("good"))
        .add("broken.pdf", &page_of("mended")[..40])
        .add("locked.pdf", locked);
    let (code, report) = mill.run();
    assert_eq!(code, 3, "{report:#}");
    mill
}

fn letters(mill: &Mill) -> Vec<Value> {
    let output = mill.command(&["dead-letters", "list", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    json(&output).as_array().unwrap().clone()
}

fn letter_of(mill: &Mill, name: &str) -> Value {
    let document = mill.uri(name);
    let letters = letters(mill);
    let mut letters = letters.iter();
    let letter = letters.find(|letter| letter["document"] == document);
    letter.expect("it was set aside").clone()
}

#[test]
fn letters_are_listed_and_shown_with_what_to_do() {
    let mill = mill();
    let output = mill.command(&["dead-letters", "list"]);
    let text = stdout(&output);
    assert!(text.starts_with("id        age"), "{text}");
    assert!(text.contains("  input/locked.pdf  "), "{text}");
    assert!(text.contains("\n2 dead letters; "), "{text}");

    let letter = letter_of(&mill, "locked.pdf");
    let id = &letter["id"].as_str().unwrap()[..8];
    assert!(text.contains(id), "{text}");
    let uri = mill.uri("locked.pdf");
    for named in [id, "input/locked.pdf", "./input/locked.pdf", &uri] {
        let output = mill.command(&["dead-letters", "show", named]);
        let text = stdout(&output);
        assert!(text.contains("needs a password"), "{text}");
        assert!(text.contains("\nhint          "), "{text}");
        assert!(text.contains(letter["file"].as_str().unwrap()), "{text}");
        assert!(!text.contains("broken.pdf"), "{text}");
    }
    let output = mill.command(&["dead-letters", "show", "zebra.pdf"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("hint: `pagemill dead-letters list` shows"),
        "{}",
        stderr(&output)
    );
    let output = mill.command(&["dead-letters", "drop"]);
    assert_eq!(output.status.code(), Some(2), "which ones?");
    let output = mill.command(&["dead-letters", "list", "--pipeline", "q"]);
    assert_eq!(output.status.code(), Some(2), "there is no such pipeline");
}

#[test]
fn names_of_documents_cannot_give_orders_to_the_terminal() {
    let (escape, line_break) = ("red\u{1b}[31m.pdf", "two\nlines.pdf");
    let bad = "bad\u{1b}[2J\n\u{9b}.pdf";
    let mill = Mill::new();
    mill.add(escape, page_of("good"))
        .add(line_break, page_of("good"))
        .add(bad, &page_of("good")[..40]);
    let run = mill.command(&["run"]);
    assert_eq!(run.status.code(), Some(3), "{}", stderr(&run));
    let outputs = [
        run,
        mill.command(&["ledger", "list"]),
        mill.command(&["dead-letters", "list"]),
        mill.command(&["dead-letters", "show", &mill.uri(bad)]),
        mill.command(&["run", "--set", "p.source.\u{1b}[31m.path=7"]),
    ];
    for output in &outputs {
        let text = stdout(output) + &stderr(output);
        let is_obeyed = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(is_obeyed), "{text:?}");
        assert!(text.contains(r"\u{1b}["), "{text:?}");
    }
    let listed = stdout(&outputs[1]);
    assert!(listed.contains(r"input/two\nlines.pdf"), "{listed}");
    // JSON is exact.
    let documents = json(&mill.command(&["ledger", "list", "--json"]));
    let documents = documents.as_array().unwrap();
    for name in [escape, line_break] {
        let is_it = |document: &Value| document["document"] == mill.uri(name);
        assert!(documents.iter().any(is_it), "{name:?} in {documents:#?}");
    }
    assert_eq!(letters(&mill)[0]["document"], mill.uri(bad));
}

#[test]
fn a_mended_document_is_fed_in_again_and_its_letter_is_gone() {
    let mill = mill();
    mill.add("broken.pdf", page_of("mended"));
    let output = mill.command(&["dead-letters", "retry", "input/broken.pdf", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report = json(&output);
    assert_eq!(report["documents_done"], 1, "{report:#}");
    assert_eq!(report["nodes"][0]["items"], 1, "{report:#}");
    let mut texts: Vec<_> = mill.rows().iter().map(|row| row["text"].clone()).collect();
    texts.sort_by_key(ToString::to_string);
    assert_eq!(texts, ["good", "mended"]);
    let left = letters(&mill);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["document"], mill.uri("locked.pdf"));
}

#[test]
fn a_document_that_fails_again_keeps_its_letter() {
    let mill = mill();
    let before = letter_of(&mill, "locked.pdf");
    let output = mill.command(&["dead-letters", "retry", "--all"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(!stderr(&output).contains("not fed in again"));
    let after = letter_of(&mill, "locked.pdf");
    assert_eq!(before["id"], after["id"]);
    assert!(before["at_unix_ms"].as_u64() < after["at_unix_ms"].as_u64());
    // With the password, said for this once.
    let passwords = "p.stage.pages.passwords=[\"millstone\"]";
    let arguments = ["dead-letters", "retry", "input/locked.pdf"];
    let output = mill.command(&[&arguments[..], &["--set", passwords]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_eq!(letters(&mill).len(), 1);
}

#[test]
fn a_document_that_no_source_brings_is_told_of() {
    let mill = mill();
    let arguments = ["dead-letters", "retry", "input/locked.pdf"];
    fs::create_dir(mill.path("other")).unwrap();
    let set = ["--set", "p.source.files.path=other"];
    let output = mill.command(&[&arguments[..], &set].concat());
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    assert!(
        stderr(&output).contains("error: `input/locked.pdf` was not fed in again"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn letters_of_earlier_runs_are_told_of_until_they_are_dropped() {
    let mill = mill();
    let output = mill.command(&["run"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains("  2 dead letters of earlier runs, still there\n"),
        "{text}"
    );
    assert!(
        text.contains("  dead letters are in data/dead-letters/p; `pagemill dead-letters list` "),
        "{text}"
    );
    let output = mill.command(&["dead-letters", "drop", "input/broken.pdf"]);
    assert_eq!(stdout(&output), "1 letter removed\n", "{}", stderr(&output));
    let (code, report) = mill.run();
    assert_eq!((code, &report["dead_letters_before"]), (3, &Value::from(1)));
    mill.command(&["dead-letters", "drop", "--all"]);
    let (code, report) = mill.run();
    assert_eq!(code, 0, "{report:#}");
    for command in [&["list"][..], &["retry", "--all"], &["drop", "--all"]] {
        let output = mill.command(&[&["dead-letters"], command].concat());
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(stdout(&output), "there are no dead letters\n");
    }
}

#[test]
fn a_document_with_several_letters_is_fed_in_once() {
    let mill = Mill::with(
        r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.one]
kind = "render_pdf"
input = "files"
[p.stage.two]
kind = "render_pdf"
input = "files"
[p.sink.ones]
kind = "jsonl"
input = "one"
path = "rows.jsonl"
[p.sink.twos]
kind = "jsonl"
input = "two"
path = "twos.jsonl"
"#,
    );
    mill.add("broken.pdf", &page_of("mended")[..40]);
    assert_eq!(mill.run().0, 3);
    assert_eq!(letters(&mill).len(), 2);
    mill.add("broken.pdf", page_of("mended"));
    let output = mill.command(&["dead-letters", "retry", "--all", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report = json(&output);
    assert_eq!(report["nodes"][0]["items"], 1, "{report:#}");
    assert!(letters(&mill).is_empty());
}

/// Into a table, whose rows tell what is done.
const TO_TABLE: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 40
[p.stage.chunks]
kind = "chunk_text"
input = "pages"
[p.sink.table]
kind = "lancedb"
input = "chunks"
uri = "table"
"#;

#[test]
fn a_ledger_is_made_anew_from_the_table() {
    let mill = Mill::with(TO_TABLE);
    mill.add("a.pdf", page_of("first"))
        .add("b.pdf", page_of("second"));
    let output = mill.command(&["ledger", "list"]);
    assert_eq!(stdout(&output), "`p` has done no document yet\n");
    assert!(!mill.path("data").exists(), "looking makes nothing");
    assert_eq!(mill.run().0, 0);
    fs::remove_dir_all(mill.path("data/ledger")).unwrap();
    let output = mill.command(&["ledger", "rebuild"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).starts_with("`p`: the ledger now knows 2 documents"),
        "{}",
        stdout(&output)
    );
    let (code, report) = mill.run();
    assert_eq!(code, 0);
    assert_eq!(report["documents_skipped"], 2, "{report:#}");
    assert_eq!(report["documents_done"], 0, "{report:#}");
}

#[test]
fn a_document_that_the_ledger_forgets_is_done_again() {
    let mill = Mill::with(TO_TABLE);
    mill.add("a.pdf", page_of("first"))
        .add("b.pdf", page_of("second"));
    assert_eq!(mill.run().0, 0);
    let output = mill.command(&["ledger", "forget", "./input/a.pdf"]);
    let text = stdout(&output);
    assert_eq!(text, "`p`: 1 document is done again by the next run\n");
    let output = mill.command(&["ledger", "list", "p", "--json"]);
    let listed = json(&output);
    assert_eq!(listed[0]["document"], mill.uri("a.pdf"));
    assert_eq!(listed[0]["status"], "again");
    assert_eq!(listed[1]["status"], "done");
    assert_eq!(listed[1]["rows"]["table"], 1);
    let text = stdout(&mill.command(&["ledger", "list"]));
    assert!(
        text.ends_with("\n2 documents; the next run does 1 of them again\n"),
        "{text}"
    );
    let (_, report) = mill.run();
    assert_eq!(report["documents_done"], 1, "{report:#}");
    assert_eq!(report["documents_skipped"], 1, "{report:#}");
    let output = mill.command(&["ledger", "forget", "input/c.pdf"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("hint: `pagemill ledger list`"));
    let output = mill.command(&["ledger", "list", "--set", "p.ledger=false"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("hint: remove `ledger = false`"));
}

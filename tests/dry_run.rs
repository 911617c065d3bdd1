//! `pagemill run --dry-run`: the counts are right, and nothing on disk changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Mill, json as json_of, page_of, pdf_of_pages, stderr, stdout};

const TO_BOTH: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 64
[p.stage.images]
kind = "decode_image"
input = "pages"
[p.stage.chunks]
kind = "chunk_text"
input = "images"
[p.sink.table]
kind = "lancedb"
input = "chunks"
uri = "table"
[p.sink.rows]
kind = "jsonl"
input = "chunks"
path = "rows"
"#;

/// Every file and folder, with its content.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            files.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    files
}

/// The forecast, after a check that nothing has changed.
#[track_caller]
fn dry_run(mill: &Mill, arguments: &[&str]) -> Value {
    let before = files(mill.folder.path());
    let output = mill.command(&[&["run", "--dry-run", "--json"][..], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let after = files(mill.folder.path());
    let names = |files: &BTreeMap<PathBuf, _>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    assert!(after == before, "a file has changed");
    json_of(&output)
}

/// The counts of documents that are not 0.
fn documents(forecast: &Value) -> Value {
    let counts = forecast["documents"].as_object().unwrap();
    let counts = counts.iter().filter(|(_, n)| **n != json!(0));
    Value::Object(counts.map(|(name, n)| (name.clone(), n.clone())).collect())
}

fn mill() -> Mill {
    let mill = Mill::with(TO_BOTH);
    mill.add("a.pdf", pdf_of_pages(&["one", "two", "three"]))
        .add("b.pdf", page_of("one page"))
        .add("c.pdf", page_of("another page"));
    mill
}

#[test]
fn before_the_first_run_all_is_new_and_no_folder_is_made() {
    let mill = mill();
    mill.add("broken.pdf", b"%PDF-1.7\nand no more");
    let forecast = dry_run(&mill, &[]);
    let expected = json!({ "new": 3, "unreadable": 1 });
    assert_eq!(documents(&forecast), expected);
    assert_eq!(forecast["pages"], 5);
    assert_eq!(forecast["seconds"], Value::Null);
    assert_eq!(forecast["nodes"][0]["pages"], 5);
    let n_bytes = ["a.pdf", "b.pdf", "c.pdf"].map(|name| {
        let path = mill.path("input").join(name);
        fs::metadata(path).unwrap().len()
    });
    assert_eq!(forecast["bytes"], n_bytes.iter().sum::<u64>());
}

#[test]
fn new_changed_gone_and_unchanged_documents_are_told_apart() {
    let mill = mill();
    let (code, report) = mill.run();
    assert_eq!((code, &report["documents_done"]), (0, &json!(3)));
    let forecast = dry_run(&mill, &[]);
    assert_eq!(documents(&forecast), json!({ "unchanged": 3 }));
    assert_eq!(
        (&forecast["pages"], &forecast["bytes"]),
        (&json!(0), &json!(0))
    );

    mill.add("a.pdf", pdf_of_pages(&["one", "two", "three", "four"]))
        .add("d.pdf", pdf_of_pages(&["five", "six"]));
    fs::remove_file(mill.path("input/c.pdf")).unwrap();
    let mut expected = json!({ "new": 1, "changed": 1, "unchanged": 1, "gone": 1 });
    let forecast = dry_run(&mill, &[]);
    assert_eq!(documents(&forecast), expected);
    assert_eq!(forecast["pages"], 6);
    assert!(forecast["seconds"].as_f64().unwrap() > 0.0, "{forecast:#}");
    expected["removed"] = json!(1);
    assert_eq!(documents(&dry_run(&mill, &["--prune"])), expected);
    // Watching follows deletions, and the dry run of it ends.
    let watched = ["--set", "p.source.files.watch=true"];
    assert_eq!(documents(&dry_run(&mill, &watched)), expected);

    let forecast = dry_run(&mill, &["--set", "p.stage.pages.first_pages=1"]);
    assert_eq!(forecast["pages"], 3, "{forecast:#}");
    let made_again = json!({ "new": 1, "changed": 1, "made_again": 1, "gone": 1 });
    assert_eq!(documents(&forecast), made_again);
    assert_eq!(forecast["made_again_for"], json!({ "rows": 1, "table": 1 }));
    let forecast = dry_run(&mill, &["--set", "p.stage.pages.max_pages=3"]);
    let expected = json!({ "new": 1, "unreadable": 1, "unchanged": 1, "gone": 1 });
    assert_eq!(documents(&forecast), expected);

    // The run does what was announced.
    let output = mill.command(&["run", "--json", "--prune"]);
    let report = json_of(&output);
    assert_eq!(report["documents_done"], 2, "{report:#}");
    assert_eq!(report["documents_removed"], 1, "{report:#}");
    assert_eq!(report["pages_done"], 6, "{report:#}");
}

#[test]
fn a_sink_whose_rows_are_gone_is_noticed() {
    let mill = mill();
    assert_eq!(mill.run().0, 0);
    fs::remove_dir_all(mill.path("rows")).unwrap();
    let forecast = dry_run(&mill, &[]);
    assert_eq!(forecast["made_again_for"], json!({ "rows": 3 }));
    fs::remove_dir_all(mill.path("table")).unwrap();
    let forecast = dry_run(&mill, &[]);
    let expected = json!({ "rows": 3, "table": 3 });
    assert_eq!(forecast["made_again_for"], expected);
    // Without its ledger, the rows tell what is done.
    assert_eq!(mill.run().0, 0);
    fs::remove_dir_all(mill.path("data/ledger")).unwrap();
    assert_eq!(documents(&dry_run(&mill, &[])), json!({ "unchanged": 3 }));
}

#[test]
fn people_get_a_table_and_several_pipelines_a_block_each() {
    let mill = mill();
    let toml = format!(
        "{TO_BOTH}{}",
        TO_BOTH.replace("p.", "q.").replace("\"rows\"", "\"q\"")
    );
    fs::write(mill.path("pipelines.toml"), toml).unwrap();
    let output = mill.command(&["run", "--all", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.starts_with("p: dry run, nothing was changed\n"),
        "{text}"
    );
    assert!(
        text.contains("\n\nq: dry run, nothing was changed\n"),
        "{text}"
    );
    assert!(text.contains("\n  new                    3\n"), "{text}");
    let output = mill.command(&["run", "p", "q", "--dry-run", "--json"]);
    let names: Vec<Value> = json_of(&output).as_array().unwrap().clone();
    assert_eq!(names.len(), 2);
    let output = mill.command(&["run", "--dry-run", "--trace", "t.json"]);
    assert_eq!(output.status.code(), Some(2));
}

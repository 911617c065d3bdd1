//! How documents are named, and which of them a run removes.

use std::fs;
use std::process::Output;

use crate::support::{Mill, json, page_of, stderr};

/// The exit code and the documents done, skipped and removed.
fn counts(output: &Output) -> (Option<i32>, [u64; 3]) {
    let report = json(output);
    let names = ["documents_done", "documents_skipped", "documents_removed"];
    let count = |name| report[name].as_u64().unwrap();
    (output.status.code(), names.map(count))
}

#[test]
fn an_emptied_folder_is_pruned_only_where_that_is_insisted_on() {
    let mill = Mill::new();
    mill.add("a.pdf", page_of("first"))
        .add("b.pdf", page_of("second"));
    assert_eq!(mill.run().0, 0);
    for name in ["a.pdf", "b.pdf"] {
        fs::remove_file(mill.path("input").join(name)).unwrap();
    }
    let output = mill.command(&["run", "--json", "--prune"]);
    assert_eq!(counts(&output), (Some(1), [0, 0, 0]));
    let text = stderr(&output);
    let refused = "pruning is refused: no file was found, and 2 documents are known";
    assert!(text.contains(refused), "{text}");
    assert!(text.contains("run again with `--prune=all`"), "{text}");
    assert_eq!(mill.rows().len(), 2);
    let output = mill.command(&["run", "--json", "--prune=all"]);
    assert_eq!(counts(&output), (Some(0), [0, 0, 2]));
    let text = stderr(&output);
    assert!(
        text.contains("2 documents are known, 2 of them are gone"),
        "{text}"
    );
    assert_eq!(mill.rows().len(), 0);
    let output = mill.command(&["run", "--prune=none"]);
    assert_eq!(output.status.code(), Some(2), "there is no such choice");
}

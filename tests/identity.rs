//! Tests how documents are identified, and which of them a run removes.

use std::fs;
use std::process::Output;

use crate::support::{Mill, json, page_of, stderr, stdout};

/// The exit code and the documents done, skipped and removed.
fn counts(output: &Output) -> (Option<i32>, [u64; 3]) {
    let report = json(output);
    let names = ["documents_done", "documents_skipped", "documents_removed"];
    let count = |name| report[name].as_u64().unwrap();
    (output.status.code(), names.map(count))
}

#[test]
fn each_spelling_of_a_folder_names_the_same_documents() {
    let mill = Mill::new();
    mill.add("a.pdf", page_of("first"));
    assert_eq!(mill.run().0, 0);
    let absolute = mill.path("input").display().to_string();
    for spelling in ["./input", "x/../input", "input/", &absolute] {
        let set = format!("p.source.files.path={spelling}");
        let output = mill.command(&["run", "--json", "--set", &set]);
        assert_eq!(counts(&output), (Some(0), [0, 1, 0]), "{spelling}");
    }
    let rows = mill.rows();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["document"], mill.uri("a.pdf"));
    // People read what they can type.
    let text = stdout(&mill.command(&["ledger", "list"]));
    assert!(text.contains("  input/a.pdf\n"), "{text}");
}

#[test]
fn a_folder_with_a_root_is_moved_without_making_anything_again() {
    let mill = Mill::new();
    mill.add("a.pdf", page_of("first"));
    let run = |path: &str| {
        let (path, root) = (
            format!("p.source.files.path={path}"),
            "p.source.files.root=papers",
        );
        mill.command(&["run", "--json", "--prune", "--set", &path, "--set", root])
    };
    assert_eq!(counts(&run("input")), (Some(0), [1, 0, 0]));
    fs::rename(mill.path("input"), mill.path("moved")).unwrap();
    assert_eq!(counts(&run("moved")), (Some(0), [0, 1, 0]));
    assert_eq!(mill.rows()[0]["document"], "papers/a.pdf");
    let output = mill.command(&["ledger", "forget", "papers/a.pdf"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
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

#[test]
fn a_tilde_in_a_path_is_the_home_folder_in_the_file_and_in_set() {
    let mill = Mill::with(
        r#"
[p]
dead_letters = "~/letters"
ledger = "~/ledger"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
[p.sink.rows]
kind = "jsonl"
input = "pages"
path = "~/rows"
"#,
    );
    let home = mill.path("home");
    fs::create_dir_all(home.join("papers")).unwrap();
    fs::write(home.join("papers/a.pdf"), page_of("first")).unwrap();
    fs::write(home.join("papers/b.pdf"), "%PDF-1.7\n").unwrap();
    let run = |path: &str| {
        let set = format!("p.source.files.path={path}");
        let arguments = ["run", "--json", "--set", &set];
        let mut command = mill.binary(&arguments);
        command
            .env("HOME", &home)
            .output()
            .expect("the binary starts")
    };
    let output = run("~/papers");
    assert_eq!(counts(&output), (Some(3), [1, 0, 0]), "{}", stderr(&output));
    for path in ["rows", "letters/p", "ledger/p.db"] {
        assert!(home.join(path).exists(), "{path}");
    }
    let output = run("~ann/papers");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("or `./~ann/papers`"),
        "{}",
        stderr(&output)
    );
}

//! A change of a later stage renders nothing: its input is read from the rows of a table.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::{Mill, file_name, json, pdf_of_pages, stderr, table_rows};

/// Pages in one table, and their chunks in another.
const PAGES_AND_CHUNKS: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 64
[p.stage.small]
kind = "thumbnail"
input = "pages"
long_side_px = 32
[p.sink.page_table]
kind = "lancedb"
input = "small"
uri = "table"
table = "pages"
[p.stage.chunks]
kind = "chunk_text"
input = "small"
max_chars = 40
[p.sink.chunk_table]
kind = "lancedb"
input = "chunks"
uri = "table"
table = "chunks"
"#;

fn mill(toml: &str) -> Mill {
    let mill = Mill::with(toml);
    for number in 0..6 {
        let texts: Vec<String> = (1..=1 + number % 4)
            .map(|page| format!("document {number} says on page {page} more than a chunk holds"))
            .collect();
        mill.add(&format!("{number}.pdf"), pdf_of_pages(&texts));
    }
    mill
}

/// Runs `toml`; the report, and the pages that were rendered.
fn run(mill: &Mill, toml: &str) -> (Value, BTreeSet<String>) {
    std::fs::write(mill.path("pipelines.toml"), toml).unwrap();
    let mut command = mill.binary(&["run", "--json"]);
    let output = command.env("PAGEMILL_LOG", "pagemill=debug").output();
    let output = output.expect("the binary starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let log = stderr(&output);
    let rendered = log.lines().filter_map(|line| line.split_once("rendered `"));
    let rendered = rendered.map(|(_, page)| page.trim_end_matches('`').to_owned());
    (json(&output), rendered.collect())
}

/// The rows of a table, by the name of the document.
fn rows(mill: &Mill, table: &str) -> BTreeMap<(String, u32, u32), String> {
    let rows = table_rows(&mill.path("table"), table).into_iter();
    rows.map(|((uri, page, part), text)| ((file_name(&uri).to_owned(), page, part), text))
        .collect()
}

#[test]
fn a_new_chunker_renders_nothing_and_makes_the_rows_of_a_fresh_run() {
    let mill_of_old = mill(PAGES_AND_CHUNKS);
    let (_, rendered) = run(&mill_of_old, PAGES_AND_CHUNKS);
    assert_eq!(rendered.len(), 1 + 2 + 3 + 4 + 1 + 2);
    let pages = rows(&mill_of_old, "pages");

    let changed = PAGES_AND_CHUNKS.replace("max_chars = 40", "max_chars = 25");
    std::fs::write(mill_of_old.path("pipelines.toml"), &changed).unwrap();
    let forecast = json(&mill_of_old.command(&["run", "--dry-run", "--json"]));
    let documents = &forecast["documents"];
    assert_eq!(
        (&documents["made_again"], &documents["from_rows"]),
        (&6.into(), &6.into())
    );
    assert_eq!(
        (&forecast["pages"], &forecast["pages_from_rows"]),
        (&0.into(), &13.into())
    );
    let (report, rendered) = run(&mill_of_old, &changed);
    assert_eq!(rendered, BTreeSet::new());
    assert_eq!(report["documents_refilled"], 6, "{report:#}");

    let fresh = mill(&changed);
    run(&fresh, &changed);
    assert_eq!(rows(&mill_of_old, "chunks"), rows(&fresh, "chunks"));
    assert_eq!(rows(&mill_of_old, "pages"), pages);
    let (report, _) = run(&mill_of_old, &changed);
    assert_eq!(report["documents_skipped"], 6, "{report:#}");
}

#[test]
fn another_size_of_the_rendered_page_renders_every_page() {
    let mill = mill(PAGES_AND_CHUNKS);
    run(&mill, PAGES_AND_CHUNKS);
    let changed = PAGES_AND_CHUNKS.replace("long_side_px = 64", "long_side_px = 65");
    let (report, rendered) = run(&mill, &changed);
    let n_refilled = &report["documents_refilled"];
    assert_eq!((rendered.len(), n_refilled), (13, &Value::from(0)));
}

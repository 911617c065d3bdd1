//! SIGTERM in the middle of a long document: the run ends soon, and the next one
//! makes only the pages that are missing.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use pagemill::pipeline::{DocumentId, Ledger};
use serde_json::Value;

use crate::support::{Mill, pdf_of_pages, signal, table_rows};

const N_PAGES: u32 = 2000;

const TO_TABLE: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 32
edge = { max_items = 4 }
[p.stage.chunks]
kind = "chunk_text"
input = "pages"
edge = { max_items = 4 }
[p.sink.table]
kind = "lancedb"
input = "chunks"
uri = "table"
durability = "process"
edge = { max_items = 4 }
"#;

fn mill() -> Mill {
    let mill = Mill::with(TO_TABLE);
    let texts: Vec<String> = (1..=N_PAGES).map(|page| format!("page {page}")).collect();
    mill.add("long.pdf", pdf_of_pages(&texts));
    mill
}

/// Runs, and sends SIGTERM once so many pages are rendered. Returns the report and
/// the pages that were rendered, each as often as it was.
fn run_and_drain(mill: &Mill, after: usize) -> (Value, Vec<u32>) {
    let mut command = mill.binary(&["run", "--json"]);
    command
        .env("PAGEMILL_LOG", "pagemill=debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let said = BufReader::new(child.stderr.take().expect("piped"));
    let mut rendered = Vec::new();
    for line in said.lines() {
        let line = line.expect("text");
        let Some((_, page)) = line.split_once("rendered `long.pdf#") else {
            continue;
        };
        rendered.push(page.trim_end_matches('`').parse().expect("a number"));
        if rendered.len() == after {
            signal(&child, "TERM");
        }
    }
    let mut printed = String::new();
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_to_string(&mut printed).expect("text");
    let status = child.wait().expect("it is ours");
    assert_eq!(status.code(), Some(0), "{printed}");
    (serde_json::from_str(&printed).expect("JSON"), rendered)
}

#[test]
fn a_drained_run_is_continued_at_the_first_page_that_it_did_not_send() {
    let mill = mill();
    let (mut all, mut n_before) = (Vec::new(), 0);
    for after in [60, 100] {
        let (report, rendered) = run_and_drain(&mill, after);
        // Some pages go on while the signal is on its way.
        assert!(rendered.len() < 800, "{}", rendered.len());
        all.extend(rendered);
        assert_eq!(report["stopped"], "drained");
        assert_eq!(report["documents_unfinished"], 1);
        assert_eq!(report["documents_done"], 0);
        assert_eq!(report["pages_unfinished"], all.len());
        assert_eq!(report["pages_resumed"], n_before);
        n_before = all.len();
        let ledger = Ledger::open(&mill.path("data/ledger"), "p").expect("it opens");
        let unfinished = ledger.unfinished().expect("it is read");
        let staged: BTreeSet<u32> = all.iter().copied().collect();
        let id = DocumentId::of(&mill.uri("long.pdf"));
        assert_eq!(unfinished, [(id, staged)]);
    }
    let (report, rendered) = run_and_drain(&mill, usize::MAX);
    all.extend(rendered);
    assert_eq!(report["pages_resumed"], n_before);
    assert_eq!(report["documents_done"], 1);
    assert_eq!(all, (1..=N_PAGES).collect::<Vec<_>>());
    let rows = table_rows(&mill.path("table"), "p");
    assert_eq!(rows.len(), N_PAGES as usize);
    // The table tells by itself that it holds the whole document.
    std::fs::remove_dir_all(mill.path("data/ledger")).expect("removed");
    let (report, rendered) = run_and_drain(&mill, usize::MAX);
    assert_eq!(
        (report["documents_skipped"].as_u64(), rendered.len()),
        (Some(1), 0)
    );
}

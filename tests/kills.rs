//! Kill -9 at any moment: after the next run the table is that of a run nobody
//! disturbed, and nothing that was durable was made again.
//!
//! `PAGEMILL_KILLS=200` kills so many times; the default is quick.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use pagemill::pipeline::{DocumentId, Ledger};

use crate::support::{Mill, Random, file_name, n_kills, pdf_of_pages, table_rows};

const N_DOCUMENTS: usize = 60;

/// Small edges and commits, so that a kill finds work at every step.
const TO_TABLE: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 64
workers = 2
edge = { max_items = 4 }
[p.stage.chunks]
kind = "chunk_text"
input = "pages"
[p.sink.table]
kind = "lancedb"
input = "chunks"
uri = "table"
durability = "process"
commit = { max_rows = 40, max_wait_ms = 20 }
"#;

fn mill() -> Mill {
    let mill = Mill::with(TO_TABLE);
    for number in 0..N_DOCUMENTS {
        // A few long documents: those are resumed inside.
        let n_pages = if number % 20 == 7 { 40 } else { 1 + number % 5 };
        let texts: Vec<String> = (1..=n_pages)
            .map(|page| format!("document {number} says on page {page} what it says"))
            .collect();
        mill.add(&format!("{number:02}.pdf"), pdf_of_pages(&texts));
    }
    mill
}

/// Runs, and kills the process once it has said so many lines. Returns whether
/// it came to its end before, the pages that it rendered, and how much it said.
fn run_until(mill: &Mill, n_lines: u64) -> (bool, BTreeSet<String>, u64) {
    let mut command = mill.binary(&["run", "--json"]);
    command
        .env("PAGEMILL_LOG", "pagemill=trace")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let said = BufReader::new(child.stderr.take().expect("piped"));
    let (mut rendered, mut n_said) = (BTreeSet::new(), 0);
    for line in said.lines() {
        let Ok(line) = line else { break };
        if let Some((_, page)) = line.split_once("rendered `") {
            rendered.insert(page.trim_end_matches('`').to_owned());
        }
        n_said += 1;
        if n_said == n_lines {
            child.kill().expect("it is ours"); // SIGKILL; what it said is still read.
        }
    }
    let status = child.wait().expect("it is ours");
    (status.code() == Some(0), rendered, n_said)
}

/// Pages that are durable: in the table, or staged and noted.
fn durable(mill: &Mill) -> BTreeSet<String> {
    let rows = table_rows(&mill.path("table"), "p");
    let mut durable: BTreeSet<String> = rows
        .keys()
        .map(|(uri, page, _)| label(uri, *page))
        .collect();
    let ledger = Ledger::open(&mill.path("data/ledger"), "p").expect("it opens");
    let names: BTreeMap<DocumentId, String> = (0..N_DOCUMENTS)
        .map(|number| mill.uri(&format!("{number:02}.pdf")))
        .map(|uri| (DocumentId::of(&uri), uri))
        .collect();
    for (id, pages) in ledger.unfinished().expect("it is read") {
        durable.extend(pages.into_iter().map(|page| label(&names[&id], page)));
    }
    durable
}

fn label(uri: &str, page: u32) -> String {
    format!("{}#{page}", file_name(uri))
}

type Rows = BTreeMap<(String, u32, u32), String>;

/// The rows of the table, by the names of the documents.
fn rows_of(mill: &Mill) -> Rows {
    let rows = table_rows(&mill.path("table"), "p").into_iter();
    rows.map(|((uri, page, part), text)| ((file_name(&uri).to_owned(), page, part), text))
        .collect()
}

fn undisturbed() -> (Rows, u64) {
    let mill = mill();
    let (ended, rendered, n_said) = run_until(&mill, u64::MAX);
    assert!(ended);
    let rows = rows_of(&mill);
    assert_eq!(rows.len(), rendered.len());
    (rows, n_said)
}

#[test]
fn killed_at_any_moment_nothing_is_lost_twice_or_made_again() {
    let n_kills = n_kills(8);
    let (expected, n_said) = undisturbed();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut n_killed, mut n_rounds, mut n_rendered, mut n_again) = (0, 0, 0, 0);
    while n_killed < n_kills {
        let mill = mill();
        let mut made = BTreeSet::new();
        loop {
            let before = durable_if_any(&mill);
            let moment = 1 + random.below(n_said);
            let (ended, rendered, _) = run_until(&mill, moment);
            let again: Vec<&String> = rendered.intersection(&before).collect();
            assert!(
                again.is_empty(),
                "durable before, and made again: {again:?}"
            );
            n_rendered += rendered.len();
            n_again += rendered.intersection(&made).count();
            made.extend(rendered);
            if ended {
                break;
            }
            n_killed += 1;
        }
        n_rounds += 1;
        let rows = rows_of(&mill);
        assert_eq!(rows, expected, "after {n_killed} kills");
        let ledger = Ledger::open(&mill.path("data/ledger"), "p").expect("it opens");
        let known = ledger.documents().expect("it is read");
        assert_eq!(known.len(), N_DOCUMENTS);
        let n_rows: u64 = known
            .iter()
            .flat_map(|known| known.rows().into_values())
            .sum();
        assert!(n_rows > 0 && ledger.unfinished().expect("it is read").is_empty());
    }
    eprintln!(
        "{n_killed} kills over {n_rounds} tables of {} pages: {n_rendered} pages rendered, \
         {n_again} of them again because they were not durable yet, none that was",
        expected.len()
    );
}

fn durable_if_any(mill: &Mill) -> BTreeSet<String> {
    if mill.path("table/p.lance").exists() {
        durable(mill)
    } else {
        BTreeSet::new()
    }
}

#[test]
fn two_runs_at_once_into_one_table_store_every_document_once() {
    let (expected, _) = undisturbed();
    let mill = mill();
    let run = |ledger: &str| {
        let set = format!("p.ledger={ledger}");
        let mut command = mill.binary(&["run", "--json", "--set", &set]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    };
    // Two with ledgers of their own, as on two machines, and two with one.
    let runs = [run("one"), run("two"), run("three"), run("three")];
    for run in runs {
        let output = run.wait_with_output().expect("it is ours");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(rows_of(&mill), expected);
}

#[test]
fn a_full_disk_stops_the_run_clearly_and_the_next_one_goes_on() {
    let (expected, _) = undisturbed();
    let mill = mill();
    // A file may have 24 KiB: a small disk, for one process.
    let script = format!(
        "ulimit -f 24; exec '{}' run",
        env!("CARGO_BIN_EXE_pagemill")
    );
    let output = Command::new("bash")
        .current_dir(mill.folder.path())
        .args(["-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("bash is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("hint: ") && said.contains("make room"),
        "{said}"
    );
    let (ended, _, _) = run_until(&mill, u64::MAX);
    assert!(ended);
    assert_eq!(rows_of(&mill), expected);
}

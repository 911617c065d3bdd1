//! SIGKILL at random instants where there is more than one of something: tables,
//! sinks, pipelines, versions of a document. After the next undisturbed run, rows,
//! ledgers and files on disk are those of runs that nobody disturbed.
//!
//! `PAGEMILL_KILLS=1000 cargo test --workspace kill_matrix -- --nocapture` kills so
//! many times, and prints what was found; the default is quick.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use futures::TryStreamExt as _;
use lance::Dataset;
use lance::index::DatasetIndexExt as _;
use pagemill::pipeline::Ledger;

use crate::support::{Mill, Random, file_name, n_kills, pdf_of_pages};

const N_DOCUMENTS: u64 = 20;

/// What is disturbed.
struct Shape {
    name: &'static str,
    /// Sinks and further pipelines, behind the source and stages of [`HEAD`].
    toml: fn() -> String,
    pipelines: &'static [&'static str],
    tables: &'static [&'static str],
}

/// Small edges and commits, so that a kill finds work at every step.
const HEAD: &str = r#"
[P.source.files]
kind = "read_files"
path = "input"
include = ["INCLUDE"]
[P.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 48
workers = 2
edge = { max_items = 4 }
[P.stage.chunks]
kind = "chunk_text"
input = "pages"
"#;

const SINK: &str = r#"
[P.sink.NAME]
kind = "lancedb"
input = "INPUT"
uri = "tables"
table = "TABLE"
durability = "DURABILITY"
commit = { max_rows = 30, max_wait_ms = 20 }
"#;

fn head(pipeline: &str, include: &str) -> String {
    HEAD.replace('P', pipeline).replace("INCLUDE", include)
}

fn sink(pipeline: &str, name: &str, table: &str, input: &str) -> String {
    SINK.replacen('P', pipeline, 1)
        .replace("NAME", name)
        .replace("TABLE", table)
        .replace("INPUT", input)
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "one table",
        toml: || head("p", "*.pdf") + &sink("p", "k", "t", "chunks"),
        pipelines: &["p"],
        tables: &["t"],
    },
    Shape {
        name: "two tables",
        toml: || {
            head("p", "*.pdf") + &sink("p", "k", "t", "chunks") + &sink("p", "l", "u", "pages")
        },
        pipelines: &["p"],
        tables: &["t", "u"],
    },
    Shape {
        name: "routed sinks",
        toml: || {
            let first = sink("p", "k", "t", "chunks") + "when = \"page < 3\"\nelse = \"l\"\n";
            head("p", "*.pdf") + &first + &sink("p", "l", "u", "chunks")
        },
        pipelines: &["p"],
        tables: &["t", "u"],
    },
    Shape {
        name: "two pipelines",
        toml: || {
            let first = head("p", "*[0-4].pdf") + &sink("p", "k", "t", "chunks");
            first + &head("q", "*[5-9].pdf") + &sink("q", "k", "t", "chunks")
        },
        pipelines: &["p", "q"],
        tables: &["t"],
    },
];

/// The documents of a folder: number and version.
type Documents = BTreeMap<u64, u64>;

fn write(mill: &Mill, number: u64, version: u64) {
    // One long document, which is resumed inside.
    let n_pages = if number == 7 { 30 } else { 1 + number % 5 };
    let texts: Vec<String> = (1..=n_pages)
        .map(|page| format!("document {number} in version {version} has a page {page}"))
        .collect();
    mill.add(&format!("{number:02}.pdf"), pdf_of_pages(&texts));
}

/// Some documents come, change or go.
fn change(mill: &Mill, documents: &mut Documents, random: &mut Random) {
    for _ in 0..3 {
        let number = random.below(N_DOCUMENTS + 5);
        match (documents.get(&number).copied(), random.below(3)) {
            (Some(_), 0) => {
                documents.remove(&number);
                std::fs::remove_file(mill.path("input").join(format!("{number:02}.pdf"))).unwrap();
            }
            (version, _) => {
                let version = version.map_or(0, |version| version + 1);
                documents.insert(number, version);
                write(mill, number, version);
            }
        }
    }
    // A long document changes often: that is where a version is half stored.
    if let Some(version) = documents.get(&7).copied().filter(|_| random.below(2) == 0) {
        documents.insert(7, version + 1);
        write(mill, 7, version + 1);
    }
}

fn mill(toml: &str, documents: &Documents) -> Mill {
    let mill = Mill::with(toml);
    for (number, version) in documents {
        write(&mill, *number, *version);
    }
    mill
}

fn start(mill: &Mill) -> Child {
    let mut command = mill.binary(&["run", "--all", "--json", "--prune"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("the binary starts")
}

/// Runs, and kills the process after this time. Returns whether it was killed.
fn run_until(mill: &Mill, at: Duration) -> bool {
    let mut child = start(mill);
    let (ended, end) = mpsc::sync_channel::<()>(1);
    let mut said = child.stderr.take().expect("piped");
    // The pipe closes when the process ends, workers included.
    let read = move || {
        let _read = std::io::copy(&mut said, &mut std::io::sink());
        drop(ended);
    };
    let reader = std::thread::Builder::new().name("reader".into());
    let reader = reader.spawn(read).expect("a thread starts");
    let is_alive = matches!(end.recv_timeout(at), Err(mpsc::RecvTimeoutError::Timeout));
    if is_alive {
        child.kill().expect("it is ours");
    }
    let status = child.wait().expect("it is ours");
    reader.join().expect("it reads");
    assert!(is_alive || status.success(), "{status}");
    is_alive && !status.success()
}

fn run_to_the_end(mill: &Mill) -> (Duration, String) {
    let since = Instant::now();
    let output = start(mill).wait_with_output().expect("it is ours");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    (since.elapsed(), said)
}

/// Pipeline, name of the document, page, part and text.
type Row = (String, String, Option<u32>, Option<u32>, String);

/// Rows of a table, and the paths below its folder that some version names.
async fn read_table(folder: &Path) -> (Vec<Row>, BTreeSet<String>) {
    let dataset = Dataset::open(folder.to_str().expect("UTF-8"))
        .await
        .expect("it opens");
    let mut scanner = dataset.scan();
    let columns = ["pipeline", "document", "text", "page", "part"];
    scanner.project(&columns).expect("the columns are there");
    let batches = scanner.try_into_stream().await.expect("it is read");
    let batches: Vec<_> = batches.try_collect().await.expect("it is read");
    let mut rows = Vec::new();
    for batch in batches {
        let text = |name: &str| {
            batch
                .column_by_name(name)
                .expect("projected")
                .as_string::<i32>()
        };
        let number = |name: &str| {
            batch
                .column_by_name(name)
                .expect("projected")
                .as_primitive::<UInt32Type>()
        };
        for row in 0..batch.num_rows() {
            let place = |name: &str| number(name).is_valid(row).then(|| number(name).value(row));
            let uri = text("document").value(row);
            rows.push((
                text("pipeline").value(row).to_owned(),
                file_name(uri).to_owned(),
                place("page"),
                place("part"),
                text("text").value(row).to_owned(),
            ));
        }
    }
    rows.sort();
    let mut named = BTreeSet::new();
    for version in dataset.versions().await.expect("readable") {
        let dataset = dataset
            .checkout_version(version.version)
            .await
            .expect("it is kept");
        let fragments = dataset.manifest().fragments.iter();
        named.extend(fragments.flat_map(|fragment| {
            let files = fragment.files.iter();
            files
                .map(|file| format!("data/{}", file.path))
                .collect::<Vec<_>>()
        }));
        let indices = dataset.load_indices().await.expect("readable");
        named.extend(
            indices
                .iter()
                .map(|index| format!("_indices/{}", index.uuid)),
        );
    }
    (rows, named)
}

/// What is in the folders of a table that only versions give a meaning.
fn files_of(folder: &Path) -> BTreeSet<String> {
    let names = ["data", "_indices"].into_iter().flat_map(|name| {
        let entries = std::fs::read_dir(folder.join(name)).into_iter().flatten();
        entries.map(move |entry| format!("{name}/{}", entry.unwrap().file_name().to_string_lossy()))
    });
    names.collect()
}

/// Rows of all tables, and that the files on disk are those that versions name.
fn check_tables(mill: &Mill, shape: &Shape, at: &str) -> BTreeMap<&'static str, Vec<Row>> {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let mut rows = BTreeMap::new();
    for table in shape.tables {
        let folder = mill.path("tables").join(format!("{table}.lance"));
        let (found, named) = runtime.block_on(read_table(&folder));
        let there = files_of(&folder);
        let lost: Vec<_> = named.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "{at}: named and gone in `{table}`: {lost:?}"
        );
        let orphans: Vec<_> = there.difference(&named).collect();
        assert!(
            orphans.is_empty(),
            "{at}: left behind in `{table}`: {orphans:?}"
        );
        let writes = mill.path("tables").join(format!(".{table}.writes"));
        let journals = std::fs::read_dir(writes).into_iter().flatten().count();
        assert_eq!(journals, 0, "{at}: journals of `{table}` are left");
        rows.insert(*table, found);
    }
    rows
}

/// The ledgers know these documents as done, and nothing as under way.
fn check_ledgers(mill: &Mill, shape: &Shape, documents: &Documents, at: &str) {
    let mut known = BTreeSet::new();
    for pipeline in shape.pipelines {
        let ledger = Ledger::open(&mill.path("data/ledger"), pipeline).expect("it opens");
        assert!(ledger.unfinished().expect("it is read").is_empty(), "{at}");
        for document in ledger.documents().expect("it is read") {
            assert!(!document.is_undone, "{at}: {document:?}");
            known.insert(file_name(&document.uri).to_owned());
        }
    }
    let expected: BTreeSet<String> = documents.keys().map(|n| format!("{n:02}.pdf")).collect();
    assert_eq!(known, expected, "{at}");
}

/// Disturbs one shape so many times.
fn disturb(shape: &Shape, changes: bool, durability: &str, n_kills: usize, random: &mut Random) {
    let toml = (shape.toml)().replace("DURABILITY", durability);
    let name = format!("{}, {durability}, documents change: {changes}", shape.name);
    let first: Documents = (0..N_DOCUMENTS).map(|number| (number, 0)).collect();
    let calm = mill(&toml, &first);
    let (takes, _) = run_to_the_end(&calm);
    let of_first = check_tables(&calm, shape, &name);
    let (mut n_killed, mut n_rounds) = (0, 0);
    while n_killed < n_kills {
        let (mill, mut documents) = (mill(&toml, &first), first.clone());
        // A round of several kills over one folder, then a run to the end.
        for _ in 0..=random.below(6) {
            let at = Duration::from_micros(random.below(takes.as_micros() as u64));
            n_killed += usize::from(run_until(&mill, at));
            if changes {
                change(&mill, &mut documents, random);
            }
        }
        n_rounds += 1;
        let at = format!("{name}, round {n_rounds}");
        let (_, said) = run_to_the_end(&mill);
        let rows = check_tables(&mill, shape, &format!("{at}\n{said}"));
        check_ledgers(&mill, shape, &documents, &at);
        if documents == first {
            assert_eq!(rows, of_first, "{at}");
            continue;
        }
        let calm = self::mill(&toml, &documents);
        run_to_the_end(&calm);
        assert_eq!(rows, check_tables(&calm, shape, &at), "{at}");
    }
    eprintln!("{name}: {n_killed} kills in {n_rounds} rounds");
}

fn matrix(number: usize) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + number as u64);
    // Four shapes, with and without changes, in two kinds of durability.
    let n_kills = n_kills(16).div_ceil(16);
    for changes in [false, true] {
        for durability in ["process", "power"] {
            disturb(&SHAPES[number], changes, durability, n_kills, &mut random);
        }
    }
}

#[test]
fn one_table_comes_to_the_rows_and_files_of_an_undisturbed_run() {
    matrix(0);
}

#[test]
fn two_tables_come_to_the_rows_and_files_of_an_undisturbed_run() {
    matrix(1);
}

#[test]
fn routed_sinks_come_to_the_rows_and_files_of_an_undisturbed_run() {
    matrix(2);
}

#[test]
fn two_pipelines_in_one_table_come_to_the_rows_and_files_of_an_undisturbed_run() {
    matrix(3);
}

//! Measures the cost of an edge, an ack and the ledger, and the gain of overlapping stages.
//!
//! `make bench` prints all of it; `make bench-short` does a tenth of the work, and fails
//! where a figure is far from what it should be. The cost of an edge is the time that five more
//! stages which only pass items on add to a run, per item and edge. The cost of
//! the ledger is the difference between two runs, with and without one. For
//! overlap, stages of known work run side by side: a run cannot be faster than
//! its busiest stage.

#![allow(clippy::print_stdout, missing_docs, dead_code)]

mod kinds;

use std::fmt::Write as _;

use kinds::Folder;

/// Items of a run that measures an edge.
const N: u32 = 100_000;
/// Stages that are added.
const MORE: usize = 5;
/// Documents and pages of a run that measures acks and the ledger.
const DOCUMENTS: u32 = 20_000;
/// Work of a stage on an item, and items, of the run that measures overlap.
const WORK_US: u64 = 500;
const PAGES: u32 = 2000;

/// One document to `n_items`, through `n_stages` stages of `work_us` each; seconds.
fn chain(n_items: u32, works_us: &[u64], batch_of: usize) -> f64 {
    let folder = Folder::new();
    let mut toml = folder.head(false);
    let _ = write!(
        toml,
        "[p.source.items]\nkind = 'items'\n[p.stage.s0]\nkind = 'spread'\ninput = 'items'\n\
         n = {n_items}\n"
    );
    for (before, work_us) in works_us.iter().enumerate() {
        let _ = write!(
            toml,
            "[p.stage.s{}]\nkind = 'work'\ninput = 's{before}'\nwork_us = {work_us}\n\
             batch_of = {batch_of}\nedge = {{ max_items = 1024 }}\n",
            before + 1
        );
    }
    let _ = write!(
        toml,
        "[p.sink.end]\nkind = 'nowhere'\ninput = 's{}'\n",
        works_us.len()
    );
    let (elapsed, report) = kinds::run(&toml, &kinds::registry());
    assert_eq!(report.totals.items_stored, u64::from(n_items));
    elapsed.as_secs_f64()
}

/// `n_documents` of `n_pages` each, with or without a ledger; seconds.
fn documents(n_documents: u32, n_pages: u32, ledger: bool) -> f64 {
    let folder = Folder::new();
    let toml = format!(
        "{}[p.source.items]\nkind = 'items'\nn_documents = {n_documents}\n\
         [p.stage.pages]\nkind = 'spread'\ninput = 'items'\nn = {n_pages}\n\
         edge = {{ max_items = 1024 }}\n\
         [p.sink.end]\nkind = 'nowhere'\ninput = 'pages'\nedge = {{ max_items = 1024 }}\n",
        folder.head(ledger)
    );
    let (elapsed, report) = kinds::run(&toml, &kinds::registry());
    assert_eq!(report.totals.items_stored, u64::from(n_documents * n_pages));
    elapsed.as_secs_f64()
}

/// Two branches of each item, joined again; seconds.
fn diamond(n_items: u32) -> f64 {
    let folder = Folder::new();
    let toml = format!(
        "{}[p.source.items]\nkind = 'items'\n\
         [p.stage.s]\nkind = 'spread'\ninput = 'items'\nn = {n_items}\n\
         [p.stage.a]\nkind = 'work'\ninput = 's'\nwork_us = 0\nbatch_of = 64\n\
         [p.stage.b]\nkind = 'work'\ninput = 's'\nwork_us = 0\nbatch_of = 64\n\
         [p.sink.end]\nkind = 'nowhere'\njoin = ['a', 'b']\n",
        folder.head(false)
    );
    let (elapsed, report) = kinds::run(&toml, &kinds::registry());
    assert_eq!(report.totals.items_stored, u64::from(n_items));
    elapsed.as_secs_f64()
}

/// The middle of five.
fn median(mut time: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..5).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    times[2]
}

fn main() {
    let part = if kinds::is_short() { 10 } else { 1 };
    let (n, n_documents, n_pages) = (N / part, DOCUMENTS / part, PAGES / part);
    println!("an edge and a stage that only passes items on, {n} items, median of 5:");
    for batch_of in [1, 64] {
        let per_item = median(|| {
            let (few, many) = (chain(n, &[0], batch_of), chain(n, &[0; 1 + MORE], batch_of));
            (many - few) * 1e6 / f64::from(n) / MORE as f64
        });
        kinds::limit("us an item and edge", per_item, 20.0);
        println!(
            "  batch {batch_of:>3}: {per_item:.2} us an item and edge, {:.1} million items a second",
            1.0 / per_item
        );
    }
    let joined = median(|| diamond(n)) * 1e6 / f64::from(n);
    println!("a diamond of two such stages and a join: {joined:.2} us an item, all of it");
    kinds::limit("us an item of a diamond", joined, 200.0);

    let pages = f64::from(n);
    let alone = median(|| documents(1, n, false)) * 1e6 / pages;
    let many = median(|| documents(n_documents, 5, false)) * 1e6 / pages;
    let ledger = median(|| documents(n_documents, 5, true)) * 1e6 / pages;
    println!(
        "acks and ledger, {n} pages: {alone:.2} us a page in one document; {many:.2} us in \
         {n_documents} documents of 5; {ledger:.2} us with a ledger ({:.1} us a document)",
        (ledger - many) * 5.0
    );
    kinds::limit("us a page", alone.max(many), 50.0);
    kinds::limit("us a page with a ledger", ledger, 500.0);

    let works = [WORK_US, WORK_US / 5];
    let busiest = f64::from(n_pages) * WORK_US as f64 / 1e6;
    let ratio = median(|| chain(n_pages, &works, 1) / busiest);
    println!(
        "overlap, two stages of {WORK_US} and {} us an item: the run takes {ratio:.3} of the \
         busiest stage's time (1.00 is the least)",
        WORK_US / 5
    );
    kinds::limit("of the busiest stage's time", ratio, 3.0);
    let both = f64::from(n_pages) * 2.0 * WORK_US as f64 / 1e6;
    let ratio = median(|| both / chain(n_pages, &[WORK_US, WORK_US], 1));
    println!(
        "two stages of {WORK_US} us each on two cores: {ratio:.2} times as fast as one after the \
         other (2.00 is the most)"
    );
    kinds::limit("of the time one after the other", 1.0 / ratio, 1.5);
}

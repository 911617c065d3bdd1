//! Random pipelines against a model that handles one item after the other: no
//! item is lost, none is stored twice, and every run comes to its end.

mod cut;
mod diamonds;
mod flat_joins;
mod kinds;
mod model;
mod shape;
mod work;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any};

use self::kinds::World;
use self::model::{Document, Expected, expect};
use self::shape::{Raw, Shape};
use self::work::MANY;
use super::test_kinds::RUNTIME;
use crate::{ConfigFile, Ledger, Report, Resources, RunControl};

/// A run that takes longer hangs: they take some milliseconds.
const WATCHDOG: Duration = Duration::from_secs(30);

/// What a run came to, in the words of the model.
struct Ran {
    found: Expected,
    report: Report,
}

/// Runs `toml`; nothing may be under way at its end.
fn run(toml: &dyn Fn(&str) -> String) -> (Ran, ConfigFile) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let toml = toml(&folder.path().display().to_string());
    let file = ConfigFile::parse(Path::new("p.toml"), &toml, &[], &kinds::registry(), &|_| {
        None
    });
    let file = file.unwrap_or_else(|error| panic!("{toml}\n{error}"));
    let (resources, world) = (Resources::default(), Arc::<World>::default());
    resources.insert("", Arc::clone(&world));
    let pipeline = file.build(&file.pipelines()[0], &resources);
    let pipeline = pipeline.unwrap_or_else(|error| panic!("{toml}\n{error}"));
    let control = RunControl::default();
    let ended = RUNTIME.block_on(async {
        let ended = tokio::time::timeout(WATCHDOG, pipeline.run(&control)).await;
        ended.unwrap_or_else(|_| panic!("the run hangs: {:#?}\n{toml}", control.snapshot()))
    });
    let report = ended.unwrap_or_else(|error| panic!("{toml}\n{error}"));
    assert_eq!(world.problems(), [""; 0], "{toml}");
    let watched = control
        .watched
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let tracker = &watched.as_ref().expect("it has run").shared.tracker;
    assert_eq!((tracker.n_alive(), tracker.n_moving()), (0, 0), "{toml}");
    for node in &report.totals.nodes {
        let queue = (node.queue_items, node.queue_bytes);
        assert_eq!(queue, (0, 0), "`{}` has a queue\n{toml}", node.name);
    }
    drop(watched);
    let found = found(&world, &report, folder.path());
    assert_ends(&world, &report, &found, &toml);
    (Ran { found, report }, file)
}

/// What sinks, dead letters, report and ledger tell of a run.
fn found(world: &World, report: &Report, folder: &Path) -> Expected {
    let letters = crate::read_dead_letters(folder).expect("readable");
    let label = |letter: &crate::DeadLetter| {
        let place = |number: Option<u32>, mark| {
            number.map_or_else(String::new, |number| format!("{mark}{number}"))
        };
        let (page, part) = (place(letter.page, '#'), place(letter.part, '.'));
        format!("{}{page}{part}", letter.document)
    };
    let dead = letters
        .iter()
        .map(|letter| (letter.node.clone(), label(letter)));
    let mut dead: Vec<(String, String)> = dead.collect();
    dead.sort();
    let nodes = report.totals.nodes.iter();
    let dropped = nodes.map(|node| (node.name.clone(), node.items_dropped));
    let ledger = Ledger::open(&folder.join("ledger"), "p").expect("it was made");
    let documents = ledger.documents().expect("readable");
    for document in &documents {
        assert!(!document.is_undone, "{document:?}");
    }
    let documents = documents.into_iter().map(|document| Document {
        rows: document.rows(),
        uri: document.uri,
        n_dead: document.n_dead,
    });
    Expected {
        rows: world.rows(),
        dead,
        dropped: dropped.filter(|(_, n)| *n > 0).collect(),
        documents: documents.collect(),
    }
}

/// Every document ended once in every sink, and the totals are those of the documents.
fn assert_ends(world: &World, report: &Report, found: &Expected, toml: &str) {
    let nodes = report.totals.nodes.iter();
    let sinks = nodes.filter(|node| node.role == crate::Role::Sink);
    let ends = sinks.flat_map(|sink| {
        let documents = found.documents.iter();
        documents.map(|document| (sink.name.clone(), document.uri.clone()))
    });
    let mut ends: Vec<(String, String)> = ends.collect();
    ends.sort();
    assert_eq!(world.ended(), ends, "{toml}");
    let totals = &report.totals;
    let is_set_aside = |document: &&Document| document.rows.is_empty() && document.n_dead > 0;
    let n_set_aside = found.documents.iter().filter(is_set_aside).count() as u64;
    let n_done = found.documents.len() as u64 - n_set_aside;
    let n_dead: u64 = found.documents.iter().map(|document| document.n_dead).sum();
    assert_eq!(
        [
            totals.documents_done,
            totals.documents_set_aside,
            totals.items_stored,
            totals.dead_letters,
        ],
        [n_done, n_set_aside, found.rows.len() as u64, n_dead],
        "{toml}"
    );
}

/// Checks what a run comes to; returns its report.
fn check(shape: &Shape) -> Report {
    let (ran, file) = run(&|folder| shape.toml(folder));
    let order: Vec<String> = file.pipelines()[0]
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    let mut expected = expect(shape, &order);
    let mut n_dead: BTreeMap<&str, u64> = BTreeMap::new();
    for (node, _) in &expected.dead {
        *n_dead.entry(node).or_default() += 1;
    }
    for node in &ran.report.totals.nodes {
        let expected = n_dead.get(&*node.name).copied().unwrap_or(0);
        assert_eq!(
            node.dead_letters,
            expected,
            "`{}`\n{}",
            node.name,
            shape.toml(".")
        );
    }
    // Two items of one key share their letter.
    expected.dead.dedup();
    assert_eq!(ran.found, expected, "{}", shape.toml("."));
    ran.report
}

/// Checks a shape of joins, and that none of them held most of a document. A
/// part is held for each of its inputs, and a page has three parts at most.
fn check_held(shape: &Shape) {
    for node in check(shape).totals.nodes {
        let most = node.most_held_items;
        assert!(
            most < MANY as usize,
            "`{}` held {most} items\n{}",
            node.name,
            shape.toml(".")
        );
    }
}

/// So many shapes run at a time: they wait for the disk more than they work.
const AT_A_TIME: usize = 6;

fn check_all(shapes: &[Shape], check: impl Fn(&Shape) + Copy + Send) {
    std::thread::scope(|scope| {
        let running: Vec<_> = shapes
            .iter()
            .map(|shape| scope.spawn(move || check(shape)))
            .collect();
        for running in running {
            if let Err(panic) = running.join() {
                resume_unwind(panic);
            }
        }
    });
}

/// Shapes of so many sources, with up to so many stages and sinks.
fn shapes(
    n_sources: usize,
    n_stages: RangeInclusive<usize>,
    n_sinks: usize,
) -> impl Strategy<Value = Vec<Shape>> {
    let raw = (
        vec(any::<u8>(), n_sources),
        vec(any::<Raw>(), n_stages),
        vec(any::<Raw>(), 1..=n_sinks),
    );
    let shape = raw.prop_map(|(sources, stages, sinks)| Shape::new(&sources, &stages, &sinks));
    vec(shape, 1..=2 * AT_A_TIME - 1)
}

/// Shapes of joins behind one stage that makes pages.
fn joins() -> impl Strategy<Value = Vec<Shape>> {
    let raw = (vec(any::<Raw>(), 2..=5), vec(any::<Raw>(), 1..=2));
    let shape = raw.prop_map(|(stages, sinks)| Shape::of_joins(&stages, &sinks));
    vec(shape, 1..=AT_A_TIME)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 60,
        failure_persistence: None,
        max_shrink_time: 120_000,
        ..ProptestConfig::default()
    }
}

proptest::proptest! {
    #![proptest_config(config())]

    #[test]
    fn chains_do_what_the_model_says(shapes in shapes(1, 1..=3, 1)) {
        check_all(&shapes, |shape| drop(check(shape)));
    }

    #[test]
    fn graphs_of_one_source_do_what_the_model_says(shapes in shapes(1, 3..=8, 3)) {
        check_all(&shapes, |shape| drop(check(shape)));
    }

    #[test]
    fn graphs_of_two_sources_do_what_the_model_says(shapes in shapes(2, 1..=8, 3)) {
        check_all(&shapes, |shape| drop(check(shape)));
    }

    #[test]
    fn edges_of_one_byte_hold_no_graph_up(shapes in shapes(1, 2..=8, 3)) {
        let shapes: Vec<Shape> = shapes.into_iter().map(Shape::with_smallest_edges).collect();
        check_all(&shapes, |shape| drop(check(shape)));
    }
}

proptest::proptest! {
    // Documents of many pages take longer.
    #![proptest_config(ProptestConfig { cases: 20, ..config() })]

    #[test]
    fn joins_hold_a_few_pages_of_many(shapes in joins()) {
        check_all(&shapes, check_held);
    }
}

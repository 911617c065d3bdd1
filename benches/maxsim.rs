//! Measures the speed of questions over multi-vectors, and the recall of an index.
//!
//! 10,000 synthetic pages of 200 vectors of 128 numbers in 16 bits, in clusters: pages
//! have topics, topics have things that are said on their pages, and a question is made of
//! what one page says, so that pages of its topic compete for the other places. (On noise
//! every index is bad, and every page as good as any other.) A question has 16 vectors.
//! `PAGES` in the environment sets another number of pages.

#![allow(clippy::print_stdout, missing_docs, dead_code)]

mod kinds;

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array};
use arrow::datatypes::{DataType, Field as Column};
use half::f16;
use kinds::Folder;
use lance::Dataset;
use pagemill::pipeline::{
    Field, FieldError, Fields, Item, Outlet, Resources, Stage, StageConfig, StageError, VectorData,
    Vectors,
};
use pagemill::sinks::lancedb::{
    FirstStep, Hit, MultiVector, Question, SearchMode, SearchQuery, TableReader,
};
use pagemill::sinks::maxsim::MaxSim;
use serde::Deserialize;
use tokio::runtime::Runtime;

const DIM: usize = 128;
const VECTORS_PER_PAGE: usize = 200;
const QUESTION_VECTORS: usize = 16;
const PAGES_PER_DOCUMENT: u32 = 100;
const TOPICS: usize = 200;
const THINGS_PER_TOPIC: usize = 64;
const QUESTIONS: u32 = 20;
const TOP: usize = 10;

fn n_pages() -> u32 {
    let pages = std::env::var("PAGES").ok();
    pages.and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

/// Numbers from a seed: `splitmix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A direction, any as likely as any other: nearly normal numbers, sums of four
    /// uniform ones, of a length near 1.
    fn direction(&mut self) -> [f32; DIM] {
        let scale = (3.0 / DIM as f32).sqrt();
        std::array::from_fn(|_| {
            let bits = self.next();
            let part = |n: u32| ((bits >> (16 * n)) & 0xffff) as f32 / 65536.0 - 0.5;
            (part(0) + part(1) + part(2) + part(3)) * scale
        })
    }
}

/// The sum of directions, of length 1.
fn mix(parts: &[(f32, &[f32; DIM])]) -> [f32; DIM] {
    let mut sum = [0.0; DIM];
    for (weight, part) in parts {
        for (sum, number) in sum.iter_mut().zip(*part) {
            *sum += weight * number;
        }
    }
    let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.map(|x| x / norm)
}

/// What is said, topic by topic.
static THINGS: LazyLock<Vec<[f32; DIM]>> = LazyLock::new(|| {
    let mut random = Random(1);
    let mut things = Vec::with_capacity(TOPICS * THINGS_PER_TOPIC);
    for _ in 0..TOPICS {
        let topic = random.direction();
        for _ in 0..THINGS_PER_TOPIC {
            things.push(mix(&[(0.6, &topic), (0.8, &random.direction())]));
        }
    }
    things
});

/// The vectors of the `n`-th page.
fn page(n: u32) -> Vec<f32> {
    let mut random = Random(u64::from(n) << 20 | 7);
    let topic = random.below(TOPICS) * THINGS_PER_TOPIC;
    let own = random.direction();
    let vector = |random: &mut Random| {
        let thing = &THINGS[topic + random.below(THINGS_PER_TOPIC)];
        mix(&[(0.75, thing), (0.25, &own), (0.6, &random.direction())])
    };
    (0..VECTORS_PER_PAGE)
        .flat_map(|_| vector(&mut random))
        .collect()
}

/// A question about what the `n`-th page says.
fn question(n: u32) -> MultiVector {
    let page = page(n);
    let mut random = Random(u64::from(n) << 20 | 0xb);
    let mut token = || {
        let said = random.below(VECTORS_PER_PAGE) * DIM;
        let said: &[f32; DIM] = page[said..].first_chunk().expect("a whole vector");
        mix(&[(1.0, said), (0.7, &random.direction())])
    };
    MultiVector {
        values: (0..QUESTION_VECTORS).flat_map(|_| token()).collect(),
        dim: DIM,
    }
}

/// A document to its pages: `vectors`, and in `vector` their mean.
#[derive(Debug, Deserialize)]
struct PagesConfig {}

impl StageConfig for PagesConfig {
    const KIND: &'static str = "pages";
    const ABOUT: &'static str = "makes pages";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
            .adds([Field::VECTORS, Field::VECTOR])
            .one_to_many()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(Pages))
    }
}

struct Pages;

impl Stage for Pages {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            let name = item.origin().uri.trim_end_matches(".txt").to_owned();
            let first = name.parse::<u32>().expect("a number") * PAGES_PER_DOCUMENT;
            for n in 0..PAGES_PER_DOCUMENT {
                let page = page(first + n);
                let mut mean = vec![0.0; DIM];
                for row in page.chunks_exact(DIM) {
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
                }
                let numbers = page.into_iter().map(f16::from_f32).collect();
                let vectors = Vectors::new(VectorData::F16(numbers), DIM).expect("whole rows");
                let mean = Vectors::single(mean).expect("some numbers");
                let item = item.clone().with_page(n + 1);
                outlet.send(item.with("vectors", vectors).with("vector", mean))?;
            }
        }
        Ok(())
    }
}

/// Stores the pages in a table; `index` is the sink's setting. Seconds.
fn store(folder: &Folder, uri: &str, index: &str) -> f64 {
    let registry = pagemill::sinks::register(kinds::registry().stage::<PagesConfig>());
    let toml = format!(
        "{}[p.source.items]\nkind = 'items'\nn_documents = {}\n\
         [p.stage.pages]\nkind = 'pages'\ninput = 'items'\nworkers = 2\n\
         [p.sink.table]\nkind = 'lancedb'\ninput = 'pages'\nuri = '{uri}'\ntable = 'pages'\n\
         durability = 'process'\ntext_index = false\nindex = {index}\n",
        folder.head(false),
        n_pages() / PAGES_PER_DOCUMENT,
    );
    let (elapsed, report) = kinds::run(&toml, &registry);
    assert_eq!(report.totals.dead_letters, 0);
    elapsed.as_secs_f64()
}

/// The middle of five.
fn median(mut time: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..5).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    times[2]
}

fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let since = Instant::now();
    black_box(work());
    since.elapsed().as_secs_f64()
}

/// Our kernel on pages in memory.
fn kernel() {
    let pages: Vec<Vec<f16>> = (0..n_pages())
        .map(|n| page(n).into_iter().map(f16::from_f32).collect())
        .collect();
    let pages: Vec<&[f16]> = pages.iter().map(Vec::as_slice).collect();
    let n_bytes = (pages.len() * VECTORS_PER_PAGE * DIM * 2) as f64;
    let question = question(3);
    let maxsim = MaxSim::new(&question.values, DIM);
    let scoring = median(|| seconds(|| maxsim.scores(&pages)));
    let sum = |page: &&[f16]| page.iter().fold(0_u16, |sum, x| sum ^ x.to_bits());
    let halves = pages.split_at(pages.len() / 2);
    let reading = median(|| {
        seconds(|| {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| halves.1.iter().map(sum).fold(0, |a, b| a ^ b));
                let one = halves.0.iter().map(sum).fold(0, |a, b| a ^ b);
                (one, other.join().expect("nothing to panic at"))
            })
        })
    });
    println!(
        "kernel: {:.0} ms, {:.1} GB/s, {:.0} GFLOP/s; two threads that only read the same \
         memory: {:.0} ms",
        scoring * 1e3,
        n_bytes / scoring / 1e9,
        n_bytes * QUESTION_VECTORS as f64 / scoring / 1e9,
        reading * 1e3,
    );
}

fn query(n: u32, first_step: FirstStep, refine: usize) -> SearchQuery {
    let question = Question::Multi(question(n));
    SearchQuery {
        first_step,
        refine: Some(refine),
        ..SearchQuery::new(SearchMode::Vector, "", TOP).with_question(question)
    }
}

fn rows(hits: &[Hit]) -> HashSet<(String, Option<u32>)> {
    let row = |hit: &Hit| (hit.document.clone(), hit.page);
    hits.iter().map(row).collect()
}

/// Asks all questions; milliseconds each, and the part of the exact answers that is found.
fn ask(
    runtime: &Runtime,
    reader: &TableReader,
    exact: &[HashSet<(String, Option<u32>)>],
    first_step: FirstStep,
    refine: usize,
) -> (f64, f64) {
    let (mut times, mut n_found) = (Vec::new(), 0);
    for (n, exact) in exact.iter().enumerate() {
        let query = query(about(n as u32), first_step, refine);
        let since = Instant::now();
        let hits = runtime.block_on(reader.search(&query)).expect("searched");
        times.push(since.elapsed().as_secs_f64() * 1e3);
        n_found += rows(&hits).intersection(exact).count();
    }
    times.sort_by(f64::total_cmp);
    (
        times[times.len() / 2],
        n_found as f64 / (exact.len() * TOP) as f64,
    )
}

/// The page that the `n`-th question is about.
fn about(n: u32) -> u32 {
    n * (n_pages() / QUESTIONS) + 3
}

/// Lance's own exact search; seconds.
async fn flat(path: &str, question: &MultiVector) -> (f64, usize) {
    let dataset = Dataset::open(path).await.expect("opened");
    let values: ArrayRef = Arc::new(Float32Array::from(question.values.clone()));
    let item = Arc::new(Column::new("item", DataType::Float32, true));
    let list = FixedSizeListArray::new(item, DIM as i32, values, None);
    let since = Instant::now();
    let mut scan = dataset.scan();
    scan.project(&["document", "page"]).expect("columns");
    let scan = scan.nearest("vectors", &list, TOP).expect("a question");
    let scan = scan
        .distance_metric(lancedb::DistanceType::Cosine.into())
        .use_index(false);
    let batch = scan.try_into_batch().await.expect("searched");
    (since.elapsed().as_secs_f64(), batch.num_rows())
}

fn main() {
    println!(
        "{} pages of {VECTORS_PER_PAGE} vectors of {DIM} half floats, questions of \
         {QUESTION_VECTORS} vectors, the {TOP} best pages",
        n_pages()
    );
    kernel();
    let folder = Folder::new();
    let uri = format!(
        "{}-table",
        std::env::temp_dir().join("pagemill-bench").display()
    );
    let _ = std::fs::remove_dir_all(&uri);
    println!("stored in {:.1} s", store(&folder, &uri, "'none'"));
    let runtime = Runtime::new().expect("threads can be started");
    let open = || {
        runtime
            .block_on(TableReader::open(&uri, "pages"))
            .expect("opened")
    };

    let once = open().keep_vectors(0);
    let exact = |reader: &TableReader, n| {
        let query = query(about(n), FirstStep::None, 1);
        runtime.block_on(reader.search(&query)).expect("searched")
    };
    let streamed = median(|| seconds(|| exact(&once, 0)));
    let reader = open();
    let first = seconds(|| exact(&reader, 0));
    let warm = median(|| seconds(|| exact(&reader, 0)));
    println!(
        "exact search: {:.0} ms where nothing is kept, {:.0} ms for a reader's first question, \
         {:.0} ms for the next ones",
        streamed * 1e3,
        first * 1e3,
        warm * 1e3
    );
    let (flat, n_rows) = runtime.block_on(flat(&format!("{uri}/pages.lance"), &question(about(0))));
    assert_eq!(n_rows, TOP);
    println!(
        "lance's own exact search in this build: {flat:.1} s, {:.0} times as long as ours where \
         nothing is kept, {:.0} times as long as the next ones",
        flat / streamed,
        flat / warm
    );

    let answers: Vec<_> = (0..QUESTIONS).map(|n| rows(&exact(&reader, n))).collect();
    for refine in [10, 30, 100] {
        let (ms, recall) = ask(&runtime, &reader, &answers, FirstStep::Pooled, refine);
        println!(
            "first by the mean, {refine} candidates a hit: {ms:.0} ms, recall@{TOP} {recall:.3}"
        );
    }
    println!(
        "indexed in {:.1} s",
        store(&folder, &uri, "{ min_rows = 1000 }")
    );
    let reader = open();
    for refine in [1, 2, 5, 10, 20] {
        let (ms, recall) = ask(&runtime, &reader, &answers, FirstStep::Index, refine);
        println!(
            "first by the index, {refine} candidates a hit: {ms:.0} ms, recall@{TOP} {recall:.3}"
        );
    }
    let _ = std::fs::remove_dir_all(&uri);
}

//! Measures the speed of rendering, and the gain of overlapping on real documents.
//!
//! `make bench` prints ratios of one run: two rendering processes against one;
//! one against pypdfium2, the same library called from Python, at the same
//! size; and the shipped pipeline against its stages run one after another.

#![allow(clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use pagemill::pipeline::testing::run_stage;
use pagemill::pipeline::{Item, StageConfig};
use pagemill::stages::render_pdf::RenderPdfConfig;
use pagemill::stages::{ChunkTextConfig, DecodeImageConfig, EmbedTextConfig, ThumbnailConfig};
use pagemill::{ConfigFile, RunControl};
use serde::de::DeserializeOwned;

fn documents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/documents")
}

/// The sample PDFs several times over, so that starting up does not count.
fn copy_documents(folder: &Path) -> PathBuf {
    const COPIES: usize = 6;
    for entry in std::fs::read_dir(documents())
        .expect("the samples")
        .flatten()
    {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "pdf") {
            let name = entry.file_name();
            for copy in 0..COPIES {
                let target = folder.join(format!("{copy}-{}", name.to_string_lossy()));
                std::fs::copy(&path, target).expect("the temporary folder takes it");
            }
        }
    }
    folder.to_owned()
}

/// Pages a second of a pipeline that renders `folder` and stores nothing of it.
fn render(folder: &Path, workers: usize) -> f64 {
    let out = tempfile::tempdir().expect("a temporary folder");
    let toml = format!(
        "[p]\nledger = false\ndead_letters = '{out}/dead'\n[p.source.files]\nkind = 'read_files'\npath = '{}'\n\
         include = ['**/*.pdf']\n[p.stage.pages]\nkind = 'render_pdf'\ninput = 'files'\n\
         workers = {workers}\nwords = false\n[p.stage.small]\nkind = 'resize'\ninput = 'pages'\n\
         long_side_px = 4096\n[p.sink.rows]\nkind = 'jsonl'\ninput = 'small'\npath = '{out}/rows.jsonl'\n",
        folder.display(),
        out = out.path().display(),
    );
    let report = run(&toml);
    let pages = report
        .totals
        .nodes
        .iter()
        .find(|node| node.name == "pages")
        .expect("it ran");
    pages.items_out as f64 / report.totals.elapsed_s
}

fn run(toml: &str) -> pagemill::Report {
    let variable = |name: &str| std::env::var(name).ok();
    let file = ConfigFile::parse(
        Path::new("bench"),
        toml,
        &[],
        &pagemill::registry(),
        &variable,
    )
    .expect("a sound configuration");
    let pipeline = file
        .build(&file.pipelines()[0], &pagemill::resources())
        .expect("`make setup` was run");
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    runtime
        .block_on(pipeline.run(&RunControl::default()))
        .expect("nothing fails")
}

/// Pages a second of pypdfium2 in one process; `None` where it is not installed.
fn pypdfium2(folder: &Path) -> Option<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pypdfium2_pages.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(folder)
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The shipped pipeline's stages, each over everything before the next begins.
fn one_after_another() -> (usize, f64) {
    fn stage<C: StageConfig + DeserializeOwned>(toml: &str, items: Vec<Item>) -> Vec<Item> {
        let config: C = toml::from_str(toml).expect("sound settings");
        let mut stage = config
            .build(&pagemill::resources())
            .expect("`make setup` was run");
        run_stage(stage.as_mut(), items).sent
    }
    let model = "model = 'sentence-transformers/all-MiniLM-L6-v2'";
    let since = Instant::now();
    let mut files: Vec<PathBuf> = std::fs::read_dir(documents())
        .expect("the samples")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "pdf"))
        .collect();
    files.sort();
    let read = files.iter().map(|path| {
        let bytes = std::fs::read(path).expect("a sample");
        Item::of_document(path.display().to_string(), "application/pdf", bytes)
    });
    let items = stage::<RenderPdfConfig>("long_side_px = 1024", read.collect());
    let items = stage::<DecodeImageConfig>("", items);
    let items = stage::<ThumbnailConfig>("long_side_px = 256", items);
    let items = stage::<ChunkTextConfig>(&format!("{model}\nmax_tokens = 240"), items);
    let items = stage::<EmbedTextConfig>(model, items);
    (items.len(), since.elapsed().as_secs_f64())
}

/// The same stages in one pipeline.
fn overlapped() -> (u64, f64) {
    let out = tempfile::tempdir().expect("a temporary folder");
    let model = "model = 'sentence-transformers/all-MiniLM-L6-v2'";
    let toml = format!(
        "[p]\nledger = false\ndead_letters = '{out}/dead'\n[p.source.files]\nkind = 'read_files'\npath = '{}'\n\
         include = ['*.pdf']\n[p.stage.pages]\nkind = 'render_pdf'\ninput = 'files'\nlong_side_px = 1024\n\
         [p.stage.images]\nkind = 'decode_image'\ninput = 'pages'\n[p.stage.thumbnails]\n\
         kind = 'thumbnail'\ninput = 'images'\nlong_side_px = 256\n[p.stage.chunks]\n\
         kind = 'chunk_text'\ninput = 'thumbnails'\n{model}\nmax_tokens = 240\n[p.stage.vectors]\n\
         kind = 'embed_text'\ninput = 'chunks'\n{model}\n[p.sink.rows]\nkind = 'jsonl'\n\
         input = 'vectors'\npath = '{out}/rows.jsonl'\n",
        documents().display(),
        out = out.path().display(),
    );
    let report = run(&toml);
    (report.totals.items_stored, report.totals.elapsed_s)
}

fn main() -> ExitCode {
    if let Some(code) = pagemill::run_worker_if_asked() {
        return code;
    }
    let copies = tempfile::tempdir().expect("a temporary folder");
    let folder = std::env::var_os("PAGEMILL_BENCH_PDFS")
        .map_or_else(|| copy_documents(copies.path()), PathBuf::from);
    let median = |time: &mut dyn FnMut() -> f64| {
        let mut times: Vec<f64> = (0..5).map(|_| time()).collect();
        times.sort_by(f64::total_cmp);
        times[2]
    };
    println!("rendering at 1024 px, six copies of the sample PDFs, median of 5:");
    let one = median(&mut || render(&folder, 1));
    let two = median(&mut || render(&folder, 2));
    println!("  one process   {one:>7.0} pages/s");
    println!(
        "  two processes {two:>7.0} pages/s, {:.2} times as fast",
        two / one
    );
    match pypdfium2(&folder) {
        Some(python) => println!(
            "  pypdfium2     {python:>7.0} pages/s in one process: ours is {:.2} times as fast",
            one / python
        ),
        None => println!("  pypdfium2     not installed (pip install pypdfium2 numpy)"),
    }
    println!("the pipeline `documents` over the sample PDFs, median of 5, model loading included:");
    let (n_items, _) = one_after_another();
    let sequential = median(&mut || one_after_another().1);
    let together = median(&mut || {
        let (n_stored, elapsed_s) = overlapped();
        assert_eq!(n_stored, n_items as u64, "both do the same work");
        elapsed_s
    });
    println!("  stages one after another {sequential:.2} s");
    println!(
        "  overlapped               {together:.2} s, {:.2} times as fast",
        sequential / together
    );
    ExitCode::SUCCESS
}

//! pagemill turns documents into searchable vectors.
//!
//! PDFs and images go in; rows with page vectors, text and thumbnails stream
//! out into LanceDB. A pipeline is a graph of stages joined by bounded edges
//! and wired in TOML; see the README for an annotated one.
//!
//! This crate is the facade: it joins the parts and holds the command line.
//!
//! - [`pipeline`] is the engine: items, graph, edges, runner. Its page is the
//!   guide to writing stages, and to wiring pipelines in Rust.
//! - [`stages`] holds the sources and stages, [`sinks`] the sinks.
//! - [`models`] holds the networks.
//! - [`registry`] names every kind that TOML may use; add your own to it.
//!
//! ```no_run
//! use std::path::Path;
//!
//! fn main() -> std::process::ExitCode {
//!     // PDFs and pictures are parsed in processes of their own: this very program, started again.
//!     if let Some(code) = pagemill::run_worker_if_asked() {
//!         return code;
//!     }
//!     let variable = |name: &str| std::env::var(name).ok();
//!     let file = pagemill::ConfigFile::read(
//!         Path::new("pipelines.toml"), &[], &pagemill::registry(), &variable,
//!     );
//!     let file = match file {
//!         Ok(file) => file,
//!         Err(error) => {
//!             eprintln!("{error}");
//!             return 2.into();
//!         }
//!     };
//!     let pipeline = file
//!         .pipeline(None)
//!         .and_then(|graph| file.build(graph, &pagemill::resources()))
//!         .expect("checked above");
//!     let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
//!     match runtime.block_on(pipeline.run(&pagemill::RunControl::default())) {
//!         Ok(report) => println!("{}", report.to_text()),
//!         Err(error) => eprintln!("{error}"),
//!     }
//!     0.into()
//! }
//! ```
//!
//! Without a file, the same pipeline is wired from values:
//!
//! ```no_run
//! use pagemill::Pipeline;
//! use pagemill::sinks::lancedb::LanceDbConfig;
//! use pagemill::stages::{ChunkTextConfig, EmbedTextConfig, ReadFilesConfig, RenderPdfConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let pipeline = Pipeline::builder("documents")
//!     .source("files", ReadFilesConfig::new("examples/documents"))
//!     .stage("pages", RenderPdfConfig { long_side_px: 768, ..RenderPdfConfig::default() })
//!     .stage("chunks", ChunkTextConfig::default())
//!     .stage("vectors", EmbedTextConfig::new("sentence-transformers/all-MiniLM-L6-v2"))
//!     .sink("table", LanceDbConfig::new("data/lancedb", "documents"))
//!     .ledger("data/ledger")
//!     .dead_letters("data/dead-letters")
//!     .build(&pagemill::resources())?;
//! let report = pipeline.run(&pagemill::RunControl::default()).await?;
//! println!("{}", report.to_text());
//! # Ok(())
//! # }
//! ```
//!
//! The examples answer one question each: `own_stage`, `closures`, `own_fields`,
//! `own_source_and_sink`, `streams`, `cancel`, `embedded`.

mod searcher;

pub use searcher::{AskError, EmbeddedQuestion, Searcher};

pub use pagemill_models as models;
pub use pagemill_pipeline as pipeline;
pub use pagemill_sinks as sinks;
pub use pagemill_stages as stages;

pub use pagemill_pipeline::{
    BatchPolicy, ConfigError, ConfigFile, EdgeLimits, Field, FieldType, Graph, Item, ItemError,
    ItemStream, NodeBuilder, OnError, Pipeline, PipelineBuilder, Registry, Report, Resources,
    Retry, RunControl, RunError, SinkFn, SourceFn, StageError, StageFn, Unmatched, batch_map,
    filter, flat_map, from_iter, from_sink, from_source, from_stage, from_stream, gather,
    gather_pages, map, output, sink, sink_fn, source, stage,
};
pub use pagemill_stages::render_pdf::run_worker_if_asked;

use pagemill_models::ModelPlaces;
use pagemill_stages::render_pdf::{RenderPdfConfig, RenderSetup, WorkerCommand, find_pdfium};
use pipeline::StageConfig as _;

/// Every kind of source, stage and sink that pagemill brings.
pub fn registry() -> Registry {
    pagemill_sinks::register(pagemill_stages::register(Registry::new()))
}

/// What the stages find on this machine: pagemill's cache folder, which holds
/// models and libpdfium, and how a worker process is started.
pub fn resources() -> Resources {
    let places = ModelPlaces::from_environment();
    let pdfium = find_pdfium(pdfium_candidates(&places));
    let resources = Resources::default();
    let setup = RenderSetup {
        worker: WorkerCommand::default(),
        pdfium,
    };
    resources.insert(RenderPdfConfig::KIND, setup);
    resources.insert("", places);
    resources
}

/// Where libpdfium may be: the cache folder that `make setup` fills, then the
/// folders of the system's own libraries.
pub fn pdfium_candidates(places: &ModelPlaces) -> Vec<std::path::PathBuf> {
    let name = std::env::consts::DLL_PREFIX.to_owned() + "pdfium" + std::env::consts::DLL_SUFFIX;
    let cached = places.pagemill_cache.join("pdfium");
    let system = ["/usr/local/lib", "/usr/lib", "/opt/homebrew/lib"].map(Into::into);
    std::iter::once(cached)
        .chain(system)
        .map(|folder| folder.join(&name))
        .collect()
}

//! pagemill turns documents into searchable vectors.
//!
//! PDFs and images go in; rows with page vectors, text and thumbnails stream
//! out into LanceDB. A pipeline is a graph of stages joined by bounded edges
//! and wired in TOML; see the README for an annotated one.
//!
//! This crate is the facade: it joins the parts and holds the command line.
//!
//! - [`pipeline`] is the engine: items, graph, edges, runner.
//! - [`stages`] holds the sources and stages, [`sinks`] the sinks.
//! - [`models`] holds the networks.
//! - [`registry`] names every kind that TOML may use; add your own to it.
//!
//! ```no_run
//! use std::path::Path;
//!
//! fn main() -> std::process::ExitCode {
//!     // PDFs are rendered in processes of their own: this very program, started again.
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

mod searcher;

pub use searcher::{AskError, Searcher};

pub use pagemill_models as models;
pub use pagemill_pipeline as pipeline;
pub use pagemill_sinks as sinks;
pub use pagemill_stages as stages;

pub use pagemill_pipeline::{
    ConfigError, ConfigFile, Graph, Item, Pipeline, Registry, Report, Resources, RunControl,
    RunError,
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
/// models and libpdfium, and how a rendering process is started.
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

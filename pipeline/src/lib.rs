//! The pagemill engine: pipelines of typed items over bounded edges.
//!
//! It knows no PDF, model or database. A [`Source`] brings [`Item`]s in, a
//! [`Stage`] changes them, a [`Sink`] stores them. They are wired in TOML or in
//! Rust; either way the graph is checked before anything runs, and a slow node
//! slows those before it instead of filling the memory.
//!
//! 1. [Items and fields](#items-and-fields): what moves
//! 2. [A stage](#a-stage): a step of your own, and its test
//! 3. [Wiring in TOML](#wiring-in-toml)
//! 4. [Wiring in Rust](#wiring-in-rust): closures, own sources, own sinks
//! 5. [Streams](#streams): fed from one, read as one
//! 6. [Running](#running): watching, draining, cancelling
//! 7. [Sinks and acks](#sinks-and-acks), and [what is promised](#what-is-promised)
//!
//! # Items and fields
//!
//! An [`Item`] is a record with a [`Key`] and named [`Value`]s. The key says
//! which document it is of, and which page or part of it; it stays the same
//! from run to run, so that a rerun replaces rows instead of adding to them.
//! Cloning an item copies pointers.
//!
//! ```
//! use pagemill_pipeline::{Field, FieldType, Item};
//!
//! /// A field of your own: sinks make a column of it.
//! const N_WORDS: Field = Field::new("n_words", FieldType::Integer);
//!
//! let page = Item::of_text("notes.txt", "the mill turns").with_page(1);
//! let page = page.with(N_WORDS.name, 3_i64);
//! assert_eq!(page.text(), Some("the mill turns"));
//! assert_eq!(page.label().to_string(), "notes.txt#1");
//! ```
//!
//! Every node declares the [`Fields`] that it reads and adds. The graph check
//! carries them along the edges: "stage `vectors` reads `image`, which `chunks`
//! does not provide". An edge carries only what some node further on reads, so
//! pixels are let go as early as possible.
//!
//! What most kinds speak of has a constant: [`Field::DOCUMENT`], [`Field::IMAGE`],
//! [`Field::WORDS`], [`Field::TEXT`], [`Field::PATCHES`], [`Field::VECTOR`] and
//! [`Field::VECTORS`], [`Field::THUMBNAIL`]. A type that only some stages
//! understand, your own or those of `patches`, is a [`CustomValue`].
//!
//! # A stage
//!
//! A stage owns no queue, thread or clock: it is called with a batch and an
//! [`Outlet`]. One bad item goes to [`Outlet::dead_letter`], and the run goes
//! on; [`Outlet::each`] does that for stages that make one item of one.
//!
//! ```
//! use pagemill_pipeline::{
//!     Field, FieldError, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig, StageError,
//! };
//!
//! /// Settings of `kind = "shout"`.
//! #[derive(Debug, Clone, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct ShoutConfig {
//!     mark: String,
//! }
//!
//! impl StageConfig for ShoutConfig {
//!     const KIND: &'static str = "shout";
//!     const ABOUT: &'static str = "puts text in capitals";
//!     const EXAMPLE: &'static str = "mark = \"!\"";
//!     fn fields(&self) -> Fields {
//!         Fields::reads([Field::TEXT]).replaces([Field::TEXT])
//!     }
//!     fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
//!         Ok(Box::new(Shout { mark: self.mark.clone() }))
//!     }
//! }
//!
//! struct Shout {
//!     mark: String,
//! }
//!
//! impl Stage for Shout {
//!     fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
//!         outlet.each(batch, |item| {
//!             let text = item.text().ok_or_else(|| ItemError::missing("shout", "text"))?;
//!             let loud = text.to_uppercase() + &self.mark;
//!             item.set("text", loud);
//!             Ok(())
//!         })
//!     }
//! }
//!
//! // A test needs only values.
//! let mut stage = Shout { mark: "!".into() };
//! let out = pagemill_pipeline::testing::run_stage(&mut stage, [Item::of_text("a.txt", "hush")]);
//! assert_eq!(out.sent[0].text(), Some("HUSH!"));
//! ```
//!
//! # Wiring in TOML
//!
//! A [`Registry`] names the kinds that a file may use; a [`ConfigFile`] reads
//! and checks it. Every mistake is reported in one run, with its line.
//!
//! ```
//! # use pagemill_pipeline::{ConfigError, Pipeline};
//! use std::path::Path;
//!
//! use pagemill_pipeline::{ConfigFile, Registry, Resources};
//!
//! const PIPELINES: &str = r#"
//! [shouting.source.files]
//! kind = "read_files"
//! path = "notes"
//!
//! [shouting.stage.shout]
//! kind = "shout"
//! input = "files"
//! mark = "!"
//! workers = 2
//!
//! [shouting.sink.rows]
//! kind = "jsonl"
//! input = "shout"
//! path = "rows"
//! "#;
//!
//! fn read(registry: &Registry) -> Result<Pipeline, ConfigError> {
//!     let variable = |name: &str| std::env::var(name).ok();
//!     let file = ConfigFile::parse(Path::new("notes.toml"), PIPELINES, &[], registry, &variable)?;
//!     file.build(file.pipeline(Some("shouting"))?, &Resources::default())
//! }
//!
//! // This registry knows none of the three kinds, and each is reported.
//! let errors = read(&Registry::new()).err().expect("unknown kinds").diagnostics;
//! assert_eq!(errors.len(), 3);
//! assert_eq!(errors[0].message, "there is no source of kind `read_files`");
//! ```
//!
//! # Wiring in Rust
//!
//! [`Pipeline::builder`] wires the same graph from values. Nodes are settings of
//! kinds, closures ([`map`], [`flat_map`], [`filter`], [`batch_map`],
//! [`gather`], [`sink_fn`]), iterators and streams ([`from_iter`],
//! [`from_stream`]), or values of your own ([`from_source`], [`from_stage`],
//! [`from_sink`]). A node takes from the one before it; where it needs other
//! inputs, workers, batches or a route, make it with [`stage`] or [`sink`]:
//!
//! ```
//! use pagemill_pipeline::{
//!     BatchPolicy, Field, FieldType, Item, ItemError, Pipeline, Resources, RunControl, from_iter,
//!     map, sink_fn, stage,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! const N_WORDS: Field = Field::new("n_words", FieldType::Integer);
//!
//! let count = map(|item: Item| {
//!     let text = item.text().ok_or_else(|| ItemError::missing("count", "text"))?;
//!     let n_words = u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
//!     Ok(item.with(N_WORDS.name, n_words))
//! });
//! let notes = [Item::of_text("a.txt", "the mill turns"), Item::of_text("b.txt", "")];
//! let pipeline = Pipeline::builder("counting")
//!     .source("notes", from_iter(notes).provides([Field::TEXT]))
//!     .node(
//!         stage("count", count.reads([Field::TEXT]).adds([N_WORDS]))
//!             .input("notes")
//!             .when("text.size() > 0")
//!             .or_else_drop()
//!             .workers(2)
//!             .batch(BatchPolicy::of_items(16, 5)),
//!     )
//!     .sink("rows", sink_fn(|batch: Vec<Item>| async move {
//!         assert!(batch.iter().all(|item| item.get("n_words").is_some()));
//!         Ok(())
//!     }))
//!     .on_dead_letter(|letter| eprintln!("{}", letter.error))
//!     .build(&Resources::default())?;
//! let report = pipeline.run(&RunControl::default()).await?;
//! assert_eq!(report.totals.items_stored, 1);
//! # Ok(())
//! # }
//! ```
//!
//! What is wrong is reported as of a file, with the names of nodes for lines.
//!
//! # Streams
//!
//! [`from_stream`] feeds a pipeline from a `Stream`, and
//! [`PipelineBuilder::into_stream`] makes one of what comes out. Both ends have
//! backpressure: the stream that feeds is polled only when there is room behind
//! it, and a slow reader fills the edges and stops it. Dropping the
//! [`ItemStream`] cancels the run.
//!
//! ```
//! use futures::StreamExt as _;
//! use pagemill_pipeline::{Field, Item, Pipeline, Resources, filter, from_stream};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Without end: only as much is made as is read, and a little ahead.
//! let numbers = futures::stream::iter(0..)
//!     .map(|number: u32| Item::of_text(number.to_string(), &number.to_string()));
//! let mut tens = Pipeline::builder("tens")
//!     .source("numbers", from_stream(numbers).provides([Field::TEXT]))
//!     .stage("tens", filter(|item| item.text().is_some_and(|text| text.ends_with('0'))))
//!     .into_stream(&Resources::default())?;
//! for expected in ["0", "10", "20"] {
//!     let item = tens.next().await.expect("there is no end")?;
//!     assert_eq!(item.text(), Some(expected));
//! }
//! tens.cancel().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Running
//!
//! [`Pipeline::run`] is a future: sources and sinks are tasks of the tokio
//! runtime that polls it, and each worker of a stage is a thread. Dropping it
//! cancels the run. A [`RunControl`] steers a run from elsewhere:
//! [`drain`](RunControl::drain) stops the sources and finishes what is under
//! way, or leaves it to a next run that can go on with it, [`cancel`](RunControl::cancel) stops now, and
//! [`snapshots`](RunControl::snapshots) tell how far it is. The [`Report`] at
//! the end names the node that was the limit.
//!
//! # Sinks and acks
//!
//! A sink gets each item with an [`Ack`], holds it until the item is durable,
//! and then calls [`Ack::durable`]. When all items of a document have come, it
//! is told so by [`Sink::end_document`], so that it can replace the document's
//! old rows as a whole. A document is done when all its acks are released. An
//! ack that is dropped leaves its document undone.
//!
//! | sink | an item is durable when |
//! |---|---|
//! | a [`Sink`] | it says so |
//! | [`sink_fn`] | the closure returns without an error |
//! | an [`ItemStream`] | the next item is asked for |
//!
//! # What is promised
//!
//! - **Nothing is lost, nothing is there twice.** With a ledger (`ledger` in
//!   TOML, [`PipelineBuilder::ledger`] in Rust) a run does what is not done
//!   yet: a document counts as done when every sink that it reaches has acked
//!   it. What was under way when a run was stopped is done again, so a sink sees
//!   each item at least once, and stores it once by its key.
//! - **One bad document never stops the rest.** It is set aside as a
//!   [`DeadLetter`], with its error and what to do; so is what a stage or a
//!   closure panics at.
//! - **Memory is bounded.** What waits is counted in items and bytes
//!   ([`EdgeLimits`]); only a node that gathers or joins holds more.

mod batch;
mod builder;
mod cancellation;
mod code_places;
mod config;
mod dead_letters;
mod document;
mod document_bytes;
mod edge;
mod error;
mod expression;
mod fields;
mod full_disk;
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod graph;
mod item;
mod key;
mod ledger;
mod meter;
mod metrics;
mod page_progress;
mod paths;
mod printable;
mod prune;
mod registry;
mod report;
mod resources;
mod retry;
mod run;
mod secrets;
mod sink;
mod source;
mod source_outlet;
mod stage;
mod stream;
pub mod testing;
mod trace;
mod value;

pub use batch::BatchPolicy;
pub use builder::{
    IntoSink, IntoSource, IntoStage, NodeBuilder, PipelineBuilder, SinkFn, SourceFn, StageFn,
    batch_map, filter, flat_map, from_sink, from_source, from_stage, gather, gather_pages, map,
    output, sink, sink_fn, source, stage,
};
pub use code_places::without_code_places;
pub use config::{ConfigError, ConfigFile, Diagnostic};
pub use dead_letters::{DeadLetter, FiledLetter, read_dead_letters, read_filed_letters};
pub use document::{Ack, Document};
pub use document_bytes::DocumentBytes;
pub use edge::EdgeLimits;
pub use error::{FieldError, ItemError, StageError};
pub use fields::{Cardinality, Field, FieldSet, FieldType, Fields};
pub use full_disk::is_disk_full;
pub use gather::Unmatched;
pub use graph::{Graph, GraphNode, Pipeline, SinkKey, fingerprint_of};
pub use item::Item;
pub use key::{ContentHash, ContentHasher, DocumentId, Key, Label, Origin};
pub use ledger::{Ledger, LedgerDocument, Stager, StoredIn};
pub use meter::{ModelMeter, ModelReport};
pub use metrics::{Role, SinkMeter};
pub use paths::{clean_absolute, resolved};
pub use printable::{printable_line, printable_text};
pub use prune::Prune;
pub use registry::{Kind, Registry};
pub use report::{NodeReport, Report, Snapshot, StopReason};
pub use resources::Resources;
pub use retry::{OnError, Retry};
pub use run::{
    DocumentForecast, Forecast, NodeForecast, Renewed, RunControl, RunError, RunOptions,
};
pub use secrets::Secrets;
pub use sink::{
    Delivery, Ended, FoundRow, Inventory, RowReader, RowValues, Sink, SinkConfig, SinkInput,
    SinkPlace, StagedRows, StoredDocument,
};
pub use source::{Source, SourceConfig};
pub use source_outlet::{FeedAgain, Idle, KnownDocument, Provenance, SourceOutlet};
pub use stage::{Outlet, PageCount, Stage, StageConfig};
pub use stream::{ItemStream, from_iter, from_stream};
pub use trace::Trace;
pub use value::{BufferPool, CustomValue, Image, PixelBuffer, Value, VectorData, Vectors, Word};

//! The pagemill engine: items, ports, TOML, graph, edges, batches, runner.
//!
//! It knows no PDF, network or database. A [`Source`] brings [`Item`]s in, a
//! [`Stage`] changes them, a [`Sink`] stores them; a [`Registry`] names the
//! kinds of each; a [`ConfigFile`] wires them from TOML, checks the graph and
//! builds a [`Pipeline`], which runs.
//!
//! ```
//! use pagemill_pipeline::{Field, Fields, FieldError, Item, Outlet, Resources, Stage, StageConfig, StageError};
//!
//! /// Settings of `kind = "shout"`.
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct ShoutConfig {}
//!
//! impl StageConfig for ShoutConfig {
//!     const KIND: &'static str = "shout";
//!     const ABOUT: &'static str = "puts text in capitals";
//!     const EXAMPLE: &'static str = "";
//!     fn fields(&self) -> Fields {
//!         Fields::reads([Field::TEXT]).replaces([Field::TEXT])
//!     }
//!     fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
//!         Ok(Box::new(Shout))
//!     }
//! }
//!
//! struct Shout;
//!
//! impl Stage for Shout {
//!     fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
//!         for mut item in batch {
//!             let loud = item.text().unwrap_or_default().to_uppercase();
//!             item.set("text", loud);
//!             outlet.send(item)?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let out = pagemill_pipeline::testing::run_stage(&mut Shout, [Item::of_text("a.txt", "hush")]);
//! assert_eq!(out.sent[0].text(), Some("HUSH"));
//! ```

mod batch;
mod config;
mod dead_letters;
mod document;
mod edge;
mod error;
mod fields;
mod graph;
mod item;
mod key;
mod metrics;
mod registry;
mod report;
mod run;
mod source_outlet;
mod stage;
pub mod testing;
mod value;

pub use batch::BatchPolicy;
pub use config::{ConfigError, ConfigFile, Diagnostic};
pub use dead_letters::{DeadLetter, read_dead_letters};
pub use document::{Ack, Document};
pub use edge::EdgeLimits;
pub use error::{FieldError, ItemError, StageError};
pub use fields::{Cardinality, Field, FieldSet, FieldType, Fields};
pub use graph::{Graph, GraphNode, Pipeline};
pub use item::Item;
pub use key::{ContentHash, DocumentId, Key, Label, Origin};
pub use metrics::Role;
pub use registry::{Kind, Registry};
pub use report::{NodeReport, Report, Snapshot, StopReason};
pub use run::{RunControl, RunError};
pub use source_outlet::SourceOutlet;
pub use stage::{
    Delivery, Outlet, Resources, Sink, SinkConfig, SinkInput, Source, SourceConfig, Stage,
    StageConfig,
};
pub use value::{BufferPool, CustomValue, Image, PixelBuffer, Value, VectorData, Vectors, Word};

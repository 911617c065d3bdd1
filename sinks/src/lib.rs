//! Sinks: where rows end up. LanceDB tables, and part files of JSON lines or
//! Parquet.
//!
//! A sink keeps each item's [`Ack`](pagemill_pipeline::Ack) until the item is
//! durable, and replaces a document's rows as a whole: a rerun never adds to
//! what an earlier run stored, and a reader never sees half a document.

mod columns;
pub mod jsonl;
pub mod lancedb;
pub mod maxsim;
pub mod parquet;
mod parts;
mod row;

pub use parts::PartConfig;

use pagemill_pipeline::Registry;

/// Adds the kinds of this crate.
#[must_use]
pub fn register(registry: Registry) -> Registry {
    registry
        .sink::<lancedb::LanceDbConfig>()
        .sink::<jsonl::JsonlConfig>()
        .sink::<parquet::ParquetConfig>()
}

//! Streams at both ends of a pipeline: one that it is fed from, one that it is read as.

mod output;
mod source;

#[cfg(test)]
mod tests;

pub use output::ItemStream;
pub(crate) use output::output;
pub use source::{from_iter, from_stream};

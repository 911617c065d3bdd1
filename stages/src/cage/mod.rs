//! The cage: processes in which documents from strangers are parsed.
//!
//! Whoever parses a document runs the risk of being taken over by it, so this
//! program never does. A worker (`worker.rs`) is the same executable, started
//! again; it gives up its rights (`confine.rs`, `calls.rs`) before it sees a
//! document. Its parent starts it (`start.rs`), keeps the clock (`process.rs`),
//! and believes nothing that it answers (`protocol.rs`). Documents and pixels
//! pass through sealed memory (`shared.rs`).

mod calls;
mod child;
mod confine;
mod failure;
pub(crate) mod fuzzing;
mod last_words;
mod limits;
pub(crate) mod process;
pub(crate) mod protocol;
#[cfg(test)]
mod refusals;
pub(crate) mod shared;
mod start;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod worker;

pub(crate) use confine::ProtectionWarning;
pub use confine::{Isolation, Protections};
pub use failure::Failure;
pub(crate) use failure::tidy;
pub use limits::DocumentLimits;
pub use process::protections;
pub use protocol::Renderer;
pub use start::{StartError, WorkerCommand};
pub use worker::{WORKER_ARGUMENT, run_worker_if_asked};

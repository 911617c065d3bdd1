//! Defines a source and its settings: the traits that every kind of source implements.

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::error::{FieldError, StageError};
use crate::fields::Fields;
use crate::resources::Resources;
use crate::source_outlet::SourceOutlet;

/// Brings items into the graph. It runs on tokio, so that it may wait for a
/// network, a folder or a channel.
pub trait Source: Send {
    /// Sends items until there are no more, or until
    /// [`SourceOutlet::is_draining`].
    ///
    /// # Errors
    /// Only what the pipeline cannot survive; a file that cannot be read goes
    /// to [`SourceOutlet::dead_letter`].
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>>;

    /// Whether the next run sends a document again that this run left unfinished, as
    /// a source does that lists a folder. A run that drains stops inside such
    /// documents; it finishes those of other sources.
    fn sends_again(&self) -> bool {
        false
    }
}

/// Settings of one kind of source; see [`StageConfig`](crate::StageConfig).
pub trait SourceConfig: DeserializeOwned + Send + Sync + 'static {
    /// The value of `kind` in TOML.
    const KIND: &'static str;
    /// One line on what it does.
    const ABOUT: &'static str;
    /// Settings that build.
    const EXAMPLE: &'static str;
    /// Settings that hold a path: `~` at the start of one is the home folder.
    const PATHS: &'static [&'static str] = &[];
    /// The fields that its items have.
    fn fields(&self) -> Fields;
    /// Whether it goes on until it is asked to stop.
    fn is_continuous(&self) -> bool {
        false
    }
    /// The folder or address that documents come from, as their URIs begin, so that
    /// two sources of the same documents are found.
    fn place(&self) -> Option<String> {
        None
    }
    /// Makes the source.
    ///
    /// # Errors
    /// A setting that cannot be used.
    fn build(&self, resources: &Resources) -> Result<Box<dyn Source>, FieldError>;
}

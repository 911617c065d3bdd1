//! Defines what a node can be made of: the settings of a kind, a closure, or a value of one's own.

use std::any::Any;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::closures::StageFn;
use crate::error::{FieldError, StageError};
use crate::fields::{Field, Fields};
use crate::item::Item;
use crate::registry::{AnySink, AnySource, Settings};
use crate::resources::Resources;
use crate::sink::{Delivery, Sink, SinkConfig, SinkInput};
use crate::source::{Source, SourceConfig};
use crate::stage::StageConfig;

/// What a node is made of.
pub struct Content {
    pub(super) kind: String,
    pub(super) settings: Settings,
    /// The settings that rows depend on, as text; none if nothing is known of them.
    pub(super) row_settings: Option<String>,
}

impl Content {
    pub(super) fn new(kind: &str, settings: Settings) -> Self {
        Self {
            kind: kind.to_owned(),
            row_settings: Some(settings.row_settings()),
            settings,
        }
    }
}

/// What can bring items in: the settings of a kind, [`from_stream`](crate::from_stream),
/// [`from_iter`](crate::from_iter) or [`from_source`].
pub trait IntoSource {
    #[doc(hidden)]
    fn into_source(self) -> Content;
}

/// What can change items: the settings of a kind, [`map`](crate::map) and its
/// like, or [`from_stage`](crate::from_stage).
pub trait IntoStage {
    #[doc(hidden)]
    fn into_stage(self) -> Content;
}

/// What can store items: the settings of a kind, [`sink_fn`] or [`from_sink`].
pub trait IntoSink {
    #[doc(hidden)]
    fn into_sink(self) -> Content;
}

impl<C: SourceConfig> IntoSource for C {
    fn into_source(self) -> Content {
        Content::new(C::KIND, Settings::Source(Arc::new(self)))
    }
}

impl<C: StageConfig> IntoStage for C {
    fn into_stage(self) -> Content {
        Content::new(C::KIND, Settings::Stage(Arc::new(self)))
    }
}

impl<C: SinkConfig> IntoSink for C {
    fn into_sink(self) -> Content {
        Content::new(C::KIND, Settings::Sink(Arc::new(self)))
    }
}

impl IntoSource for SourceFn {
    fn into_source(self) -> Content {
        Content::new(self.kind, Settings::Source(Arc::new(self)))
    }
}

impl IntoStage for StageFn {
    fn into_stage(self) -> Content {
        Content {
            row_settings: self.row_settings(),
            ..Content::new(self.kind, Settings::Stage(Arc::new(self)))
        }
    }
}

impl IntoSink for SinkFn {
    fn into_sink(self) -> Content {
        Content::new(self.kind, Settings::Sink(Arc::new(self)))
    }
}

/// A value that one run uses up.
struct Once<T>(Mutex<Option<T>>);

impl<T> Once<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    fn take(&self, field: &'static str) -> Result<T, FieldError> {
        let mut value = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        value.take().ok_or_else(|| {
            FieldError::new(
                field,
                "was used up by an earlier run",
                "make a new one for each run",
            )
        })
    }
}

/// A source without settings: a stream, or what [`from_source`] was given.
#[must_use = "give it to `PipelineBuilder::source`"]
pub struct SourceFn {
    kind: &'static str,
    fields: Fields,
    source: Once<Box<dyn Source>>,
}

/// A source of your own, without settings in TOML. Say with
/// [`provides`](SourceFn::provides) which fields its items have.
pub fn from_source(source: impl Source + 'static) -> SourceFn {
    SourceFn::new("own", source)
}

impl SourceFn {
    pub(crate) fn new(kind: &'static str, source: impl Source + 'static) -> Self {
        Self {
            kind,
            fields: Fields::default(),
            source: Once::new(Box::new(source)),
        }
    }

    /// Its items have these fields. Others do not travel on.
    pub fn provides(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields = self.fields.adds(fields);
        self
    }
}

impl AnySource for SourceFn {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn fields(&self) -> Fields {
        self.fields.clone()
    }
    fn is_continuous(&self) -> bool {
        false // Nobody asks: a stream ends when it ends.
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        self.source.take("source")
    }
}

/// A sink without settings: a closure, or what [`from_sink`] was given.
#[must_use = "give it to `PipelineBuilder::sink`"]
pub struct SinkFn {
    kind: &'static str,
    fields: Fields,
    sink: Once<Box<dyn Sink>>,
}

/// A sink of your own, without settings in TOML.
pub fn from_sink(sink: impl Sink + 'static) -> SinkFn {
    SinkFn::new("own", sink)
}

/// A sink that hands batches to an async closure. When the closure returns
/// without an error, the batch counts as durable: its acks are released.
///
/// With `OnError::Retry` the closure gets the batch again, with what came
/// meanwhile. Items come as they are ready, those of one document not always
/// together: where a document must be stored as a whole, implement [`Sink`].
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// let n_stored = Arc::new(AtomicUsize::new(0));
/// let counter = Arc::clone(&n_stored);
/// let sink = pagemill_pipeline::sink_fn(move |batch| {
///     let counter = Arc::clone(&counter);
///     async move {
///         counter.fetch_add(batch.len(), Ordering::Relaxed);
///         Ok(())
///     }
/// });
/// # let _ = sink;
/// ```
pub fn sink_fn<F, R>(store: F) -> SinkFn
where
    F: FnMut(Vec<Item>) -> R + Send + 'static,
    R: Future<Output = Result<(), StageError>> + Send + 'static,
{
    let held = Vec::new();
    SinkFn::new("sink_fn", Closure { store, held })
}

impl SinkFn {
    pub(crate) fn new(kind: &'static str, sink: impl Sink + 'static) -> Self {
        Self {
            kind,
            fields: Fields::takes_all(),
            sink: Once::new(Box::new(sink)),
        }
    }

    /// Items without one of these are an error when the pipeline is built, and
    /// it gets no fields but these. Without it, it gets all that reach it.
    pub fn reads(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields.reads.extend(fields);
        self.fields.takes_all = false;
        self
    }
}

impl AnySink for SinkFn {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn fields(&self) -> Fields {
        self.fields.clone()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        self.sink.take("sink")
    }
}

/// What [`sink_fn`] makes.
struct Closure<F> {
    store: F,
    /// What the closure has not stored yet.
    held: Vec<Delivery>,
}

impl<F, R> Closure<F>
where
    F: FnMut(Vec<Item>) -> R + Send,
    R: Future<Output = Result<(), StageError>> + Send + 'static,
{
    fn write(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        if self.held.is_empty() {
            return async { Ok(()) }.boxed();
        }
        let items = self.held.iter().map(|delivery| delivery.item.clone());
        let stored = (self.store)(items.collect());
        async move {
            stored.await?;
            for delivery in self.held.drain(..) {
                delivery.ack.durable();
            }
            Ok(())
        }
        .boxed()
    }
}

impl<F, R> Sink for Closure<F>
where
    F: FnMut(Vec<Item>) -> R + Send,
    R: Future<Output = Result<(), StageError>> + Send + 'static,
{
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        async { Ok(()) }.boxed()
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        self.held.extend(batch);
        self.write()
    }

    fn idle(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        self.write()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        self.write()
    }
}

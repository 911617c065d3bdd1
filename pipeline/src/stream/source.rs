//! A stream as a source.

use std::pin::Pin;

use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};

use crate::builder::SourceFn;
use crate::error::StageError;
use crate::item::Item;
use crate::source::Source;
use crate::source_outlet::SourceOutlet;

/// A source that sends what a stream yields. Say with
/// [`provides`](SourceFn::provides) which fields its items have.
///
/// The stream is polled only when the edge behind it has room, and no more once
/// the run drains. Each item is a document of its own, told by its URI: two of
/// one URI go through one after the other, as versions of one document.
pub fn from_stream<S>(stream: S) -> SourceFn
where
    S: Stream<Item = Item> + Send + 'static,
{
    SourceFn::new("stream", StreamSource(Box::pin(stream)))
}

/// A source that sends what an iterator yields: items that are in memory, or
/// quickly made. One that waits for a disk or a network would hold up other
/// tasks: make it a stream.
pub fn from_iter<I>(items: I) -> SourceFn
where
    I: IntoIterator<Item = Item>,
    I::IntoIter: Send + 'static,
{
    from_stream(futures::stream::iter(items))
}

struct StreamSource<S>(Pin<Box<S>>);

impl<S> Source for StreamSource<S>
where
    S: Stream<Item = Item> + Send + 'static,
{
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        let mut stream = self.0;
        async move {
            loop {
                outlet.room().await?;
                let next = tokio::select! {
                    biased;
                    () = outlet.draining() => None,
                    next = stream.next() => next,
                };
                match next {
                    Some(item) => outlet.send(item).await?,
                    None => return Ok(()),
                }
            }
        }
        .boxed()
    }
}

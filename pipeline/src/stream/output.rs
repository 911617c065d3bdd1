//! A pipeline that is read as a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::builder::SinkFn;
use crate::document::Ack;
use crate::error::StageError;
use crate::graph::Pipeline;
use crate::item::Item;
use crate::report::Report;
use crate::run::{RunControl, RunError};
use crate::sink::{Delivery, Sink, SinkInput};

/// Items between the sink and who reads the stream, beside those in the edge.
const CAPACITY: usize = 1;

/// What goes from the sink to the stream.
enum Passed {
    Item(Delivery),
    /// There are no more; to be answered once all are taken.
    End(oneshot::Sender<()>),
}

/// The sink behind an [`ItemStream`], and what the stream receives from it.
pub(crate) fn output() -> (SinkFn, Receiver) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (SinkFn::new("stream", Output { sender }), Receiver(receiver))
}

pub(crate) struct Receiver(mpsc::Receiver<Passed>);

struct Output {
    sender: mpsc::Sender<Passed>,
}

impl Output {
    /// Waits until who reads the stream has room for it.
    async fn pass(&self, passed: Passed) -> Result<(), StageError> {
        let passed = self.sender.send(passed).await;
        passed.map_err(|_| StageError::Cancelled) // The stream was dropped.
    }
}

impl Sink for Output {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        async { Ok(()) }.boxed()
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        async move {
            for delivery in batch {
                self.pass(Passed::Item(delivery)).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        async move {
            // The last item's ack is released when more is asked for; the run
            // must not end before, or its report and ledger would lack it.
            let (asked, has_asked) = oneshot::channel();
            self.pass(Passed::End(asked)).await?;
            has_asked.await.map_err(|_| StageError::Cancelled)
        }
        .boxed()
    }
}

/// The items that reach the end of a pipeline, in the order in which they do;
/// [`PipelineBuilder::into_stream`](crate::PipelineBuilder::into_stream) makes one.
///
/// The run begins when the stream is first polled, as a task of the tokio
/// runtime that polls it. Who reads slowly slows the whole pipeline: beside the
/// budgets of the edges, no more than three items wait here.
///
/// An item counts as stored when the *next* one is asked for, or the end: until
/// then its reader may be working on it. So what a crash or a drop interrupts is
/// done again by the next run of a pipeline with a ledger, and each item is seen
/// at least once. A combinator that reads ahead, such as `buffered`, asks before
/// its items are done with.
///
/// Dropping the stream cancels the run: the task and the threads of the stages
/// end by themselves, each as soon as the call that it is in returns.
/// [`ItemStream::cancel`] waits for that. To finish what is under way instead,
/// call [`RunControl::drain`] and read on to the end.
///
/// # Panics
/// When it is polled outside of a tokio runtime.
#[must_use = "a stream does nothing unless it is polled"]
pub struct ItemStream {
    run: Run,
    control: RunControl,
    receiver: mpsc::Receiver<Passed>,
    /// Of the item that was yielded last.
    ack: Option<Ack>,
}

enum Run {
    Ready(Box<Pipeline>),
    Running(JoinHandle<Result<Report, RunError>>),
    Ended(Option<Box<Report>>),
}

impl ItemStream {
    pub(crate) fn new(pipeline: Pipeline, receiver: Receiver) -> Self {
        Self {
            run: Run::Ready(Box::new(pipeline)),
            control: RunControl::default(),
            receiver: receiver.0,
            ack: None,
        }
    }

    /// Steers and watches the run.
    pub fn control(&self) -> &RunControl {
        &self.control
    }

    /// What was done, once the stream has ended.
    pub fn report(&self) -> Option<&Report> {
        match &self.run {
            Run::Ended(report) => report.as_deref(),
            Run::Ready(_) | Run::Running(_) => None,
        }
    }

    /// Cancels the run and waits until no task and no thread of it is left.
    pub async fn cancel(mut self) {
        let run = std::mem::replace(&mut self.run, Run::Ended(None));
        let Run::Running(task) = run else { return };
        self.control.cancel();
        drop(self); // A sink that waits for the reader learns that there is none.
        // How a run that was cancelled ended is of no interest.
        let _ = task.await;
    }

    fn begin(&mut self) {
        let run = std::mem::replace(&mut self.run, Run::Ended(None));
        self.run = match run {
            Run::Ready(pipeline) => {
                let control = self.control.clone();
                Run::Running(tokio::spawn(async move { pipeline.run(&control).await }))
            }
            other => other,
        };
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, RunError>>> {
        let Run::Running(task) = &mut self.run else {
            return Poll::Ready(None);
        };
        let (report, error) = match ready!(task.poll_unpin(cx)) {
            Ok(Ok(report)) => (Some(Box::new(report)), None),
            Ok(Err(error)) => (error.report.clone(), Some(error)),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => (None, None), // The runtime shuts down.
            },
        };
        self.run = Run::Ended(report);
        Poll::Ready(error.map(Err))
    }
}

impl Stream for ItemStream {
    type Item = Result<Item, RunError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = &mut *self;
        if let Some(ack) = stream.ack.take() {
            ack.durable();
        }
        stream.begin();
        loop {
            match ready!(stream.receiver.poll_recv(cx)) {
                Some(Passed::Item(Delivery { item, ack })) => {
                    stream.ack = Some(ack);
                    return Poll::Ready(Some(Ok(item)));
                }
                // A run that was cancelled meanwhile does not wait for the answer.
                Some(Passed::End(asked)) => drop(asked.send(())),
                None => return stream.poll_end(cx),
            }
        }
    }
}

impl Drop for ItemStream {
    fn drop(&mut self) {
        if matches!(self.run, Run::Running(_)) {
            self.control.cancel();
        }
    }
}

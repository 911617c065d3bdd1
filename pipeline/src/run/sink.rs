//! One sink's task: hands items over with their acks, tells it when documents end.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;
use futures::FutureExt as _;

use super::Shared;
use super::worker::panic_message;
use crate::batch::BatchPolicy;
use crate::document::Token;
use crate::edge::{Inbox, Taken};
use crate::error::StageError;
use crate::gather::{Gather, LetGo};
use crate::item::Item;
use crate::metrics::{NodeMetrics, Spent};
use crate::retry::OnError;
use crate::sink::{Delivery, Ended, Inventory, Sink, SinkInput};
use crate::trace::Lane;

/// After so long without input a sink writes what it holds back.
const IDLE: Duration = Duration::from_millis(500);

/// So many documents at most are known to be done and not in the ledger yet,
/// while other work waits.
const MAX_UNWRITTEN: usize = 256;

pub(super) struct SinkRunner {
    pub(super) node: Arc<str>,
    /// Which of the pipeline's sinks it is.
    pub(super) place: usize,
    pub(super) sink: Box<dyn Sink>,
    pub(super) input: SinkInput,
    pub(super) policy: BatchPolicy,
    pub(super) on_error: OnError,
    pub(super) inbox: Inbox,
    pub(super) gather: Option<Arc<Gather>>,
    /// What the gathering let go and the sink has not seen.
    pub(super) let_go: VecDeque<LetGo>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) lane: Lane,
}

/// A batch of so many bytes is large enough, whatever the number of its items.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// What a sink's queue held.
enum Received {
    Item(Box<Delivery>),
    Ended(Ended),
    Idle,
    Closed,
}

/// Turns a panic of a sink into an error.
pub(super) async fn without_panic<T>(
    work: impl Future<Output = Result<T, StageError>>,
) -> Result<T, StageError> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|panic| {
        let problem = format_args!("it panicked: {}", panic_message(panic.as_ref()));
        let hint = "this is a bug in the sink: please report it";
        Err(StageError::fatal(problem, hint))
    })
}

impl SinkRunner {
    /// Opens the sink, before any source starts.
    pub(super) async fn open(&mut self) -> Result<(), StageError> {
        let since = Instant::now();
        let opened = self.sink.open(&self.input).await;
        self.metrics.spend(Spent::Busy, since.elapsed());
        self.lane.work("open", since, 0, Duration::ZERO);
        opened
    }

    /// What the sink holds, and its mark of that.
    pub(super) async fn inventory(
        &mut self,
        mark: Option<&str>,
    ) -> Result<(Inventory, Option<String>), StageError> {
        let since = Instant::now();
        let inventory = self.sink.inventory(mark).await?;
        self.lane.work("inventory", since, 0, Duration::ZERO);
        Ok((inventory, self.sink.mark()))
    }

    pub(super) async fn run(mut self) {
        // The run is told of a panic before the queue is dropped: what waits in
        // it would otherwise pass for set aside.
        match without_panic(self.serve()).await {
            Ok(()) => self.shared.progress.set_mark(self.place, self.sink.mark()),
            // It may have stored what it has not acked: the next run is to look.
            Err(error) => self.shared.fail(&self.node, error),
        }
    }

    async fn serve(&mut self) -> Result<(), StageError> {
        let (mut batch, mut n_bytes) = (Vec::new(), 0);
        loop {
            // A batch that has begun does not wait: storing is what costs.
            let patience = if batch.is_empty() {
                IDLE
            } else {
                Duration::ZERO
            };
            let received = self.receive(patience).await?;
            if let Received::Item(delivery) = received {
                // What is taken off the queue counts against no budget.
                n_bytes += delivery.item.n_bytes();
                batch.push(*delivery);
                if batch.len() >= self.policy.max_items || n_bytes >= MAX_BATCH_BYTES {
                    n_bytes = 0;
                    self.store(&mut batch).await?;
                }
                continue;
            }
            n_bytes = 0;
            self.store(&mut batch).await?;
            let since = Instant::now();
            let (done, is_last) = match received {
                Received::Ended(ended) => (self.sink.end_document(ended).await, false),
                Received::Idle if patience > Duration::ZERO => (self.sink.idle().await, false),
                Received::Closed => (self.sink.finish().await, true),
                Received::Idle | Received::Item(_) => (Ok(()), false),
            };
            let done = self.try_again(done, is_last).await;
            self.metrics.spend(Spent::Busy, since.elapsed());
            if is_last {
                self.lane.work("finish", since, 0, Duration::ZERO);
            }
            done?;
            self.note(is_last || !patience.is_zero())?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn store(&mut self, batch: &mut Vec<Delivery>) -> Result<(), StageError> {
        if batch.is_empty() {
            return Ok(());
        }
        let n_items = batch.len();
        self.metrics.count_batch(n_items);
        let since = Instant::now();
        let stored = self.sink.store(std::mem::take(batch)).await;
        let stored = self.try_again(stored, false).await;
        self.metrics.spend(Spent::Busy, since.elapsed());
        self.lane.work(&self.node, since, n_items, Duration::ZERO);
        stored?;
        self.note(false)
    }

    /// Has the sink write again what it could not; if that was the last, it
    /// finishes then: it has more to do than to write.
    async fn try_again(
        &mut self,
        mut done: Result<(), StageError>,
        is_last: bool,
    ) -> Result<(), StageError> {
        if done.is_ok() {
            return done;
        }
        for wait in self.on_error.waits() {
            let Err(error) = &done else { break };
            let problem = error.to_string();
            let problem = self.shared.secrets.redact(&problem);
            tracing::warn!(node = &*self.node, "{problem}; trying again in {wait:.1?}");
            NodeMetrics::count(&self.metrics.retries, 1);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.stop.cancelled() => return done,
            }
            done = self.sink.idle().await;
            if done.is_ok() && is_last {
                done = self.sink.finish().await;
            }
        }
        done
    }

    /// Tells the ledger what has become durable.
    fn note(&self, has_time: bool) -> Result<(), StageError> {
        let progress = &self.shared.progress;
        let n_pending = progress.n_pending();
        if n_pending > MAX_UNWRITTEN || (has_time && n_pending > 0) {
            progress.set_mark(self.place, self.sink.mark());
            progress.flush()?;
        }
        Ok(())
    }

    /// The next message; `Idle` when none came for `patience`.
    async fn receive(&mut self, patience: Duration) -> Result<Received, StageError> {
        let since = Instant::now();
        let received = self.receive_untimed(patience).await;
        let starved = since.elapsed();
        self.metrics.spend(Spent::Starved, starved);
        self.lane.wait("starved", starved);
        received
    }

    async fn receive_untimed(&mut self, patience: Duration) -> Result<Received, StageError> {
        loop {
            if let Some(delivery) = self.next_let_go()? {
                return Ok(Received::Item(Box::new(delivery)));
            }
            // Before the queue, so that what is held does not grow while items come.
            if let Some(gather) = &self.gather
                && let Ok(stalled) = gather.stalled().try_recv()
            {
                let let_go = gather.flush_stalled(&stalled);
                // What waits for items that a cancelled run dropped has not stalled.
                if self.shared.stop.is_cancelled() {
                    return Err(StageError::Cancelled);
                }
                self.let_go.extend(let_go);
                continue;
            }
            let message = self.inbox.receiver.try_recv();
            // What was cancelled meanwhile may be half a document.
            if self.shared.stop.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            match message {
                Ok(message) => match message.take() {
                    Taken::Ended(ended) => return Ok(Received::Ended(ended)),
                    Taken::Item(item, port) => {
                        self.let_go.extend(match &self.gather {
                            None => Some(LetGo::Item(item)),
                            Some(gather) => gather.accept(port, item),
                        });
                        continue;
                    }
                },
                Err(TryRecvError::Disconnected) => return Ok(Received::Closed),
                Err(TryRecvError::Empty) => {}
            }
            if patience.is_zero() {
                return Ok(Received::Idle);
            }
            // A permit that was given since `try_recv` wakes this at once.
            tokio::select! {
                () = self.inbox.arrived.notified() => {}
                () = self.shared.stop.cancelled() => {}
                () = tokio::time::sleep(patience) => return Ok(Received::Idle),
            }
        }
    }

    /// The next item that is for the sink; what is not is set aside.
    fn next_let_go(&mut self) -> Result<Option<Delivery>, StageError> {
        while let Some(let_go) = self.let_go.pop_front() {
            match let_go {
                LetGo::Item(item) => {
                    let delivery = self.deliver(item);
                    if delivery.ack.is_staged_before() {
                        delivery.ack.drop_duplicate();
                        continue;
                    }
                    return Ok(Some(delivery));
                }
                // A sink stores the items of a group one by one.
                LetGo::Group(items) => {
                    let items = items.into_iter().rev().map(LetGo::Item);
                    items.for_each(|item| self.let_go.push_front(item));
                }
                LetGo::SetAside(..) if self.shared.stop.is_cancelled() => {
                    return Err(StageError::Cancelled); // Its partner was dropped on its way.
                }
                LetGo::SetAside(item, error) => {
                    let (shared, metrics) = (&self.shared, &self.metrics);
                    shared.set_aside(&self.node, metrics, self.on_error, &item, &error)?;
                }
            }
        }
        Ok(None)
    }

    fn deliver(&self, mut item: Item) -> Delivery {
        let tracker = &self.shared.tracker;
        let token = item.token.take();
        let token: Token = token.unwrap_or_else(|| tracker.begin(item.origin()));
        Delivery {
            item,
            ack: token.arrive(self.place),
        }
    }
}

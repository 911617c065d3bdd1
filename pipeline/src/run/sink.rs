//! One sink's task: hands items over with their acks, tells it when documents end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;

use super::Shared;
use crate::batch::BatchPolicy;
use crate::document::Document;
use crate::edge::{Inbox, Taken};
use crate::error::StageError;
use crate::metrics::{NodeMetrics, Spent};
use crate::stage::{Delivery, Sink, SinkInput};

/// After so long without input a sink writes what it holds back.
const IDLE: Duration = Duration::from_secs(2);

pub(super) struct SinkRunner {
    pub(super) node: Arc<str>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) input: SinkInput,
    pub(super) policy: BatchPolicy,
    pub(super) inbox: Inbox,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<NodeMetrics>,
}

/// What a sink's queue held.
enum Received {
    Item(Box<Delivery>),
    Ended(Arc<Document>),
    Idle,
    Closed,
}

impl SinkRunner {
    pub(super) async fn run(mut self) {
        if let Err(error) = self.serve().await {
            self.shared.fail(&self.node, error);
        }
    }

    async fn serve(&mut self) -> Result<(), StageError> {
        let since = Instant::now();
        let opened = self.sink.open(&self.input).await;
        self.metrics.spend(Spent::Busy, since.elapsed());
        opened?;
        let mut batch = Vec::new();
        loop {
            // A batch that has begun does not wait: storing is what costs.
            let patience = if batch.is_empty() {
                IDLE
            } else {
                Duration::ZERO
            };
            let received = self.receive(patience).await?;
            if let Received::Item(delivery) = received {
                batch.push(*delivery);
                if batch.len() < self.policy.max_items {
                    continue;
                }
                self.store(&mut batch).await?;
                continue;
            }
            self.store(&mut batch).await?;
            let since = Instant::now();
            let done = match &received {
                Received::Ended(document) => self.sink.end_document(document).await,
                Received::Idle if patience > Duration::ZERO => self.sink.idle().await,
                Received::Closed => self.sink.finish().await,
                Received::Idle | Received::Item(_) => Ok(()),
            };
            self.metrics.spend(Spent::Busy, since.elapsed());
            done?;
            if matches!(received, Received::Closed) {
                return Ok(());
            }
        }
    }

    async fn store(&mut self, batch: &mut Vec<Delivery>) -> Result<(), StageError> {
        if batch.is_empty() {
            return Ok(());
        }
        NodeMetrics::count(&self.metrics.items_in, batch.len());
        NodeMetrics::count(&self.metrics.batches, 1);
        let since = Instant::now();
        let stored = self.sink.store(std::mem::take(batch)).await;
        self.metrics.spend(Spent::Busy, since.elapsed());
        stored
    }

    /// The next message; `Idle` when none came for `patience`.
    async fn receive(&mut self, patience: Duration) -> Result<Received, StageError> {
        let since = Instant::now();
        let received = self.receive_untimed(patience).await;
        self.metrics.spend(Spent::Starved, since.elapsed());
        received
    }

    async fn receive_untimed(&mut self, patience: Duration) -> Result<Received, StageError> {
        loop {
            // Cancelled documents end too: they must not be taken for whole ones.
            if self.shared.stop.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            match self.inbox.receiver.try_recv() {
                Ok(message) => {
                    return Ok(match message.take() {
                        Taken::Ended(document) => Received::Ended(document),
                        Taken::Item(mut item) => {
                            let tracker = &self.shared.tracker;
                            let token = item.token.take();
                            let token = token.unwrap_or_else(|| tracker.begin(item.origin()));
                            Received::Item(Box::new(Delivery {
                                item,
                                ack: token.arrive(),
                            }))
                        }
                    });
                }
                Err(TryRecvError::Disconnected) => return Ok(Received::Closed),
                Err(TryRecvError::Empty) if patience.is_zero() => return Ok(Received::Idle),
                Err(TryRecvError::Empty) => {}
            }
            // A permit that was given since `try_recv` wakes this at once.
            tokio::select! {
                () = self.inbox.arrived.notified() => {}
                () = self.shared.stop.cancelled() => {}
                () = tokio::time::sleep(patience) => return Ok(Received::Idle),
            }
        }
    }
}

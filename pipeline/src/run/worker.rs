//! One worker of a stage: forms batches, calls the stage, measures its time.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::port::Port;
use crate::batch::{BatchPolicy, Batcher, Next};
use crate::edge::{EdgeSender, Inbox};
use crate::error::{ItemError, StageError};
use crate::graph::Rebuild;
use crate::item::Item;
use crate::key::Key;
use crate::metrics::{NodeMetrics, Spent};
use crate::stage::{Outlet, OutletPort, Stage};

/// How long a worker waits for input before it looks whether the run was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) struct Worker {
    pub(super) node: Arc<str>,
    pub(super) stage: Box<dyn Stage>,
    pub(super) rebuild: Arc<Rebuild>,
    pub(super) policy: BatchPolicy,
    pub(super) inbox: Inbox,
    pub(super) edges: Arc<Vec<EdgeSender>>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<NodeMetrics>,
}

impl Worker {
    pub(super) fn run(self) {
        let Self {
            node,
            stage,
            rebuild,
            policy,
            inbox,
            edges,
            shared,
            metrics,
        } = self;
        let port = Port {
            node: Arc::clone(&node),
            edges,
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
            blocked: Duration::ZERO,
            left: Vec::new(),
        };
        let batcher = Batcher::new(policy, inbox.receiver);
        let ended = Running {
            stage,
            rebuild,
            port,
            batcher,
            metrics,
        }
        .run();
        if let Err(error) = ended {
            shared.fail(&node, error);
        }
    }
}

struct Running {
    stage: Box<dyn Stage>,
    rebuild: Arc<Rebuild>,
    port: Port,
    batcher: Batcher,
    metrics: Arc<NodeMetrics>,
}

impl Running {
    fn run(mut self) -> Result<(), StageError> {
        let started = Instant::now();
        let start = catch_unwind(AssertUnwindSafe(|| self.stage.start()));
        self.metrics.spend(Spent::Busy, started.elapsed());
        start.unwrap_or_else(|panic| Err(panicked("starting", panic.as_ref())))?;
        loop {
            // Room first, then the batch: what waits upstream is not held here.
            self.metrics
                .spend(Spent::Blocked, self.port.wait_for_room()?);
            let since = Instant::now();
            let stage = &self.stage;
            let next = self.batcher.next(PATIENCE, |item| stage.n_tokens(item));
            self.metrics.spend(Spent::Starved, since.elapsed());
            match next {
                Next::Batch(batch) => self.process(batch)?,
                Next::Nothing if self.port.is_cancelled() => return Err(StageError::Cancelled),
                Next::Nothing => {}
                Next::Closed => break,
            }
        }
        if self.port.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        self.timed(|stage, outlet| stage.finish(outlet))
            .unwrap_or_else(|panic| Err(panicked("finishing", panic.as_ref())))
    }

    /// Calls the stage; its time is busy, less what its sends were blocked.
    fn timed(
        &mut self,
        call: impl FnOnce(&mut dyn Stage, &mut Outlet<'_>) -> Result<(), StageError>,
    ) -> std::thread::Result<Result<(), StageError>> {
        let started = Instant::now();
        let (stage, port) = (self.stage.as_mut(), &mut self.port);
        let ended = catch_unwind(AssertUnwindSafe(|| call(stage, &mut Outlet::new(port))));
        let blocked = std::mem::take(&mut self.port.blocked);
        self.metrics.spend(Spent::Blocked, blocked);
        self.metrics
            .spend(Spent::Busy, started.elapsed().saturating_sub(blocked));
        ended
    }

    fn process(&mut self, batch: Vec<Item>) -> Result<(), StageError> {
        NodeMetrics::count(&self.metrics.items_in, batch.len());
        NodeMetrics::count(&self.metrics.batches, 1);
        self.port.left.clear();
        // The copies share their values. They keep the documents in flight, and
        // say which items a panic took.
        let copies = batch.clone();
        match self.timed(|stage, outlet| stage.process(batch, outlet)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                fail_documents(&copies);
                Err(error)
            }
            Err(panic) => self.after_panic(copies, panic.as_ref()),
        }
    }

    /// A panic costs the item that caused it: the others of its batch are tried
    /// one by one, by a new stage, as the old one may be half changed.
    fn after_panic(
        &mut self,
        batch: Vec<Item>,
        panic: &(dyn std::any::Any + Send),
    ) -> Result<(), StageError> {
        self.renew()?;
        if batch.len() == 1 {
            let reason = format!("the stage panicked: {}", panic_message(panic));
            let error = ItemError::new("handle", reason)
                .hint("this is a bug in the stage: please report it with the document");
            for item in batch {
                self.port.dead_letter(item, error.clone());
            }
            return Ok(());
        }
        let left: HashSet<Key> = self.port.left.drain(..).collect();
        for item in batch.into_iter().filter(|item| !left.contains(&item.key())) {
            let copy = item.clone();
            self.port.left.clear();
            match self.timed(|stage, outlet| stage.process(vec![item], outlet)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    fail_documents(std::slice::from_ref(&copy));
                    return Err(error);
                }
                Err(panic) => self.after_panic(vec![copy], panic.as_ref())?,
            }
        }
        Ok(())
    }

    fn renew(&mut self) -> Result<(), StageError> {
        let hint = "this is a bug in the stage: please report it";
        self.stage = (self.rebuild)().map_err(|error| {
            StageError::caused("cannot be built again after a panic", hint, error)
        })?;
        let started = catch_unwind(AssertUnwindSafe(|| self.stage.start()));
        started.unwrap_or_else(|panic| Err(panicked("starting again", panic.as_ref())))
    }
}

/// Items were lost with an error: their documents must not be stored in part.
fn fail_documents(items: &[Item]) {
    for token in items.iter().filter_map(|item| item.token.as_ref()) {
        token.document().fail();
    }
}

fn panicked(when: &str, panic: &(dyn std::any::Any + Send)) -> StageError {
    StageError::fatal(
        format_args!("the stage panicked while {when}: {}", panic_message(panic)),
        "this is a bug in the stage: please report it",
    )
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

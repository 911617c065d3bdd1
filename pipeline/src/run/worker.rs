//! One worker of a stage: forms batches, calls the stage, measures its time.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::port::{Port, page_counts, slot, token_of_page};
use crate::batch::{BatchPolicy, Batcher, Next};
use crate::edge::{EdgeSender, Inbox};
use crate::error::{ItemError, StageError};
use crate::gather::Gather;
use crate::graph::Rebuild;
use crate::item::Item;
use crate::metrics::{NodeMetrics, Spent};
use crate::retry::OnError;
use crate::stage::{Outlet, OutletPort as _, Stage};
use crate::trace::Lane;

/// How long a worker waits for input before it looks whether the run was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) struct Worker {
    pub(super) node: Arc<str>,
    pub(super) page_key: Arc<str>,
    pub(super) stage: Box<dyn Stage>,
    pub(super) rebuild: Arc<Rebuild>,
    pub(super) policy: BatchPolicy,
    pub(super) on_error: OnError,
    pub(super) is_one_to_one: bool,
    pub(super) inbox: Inbox,
    pub(super) gather: Option<Arc<Gather>>,
    pub(super) edges: Arc<Vec<EdgeSender>>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) lane: Lane,
}

impl Worker {
    pub(super) fn run(self) {
        let port = Port {
            node: Arc::clone(&self.node),
            page_key: Arc::clone(&self.page_key),
            edges: self.edges,
            shared: Arc::clone(&self.shared),
            metrics: Arc::clone(&self.metrics),
            on_error: self.on_error,
            blocked: Duration::ZERO,
            left: Vec::new(),
            left_before: HashMap::new(),
            failed: Vec::new(),
            last_page: None,
            page_counts: page_counts(&self.shared, &self.page_key),
            group: None,
        };
        let mut running = Running {
            stage: self.stage,
            rebuild: self.rebuild,
            port,
            is_one_to_one: self.is_one_to_one,
            batcher: Batcher::new(self.policy, self.inbox.receiver, self.gather.clone()),
            gather: self.gather,
            metrics: self.metrics,
            lane: self.lane,
        };
        let ended = catch_unwind(AssertUnwindSafe(|| running.run()))
            .unwrap_or_else(|panic| Err(panicked("forming a batch", panic.as_ref())));
        // The run is told before the worker's items are dropped: what waits in
        // its batcher or its queue would otherwise pass for set aside.
        if let Err(error) = ended {
            self.shared.fail(&self.node, error);
        }
        drop(running);
    }
}

struct Running {
    stage: Box<dyn Stage>,
    rebuild: Arc<Rebuild>,
    port: Port,
    is_one_to_one: bool,
    batcher: Batcher,
    gather: Option<Arc<Gather>>,
    metrics: Arc<NodeMetrics>,
    lane: Lane,
}

impl Running {
    fn run(&mut self) -> Result<(), StageError> {
        let since = Instant::now();
        let start = catch_unwind(AssertUnwindSafe(|| self.stage.start()));
        self.metrics.spend(Spent::Busy, since.elapsed());
        self.lane.work("start", since, 0, Duration::ZERO);
        start.unwrap_or_else(|panic| Err(panicked("starting", panic.as_ref())))?;
        self.port.shared.pages.worker_started();
        loop {
            // Room first, then the batch: what waits upstream is not held here.
            let blocked = self.port.wait_for_room()?;
            self.metrics.spend(Spent::Blocked, blocked);
            self.lane.wait("blocked", blocked);
            let since = Instant::now();
            let stage = &self.stage;
            let next = self.batcher.next(PATIENCE, |item| stage.n_tokens(item));
            let starved = since.elapsed();
            self.metrics.spend(Spent::Starved, starved);
            self.lane.wait("starved", starved);
            // What was cancelled meanwhile may be half a group.
            if self.port.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            match next {
                Next::Batch(batch) => self.process(batch, false)?,
                Next::Group(batch) => self.process(batch, true)?,
                Next::SetAside(item, error) => self.port.set_aside(&item, &error),
                Next::Nothing => {}
                Next::Closed => break,
            }
        }
        self.port.begin();
        let finished = self
            .timed(0, |stage, outlet| stage.finish(outlet))
            .unwrap_or_else(|panic| Err(panicked("finishing", panic.as_ref())));
        for (item, error) in std::mem::take(&mut self.port.failed) {
            self.port.set_aside(&item, &error);
        }
        finished
    }

    /// Calls the stage; its time is busy, less what its sends were blocked.
    fn timed(
        &mut self,
        n_items: usize,
        call: impl FnOnce(&mut dyn Stage, &mut Outlet<'_>) -> Result<(), StageError>,
    ) -> std::thread::Result<Result<(), StageError>> {
        let started = Instant::now();
        let (stage, port) = (self.stage.as_mut(), &mut self.port);
        let ended = catch_unwind(AssertUnwindSafe(|| call(stage, &mut Outlet::new(port))));
        let blocked = std::mem::take(&mut self.port.blocked);
        let last_page = self.port.last_page.take();
        if let (Some(page), false) = (last_page, matches!(ended, Ok(Ok(())))) {
            page.break_off_page();
        }
        self.metrics.spend(Spent::Blocked, blocked);
        self.metrics
            .spend(Spent::Busy, started.elapsed().saturating_sub(blocked));
        self.lane.work(&self.port.node, started, n_items, blocked);
        ended
    }

    /// Handles a batch, or a group that a gathering node let go.
    fn process(&mut self, mut batch: Vec<Item>, is_group: bool) -> Result<(), StageError> {
        self.metrics.count_batch(batch.len());
        self.batcher.padding(&self.metrics);
        self.port.begin();
        for (place, item) in batch.iter_mut().enumerate() {
            if let Some(token) = item.token.as_mut() {
                token.set_slot(if is_group { 0 } else { place });
            }
        }
        // The copies share their values. They keep the documents in flight, and
        // say which items a panic took.
        let copies = batch.clone();
        self.port.group = is_group.then(|| token_of_page(&copies)).flatten();
        let ended = self.work_on(batch, &copies, is_group);
        self.port.group = None;
        if ended.is_err() {
            // Before the copies are dropped, and their documents may end.
            fail_documents(&copies);
        }
        ended
    }

    /// Tries a batch as often as the node's `retry` says, and sets aside what
    /// fails each time.
    fn work_on(
        &mut self,
        batch: Vec<Item>,
        copies: &[Item],
        is_group: bool,
    ) -> Result<(), StageError> {
        let mut ended = self.attempt(batch, copies, is_group);
        let mut failed = std::mem::take(&mut self.port.failed);
        for wait in self.port.on_error.waits() {
            let again = match &ended {
                Err(StageError::Cancelled) => break,
                Ok(()) if failed.is_empty() => return Ok(()),
                _ => self.to_try_again(copies, &failed, ended.is_err(), is_group),
            };
            if again.is_empty() {
                break;
            }
            NodeMetrics::count(&self.metrics.retries, 1);
            if let Err(error) = &ended {
                let problem = error.to_string();
                let problem = self.port.shared.secrets.redact(&problem);
                tracing::warn!(
                    node = &*self.port.node,
                    "{problem}; trying again in {wait:.1?}"
                );
            }
            self.port.shared.stop.sleep(wait)?;
            self.port.begin_again();
            failed.retain(|(item, _)| !again.iter().any(|other| slot(other) == slot(item)));
            ended = self.attempt(again.clone(), &again, is_group);
            failed.append(&mut self.port.failed);
        }
        if !matches!(ended, Err(StageError::Cancelled)) {
            for (item, error) in failed {
                self.port.set_aside(&item, &error);
            }
        }
        ended
    }

    /// The stage's input, as far as it is to be handled once more. An item that
    /// the stage made of it, such as one page of a document, is not tried alone.
    fn to_try_again(
        &self,
        copies: &[Item],
        failed: &[(Item, ItemError)],
        is_broken: bool,
        is_group: bool,
    ) -> Vec<Item> {
        if is_group {
            // What is made of a part of the group is not what is made of the
            // whole; and the whole has been made if anything was sent.
            let is_made = !is_broken && self.port.has_any_left();
            return if is_made { Vec::new() } else { copies.to_vec() };
        }
        let has_failed = |item: &Item| {
            let is_it = |other: &Item| (slot(other), other.key()) == (slot(item), item.key());
            failed.iter().any(|(other, _)| is_it(other))
        };
        let is_left = |item: &&Item| {
            if is_broken {
                !self.port.has_left(item)
            } else {
                has_failed(item)
            }
        };
        copies.iter().filter(is_left).cloned().collect()
    }

    /// One call of the stage.
    fn attempt(
        &mut self,
        batch: Vec<Item>,
        copies: &[Item],
        is_group: bool,
    ) -> Result<(), StageError> {
        let before = (self.port.left.len(), self.port.failed.len());
        let ended = self.timed(batch.len(), |stage, outlet| stage.process(batch, outlet));
        if self.is_one_to_one && matches!(ended, Ok(Ok(()))) {
            self.port.check_one_to_one(copies, before);
        }
        ended.unwrap_or_else(|panic| self.after_panic(copies, panic.as_ref(), is_group))
    }

    /// A panic costs the item that caused it: the others of its batch are tried
    /// one by one, by a new stage, as the old one may be half changed. A group
    /// is one item to be.
    fn after_panic(
        &mut self,
        batch: &[Item],
        panic: &(dyn std::any::Any + Send),
        is_group: bool,
    ) -> Result<(), StageError> {
        self.renew()?;
        let guilty = match (batch, &self.gather) {
            (group, Some(gather)) if is_group => gather.whole_of(group),
            ([item], _) => Some(item.clone()),
            _ => None,
        };
        if let Some(item) = guilty {
            // What has gone on as a whole is not set aside as well.
            let has_gone_on = self.port.has_left(&item);
            self.port.leaves(&item);
            if !has_gone_on {
                let reason = format!("the stage panicked: {}", panic_message(panic));
                let error = ItemError::new("handle", reason)
                    .hint("this is a bug in the stage: please report it with the document");
                self.port.set_aside(&item, &error);
            }
            return Ok(());
        }
        let is_left = |item: &&Item| !self.port.has_left(item);
        let left: Vec<Item> = batch.iter().filter(is_left).cloned().collect();
        // Of an item that makes many, some may have left: they are passed over
        // when it is handled again.
        self.port.begin_again();
        for item in left {
            self.attempt(vec![item.clone()], &[item], is_group)?;
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

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

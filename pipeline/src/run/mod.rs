//! Runs a pipeline: threads for stages, tasks for sources and sinks.

mod port;
mod sink;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use tokio::task::JoinSet;
use tokio_stream::wrappers::IntervalStream;

use crate::dead_letters::DeadLetters;
use crate::document::{Event, Tracker};
use crate::edge::{Budget, EdgeSender, Inbox, Mailbox, Message, Stop, inbox};
use crate::error::StageError;
use crate::graph::{Node, Pipeline, Work};
use crate::metrics::{NodeMetrics, Role, RunMetrics, Spent, add_one, read};
use crate::report::{NodeReport, Report, Snapshot, StopReason};
use crate::source_outlet::SourceOutlet;
use crate::stage::SinkInput;

/// What every node of a run shares.
pub(crate) struct Shared {
    pub(crate) stop: Arc<Stop>,
    pub(crate) tracker: Tracker,
    pub(crate) metrics: RunMetrics,
    pub(crate) dead_letters: DeadLetters,
    /// The sinks that are told when a document has ended.
    sinks: RwLock<Vec<Mailbox>>,
    failure: Mutex<Option<Failure>>,
}

struct Failure {
    node: String,
    error: StageError,
}

impl Shared {
    /// Stops the run because of an error; the first one is reported.
    pub(crate) fn fail(&self, node: &str, error: StageError) {
        // A node that was interrupted is not what broke the run.
        if !matches!(error, StageError::Cancelled) {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| Failure {
                node: node.to_owned(),
                error,
            });
        }
        self.stop.cancel();
    }
}

/// Steers and watches a run from outside. Clones steer the same run.
#[derive(Clone, Default)]
pub struct RunControl {
    stop: Arc<Stop>,
    watched: Arc<Mutex<Option<Arc<Watched>>>>,
}

struct Watched {
    shared: Arc<Shared>,
    nodes: Vec<WatchedNode>,
    started: Instant,
}

struct WatchedNode {
    name: Arc<str>,
    role: Role,
    workers: usize,
    metrics: Arc<NodeMetrics>,
}

impl RunControl {
    /// Stops the sources; what is under way is finished and stored.
    pub fn drain(&self) {
        self.stop.drain();
    }

    /// Stops now: what is not durable is done again by the next run.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// How far the run is, now and then every so often: for a progress line or
    /// a dashboard. The stream begins with the run and never ends by itself.
    pub fn snapshots(&self, every: Duration) -> impl Stream<Item = Snapshot> + use<> {
        let control = self.clone();
        IntervalStream::new(tokio::time::interval(every))
            .filter_map(move |_| std::future::ready(control.snapshot()))
    }

    /// How far the run is; `None` before it has begun.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.as_ref().map(|watched| watched.snapshot())
    }
}

impl Watched {
    fn snapshot(&self) -> Snapshot {
        let metrics = &self.shared.metrics;
        Snapshot {
            elapsed_s: self.started.elapsed().as_secs_f64(),
            documents_expected: read(&metrics.documents_expected),
            documents_done: read(&metrics.documents_done),
            documents_skipped: read(&metrics.documents_skipped),
            documents_set_aside: read(&metrics.documents_set_aside),
            items_stored: self.shared.tracker.n_durable(),
            dead_letters: read(&metrics.dead_letters),
            nodes: self.nodes.iter().map(WatchedNode::report).collect(),
        }
    }
}

impl WatchedNode {
    fn report(&self) -> NodeReport {
        let metrics = &self.metrics;
        let counter = if self.role == Role::Source {
            &metrics.items_out
        } else {
            &metrics.items_in
        };
        NodeReport {
            name: self.name.to_string(),
            role: self.role,
            workers: self.workers,
            items: read(counter),
            items_out: read(&metrics.items_out),
            batches: read(&metrics.batches),
            dead_letters: read(&metrics.dead_letters),
            busy_s: metrics.seconds(Spent::Busy),
            starved_s: metrics.seconds(Spent::Starved),
            blocked_s: metrics.seconds(Spent::Blocked),
        }
    }
}

/// A run that stopped before its end.
#[derive(Debug, thiserror::Error)]
#[error("pipeline `{pipeline}` stopped at `{node}`: {error}")]
pub struct RunError {
    /// The pipeline.
    pub pipeline: String,
    /// The node that could not go on.
    pub node: String,
    /// Why.
    #[source]
    pub error: StageError,
    /// What was done until then; everything counted as stored is durable.
    pub report: Option<Box<Report>>,
}

impl Pipeline {
    /// Runs the pipeline to its end: until the sources have no more, or
    /// [`RunControl::drain`] or [`RunControl::cancel`] is called.
    ///
    /// Stages get OS threads of their own; sources and sinks run on the
    /// current tokio runtime.
    ///
    /// # Errors
    /// When a node cannot go on: a full disk, a table that does not fit, a
    /// model that cannot be loaded. Documents whose rows are durable stay so.
    pub async fn run(self, control: &RunControl) -> Result<Report, RunError> {
        let (name, started) = (self.name.clone(), Instant::now());
        let dead_letters =
            DeadLetters::open(&self.dead_letters, &self.name).map_err(|error| RunError {
                pipeline: name.clone(),
                node: "dead_letters".into(),
                error,
                report: None,
            })?;
        let shared = Arc::new(Shared {
            stop: Arc::clone(&control.stop),
            tracker: Tracker::default(),
            metrics: RunMetrics::default(),
            dead_letters,
            sinks: RwLock::default(),
            failure: Mutex::default(),
        });
        let metrics: Vec<Arc<NodeMetrics>> = self.nodes.iter().map(|_| Arc::default()).collect();
        let nodes = self
            .nodes
            .iter()
            .zip(&metrics)
            .map(|(node, metrics)| WatchedNode {
                name: Arc::clone(&node.name),
                role: node.role(),
                workers: node.workers,
                metrics: Arc::clone(metrics),
            });
        let watched = Arc::new(Watched {
            shared: Arc::clone(&shared),
            nodes: nodes.collect(),
            started,
        });
        *control
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&watched));

        Start::new(self, Arc::clone(&shared), metrics).run().await;

        let stopped = match (shared.stop.is_cancelled(), shared.stop.is_draining()) {
            (true, _) => StopReason::Cancelled,
            (false, true) => StopReason::Drained,
            (false, false) => StopReason::Finished,
        };
        let report = Report::new(name.clone(), stopped, watched.snapshot());
        let failure = shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match failure {
            None => Ok(report),
            Some(Failure { node, error }) => Err(RunError {
                pipeline: name,
                node,
                error,
                report: Some(Box::new(report)),
            }),
        }
    }
}

/// The parts of a run that are being started.
struct Start {
    pipeline: String,
    fingerprint: String,
    nodes: Vec<Node>,
    shared: Arc<Shared>,
    metrics: Vec<Arc<NodeMetrics>>,
    inboxes: Vec<Option<Inbox>>,
    /// Edges that leave each node.
    edges: Vec<Vec<EdgeSender>>,
}

impl Start {
    fn new(pipeline: Pipeline, shared: Arc<Shared>, metrics: Vec<Arc<NodeMetrics>>) -> Self {
        let nodes = pipeline.nodes;
        let (mut inboxes, mut mailboxes) = (Vec::new(), Vec::<Option<Mailbox>>::new());
        for node in &nodes {
            let pair = (!node.inputs.is_empty()).then(inbox);
            let (mailbox, inbox) = pair.unzip();
            inboxes.push(inbox);
            mailboxes.push(mailbox);
        }
        let mut edges: Vec<Vec<EdgeSender>> = nodes.iter().map(|_| Vec::new()).collect();
        for (node, mailbox) in nodes.iter().zip(&mailboxes) {
            let Some(mailbox) = mailbox else { continue };
            for input in &node.inputs {
                edges[*input].push(EdgeSender {
                    mailbox: mailbox.clone(),
                    budget: Arc::new(Budget::new(node.edge)),
                    carries: Arc::clone(&node.carries),
                    stop: Arc::clone(&shared.stop),
                });
            }
        }
        let is_sink = |node: &Node| node.role() == Role::Sink;
        let sinks = nodes
            .iter()
            .zip(mailboxes)
            .filter(|(node, _)| is_sink(node));
        let sinks: Vec<Mailbox> = sinks.filter_map(|(_, mailbox)| mailbox).collect();
        watch_documents(&shared, sinks);
        Self {
            pipeline: pipeline.name,
            fingerprint: pipeline.fingerprint,
            nodes,
            shared,
            metrics,
            inboxes,
            edges,
        }
    }

    async fn run(self) {
        let Self {
            pipeline,
            fingerprint,
            nodes,
            shared,
            metrics,
            inboxes,
            edges,
        } = self;
        let (mut sources, mut sinks) = (JoinSet::new(), JoinSet::new());
        let (mut names, mut threads) = (HashMap::new(), Vec::new());
        for (((node, metrics), inbox), edges) in
            nodes.into_iter().zip(metrics).zip(inboxes).zip(edges)
        {
            let name = Arc::clone(&node.name);
            match (node.work, inbox) {
                (Work::Source(source), _) => {
                    let outlet = SourceOutlet {
                        node: Arc::clone(&name),
                        edges: Arc::new(edges),
                        shared: Arc::clone(&shared),
                        metrics,
                    };
                    let task = sources.spawn(run_source(source, outlet, Arc::clone(&shared)));
                    names.insert(task.id(), name);
                }
                (Work::Stage { workers, rebuild }, Some(inbox)) => {
                    let edges = Arc::new(edges);
                    for (index, stage) in workers.into_iter().enumerate() {
                        let worker = worker::Worker {
                            node: Arc::clone(&name),
                            stage,
                            rebuild: Arc::clone(&rebuild),
                            policy: node.batch,
                            inbox: inbox.clone(),
                            edges: Arc::clone(&edges),
                            shared: Arc::clone(&shared),
                            metrics: Arc::clone(&metrics),
                        };
                        let thread = thread::Builder::new().name(format!("{name}-{index}"));
                        match thread.spawn(move || worker.run()) {
                            Ok(thread) => threads.push(thread),
                            Err(error) => {
                                let hint = "lower `workers`, or raise the limit on threads";
                                let problem = "cannot start a thread";
                                shared.fail(&name, StageError::caused(problem, hint, error));
                            }
                        }
                    }
                }
                (Work::Sink(sink), Some(inbox)) => {
                    let fields = node.input.clone();
                    let runner = sink::SinkRunner {
                        node: Arc::clone(&name),
                        sink,
                        input: SinkInput {
                            fields,
                            pipeline: pipeline.clone(),
                            fingerprint: fingerprint.clone(),
                        },
                        policy: node.batch,
                        inbox,
                        shared: Arc::clone(&shared),
                        metrics,
                    };
                    let task = sinks.spawn(runner.run());
                    names.insert(task.id(), name);
                }
                (Work::Stage { .. } | Work::Sink(_), None) => {
                    unreachable!("the graph check gives every stage and sink an input")
                }
            }
        }
        join(&mut sources, &names, &shared).await;
        let stages = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A worker catches the panics of its stage; its own would be a bug,
                // and dropping its edges has ended the run for the others.
                let _ = thread.join();
            }
        });
        let _ = stages.await;
        // Nothing will be sent any more. The sinks are told of the last documents
        // while they empty their queues; after that, that there is no more to come.
        shared.tracker.all_ended(&shared.stop).await;
        shared
            .sinks
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        join(&mut sinks, &names, &shared).await;
    }
}

/// Waits for tasks to end; a panic of one stops the run.
async fn join(
    tasks: &mut JoinSet<()>,
    names: &HashMap<tokio::task::Id, Arc<str>>,
    shared: &Shared,
) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            let name = names.get(&error.id()).map_or("", AsRef::as_ref);
            let hint = "this is a bug in the source or sink: please report it";
            shared.fail(name, StageError::caused("it panicked", hint, error));
        }
    }
}

async fn run_source(
    source: Box<dyn crate::stage::Source>,
    outlet: SourceOutlet,
    shared: Arc<Shared>,
) {
    let (node, metrics) = (Arc::clone(&outlet.node), Arc::clone(&outlet.metrics));
    let started = Instant::now();
    let ended = tokio::select! {
        ended = source.run(outlet) => ended,
        () = shared.stop.cancelled() => Err(StageError::Cancelled),
    };
    let blocked = Duration::from_secs_f64(metrics.seconds(Spent::Blocked));
    metrics.spend(Spent::Busy, started.elapsed().saturating_sub(blocked));
    if let Err(error) = ended {
        shared.fail(&node, error);
    }
}

/// Tells the sinks when a document has ended, and counts it when it is settled.
fn watch_documents(shared: &Arc<Shared>, sinks: Vec<Mailbox>) {
    *shared.sinks.write().unwrap_or_else(PoisonError::into_inner) = sinks;
    let shared_by_run = Arc::downgrade(shared); // The tracker is a part of it.
    shared.tracker.observe(move |event| {
        let Some(shared) = shared_by_run.upgrade() else {
            return;
        };
        match event {
            Event::Ended(document) => {
                for sink in shared
                    .sinks
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .iter()
                {
                    sink.put(Message::Ended(Arc::clone(document)));
                }
            }
            Event::Settled(document) => {
                let metrics = &shared.metrics;
                if document.has_failed() || shared.stop.is_cancelled() {
                    add_one(&metrics.documents_failed);
                } else if document.n_stored() == 0 && document.n_dead() > 0 {
                    add_one(&metrics.documents_set_aside);
                } else {
                    add_one(&metrics.documents_done);
                }
            }
        }
    });
}

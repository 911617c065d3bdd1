//! Starts the nodes of a run, and waits for them to end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::control::{CancelOnDrop, WatchedNode};
use super::refill::{Refill, Tap};
use super::sink::without_panic;
use super::{Shared, sink, unfinished, worker};
use crate::document::Event;
use crate::edge::{Budget, EdgeSender, Inbox, Mailbox, Message, inbox};
use crate::error::StageError;
use crate::graph::{Node, Pipeline, Recipe, RefillPoint, Work};
use crate::key::DocumentId;
use crate::metrics::{NodeMetrics, Role, SinkMeter, Spent, add_one};
use crate::sink::{Ended, SinkInput};
use crate::source::Source;
use crate::source_outlet::SourceOutlet;
use crate::trace::Lane;

/// The parts of a run that are being started.
pub(super) struct Start {
    pipeline: String,
    /// What each sink learns.
    inputs: Vec<SinkInput>,
    recipes: Vec<Recipe>,
    refill_points: Vec<RefillPoint>,
    nodes: Vec<Node>,
    shared: Arc<Shared>,
    metrics: Vec<Arc<NodeMetrics>>,
    inboxes: Vec<Option<Inbox>>,
    /// Edges that leave each node.
    edges: Vec<Vec<EdgeSender>>,
}

impl Start {
    pub(super) fn new(
        pipeline: Pipeline,
        shared: Arc<Shared>,
        metrics: Vec<Arc<NodeMetrics>>,
        watched: &mut [WatchedNode],
    ) -> Self {
        let inputs = pipeline.sink_inputs();
        let nodes = pipeline.nodes;
        let (mut inboxes, mut mailboxes) = (Vec::new(), Vec::<Option<Mailbox>>::new());
        for (place, node) in nodes.iter().enumerate() {
            let arrived = shared.gathers.get(&place).map(|gather| gather.arrived());
            let pair = (!node.inputs.is_empty()).then(|| inbox(arrived.unwrap_or_default()));
            let (mailbox, inbox) = pair.unzip();
            inboxes.push(inbox);
            mailboxes.push(mailbox);
        }
        let mut edges: Vec<Vec<EdgeSender>> = nodes.iter().map(|_| Vec::new()).collect();
        for (place, (node, mailbox)) in nodes.iter().zip(&mailboxes).enumerate() {
            let Some(mailbox) = mailbox else { continue };
            for (port, (input, route)) in node.inputs.iter().zip(&node.routes).enumerate() {
                let budget = Arc::new(Budget::new(node.edge));
                watched[place].budgets.push(Arc::clone(&budget));
                edges[*input].push(EdgeSender {
                    mailbox: mailbox.clone(),
                    budget,
                    port,
                    route: route.clone(),
                    carries: Arc::clone(&node.carries),
                    sinks: Arc::clone(&shared.reach[&node.name]),
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
            inputs,
            recipes: pipeline.recipes,
            refill_points: pipeline.refill_points,
            nodes,
            shared,
            metrics,
            inboxes,
            edges,
        }
    }

    /// Starts the stages, and takes sources and sinks apart.
    fn split(self) -> Split {
        let Self {
            pipeline,
            inputs,
            recipes,
            refill_points,
            nodes,
            shared,
            metrics,
            inboxes,
            edges,
        } = self;
        let refill = Refill::new(&shared, &recipes, refill_points, |place| Tap {
            node: Arc::clone(&nodes[place].name),
            key: Arc::clone(&nodes[place].key),
            on_error: nodes[place].on_error,
            edges: edges[place].clone(),
            metrics: Arc::clone(&metrics[place]),
        });
        let (mut sources, mut runners, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        let trace = shared.options.trace.clone();
        let nodes = nodes.into_iter().zip(metrics).zip(inboxes).zip(edges);
        for (place, (((node, metrics), inbox), edges)) in nodes.enumerate() {
            let name = Arc::clone(&node.name);
            let gather = shared.gathers.get(&place).cloned();
            match (node.work, inbox) {
                (Work::Source(source), _) => {
                    let outlet = SourceOutlet {
                        node: Arc::clone(&name),
                        edges: Arc::new(edges),
                        shared: Arc::clone(&shared),
                        metrics,
                        lane: Lane::new(trace.as_ref(), &pipeline, &name),
                        survey: None,
                        refill: None,
                    };
                    sources.push((source, outlet));
                }
                (Work::Stage { workers, rebuild }, Some(inbox)) => {
                    let edges = Arc::new(edges);
                    for (index, stage) in workers.into_iter().enumerate() {
                        let lane = format!("{name}-{index}");
                        let worker = worker::Worker {
                            node: Arc::clone(&name),
                            page_key: Arc::clone(&node.key),
                            stage,
                            rebuild: Arc::clone(&rebuild),
                            policy: node.batch,
                            on_error: node.on_error,
                            // Without a ledger nothing is noted of rows.
                            is_one_to_one: node.is_one_to_one && shared.progress.has_ledger(),
                            inbox: inbox.clone(),
                            gather: gather.clone(),
                            edges: Arc::clone(&edges),
                            shared: Arc::clone(&shared),
                            metrics: Arc::clone(&metrics),
                            lane: Lane::new(trace.as_ref(), &pipeline, &lane),
                        };
                        threads.extend(spawn(worker, lane, &shared));
                    }
                }
                (Work::Sink(sink), Some(inbox)) => {
                    let number = runners.len();
                    runners.push(sink::SinkRunner {
                        place: number,
                        sink,
                        input: SinkInput {
                            stager: shared.progress.stager(number),
                            meter: SinkMeter {
                                metrics: Arc::clone(&metrics),
                            },
                            ..inputs[number].clone()
                        },
                        policy: node.batch,
                        on_error: node.on_error,
                        inbox,
                        gather,
                        let_go: VecDeque::new(),
                        shared: Arc::clone(&shared),
                        metrics,
                        lane: Lane::new(trace.as_ref(), &pipeline, &name),
                        node: name,
                    });
                }
                (Work::Stage { .. } | Work::Sink(_), None) => {
                    unreachable!("the graph check gives every stage and sink an input")
                }
            }
        }
        Split {
            sources,
            runners,
            threads,
            refill,
        }
    }

    pub(super) async fn run(self) {
        let shared = Arc::clone(&self.shared);
        let keys: BTreeSet<Arc<str>> = self
            .nodes
            .iter()
            .map(|node| Arc::clone(&node.key))
            .collect();
        let Split {
            mut sources,
            mut runners,
            threads,
            refill,
        } = self.split();
        // The stages start meanwhile: models are loaded while tables are opened.
        let opened = open_sinks(&mut runners, &keys, &shared).await;
        let has_opened = opened.is_ok();
        if let Err((node, error)) = opened {
            shared.fail(&node, error);
        }
        let readers = runners.iter().map(|runner| runner.sink.row_reader());
        let refill = refill.filter(|_| has_opened);
        let refill = refill.and_then(|refill| refill.with_readers(readers.collect()));
        for (_, outlet) in &mut sources {
            outlet.refill.clone_from(&refill);
        }
        drop(refill); // It holds edges, which end with the sources.
        let (mut names, mut source_tasks, mut sink_tasks) =
            (HashMap::new(), JoinSet::new(), JoinSet::new());
        for runner in runners {
            let name = Arc::clone(&runner.node);
            names.insert(sink_tasks.spawn(runner.run()).id(), name);
        }
        for (source, outlet) in sources {
            let name = Arc::clone(&outlet.node);
            let task = run_source(source, outlet, Arc::clone(&shared));
            names.insert(source_tasks.spawn(task).id(), name);
        }
        if has_opened {
            shared.started.send_replace(true);
        }
        // Dropped before the tasks: what they drop then must not pass for done.
        let mut cancel_on_drop = CancelOnDrop(Some(Arc::clone(&shared.stop)));
        join(&mut source_tasks, &names, &shared).await;
        join_threads(threads).await;
        // Nothing will be sent any more. The sinks are told of the last documents
        // while they empty their queues; after that, that there is no more to come.
        shared.tracker.all_ended(&shared.stop).await;
        shared
            .sinks
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        join(&mut sink_tasks, &names, &shared).await;
        cancel_on_drop.0 = None;
    }
}

/// The nodes of a run, by what runs them.
struct Split {
    sources: Vec<(Box<dyn Source>, SourceOutlet)>,
    runners: Vec<sink::SinkRunner>,
    threads: Vec<JoinHandle<()>>,
    refill: Option<Refill>,
}

/// Starts a worker on a thread of its own.
fn spawn(worker: worker::Worker, lane: String, shared: &Shared) -> Option<JoinHandle<()>> {
    let node = Arc::clone(&worker.node);
    let thread = thread::Builder::new().name(lane);
    match thread.spawn(move || worker.run()) {
        Ok(thread) => Some(thread),
        Err(error) => {
            let hint = "lower `workers`, or raise the limit on threads";
            let problem = "cannot start a thread";
            shared.fail(&node, StageError::caused(problem, hint, error));
            None
        }
    }
}

async fn join_threads(threads: Vec<JoinHandle<()>>) {
    let joined = tokio::task::spawn_blocking(move || {
        for thread in threads {
            // A worker catches every panic, and tells the run of it.
            let _ = thread.join();
        }
    });
    let _ = joined.await;
}

/// Opens all sinks, and brings the ledger into line with what they hold.
async fn open_sinks(
    runners: &mut [sink::SinkRunner],
    keys: &BTreeSet<Arc<str>>,
    shared: &Shared,
) -> Result<(), (Arc<str>, StageError)> {
    let progress = &shared.progress;
    let mut inventories = Vec::new();
    for runner in runners.iter_mut() {
        let node = Arc::clone(&runner.node);
        let opened = async {
            runner.open().await?;
            let mark = progress.mark(runner.place)?;
            runner.inventory(mark.as_deref()).await
        };
        inventories.push(without_panic(opened).await.map_err(|error| (node, error))?);
    }
    let ledger: Arc<str> = "ledger".into();
    let of_ledger = |error| (Arc::clone(&ledger), error);
    progress.reconcile(&inventories).map_err(of_ledger)?;
    if !progress.is_heir() {
        return Ok(());
    }
    let staged = progress.staged(keys).map_err(of_ledger)?;
    for (runner, rows) in runners.iter_mut().zip(staged) {
        let documents: Vec<DocumentId> = rows.iter().map(|rows| rows.document).collect();
        let node = Arc::clone(&runner.node);
        let is_whole = without_panic(runner.sink.adopt(rows)).await;
        let is_whole = is_whole.map_err(|error| (node, error))?;
        let lost = documents.into_iter().zip(is_whole);
        let lost: Vec<DocumentId> = lost.filter(|(_, whole)| !whole).map(|(id, _)| id).collect();
        progress.lost(&lost).map_err(of_ledger)?;
    }
    Ok(())
}

/// Waits for tasks to end; a panic of one stops the run.
pub(super) async fn join(
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

pub(super) async fn run_source(source: Box<dyn Source>, outlet: SourceOutlet, shared: Arc<Shared>) {
    let (node, metrics) = (Arc::clone(&outlet.node), Arc::clone(&outlet.metrics));
    let started = Instant::now();
    let ended = tokio::select! {
        ended = source.run(outlet) => ended,
        () = shared.stop.cancelled() => Err(StageError::Cancelled),
    };
    let waited = metrics.seconds(Spent::Blocked) + metrics.seconds(Spent::Starved);
    let waited = Duration::from_secs_f64(waited);
    metrics.spend(Spent::Busy, started.elapsed().saturating_sub(waited));
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
            Event::Stalled(document) => {
                let holder = document.first_holder();
                if let Some(gather) = holder.and_then(|place| shared.gathers.get(&place)) {
                    gather.stall(document);
                }
            }
            Event::PageStalled(document, page) => {
                for place in page.holders() {
                    if let Some(gather) = shared.gathers.get(&place) {
                        gather.stall_page(document, page);
                    }
                }
            }
            Event::Ended(document, end) => {
                if shared.stop.is_cancelled() {
                    document.fail(); // What it lacks was dropped on its way.
                }
                let sinks = shared.sinks.read();
                let sinks = sinks.unwrap_or_else(PoisonError::into_inner);
                let wanted = sinks.iter().enumerate();
                let wanted = wanted.filter(|(place, _)| document.is_wanted_by(*place));
                let told = wanted.map(|(place, sink)| {
                    let leads_here = |node: &str| {
                        let reach = shared.reach.get(node);
                        reach.is_none_or(|sinks| sinks.contains(&place))
                    };
                    let ended = Ended {
                        document: Arc::clone(document),
                        has_lost_items: document.has_dead_at(leads_here),
                        ack: document.end_ack(),
                    };
                    (sink, ended)
                });
                let told: Vec<(&Mailbox, Ended)> = told.collect();
                drop(end);
                for (sink, ended) in told {
                    sink.put(Message::Ended(ended));
                }
            }
            Event::Settled(document) => {
                let metrics = &shared.metrics;
                if !document.is_removal() {
                    let is_whole = !document.has_failed();
                    shared.pages.end(document.origin().id, is_whole);
                }
                if document.has_failed() {
                    unfinished::count(metrics, document);
                    return;
                }
                if document.is_removal() {
                    add_one(&metrics.documents_removed);
                } else if document.n_stored() == 0 && document.n_dead() > 0 {
                    add_one(&metrics.documents_set_aside);
                } else {
                    add_one(&metrics.documents_done);
                }
                shared.progress.settled(document);
            }
        }
    });
}

//! Counts what a run would do, and changes nothing.
//!
//! The sources list and read their documents as in a run, and ask a copy of the
//! ledger about each. A document that would be sent is counted instead: the
//! stages that make pages open it and return their number.

mod forecast;
mod page_counter;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use tokio::task::JoinSet;

use super::control::CancelOnDrop;
use super::refill::{Refill, Tap};
use super::sink::without_panic;
use super::start::{join, run_source};
use super::{Failure, RunControl, RunError, Shared};
use crate::dead_letters::DeadLetters;
use crate::error::StageError;
use crate::graph::{Pipeline, Recipe, RefillPoint, Work};
use crate::ledger::{Ledger, Progress};
use crate::metrics::{NodeMetrics, read};
use crate::retry::OnError;
use crate::sink::{RowReader, Sink, SinkInput};
use crate::source::Source;
use crate::source_outlet::SourceOutlet;
use crate::trace::Lane;

pub use forecast::{DocumentForecast, Forecast, NodeForecast};
pub(crate) use survey::{Survey, Surveyed};

use forecast::NodeKey;
use page_counter::{Broken, CountingNode, PageCounter};

impl Pipeline {
    /// Returns what [`Pipeline::run`] would do, and changes nothing: no row,
    /// ledger or dead letter is written, and no page is made. Documents that the
    /// ledger does not know by their state are read, and those that would be made
    /// are opened.
    ///
    /// # Errors
    /// When a source, a sink or a stage cannot go on, as in a run.
    pub async fn dry_run(mut self) -> Result<Forecast, RunError> {
        let name = self.name.clone();
        let secrets = self.secrets.clone();
        let refused = |(node, error): Broken| {
            RunError::before_it_began(&name, &node, secrets.redact_error(error))
        };
        let shared = self.share_a_copy().map_err(in_ledger).map_err(refused)?;
        let progress = &shared.progress;
        let recipes = std::mem::take(&mut self.recipes);
        let points = std::mem::take(&mut self.refill_points);
        let parts = Parts::new(self, &shared);
        let readers = compare(parts.sinks, progress).await.map_err(refused)?;
        let refill = refill(&shared, &parts.nodes, &recipes, points, readers);
        let staged = progress.staged(&parts.keys);
        let rates = staged.and_then(|_| progress.rates());
        let rates = rates.map_err(in_ledger).map_err(refused)?;
        let counter = PageCounter::start(parts.counting).map_err(refused)?;
        let survey = Arc::new(Survey::new(counter, secrets.clone()));
        list(parts.sources, &shared, &survey, refill.as_ref())
            .await
            .map_err(refused)?;
        let n_unchanged = read(&shared.metrics.documents_skipped);
        let counts = survey.counts(n_unchanged);
        Ok(Forecast::new(name, counts, &parts.stages, &rates))
    }

    /// What the nodes share, with a ledger in memory and no dead letters.
    fn share_a_copy(&self) -> Result<Arc<Shared>, StageError> {
        let ledger = self.ledger.as_deref();
        let ledger = ledger.map(|folder| Ledger::copy(folder, &self.name));
        let progress = self.progress(ledger.transpose()?)?;
        let letters = DeadLetters::open(None, &self.name)?;
        // Nothing is gathered: no item moves.
        let gathers = HashMap::new();
        Ok(self.share(&RunControl::default(), letters, progress, gathers))
    }
}

fn in_ledger(error: StageError) -> Broken {
    ("ledger".into(), error)
}

/// Reads the rows of each sink back; none where it cannot.
type Readers = Vec<Option<Arc<dyn RowReader>>>;

/// Brings the copy of the ledger into line with what the sinks hold. Returns what
/// reads their rows back.
async fn compare(
    sinks: Vec<(Box<dyn Sink>, SinkInput)>,
    progress: &Progress,
) -> Result<Readers, Broken> {
    let (mut inventories, mut readers) = (Vec::new(), Vec::new());
    for (place, (mut sink, input)) in sinks.into_iter().enumerate() {
        let mark = progress.mark(place).map_err(in_ledger)?;
        let held = without_panic(sink.peek(&input, mark.as_deref())).await;
        let held = held.map_err(|error| (input.node.as_str().into(), error))?;
        inventories.push((held, None));
        readers.push(sink.row_reader());
    }
    progress.reconcile(&inventories).map_err(in_ledger)?;
    Ok(readers)
}

/// Finds the documents that a run would make from stored rows. It sends none of them.
fn refill(
    shared: &Shared,
    nodes: &[(Arc<str>, Arc<str>)],
    recipes: &[Recipe],
    points: Vec<RefillPoint>,
    readers: Readers,
) -> Option<Arc<Refill>> {
    let tap = |place: usize| {
        let (node, key) = nodes[place].clone();
        Tap {
            node,
            key,
            on_error: OnError::default(),
            edges: Vec::new(),
            metrics: Arc::default(),
        }
    };
    Refill::new(shared, recipes, points, tap)?.with_readers(readers)
}

/// Has the sources list their documents.
async fn list(
    sources: Vec<(Box<dyn Source>, Arc<str>)>,
    shared: &Arc<Shared>,
    survey: &Arc<Survey>,
    refill: Option<&Arc<Refill>>,
) -> Result<(), Broken> {
    let mut cancel_on_drop = CancelOnDrop(Some(Arc::clone(&shared.stop)));
    let (mut tasks, mut names) = (JoinSet::new(), HashMap::new());
    for (source, node) in sources {
        let outlet = SourceOutlet {
            node: Arc::clone(&node),
            edges: Arc::default(),
            shared: Arc::clone(shared),
            metrics: Arc::<NodeMetrics>::default(),
            lane: Lane::default(),
            survey: Some(Arc::clone(survey)),
            refill: refill.cloned(),
        };
        let task = run_source(source, outlet, Arc::clone(shared));
        names.insert(tasks.spawn(task).id(), node);
    }
    join(&mut tasks, &names, shared).await;
    cancel_on_drop.0 = None;
    let failure = shared.failure.lock();
    let failure = failure.unwrap_or_else(PoisonError::into_inner).take();
    match failure {
        Some(Failure { node, error }) => Err((node.into(), error)),
        None => Ok(()),
    }
}

/// The nodes of a pipeline, by what a dry run does with them.
struct Parts {
    sources: Vec<(Box<dyn Source>, Arc<str>)>,
    sinks: Vec<(Box<dyn Sink>, SinkInput)>,
    counting: Vec<CountingNode>,
    stages: Vec<NodeKey>,
    /// Name and key of each node.
    nodes: Vec<(Arc<str>, Arc<str>)>,
    keys: BTreeSet<Arc<str>>,
}

impl Parts {
    fn new(pipeline: Pipeline, shared: &Shared) -> Self {
        let mut inputs = pipeline.sink_inputs().into_iter();
        let mut parts = Self {
            sources: Vec::new(),
            sinks: Vec::new(),
            counting: Vec::new(),
            stages: Vec::new(),
            nodes: Vec::new(),
            keys: BTreeSet::new(),
        };
        // For each node, those that stand before it.
        let mut before: Vec<BTreeSet<Arc<str>>> = Vec::new();
        for (place, node) in pipeline.nodes.into_iter().enumerate() {
            let inputs_of = node.inputs.iter();
            let upstream = inputs_of.flat_map(|input| {
                let of_input = before[*input].iter().cloned();
                of_input.chain([Arc::clone(&parts.nodes[*input].0)])
            });
            let upstream: BTreeSet<Arc<str>> = upstream.collect();
            before.push(upstream.clone());
            parts
                .nodes
                .push((Arc::clone(&node.name), Arc::clone(&node.key)));
            for (input, route) in node.inputs.iter().zip(node.routes) {
                // Every node stands after its inputs.
                let input: &mut CountingNode = &mut parts.counting[*input];
                input.edges.push((place, route));
            }
            parts.keys.insert(Arc::clone(&node.key));
            let mut counting = CountingNode {
                name: Arc::clone(&node.name),
                key: Arc::clone(&node.key),
                edges: Vec::new(),
                sinks: Arc::clone(&shared.reach[&node.name]),
                stage: None,
            };
            match node.work {
                Work::Source(source) => parts.sources.push((source, node.name)),
                Work::Stage {
                    mut workers,
                    rebuild,
                } => {
                    counting.stage = workers.pop().map(|stage| (stage, rebuild));
                    parts.stages.push(NodeKey {
                        name: node.name,
                        key: node.key,
                        n_workers: node.workers,
                        upstream,
                    });
                }
                Work::Sink(sink) => {
                    let input = inputs.next().expect("there is one for each sink");
                    parts.sinks.push((sink, input));
                }
            }
            parts.counting.push(counting);
        }
        parts
    }
}

//! Runs a pipeline: threads for stages, tasks for sources and sinks.

mod control;
mod dry_run;
mod port;
mod refill;
mod sink;
mod start;
mod unfinished;
mod worker;

#[cfg(test)]
mod draining;
#[cfg(test)]
mod fates;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod page_counts;
#[cfg(test)]
mod random_graphs;
#[cfg(test)]
mod refilling;
#[cfg(test)]
mod resuming;
#[cfg(test)]
mod secrecy;
#[cfg(test)]
mod several_sinks;
#[cfg(test)]
mod test_kinds;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::watch;

use crate::cancellation::Stop;
use crate::dead_letters::{DeadLetters, read_dead_letters};
use crate::document::{Token, Tracker};
use crate::edge::Mailbox;
use crate::error::{ItemError, StageError};
use crate::gather::Gather;
use crate::graph::{Node, Pipeline, Work};
use crate::item::Item;
use crate::key::DocumentId;
use crate::ledger::{Ledger, NodeRate, Progress, Rates};
use crate::meter::MetersSince;
use crate::metrics::{NodeMetrics, Role, RunMetrics, SinkMeter, add_one};
use crate::page_progress::PageProgress;
use crate::paths::clean_absolute;
use crate::prune::Prune;
use crate::report::{Report, Snapshot, StopReason};
use crate::retry::OnError;
use crate::secrets::Secrets;
use crate::sink::{Inventory, SinkInput};
use crate::source_outlet::FeedAgain;
use crate::trace::Trace;

pub use control::RunControl;
use control::{CancelOnDrop, Watched, WatchedNode};
pub use dry_run::{DocumentForecast, Forecast, NodeForecast};
pub(crate) use dry_run::{Survey, Surveyed};
pub(crate) use refill::Refill;
use refill::Refilled;
use start::Start;
use unfinished::Unfinished;

/// What every node of a run shares.
pub(crate) struct Shared {
    pub(crate) stop: Arc<Stop>,
    pub(crate) tracker: Tracker,
    pub(crate) metrics: RunMetrics,
    pub(crate) pages: PageProgress,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) progress: Arc<Progress>,
    pub(crate) options: RunOptions,
    /// What errors and logs do not show.
    pub(crate) secrets: Secrets,
    /// The documents of `options.retries`: no other is sent.
    pub(crate) only: Option<HashSet<DocumentId>>,
    /// The sinks that each node leads to.
    pub(crate) reach: HashMap<Arc<str>, Arc<BTreeSet<usize>>>,
    /// Which documents a run that drains leaves unfinished.
    unfinished: Unfinished,
    /// The nodes that gather, by their place in the graph.
    gathers: HashMap<usize, Arc<Gather>>,
    /// The sinks that are told when a document has ended.
    sinks: RwLock<Vec<Mailbox>>,
    failure: Mutex<Option<Failure>>,
    /// Documents that were made from stored rows.
    refilled: Refilled,
    /// Told when the sinks are open and the sources run.
    started: Arc<watch::Sender<bool>>,
}

/// What is asked of one run beyond its pipeline.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Remove what is stored of documents that are gone from their source.
    pub prune: Prune,
    /// Do these documents again, and no other.
    pub retries: Option<Vec<FeedAgain>>,
    /// Draw the run.
    pub trace: Option<Trace>,
}

impl RunOptions {
    /// The documents to do again, if it is only these.
    fn documents(&self) -> Option<HashSet<DocumentId>> {
        let retries = self.retries.as_ref()?.iter();
        Some(retries.map(|retry| DocumentId::of(&retry.uri)).collect())
    }
}

struct Failure {
    node: String,
    error: StageError,
}

impl Shared {
    /// Stops the run because of an error; the first one is reported.
    pub(crate) fn fail(&self, node: &str, error: StageError) {
        self.fail_at_end(node, error);
        self.stop.cancel();
    }

    /// The run goes on to its end, and then fails with this error.
    pub(crate) fn fail_at_end(&self, node: &str, error: StageError) {
        // A node that was interrupted is not what broke the run.
        if !matches!(error, StageError::Cancelled) {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| Failure {
                node: node.to_owned(),
                error: self.secrets.redact_error(error),
            });
        }
    }

    /// Sets an item aside for good, at `node`.
    ///
    /// # Errors
    /// The node stops the run at the first such item, or the letter cannot be
    /// written: the item would be lost, so its document stays undone.
    pub(crate) fn set_aside(
        &self,
        node: &Arc<str>,
        metrics: &NodeMetrics,
        on_error: OnError,
        item: &Item,
        error: &ItemError,
    ) -> Result<(), StageError> {
        let error = &self.secrets.redact_item(error);
        let hint = error.hint.as_deref();
        let document = item.token.as_ref().map(Token::document);
        NodeMetrics::count(&metrics.dead_letters, 1);
        if on_error == OnError::Stop {
            if let Some(document) = document {
                document.fail();
            }
            let hint = hint.unwrap_or("mend the document, or let `on_error` set such items aside");
            return Err(StageError::fatal(error.message(&item.label()), hint));
        }
        tracing::warn!(node = &**node, hint, "{}", error.message(&item.label()));
        let known = document.map(|document| &**document);
        let (origin, key) = (item.origin(), item.key());
        let written = self.dead_letters.write(node, origin, key, error, known);
        add_one(&self.metrics.dead_letters);
        if let Some(document) = document {
            document.count_dead(node, key);
            if written.is_err() {
                document.fail();
            }
        }
        written
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

impl RunError {
    /// A run that did not come so far as to do anything.
    fn before_it_began(pipeline: &str, node: &str, error: StageError) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            node: node.to_owned(),
            error,
            report: None,
        }
    }
}

/// What [`Pipeline::repair_ledger`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// Documents that the ledger now knows.
    pub n_documents: usize,
    /// Rows that were dropped because their files are gone.
    pub n_rows_dropped: u64,
}

/// The rates of a run whose nodes have these keys; none where it made no page.
fn rates_of(totals: &Snapshot, keys: &[Arc<str>]) -> Option<Rates> {
    let n_pages = totals.pages_done.saturating_sub(totals.pages_resumed);
    if n_pages == 0 {
        return None;
    }
    let busiest = totals.nodes.iter();
    let busiest = busiest.map(|node| node.busy_s / node.workers.max(1) as f64);
    let mut sources = totals.nodes.iter().filter(|n| n.role == Role::Source);
    // A source that waited for documents to come says nothing about the pace.
    let seconds = if sources.any(|source| source.starved_s > 0.0) {
        busiest.fold(0.0, f64::max)
    } else if totals.pages_per_s > 0.0 {
        n_pages as f64 / totals.pages_per_s
    } else {
        totals.elapsed_s
    };
    let nodes = totals.nodes.iter().zip(keys).map(|(node, key)| {
        let rate = NodeRate {
            n_items: node.items,
            busy_s: node.busy_s,
        };
        (key.to_string(), rate)
    });
    Some(Rates {
        n_pages,
        seconds,
        nodes: nodes.collect(),
    })
}

impl Pipeline {
    /// Runs the pipeline to its end: until the sources have no more, or
    /// [`RunControl::drain`] or [`RunControl::cancel`] is called.
    ///
    /// Stages get OS threads of their own; sources and sinks run on the
    /// current tokio runtime. Dropping the future cancels the run.
    ///
    /// # Errors
    /// When a node cannot go on: a full disk, a table that does not fit, a
    /// model that cannot be loaded. Documents whose rows are durable stay so.
    pub async fn run(self, control: &RunControl) -> Result<Report, RunError> {
        let started = Instant::now();
        let name = self.name.clone();
        let secrets = self.secrets.clone();
        let refused =
            |node: &str, error| RunError::before_it_began(&name, node, secrets.redact_error(error));
        let dead_letters = DeadLetters::open(self.dead_letters.as_deref(), &self.name)
            .map_err(|error| refused("dead_letters", error))?
            .told_to(self.on_dead_letter.clone())
            .without(&secrets);
        let progress = self
            .open_ledger()
            .map_err(|error| refused("ledger", error))?;
        let gathers = self.gathers();
        let shared = self.share(control, dead_letters, progress, gathers);
        let keys: Vec<Arc<str>> = self
            .nodes
            .iter()
            .map(|node| Arc::clone(&node.key))
            .collect();
        let mut cancel_on_drop = CancelOnDrop(Some(Arc::clone(&shared.stop)));
        let metrics: Vec<Arc<NodeMetrics>> = self.nodes.iter().map(|_| Arc::default()).collect();
        let mut watched: Vec<WatchedNode> = self
            .nodes
            .iter()
            .zip(&metrics)
            .map(|(node, metrics)| WatchedNode {
                name: Arc::clone(&node.name),
                role: node.role(),
                workers: node.workers,
                metrics: Arc::clone(metrics),
                budgets: Vec::new(),
            })
            .collect();
        let models = MetersSince::now(&self.meters);
        let start = Start::new(self, Arc::clone(&shared), metrics, &mut watched);
        let watched = Arc::new(Watched {
            shared: Arc::clone(&shared),
            nodes: watched,
            models,
            started,
        });
        *control
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&watched));

        start.run().await;
        cancel_on_drop.0 = None;
        if let Err(error) = shared.progress.flush() {
            shared.fail("ledger", error);
        }

        shared.refilled.log();
        let stopped = match (shared.stop.is_cancelled(), shared.stop.is_draining()) {
            (true, _) => StopReason::Cancelled,
            (false, true) => StopReason::Drained,
            (false, false) => StopReason::Finished,
        };
        let totals = watched.snapshot();
        // A page that is made from stored rows passes some of the stages only.
        let is_typical = stopped != StopReason::Cancelled
            && shared.only.is_none()
            && totals.documents_refilled == 0;
        if is_typical
            && let Some(rates) = rates_of(&totals, &keys)
            && let Err(error) = shared.progress.note_rates(&rates)
        {
            // The next dry run estimates with older ones, or not.
            tracing::debug!(%error, "the rates of this run are not kept");
        }
        let report = Report::new(name.clone(), stopped, totals);
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

    /// What the nodes of a run share.
    fn share(
        &self,
        control: &RunControl,
        dead_letters: DeadLetters,
        progress: Arc<Progress>,
        gathers: HashMap<usize, Arc<Gather>>,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            stop: Arc::clone(&control.stop),
            tracker: Tracker::new(Arc::clone(&control.stop)),
            metrics: RunMetrics::default(),
            pages: PageProgress::new(),
            dead_letters,
            progress,
            unfinished: Unfinished::of(&self.nodes),
            gathers,
            reach: self.reach(),
            options: self.options.clone(),
            secrets: self.secrets.clone(),
            only: self.options.documents(),
            sinks: RwLock::default(),
            failure: Mutex::default(),
            refilled: Refilled::default(),
            started: Arc::clone(&control.started),
        })
    }

    /// Makes the ledger again from what the sinks hold; returns how many
    /// documents it then knows.
    ///
    /// # Errors
    /// A table that cannot be read, a ledger that cannot be written, or a sink
    /// that cannot say what it holds.
    pub async fn rebuild_ledger(self) -> Result<usize, RunError> {
        self.renew_ledger(false)
            .await
            .map(|renewed| renewed.n_documents)
    }

    /// Drops rows whose files are gone from every sink, then makes the ledger again
    /// from what the sinks hold: the next run makes the documents of those rows again.
    ///
    /// # Errors
    /// As [`Pipeline::rebuild_ledger`].
    pub async fn repair_ledger(self) -> Result<Renewed, RunError> {
        self.renew_ledger(true).await
    }

    async fn renew_ledger(self, repairs: bool) -> Result<Renewed, RunError> {
        let name = self.name.clone();
        let secrets = self.secrets.clone();
        let refused =
            |node: &str, error| RunError::before_it_began(&name, node, secrets.redact_error(error));
        let progress = self
            .open_ledger()
            .map_err(|error| refused("ledger", error))?;
        let inputs = self.sink_inputs();
        let n_dead = self
            .dead_by_document()
            .map_err(|error| refused("dead_letters", error))?;
        let (mut inventories, mut n_rows_dropped) = (Vec::new(), 0);
        let works = self.nodes.into_iter().map(|node| node.work);
        let sinks = works.filter_map(|work| match work {
            Work::Sink(sink) => Some(sink),
            Work::Source(_) | Work::Stage { .. } => None,
        });
        for (mut sink, input) in sinks.zip(inputs) {
            let refused = |error| refused(&input.node, error);
            sink.open(&input).await.map_err(refused)?;
            if repairs {
                n_rows_dropped += sink.repair().await.map_err(refused)?;
            }
            let inventory = sink.inventory(None).await.map_err(refused)?;
            if !matches!(inventory, Inventory::Documents(_)) {
                let problem = "the sink cannot say what it holds";
                let hint = "the ledger of such a pipeline cannot be rebuilt; it was left as it is";
                return Err(refused(StageError::fatal(problem, hint)));
            }
            inventories.push((inventory, sink.mark()));
        }
        let n_documents = progress
            .rebuild(&inventories, &n_dead)
            .map_err(|error| refused("ledger", error))?;
        Ok(Renewed {
            n_documents,
            n_rows_dropped,
        })
    }

    fn open_ledger(&self) -> Result<Arc<Progress>, StageError> {
        let ledger = match &self.ledger {
            Some(folder) => Some(Ledger::open_for_run(folder, &self.name)?),
            None => None,
        };
        self.progress(ledger)
    }

    /// A run's side of `ledger`.
    fn progress(&self, ledger: Option<Ledger>) -> Result<Arc<Progress>, StageError> {
        let sources = self.nodes.iter().filter(|node| node.role() == Role::Source);
        let sources = sources.map(|node| Arc::clone(&node.name)).collect();
        let progress = Progress::new(ledger, self.sinks.clone(), sources, self.can_stage)?;
        if let Some(documents) = self.options.documents() {
            progress.undo(&documents.into_iter().collect::<Vec<_>>())?;
        }
        Ok(Arc::new(progress))
    }

    /// What each sink learns, in the order of the sinks.
    fn sink_inputs(&self) -> Vec<SinkInput> {
        let writer = self.writer();
        let nodes = self.nodes.iter().filter(|node| node.role() == Role::Sink);
        let inputs = nodes.zip(&self.sinks).map(|(node, sink)| SinkInput {
            fields: node.input.clone(),
            pipeline: self.name.clone(),
            node: node.name.to_string(),
            fingerprint: sink.fingerprint.clone(),
            writer: writer.clone(),
            stager: None,
            meter: SinkMeter::default(),
        });
        inputs.collect()
    }

    /// Identifies the pipeline and its ledger on this machine.
    fn writer(&self) -> String {
        let folder = self.ledger.as_ref().map(|folder| {
            let folder = clean_absolute(folder).unwrap_or_else(|_| folder.clone());
            folder.display().to_string()
        });
        let text = format!("{}\0{}", self.name, folder.unwrap_or_default());
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }

    /// The number of dead letters that there are of each document.
    fn dead_by_document(&self) -> Result<HashMap<DocumentId, u64>, StageError> {
        let mut n_dead: HashMap<DocumentId, u64> = HashMap::new();
        let letters = match &self.dead_letters {
            Some(root) => read_dead_letters(root).map_err(|error| {
                let problem = format!("cannot read the dead letters in `{}`", root.display());
                StageError::caused(problem, "make the folder readable", error)
            })?,
            None => Vec::new(),
        };
        let own = letters.iter().filter(|letter| letter.pipeline == self.name);
        for letter in own {
            if let Some(id) = DocumentId::from_hex(&letter.document_id) {
                *n_dead.entry(id).or_default() += 1;
            }
        }
        Ok(n_dead)
    }

    /// The sinks that each node leads to, by their places among the sinks.
    fn reach(&self) -> HashMap<Arc<str>, Arc<BTreeSet<usize>>> {
        let mut reach: Vec<BTreeSet<usize>> = self.nodes.iter().map(|_| BTreeSet::new()).collect();
        let is_sink = |(_, node): &(usize, &Node)| node.role() == Role::Sink;
        let sinks = self.nodes.iter().enumerate().filter(is_sink);
        for (number, (place, _)) in sinks.enumerate() {
            reach[place].insert(number);
        }
        // Every node stands after its inputs.
        for (place, node) in self.nodes.iter().enumerate().rev() {
            let sinks = reach[place].clone();
            for input in &node.inputs {
                reach[*input].extend(&sinks);
            }
        }
        let nodes = self.nodes.iter().zip(reach);
        nodes
            .map(|(node, reach)| (Arc::clone(&node.name), Arc::new(reach)))
            .collect()
    }

    /// What the nodes that gather share, by their place in the graph.
    fn gathers(&self) -> HashMap<usize, Arc<Gather>> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter_map(|(place, node)| {
                let rule = node.rule.clone()?;
                let upstream = self.upstream(place, &rule);
                let gather = Gather::new(place, rule, node.workers, upstream);
                Some((place, Arc::new(gather)))
            })
            .collect()
    }
}

//! The checked graph: who reads whom, and which fields travel along each edge.

mod check;
mod recipe;
mod routes;
mod structure;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::BatchPolicy;
use crate::config::Diagnostic;
use crate::dead_letters::OnDeadLetter;
use crate::edge::{Carries, EdgeLimits, Route};
use crate::error::FieldError;
use crate::fields::{Cardinality, FieldSet, Fields};
use crate::gather::{Rule, Unmatched};
use crate::meter::Meters;
use crate::metrics::Role;
use crate::registry::Settings;
use crate::resources::Resources;
use crate::retry::OnError;
use crate::run::RunOptions;
use crate::secrets::Secrets;
use crate::sink::{Sink, SinkPlace};
use crate::source::Source;
use crate::stage::Stage;

pub(crate) use check::check;
pub(crate) use recipe::{Recipe, RefillPoint};

/// A pipeline whose graph is sound. Its nodes stand in the order in which data
/// flows: every node after those that it reads.
pub struct Graph {
    pub(crate) name: String,
    description: Option<String>,
    dead_letters: Option<PathBuf>,
    ledger: Option<PathBuf>,
    nodes: Vec<GraphNode>,
    secrets: Secrets,
}

/// One node of a [`Graph`].
pub struct GraphNode {
    name: String,
    role: Role,
    kind: String,
    inputs: Vec<usize>,
    /// One for each of `inputs`.
    routes: Vec<Route>,
    join: Option<Unmatched>,
    on_error: OnError,
    workers: usize,
    batch: BatchPolicy,
    edge: EdgeLimits,
    fields: Fields,
    input: FieldSet,
    output: FieldSet,
    carries: Arc<Carries>,
    settings: Settings,
    places: BTreeMap<String, Range<usize>>,
    span: Range<usize>,
    /// The settings that rows depend on, as text.
    row_settings: String,
    /// The text of its `when`.
    when: Option<String>,
    /// What `when` says without secrets, where that is something else.
    shown_when: Option<String>,
}

impl GraphNode {
    /// Name in the pipeline.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Source, stage or sink.
    pub fn role(&self) -> Role {
        self.role
    }
    /// The value of `kind`.
    pub fn kind(&self) -> &str {
        &self.kind
    }
    /// Places in [`Graph::nodes`] of the nodes that it takes from.
    pub fn inputs(&self) -> &[usize] {
        &self.inputs
    }
    /// Whether it waits for the same key from each of its inputs.
    pub fn is_join(&self) -> bool {
        self.join.is_some()
    }
    /// Which items it takes of the input that stands `number`-th: the text of
    /// its `when`, `else` for those that no `when` takes, or nothing for all.
    pub fn route(&self, number: usize) -> Option<&str> {
        match self.routes.get(number)? {
            Route::Always => None,
            Route::Otherwise => Some("else"),
            Route::When(expression) => {
                Some(self.shown_when.as_deref().unwrap_or(expression.text()))
            }
        }
    }
    /// Threads that work on it.
    pub fn workers(&self) -> usize {
        self.workers
    }
    /// How its batches are formed.
    pub fn batch(&self) -> BatchPolicy {
        self.batch
    }
    /// How its kind has batches formed where the file does not say.
    pub fn default_batch(&self) -> BatchPolicy {
        self.settings.batch()
    }
    /// What each edge that leads to it may hold.
    pub fn edge(&self) -> EdgeLimits {
        self.edge
    }
    /// What it does with what fails.
    pub fn on_error(&self) -> OnError {
        self.on_error
    }
    /// What becomes of items without a partner, where it joins.
    pub fn unmatched(&self) -> Option<Unmatched> {
        self.join
    }
    /// Items out for items in.
    pub fn cardinality(&self) -> Cardinality {
        self.fields.cardinality
    }
    /// Whether each item that leaves it is one that reached it, under the same key.
    fn is_one_to_one(&self) -> bool {
        self.fields.cardinality == Cardinality::OneToOne && !self.settings.is_closure()
    }
    /// The fields that reach it.
    pub fn input(&self) -> &FieldSet {
        &self.input
    }
    /// The fields that leave it.
    pub fn output(&self) -> &FieldSet {
        &self.output
    }
    /// The fields that it must have.
    pub fn reads(&self) -> impl Iterator<Item = &str> {
        self.fields.reads.iter().map(|field| field.name.as_ref())
    }
    /// Its settings, if it is of the kind that `C` configures: how `search`
    /// finds the table.
    pub fn settings<C: 'static>(&self) -> Option<&C> {
        self.settings.downcast()
    }
    /// Where its rows are, if it is a sink.
    pub(crate) fn sink_place(&self, pipeline: &str) -> Option<SinkPlace> {
        self.settings.sink_place(pipeline)
    }
    /// Where its documents come from, if it is a source.
    pub(crate) fn source_place(&self) -> Option<String> {
        self.settings.source_place()
    }
    /// Where a setting stands in the file, or the node's name where it is not given.
    pub(crate) fn place_of(&self, setting: &str) -> Range<usize> {
        self.places.get(setting).unwrap_or(&self.span).clone()
    }
    /// The fields that its input edges carry: those that somebody looks at.
    pub fn carried(&self) -> Vec<&str> {
        match self.carries.as_ref() {
            Carries::All => self.input.names().collect(),
            Carries::Only(names) => names.iter().map(AsRef::as_ref).collect(),
        }
    }
}

/// How the ledger knows a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkKey {
    /// Name of its node.
    pub node: Arc<str>,
    /// Where its rows are, whatever the node is called.
    pub identity: String,
    /// Hash of what makes its rows: the settings, routes and models of all nodes
    /// that lead to it. The names of nodes, limits, workers and batches do not count.
    pub fingerprint: String,
}

/// A pipeline that is ready to run; see [`Pipeline::run`].
pub struct Pipeline {
    pub(crate) name: String,
    pub(crate) dead_letters: Option<PathBuf>,
    pub(crate) on_dead_letter: Option<OnDeadLetter>,
    pub(crate) ledger: Option<PathBuf>,
    /// In the order of the nodes.
    pub(crate) sinks: Vec<SinkKey>,
    /// What the rows of each sink are, in the same order.
    pub(crate) recipes: Vec<Recipe>,
    /// The stages behind which rows can be sent on, the last one first.
    pub(crate) refill_points: Vec<RefillPoint>,
    /// Whether a run can resume inside a document.
    pub(crate) can_stage: bool,
    pub(crate) options: RunOptions,
    pub(crate) secrets: Secrets,
    pub(crate) meters: Arc<Meters>,
    pub(crate) nodes: Vec<Node>,
}

impl Pipeline {
    /// Name of the pipeline.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same pipeline, to be run with these options.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { options, ..self }
    }
}

/// A node that is ready to run.
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    /// Hash of what makes its items, distinct in the graph: what staged pages are
    /// noted under, so that they are found after the node was renamed.
    pub(crate) key: Arc<str>,
    pub(crate) inputs: Vec<usize>,
    pub(crate) routes: Vec<Route>,
    pub(crate) rule: Option<Rule>,
    /// Whether rows are taken for its input because it sends one item for each.
    pub(crate) is_one_to_one: bool,
    pub(crate) on_error: OnError,
    pub(crate) workers: usize,
    pub(crate) batch: BatchPolicy,
    pub(crate) edge: EdgeLimits,
    pub(crate) input: FieldSet,
    pub(crate) carries: Arc<Carries>,
    pub(crate) work: Work,
}

/// Makes a stage anew after it panicked.
pub(crate) type Rebuild = dyn Fn() -> Result<Box<dyn Stage>, FieldError> + Send + Sync;

/// What a node runs.
pub(crate) enum Work {
    Source(Box<dyn Source>),
    Stage {
        workers: Vec<Box<dyn Stage>>,
        rebuild: Arc<Rebuild>,
    },
    Sink(Box<dyn Sink>),
}

impl Node {
    pub(crate) fn role(&self) -> Role {
        match self.work {
            Work::Source(_) => Role::Source,
            Work::Stage { .. } => Role::Stage,
            Work::Sink(_) => Role::Sink,
        }
    }
}

impl Graph {
    /// Name of the pipeline.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the file says that it is for.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The folder that takes its dead letters.
    pub fn dead_letters(&self) -> Option<&Path> {
        self.dead_letters.as_deref()
    }

    /// The folder that keeps its ledger.
    pub fn ledger(&self) -> Option<&Path> {
        self.ledger.as_deref()
    }

    /// Whether it goes on until it is asked to stop.
    pub fn is_continuous(&self) -> bool {
        self.nodes.iter().any(|node| node.settings.is_continuous())
    }

    /// The nodes in the order in which data flows.
    pub fn nodes(&self) -> &[GraphNode] {
        &self.nodes
    }

    /// The same graph, which shows these values nowhere. They do not count in the
    /// fingerprint either: the rows stay when a token is replaced.
    pub(crate) fn keeping(mut self, secrets: &Secrets) -> Self {
        self.description = self
            .description
            .map(|text| secrets.redact(&text).into_owned());
        for node in &mut self.nodes {
            node.row_settings = secrets.redact_known(&node.row_settings);
            node.when = node.when.as_deref().map(|when| secrets.redact_known(when));
            node.shown_when = node.routes.iter().find_map(|route| match route {
                Route::When(expression) => Some(secrets.redact(expression.text()).into_owned()),
                Route::Always | Route::Otherwise => None,
            });
        }
        self.secrets = secrets.clone();
        self
    }

    /// Hash of what makes the rows of all sinks; see [`Graph::sink_keys`].
    pub fn fingerprint(&self, resources: &Resources) -> String {
        fingerprint_of(&self.sink_keys(resources))
    }

    /// How the ledger knows each sink: where its rows are, and what makes them.
    pub fn sink_keys(&self, resources: &Resources) -> Vec<SinkKey> {
        self.keys_of(&structure::hashes(self, resources))
    }

    /// The same, of the nodes' hashes.
    fn keys_of(&self, hashes: &[String]) -> Vec<SinkKey> {
        let nodes = self.nodes.iter().zip(hashes);
        nodes
            .filter(|(node, _)| node.role == Role::Sink)
            .map(|(node, fingerprint)| {
                let place = node.sink_place(&self.name);
                SinkKey {
                    node: node.name.as_str().into(),
                    identity: place.map_or_else(|| node.name.clone(), |place| place.identity),
                    fingerprint: fingerprint.clone(),
                }
            })
            .collect()
    }

    /// What each gathering node waits for.
    fn rule(&self, node: &GraphNode) -> Option<Rule> {
        let names = |input: &usize| Arc::from(self.nodes[*input].name.as_str());
        match (node.join, node.fields.cardinality) {
            (Some(unmatched), _) => Some(Rule::Join {
                inputs: node.inputs.iter().map(names).collect(),
                unmatched,
            }),
            (None, Cardinality::ManyToOne) => Some(Rule::Document),
            (None, Cardinality::ManyToOnePage) => Some(Rule::Page),
            (None, Cardinality::OneToOne | Cardinality::OneToMany) => None,
        }
    }

    /// Builds every node.
    pub(crate) fn build(&self, resources: &Resources) -> Result<Pipeline, Vec<Diagnostic>> {
        let (mut nodes, mut diagnostics) = (Vec::new(), Vec::new());
        // Once: a model's part of it is a hash of its files.
        let hashes = structure::hashes(self, resources);
        let keys = structure::distinct(self, &hashes);
        for (node, key) in self.nodes.iter().zip(keys) {
            match build_work(node, resources) {
                Ok(work) => nodes.push(Node {
                    name: node.name.as_str().into(),
                    key: key.into(),
                    inputs: node.inputs.clone(),
                    routes: node.routes.clone(),
                    rule: self.rule(node),
                    is_one_to_one: node.is_one_to_one(),
                    on_error: node.on_error,
                    workers: node.workers,
                    batch: node.batch,
                    edge: node.edge,
                    input: node.input.clone(),
                    carries: Arc::clone(&node.carries),
                    work,
                }),
                Err(error) => {
                    let span = node.place_of(error.field);
                    diagnostics.push(Diagnostic::new(span, error.to_string()).hint(error.hint));
                }
            }
        }
        if !diagnostics.is_empty() {
            return Err(diagnostics);
        }
        Ok(Pipeline {
            name: self.name.clone(),
            dead_letters: self.dead_letters.clone(),
            on_dead_letter: None,
            ledger: self.ledger.clone(),
            sinks: self.keys_of(&hashes),
            recipes: self.recipes(&hashes),
            refill_points: self.refill_points(&hashes),
            // An item made of many is of no page that could be told done.
            can_stage: !self
                .nodes
                .iter()
                .any(|node| node.fields.cardinality.gathers()),
            options: RunOptions::default(),
            secrets: self.secrets.clone(),
            meters: Arc::clone(&resources.meters),
            nodes,
        })
    }
}

/// Hash of what makes the rows of all these sinks.
pub fn fingerprint_of(sinks: &[SinkKey]) -> String {
    let mut fingerprints: Vec<&str> = sinks.iter().map(|sink| &*sink.fingerprint).collect();
    fingerprints.sort_unstable();
    structure::hash(fingerprints)
}

fn build_work(node: &GraphNode, resources: &Resources) -> Result<Work, FieldError> {
    Ok(match &node.settings {
        Settings::Source(config) => Work::Source(config.build(resources)?),
        Settings::Sink(config) => Work::Sink(config.build(resources)?),
        Settings::Stage(config) => {
            let workers: Result<_, _> =
                (0..node.workers).map(|_| config.build(resources)).collect();
            let (config, resources) = (Arc::clone(config), resources.clone());
            Work::Stage {
                workers: workers?,
                rebuild: Arc::new(move || config.build(&resources)),
            }
        }
    })
}

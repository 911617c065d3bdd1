//! The checked graph: who reads whom, and which fields travel along each edge.

mod check;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::batch::BatchPolicy;
use crate::config::Diagnostic;
use crate::edge::{Carries, EdgeLimits};
use crate::error::FieldError;
use crate::fields::{Cardinality, FieldSet, Fields};
use crate::metrics::Role;
use crate::registry::Settings;
use crate::stage::{Resources, Sink, Source, Stage};

pub(crate) use check::check;

/// A pipeline whose graph is sound. Its nodes stand in the order in which data
/// flows: every node after those that it reads.
pub struct Graph {
    pub(crate) name: String,
    description: Option<String>,
    dead_letters: PathBuf,
    nodes: Vec<GraphNode>,
}

/// One node of a [`Graph`].
pub struct GraphNode {
    name: String,
    role: Role,
    kind: String,
    inputs: Vec<usize>,
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
    canonical: String,
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
    /// Threads that work on it.
    pub fn workers(&self) -> usize {
        self.workers
    }
    /// How its batches are formed.
    pub fn batch(&self) -> BatchPolicy {
        self.batch
    }
    /// Items out for items in.
    pub fn cardinality(&self) -> Cardinality {
        self.fields.cardinality
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
    /// The fields that its input edges carry: those that somebody looks at.
    pub fn carried(&self) -> Vec<&str> {
        match self.carries.as_ref() {
            Carries::All => self.input.names().collect(),
            Carries::Only(names) => names.iter().map(AsRef::as_ref).collect(),
        }
    }
}

/// A pipeline that is ready to run; see [`Pipeline::run`].
pub struct Pipeline {
    pub(crate) name: String,
    pub(crate) dead_letters: PathBuf,
    pub(crate) fingerprint: String,
    pub(crate) nodes: Vec<Node>,
}

/// A node that is ready to run.
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) inputs: Vec<usize>,
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
    pub fn dead_letters(&self) -> &std::path::Path {
        &self.dead_letters
    }

    /// The nodes in the order in which data flows.
    pub fn nodes(&self) -> &[GraphNode] {
        &self.nodes
    }

    /// Hash of what makes the rows: the stages, their settings and their order.
    /// Sources, sinks, workers and batches do not count.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for node in self.nodes.iter().filter(|node| node.role == Role::Stage) {
            hasher.update(node.kind.as_bytes());
            hasher.update(node.canonical.as_bytes());
            for input in &node.inputs {
                hasher.update(self.nodes[*input].name.as_bytes());
            }
            hasher.update(b"\n");
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Builds every node.
    pub(crate) fn build(&self, resources: &Resources) -> Result<Pipeline, Vec<Diagnostic>> {
        let (mut nodes, mut diagnostics) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            match build_work(node, resources) {
                Ok(work) => nodes.push(Node {
                    name: node.name.as_str().into(),
                    inputs: node.inputs.clone(),
                    workers: node.workers,
                    batch: node.batch,
                    edge: node.edge,
                    input: node.input.clone(),
                    carries: Arc::clone(&node.carries),
                    work,
                }),
                Err(error) => {
                    let span = node.places.get(error.field).unwrap_or(&node.span).clone();
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
            fingerprint: self.fingerprint(),
            nodes,
        })
    }
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

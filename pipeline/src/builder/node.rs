//! One node of a pipeline that is wired in Rust, with the engine's settings.

use toml::Spanned;

use super::kinds::{Content, IntoSink, IntoSource, IntoStage};
use crate::batch::BatchPolicy;
use crate::config::node::{add_input, check_batch, check_edge, check_n_inputs, check_workers};
use crate::config::{DROP, Diagnostic, Flow, Input, NodeDraft, Sources, check_name, errors};
use crate::edge::EdgeLimits;
use crate::gather::Unmatched;
use crate::metrics::Role;
use crate::retry::OnError;

/// A node on its way into a [`PipelineBuilder`](crate::PipelineBuilder), made by
/// [`source`], [`stage`], [`sink`] or [`output`](crate::output()). What is left
/// out is as in TOML.
#[must_use = "give it to `PipelineBuilder::node`"]
pub struct NodeBuilder {
    pub(super) name: String,
    pub(super) role: Role,
    /// None for the node that is read as a stream.
    pub(super) content: Option<Content>,
    inputs: Option<Vec<String>>,
    is_join: bool,
    unmatched: Option<Unmatched>,
    when: Option<String>,
    otherwise: Option<String>,
    on_error: Option<OnError>,
    workers: Option<usize>,
    batch: Option<BatchPolicy>,
    edge: EdgeLimits,
}

/// A node that brings items in.
pub fn source(name: impl Into<String>, source: impl IntoSource) -> NodeBuilder {
    NodeBuilder::new(name.into(), Role::Source, Some(source.into_source()))
}

/// A node that changes items.
pub fn stage(name: impl Into<String>, stage: impl IntoStage) -> NodeBuilder {
    NodeBuilder::new(name.into(), Role::Stage, Some(stage.into_stage()))
}

/// A node that stores items.
pub fn sink(name: impl Into<String>, sink: impl IntoSink) -> NodeBuilder {
    NodeBuilder::new(name.into(), Role::Sink, Some(sink.into_sink()))
}

/// The node that [`PipelineBuilder::into_stream`](crate::PipelineBuilder::into_stream)
/// reads, where it needs settings: other inputs than the node before it, or the
/// limits of its edge.
pub fn output(name: impl Into<String>) -> NodeBuilder {
    // One at a time: what is taken off the edge waits outside of its budget.
    NodeBuilder::new(name.into(), Role::Sink, None).batch(BatchPolicy::default())
}

impl NodeBuilder {
    fn new(name: String, role: Role, content: Option<Content>) -> Self {
        Self {
            name,
            role,
            content,
            inputs: None,
            is_join: false,
            unmatched: None,
            when: None,
            otherwise: None,
            on_error: None,
            workers: None,
            batch: None,
            edge: EdgeLimits::default(),
        }
    }

    /// Takes from this node. Called again, from that one too: items are taken as they come.
    pub fn input(mut self, name: impl Into<String>) -> Self {
        self.inputs.get_or_insert_default().push(name.into());
        self
    }

    /// Waits for the same key from each of these nodes, and merges their fields.
    pub fn join<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.inputs = Some(names.into_iter().map(Into::into).collect());
        self.is_join = true;
        self
    }

    /// What becomes of items that a join finds no partner for.
    pub fn unmatched(mut self, unmatched: Unmatched) -> Self {
        self.unmatched = Some(unmatched);
        self
    }

    /// Takes only items of which this holds, as in `text.len() > 40 && page == 1`.
    pub fn when(mut self, expression: impl Into<String>) -> Self {
        self.when = Some(expression.into());
        self
    }

    /// What no `when` takes goes to the node of this name.
    pub fn or_else(mut self, node: impl Into<String>) -> Self {
        self.otherwise = Some(node.into());
        self
    }

    /// What no `when` takes goes nowhere.
    pub fn or_else_drop(self) -> Self {
        self.or_else(DROP)
    }

    /// What it does with what fails.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = Some(on_error);
        self
    }

    /// Works on so many threads, each with a stage of its own.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// How its batches are formed, in place of how its kind wants them.
    pub fn batch(mut self, batch: BatchPolicy) -> Self {
        self.batch = Some(batch);
        self
    }

    /// What each edge that leads to it may hold.
    pub fn edge(mut self, edge: EdgeLimits) -> Self {
        self.edge = edge;
        self
    }

    /// Names its settings in the fingerprint, in place of their `Debug` text:
    /// change it whenever they come to make other rows.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        if let Some(content) = &mut self.content {
            content.row_settings = Some(format!("version={:?}", version.into()));
        }
        self
    }

    /// The draft of the node, as the reader of TOML would make it. `before` is
    /// what it takes from unless it was told otherwise.
    pub(super) fn draft(
        self,
        pipeline: &str,
        before: Option<&str>,
        content: Content,
        sources: &mut Sources,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> NodeDraft {
        let (name, role) = (self.name, self.role);
        let place = format!("{} `{name}` of pipeline `{pipeline}`", role.table());
        let span = sources.add_place(place.clone());
        let here = |text: String| Spanned::new(span.clone(), text);
        let node_name = here(name);
        check_name(&node_name, "node", diagnostics);
        let when = self.when.map(|when| {
            // In quotes, as the place of a mistake within it is looked for there.
            let path = format!("`when` of {place}");
            let start = sources.add(path.as_ref(), &format!("\"{when}\""));
            Spanned::new(start..start + when.len() + 2, when)
        });
        let flow = Flow {
            is_join: self.is_join,
            unmatched: self
                .unmatched
                .map(|choice| Spanned::new(span.clone(), choice)),
            when,
            otherwise: self.otherwise.map(here),
        };
        let mut inputs: Vec<Input> = Vec::new();
        match (role, self.inputs) {
            (Role::Source, Some(_)) => {
                let message = format!("source `{}` cannot have an `input`", node_name.get_ref());
                let hint = "remove it, or make the node a stage";
                diagnostics.push(Diagnostic::new(span.clone(), message).hint(hint));
            }
            (Role::Source, None) => {}
            (_, Some(names)) => {
                check_n_inputs(names.len(), self.is_join, span.clone(), diagnostics);
                for name in names {
                    add_input(here(name), &mut inputs, diagnostics);
                }
            }
            (_, None) => {
                inputs.extend(before.map(|name| here(name.to_owned())));
                if before.is_none() {
                    let name = node_name.get_ref();
                    let message = format!("{} `{name}` has no `input`", role.table());
                    let hint =
                        "put it after the node that it takes from, or add `.input(\"NAME\")`";
                    diagnostics.push(Diagnostic::new(span.clone(), message).hint(hint));
                }
            }
        }
        flow.check(role, &inputs, diagnostics);
        if let Some(on_error) = self.on_error {
            errors::check(role, on_error, span.clone(), diagnostics);
        }
        let workers = self.workers.unwrap_or_else(|| content.settings.workers());
        check_workers(role, workers, span.clone(), diagnostics);
        let batch = self.batch.unwrap_or_else(|| content.settings.batch());
        check_batch(batch, span.clone(), diagnostics);
        check_edge(self.edge, span.clone(), diagnostics);
        NodeDraft {
            role,
            name: node_name,
            kind: content.kind,
            inputs,
            flow,
            on_error: self.on_error.unwrap_or_default(),
            workers,
            batch,
            edge: self.edge,
            settings: content.settings,
            places: std::collections::BTreeMap::new(),
            row_settings: content.row_settings.unwrap_or_default(),
        }
    }
}

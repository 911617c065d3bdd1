//! Pipelines that are wired in Rust: the same graph, checks and runner as from
//! TOML, with closures, streams and values of one's own as nodes.

mod closures;
mod kinds;
mod node;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

pub use closures::{StageFn, batch_map, filter, flat_map, from_stage, gather, gather_pages, map};
pub use kinds::{
    IntoSink, IntoSource, IntoStage, SinkFn, SourceFn, from_sink, from_source, sink_fn,
};
pub use node::{NodeBuilder, output, sink, source, stage};

use crate::config::{ConfigError, Diagnostic, LeftOut, PipelineDraft, Sources, Wiring, check_name};
use crate::dead_letters::{DeadLetter, OnDeadLetter};
use crate::graph::{Pipeline, check};
use crate::metrics::Role;
use crate::registry::Settings;
use crate::resources::Resources;
use crate::stream::ItemStream;

/// Wires a pipeline in Rust; [`Pipeline::builder`] begins one.
///
/// Each node takes from the last source or stage before it, unless it is made
/// with [`stage`] or [`sink`] and told otherwise with [`NodeBuilder::input`].
#[must_use = "`build` makes a pipeline of it"]
pub struct PipelineBuilder {
    name: String,
    dead_letters: Option<PathBuf>,
    on_dead_letter: Option<OnDeadLetter>,
    ledger: Option<PathBuf>,
    nodes: Vec<NodeBuilder>,
}

impl Pipeline {
    /// Begins a pipeline that is wired in Rust.
    ///
    /// ```
    /// use pagemill_pipeline::{Field, Item, Pipeline, Resources, RunControl, from_iter, map, sink_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let notes = ["the mill", "turns"].map(|text| Item::of_text(format!("{text}.txt"), text));
    /// let pipeline = Pipeline::builder("shouting")
    ///     .source("notes", from_iter(notes).provides([Field::TEXT]))
    ///     .stage(
    ///         "shout",
    ///         map(|item: Item| {
    ///             let loud = item.text().unwrap_or_default().to_uppercase();
    ///             Ok(item.with("text", loud))
    ///         })
    ///         .reads([Field::TEXT])
    ///         .replaces([Field::TEXT]),
    ///     )
    ///     .sink("ears", sink_fn(|batch| async move {
    ///         assert!(batch.iter().all(|item| item.text() != Some("turns")));
    ///         Ok(())
    ///     }))
    ///     .build(&Resources::default())?;
    /// let report = pipeline.run(&RunControl::default()).await?;
    /// assert_eq!(report.totals.documents_done, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(name: impl Into<String>) -> PipelineBuilder {
        PipelineBuilder {
            name: name.into(),
            dead_letters: None,
            on_dead_letter: None,
            ledger: None,
            nodes: Vec::new(),
        }
    }
}

impl PipelineBuilder {
    /// Adds a node that brings items in: the settings of a kind,
    /// [`from_stream`](crate::from_stream), [`from_iter`](crate::from_iter) or [`from_source`].
    pub fn source(self, name: impl Into<String>, from: impl IntoSource) -> Self {
        self.node(source(name, from))
    }

    /// Adds a node that changes items: the settings of a kind, a closure such
    /// as [`map`], or [`from_stage`].
    pub fn stage(self, name: impl Into<String>, by: impl IntoStage) -> Self {
        self.node(stage(name, by))
    }

    /// Adds a node that stores items: the settings of a kind, [`sink_fn`] or [`from_sink`].
    pub fn sink(self, name: impl Into<String>, into: impl IntoSink) -> Self {
        self.node(sink(name, into))
    }

    /// Adds a node with settings of the engine: inputs, workers, batches, routes.
    pub fn node(mut self, node: NodeBuilder) -> Self {
        self.nodes.push(node);
        self
    }

    /// Keeps a ledger in this folder: what is stored already is not done again.
    /// Without it, each run does everything anew.
    ///
    /// Rows say by which configuration they were made. A closure has no
    /// settings that could tell: it needs a [`version`](StageFn::version).
    pub fn ledger(mut self, folder: impl Into<PathBuf>) -> Self {
        self.ledger = Some(folder.into());
        self
    }

    /// Writes dead letters below this folder; see
    /// [`read_dead_letters`](crate::read_dead_letters). Without it, they are
    /// told of in the log alone.
    pub fn dead_letters(mut self, folder: impl Into<PathBuf>) -> Self {
        self.dead_letters = Some(folder.into());
        self
    }

    /// Calls `told` with each dead letter, on the thread that set the item aside.
    pub fn on_dead_letter(mut self, told: impl Fn(&DeadLetter) + Send + Sync + 'static) -> Self {
        self.on_dead_letter = Some(Arc::new(told));
        self
    }

    /// Checks the graph and builds every node.
    ///
    /// # Errors
    /// Everything that is wrong with it: the same that is reported of a file,
    /// with the names of nodes in place of lines.
    pub fn build(self, resources: &Resources) -> Result<Pipeline, ConfigError> {
        self.build_with(resources, None)
    }

    /// Makes a stream of what reaches the end of the pipeline: of what leaves
    /// the last source or stage, or of what reaches the node that [`output`] made.
    ///
    /// # Errors
    /// As [`PipelineBuilder::build`].
    pub fn into_stream(mut self, resources: &Resources) -> Result<ItemStream, ConfigError> {
        if self.nodes.iter().all(|node| node.content.is_some()) {
            self = self.node(output("output"));
        }
        let (output, receiver) = crate::stream::output();
        let pipeline = self.build_with(resources, Some(output))?;
        Ok(ItemStream::new(pipeline, receiver))
    }

    fn build_with(
        self,
        resources: &Resources,
        output: Option<SinkFn>,
    ) -> Result<Pipeline, ConfigError> {
        let (mut sources, mut diagnostics) = (Sources::default(), Vec::new());
        let on_dead_letter = self.on_dead_letter.clone();
        let draft = self.draft(output, &mut sources, &mut diagnostics);
        let nodes = draft.nodes.iter();
        let nodes: Vec<(Settings, Range<usize>)> = nodes
            .map(|node| (node.settings.clone(), node.name.span()))
            .collect();
        let graph = check(draft, &mut diagnostics).filter(|_| diagnostics.is_empty());
        let Some(graph) = graph else {
            // What is wrong with the settings need not wait for the next attempt.
            for (settings, span) in nodes {
                if let Err(error) = settings.try_build(resources) {
                    diagnostics.push(Diagnostic::new(span, error.to_string()).hint(error.hint));
                }
            }
            return Err(ConfigError::new(&sources, diagnostics));
        };
        let pipeline = graph.build(resources);
        let pipeline = pipeline.map_err(|errors| ConfigError::new(&sources, errors))?;
        Ok(Pipeline {
            on_dead_letter,
            ..pipeline
        })
    }

    fn draft(
        self,
        output: Option<SinkFn>,
        sources: &mut Sources,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> PipelineDraft {
        let span = sources.add_place(format!("pipeline `{}`", self.name));
        let name = toml::Spanned::new(span.clone(), self.name);
        check_name(&name, "pipeline", diagnostics);
        let mut draft = PipelineDraft {
            name: name.into_inner(),
            wiring: Wiring::Rust,
            span: span.clone(),
            description: None,
            dead_letters: self.dead_letters,
            ledger: self.ledger,
            nodes: Vec::new(),
            left_out: Vec::new(),
            is_whole: true,
        };
        let (mut output, mut before) = (output.map(IntoSink::into_sink), None);
        for mut node in self.nodes {
            let (name, role) = (node.name.clone(), node.role);
            let content = node.content.take().or_else(|| output.take());
            let Some(content) = content else {
                let message = format!("`{name}` is an output that nobody reads");
                let hint = "call `into_stream` in place of `build`, and have one output";
                diagnostics.push(Diagnostic::new(span.clone(), message).hint(hint));
                let inputs = Vec::new();
                draft.left_out.push(LeftOut { role, name, inputs });
                continue;
            };
            let is_unknown = draft.ledger.is_some() && content.row_settings.is_none();
            let node = node.draft(
                &draft.name,
                before.as_deref(),
                content,
                sources,
                diagnostics,
            );
            if is_unknown {
                let message = format!("stage `{name}` has no version, which the ledger goes by");
                let hint =
                    "add `.version(\"1\")`, and change that whenever it comes to make other rows";
                diagnostics.push(Diagnostic::new(node.name.span(), message).hint(hint));
            }
            draft.nodes.push(node);
            if role != Role::Sink {
                before = Some(name);
            }
        }
        draft
    }
}

//! Reads pipelines from TOML. Every mistake of a file is reported in one run.

mod diagnostic;
pub(crate) mod errors;
mod explain;
mod flow;
mod home;
mod interpolate;
mod limits;
pub(crate) mod node;
mod overlaps;
mod overrides;
mod variables;

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use diagnostic::{ConfigError, Diagnostic};
pub(crate) use diagnostic::{Sources, Wiring, suggest};
pub(crate) use flow::{DROP, Flow};
pub(crate) use node::{Input, NodeDraft};

use crate::graph::{Graph, check};
use crate::metrics::Role;
use crate::registry::Registry;
use crate::secrets::Secrets;

/// Where dead letters go where the file does not say.
const DEFAULT_DEAD_LETTERS: &str = "data/dead-letters";

/// Where ledgers are kept where the file does not say.
const DEFAULT_LEDGER: &str = "data/ledger";

/// A configuration whose every pipeline has been read and checked.
pub struct ConfigFile {
    graphs: Vec<Graph>,
    sources: Sources,
    path: PathBuf,
}

/// A pipeline as the file describes it, before its graph is checked.
pub(crate) struct PipelineDraft {
    pub(crate) name: String,
    pub(crate) wiring: Wiring,
    pub(crate) span: Range<usize>,
    pub(crate) description: Option<String>,
    pub(crate) dead_letters: Option<PathBuf>,
    pub(crate) ledger: Option<PathBuf>,
    pub(crate) nodes: Vec<NodeDraft>,
    /// Nodes that were left out because their own settings are wrong. Others
    /// may name them, and what the graph lacks without them is not worth reporting.
    pub(crate) left_out: Vec<LeftOut>,
    /// Whether a part of the pipeline could not be read at all.
    pub(crate) is_whole: bool,
}

/// A node whose own settings are wrong, and what it would take from.
pub(crate) struct LeftOut {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) inputs: Vec<Input>,
}

impl ConfigFile {
    /// Reads and checks the file at `path`, with `--set` overrides and the
    /// process's environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(
        path: &Path,
        overrides: &[String],
        registry: &Registry,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let text = limits::read(path)?;
        Self::parse(path, &text, overrides, registry, variable)
    }

    /// Reads and checks `text`; `path` is what errors call it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        path: &Path,
        text: &str,
        overrides: &[String],
        registry: &Registry,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        limits::check_length(path, text)?;
        let mut sources = Sources::default();
        sources.add(path, text);
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut diagnostics: Vec<Diagnostic> = errors.iter().map(of_syntax).collect();
        if !diagnostics.is_empty() {
            // Past a syntax error what the file means is a guess.
            limits::take_apart(DeValue::Table(root.into_inner()));
            return Err(ConfigError::new(&sources, diagnostics));
        }
        let mut root = limits::of_sound_depth(root.into_inner())
            .map_err(|diagnostic| ConfigError::new(&sources, vec![diagnostic]))?;
        overrides::apply(&mut root, overrides, &mut sources, &mut diagnostics);
        let secrets = variables::put_in(&mut root, variable, &mut diagnostics);
        sources.secrets = secrets;
        home::expand(&mut root, registry, variable, &mut diagnostics);
        let tables = in_order(root);
        if tables.is_empty() && diagnostics.is_empty() {
            let hint = "begin with `[documents.source.files]`; the README has an annotated example";
            diagnostics.push(Diagnostic::new(0..0, "the file holds no pipeline").hint(hint));
        }
        let mut graphs = Vec::new();
        for (name, table) in tables {
            let Some(draft) = read_pipeline(&name, table, registry, &mut diagnostics) else {
                continue;
            };
            let graph = check(draft, &mut diagnostics);
            graphs.extend(graph.map(|graph| graph.keeping(&sources.secrets)));
        }
        if diagnostics.is_empty() {
            Ok(Self {
                graphs,
                sources,
                path: path.to_owned(),
            })
        } else {
            Err(ConfigError::new(&sources, diagnostics))
        }
    }

    /// The pipelines in the order of the file.
    pub fn pipelines(&self) -> &[Graph] {
        &self.graphs
    }

    /// The pipeline called `name`, or the file's first.
    ///
    /// # Errors
    /// When there is none of that name; the nearest is suggested.
    pub fn pipeline(&self, name: Option<&str>) -> Result<&Graph, ConfigError> {
        let Some(name) = name else {
            return Ok(&self.graphs[0]);
        };
        self.graphs
            .iter()
            .find(|graph| graph.name == name)
            .ok_or_else(|| {
                let hint = suggest(
                    name,
                    self.graphs.iter().map(|graph| graph.name.as_str()),
                    "pipelines",
                );
                ConfigError::of_file(
                    format!("`{}` has no pipeline `{name}`", self.path.display()),
                    &hint,
                )
            })
    }

    /// The values that are not to be shown: those of variables and settings that
    /// are called like secrets. Errors, reports and dead letters are without
    /// them; what else a program writes, such as its log, it redacts itself.
    pub fn secrets(&self) -> &Secrets {
        &self.sources.secrets
    }

    /// What is allowed and rarely meant: pipelines that store the same documents in
    /// one table. Each keeps its own rows there, so a search finds both.
    pub fn warnings(&self) -> Option<ConfigError> {
        let warnings = overlaps::find(&self.graphs);
        (!warnings.is_empty()).then(|| ConfigError::new(&self.sources, warnings))
    }

    /// Makes a pipeline ready to run: builds every node.
    ///
    /// # Errors
    /// Settings that cannot be used, with their places.
    pub fn build(
        &self,
        graph: &Graph,
        resources: &crate::resources::Resources,
    ) -> Result<crate::graph::Pipeline, ConfigError> {
        graph
            .build(resources)
            .map_err(|diagnostics| ConfigError::new(&self.sources, diagnostics))
    }
}

/// A diagnostic of an error of the TOML parser.
fn of_syntax(error: &toml::de::Error) -> Diagnostic {
    let diagnostic = of_toml(error);
    let hint = if diagnostic.message.contains("duplicate") {
        "keep one of the two"
    } else {
        "the file is no valid TOML from here on; mend it to see what else there is"
    };
    diagnostic.hint(hint)
}

/// A diagnostic of an error of the TOML parser or of serde.
fn of_toml(error: &toml::de::Error) -> Diagnostic {
    Diagnostic::new(
        error.span().unwrap_or(0..0),
        error.message().trim().replace('\n', "; "),
    )
}

/// The entries of a table as they stand in the file.
fn in_order(table: DeTable<'_>) -> Vec<(Spanned<String>, Spanned<DeValue<'_>>)> {
    let entries = table.into_iter();
    let entries = entries.map(|(key, value)| {
        (
            Spanned::new(key.span(), key.into_inner().into_owned()),
            value,
        )
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Reads one pipeline's table; `None` if it is none.
fn read_pipeline(
    name: &Spanned<String>,
    table: Spanned<DeValue<'_>>,
    registry: &Registry,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<PipelineDraft> {
    let DeValue::Table(table) = table.into_inner() else {
        let message = format!("`{}` is not a pipeline", name.get_ref());
        let hint = "at the top level there are only pipelines, as in `[documents.source.files]`";
        diagnostics.push(Diagnostic::new(name.span(), message).hint(hint));
        return None;
    };
    check_name(name, "pipeline", diagnostics);
    let mut draft = PipelineDraft {
        name: name.get_ref().clone(),
        wiring: Wiring::Toml,
        span: name.span(),
        description: None,
        dead_letters: Some(DEFAULT_DEAD_LETTERS.into()),
        ledger: Some(DEFAULT_LEDGER.into()),
        nodes: Vec::new(),
        left_out: Vec::new(),
        is_whole: true,
    };
    for (key, value) in in_order(table) {
        match key.get_ref().as_str() {
            "description" => draft.description = node::typed(value, diagnostics),
            "dead_letters" => {
                if let Some(folder) = node::typed(value, diagnostics) {
                    draft.dead_letters = Some(folder);
                }
            }
            "ledger" => read_ledger(value, &mut draft, diagnostics),
            "source" => read_nodes(Role::Source, &key, value, registry, &mut draft, diagnostics),
            "stage" => read_nodes(Role::Stage, &key, value, registry, &mut draft, diagnostics),
            "sink" => read_nodes(Role::Sink, &key, value, registry, &mut draft, diagnostics),
            other => {
                let known = [
                    "description",
                    "dead_letters",
                    "ledger",
                    "source",
                    "stage",
                    "sink",
                ];
                let message = format!("unknown key `{other}` in pipeline `{}`", draft.name);
                diagnostics.push(Diagnostic::new(key.span(), message).hint(suggest(
                    other,
                    known,
                    "known keys",
                )));
                draft.is_whole = false;
            }
        }
    }
    draft.nodes.sort_by_key(|node| node.name.span().start);
    Some(draft)
}

/// A folder, or `false` for a pipeline that does everything anew in each run.
fn read_ledger(
    value: Spanned<DeValue<'_>>,
    draft: &mut PipelineDraft,
    diagnostics: &mut Vec<Diagnostic>,
) {
    match value.get_ref() {
        DeValue::Boolean(false) => draft.ledger = None,
        DeValue::Boolean(true) => {}
        _ => {
            if let Some(folder) = node::typed(value, diagnostics) {
                draft.ledger = Some(folder);
            }
        }
    }
}

/// Reads the tables below `[pipeline.source]`, `[pipeline.stage]` or `[pipeline.sink]`.
fn read_nodes(
    role: Role,
    key: &Spanned<String>,
    value: Spanned<DeValue<'_>>,
    registry: &Registry,
    draft: &mut PipelineDraft,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let table = role.table();
    let DeValue::Table(nodes) = value.into_inner() else {
        let message = format!("`{table}` must be a table of nodes");
        let hint = format!("write `[{}.{table}.NAME]`", draft.name);
        diagnostics.push(Diagnostic::new(key.span(), message).hint(hint));
        draft.is_whole = false;
        return;
    };
    for (name, value) in in_order(nodes) {
        let value_span = value.span();
        let DeValue::Table(settings) = value.into_inner() else {
            let message = format!("`{}` must be a table", name.get_ref());
            let hint = format!(
                "write `[{}.{table}.NAME]`, then the node's settings",
                draft.name
            );
            diagnostics.push(Diagnostic::new(name.span(), message).hint(hint));
            let name = name.into_inner();
            draft.left_out.push(LeftOut {
                role,
                name,
                inputs: Vec::new(),
            });
            continue;
        };
        check_name(&name, "node", diagnostics);
        let settings = Spanned::new(value_span, settings);
        let known_as = name.get_ref().clone();
        match node::read(role, name, settings, registry, diagnostics) {
            Ok(node) => draft.nodes.push(node),
            Err(inputs) => draft.left_out.push(LeftOut {
                role,
                name: known_as,
                inputs,
            }),
        }
    }
}

/// Names become parts of file names and messages.
pub(crate) fn check_name(name: &Spanned<String>, what: &str, diagnostics: &mut Vec<Diagnostic>) {
    let text = name.get_ref();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if text.is_empty() || text.len() > 64 || !text.chars().all(is_plain) {
        let message = format!("`{text}` cannot name a {what}");
        let hint = "use up to 64 letters, digits, `_` and `-`";
        diagnostics.push(Diagnostic::new(name.span(), message).hint(hint));
    }
}

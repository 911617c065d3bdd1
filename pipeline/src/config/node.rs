//! Reads one node: takes the engine's keys off its table, deserializes the rest.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors;
use super::explain::{explain, quoted_after};
use super::flow::Flow;
use super::{Diagnostic, suggest};
use crate::batch::BatchPolicy;
use crate::edge::EdgeLimits;
use crate::metrics::Role;
use crate::registry::{Kind, Registry, Settings};
use crate::retry::OnError;

/// The most workers that a node may have: each is a thread, and often a process.
const MAX_WORKERS: usize = 256;

/// A node as the file describes it.
pub(crate) struct NodeDraft {
    pub(crate) role: Role,
    pub(crate) name: Spanned<String>,
    pub(crate) kind: String,
    pub(crate) inputs: Vec<Input>,
    pub(crate) flow: Flow,
    pub(crate) on_error: OnError,
    pub(crate) workers: usize,
    pub(crate) batch: BatchPolicy,
    pub(crate) edge: EdgeLimits,
    pub(crate) settings: Settings,
    /// Where each setting's value stands, for errors that come later.
    pub(crate) places: BTreeMap<String, Range<usize>>,
    /// The settings that rows depend on, as text, for the fingerprint.
    pub(crate) row_settings: String,
}

/// A name in `input`, and where it stands.
pub(crate) type Input = Spanned<String>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "the names are the keys of TOML")]
struct BatchSettings {
    max_items: Option<usize>,
    max_pixels: Option<u64>,
    max_tokens: Option<usize>,
    max_wait_ms: Option<u64>,
}

/// Reads a node.
///
/// # Errors
/// Its inputs, if something else in it is wrong, which is then reported.
pub(super) fn read(
    role: Role,
    name: Spanned<String>,
    table: Spanned<DeTable<'_>>,
    registry: &Registry,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<NodeDraft, Vec<Input>> {
    let n_before = diagnostics.len();
    let span = table.span();
    let mut table = table.into_inner();
    let kind = take(&mut table, "kind");
    let (input, join) = (take(&mut table, "input"), take(&mut table, "join"));
    let (inputs, is_join) = read_inputs(role, &name, input, join, diagnostics);
    let mut flow = Flow::read(&mut table, diagnostics);
    flow.is_join = is_join;
    flow.check(role, &inputs, diagnostics);
    let on_error = errors::read(role, &mut table, diagnostics);
    let workers = take(&mut table, "workers");
    let workers = workers.and_then(|value| read_workers(role, value, diagnostics));
    let batch = take(&mut table, "batch");
    let batch_span = batch.as_ref().map(Spanned::span);
    let batch = batch.map(|value| typed::<BatchSettings>(value, diagnostics).unwrap_or_default());
    let edge = read_edge(take(&mut table, "edge"), diagnostics);
    let Some((kind_name, kind)) = read_kind(role, &name, kind, registry, diagnostics) else {
        return Err(inputs);
    };
    let places: BTreeMap<String, Range<usize>> = table
        .iter()
        .map(|(key, value)| (key.get_ref().to_string(), value.span()))
        .collect();
    let Some(settings) = read_settings(&kind_name, table, span, &name, kind, diagnostics) else {
        return Err(inputs);
    };
    let batch = merge(settings.batch(), &batch.unwrap_or_default());
    let workers = workers.unwrap_or_else(|| settings.workers());
    let batch_span = batch_span.unwrap_or_else(|| name.span());
    check_batch(batch, batch_span, diagnostics);
    if diagnostics.len() > n_before {
        return Err(inputs);
    }
    let kind = kind_name;
    let row_settings = settings.row_settings();
    Ok(NodeDraft {
        role,
        name,
        kind,
        inputs,
        flow,
        on_error,
        workers,
        batch,
        edge,
        settings,
        places,
        row_settings,
    })
}

/// Reports a batch that holds nothing.
pub(crate) fn check_batch(
    batch: BatchPolicy,
    span: Range<usize>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    if batch.max_items == 0 || batch.max_tokens == Some(0) || batch.max_pixels == Some(0) {
        let message = "a batch must hold at least 1";
        let hint = "leave the limit out, or give at least 1";
        diagnostics.push(Diagnostic::new(span, message).hint(hint));
    }
}

/// Finds the kind that a node names; `None` if there is none of the node's role.
fn read_kind<'a>(
    role: Role,
    name: &Spanned<String>,
    value: Option<Spanned<DeValue<'_>>>,
    registry: &'a Registry,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<(String, &'a Kind)> {
    let of_role = registry.kinds().filter(|(_, kind)| kind.role == role);
    let of_role: Vec<&str> = of_role.map(|(name, _)| name).collect();
    let Some(value) = value else {
        let message = format!("{} `{}` has no `kind`", role.table(), name.get_ref());
        let hint = format!("add `kind = \"...\"` with one of {}", list(of_role));
        diagnostics.push(Diagnostic::new(name.span(), message).hint(hint));
        return None;
    };
    let span = value.span();
    let kind_name: String = typed(value, diagnostics)?;
    let Some(kind) = registry.get(&kind_name) else {
        let message = format!("there is no {} of kind `{kind_name}`", role.table());
        let hint = suggest(&kind_name, of_role, "known kinds");
        diagnostics.push(Diagnostic::new(span, message).hint(hint));
        return None;
    };
    if kind.role != role {
        let (is, should) = (kind.role.table(), role.table());
        let message = format!("`{kind_name}` is a {is}, not a {should}");
        let hint = format!(
            "move the node to a `[PIPELINE.{is}.{}]` table",
            name.get_ref()
        );
        diagnostics.push(Diagnostic::new(span, message).hint(hint));
        return None;
    }
    Some((kind_name, kind))
}

fn merge(default: BatchPolicy, given: &BatchSettings) -> BatchPolicy {
    BatchPolicy {
        max_items: given.max_items.unwrap_or(default.max_items),
        max_pixels: given.max_pixels.or(default.max_pixels),
        max_tokens: given.max_tokens.or(default.max_tokens),
        max_wait_ms: given.max_wait_ms.unwrap_or(default.max_wait_ms),
    }
}

/// Takes a key off a table.
pub(super) fn take<'a>(table: &mut DeTable<'a>, key: &str) -> Option<Spanned<DeValue<'a>>> {
    table.remove(key)
}

/// Deserializes one value; reports what is wrong with it.
pub(super) fn typed<T: DeserializeOwned>(
    value: Spanned<DeValue<'_>>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<T> {
    let span = value.span();
    match T::deserialize(value.into_deserializer()) {
        Ok(value) => Some(value),
        Err(error) => {
            let mut diagnostic = explain(&error);
            if error.span().is_none() {
                diagnostic.span = span;
            }
            diagnostics.push(diagnostic);
            None
        }
    }
}

/// Reads `input`, or `join`, which is the other way to take from nodes.
fn read_inputs(
    role: Role,
    name: &Spanned<String>,
    input: Option<Spanned<DeValue<'_>>>,
    join: Option<Spanned<DeValue<'_>>>,
    diagnostics: &mut Vec<Diagnostic>,
) -> (Vec<Input>, bool) {
    let is_join = join.is_some();
    if let (Some(_), Some(join)) = (&input, &join) {
        let message = "a node has `input` or `join`, not both";
        let hint = "`input` takes items as they come, `join` waits for the same key from each";
        diagnostics.push(Diagnostic::new(join.span(), message).hint(hint));
    }
    let Some(value) = join.or(input) else {
        if role != Role::Source {
            let message = format!("{} `{}` has no `input`", role.table(), name.get_ref());
            let hint = "add `input = \"NAME\"` with the node that it takes from";
            diagnostics.push(Diagnostic::new(name.span(), message).hint(hint));
        }
        return (Vec::new(), false);
    };
    let span = value.span();
    if role == Role::Source {
        let message = format!("source `{}` cannot have an `input`", name.get_ref());
        diagnostics
            .push(Diagnostic::new(span, message).hint("remove it, or make the node a stage"));
        return (Vec::new(), false);
    }
    // The names keep their own places: the array is read value by value.
    let values = match value.into_inner() {
        DeValue::Array(values) => values.into_iter().collect(),
        other => vec![Spanned::new(span.clone(), other)],
    };
    check_n_inputs(values.len(), is_join, span, diagnostics);
    let mut inputs: Vec<Input> = Vec::new();
    for value in values {
        let span = value.span();
        let Some(input) = typed::<String>(value, diagnostics) else {
            continue;
        };
        add_input(Spanned::new(span, input), &mut inputs, diagnostics);
    }
    (inputs, is_join)
}

/// Reports a node that takes from none, or joins what is one.
pub(crate) fn check_n_inputs(
    n_inputs: usize,
    is_join: bool,
    span: Range<usize>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    if n_inputs == 0 {
        let key = if is_join { "join" } else { "input" };
        let hint = "name at least one node";
        diagnostics.push(Diagnostic::new(span, format!("`{key}` is empty")).hint(hint));
    } else if is_join && n_inputs == 1 {
        let hint = "name two nodes or more, or write `input`";
        diagnostics.push(Diagnostic::new(span, "a join of one node").hint(hint));
    }
}

/// Adds an input, unless it is there already.
pub(crate) fn add_input(input: Input, inputs: &mut Vec<Input>, diagnostics: &mut Vec<Diagnostic>) {
    if inputs
        .iter()
        .any(|known| known.get_ref() == input.get_ref())
    {
        let message = format!("`{}` is named twice", input.get_ref());
        diagnostics.push(Diagnostic::new(input.span(), message).hint("remove one of the two"));
    } else {
        inputs.push(input);
    }
}

fn read_workers(
    role: Role,
    value: Spanned<DeValue<'_>>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<usize> {
    let span = value.span();
    let workers = typed::<usize>(value, diagnostics)?;
    check_workers(role, workers, span, diagnostics);
    Some(workers)
}

/// Reports too many workers, or too few.
pub(crate) fn check_workers(
    role: Role,
    workers: usize,
    span: Range<usize>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    if !(1..=MAX_WORKERS).contains(&workers) {
        let message = format!("`workers` must be between 1 and {MAX_WORKERS}");
        let hint = "leave it out for what suits the kind";
        diagnostics.push(Diagnostic::new(span, message).hint(hint));
    } else if role != Role::Stage && workers != 1 {
        let message = format!("a {} has one worker", role.table());
        let hint = "remove `workers`; only stages have several";
        diagnostics.push(Diagnostic::new(span, message).hint(hint));
    }
}

fn read_edge(value: Option<Spanned<DeValue<'_>>>, diagnostics: &mut Vec<Diagnostic>) -> EdgeLimits {
    let Some(value) = value else {
        return EdgeLimits::default();
    };
    let span = value.span();
    let Some(edge) = typed::<EdgeLimits>(value, diagnostics) else {
        return EdgeLimits::default();
    };
    check_edge(edge, span, diagnostics);
    edge
}

/// Reports an edge that holds nothing.
pub(crate) fn check_edge(edge: EdgeLimits, span: Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
    if edge.max_items == 0 || edge.max_bytes == 0 {
        let message = "an edge must hold at least 1 item and 1 byte";
        let hint = "leave the limit out, or give at least 1";
        diagnostics.push(Diagnostic::new(span, message).hint(hint));
    }
}

/// Deserializes a kind's settings. A setting that is wrong is reported and
/// taken off, and the rest is read again, so that one run reports them all.
fn read_settings(
    kind_name: &str,
    mut table: DeTable<'_>,
    span: Range<usize>,
    name: &Spanned<String>,
    kind: &Kind,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Settings> {
    let mut found_any = false;
    loop {
        let error = match kind.parse(Spanned::new(span.clone(), table.clone())) {
            Ok(settings) => return (!found_any).then_some(settings),
            Err(error) => error,
        };
        let at = error.span().unwrap_or_else(|| span.clone());
        let guilty = table
            .iter()
            .find(|(key, value)| contains(&key.span(), &at) || contains(&value.span(), &at))
            .map(|(key, _)| key.get_ref().to_string());
        let mut diagnostic = explain(&error);
        match guilty {
            Some(key) => {
                if let Some(unknown) = quoted_after(error.message(), "unknown field ") {
                    diagnostic.message = format!("`{kind_name}` has no setting `{unknown}`");
                }
                table.remove(key.as_str());
            }
            // An error about the table as a whole: a setting is missing. If one
            // was taken off above, that may be why.
            None if found_any => return None,
            None => {
                diagnostic.span = name.span();
                if let Some(missing) = quoted_after(error.message(), "missing field ") {
                    diagnostic.message =
                        format!("`{}` needs the setting `{missing}`", name.get_ref());
                    let example = example_line(kind.example, missing);
                    diagnostic.hint = Some(format!("add a line such as `{example}`"));
                }
                diagnostics.push(diagnostic);
                return None;
            }
        }
        diagnostics.push(diagnostic);
        found_any = true;
    }
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// The line of an example that sets `key`.
fn example_line(example: &str, key: &str) -> String {
    let line = example.lines().map(str::trim).find(|line| {
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    line.map_or_else(|| format!("{key} = ..."), str::to_owned)
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names
        .into_iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

//! `--set pages.stage.render.long_side_px=768`.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Diagnostic, Sources, limits, suggest};

/// The most names in a path: a setting has four, and may hold tables.
const MAX_NAMES: usize = 16;

/// Puts every override in its place. Spans of their values point into the
/// override itself, so that an error shows the argument, not the file.
pub(super) fn apply<'a>(
    root: &mut DeTable<'a>,
    overrides: &'a [String],
    sources: &mut Sources,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for text in overrides {
        let start = sources.add(Path::new("--set"), text);
        if let Err(diagnostic) = apply_one(root, text, start) {
            diagnostics.push(diagnostic);
        }
    }
}

fn apply_one<'a>(root: &mut DeTable<'a>, text: &'a str, start: usize) -> Result<(), Diagnostic> {
    let whole = start..start + text.len();
    let Some((path, value)) = text.split_once('=') else {
        let hint = "write `--set pages.stage.render.long_side_px=768`";
        return Err(Diagnostic::new(whole, "an override needs a `=`").hint(hint));
    };
    let value_start = start + path.len() + 1;
    let (path_start, names) = (
        start,
        path.trim().split('.').map(str::trim).collect::<Vec<_>>(),
    );
    let Some((key, parents)) = names
        .split_last()
        .filter(|_| names.iter().all(|n| !n.is_empty()))
    else {
        return Err(Diagnostic::new(
            whole,
            "an override needs a path before the `=`",
        ));
    };
    let path_span = path_start..path_start + path.len();
    if names.len() > MAX_NAMES {
        let message = format!("the path names more than {MAX_NAMES} tables");
        let hint = "write a table as its value: `--set pages.stage.render.limits={ page_s = 5 }`";
        return Err(Diagnostic::new(path_span, message).hint(hint));
    }
    let mut table = root;
    for (depth, name) in parents.iter().enumerate() {
        // Pipelines, roles and nodes must exist; tables inside a node are made.
        if depth < 3 && !table.keys().any(|known| known.get_ref() == name) {
            let what = ["pipelines", "tables", "nodes"][depth];
            let known: Vec<&str> = table.keys().map(|known| known.get_ref().as_ref()).collect();
            let hint = suggest(name, known, what);
            let message = format!("`{name}` is not in the file");
            return Err(Diagnostic::new(path_span, message).hint(hint));
        }
        let slot = table
            .entry(Spanned::new(path_span.clone(), (*name).into()))
            .or_insert_with(|| Spanned::new(path_span.clone(), DeValue::Table(DeTable::new())));
        table = if let DeValue::Table(table) = slot.get_mut() {
            table
        } else {
            let message = format!("`{name}` is a value, not a table");
            return Err(Diagnostic::new(path_span, message));
        };
    }
    let parsed = parse_value(value, value_start)?;
    table.remove(*key);
    table.insert(Spanned::new(path_span, (*key).into()), parsed);
    Ok(())
}

/// A TOML value; what is none is taken as a string, so that paths need no quotes.
///
/// # Errors
/// It is too deep.
fn parse_value(text: &str, start: usize) -> Result<Spanned<DeValue<'_>>, Diagnostic> {
    let trimmed = text.trim();
    let start = start + (text.len() - text.trim_start().len());
    let whole = start..start + trimmed.len();
    let Ok(value) = DeValue::parse(trimmed) else {
        return Ok(Spanned::new(whole, DeValue::String(trimmed.into())));
    };
    if let Some(mut problem) = limits::check_depth(value.get_ref()) {
        limits::take_apart(value.into_inner());
        problem.span = whole;
        return Err(problem);
    }
    Ok(shift(value, start))
}

/// The same value with all its spans moved by `by`.
fn shift(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span().start + by..value.span().end + by;
    let value = match value.into_inner() {
        DeValue::Array(values) => {
            DeValue::Array(values.into_iter().map(|value| shift(value, by)).collect())
        }
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, value)| {
                    let key_span = key.span().start + by..key.span().end + by;
                    (Spanned::new(key_span, key.into_inner()), shift(value, by))
                })
                .collect(),
        ),
        other => other,
    };
    Spanned::new(span, value)
}

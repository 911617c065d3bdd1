//! Reads what a node does with what fails: `on_error` and `retry`.

use std::ops::Range;

use serde::Deserialize;
use toml::de::DeTable;

use super::Diagnostic;
use super::node::{take, typed};
use crate::metrics::Role;
use crate::retry::{OnError, Retry};

/// The most attempts that a node may make after the first.
const MAX_ATTEMPTS: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Choice {
    DeadLetter,
    Retry,
    Stop,
}

pub(super) fn read(
    role: Role,
    table: &mut DeTable<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> OnError {
    let (choice, retry) = (take(table, "on_error"), take(table, "retry"));
    let span = choice
        .as_ref()
        .or(retry.as_ref())
        .map_or(0..0, toml::Spanned::span);
    let has_any = choice.is_some() || retry.is_some();
    let choice = choice.and_then(|value| typed::<Choice>(value, diagnostics));
    let retry_span = retry.as_ref().map(toml::Spanned::span);
    let retry = retry.and_then(|value| typed::<Retry>(value, diagnostics));
    if role == Role::Source {
        if has_any {
            check(role, OnError::DeadLetter, span, diagnostics);
        }
        return OnError::DeadLetter;
    }
    let retry_span = retry_span.unwrap_or_default();
    if let Some(retry) = retry {
        check(role, OnError::Retry(retry), retry_span.clone(), diagnostics);
    }
    match (choice, retry) {
        (Some(Choice::DeadLetter | Choice::Stop), Some(_)) => {
            let message = "`retry` is not what `on_error` says";
            let hint = "write `on_error = \"retry\"`, or remove `retry`";
            diagnostics.push(Diagnostic::new(retry_span, message).hint(hint));
            OnError::DeadLetter
        }
        (Some(Choice::DeadLetter), None) if role == Role::Sink => {
            check(role, OnError::DeadLetter, span, diagnostics);
            OnError::Stop
        }
        (Some(Choice::Retry) | None, Some(retry)) => OnError::Retry(retry),
        (Some(Choice::Retry), None) => OnError::Retry(Retry::default()),
        (Some(Choice::Stop), None) => OnError::Stop,
        (Some(Choice::DeadLetter) | None, None) => OnError::DeadLetter,
    }
}

/// Reports what a node of this role cannot do with what fails.
pub(crate) fn check(
    role: Role,
    on_error: OnError,
    span: Range<usize>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let (message, hint) = match (role, on_error) {
        (Role::Source, _) => (
            "a source has no `on_error` and no `retry`".to_owned(),
            "what a source cannot read is set aside; remove it",
        ),
        (_, OnError::Retry(retry)) if !(1..=MAX_ATTEMPTS).contains(&retry.attempts) => (
            format!("`attempts` must be between 1 and {MAX_ATTEMPTS}"),
            "leave it out for 3",
        ),
        (Role::Sink, OnError::DeadLetter) => (
            "a sink cannot set items aside".to_owned(),
            "a sink that cannot store stops the run; choose `retry` or `stop`",
        ),
        _ => return,
    };
    diagnostics.push(Diagnostic::new(span, message).hint(hint));
}

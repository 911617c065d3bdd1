//! Values that only the nodes of a pipeline are to see, and texts without them.
//!
//! What is told of a configuration (errors, logs, dead letters, drawings) passes
//! through [`Secrets::redact`] where it leaves the engine, so that no stage or
//! sink has to remember which of its settings is a secret.

mod names;
mod urls;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{ItemError, StageError};
pub(crate) use names::{is_secret_setting, is_secret_variable};

/// Shorter values are left alone: they stand in every other word.
const MIN_CHARS: usize = 4;

/// What stands in place of a secret that has no name.
const HIDDEN: &str = "***";

/// The secrets of a configuration: the values of variables such as `${API_TOKEN}`
/// and of settings such as `passwords`. Clones share them.
///
/// ```
/// use pagemill_pipeline::Secrets;
///
/// let mut secrets = Secrets::default();
/// secrets.add("tk-5b1f9e", "${API_TOKEN}");
/// let told = secrets.redact("no answer from https://me:pw@host/v1?q=1: `tk-5b1f9e` is refused");
/// assert_eq!(told, "no answer from https://***@host/v1?q=1: `${API_TOKEN}` is refused");
/// ```
#[derive(Clone, Default)]
pub struct Secrets {
    known: Arc<Vec<Known>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Known {
    /// The value, or a way to write it.
    value: String,
    /// What is shown in its place.
    shown: Arc<str>,
}

/// A part of a text that is not to be shown, and what is shown in its place.
type Found<'s> = (Range<usize>, &'s str);

impl Secrets {
    /// Adds a value, which [`redact`](Self::redact) replaces by `shown`. Values
    /// of less than four characters are not kept secret.
    pub fn add(&mut self, value: &str, shown: &str) {
        let json = serde_json::to_string(value).unwrap_or_default();
        let whole = [
            value.to_owned(),
            value.trim().to_owned(),
            // As messages quote it, and as URLs carry it.
            value.escape_debug().to_string(),
            json.trim_matches('"').to_owned(),
            urls::encode(value),
        ];
        // Of a key in many lines, a message may show one.
        let lines = value.lines().filter(|_| value.trim().contains('\n'));
        let lines = lines.map(|line| line.trim().to_owned());
        let shown: Arc<str> = shown.into();
        let known = Arc::make_mut(&mut self.known);
        for value in whole.into_iter().chain(lines) {
            let is_known = known.iter().any(|known| known.value == value);
            if value.chars().count() >= MIN_CHARS && !is_known {
                let shown = Arc::clone(&shown);
                known.push(Known { value, shown });
            }
        }
        // The longest first: one may be a part of another.
        known.sort_by_key(|known| std::cmp::Reverse(known.value.len()));
    }

    /// Adds what another configuration keeps secret.
    pub fn extend(&mut self, other: &Self) {
        for Known { value, shown } in other.known.iter() {
            self.add(value, shown);
        }
    }

    /// The text without secrets: each known value is replaced by what it is
    /// called. In URLs the part before the `@` and the values of `token=` and the
    /// like are hidden, known or not.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut found = self.find_known(text);
        found.extend(urls::find(text));
        let found = without_overlaps(found);
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let (mut told, mut end) = (String::with_capacity(text.len()), 0);
        for (place, shown) in found {
            told.push_str(&text[end..place.start]);
            told.push_str(shown);
            end = place.end;
        }
        told.push_str(&text[end..]);
        Cow::Owned(told)
    }

    /// The same without the rule for URLs: for texts that nobody reads.
    pub(crate) fn redact_known(&self, text: &str) -> String {
        let mut told = text.to_owned();
        for (place, shown) in without_overlaps(self.find_known(text)).into_iter().rev() {
            told.replace_range(place, shown);
        }
        told
    }

    /// The text of a configuration with `*` for each byte of a secret: what
    /// stands in it keeps its place.
    pub(crate) fn mask(&self, text: &str) -> String {
        let mut found = self.find_known(text);
        found.extend(urls::find(text));
        found.extend(names::find_values(text));
        let mut masked = text.to_owned();
        for (place, _) in without_overlaps(found).into_iter().rev() {
            let hidden = text[place.clone()].split('\n');
            let hidden: Vec<String> = hidden.map(|line| "*".repeat(line.len())).collect();
            masked.replace_range(place, &hidden.join("\n"));
        }
        masked
    }

    /// The error without secrets, and so the errors that caused it.
    pub(crate) fn redact_error(&self, error: StageError) -> StageError {
        match error {
            StageError::Cancelled => error,
            StageError::Fatal {
                problem,
                hint,
                source,
            } => StageError::Fatal {
                problem: self.redact(&problem).into_owned(),
                hint: self.redact(&hint).into_owned(),
                source: source.map(|source| self.redact_cause(source)),
            },
        }
    }

    /// The same of an item's error. The item's own name is none of its business.
    pub(crate) fn redact_item(&self, error: &ItemError) -> ItemError {
        ItemError {
            action: self.redact(&error.action).into_owned().into(),
            reason: self.redact(&error.reason).into_owned(),
            hint: error
                .hint
                .as_ref()
                .map(|hint| self.redact(hint).into_owned()),
        }
    }

    fn redact_cause(&self, cause: Cause) -> Cause {
        let mut texts = vec![cause.to_string()];
        let mut next = cause.source();
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        if texts
            .iter()
            .all(|text| matches!(self.redact(text), Cow::Borrowed(_)))
        {
            return cause;
        }
        let mut told: Option<Told> = None;
        for text in texts.iter().rev() {
            told = Some(Told {
                text: self.redact(text).into_owned(),
                source: told.map(Box::new),
            });
        }
        told.map_or(cause, |told| Box::new(told))
    }

    fn find_known<'s>(&'s self, text: &str) -> Vec<Found<'s>> {
        let mut found = Vec::new();
        for Known { value, shown } in self.known.iter() {
            let head = value.char_indices().nth(MIN_CHARS);
            let head = &value[..head.map_or(value.len(), |(place, _)| place)];
            for (start, _) in text.match_indices(head) {
                let rest = &text[start..];
                let alike = value.bytes().zip(rest.bytes());
                let n = alike.take_while(|(a, b)| a == b).count();
                // A message may have cut the value off.
                let is_cut = || {
                    let after = rest.get(n..);
                    after.is_some_and(|after| after.starts_with('…') || after.starts_with("..."))
                };
                if n == value.len() || is_cut() {
                    found.push((start..start + n, &**shown));
                }
            }
        }
        found
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.known.iter().map(|known| &known.shown);
        f.debug_set().entries(shown).finish()
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error of which only the text is left, without secrets.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Told {
    text: String,
    source: Option<Box<Told>>,
}

/// In the order of the text. What overlaps becomes one, under the name of what
/// begins first.
fn without_overlaps(mut found: Vec<Found<'_>>) -> Vec<Found<'_>> {
    found.sort_by_key(|(place, _)| (place.start, std::cmp::Reverse(place.end)));
    let mut whole: Vec<Found<'_>> = Vec::new();
    for (place, shown) in found {
        match whole.last_mut() {
            Some((last, _)) if place.start < last.end => last.end = last.end.max(place.end),
            _ => whole.push((place, shown)),
        }
    }
    whole
}

#[cfg(test)]
mod tests;

//! Errors, by fate: set one item aside, stop the run, or refuse a setting.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// Why one item is set aside. It becomes a dead letter and the run goes on.
///
/// ```
/// use pagemill_pipeline::{Item, ItemError};
///
/// let error = ItemError::new("resize", "the image has no pixels").hint("render the page again");
/// let item = Item::of_text("a.pdf", "").with_page(1);
/// assert_eq!(error.message(&item.label()), "cannot resize `a.pdf#1`: the image has no pixels");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemError {
    /// What the stage was asked to do, as a verb: `resize`.
    pub action: Cow<'static, str>,
    /// Why it could not.
    pub reason: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl ItemError {
    /// The stage could not do `action` because of `reason`.
    pub fn new(action: impl Into<Cow<'static, str>>, reason: impl fmt::Display) -> Self {
        Self {
            action: action.into(),
            reason: reason.to_string(),
            hint: None,
        }
    }

    /// The item lacks a field that the stage reads.
    pub fn missing(action: impl Into<Cow<'static, str>>, field: &str) -> Self {
        Self::new(action, format_args!("it has no `{field}`"))
            .hint("route such items past this stage, or put a stage before it that adds the field")
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The whole sentence, naming the item.
    pub fn message(&self, label: &dyn fmt::Display) -> String {
        format!("cannot {} `{label}`: {}", self.action, self.reason)
    }
}

/// What a run, or one node of it, cannot survive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The run is being cancelled; stop quietly.
    #[error("the run was cancelled")]
    Cancelled,
    /// The outside is broken, or we have a bug.
    #[error("{problem}")]
    Fatal {
        /// What is wrong.
        problem: String,
        /// What the user can do about it.
        hint: String,
        /// What caused it.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl StageError {
    /// Stops the run: what is wrong, and what the user can do.
    pub fn fatal(problem: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self::Fatal {
            problem: problem.to_string(),
            hint: hint.to_string(),
            source: None,
        }
    }

    /// The same with the error that caused it.
    pub fn caused(
        problem: impl fmt::Display,
        hint: impl fmt::Display,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Fatal {
            problem: problem.to_string(),
            hint: hint.to_string(),
            source: Some(source.into()),
        }
    }

    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Cancelled => None,
            Self::Fatal { hint, .. } => Some(hint),
        }
    }
}

/// A setting that cannot be used; the reader of the configuration adds its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct FieldError {
    /// The setting's name in the node's table.
    pub field: &'static str,
    /// What is wrong with its value.
    pub problem: String,
    /// What the user can write instead.
    pub hint: String,
}

impl FieldError {
    /// The value of `field` is wrong: how, and what to write instead.
    pub fn new(field: &'static str, problem: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self {
            field,
            problem: problem.to_string(),
            hint: hint.to_string(),
        }
    }
}

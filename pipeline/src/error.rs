//! Errors, by fate: set one item aside, stop the run, or refuse a setting.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use crate::code_places::without_code_places;
use crate::full_disk::is_disk_full;

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
            reason: without_code_places(&reason.to_string()).into_owned(),
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
            problem: without_code_places(&problem.to_string()).into_owned(),
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
            problem: without_code_places(&problem.to_string()).into_owned(),
            hint: hint.to_string(),
            source: Some(source.into()),
        }
    }

    /// The same for something that could not be written: where the disk is
    /// full, the error says so and its hint is to make room.
    pub fn cannot_store(
        problem: impl fmt::Display,
        hint: impl fmt::Display,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        if is_disk_full(&*source) {
            return Self::caused(
                format_args!("{problem}: the disk is full"),
                "make room and run again: it goes on where it stopped, and what was stored stays",
                source,
            );
        }
        Self::caused(problem, hint, source)
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_cannot_be_stored_on_a_full_disk_is_an_error_about_the_disk() {
        let cannot = |code| {
            let error = io::Error::from_raw_os_error(code);
            StageError::cannot_store("cannot write `a`", "make `a` writable", error)
        };
        let full = cannot(28);
        assert_eq!(full.to_string(), "cannot write `a`: the disk is full");
        assert!(
            full.hint()
                .is_some_and(|hint| hint.starts_with("make room"))
        );
        let denied = cannot(13);
        assert_eq!(denied.to_string(), "cannot write `a`");
        assert_eq!(denied.hint(), Some("make `a` writable"));
    }

    #[test]
    fn no_error_names_a_place_in_the_code() {
        let cause = "Not found: a.lance, /root/.cargo/registry/src/x/lance/src/io.rs:7:8";
        let error = ItemError::new("store", cause);
        assert_eq!(error.reason, "Not found: a.lance");
        let problem = format!("cannot open the table: {cause}");
        for error in [
            StageError::fatal(&problem, ""),
            StageError::caused(&problem, "", io::Error::other(cause)),
        ] {
            assert_eq!(
                error.to_string(),
                "cannot open the table: Not found: a.lance"
            );
        }
    }
}

//! Describes why a document or a page was not rendered.

use std::fmt;
use std::io;

use crate::cage::{Failure, Renderer, StartError};

/// Why a document, or one page of it, was not rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// No password opens the document.
    #[error("{}", describe_encrypted(*.n_tried))]
    Encrypted {
        /// Passwords that were tried.
        n_tried: usize,
    },
    /// The document is a PDF with nothing in it.
    #[error("it has no pages")]
    NoPages,
    /// The document alone would fill the worker.
    #[error("it has {} MB, and a worker process may use {memory_mb} MB", .n_bytes >> 20)]
    TooLarge {
        /// Size of the document.
        n_bytes: usize,
        /// The limit.
        memory_mb: u32,
    },
    /// The document has more pages to render than one may have.
    #[error("it has {n_pages} pages to render, and `max_pages` is {max_pages}")]
    TooManyPages {
        /// Pages that would be rendered.
        n_pages: u32,
        /// The limit.
        max_pages: u32,
    },
    /// Every renderer that may be used failed.
    #[error("{0}")]
    Failed(Attempts),
    /// The document used up its time.
    #[error("it took longer than {limit_s} s, so pages {from} to {to} are missing")]
    OutOfTime {
        /// The limit.
        limit_s: u32,
        /// First page that was not rendered.
        from: u32,
        /// Last page that was not rendered.
        to: u32,
    },
    /// Page after page failed.
    #[error("{n_failed} pages in a row failed, so pages {from} to {to} were not tried")]
    GaveUp {
        /// Pages that failed one after the other.
        n_failed: u32,
        /// First page that was not tried.
        from: u32,
        /// Last page that was not tried.
        to: u32,
    },
    /// No worker can be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// pdfium is asked for and is not there.
    #[error("libpdfium cannot be loaded: {reason}")]
    NoPdfium {
        /// What the loader says.
        reason: String,
    },
    /// The machine has no memory to share.
    #[error("cannot share memory with a worker process")]
    Memory(#[source] io::Error),
}

impl RenderError {
    /// Whether the next document would fail in the same way.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Start(_) | Self::NoPdfium { .. } | Self::Memory(_)
        )
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Encrypted { .. } => "add it to `passwords`",
            Self::NoPages => "there is nothing to do, unless the file was cut short",
            Self::TooLarge { .. } => "raise `limits.memory_mb`, or split the file",
            Self::TooManyPages { .. } => {
                "raise `max_pages`, or set `first_pages` to render only the first pages"
            }
            Self::OutOfTime { .. } => "raise `limits.document_s`, or set `first_pages`",
            Self::GaveUp { .. } => "the file is damaged: fetch or export it again",
            Self::Start(error) => error.hint(),
            Self::NoPdfium { .. } => {
                "set `pdfium` to the path of libpdfium.so, or `renderer = \"auto\"`"
            }
            Self::Memory(_) => "see whether the machine has memory left",
            Self::Failed(attempts) => attempts.hint(),
        }
    }
}

fn describe_encrypted(n_tried: usize) -> String {
    match n_tried {
        0 => "it needs a password".to_owned(),
        1 => "it needs a password, and the one in `passwords` is wrong".to_owned(),
        n => format!("it needs a password, and none of the {n} in `passwords` is right"),
    }
}

/// What each renderer came to.
#[derive(Debug, Default)]
pub struct Attempts(pub Vec<(Renderer, Failure)>);

impl Attempts {
    fn hint(&self) -> &'static str {
        let has = |is: fn(&Failure) -> bool| self.0.iter().any(|(_, failure)| is(failure));
        if has(|failure| matches!(failure, Failure::OutOfMemory { .. })) {
            "raise `limits.memory_mb`, unless the file is made to harm"
        } else if has(|failure| matches!(failure, Failure::Killed { .. })) {
            "the file may be made to harm: fetch or export it again"
        } else if has(|failure| matches!(failure, Failure::TimedOut { .. })) {
            "raise `limits.page_s`"
        } else {
            "the file is damaged: fetch or export it again"
        }
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (renderer, failure)) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", and " };
            write!(f, "{separator}{renderer} {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_renderers_are_named_with_their_reasons() {
        let error = RenderError::Failed(Attempts(vec![
            (Renderer::Pdfium, Failure::Killed { signal: 11 }),
            (Renderer::Hayro, Failure::TimedOut { limit_s: 20 }),
        ]));
        assert_eq!(
            error.to_string(),
            "pdfium was killed by signal 11 (segmentation fault), and hayro took longer than 20 s"
        );
        assert!(error.hint().contains("made to harm"));
        let memory = Failure::OutOfMemory { memory_mb: 64 };
        let error = RenderError::Failed(Attempts(vec![(Renderer::Hayro, memory)]));
        assert_eq!(error.to_string(), "hayro used more than 64 MB");
        assert!(error.hint().contains("limits.memory_mb"));
    }

    #[test]
    fn a_missing_password_is_told_from_a_wrong_one() {
        let message = |n_tried| RenderError::Encrypted { n_tried }.to_string();
        assert_eq!(message(0), "it needs a password");
        assert!(message(1).ends_with("the one in `passwords` is wrong"));
        assert!(message(2).ends_with("none of the 2 in `passwords` is right"));
    }
}

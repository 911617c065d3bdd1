//! Why a document or a page was not rendered.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::metadata::tidy;
use super::protocol::Renderer;

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
    #[error("it has {} MB, and a rendering process may use {memory_mb} MB", .n_bytes >> 20)]
    TooLarge {
        /// Size of the document.
        n_bytes: usize,
        /// The limit.
        memory_mb: u32,
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
    /// No rendering process can be started.
    #[error("cannot start a rendering process")]
    Start(#[source] io::Error),
    /// A rendering process was started and is none.
    #[error("the rendering process {0} before it was ready")]
    NotReady(Failure),
    /// pdfium is asked for and is not there.
    #[error("libpdfium cannot be loaded: {reason}")]
    NoPdfium {
        /// What the loader says.
        reason: String,
    },
    /// The machine has no memory to share.
    #[error("cannot share memory with a rendering process")]
    Memory(#[source] io::Error),
}

impl RenderError {
    /// Whether the next document would fail in the same way.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Start(_) | Self::NotReady(_) | Self::NoPdfium { .. } | Self::Memory(_)
        )
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Encrypted { .. } => "add it to `passwords`",
            Self::NoPages => "there is nothing to do, unless the file was cut short",
            Self::TooLarge { .. } => "raise `limits.memory_mb`, or split the file",
            Self::OutOfTime { .. } => "raise `limits.document_s`, or set `max_pages`",
            Self::GaveUp { .. } => "the file is damaged: fetch or export it again",
            Self::Start(_) => "see whether the machine has processes and memory left",
            Self::NotReady(_) => "call `run_worker_if_asked` first thing in `main`",
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
        if has(|failure| matches!(failure, Failure::Killed { .. })) {
            "it may need more memory (`limits.memory_mb`), or be made to harm"
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

/// What happened to one renderer at one document or page. Displays as the end
/// of a sentence that begins with the renderer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It could not, and says why.
    #[error("says that {reason}")]
    Refused {
        /// As a sentence.
        reason: String,
    },
    /// No password is right.
    #[error("asks for a password")]
    Encrypted,
    /// It finds no page in the document.
    #[error("finds no pages")]
    NoPages,
    /// It finds other pages than the renderer that the document was opened with.
    #[error("numbers its pages differently")]
    OtherPages,
    /// It was stopped.
    #[error("took longer than {limit_s} s")]
    TimedOut {
        /// The limit.
        limit_s: u32,
    },
    /// It crashed, or ran out of memory, which ends in the same way.
    #[error("was killed by signal {signal}{}", describe_signal(*.signal))]
    Killed {
        /// Number of the signal.
        signal: i32,
    },
    /// It ended by itself.
    #[error("ended with exit code {code}")]
    Exited {
        /// The code.
        code: i32,
    },
    /// It answered nonsense.
    #[error("answered with {problem}")]
    Garbled {
        /// What was wrong with the answer.
        problem: String,
    },
}

impl Failure {
    /// The renderer's own words, which may be anything.
    pub fn refused(reason: &str) -> Self {
        Self::Refused {
            reason: tidy(reason),
        }
    }

    /// What the end of a process amounts to.
    pub fn of_exit(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Killed { signal },
            None => Self::Exited {
                code: status.code().unwrap_or_default(),
            },
        }
    }
}

fn describe_signal(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        5 => " (trap)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic error)",
        9 => " (kill)",
        11 => " (segmentation fault)",
        31 => " (forbidden system call)",
        _ => "",
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

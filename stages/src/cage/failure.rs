//! Describes why a worker returned no page of a document.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::decode_image::picture::PictureError;

/// Longest title, author or reason that is passed on.
const MAX_CHARS: usize = 1000;

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
    /// A picture cannot be decoded.
    #[error("says that {0}")]
    Picture(PictureError),
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
    /// It asked for more memory than it may have.
    #[error("used more than {memory_mb} MB")]
    OutOfMemory {
        /// The limit.
        memory_mb: u32,
    },
    /// It crashed, or somebody ended it.
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
    pub(crate) fn refused(reason: &str) -> Self {
        Self::Refused {
            reason: tidy(reason),
        }
    }

    /// What the end of a process amounts to.
    pub(crate) fn of_exit(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Killed { signal },
            None => Self::Exited {
                code: status.code().unwrap_or_default(),
            },
        }
    }

    /// Whether a fresh process may do better: this one may have been ended from
    /// outside, or have been in a bad state since an earlier page.
    pub(crate) fn deserves_retry(&self) -> bool {
        const SIGXCPU: i32 = 24;
        const SIGSYS: i32 = 31;
        matches!(self, Self::Killed { signal } if ![SIGXCPU, SIGSYS].contains(signal))
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
        24 => " (out of processor time)",
        31 => " (forbidden system call)",
        _ => "",
    }
}

/// A text that a worker sent, as one line that is safe to store and to print:
/// no control characters, and not longer than anyone would read.
pub(crate) fn tidy(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_a_worker_becomes_one_tidy_line() {
        assert_eq!(tidy(" The\u{0}  Mill\n"), "The Mill");
        assert_eq!(tidy("\u{1b}[31mred"), "[31mred");
        assert_eq!(tidy(&"x".repeat(2000)).len(), MAX_CHARS);
    }

    #[test]
    fn what_came_from_outside_is_tried_again_and_what_was_forbidden_is_not() {
        let killed = |signal| Failure::Killed { signal };
        assert!(killed(9).deserves_retry() && killed(11).deserves_retry());
        assert!(!killed(31).deserves_retry() && !killed(24).deserves_retry());
        assert!(!Failure::TimedOut { limit_s: 1 }.deserves_retry());
    }
}

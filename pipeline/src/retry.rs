//! Decides what a node does with what fails: the engine's keys `on_error` and `retry`.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use serde::Deserialize;

/// No wait between two attempts is longer.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// How often, and after what time, a node tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts after the first one.
    pub attempts: usize,
    /// Wait before the second attempt; it doubles with each further one, and
    /// is stretched at random so that many do not try at once.
    pub base_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            base_ms: 200,
        }
    }
}

impl Retry {
    /// The waits between the attempts.
    pub(crate) fn waits(self) -> impl Iterator<Item = Duration> {
        ExponentialBuilder::default()
            .with_factor(2.0)
            .with_min_delay(Duration::from_millis(self.base_ms))
            .with_max_delay(LONGEST_WAIT)
            .with_max_times(self.attempts)
            .with_jitter()
            .build()
    }
}

/// What a node does with what fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The item is set aside, and the run goes on.
    #[default]
    DeadLetter,
    /// It is tried again, then set aside; what breaks the run is tried again too.
    Retry(Retry),
    /// The run stops.
    Stop,
}

impl OnError {
    /// The waits between attempts, if there are to be several.
    pub(crate) fn waits(self) -> impl Iterator<Item = Duration> {
        let retry = match self {
            Self::Retry(retry) => Some(retry),
            Self::DeadLetter | Self::Stop => None,
        };
        retry.into_iter().flat_map(Retry::waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_jitter_and_are_bounded() {
        let retry = Retry {
            attempts: 12,
            base_ms: 100,
        };
        let waits: Vec<Duration> = OnError::Retry(retry).waits().collect();
        assert_eq!(waits.len(), 12);
        for (number, wait) in waits.iter().enumerate() {
            let least = Duration::from_millis(100 << number).min(LONGEST_WAIT);
            assert!(*wait >= least && *wait <= 2 * LONGEST_WAIT, "{waits:?}");
        }
    }

    #[test]
    fn without_retry_there_is_one_attempt() {
        assert_eq!(OnError::DeadLetter.waits().count(), 0);
        assert_eq!(OnError::Stop.waits().count(), 0);
    }
}

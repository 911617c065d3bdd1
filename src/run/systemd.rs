//! Notifies systemd, where it started the program: readiness, state, that it is alive. Elsewhere
//! nothing happens.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use super::Board;
use crate::progress;

/// How often the state is told.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The documents flow.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is read again; [`ready`] follows.
pub(super) fn reloading() {
    // Newer versions of systemd want to know when.
    let now = NotifyState::monotonic_usec_now().ok();
    let states: Vec<NotifyState<'_>> = std::iter::once(NotifyState::Reloading).chain(now).collect();
    tell(&states);
}

/// What is under way is finished, and no more.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells how far the runs are, and that the program is alive, until the future
/// is dropped.
pub(super) async fn keep_telling(board: Board) -> Infallible {
    let watchdog = async {
        let Some(limit) = sd_notify::watchdog_enabled() else {
            return std::future::pending().await;
        };
        let mut ticks = interval(limit / 2);
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    };
    let status = async {
        let mut ticks = interval(STATUS_EVERY);
        loop {
            ticks.tick().await;
            let lines: Vec<String> = board
                .see()
                .iter()
                .map(|seen| format!("{}: {}", seen.pipeline, progress::message(seen)))
                .collect();
            if !lines.is_empty() {
                tell(&[NotifyState::Status(&lines.join("; "))]);
            }
        }
    };
    tokio::select! {
        never = watchdog => never,
        never = status => never,
    }
}

fn interval(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn tell(states: &[NotifyState<'_>]) {
    // Without the socket this does nothing.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

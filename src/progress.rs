//! Progress on a terminal; silence in a pipe.

use std::convert::Infallible;
use std::io::{self, IsTerminal as _, Write};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use pagemill::RunControl;
use pagemill::pipeline::Snapshot;

/// How often the line is drawn anew.
const TICK: Duration = Duration::from_millis(200);

/// The bar that log lines must not tear.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows how far the run is until the future is dropped.
pub(crate) async fn show(control: RunControl) -> Infallible {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let bar = ProgressBar::no_length();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {wide_bar} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    let mut snapshots = pin!(control.snapshots(TICK));
    while let Some(now) = snapshots.next().await {
        if now.documents_expected > 0 {
            bar.set_length(now.documents_expected);
        }
        bar.set_position(settled(&now));
        bar.set_message(message(&now));
        bar.tick();
    }
    std::future::pending().await
}

/// Takes the line away.
pub(crate) fn clear() {
    if let Some(bar) = BAR.lock().unwrap_or_else(PoisonError::into_inner).take() {
        bar.finish_and_clear();
    }
}

/// Documents that need no more work.
fn settled(now: &Snapshot) -> u64 {
    now.documents_done + now.documents_set_aside + now.documents_skipped
}

/// `12/320 documents, 1,204 items stored, 3 dead letters, 40 seconds left`
fn message(now: &Snapshot) -> String {
    let mut message = format!("{}", settled(now));
    if now.documents_expected > 0 {
        message += &format!("/{}", now.documents_expected);
    }
    message += &format!(" documents, {} items stored", now.items_stored);
    if now.dead_letters > 0 {
        message += &format!(", {} dead letters", now.dead_letters);
    }
    if let Some(left) = seconds_left(now) {
        message += &format!(", {:#} left", HumanDuration(Duration::from_secs_f64(left)));
    }
    message
}

/// What is left at the speed so far, counted in documents.
fn seconds_left(now: &Snapshot) -> Option<f64> {
    let done = settled(now) as f64;
    let left = now.documents_expected as f64 - done;
    (done > 0.0 && left > 0.0).then(|| now.elapsed_s / done * left)
}

/// Writes log lines above the progress line.
#[derive(Default)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || io::stderr().write_all(bytes);
        match bar {
            Some(bar) => bar.suspend(write)?,
            None => write()?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_the_run_is_and_what_is_left() {
        let now = Snapshot {
            elapsed_s: 10.0,
            documents_expected: 40,
            documents_done: 8,
            documents_skipped: 0,
            documents_set_aside: 2,
            items_stored: 70,
            dead_letters: 2,
            nodes: Vec::new(),
        };
        assert_eq!(
            message(&now),
            "10/40 documents, 70 items stored, 2 dead letters, 30s left"
        );
    }
}

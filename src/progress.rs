//! Progress on a terminal; silence in a pipe.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use pagemill::pipeline::Snapshot;

use crate::run::{Board, Seen};

/// How often the lines are drawn anew.
const TICK: Duration = Duration::from_millis(200);

/// The lines that log and reports must not tear.
static LINES: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Whether somebody looks on.
pub(crate) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Shows how far the runs are until the future is dropped: a line for each.
pub(crate) async fn show(board: Board) -> Infallible {
    if !is_terminal() {
        return std::future::pending().await;
    }
    let lines = MultiProgress::new();
    *LINES.lock().unwrap_or_else(PoisonError::into_inner) = Some(lines.clone());
    let mut bars: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let seen = board.see();
        let has_names = seen.len() > 1;
        for seen in seen {
            if !seen.is_running {
                // Its report stands above.
                if let Some(bar) = bars.remove(&seen.pipeline) {
                    bar.finish_and_clear();
                    lines.remove(&bar);
                }
                continue;
            }
            let bar = bars
                .entry(seen.pipeline.clone())
                .or_insert_with(|| lines.add(new_bar()));
            if has_names {
                bar.set_prefix(format!("{} ", seen.pipeline));
            }
            if seen.now.documents_expected > 0 {
                bar.set_length(seen.now.documents_expected);
            }
            bar.set_position(settled(&seen.now));
            bar.set_message(message(&seen));
            bar.tick();
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix}{wide_bar} {msg}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Takes the lines away.
pub(crate) fn clear() {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(lines) = lines {
        // A terminal that is gone needs no clearing.
        let _ = lines.clear();
    }
}

/// Writes something while the lines are away.
pub(crate) fn above<T>(write: impl FnOnce() -> T) -> T {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match lines {
        Some(lines) => lines.suspend(write),
        None => write(),
    }
}

/// Tells the user something on standard error.
pub(crate) fn tell(text: &str) {
    // Nothing is left to do if it cannot be printed.
    let _ = above(|| writeln!(io::stderr().lock(), "{text}"));
}

/// Documents that need no more work.
fn settled(now: &Snapshot) -> u64 {
    now.documents_done + now.documents_set_aside + now.documents_skipped
}

/// `12/320 documents, 1204 items stored, 3 dead letters, 40s left`
pub(crate) fn message(seen: &Seen) -> String {
    let now = &seen.now;
    let mut message = format!("{}", settled(now));
    if now.documents_expected > 0 {
        message += &format!("/{}", now.documents_expected);
    }
    message += &format!(" documents, {} items stored", now.items_stored);
    if now.documents_removed > 0 {
        message += &format!(", {} removed", now.documents_removed);
    }
    if now.dead_letters > 0 {
        message += &format!(", {} dead letters", now.dead_letters);
    }
    if !seen.is_running {
        message += ", ended";
    } else if seen.is_continuous {
        // More may come at any time: there is no end to count down to.
        match now.documents_under_way {
            0 if settled(now) >= now.documents_expected => message += ", waiting",
            n => message += &format!(", {n} under way"),
        }
    } else if let Some(left) = seconds_left(now) {
        message += &format!(", {:#} left", HumanDuration(Duration::from_secs_f64(left)));
    }
    message
}

/// What is left at the speed so far, counted in documents that took work.
fn seconds_left(now: &Snapshot) -> Option<f64> {
    let worked = (now.documents_done + now.documents_set_aside) as f64;
    let left = now.documents_expected as f64 - settled(now) as f64;
    (worked > 0.0 && left > 0.0).then(|| now.elapsed_s / worked * left)
}

/// Writes log lines above the progress lines.
#[derive(Default)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Each call is one event: a secret is not cut in two.
        let line = crate::secrets::without(&String::from_utf8_lossy(bytes));
        // A terminal that was closed must not break the run.
        let _ = above(|| io::stderr().write_all(line.as_bytes()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(is_continuous: bool) -> Seen {
        Seen {
            pipeline: "p".into(),
            is_continuous,
            is_running: true,
            now: Snapshot {
                elapsed_s: 10.0,
                documents_expected: 40,
                documents_done: 8,
                documents_skipped: 0,
                documents_set_aside: 2,
                documents_removed: 0,
                documents_under_way: 1,
                pages_resumed: 0,
                items_stored: 70,
                dead_letters: 2,
                dead_letters_before: 0,
                nodes: Vec::new(),
                models: Vec::new(),
            },
        }
    }

    #[test]
    fn the_line_says_how_far_the_run_is_and_what_is_left() {
        assert_eq!(
            message(&seen(false)),
            "10/40 documents, 70 items stored, 2 dead letters, 30s left"
        );
    }

    #[test]
    fn documents_that_took_no_work_fill_the_bar_and_do_not_hasten_the_end() {
        let mut seen = seen(false);
        seen.now.documents_skipped = 20;
        assert_eq!(settled(&seen.now), 30);
        let message = message(&seen);
        assert!(message.ends_with(", 10s left"), "{message}");
    }

    #[test]
    fn a_run_without_end_is_waiting_when_everything_is_settled() {
        let mut seen = seen(true);
        let under_way = "10/40 documents, 70 items stored, 2 dead letters, 1 under way";
        assert_eq!(message(&seen), under_way);
        seen.now.documents_expected = 10;
        seen.now.documents_under_way = 0;
        assert!(message(&seen).ends_with(", waiting"), "{}", message(&seen));
    }
}

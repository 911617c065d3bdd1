//! Progress on a terminal; silence in a pipe.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use pagemill::pipeline::{Snapshot, printable_line, without_code_places};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

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
            let (position, length) = bar_of(&seen.now);
            if length > 0 {
                bar.set_length(length);
            }
            bar.set_position(position);
            bar.set_message(message(&seen));
            bar.tick();
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix}{bar:20} {wide_msg}");
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

/// How far the bar is, and its length: a document under way fills its part of
/// the bar page by page.
fn bar_of(now: &Snapshot) -> (u64, u64) {
    const PER_DOCUMENT: u64 = 1000;
    let in_part = (now.documents_in_part * PER_DOCUMENT as f64) as u64;
    let length = now.documents_expected * PER_DOCUMENT;
    let position = now.documents_settled() * PER_DOCUMENT + in_part;
    (position.min(length), length)
}

/// What matters most comes first: a narrow terminal cuts the end off.
/// `12/320 documents, 412/~9000 pages, 40m left, 3.2 pages/s, 1204 rows (870 stored), 3 dead letters`
pub(crate) fn message(seen: &Seen) -> String {
    let now = &seen.now;
    let mut message = format!("{}", now.documents_settled());
    if now.documents_expected > 0 {
        message += &format!("/{}", now.documents_expected);
    }
    message += &format!(" documents{}", pages(now, seen.is_continuous));
    if !seen.is_running {
        message += ", ended";
    } else if is_idle(seen) {
        message += ", waiting";
    } else if seen.is_continuous {
        // More may come at any time: there is no end to count down to.
        message += &format!(", {} under way", now.documents_under_way);
    } else if let Some(left) = now.seconds_left().and_then(duration) {
        message += &format!(", {:#} left", HumanDuration(left));
    }
    if seen.is_running && !is_idle(seen) && now.pages_per_s > 0.0 {
        message += &format!(", {} pages/s", rate(now.pages_per_s));
    }
    message += &if now.items_received > now.items_stored {
        format!(
            ", {} rows ({} stored)",
            now.items_received, now.items_stored
        )
    } else {
        format!(", {} rows stored", now.items_stored)
    };
    if now.documents_removed > 0 {
        message += &format!(", {} removed", now.documents_removed);
    }
    if now.dead_letters > 0 {
        message += &format!(", {} dead letters", now.dead_letters);
    }
    message
}

/// Whether the run waits for what may come.
fn is_idle(seen: &Seen) -> bool {
    let now = &seen.now;
    let is_settled = now.documents_settled() >= now.documents_expected;
    seen.is_continuous && now.documents_under_way == 0 && is_settled
}

/// `, 412/3000 pages`; the total of documents that wait is an estimate: `, 412/~9000 pages`.
fn pages(now: &Snapshot, is_continuous: bool) -> String {
    if now.pages_expected <= now.documents_counted {
        return String::new(); // Texts and single images: the documents are the pages.
    }
    let estimated = now.pages_estimated().unwrap_or_default();
    let total = if is_continuous || now.knows_all_pages() || now.documents_expected == 0 {
        now.pages_expected.to_string()
    } else {
        format!("~{}", in_two_digits(estimated))
    };
    format!(", {}/{total} pages", now.pages_done)
}

/// An estimate shows no more digits than it deserves.
fn in_two_digits(number: f64) -> u64 {
    let unit = 10_f64.powf(number.max(1.0).log10().floor() - 1.0).max(1.0);
    ((number / unit).round() * unit) as u64
}

fn rate(per_s: f64) -> String {
    if per_s < 10.0 {
        format!("{per_s:.1}")
    } else {
        format!("{per_s:.0}")
    }
}

/// `None` for what no clock can hold.
fn duration(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// Formats the fields of a log line. They may name files: what a terminal would
/// obey is escaped, an event stays in its line, and no place in source code is shown.
pub(crate) fn log_fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    let fields = debug_fn(|writer: &mut Writer<'_>, field, value| {
        let value = format!("{value:?}");
        let value = without_code_places(&value);
        match field.name() {
            "message" => write!(writer, "{}", printable_line(&value)),
            name => write!(writer, "{name}={}", printable_line(&value)),
        }
    });
    fields.delimited(" ")
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
                documents_unfinished: 0,
                pages_unfinished: 0,
                documents_refilled: 0,
                documents_under_way: 1,
                documents_counted: 10,
                documents_in_part: 0.0,
                pages_expected: 10,
                pages_done: 10,
                pages_per_s: 1.0,
                pages_resumed: 0,
                items_received: 70,
                items_stored: 70,
                dead_letters: 2,
                dead_letters_before: 0,
                nodes: Vec::new(),
                models: Vec::new(),
            },
        }
    }

    #[test]
    fn the_line_shows_how_far_the_run_is_and_what_is_left() {
        assert_eq!(
            message(&seen(false)),
            "10/40 documents, 30s left, 1.0 pages/s, 70 rows stored, 2 dead letters"
        );
    }

    #[test]
    fn a_long_document_shows_its_pages_and_rows_before_any_is_stored() {
        let mut seen = seen(false);
        seen.now = Snapshot {
            documents_expected: 1,
            documents_done: 0,
            documents_set_aside: 0,
            documents_counted: 1,
            documents_in_part: 0.25,
            pages_expected: 3000,
            pages_done: 750,
            pages_per_s: 2.5,
            items_received: 1500,
            items_stored: 0,
            dead_letters: 0,
            ..seen.now
        };
        let line = "0/1 documents, 750/3000 pages, 15m left, 2.5 pages/s, 1500 rows (0 stored)";
        assert_eq!(message(&seen), line);
        assert_eq!(bar_of(&seen.now), (250, 1000));
        // Of nine more documents nobody knows the pages yet.
        seen.now.documents_expected = 10;
        let line = message(&seen);
        assert!(line.contains(", 750/~30000 pages, 3h left"), "{line}");
    }

    #[test]
    fn documents_that_took_no_work_fill_the_bar_and_do_not_hasten_the_end() {
        let mut seen = seen(false);
        seen.now.documents_skipped = 20;
        assert_eq!(bar_of(&seen.now), (30_000, 40_000));
        let message = message(&seen);
        assert!(message.contains(", 10s left"), "{message}");
    }

    #[test]
    fn a_run_without_end_is_waiting_when_everything_is_settled() {
        let mut seen = seen(true);
        let under_way = "10/40 documents, 1 under way, 1.0 pages/s, 70 rows stored, 2 dead letters";
        assert_eq!(message(&seen), under_way);
        seen.now.documents_expected = 10;
        seen.now.documents_under_way = 0;
        let waiting = "10/10 documents, waiting, 70 rows stored, 2 dead letters";
        assert_eq!(message(&seen), waiting);
    }

    #[test]
    fn estimates_and_odd_numbers_are_shown_in_a_few_digits() {
        let numbers = [0.0, 0.4, 7.4, 99.6, 123.0, 98_765.0];
        assert_eq!(numbers.map(in_two_digits), [0, 0, 7, 100, 120, 99_000]);
        assert_eq!([3.25, 160.4].map(rate), ["3.2", "160"]);
        assert_eq!([f64::INFINITY, f64::NAN, 1e300].map(duration), [None; 3]);
    }

    #[test]
    fn a_log_line_neither_obeys_nor_breaks_at_what_it_names() {
        use std::sync::Arc;

        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(log_fields())
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .finish();
        tracing::subscriber::with_default(log, || {
            let hint = Some("mend `\u{1b}[2J`");
            tracing::warn!(
                node = "files",
                hint,
                "cannot read `{}`",
                "a\u{1b}[31m\nb.pdf"
            );
        });
        let line = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(
            line.contains(r"cannot read `a\u{1b}[31m\nb.pdf`"),
            "{line:?}"
        );
        assert!(!line.contains('\u{1b}'), "{line:?}");
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
    }
}

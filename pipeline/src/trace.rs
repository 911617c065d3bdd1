//! A trace of a run: who worked, starved and was blocked when, in the Chrome
//! trace event format, which `chrome://tracing` and Perfetto open.
//!
//! Each worker is a lane. The spans of a lane do not overlap; what two lanes do
//! at one time is drawn one above the other.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

/// Waits that are shorter are not drawn: there may be millions of them.
const SHORTEST_WAIT: Duration = Duration::from_micros(50);

/// Writes the trace of one or more runs to a file. Clones write to the same one.
#[derive(Debug, Clone)]
pub struct Trace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Mutex<BufWriter<File>>,
    began: Instant,
    n_lanes: AtomicU32,
    /// Each is drawn as a process.
    pipelines: Mutex<Vec<String>>,
    /// Why an event could not be written, first of all.
    failed: Mutex<Option<io::Error>>,
}

impl Trace {
    /// Begins a trace in a new file at `path`.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(b"[\n")?;
        Ok(Self {
            shared: Arc::new(Shared {
                file: Mutex::new(file),
                began: Instant::now(),
                n_lanes: AtomicU32::new(0),
                pipelines: Mutex::default(),
                failed: Mutex::default(),
            }),
        })
    }

    /// Completes the file. Without it the trace still opens, less its last spans.
    ///
    /// # Errors
    /// A disk that is full, at any time since the beginning.
    pub fn finish(&self) -> io::Result<()> {
        let failed = self.failed().take();
        let mut file = self.lock();
        // The list ends with an event, so that each of the others can end with a comma.
        let end =
            json!({ "ph": "i", "name": "end", "pid": 1, "tid": 0, "s": "g", "ts": self.now() });
        writeln!(file, "{end}\n]")?;
        file.flush()?;
        failed.map_or(Ok(()), Err)
    }

    fn failed(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.shared
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BufWriter<File>> {
        self.shared
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> f64 {
        micros(self.shared.began.elapsed())
    }

    /// The number of a pipeline, from 1.
    fn pipeline(&self, name: &str) -> usize {
        let mut pipelines = self
            .shared
            .pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = pipelines.iter().position(|known| known == name) {
            return place + 1;
        }
        pipelines.push(name.to_owned());
        let number = pipelines.len();
        self.write(&json!({
            "ph": "M", "name": "process_name", "pid": number, "args": { "name": name }
        }));
        number
    }

    fn write(&self, event: &serde_json::Value) {
        if let Err(error) = writeln!(self.lock(), "{event},") {
            // The run matters more than its trace; `finish` returns the error.
            self.failed().get_or_insert(error);
        }
    }
}

/// One row of the picture: a worker, a source or a sink. Without a trace it
/// does nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    drawn: Option<Drawn>,
}

#[derive(Debug, Clone)]
struct Drawn {
    trace: Trace,
    pipeline: usize,
    number: u32,
}

impl Lane {
    pub(crate) fn new(trace: Option<&Trace>, pipeline: &str, name: &str) -> Self {
        let drawn = trace.map(|trace| {
            let pipeline = trace.pipeline(pipeline);
            let number = trace.shared.n_lanes.fetch_add(1, Ordering::Relaxed);
            trace.write(&json!({
                "ph": "M", "name": "thread_name", "pid": pipeline, "tid": number,
                "args": { "name": name }
            }));
            trace.write(&json!({
                "ph": "M", "name": "thread_sort_index", "pid": pipeline, "tid": number,
                "args": { "sort_index": number }
            }));
            Drawn {
                trace: trace.clone(),
                pipeline,
                number,
            }
        });
        Self { drawn }
    }

    /// Draws a batch of `n_items`, from `since` until now; for `blocked` of that
    /// time it waited for room.
    pub(crate) fn work(&self, name: &str, since: Instant, n_items: usize, blocked: Duration) {
        let Some(drawn) = &self.drawn else { return };
        let began = since.saturating_duration_since(drawn.trace.shared.began);
        drawn.trace.write(&json!({
            "ph": "X", "name": name, "cat": "busy", "pid": drawn.pipeline, "tid": drawn.number,
            "ts": micros(began), "dur": micros(since.elapsed()),
            "args": { "items": n_items, "blocked_ms": micros(blocked) / 1e3 },
        }));
    }

    /// Draws a wait that ended now.
    pub(crate) fn wait(&self, name: &str, time: Duration) {
        let Some(drawn) = self.drawn.as_ref().filter(|_| time >= SHORTEST_WAIT) else {
            return;
        };
        let end = drawn.trace.shared.began.elapsed();
        drawn.trace.write(&json!({
            "ph": "X", "name": name, "cat": "waiting", "pid": drawn.pipeline, "tid": drawn.number,
            "ts": micros(end.saturating_sub(time)), "dur": micros(time),
        }));
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_a_list_of_events_with_a_named_lane_a_worker() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("trace.json");
        let trace = Trace::create(&path).expect("made");
        let lane = Lane::new(Some(&trace), "pages", "render-0");
        lane.work("render", Instant::now(), 3, Duration::ZERO);
        lane.wait("starved", Duration::from_millis(2));
        lane.wait("blocked", Duration::from_nanos(2));
        trace.finish().expect("written");
        let text = std::fs::read_to_string(path).expect("readable");
        let events: Vec<serde_json::Value> = serde_json::from_str(&text).expect("valid JSON");
        let names: Vec<&str> = events
            .iter()
            .filter_map(|event| event["name"].as_str())
            .collect();
        let expected = ["process_name", "thread_name", "thread_sort_index"];
        assert_eq!(names[..3], expected);
        assert_eq!(names[3..], ["render", "starved", "end"]);
        assert_eq!(events[3]["args"]["items"], 3);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_trace_on_a_full_disk_fails_with_the_error_of_the_disk() {
        let trace = Trace::create(Path::new("/dev/full")).expect("it opens");
        let lane = Lane::new(Some(&trace), "pages", "render-0");
        for _ in 0..1000 {
            lane.work("render", Instant::now(), 3, Duration::ZERO);
        }
        let error = trace.finish().expect_err("nothing was written");
        assert!(crate::is_disk_full(&error), "{error}");
    }
}

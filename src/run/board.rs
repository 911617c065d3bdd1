//! The runs of this process, as those see them who only look on: the progress
//! line, the metrics, systemd.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagemill::RunControl;
use pagemill::pipeline::Snapshot;

/// The runs of this process. Clones show the same ones.
#[derive(Clone, Default)]
pub(crate) struct Board {
    entries: Arc<Mutex<Vec<Entry>>>,
}

struct Entry {
    pipeline: String,
    is_continuous: bool,
    state: State,
}

enum State {
    Running(RunControl),
    /// How far it came. Its control is let go: it holds the ledger.
    Ended(Option<Snapshot>),
}

/// One run as it is now.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) pipeline: String,
    /// Whether it goes on until it is asked to stop.
    pub(crate) is_continuous: bool,
    pub(crate) is_running: bool,
    pub(crate) now: Snapshot,
}

impl Board {
    /// A run begins, in the place of an earlier one of the same pipeline.
    pub(super) fn begin(&self, pipeline: &str, is_continuous: bool, control: RunControl) {
        let entry = Entry {
            pipeline: pipeline.to_owned(),
            is_continuous,
            state: State::Running(control),
        };
        let mut entries = self.lock();
        match entries.iter_mut().find(|old| old.pipeline == pipeline) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    }

    pub(super) fn end(&self, pipeline: &str, last: Option<Snapshot>) {
        let mut entries = self.lock();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.pipeline == pipeline) {
            entry.state = State::Ended(last);
        }
    }

    /// Every run that has begun, in the order of beginning.
    pub(crate) fn see(&self) -> Vec<Seen> {
        let entries = self.lock();
        let seen = entries.iter().filter_map(|entry| {
            let (is_running, now) = match &entry.state {
                State::Running(control) => (true, control.snapshot()?),
                State::Ended(last) => (false, last.clone()?),
            };
            Some(Seen {
                pipeline: entry.pipeline.clone(),
                is_continuous: entry.is_continuous,
                is_running,
                now,
            })
        });
        seen.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

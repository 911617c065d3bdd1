//! Something that goes wrong once, at a numbered step of a run.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::lock;
use crate::StageError;

/// What goes wrong.
pub(crate) enum Strike {
    Panic,
    /// An error that the node cannot survive.
    Break,
    /// This is called, and the run goes on until it is stopped from outside.
    Call(Box<dyn Fn() + Send + Sync>),
}

/// Counts the steps of a run, and strikes at one of them.
pub(crate) struct Faults {
    n_crossed: AtomicU64,
    /// Counted from 0.
    at: u64,
    strike: Strike,
    /// The step at which it has struck.
    struck_at: Mutex<Option<&'static str>>,
    pub(crate) has_struck: Notify,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(u64::MAX, Strike::Panic)
    }
}

impl Faults {
    pub(crate) fn new(at: u64, strike: Strike) -> Self {
        Self {
            n_crossed: AtomicU64::new(0),
            at,
            strike,
            struck_at: Mutex::default(),
            has_struck: Notify::new(),
        }
    }

    /// A step of the run.
    pub(crate) fn cross(&self, step: &'static str) -> Result<(), StageError> {
        if self.n_crossed.fetch_add(1, Ordering::SeqCst) != self.at {
            return Ok(());
        }
        *lock(&self.struck_at) = Some(step);
        match &self.strike {
            // It does not call the hook that prints it.
            Strike::Panic => resume_unwind(Box::new("struck")),
            Strike::Break => return Err(StageError::fatal("struck", "strike no more")),
            Strike::Call(call) => call(),
        }
        self.has_struck.notify_one();
        Ok(())
    }

    pub(crate) fn struck_at(&self) -> Option<&'static str> {
        *lock(&self.struck_at)
    }
}

//! Stops a run: asks its sources to end (drain), or every node (cancel).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::StageError;

/// How long a blocked thread sleeps before it looks whether the run was cancelled.
pub(crate) const CANCEL_CHECK: Duration = Duration::from_millis(50);

/// Asks a run to stop: shared by every edge and node of it.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    draining: AtomicBool,
    cancelled: AtomicBool,
    changed: Notify,
    sleepers: Mutex<()>,
    woken: Condvar,
}

impl Stop {
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.drain();
        self.woken.notify_all();
    }

    /// Sleeps on this thread, at most until the run is cancelled.
    ///
    /// # Errors
    /// [`StageError::Cancelled`].
    pub(crate) fn sleep(&self, time: Duration) -> Result<(), StageError> {
        let deadline = Instant::now() + time;
        let mut guard = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_cancelled() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let woken = self.woken.wait_timeout(guard, left.min(CANCEL_CHECK));
            guard = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Err(StageError::Cancelled)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Waits until the run drains or is cancelled.
    pub(crate) async fn draining(&self) {
        self.wait_until(|| self.is_draining()).await;
    }

    /// Waits until the run is cancelled.
    pub(crate) async fn cancelled(&self) {
        self.wait_until(|| self.is_cancelled()).await;
    }

    async fn wait_until(&self, reached: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if reached() {
                return;
            }
            changed.await;
        }
    }
}

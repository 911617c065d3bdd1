//! Listens for the signals that stop or reload a run.

use std::fs::File;
use std::io::{self, IsTerminal as _};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a process gets that writes beyond its limit on the size of files, on
/// Linux and macOS.
const SIGXFSZ: i32 = 25;

/// Something that is asked of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To come to its end, or to stop at once if it was asked before.
    Stop,
    /// To read the configuration again.
    Reload,
}

/// Listens for signals.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// Listened to so that it does not end the program: a file that may not
    /// grow is then an error like a full disk.
    _file_too_large: Signal,
    /// Whether somebody sat before it when it began.
    has_terminal: bool,
}

impl Signals {
    /// From now on the signals no longer end the program.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            _file_too_large: signal(SignalKind::from_raw(SIGXFSZ))?,
            has_terminal: io::stdin().is_terminal(),
        })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.hang_up.recv() => self.hung_up(),
        }
    }

    /// Whoever closes a terminal means to end what runs in it; others ask by
    /// the same signal to read the configuration again.
    fn hung_up(&self) -> Asked {
        if self.has_terminal && File::open("/dev/tty").is_err() {
            Asked::Stop
        } else {
            Asked::Reload
        }
    }
}

//! Starts workers.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::child::ChildProcess;
use super::failure::Failure;
use super::last_words::LastWords;
use super::worker::{self, WORKER_ARGUMENT};

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The executable; its `main` calls
    /// [`run_worker_if_asked`](super::run_worker_if_asked).
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its whole environment: nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for WorkerCommand {
    /// The executable that is running now, even if its file was replaced since.
    fn default() -> Self {
        // The worker gets no secrets (tokens, keys) from the environment, but
        // the executable may not even load without this.
        let library_path = OsString::from("LD_LIBRARY_PATH");
        let environment = std::env::var_os(&library_path).map(|path| (library_path, path));
        Self {
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec![WORKER_ARGUMENT.into()],
            environment: environment.into_iter().collect(),
        }
    }
}

/// Why no worker can be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine starts no process.
    #[error("cannot start a worker process")]
    Start(#[source] io::Error),
    /// A process was started and is no worker.
    #[error("the worker process {0} before it was ready")]
    NotReady(Failure),
    /// The machine has no memory to share.
    #[error("cannot share memory with a worker process")]
    Memory(#[source] io::Error),
}

impl StartError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Start(_) => "see whether the machine has processes and memory left",
            Self::NotReady(_) => "call `run_worker_if_asked` first thing in `main`",
            Self::Memory(_) => "see whether the machine has memory left",
        }
    }
}

pub(super) fn start_process(
    worker: &WorkerCommand,
    theirs: UnixStream,
) -> Result<ChildProcess, StartError> {
    // A worker that gets here runs a program which never asked whether it
    // is one; starting another would go on forever.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == WORKER_ARGUMENT)
    {
        return Err(StartError::NotReady(Failure::Garbled {
            problem: "the program's own work".to_owned(),
        }));
    }
    let (last_words, stderr) = LastWords::pair().map_err(StartError::Start)?;
    let WorkerCommand {
        program,
        arguments,
        environment,
    } = worker;
    let child = Command::new(program)
        .arg0("pagemill-worker")
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        // A group of its own: Ctrl-C in a terminal drains the run, and what
        // is drained must still be rendered.
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr))
        .spawn()
        .map_err(StartError::Start)?;
    Ok(ChildProcess::new(child, last_words))
}

/// Serves in this program: nothing holds the parsers. The thread ends when its
/// socket is closed.
pub(super) fn start_thread(theirs: UnixStream) -> io::Result<()> {
    // As much as a process's first thread has.
    const STACK_BYTES: usize = 8 << 20;
    std::thread::Builder::new()
        .name("pagemill-worker".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Its parent finds the socket closed, whatever the reason.
            let _ = worker::serve(theirs, &mut |_, _| {});
        })
        .map(drop)
}

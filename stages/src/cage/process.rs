//! The parent's handle on one worker.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::child::ChildProcess;
use super::confine::{Isolation, Protections};
use super::failure::{Failure, tidy};
use super::last_words::LastWords;
use super::limits::DocumentLimits;
use super::protocol::{
    ChannelError, Metadata, Opened, PageLimits, PageProblem, PageReply, Reader, Refusal, Reply,
    Request, receive, send,
};
use super::shared::{PageBuffer, SealedDocument};
use super::worker::{self, WORKER_ARGUMENT};

/// Time for a process to load its libraries and report.
const START_LIMIT_S: u32 = 20;

/// Time for reading metadata, which takes a millisecond if nothing is wrong.
const METADATA_LIMIT_S: u32 = 5;

/// While a page takes longer than this, its worker's memory is looked at now and then.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// Time for an answer that is fetched after its time was over.
const GRACE: Duration = Duration::from_secs(1);

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

/// What a worker may use and is asked for.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// How it is started.
    pub worker: WorkerCommand,
    /// What it gives up.
    pub isolation: Isolation,
    /// Where libpdfium is.
    pub pdfium: Option<PathBuf>,
    /// Longer side of its images.
    pub long_side_px: u32,
    /// Room for the pixels of one image.
    pub page_buffer_bytes: usize,
    /// Whether it reads text as well.
    pub words: bool,
    /// What a document may use.
    pub limits: DocumentLimits,
    /// Memory for anything but what the limits are about.
    pub overhead_mb: u32,
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

/// What holds the workers of this program on this machine: one is started, and
/// says.
///
/// # Errors
/// No worker can be started.
pub fn protections(worker: &WorkerCommand) -> Result<Protections, StartError> {
    let settings = ProcessSettings {
        worker: worker.clone(),
        isolation: Isolation::Cage,
        pdfium: None,
        long_side_px: 1,
        page_buffer_bytes: 4,
        words: false,
        limits: DocumentLimits::default(),
        overhead_mb: 0,
    };
    Ok(WorkerProcess::start(&settings)?.protections)
}

/// A request, and until when it is to be answered.
#[derive(Debug)]
struct Asked {
    sent: Result<(), ChannelError>,
    limit_s: u32,
    began: Instant,
    deadline: Instant,
}

impl Asked {
    fn new(sent: Result<(), ChannelError>, limit_s: u32) -> Self {
        let began = Instant::now();
        Self {
            sent,
            limit_s,
            began,
            deadline: began + Duration::from_secs(limit_s.into()),
        }
    }
}

/// A worker. It is killed and reaped when dropped.
///
/// The kernel kills it as well when the *thread* that started it ends, so the
/// thread that uses it must be the one that starts it.
#[derive(Debug)]
pub struct WorkerProcess {
    /// None where the worker is a thread of this program.
    child: Option<ChildProcess>,
    stream: UnixStream,
    page_buffer: PageBuffer,
    settings: ProcessSettings,
    protections: Protections,
    pdfium_error: Option<String>,
    /// Time that it spent on requests.
    worked: Duration,
    is_dead: bool,
}

impl WorkerProcess {
    /// Starts a worker and waits until it has given its rights up.
    ///
    /// # Errors
    /// Only such as would befall the next one as well.
    pub fn start(settings: &ProcessSettings) -> Result<Self, StartError> {
        let page_buffer =
            PageBuffer::new(settings.page_buffer_bytes).map_err(StartError::Memory)?;
        let (stream, theirs) = UnixStream::pair().map_err(StartError::Start)?;
        let child = match settings.isolation {
            Isolation::Cage | Isolation::Process => Some(start_process(&settings.worker, theirs)?),
            Isolation::None => {
                start_thread(theirs).map_err(StartError::Start)?;
                None
            }
        };
        let mut process = Self {
            child,
            stream,
            page_buffer,
            settings: settings.clone(),
            protections: Protections::default(),
            pdfium_error: None,
            worked: Duration::ZERO,
            is_dead: false,
        };
        process.hand_over().map_err(StartError::NotReady)?;
        Ok(process)
    }

    /// The first request: what the worker may use.
    fn hand_over(&mut self) -> Result<(), Failure> {
        let ProcessSettings { limits, .. } = &self.settings;
        let request = Request::Start {
            parent: std::process::id(),
            pdfium: self.settings.pdfium.clone(),
            isolation: self.settings.isolation,
            memory_mb: limits.memory_mb.saturating_add(self.settings.overhead_mb),
            cpu_s: limits.cpu_s(),
        };
        let sent = send(&mut self.stream, &request, Some(self.page_buffer.as_fd()));
        let Reply::Started {
            pdfium_error,
            protections,
        } = self.reply(sent, START_LIMIT_S)?
        else {
            return Err(self.garbled("something else than that it started"));
        };
        self.pdfium_error = pdfium_error.map(|error| tidy(&error));
        self.protections = protections;
        if let Some(child) = &mut self.child {
            child.set_base();
        }
        Ok(())
    }

    /// What holds the worker.
    pub fn protections(&self) -> Protections {
        self.protections
    }

    /// Whether the worker has done so much that its processor time may not
    /// suffice for a further document.
    pub fn is_worn_out(&self) -> bool {
        self.worked.as_secs() >= self.settings.limits.document_s.into()
    }

    /// Why pdfium cannot be used; none if it can.
    pub fn pdfium_error(&self) -> Option<&str> {
        self.pdfium_error.as_deref()
    }

    /// Whether the process is gone: it answers nothing any more.
    pub fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Process id.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, ChildProcess::id)
    }

    /// Opens a document in place of the one before.
    pub fn open(&mut self, document: &SealedDocument, reader: &Reader) -> Result<Opened, Failure> {
        let request = Request::Open(reader.clone());
        let sent = send(&mut self.stream, &request, Some(document.as_fd()));
        match self.reply(sent, self.settings.limits.page_s)? {
            Reply::Opened(Opened { n_pages: 0, .. }) => Err(Failure::NoPages),
            Reply::Opened(opened) => Ok(opened),
            Reply::Refused(Refusal::Picture(error)) => Err(Failure::Picture(error.tidied())),
            Reply::Refused(Refusal::Encrypted) => Err(Failure::Encrypted),
            Reply::Refused(Refusal::Malformed { reason }) => Err(Failure::refused(&reason)),
            _ => Err(self.garbled("something else than whether it opened the document")),
        }
    }

    /// Title and author of the open document.
    pub fn metadata(&mut self) -> Result<Metadata, Failure> {
        let sent = send(&mut self.stream, &Request::Metadata, None);
        match self.reply(sent, METADATA_LIMIT_S)? {
            Reply::Metadata(Metadata { title, author }) => {
                let line = |text: Option<String>| {
                    text.map(|text| tidy(&text)).filter(|text| !text.is_empty())
                };
                Ok(Metadata {
                    title: line(title),
                    author: line(author),
                })
            }
            _ => Err(self.garbled("something else than metadata")),
        }
    }

    /// Renders page `index` (from 0) of the open document; its pixels can be
    /// read until the next request.
    pub fn render(&mut self, index: u32) -> Result<PageReply, Failure> {
        let asked = self.ask_for_page(index);
        self.receive_page(asked)
    }

    /// Begins to render page `index` (from 0) of the open document.
    pub fn begin(mut self, index: u32) -> BusyProcess {
        let asked = self.ask_for_page(index);
        BusyProcess {
            process: self,
            asked,
        }
    }

    fn ask_for_page(&mut self, index: u32) -> Asked {
        let request = Request::Page {
            index,
            size: self.page_limits(),
            words: self.settings.words,
        };
        let sent = send(&mut self.stream, &request, None);
        Asked::new(sent, self.settings.limits.page_s)
    }

    fn page_limits(&self) -> PageLimits {
        PageLimits {
            long_side_px: self.settings.long_side_px,
            pixels: self.settings.limits.pixels,
        }
    }

    fn receive_page(&mut self, asked: Asked) -> Result<PageReply, Failure> {
        match self.receive(asked)? {
            Reply::Page(page) => match page.check(self.page_limits(), self.page_buffer.n_bytes()) {
                Ok(()) => Ok(page),
                Err(problem) => Err(self.garbled(problem)),
            },
            Reply::PageFailed(PageProblem::Renderer(reason)) => Err(Failure::refused(&reason)),
            Reply::PageFailed(PageProblem::Picture(error)) => Err(Failure::Picture(error.tidied())),
            _ => Err(self.garbled("something else than a page")),
        }
    }

    /// Copies the pixels of the page that was just rendered.
    pub fn read_pixels(&self, pixels: &mut [u8]) -> io::Result<()> {
        self.page_buffer.read(pixels)
    }

    /// Waits for the answer to what was `sent` just now.
    fn reply(&mut self, sent: Result<(), ChannelError>, limit_s: u32) -> Result<Reply, Failure> {
        self.receive(Asked::new(sent, limit_s))
    }

    /// Waits for an answer; a process that gives none is killed.
    fn receive(&mut self, asked: Asked) -> Result<Reply, Failure> {
        let Asked {
            sent,
            limit_s,
            began,
            deadline,
        } = asked;
        let received = sent.and_then(|()| self.wait(deadline));
        self.worked += began.elapsed();
        let error = match received {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        Err(match error {
            ChannelError::TimedOut => {
                self.kill();
                Failure::TimedOut { limit_s }
            }
            // It hung up, so it is dying by itself: wait for its last word.
            ChannelError::Closed => self.await_end(),
            error => self.garbled(&error.to_string()),
        })
    }

    /// The next reply. While it does not come, the worker's memory is watched.
    fn wait(&mut self, deadline: Instant) -> Result<Reply, ChannelError> {
        let Some(child) = &mut self.child else {
            // A thread cannot be stopped: nothing is gained by not waiting for it.
            return receive(&mut self.stream, None).map(|(reply, _)| reply);
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let interval = left.min(WATCH_INTERVAL);
            let interval = Timespec {
                tv_sec: interval.as_secs() as i64,
                tv_nsec: interval.subsec_nanos().into(),
            };
            let fds = &mut [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(fds, Some(&interval)) {
                Ok(0) if left.is_zero() => return Err(ChannelError::TimedOut),
                Ok(0) => child.watch(),
                Ok(_) => {
                    let deadline = deadline.max(Instant::now() + Duration::from_millis(1));
                    return receive(&mut self.stream, Some(deadline)).map(|(reply, _)| reply);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    fn await_end(&mut self) -> Failure {
        let Some(child) = &mut self.child else {
            return self.garbled("silence");
        };
        // Its socket closes some moments before the process can be waited for.
        // A worker that closed it on purpose and lives on is killed.
        match child.wait_for_exit(Duration::from_secs(1)) {
            Ok(Some(status)) => {
                self.is_dead = true;
                let memory_mb = self.settings.limits.memory_mb;
                if child.ran_out_of_memory(status, memory_mb) {
                    Failure::OutOfMemory { memory_mb }
                } else {
                    Failure::of_exit(status)
                }
            }
            Ok(None) | Err(_) => self.garbled("silence"),
        }
    }

    fn garbled(&mut self, problem: &str) -> Failure {
        self.kill();
        Failure::Garbled {
            problem: problem.to_owned(),
        }
    }

    fn kill(&mut self) {
        self.is_dead = true;
        if let Some(child) = &mut self.child {
            child.kill();
        }
    }
}

fn start_process(worker: &WorkerCommand, theirs: UnixStream) -> Result<ChildProcess, StartError> {
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
fn start_thread(theirs: UnixStream) -> io::Result<()> {
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

/// A process that renders a page. Only its answer makes it a
/// [`WorkerProcess`] again; without one it can but be dropped, which kills it.
#[derive(Debug)]
pub struct BusyProcess {
    process: WorkerProcess,
    asked: Asked,
}

impl BusyProcess {
    /// Waits for the page, whose time began to run with its request; its
    /// pixels can be read until the next one.
    pub fn finish(self) -> (WorkerProcess, Result<PageReply, Failure>) {
        let Self {
            mut process,
            mut asked,
        } = self;
        // Who comes late, held up by a full edge or another process, finds the
        // answer on the socket, but a long one only in part: the rest takes a
        // moment.
        asked.deadline = asked.deadline.max(Instant::now() + GRACE);
        let page = process.receive_page(asked);
        (process, page)
    }

    /// Process id.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if !self.is_dead {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cage::protocol::Renderer;
    use crate::cage::testing::settings;
    use crate::render_pdf::testing::{pdf, three_pages};

    fn hayro() -> Reader {
        Reader::Pdf {
            renderer: Renderer::Hayro,
            passwords: Vec::new(),
        }
    }

    fn exists(id: u32) -> bool {
        std::path::Path::new(&format!("/proc/{id}")).exists()
    }

    #[test]
    fn a_process_renders_one_document_after_the_other() {
        let mut process = WorkerProcess::start(&settings("")).unwrap();
        assert_eq!(process.pdfium_error(), Some("there is no libpdfium"));
        for _ in 0..3 {
            let document = SealedDocument::new(&three_pages()).unwrap();
            assert_eq!(process.open(&document, &hayro()).unwrap().n_pages, 3);
            assert_eq!(
                process.metadata().unwrap().title.as_deref(),
                Some("The Mill")
            );
            assert_eq!(process.render(2).unwrap().text.plain, "third page");
            assert!(process.render(3).is_err());
            let empty = SealedDocument::new(&pdf(&[])).unwrap();
            assert_eq!(process.open(&empty, &hayro()), Err(Failure::NoPages));
        }
    }

    #[test]
    fn the_time_of_a_page_runs_from_its_request() {
        let mut settings = settings("hang any 1");
        settings.limits.page_s = 2;
        let document = SealedDocument::new(&three_pages()).unwrap();
        let [sound, hanging] = [2, 1].map(|index| {
            let mut process = WorkerProcess::start(&settings).unwrap();
            process.open(&document, &hayro()).unwrap();
            process.begin(index)
        });
        let deadline = hanging.asked.deadline;
        let (process, page) = hanging.finish();
        assert_eq!(page.unwrap_err(), Failure::TimedOut { limit_s: 2 });
        assert!(process.is_dead() && deadline.elapsed() < Duration::from_secs(1));
        // The other one's time is over as well, but it answered in time.
        assert!(sound.asked.deadline < deadline);
        let (process, page) = sound.finish();
        assert_eq!(page.unwrap().text.plain, "third page");
        let id = process.id();
        drop(process.begin(0));
        assert!(!exists(id));
    }

    #[test]
    fn nothing_is_left_of_a_process_that_is_dropped_or_died() {
        let process = WorkerProcess::start(&settings("")).unwrap();
        let id = process.id();
        assert!(exists(id));
        drop(process);
        assert!(!exists(id));

        let mut process = WorkerProcess::start(&settings("abort any 0")).unwrap();
        let document = SealedDocument::new(&three_pages()).unwrap();
        process.open(&document, &hayro()).unwrap();
        assert_eq!(
            process.render(0).unwrap_err(),
            Failure::Killed { signal: 6 }
        );
        assert!(process.is_dead() && !exists(process.id()));
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let mut process = std::thread::scope(|scope| {
            let starter = scope.spawn(|| WorkerProcess::start(&settings("")).unwrap());
            starter.join().unwrap()
        });
        let document = SealedDocument::new(&three_pages()).unwrap();
        let failure = process.open(&document, &hayro()).unwrap_err();
        assert_eq!(failure, Failure::Killed { signal: 9 });
    }
}

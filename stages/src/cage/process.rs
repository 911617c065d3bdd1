//! The parent's handle on one worker.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::child::ChildProcess;
use super::confine::{Isolation, ProtectionWarning, Protections};
use super::failure::{Failure, tidy};
use super::limits::DocumentLimits;
use super::protocol::{
    ChannelError, Metadata, Opened, PageLimits, PageProblem, PageReply, Reader, Refusal, Reply,
    Request, receive, send,
};
use super::shared::{PageBuffer, SealedDocument};
use super::start::{StartError, WorkerCommand, start_process, start_thread};

/// Time for a process to load its libraries and report.
const START_LIMIT_S: u32 = 20;

/// Time for reading metadata, which takes a millisecond if nothing is wrong.
const METADATA_LIMIT_S: u32 = 5;

/// While a page takes longer than this, its worker's memory is looked at now and then.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// Time for an answer that is fetched after its time was over.
const GRACE: Duration = Duration::from_secs(1);

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
    /// Warns where this kernel lacks a part of the sandbox.
    pub warning: ProtectionWarning,
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
        // The caller reports what is missing.
        warning: ProtectionWarning::given(),
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
        if settings.isolation == Isolation::Cage {
            settings.warning.warn_of_missing(process.protections);
        }
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

pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

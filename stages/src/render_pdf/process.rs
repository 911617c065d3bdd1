//! The parent's handle on one rendering process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Failure, RenderError};
use super::metadata::tidy;
use super::protocol::{
    ChannelError, Metadata, PageReply, Refusal, Renderer, Reply, Request, receive, send,
};
use super::renderer::page_buffer_bytes;
use super::shared::{PageBuffer, SealedDocument};
use super::worker::WORKER_ARGUMENT;

/// Time for a process to load its libraries and report.
const START_LIMIT_S: u32 = 20;

/// Time for reading metadata, which takes a millisecond if nothing is wrong.
const METADATA_LIMIT_S: u32 = 5;

/// Time for an answer that is fetched after its time was over.
const GRACE: Duration = Duration::from_secs(1);

/// How a rendering process is started.
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

/// What a rendering process may use and is asked for.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// How it is started.
    pub worker: WorkerCommand,
    /// Where libpdfium is.
    pub pdfium: Option<PathBuf>,
    /// Longer side of its images.
    pub long_side_px: u32,
    /// Whether it reads text as well.
    pub words: bool,
    /// Memory beyond what it has at its start.
    pub memory_mb: u32,
    /// Longest time for one request.
    pub page_s: u32,
}

/// A request, and until when it is to be answered.
#[derive(Debug)]
struct Asked {
    sent: Result<(), ChannelError>,
    limit_s: u32,
    deadline: Instant,
}

impl Asked {
    fn new(sent: Result<(), ChannelError>, limit_s: u32) -> Self {
        let deadline = Instant::now() + Duration::from_secs(limit_s.into());
        Self {
            sent,
            limit_s,
            deadline,
        }
    }
}

/// A rendering process. It is killed and reaped when dropped.
///
/// The kernel kills it as well when the *thread* that started it ends, so the
/// thread that renders must be the one that starts it.
#[derive(Debug)]
pub struct RenderProcess {
    child: Child,
    stream: UnixStream,
    page_buffer: PageBuffer,
    settings: ProcessSettings,
    pdfium_error: Option<String>,
    is_dead: bool,
}

impl RenderProcess {
    /// Starts a process and waits until it has given its rights up.
    ///
    /// # Errors
    /// Only such as would befall the next one as well.
    pub fn start(settings: &ProcessSettings) -> Result<Self, RenderError> {
        // A worker that gets here runs a program which never asked whether it
        // is one; starting another would go on forever.
        if std::env::args_os()
            .nth(1)
            .is_some_and(|first| first == WORKER_ARGUMENT)
        {
            return Err(RenderError::NotReady(Failure::Garbled {
                problem: "the program's own work".to_owned(),
            }));
        }
        let page_buffer = PageBuffer::new(page_buffer_bytes(settings.long_side_px))
            .map_err(RenderError::Memory)?;
        let (stream, theirs) = UnixStream::pair().map_err(RenderError::Start)?;
        let WorkerCommand {
            program,
            arguments,
            environment,
        } = &settings.worker;
        let child = Command::new(program)
            .arg0("pagemill-render")
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            // A group of its own: Ctrl-C in a terminal drains the run, and what
            // is drained must still be rendered.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(RenderError::Start)?;
        let mut process = Self {
            child,
            stream,
            page_buffer,
            settings: settings.clone(),
            pdfium_error: None,
            is_dead: false,
        };
        process.pdfium_error = process.hand_over().map_err(RenderError::NotReady)?;
        Ok(process)
    }

    /// The first request: what the process may use. Answers why pdfium cannot be used.
    fn hand_over(&mut self) -> Result<Option<String>, Failure> {
        let request = Request::Start {
            parent: std::process::id(),
            pdfium: self.settings.pdfium.clone(),
            memory_mb: self.settings.memory_mb,
        };
        let sent = send(&mut self.stream, &request, Some(self.page_buffer.as_fd()));
        match self.reply(sent, START_LIMIT_S)? {
            Reply::Started { pdfium_error } => Ok(pdfium_error.map(|error| tidy(&error))),
            _ => Err(self.garbled("something else than that it started")),
        }
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
        self.child.id()
    }

    /// Opens a document in place of the one before; answers its number of pages.
    pub fn open(
        &mut self,
        document: &SealedDocument,
        renderer: Renderer,
        passwords: &[String],
    ) -> Result<u32, Failure> {
        let request = Request::Open {
            renderer,
            passwords: passwords.to_vec(),
        };
        let sent = send(&mut self.stream, &request, Some(document.as_fd()));
        match self.reply(sent, self.settings.page_s)? {
            Reply::Opened { n_pages: 0 } => Err(Failure::NoPages),
            Reply::Opened { n_pages } => Ok(n_pages),
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
        let ProcessSettings {
            long_side_px,
            words,
            page_s,
            ..
        } = self.settings;
        let request = Request::Page {
            index,
            long_side_px,
            words,
        };
        Asked::new(send(&mut self.stream, &request, None), page_s)
    }

    fn receive_page(&mut self, asked: Asked) -> Result<PageReply, Failure> {
        match self.receive(asked)? {
            Reply::Page(page) => {
                match page.check(self.settings.long_side_px, self.page_buffer.n_bytes()) {
                    Ok(()) => Ok(page),
                    Err(problem) => Err(self.garbled(problem)),
                }
            }
            Reply::PageFailed { reason } => Err(Failure::refused(&reason)),
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
            deadline,
        } = asked;
        let received = sent.and_then(|()| receive(&mut self.stream, Some(deadline)));
        let error = match received {
            Ok((reply, _)) => return Ok(reply),
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

    fn await_end(&mut self) -> Failure {
        // Its socket closes some moments before the process can be waited for.
        // A worker that closed it on purpose and lives on is killed.
        match self.wait_for_exit(Duration::from_secs(1)) {
            Ok(Some(status)) => {
                self.is_dead = true;
                Failure::of_exit(status)
            }
            Ok(None) | Err(_) => self.garbled("silence"),
        }
    }

    fn wait_for_exit(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let limit = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))?;
        self.child.try_wait()
    }

    fn garbled(&mut self, problem: &str) -> Failure {
        self.kill();
        Failure::Garbled {
            problem: problem.to_owned(),
        }
    }

    fn kill(&mut self) {
        self.is_dead = true;
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that renders a page. Only its answer makes it a
/// [`RenderProcess`] again; without one it can but be dropped, which kills it.
#[derive(Debug)]
pub struct BusyProcess {
    process: RenderProcess,
    asked: Asked,
}

impl BusyProcess {
    /// Waits for the page, whose time began to run with its request; its
    /// pixels can be read until the next one.
    pub fn finish(self) -> (RenderProcess, Result<PageReply, Failure>) {
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

impl Drop for RenderProcess {
    fn drop(&mut self) {
        if !self.is_dead {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render_pdf::testing::{pdf, three_pages, worker_command};

    fn settings(misdeed: &str) -> ProcessSettings {
        ProcessSettings {
            worker: worker_command(misdeed),
            pdfium: None,
            long_side_px: 64,
            words: true,
            memory_mb: 512,
            page_s: 20,
        }
    }

    fn exists(id: u32) -> bool {
        std::path::Path::new(&format!("/proc/{id}")).exists()
    }

    #[test]
    fn a_process_renders_one_document_after_the_other() {
        let mut process = RenderProcess::start(&settings("")).unwrap();
        assert_eq!(process.pdfium_error(), Some("there is no libpdfium"));
        for _ in 0..3 {
            let document = SealedDocument::new(&three_pages()).unwrap();
            assert_eq!(process.open(&document, Renderer::Hayro, &[]), Ok(3));
            assert_eq!(
                process.metadata().unwrap().title.as_deref(),
                Some("The Mill")
            );
            assert_eq!(process.render(2).unwrap().text.plain, "third page");
            assert!(process.render(3).is_err());
            let empty = SealedDocument::new(&pdf(&[])).unwrap();
            assert_eq!(
                process.open(&empty, Renderer::Hayro, &[]),
                Err(Failure::NoPages)
            );
        }
    }

    #[test]
    fn the_time_of_a_page_runs_from_its_request() {
        let settings = ProcessSettings {
            page_s: 2,
            ..settings("hang any 1")
        };
        let document = SealedDocument::new(&three_pages()).unwrap();
        let [sound, hanging] = [2, 1].map(|index| {
            let mut process = RenderProcess::start(&settings).unwrap();
            process.open(&document, Renderer::Hayro, &[]).unwrap();
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
        let process = RenderProcess::start(&settings("")).unwrap();
        let id = process.id();
        assert!(exists(id));
        drop(process);
        assert!(!exists(id));

        let mut process = RenderProcess::start(&settings("abort any 0")).unwrap();
        let document = SealedDocument::new(&three_pages()).unwrap();
        process.open(&document, Renderer::Hayro, &[]).unwrap();
        assert_eq!(
            process.render(0).unwrap_err(),
            Failure::Killed { signal: 6 }
        );
        assert!(process.is_dead() && !exists(process.id()));
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let mut process = std::thread::scope(|scope| {
            let starter = scope.spawn(|| RenderProcess::start(&settings("")).unwrap());
            starter.join().unwrap()
        });
        let document = SealedDocument::new(&three_pages()).unwrap();
        let failure = process.open(&document, Renderer::Hayro, &[]).unwrap_err();
        assert_eq!(failure, Failure::Killed { signal: 9 });
    }
}

//! The rendering process: the same executable, run again as a servant.
//!
//! Whatever a document does to its parser happens here. The worker has one
//! thread, one document, one socket (its standard input) and one page buffer;
//! it opens no file but libpdfium and fonts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use pdfium_render::prelude::Pdfium;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use super::hayro::{self, HayroDocument};
use super::metadata::read_metadata;
use super::pdfium::{self, PdfiumDocument};
use super::protocol::{ChannelError, Refusal, Renderer, Reply, Request, receive, send};
use super::renderer::{OpenDocument, with_passwords};
use super::shared::{map_document, map_page_buffer};

/// The first argument of an executable that is to be a rendering process.
pub const WORKER_ARGUMENT: &str = "__pagemill_render_worker";

/// Runs the rendering process, if this is one.
///
/// [`RenderPdf`](super::RenderPdf) starts the current executable again with a
/// hidden first argument. A program that renders PDF calls this first thing in
/// `main` and returns the code if there is one:
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     if let Some(code) = pagemill_stages::render_pdf::run_worker_if_asked() {
///         return code;
///     }
///     // The program itself.
///     ExitCode::SUCCESS
/// }
/// ```
pub fn run_worker_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != WORKER_ARGUMENT {
        return None;
    }
    Some(run(&mut |_, _| {}))
}

/// Serves the parent until it hangs up. `before_page` is called with each page
/// (from 0) that is about to be rendered: tests make it fail there.
pub(super) fn run(before_page: &mut dyn FnMut(Renderer, u32)) -> ExitCode {
    // A panic is answered as an error; nobody reads this process's stderr.
    std::panic::set_hook(Box::new(|_| {}));
    match Worker::start(before_page)
        .and_then(|(mut worker, library)| worker.serve(library.as_ref()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Worker<'a> {
    stream: UnixStream,
    page_buffer: MmapMut,
    before_page: &'a mut dyn FnMut(Renderer, u32),
}

/// A request to open a document, with the document.
struct Opening {
    renderer: Renderer,
    passwords: Vec<String>,
    document: Arc<Mmap>,
}

/// The document that is open.
struct Open<'o> {
    opened: &'o mut dyn OpenDocument,
    opening: &'o Opening,
    password: Option<&'o str>,
}

impl<'a> Worker<'a> {
    /// Loads the library, takes the limits on and reports to the parent.
    fn start(
        before_page: &'a mut dyn FnMut(Renderer, u32),
    ) -> Result<(Self, Option<Pdfium>), ChannelError> {
        let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (
            Request::Start {
                parent,
                pdfium,
                memory_mb,
            },
            Some(buffer),
        ) = receive::<Request>(&mut stream, None)?
        else {
            return Err(ChannelError::Garbled("a first request other than `Start`"));
        };
        die_with(parent)?;
        let library = pdfium.as_deref().map_or_else(
            || Err("there is no libpdfium".to_owned()),
            |path: &Path| pdfium::load(path),
        );
        let page_buffer = map_page_buffer(&buffer)?;
        confine(memory_mb)?;
        let (library, pdfium_error) = match library {
            Ok(library) => (Some(library), None),
            Err(error) => (None, Some(error)),
        };
        send(&mut stream, &Reply::Started { pdfium_error }, None)?;
        Ok((
            Self {
                stream,
                page_buffer,
                before_page,
            },
            library,
        ))
    }

    /// Serves one document after the other, until the parent hangs up.
    fn serve(&mut self, library: Option<&Pdfium>) -> Result<(), ChannelError> {
        let mut next = None;
        loop {
            let opening = match next.take() {
                Some(opening) => opening,
                None => match self.receive()? {
                    None => return Ok(()),
                    Some((
                        Request::Open {
                            renderer,
                            passwords,
                        },
                        Some(file),
                    )) => Opening::new(renderer, passwords, &file)?,
                    Some(_) => return Err(ChannelError::Garbled("a request before `Open`")),
                },
            };
            next = self.serve_document(&opening, library)?;
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// Opens one document and serves it until the next comes.
    fn serve_document(
        &mut self,
        opening: &Opening,
        library: Option<&Pdfium>,
    ) -> Result<Option<Opening>, ChannelError> {
        let Opening {
            renderer,
            passwords,
            document,
        } = opening;
        let refusal = match renderer {
            Renderer::Pdfium => {
                let open = |password: Option<&str>| match library {
                    Some(library) => PdfiumDocument::open(library, document, password),
                    None => Err(malformed("there is no libpdfium")),
                };
                match guarded(|| with_passwords(passwords, open)) {
                    Ok((mut opened, password)) => {
                        return self.serve_pages(&mut opened, opening, password);
                    }
                    Err(refusal) => refusal,
                }
            }
            Renderer::Hayro => {
                let open = |password: Option<&str>| hayro::open(document, password);
                match guarded(|| with_passwords(passwords, open)) {
                    Ok((pdf, password)) => {
                        return self.serve_pages(&mut HayroDocument::new(&pdf), opening, password);
                    }
                    Err(refusal) => refusal,
                }
            }
        };
        self.reply(&Reply::Refused(refusal))?;
        self.next_opening(None)
    }

    fn serve_pages(
        &mut self,
        opened: &mut dyn OpenDocument,
        opening: &Opening,
        password: Option<&str>,
    ) -> Result<Option<Opening>, ChannelError> {
        match guarded(|| Ok(opened.n_pages())) {
            Ok(n_pages) => self.reply(&Reply::Opened { n_pages })?,
            Err(refusal) => self.reply(&Reply::Refused(refusal))?,
        }
        self.next_opening(Some(Open {
            opened,
            opening,
            password,
        }))
    }

    /// Answers requests about the open document, until another one comes.
    fn next_opening(
        &mut self,
        mut open: Option<Open<'_>>,
    ) -> Result<Option<Opening>, ChannelError> {
        while let Some((request, file)) = self.receive()? {
            let reply = match (request, file, &mut open) {
                (
                    Request::Open {
                        renderer,
                        passwords,
                    },
                    Some(file),
                    _,
                ) => {
                    return Opening::new(renderer, passwords, &file).map(Some);
                }
                (
                    Request::Metadata,
                    _,
                    Some(Open {
                        opening, password, ..
                    }),
                ) => {
                    let read = || Ok(read_metadata(&opening.document, *password));
                    Reply::Metadata(guarded(read).unwrap_or_default())
                }
                (
                    Request::Page {
                        index,
                        long_side_px,
                        words,
                    },
                    _,
                    Some(open),
                ) => {
                    (self.before_page)(open.opening.renderer, index);
                    let (opened, pixels) = (&mut open.opened, &mut self.page_buffer[..]);
                    let render = || opened.render(index, long_side_px, words, pixels);
                    match catch_unwind(AssertUnwindSafe(render)) {
                        Ok(Ok(page)) => Reply::Page(page),
                        Ok(Err(reason)) => Reply::PageFailed { reason },
                        Err(_) => Reply::PageFailed {
                            reason: "the page made it panic".to_owned(),
                        },
                    }
                }
                _ => return Err(ChannelError::Garbled("a request out of turn")),
            };
            self.reply(&reply)?;
        }
        Ok(None)
    }

    /// The next request; none when the parent hung up.
    fn receive(&mut self) -> Result<Option<(Request, Option<OwnedFd>)>, ChannelError> {
        match receive(&mut self.stream, None) {
            Ok(request) => Ok(Some(request)),
            Err(ChannelError::Closed) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn reply(&mut self, reply: &Reply) -> Result<(), ChannelError> {
        send(&mut self.stream, reply, None)
    }
}

impl Opening {
    fn new(
        renderer: Renderer,
        passwords: Vec<String>,
        file: &OwnedFd,
    ) -> Result<Self, ChannelError> {
        Ok(Self {
            renderer,
            passwords,
            document: Arc::new(map_document(file)?),
        })
    }
}

/// Runs a parser; a panic in it is a document that it cannot read.
fn guarded<T>(parse: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(parse))
        .unwrap_or_else(|_| Err(malformed("the document made it panic")))
}

fn malformed(reason: &str) -> Refusal {
    Refusal::Malformed {
        reason: reason.to_owned(),
    }
}

/// Has the kernel kill this process when the thread that started it ends.
fn die_with(parent: u32) -> Result<(), ChannelError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io::Error::from)?;
    // It may have ended before the line above.
    let is_there = rustix::process::getppid()
        .is_some_and(|pid| pid.as_raw_nonzero().get().unsigned_abs() == parent);
    if is_there {
        Ok(())
    } else {
        Err(ChannelError::Closed)
    }
}

/// Gives up what a renderer has no use for. Everything after this runs on
/// bytes from strangers.
fn confine(memory_mb: u32) -> Result<(), ChannelError> {
    // Should the machine run out of memory, this process is the one to go.
    // Where the file cannot be written, the limits below must do.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from)?;
    let limits = [
        // What is mapped already (the executable, libpdfium, the page buffer) is not counted.
        (
            Resource::As,
            mapped_bytes()?.saturating_add(u64::from(memory_mb) << 20),
        ),
        (Resource::Core, 0),
        // No file grows; the page buffer is written through its mapping.
        (Resource::Fsize, 0),
        // The socket, two documents, a font or two.
        (Resource::Nofile, 32),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit).map_err(io::Error::from)?;
    }
    // landlock and seccomp come here, last: the lines above need the calls
    // that they forbid.
    Ok(())
}

/// Address space that this process uses now.
fn mapped_bytes() -> Result<u64, ChannelError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let size_kb = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .ok_or(ChannelError::Garbled(
            "a /proc/self/status without `VmSize`",
        ))?;
    Ok(size_kb << 10)
}

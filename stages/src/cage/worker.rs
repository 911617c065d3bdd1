//! The worker: the same executable, run again as a servant.
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
use rustix::process::Signal;

use super::confine::{Allowance, Isolation, confine};
use super::protocol::{
    ChannelError, Opened, PageProblem, Reader, Refusal, Renderer, Reply, Request, receive, send,
};
use super::shared::{map_document, map_page_buffer};
use crate::decode_image::pages::PicturePages;
use crate::render_pdf::hayro::{self, HayroDocument};
use crate::render_pdf::metadata::read_metadata;
use crate::render_pdf::pdfium::{self, PdfiumDocument};
use crate::render_pdf::renderer::{OpenDocument, with_passwords};

/// The first argument of an executable that is to be a worker.
pub const WORKER_ARGUMENT: &str = "__pagemill_render_worker";

/// Runs the worker, if this is one.
///
/// [`RenderPdf`](crate::RenderPdf) and [`DecodeImage`](crate::DecodeImage) start
/// the current executable again with a hidden first argument. A program that
/// uses them calls this first thing in `main` and returns the code if there is one:
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
pub(super) fn run(before_page: &mut dyn FnMut(&Reader, u32)) -> ExitCode {
    // A panic is answered as an error, and is no last word.
    std::panic::set_hook(Box::new(|_| {}));
    close_inherited();
    let stream = io::stdin().as_fd().try_clone_to_owned();
    let served = stream
        .map_err(ChannelError::from)
        .and_then(|stream| serve(stream.into(), before_page));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves whoever has the other end of `stream`.
///
/// # Errors
/// The other side is gone, or says what makes no sense.
pub(super) fn serve(
    stream: UnixStream,
    before_page: &mut dyn FnMut(&Reader, u32),
) -> Result<(), ChannelError> {
    let (mut worker, library) = Worker::start(stream, before_page)?;
    worker.serve(library.as_ref())
}

struct Worker<'a> {
    stream: UnixStream,
    page_buffer: MmapMut,
    before_page: &'a mut dyn FnMut(&Reader, u32),
}

/// A request to open a document, with the document.
struct Opening {
    reader: Reader,
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
        mut stream: UnixStream,
        before_page: &'a mut dyn FnMut(&Reader, u32),
    ) -> Result<(Self, Option<Pdfium>), ChannelError> {
        let (
            Request::Start {
                parent,
                pdfium,
                isolation,
                memory_mb,
                cpu_s,
            },
            Some(buffer),
        ) = receive::<Request>(&mut stream, None)?
        else {
            return Err(ChannelError::Garbled("a first request other than `Start`"));
        };
        if isolation != Isolation::None {
            die_with(parent)?;
        }
        let library = pdfium.as_deref().map_or_else(
            || Err("there is no libpdfium".to_owned()),
            |path: &Path| pdfium::load(path),
        );
        let page_buffer = map_page_buffer(&buffer)?;
        let protections = confine(isolation, Allowance { memory_mb, cpu_s })?;
        let (library, pdfium_error) = match library {
            Ok(library) => (Some(library), None),
            Err(error) => (None, Some(error)),
        };
        let started = Reply::Started {
            pdfium_error,
            protections,
        };
        send(&mut stream, &started, None)?;
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
                    Some((Request::Open(reader), Some(file))) => Opening::new(reader, &file)?,
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
        let document = &opening.document;
        let refusal = match &opening.reader {
            Reader::Pdf {
                renderer: Renderer::Pdfium,
                passwords,
            } => {
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
            Reader::Pdf {
                renderer: Renderer::Hayro,
                passwords,
            } => {
                let open = |password: Option<&str>| hayro::open(document, password);
                match guarded(|| with_passwords(passwords, open)) {
                    Ok((pdf, password)) => {
                        return self.serve_pages(&mut HayroDocument::new(&pdf), opening, password);
                    }
                    Err(refusal) => refusal,
                }
            }
            Reader::Picture { format, limits } => {
                match guarded(|| PicturePages::open(document, *format, *limits)) {
                    Ok(mut pages) => return self.serve_pages(&mut pages, opening, None),
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
        let count = || {
            Ok(Opened {
                n_pages: opened.n_pages(),
                is_cut_off: opened.is_cut_off(),
            })
        };
        match guarded(count) {
            Ok(opened) => self.reply(&Reply::Opened(opened))?,
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
                (Request::Open(reader), Some(file), _) => {
                    return Opening::new(reader, &file).map(Some);
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
                (Request::Page { index, size, words }, _, Some(open)) => {
                    (self.before_page)(&open.opening.reader, index);
                    let (opened, pixels) = (&mut open.opened, &mut self.page_buffer[..]);
                    let render = || opened.render(index, size, words, pixels);
                    match catch_unwind(AssertUnwindSafe(render)) {
                        Ok(Ok(page)) => Reply::Page(page),
                        Ok(Err(problem)) => Reply::PageFailed(problem),
                        Err(_) => Reply::PageFailed(PageProblem::from("the page made it panic")),
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
    fn new(reader: Reader, file: &OwnedFd) -> Result<Self, ChannelError> {
        Ok(Self {
            reader,
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

/// Closes what libraries of the parent left open for any child: a document is
/// not to find it.
fn close_inherited() {
    const STANDARD_ERROR: i32 = 2;
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > STANDARD_ERROR)
        .collect();
    for number in numbers {
        // SAFETY: this process has only just begun and opened nothing that it
        // keeps. The folder that was listed is closed; its number is refused.
        unsafe { rustix::io::close(number) }
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

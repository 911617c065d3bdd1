//! Defines the messages between the parent and a worker.
//!
//! Messages are frames on a Unix socket: four bytes of length, then the message
//! in `postcard`. File descriptors (a document, the page buffer) travel with the
//! length. The worker reads what strangers wrote and may have been taken over,
//! so the parent believes no reply: the length is capped before anything is
//! allocated, and [`PageReply::check`] compares each number with the buffer.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::confine::{Isolation, Protections};
use crate::decode_image::picture::{PictureError, PictureFormat, PictureLimits};

/// Longest message in either direction. The text of a page is kept far below it.
const MAX_FRAME_BYTES: usize = 32 << 20;

/// Most text that a page may have; the rest is cut off.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Most words that a page may have; the rest is cut off.
pub const MAX_WORDS: usize = 200_000;

/// The two renderers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renderer {
    /// Google's C++ library: fast and complete.
    Pdfium,
    /// Pure Rust: needs no library, and opens some files that pdfium refuses.
    Hayro,
}

impl Renderer {
    /// As the configuration and the field `renderer` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pdfium => "pdfium",
            Self::Hayro => "hayro",
        }
    }
}

impl std::fmt::Display for Renderer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What the parent asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first request; it carries the page buffer.
    Start {
        /// Process id of the parent: the worker ends when it is gone.
        parent: u32,
        /// Where libpdfium is.
        pdfium: Option<PathBuf>,
        /// What the worker gives up.
        isolation: Isolation,
        /// Memory that the worker may take beyond what it has when it starts.
        memory_mb: u32,
        /// Processor time that it may take.
        cpu_s: u32,
    },
    /// Opens the document that it carries, in place of the one before.
    Open(Reader),
    /// Reads title and author of the open document.
    Metadata,
    /// Renders a page of the open document.
    Page {
        /// Counted from 0.
        index: u32,
        /// How it is to look.
        size: PageLimits,
        /// Whether to read its text as well.
        words: bool,
    },
}

/// Who is to read a document, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reader {
    /// A PDF.
    Pdf {
        /// Who reads it.
        renderer: Renderer,
        /// Tried one after the other, if the document asks for one.
        passwords: Vec<String>,
    },
    /// A picture.
    Picture {
        /// As its media type says.
        format: PictureFormat,
        /// What decoding it may take.
        limits: PictureLimits,
    },
}

/// How large the image of a page may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageLimits {
    /// Length of the longer side: of a PDF's page always, of a picture at most.
    pub long_side_px: u32,
    /// Most pixels.
    pub pixels: u64,
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Start`].
    Started {
        /// Why pdfium cannot be used.
        pdfium_error: Option<String>,
        /// What holds the worker.
        protections: Protections,
    },
    /// To [`Request::Open`].
    Opened(Opened),
    /// To [`Request::Open`]: the document cannot be opened.
    Refused(Refusal),
    /// To [`Request::Metadata`].
    Metadata(Metadata),
    /// To [`Request::Page`]: the pixels are in the page buffer.
    Page(PageReply),
    /// To [`Request::Page`]: this page cannot be rendered.
    PageFailed(PageProblem),
}

/// What is known of a document that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Number of pages that the document claims to have.
    pub n_pages: u32,
    /// Whether the last of them names another one that the file does not hold.
    pub is_cut_off: bool,
}

/// Why a page cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageProblem {
    /// What the renderer says, as the end of a sentence.
    Renderer(String),
    /// What is wrong with a picture.
    Picture(PictureError),
}

impl From<String> for PageProblem {
    fn from(reason: String) -> Self {
        Self::Renderer(reason)
    }
}

impl From<&str> for PageProblem {
    fn from(reason: &str) -> Self {
        Self::Renderer(reason.to_owned())
    }
}

/// Why a document cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// None of the passwords opens it.
    Encrypted,
    /// The renderer does not know what to make of it.
    Malformed {
        /// What the renderer says.
        reason: String,
    },
    /// A picture whose pages cannot be found.
    Picture(PictureError),
}

/// What a document says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Its title.
    pub title: Option<String>,
    /// Who wrote it.
    pub author: Option<String>,
}

/// A rendered page, less its pixels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PageReply {
    /// Width of the image.
    pub width_px: u32,
    /// Height of the image.
    pub height_px: u32,
    /// Width of the page as displayed, in points.
    pub width_pt: f32,
    /// Height of the page as displayed, in points.
    pub height_pt: f32,
    /// Text of the page.
    pub text: PageText,
}

/// The text of a page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PageText {
    /// In the order in which the page gives it, with line breaks.
    pub plain: String,
    /// In the same order.
    pub words: Vec<WordBox>,
}

/// A word and its box: points, origin at the top left of the page as displayed, y down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WordBox {
    /// The word.
    pub text: String,
    /// Left edge.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Bottom edge.
    pub y1: f32,
}

impl PageReply {
    /// Bytes of RGB8 pixels.
    pub fn n_bytes(&self) -> usize {
        // No overflow: `check` compared it with the buffer.
        self.width_px as usize * self.height_px as usize * 3
    }

    /// Pixels per inch of the page.
    pub fn dpi(&self) -> f32 {
        let long_side_px = self.width_px.max(self.height_px) as f32;
        long_side_px * 72.0 / self.width_pt.max(self.height_pt)
    }

    /// Whether the reply can be what it claims to be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, asked: PageLimits, buffer_bytes: usize) -> Result<(), &'static str> {
        let sides = [self.width_px, self.height_px];
        if sides
            .iter()
            .any(|side| *side == 0 || *side > asked.long_side_px)
        {
            return Err("an image of another size than was asked for");
        }
        let n_pixels = u64::from(self.width_px) * u64::from(self.height_px);
        if n_pixels > asked.pixels.min(buffer_bytes as u64 / 3) {
            return Err("an image larger than its buffer");
        }
        if [self.width_pt, self.height_pt]
            .iter()
            .any(|side| !side.is_finite() || *side <= 0.0)
        {
            return Err("a page without a size");
        }
        if self.text.plain.len() > MAX_TEXT_BYTES || self.text.words.len() > MAX_WORDS {
            return Err("more text than a page may have");
        }
        let is_box = |word: &WordBox| {
            [word.x0, word.y0, word.x1, word.y1]
                .iter()
                .all(|edge| edge.is_finite())
        };
        if !self.text.words.iter().all(is_box) {
            return Err("a word without a place");
        }
        Ok(())
    }
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("no answer came in time")]
    TimedOut,
    /// What came is no message.
    #[error("{0}")]
    Garbled(&'static str),
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Sends one message, with a file descriptor if it carries one.
pub fn send<T: Serialize>(
    stream: &mut UnixStream,
    message: &T,
    carried: Option<BorrowedFd<'_>>,
) -> Result<(), ChannelError> {
    let mut frame = postcard::to_extend(message, vec![0; 4])
        .map_err(|_| ChannelError::Garbled("a message that cannot be written"))?;
    let n_bytes = frame.len() - 4;
    if n_bytes > MAX_FRAME_BYTES {
        return Err(ChannelError::Garbled("a message that is too long"));
    }
    frame[..4].copy_from_slice(&(n_bytes as u32).to_le_bytes());
    send_frame(stream, &frame, carried)
}

/// Sends a message that is written already, its length first.
pub(super) fn send_frame(
    stream: &mut UnixStream,
    frame: &[u8],
    carried: Option<BorrowedFd<'_>>,
) -> Result<(), ChannelError> {
    let carried = carried.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !carried.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(carried));
    }
    // NOSIGNAL: a worker that died is an error, not a SIGPIPE.
    let n_sent = loop {
        match sendmsg(
            &*stream,
            &[IoSlice::new(frame)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            sent => break sent.map_err(io::Error::from)?,
        }
    };
    Ok(stream.write_all(&frame[n_sent..])?)
}

/// Waits for one message, until `deadline` if there is one.
pub fn receive<T: DeserializeOwned>(
    stream: &mut UnixStream,
    deadline: Option<Instant>,
) -> Result<(T, Option<OwnedFd>), ChannelError> {
    let mut length = [0; 4];
    set_deadline(stream, deadline)?;
    let (n_read, carried) = receive_start(stream, &mut length)?;
    read_until(stream, &mut length[n_read..], deadline)?;
    let n_bytes = u32::from_le_bytes(length) as usize;
    if n_bytes > MAX_FRAME_BYTES {
        return Err(ChannelError::Garbled("a message that is too long"));
    }
    let mut body = vec![0; n_bytes];
    read_until(stream, &mut body, deadline)?;
    let message = postcard::from_bytes(&body)
        .map_err(|_| ChannelError::Garbled("a message that cannot be read"))?;
    Ok((message, carried))
}

/// Reads the first bytes of a message and the descriptor that came with them.
fn receive_start(
    stream: &UnixStream,
    bytes: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), ChannelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(bytes)];
        match recvmsg(stream, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received.map_err(io::Error::from)?,
        }
    };
    if received.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    let carried = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, carried))
}

/// Fills `bytes`. Each read gets only what is left of the time, so that a
/// worker which sends a byte now and then gains nothing.
fn read_until(
    stream: &mut UnixStream,
    mut bytes: &mut [u8],
    deadline: Option<Instant>,
) -> Result<(), ChannelError> {
    while !bytes.is_empty() {
        set_deadline(stream, deadline)?;
        match stream.read(bytes) {
            Ok(0) => return Err(ChannelError::Closed),
            Ok(n_read) => bytes = &mut bytes[n_read..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn set_deadline(stream: &UnixStream, deadline: Option<Instant>) -> Result<(), ChannelError> {
    let Some(deadline) = deadline else {
        return Ok(());
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // The socket rounds down, and takes zero for "no limit".
    if left < Duration::from_micros(1) {
        return Err(ChannelError::TimedOut);
    }
    Ok(stream.set_read_timeout(Some(left))?)
}

#[cfg(test)]
mod tests;

//! Any bytes as what a worker is asked.

use std::io::Read as _;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::confine::Isolation;
use super::protocol::{ChannelError, Request, send, send_frame};
use super::shared::{PageBuffer, SealedDocument};
use super::worker::serve;

/// Room for the pixels of one page.
const PAGE_BYTES: usize = 256 * 256 * 3;

/// A page of a square and a word.
const PDF: &[u8] = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n\
    2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n\
    3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 90 60]/Contents 4 0 R>>endobj\n\
    4 0 obj<</Length 16>>stream\n9 9 30 30 re f n\nendstream endobj\ntrailer<</Root 1 0 R>>\n";

/// A white pixel.
pub(super) const PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
    \0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\x01\x01\0\xb1\x38\xf6\x14\0\0\0\0IEND\xaeB`\x82";

/// Frames to a worker that has started. Each begins with a byte for what comes
/// with it, and one for its length; a frame may lie about that.
///
/// # Panics
/// The worker panics, or waits for ever.
pub fn requests(bytes: &[u8]) {
    let (mut ours, theirs) = UnixStream::pair().expect("two sockets");
    let buffer = PageBuffer::new(PAGE_BYTES).expect("memory");
    let documents = [PDF, PNG].map(|bytes| SealedDocument::new(bytes).expect("memory"));
    // Nothing is given up: this process goes on. Later starts are out of turn.
    let start = Request::Start {
        parent: std::process::id(),
        pdfium: None,
        isolation: Isolation::None,
        memory_mb: 0,
        cpu_s: 0,
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| serve(theirs, &mut |_, _| {}));
        let mut writer = ours.try_clone().expect("a descriptor");
        scope.spawn(move || {
            let said = send(&mut writer, &start, Some(buffer.as_fd()))
                .and_then(|()| say(&mut writer, bytes, &buffer, &documents));
            // A worker that has ended hears no more.
            drop(said);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let _ = ours.read_to_end(&mut Vec::new());
        let ended = worker.join().expect("the worker does not panic");
        assert!(!matches!(ended, Err(ChannelError::TimedOut)));
    });
}

fn say(
    stream: &mut UnixStream,
    mut bytes: &[u8],
    buffer: &PageBuffer,
    documents: &[SealedDocument; 2],
) -> Result<(), ChannelError> {
    while let [what, n_bytes, rest @ ..] = bytes {
        let (message, after) = rest.split_at(rest.len().min(usize::from(*n_bytes)));
        let carried = match what & 3 {
            0 => None,
            1 => Some(documents[0].as_fd()),
            2 => Some(documents[1].as_fd()),
            _ => Some(buffer.as_fd()),
        };
        let claimed = u32::from(*n_bytes) + u32::from(what >> 4);
        let mut frame = claimed.to_le_bytes().to_vec();
        frame.extend_from_slice(message);
        send_frame(stream, &frame, carried)?;
        bytes = after;
    }
    Ok(())
}

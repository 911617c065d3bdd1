//! Any bytes as what a worker answers.

use std::io::Write as _;
use std::net::Shutdown;

#[allow(clippy::wildcard_imports, reason = "it is a part of that module")]
use super::*;
use crate::cage::protocol::Renderer;

/// More would not fit into the socket, which nobody empties meanwhile.
const MAX_BYTES: usize = 32 << 10;

/// What a worker that was taken over says to each request.
///
/// # Panics
/// The parent panics, or believes a page that does not fit its buffer.
pub fn replies(bytes: &[u8]) {
    let settings = ProcessSettings {
        worker: WorkerCommand::default(),
        isolation: Isolation::None,
        pdfium: None,
        long_side_px: 64,
        page_buffer_bytes: 64 * 64 * 3,
        words: true,
        limits: DocumentLimits::default(),
        overhead_mb: 0,
        warning: ProtectionWarning::default(),
    };
    let (stream, mut theirs) = UnixStream::pair().expect("two sockets");
    theirs
        .write_all(&bytes[..bytes.len().min(MAX_BYTES)])
        .and_then(|()| theirs.shutdown(Shutdown::Write))
        .expect("the socket takes as much");
    let page_buffer = PageBuffer::new(settings.page_buffer_bytes).expect("memory");
    let mut process = WorkerProcess {
        child: None,
        stream,
        page_buffer,
        settings,
        protections: Protections::default(),
        pdfium_error: None,
        worked: Duration::ZERO,
        is_dead: false,
    };
    if process.hand_over().is_err() {
        return;
    }
    let document = SealedDocument::new(b"%PDF-1.7").expect("memory");
    let reader = Reader::Pdf {
        renderer: Renderer::Hayro,
        passwords: Vec::new(),
    };
    while !process.is_dead {
        if let Ok(opened) = process.open(&document, &reader) {
            assert!(opened.n_pages > 0);
        }
        if let Ok(Metadata { title, author }) = process.metadata() {
            let is_line = |text: &String| !text.is_empty() && !text.contains(char::is_control);
            assert!([title, author].iter().flatten().all(is_line));
        }
        if let Ok(page) = process.render(0) {
            let mut pixels = vec![0; page.n_bytes()];
            process
                .read_pixels(&mut pixels)
                .expect("it fits the buffer");
            assert!(page.dpi().is_finite());
        }
    }
}

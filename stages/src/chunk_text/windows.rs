//! Splitting texts of any length in time that grows with the length alone.
//!
//! For each chunk, `text-splitter` looks at all the text that is left: a page
//! of a megabyte without a full stop takes minutes. So it is shown a window at
//! a time, and the window's last chunk, which may have been cut by the window's
//! end, begins the next one.

use text_splitter::{ChunkConfig, TextSplitter};

use super::Sizer;

/// A window holds this many of the longest chunks, in bytes of ASCII: enough
/// for the splitter to see paragraphs, few enough to look at them all again.
const CHUNKS_IN_WINDOW: usize = 8;

/// No window is smaller than this.
const MIN_WINDOW_BYTES: usize = 4096;

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    /// Without white space at its ends.
    pub(super) text: &'a str,
    /// Place of its first character in the whole text, in characters.
    pub(super) char_start: usize,
    /// Place after its last character.
    pub(super) char_end: usize,
}

impl Chunk<'_> {
    /// What stands for a text without any.
    pub(super) const EMPTY: Self = Self {
        text: "",
        char_start: 0,
        char_end: 0,
    };
}

/// Splits `text` and gives each chunk to `send`, in order. A text of white
/// space has none.
pub(super) fn split<'a, E>(
    text: &'a str,
    sizer: &Sizer<'_>,
    send: &mut impl FnMut(Chunk<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let limits = sizer.limits;
    let config = ChunkConfig::new(limits.capacity())
        .with_sizer(sizer)
        .with_overlap(limits.overlap())
        .expect("`ChunkText::new` checks that the overlap is less");
    let splitter = TextSplitter::new(config);
    let usual_bytes = limits
        .max_chars
        .saturating_mul(CHUNKS_IN_WINDOW)
        .max(MIN_WINDOW_BYTES);

    let (mut start, mut start_char) = (0, 0); // Of the window, in bytes and in characters.
    let mut sent_until = 0; // End of the last chunk that was sent, in bytes.
    let mut window_bytes = usual_bytes;
    while start < text.len() {
        let end = text.ceil_char_boundary(start.saturating_add(window_bytes).min(text.len()));
        let is_last = end == text.len();
        let window = &text[start..end];
        let mut pending = None; // The chunk that may be the window's last.
        let mut n_sent = 0;
        for found in splitter.chunk_char_indices(window) {
            let next = (found.byte_offset, found.char_offset, found.chunk);
            if let Some(chunk) = pending.replace(next) {
                sent_until = send_new(chunk, start, start_char, sent_until, send)?;
                n_sent += 1;
            }
        }
        match pending {
            // White space alone: on to what follows it.
            None => {
                start_char += window.chars().count();
                start = end;
            }
            Some(chunk) if is_last => {
                send_new(chunk, start, start_char, sent_until, send)?;
                return Ok(());
            }
            Some((byte_offset, char_offset, _)) if n_sent > 0 && byte_offset > 0 => {
                start += byte_offset;
                start_char += char_offset;
                window_bytes = usual_bytes;
            }
            // One chunk fills the window: it may go on, so show more.
            Some(_) => window_bytes = window_bytes.saturating_mul(2),
        }
    }
    Ok(())
}

/// Sends a chunk unless an earlier one holds all of it; returns how far the
/// text has been sent.
fn send_new<'a, E>(
    (byte_offset, char_offset, text): (usize, usize, &'a str),
    start: usize,
    start_char: usize,
    sent_until: usize,
    send: &mut impl FnMut(Chunk<'a>) -> Result<(), E>,
) -> Result<usize, E> {
    let end = start + byte_offset + text.len();
    if end <= sent_until {
        return Ok(sent_until);
    }
    let char_start = start_char + char_offset;
    send(Chunk {
        text,
        char_start,
        char_end: char_start + text.chars().count(),
    })?;
    Ok(end)
}

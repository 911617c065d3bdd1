//! Lines of a stream, none of them longer than there is memory for.

use std::io::{self, BufRead, BufReader, Read};
use std::thread;

use futures::stream::{self, BoxStream, StreamExt};
use pagemill_pipeline::{ItemError, StageError};
use tokio::sync::mpsc;

/// Lines travel between threads in batches of so many bytes at most, and the
/// line that goes beyond.
const BATCH_BYTES: usize = 1 << 20;

/// A line, or why it cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// What a dead letter about the line itself calls it.
    pub(super) uri: String,
    pub(super) line: Result<String, ItemError>,
}

/// Splits a stream into lines and passes over empty ones.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: BufReader<R>,
    number: u64,
    max_bytes: usize,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(input: R, max_bytes: usize) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
            number: 0,
            max_bytes,
        }
    }

    /// The next line, or `None` at the end.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut line = Vec::new();
            let n_bytes = self.read_line(&mut line)?;
            if n_bytes == 0 {
                return Ok(None);
            }
            self.number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if line.is_empty() {
                continue;
            }
            let uri = format!("{}{}", super::records::LINE, self.number);
            let line = if line.len() > self.max_bytes {
                let (reason, hint) = (
                    format!("it is longer than {} bytes", self.max_bytes),
                    "raise `max_line_bytes`, or name a file instead of bringing its content",
                );
                Err(ItemError::new("read", reason).hint(hint))
            } else {
                String::from_utf8(line).map_err(|_| {
                    let hint = "write lines in UTF-8; `read_files` finds files whose names are not";
                    ItemError::new("read", "it is not UTF-8").hint(hint)
                })
            };
            return Ok(Some(Line { uri, line }));
        }
    }

    /// Reads up to and with the end of the line; keeps a little more than
    /// `max_bytes` of it, so that it shows that it is too long.
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<u64> {
        let room = self.max_bytes.saturating_add(2);
        let mut n_bytes = 0;
        loop {
            let part = match self.input.fill_buf() {
                Ok(part) => part,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = part.iter().position(|byte| *byte == b'\n');
            let n_taken = end.map_or(part.len(), |end| end + 1);
            let n_kept = n_taken.min(room.saturating_sub(line.len()));
            line.extend_from_slice(&part[..n_kept]);
            n_bytes += n_taken as u64;
            let is_end = end.is_some() || part.is_empty();
            self.input.consume(n_taken);
            if is_end {
                return Ok(n_bytes);
            }
        }
    }

    /// As many lines as there are without waiting, at least one.
    fn next_batch(&mut self) -> io::Result<Vec<Line>> {
        let (mut batch, mut n_bytes) = (Vec::new(), 0);
        while let Some(line) = self.next_line()? {
            n_bytes += line.line.as_ref().map_or(0, String::len);
            batch.push(line);
            if n_bytes >= BATCH_BYTES || !self.input.buffer().contains(&b'\n') {
                break;
            }
        }
        Ok(batch)
    }
}

/// Reads lines on a thread of its own, which nobody waits for: a read from a
/// silent terminal cannot be interrupted, and must not keep the program alive.
pub(super) fn on_a_thread<R: Read + Send + 'static>(
    mut lines: Lines<R>,
) -> Result<BoxStream<'static, Result<Line, StageError>>, StageError> {
    let (tx, rx) = mpsc::channel(1);
    let read = move || {
        loop {
            let batch = lines.next_batch();
            let is_last = batch.as_ref().map_or(true, Vec::is_empty);
            if tx.blocking_send(batch).is_err() || is_last {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("stdin".into()).spawn(read);
    thread.map_err(|error| {
        let hint = "raise the limit on threads";
        StageError::caused("cannot start a thread", hint, error)
    })?;
    let batches = stream::unfold(rx, |mut rx| async {
        let batch: io::Result<Vec<Line>> = rx.recv().await?;
        Some((batch, rx))
    });
    let lines = batches.flat_map(|batch| {
        let lines: Vec<_> = match batch {
            Ok(lines) => lines.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(cannot_read(error))],
        };
        stream::iter(lines)
    });
    Ok(lines.boxed())
}

fn cannot_read(error: io::Error) -> StageError {
    let hint = "pipe something into the program, as in `find docs | pagemill run`";
    StageError::caused(format!("cannot read standard input: {error}"), hint, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number and text of each line, or why it cannot be used.
    fn lines(input: &[u8], max_bytes: usize) -> Vec<(String, String)> {
        let mut lines = Lines::new(input, max_bytes);
        let mut read = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            read.push((line.uri, line.line.unwrap_or_else(|error| error.reason)));
        }
        read
    }

    fn own(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(uri, line): &(&str, &str)| ((*uri).to_owned(), (*line).to_owned());
        expected.iter().map(own).collect()
    }

    #[test]
    fn empty_lines_count_and_the_last_may_lack_its_end() {
        let expected = own(&[("stdin:1", "a b"), ("stdin:3", " c"), ("stdin:4", "d")]);
        assert_eq!(lines(b"a b\n\n c\r\nd", 100), expected);
        assert_eq!(lines(b"", 100), []);
        assert_eq!(lines(b"\n\n", 100), []);
    }

    #[test]
    fn a_line_that_cannot_be_used_takes_no_other_with_it() {
        let expected = own(&[
            ("stdin:1", "it is longer than 4 bytes"),
            ("stdin:2", "1234"),
            ("stdin:3", "it is not UTF-8"),
            ("stdin:4", "ü"),
        ]);
        assert_eq!(
            lines(
                "12345\n1234\r\n\u{1}\n\u{fc}\n"
                    .replace('\u{1}', "?")
                    .as_bytes(),
                4
            )[..2],
            expected[..2]
        );
        assert_eq!(lines(b"12345\n1234\r\n\xff\n\xc3\xbc\n", 4), expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_not_kept_in_memory() {
        let input = io::repeat(b'x').take(10 << 20);
        let mut lines = Lines::new(input, 1000);
        let mut line = Vec::new();
        assert_eq!(lines.read_line(&mut line).unwrap(), 10 << 20);
        assert!(line.len() <= 1002);
    }

    #[tokio::test]
    async fn an_error_of_the_stream_is_told_after_the_lines_before_it() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let input = io::Cursor::new(b"a\nb\n").chain(Broken);
        let lines = on_a_thread(Lines::new(input, 100)).unwrap();
        let lines: Vec<_> = lines.collect().await;
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].as_ref().unwrap().line, Ok("b".to_owned()));
        let error = lines[2].as_ref().unwrap_err().to_string();
        assert!(error.starts_with("cannot read standard input"), "{error}");
    }
}

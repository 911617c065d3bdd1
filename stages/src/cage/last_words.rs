//! Reads what a worker prints before it dies: the only sign that tells memory that ran out from a
//! crash.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, read, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

/// What Rust prints when an allocation fails, before it aborts.
const ALLOCATION_FAILED: &[u8] = b"memory allocation of ";

/// No more than this is read, whatever a worker prints.
const MAX_BYTES: usize = 64 << 10;

/// The parent's end of a worker's standard error.
#[derive(Debug)]
pub struct LastWords {
    pipe: OwnedFd,
}

impl LastWords {
    /// Both ends; the second is for the worker.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        // A full pipe loses words and blocks nobody.
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok((Self { pipe }, theirs))
    }

    /// Whether the worker, which is dead, says that it could get no more memory.
    pub fn are_about_memory(&self) -> bool {
        let mut words = vec![0; MAX_BYTES];
        let mut n_read = 0;
        while n_read < words.len() {
            match retry_on_intr(|| read(&self.pipe, &mut words[n_read..])) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(n) => n_read += n,
                Err(_) => return false,
            }
        }
        words[..n_read]
            .windows(ALLOCATION_FAILED.len())
            .any(|found| found == ALLOCATION_FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_failed_allocation_are_known_among_others() {
        for (words, expected) in [
            (
                &b"some noise\nmemory allocation of 64 bytes failed\n"[..],
                true,
            ),
            (b"some noise\n", false),
            (b"", false),
        ] {
            let (last_words, theirs) = LastWords::pair().unwrap();
            rustix::io::write(&theirs, words).unwrap();
            // Also while the other end is still open.
            assert_eq!(last_words.are_about_memory(), expected);
        }
    }
}

//! Bounds the bytes of files that are read before they can be sent.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all files that are read and not sent yet: as much as an edge holds.
/// A larger file is read when it is the only one.
const MAX_BYTES: u32 = 64 << 20;

/// Room for files that are read ahead. A clone shares it.
#[derive(Debug, Clone)]
pub(crate) struct ReadAhead {
    room: Arc<Semaphore>,
}

/// The room of one file, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    _permit: Option<OwnedSemaphorePermit>,
}

impl ReadAhead {
    pub(crate) fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MAX_BYTES as usize)),
        }
    }

    /// Waits until a file of `n_bytes` may be read. One that takes all the room
    /// waits for `edge_room` as well: it could only wait in memory.
    ///
    /// Files that are sent in order must reserve their room in that order, or
    /// one would wait for another that is sent after it.
    ///
    /// # Errors
    /// Those of `edge_room`.
    pub(crate) async fn reserve<E>(
        &self,
        n_bytes: u64,
        edge_room: impl Future<Output = Result<(), E>>,
    ) -> Result<Reserved, E> {
        let n_permits = u32::try_from(n_bytes).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let permit = Arc::clone(&self.room).acquire_many_owned(n_permits).await;
        if n_permits == MAX_BYTES {
            edge_room.await?;
        }
        Ok(Reserved {
            // It fails only for a semaphore that was closed, and this one is not.
            _permit: permit.ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    /// The room of a file, if it has some now.
    fn reserve(read_ahead: &ReadAhead, n_bytes: u64) -> Option<Reserved> {
        let edge_room = ready(Ok::<(), Infallible>(()));
        let reserved = read_ahead.reserve(n_bytes, edge_room).now_or_never()?;
        reserved.ok()
    }

    #[test]
    fn files_are_read_ahead_until_they_have_as_many_bytes_as_an_edge_holds() {
        let read_ahead = ReadAhead::new();
        let half = u64::from(MAX_BYTES / 2);
        let first = reserve(&read_ahead, half).expect("there is room");
        let _second = reserve(&read_ahead, half).expect("there is room");
        assert!(reserve(&read_ahead, 1).is_none());
        assert!(reserve(&read_ahead, 0).is_some());
        drop(first);
        assert!(reserve(&read_ahead, half).is_some());
    }

    #[test]
    fn a_larger_file_is_read_alone_and_not_before_the_edge_has_room() {
        let read_ahead = ReadAhead::new();
        let large = 10 << 30;
        let small = reserve(&read_ahead, 1).expect("there is room");
        assert!(reserve(&read_ahead, large).is_none());
        drop(small);
        let full = pending::<Result<(), Infallible>>();
        assert!(read_ahead.reserve(large, full).now_or_never().is_none());
        let _large = reserve(&read_ahead, large).expect("it is alone");
        assert!(reserve(&read_ahead, 1).is_none());
    }
}

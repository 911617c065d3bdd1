//! Reads a file's content into memory, and hashes it on the way.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use pagemill_pipeline::{ContentHash, ContentHasher, DocumentBytes};

use crate::cage::shared::DocumentWriter;

/// A file of this size is read into sealed memory, which workers map as it is.
/// A smaller one stays on the heap: it is copied faster than shared, and does
/// not hold a file descriptor while it waits on an edge.
pub(super) const SHARED_FROM_BYTES: u64 = 1 << 20;

/// Read and hashed at a time: what stays in a CPU's cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Why a file is not in sealed memory.
enum Problem {
    /// The file cannot be read.
    File(io::Error),
    /// The system gives no such memory.
    Memory(io::Error),
}

/// Reads `file`, which is to have `n_bytes`, from its beginning. One that grows
/// is not read without end: it gives one byte too many.
///
/// # Errors
/// A file that cannot be read; [`io::ErrorKind::OutOfMemory`].
pub(super) fn read(file: &mut File, n_bytes: u64) -> io::Result<(DocumentBytes, ContentHash)> {
    read_into(DocumentWriter::new, file, n_bytes)
}

/// The same with `new_memory`, which may fail: then the heap is used.
fn read_into(
    new_memory: impl FnOnce() -> io::Result<DocumentWriter>,
    file: &mut File,
    n_bytes: u64,
) -> io::Result<(DocumentBytes, ContentHash)> {
    if n_bytes >= SHARED_FROM_BYTES {
        match read_shared(new_memory(), file, n_bytes) {
            Ok(content) => return Ok(content),
            Err(Problem::File(error)) => return Err(error),
            Err(Problem::Memory(error)) => {
                tracing::debug!(%error, "a document goes to the heap: there is no memory file");
                file.rewind()?;
            }
        }
    }
    read_to_heap(file, n_bytes)
}

fn read_shared(
    memory: io::Result<DocumentWriter>,
    file: &mut File,
    n_bytes: u64,
) -> Result<(DocumentBytes, ContentHash), Problem> {
    let mut document = memory.map_err(Problem::Memory)?;
    let mut hasher = ContentHasher::default();
    let mut rest = file.take(n_bytes.saturating_add(1));
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n_read = match rest.read(&mut chunk) {
            Ok(0) => break,
            Ok(n_read) => n_read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Problem::File(error)),
        };
        hasher.update(&chunk[..n_read]);
        document
            .write_all(&chunk[..n_read])
            .map_err(Problem::Memory)?;
    }
    let document = document.seal().map_err(Problem::Memory)?;
    let bytes = DocumentBytes::in_memory(Arc::new(document));
    Ok((bytes, hasher.finish()))
}

fn read_to_heap(file: &mut File, n_bytes: u64) -> io::Result<(DocumentBytes, ContentHash)> {
    let mut bytes = Vec::new();
    let n_expected = usize::try_from(n_bytes).unwrap_or(usize::MAX);
    bytes
        .try_reserve_exact(n_expected)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    file.take(n_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    let hash = ContentHash::of(&bytes);
    Ok((bytes.into(), hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cage::shared::SealedDocument;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn a_large_file_is_read_into_memory_that_a_worker_maps_without_a_copy() {
        let bytes: Vec<u8> = (0..SHARED_FROM_BYTES + 7).map(|n| n as u8).collect();
        let (document, hash) = read(&mut file_of(&bytes), bytes.len() as u64).unwrap();
        assert_eq!(document, bytes);
        assert_eq!(hash, ContentHash::of(&bytes));
        let sealed = SealedDocument::of(&document).unwrap();
        assert_eq!((*sealed).as_ref().as_ptr(), document.as_ptr());
    }

    #[test]
    fn a_small_file_is_read_to_the_heap() {
        let (document, hash) = read(&mut file_of(b"%PDF-1.7"), 8).unwrap();
        assert_eq!(document, b"%PDF-1.7");
        assert_eq!(hash, ContentHash::of(b"%PDF-1.7"));
        assert!(document.memory::<SealedDocument>().is_none());
    }

    #[test]
    fn a_large_file_is_read_to_the_heap_where_there_is_no_memory_file() {
        let bytes = vec![7; SHARED_FROM_BYTES as usize];
        let refused = || Err(io::ErrorKind::PermissionDenied.into());
        let mut file = file_of(&bytes);
        let (document, hash) = read_into(refused, &mut file, SHARED_FROM_BYTES).unwrap();
        assert_eq!(document, bytes);
        assert_eq!(hash, ContentHash::of(&bytes));
        assert!(document.memory::<SealedDocument>().is_none());
    }

    #[test]
    fn a_file_that_has_grown_gives_one_byte_too_many() {
        for n_bytes in [8, SHARED_FROM_BYTES] {
            let bytes = vec![7; n_bytes as usize + 100];
            let (document, _) = read(&mut file_of(&bytes), n_bytes).unwrap();
            assert_eq!(document.len() as u64, n_bytes + 1);
        }
    }

    #[test]
    fn a_file_that_no_memory_can_hold_is_an_error() {
        let error = read_to_heap(&mut file_of(b""), u64::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    }
}

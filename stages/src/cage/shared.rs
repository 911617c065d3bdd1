//! Memory that the parent and a worker share.
//!
//! A document goes to the worker in a memfd that nobody can write any more; a
//! page comes back in one whose size is fixed. The parent never maps either: it
//! writes and reads them as files, so nothing that a worker does to the memory
//! (another thread, a truncation) can reach the parent as undefined behaviour
//! or SIGBUS.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memmap2::{Mmap, MmapMut};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// Seals of a document: its bytes never change again.
const DOCUMENT_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE)
    .union(SealFlags::SEAL);

/// Seals of a page buffer: its size never changes again.
const PAGE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A document's bytes in sealed memory, ready to be sent to a worker.
#[derive(Debug)]
pub struct SealedDocument {
    file: File,
}

impl SealedDocument {
    /// Copies `bytes` into memory of its own and seals it.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut file = File::from(create("pagemill-document")?);
        file.write_all(bytes)?;
        fcntl_add_seals(&file, DOCUMENT_SEALS)?;
        Ok(Self { file })
    }
}

impl AsFd for SealedDocument {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The worker's view of a document.
pub fn map_document(file: &OwnedFd) -> io::Result<Mmap> {
    require_seals(file, DOCUMENT_SEALS)?;
    // SAFETY: the file is a memfd (only those carry seals) whose seals, checked
    // above and impossible to remove, forbid every later change of its bytes
    // and of its size, by whatever process.
    unsafe { Mmap::map(file) }
}

/// The parent's end of the memory into which a worker renders pages.
#[derive(Debug)]
pub struct PageBuffer {
    file: File,
    n_bytes: usize,
}

impl PageBuffer {
    /// Reserves room for `n_bytes`; memory is taken only as pages fill it.
    pub fn new(n_bytes: usize) -> io::Result<Self> {
        let file = File::from(create("pagemill-page")?);
        file.set_len(n_bytes as u64)?;
        fcntl_add_seals(&file, PAGE_SEALS)?;
        Ok(Self { file, n_bytes })
    }

    /// Room in the buffer.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Copies the first `pixels.len()` bytes out.
    pub fn read(&self, pixels: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(pixels, 0)
    }
}

impl AsFd for PageBuffer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The worker's end of a [`PageBuffer`].
pub fn map_page_buffer(file: &OwnedFd) -> io::Result<MmapMut> {
    require_seals(file, PAGE_SEALS)?;
    // SAFETY: the seals keep the size, so the mapping cannot lose its memory.
    // This process alone maps the file; the parent reads it by system calls,
    // and only between a page's reply and the next request, while nothing is
    // borrowed from the mapping here.
    unsafe { MmapMut::map_mut(file) }
}

fn create(name: &str) -> io::Result<OwnedFd> {
    Ok(memfd_create(
        name,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?)
}

fn require_seals(file: &OwnedFd, seals: SealFlags) -> io::Result<()> {
    if fcntl_get_seals(file)?.contains(seals) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "the memory that was sent is not sealed",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_document_can_be_mapped_but_not_written() {
        let document = SealedDocument::new(b"%PDF-1.7").unwrap();
        let file = document.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(&map_document(&file).unwrap()[..], b"%PDF-1.7");
        assert!(document.file.write_all_at(b"x", 0).is_err());
        assert!(document.file.set_len(0).is_err());
    }

    #[test]
    fn memory_without_seals_is_refused() {
        let open = create("open").unwrap();
        assert!(map_document(&open).is_err());
        assert!(map_page_buffer(&open).is_err());
    }

    #[test]
    fn what_the_worker_writes_the_parent_reads() {
        let buffer = PageBuffer::new(8192).unwrap();
        let theirs = buffer.as_fd().try_clone_to_owned().unwrap();
        let mut mapped = map_page_buffer(&theirs).unwrap();
        mapped[..3].copy_from_slice(&[1, 2, 3]);
        let mut pixels = [0; 3];
        buffer.read(&mut pixels).unwrap();
        assert_eq!(pixels, [1, 2, 3]);
        assert!(buffer.file.set_len(0).is_err());
    }
}

//! Shares memory between the parent and a worker.
//!
//! A document goes to the worker in a memfd that nobody can write any more:
//! both map it once it is sealed, and neither copies it. A page comes back in a
//! memfd whose size is fixed and whose bytes the worker may change at any time.
//! The parent never maps that one: it reads it as a file, so nothing that a
//! worker does to the memory can reach the parent as undefined behaviour or
//! SIGBUS.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut, MmapOptions};
use pagemill_pipeline::DocumentBytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

/// Seals of a document: its bytes never change again.
const DOCUMENT_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE)
    .union(SealFlags::SEAL);

/// Seals of a page buffer: its size never changes again.
const PAGE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A document's bytes in sealed memory: this program reads its own mapping, and
/// a worker gets the file.
#[derive(Debug)]
pub struct SealedDocument {
    file: File,
    mapping: Mmap,
}

impl SealedDocument {
    /// Copies `bytes` into memory of its own and seals it.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut document = DocumentWriter::new()?;
        document.write_all(bytes)?;
        document.seal()
    }

    /// The sealed memory that a document lies in, or a copy where it lies elsewhere.
    pub fn of(document: &DocumentBytes) -> io::Result<Arc<Self>> {
        match document.memory() {
            Some(sealed) => Ok(sealed),
            None => Self::new(document).map(Arc::new),
        }
    }
}

impl AsRef<[u8]> for SealedDocument {
    fn as_ref(&self) -> &[u8] {
        &self.mapping
    }
}

impl AsFd for SealedDocument {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A document whose bytes are still being written.
#[derive(Debug)]
pub struct DocumentWriter {
    file: File,
}

impl DocumentWriter {
    /// An empty document.
    pub fn new() -> io::Result<Self> {
        let file = File::from(create("pagemill-document")?);
        Ok(Self { file })
    }

    /// The document as it is now, and for good.
    pub fn seal(self) -> io::Result<SealedDocument> {
        fcntl_add_seals(&self.file, DOCUMENT_SEALS)?;
        let mapping = map_document(&self.file)?;
        let file = self.file;
        Ok(SealedDocument { file, mapping })
    }
}

impl Write for DocumentWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Maps a sealed document.
///
/// # Errors
/// Memory that is not sealed, or too much of it.
pub fn map_document(file: &(impl AsFd + AsRawFd)) -> io::Result<Mmap> {
    require_seals(file, DOCUMENT_SEALS)?;
    // By `fstat`: other calls for the size take a path, which a worker may not.
    let n_bytes = usize::try_from(fstat(file)?.st_size).map_err(io::Error::other)?;
    // SAFETY: the file is a memfd (only those carry seals) whose seals, checked
    // above and impossible to remove, forbid every later change of its bytes
    // and of its size, by whatever process.
    //
    // The mapping is private because kernels before 6.7 refuse a shared one of
    // a file that is sealed against writing. Nobody writes, so no page is copied.
    unsafe { MmapOptions::new().len(n_bytes).map_copy_read_only(file) }
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

fn require_seals(file: impl AsFd, seals: SealFlags) -> io::Result<()> {
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
        assert_eq!(document.as_ref(), b"%PDF-1.7");
        assert!(document.file.write_all_at(b"x", 0).is_err());
        assert!(document.file.set_len(0).is_err());
        assert_eq!(SealedDocument::new(b"").unwrap().as_ref(), b"");
    }

    #[test]
    fn a_document_that_lies_in_sealed_memory_is_not_copied() {
        let sealed = Arc::new(SealedDocument::new(b"%PDF-1.7").unwrap());
        let document = DocumentBytes::in_memory(Arc::clone(&sealed));
        assert_eq!(document.as_ptr(), sealed.as_ref().as_ref().as_ptr());
        assert!(Arc::ptr_eq(
            &SealedDocument::of(&document).unwrap(),
            &sealed
        ));
        let copied = SealedDocument::of(&b"%PDF-1.7".to_vec().into()).unwrap();
        assert_eq!((*copied).as_ref(), b"%PDF-1.7");
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

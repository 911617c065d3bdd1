//! `DocumentBytes`: a document's content, with the memory that it lies in.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

/// The bytes of a document. A clone shares them.
///
/// They lie on the heap, or in memory that a source chose so that a stage can
/// do more with it than read it, such as a file in memory that another process
/// maps. The engine does not know of what kind that memory is.
///
/// ```
/// use std::sync::Arc;
///
/// use pagemill_pipeline::DocumentBytes;
///
/// struct SharedFile(Vec<u8>);
///
/// impl AsRef<[u8]> for SharedFile {
///     fn as_ref(&self) -> &[u8] {
///         &self.0
///     }
/// }
///
/// let document = DocumentBytes::in_memory(Arc::new(SharedFile(b"%PDF-1.7".to_vec())));
/// assert_eq!(&document[..], b"%PDF-1.7");
/// assert!(document.memory::<SharedFile>().is_some());
/// assert!(DocumentBytes::from(b"%PDF-1.7".to_vec()).memory::<SharedFile>().is_none());
/// ```
#[derive(Clone)]
pub struct DocumentBytes {
    bytes: Bytes,
    /// None where they lie on the heap.
    memory: Option<Arc<dyn Any + Send + Sync>>,
}

/// Keeps memory alive as long as its bytes are in use.
struct Owner<T>(Arc<T>);

impl<T: AsRef<[u8]>> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl DocumentBytes {
    /// The bytes of `memory`, which [`DocumentBytes::memory`] returns. It is
    /// released with the last clone.
    pub fn in_memory<T: AsRef<[u8]> + Any + Send + Sync>(memory: Arc<T>) -> Self {
        Self {
            bytes: Bytes::from_owner(Owner(Arc::clone(&memory))),
            memory: Some(memory),
        }
    }

    /// The memory that the bytes lie in, if it is a `T`.
    pub fn memory<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.memory.clone()?.downcast().ok()
    }
}

impl Deref for DocumentBytes {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl<T: Into<Bytes>> From<T> for DocumentBytes {
    fn from(bytes: T) -> Self {
        Self {
            bytes: bytes.into(),
            memory: None,
        }
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for DocumentBytes {
    fn eq(&self, other: &T) -> bool {
        self.bytes == other.as_ref()
    }
}

impl fmt::Debug for DocumentBytes {
    /// Their number: a document may be as large as the disk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentBytes({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::value::Value;

    #[test]
    fn memory_is_released_with_the_last_clone_of_its_bytes() {
        let memory = Arc::new(vec![7_u8; 64]);
        let released: Weak<Vec<u8>> = Arc::downgrade(&memory);
        let document = DocumentBytes::in_memory(memory);
        let slice = document.slice(1..3);
        let other = document.clone();
        assert_eq!(other.memory::<Vec<u8>>().expect("it is a vector").len(), 64);
        assert!(other.memory::<String>().is_none());
        drop(document);
        drop(other);
        assert!(released.upgrade().is_some(), "a slice is in use");
        drop(slice);
        assert!(released.upgrade().is_none());
    }

    #[test]
    fn bytes_count_the_same_wherever_they_lie() {
        let heap = DocumentBytes::from(vec![7_u8; 64]);
        let shared = DocumentBytes::in_memory(Arc::new(vec![7_u8; 64]));
        assert_eq!(heap, shared[..]);
        assert_eq!(Value::Document(heap).n_bytes(), 64);
        assert_eq!(Value::Document(shared).n_bytes(), 64);
    }
}

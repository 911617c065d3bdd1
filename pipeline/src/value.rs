//! The values that an item's fields hold.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use half::f16;

use crate::document_bytes::DocumentBytes;

/// What a field holds. Big values are shared: cloning one copies a pointer.
#[derive(Debug, Clone)]
pub enum Value {
    /// A document's own bytes.
    Document(DocumentBytes),
    /// Pixels of a page or picture.
    Image(Arc<Image>),
    /// Words with their boxes.
    Words(Arc<[Word]>),
    /// Text, or any other string.
    Text(Arc<str>),
    /// One or more vectors of one length.
    Vectors(Arc<Vectors>),
    /// Encoded bytes, such as a JPEG thumbnail.
    Bytes(Bytes),
    /// A flag.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A value that only the stages that make and read it understand.
    Custom(Arc<dyn CustomValue>),
}

/// A value type that the engine does not know; see [`Value::Custom`].
pub trait CustomValue: Any + fmt::Debug + Send + Sync {
    /// Memory that the value holds, counted against the budget of an edge.
    fn n_bytes(&self) -> usize;
    /// For downcasting: `self`.
    fn as_any(&self) -> &dyn Any;
}

impl Value {
    /// Memory that the value holds, counted against the budget of an edge.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Document(bytes) => bytes.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Image(image) => image.pixels.len(),
            Self::Words(words) => words
                .iter()
                .map(|word| size_of::<Word>() + word.text.len())
                .sum(),
            Self::Text(text) => text.len(),
            Self::Vectors(vectors) => vectors.n_bytes(),
            Self::Bool(_) | Self::Integer(_) | Self::Float(_) => 8,
            Self::Custom(value) => value.n_bytes(),
        }
    }
}

macro_rules! value_from {
    ($($from:ty => $variant:ident($convert:expr)),+ $(,)?) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                #[allow(clippy::redundant_closure_call)] // One shape for all conversions.
                Self::$variant(($convert)(value))
            }
        }
    )+};
}

value_from! {
    Image => Image(Arc::new),
    Arc<Image> => Image(|image| image),
    Vec<Word> => Words(Arc::from),
    Arc<[Word]> => Words(|words| words),
    &str => Text(Arc::from),
    String => Text(Arc::from),
    Arc<str> => Text(|text| text),
    Vectors => Vectors(Arc::new),
    Arc<Vectors> => Vectors(|vectors| vectors),
    bool => Bool(|flag| flag),
    i64 => Integer(|number| number),
    u32 => Integer(i64::from),
    f64 => Float(|number| number),
}

/// Pixels of one page or picture: RGB, 8 bits a channel, row-major
/// `[height_px, width_px, 3]`, no padding between rows.
#[derive(Debug)]
pub struct Image {
    /// `width_px * height_px * 3` bytes.
    pub pixels: PixelBuffer,
    /// Width in pixels, at least 1.
    pub width_px: u32,
    /// Height in pixels, at least 1.
    pub height_px: u32,
    /// Resolution relative to the page's size in points; `None` for a picture without one.
    pub dpi: Option<f32>,
}

impl Image {
    /// Wraps RGB8 pixels.
    ///
    /// Returns `None` unless `pixels` holds exactly `width_px * height_px * 3`
    /// bytes and both sides are at least 1.
    pub fn new(
        pixels: impl Into<PixelBuffer>,
        width_px: u32,
        height_px: u32,
        dpi: Option<f32>,
    ) -> Option<Self> {
        let pixels = pixels.into();
        let n_bytes = u64::from(width_px) * u64::from(height_px) * 3;
        (n_bytes > 0 && pixels.len() as u64 == n_bytes).then_some(Self {
            pixels,
            width_px,
            height_px,
            dpi,
        })
    }

    /// Number of pixels.
    pub fn n_pixels(&self) -> u64 {
        u64::from(self.width_px) * u64::from(self.height_px)
    }
}

/// A buffer of pixels that goes back to its [`BufferPool`] when it is dropped.
#[derive(Debug)]
pub struct PixelBuffer {
    bytes: Vec<u8>,
    pool: Option<BufferPool>,
}

impl std::ops::Deref for PixelBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for PixelBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl From<Vec<u8>> for PixelBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, pool: None }
    }
}

impl Drop for PixelBuffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

/// Page buffers that are used again instead of being allocated for each page.
///
/// Clones share one pool. It keeps at most `max_kept` idle buffers, so that
/// its memory is bounded whatever the run does.
#[derive(Debug, Clone)]
pub struct BufferPool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    max_kept: usize,
}

impl BufferPool {
    /// A pool that keeps at most `max_kept` idle buffers.
    pub fn new(max_kept: usize) -> Self {
        Self {
            idle: Arc::default(),
            max_kept,
        }
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(&self, bytes: &[u8]) -> PixelBuffer {
        let mut buffer = self.take();
        buffer.extend_from_slice(bytes);
        PixelBuffer {
            bytes: buffer,
            pool: Some(self.clone()),
        }
    }

    /// A buffer of `n_bytes` zeroes.
    pub fn zeroed(&self, n_bytes: usize) -> PixelBuffer {
        let mut buffer = self.take();
        buffer.resize(n_bytes, 0);
        PixelBuffer {
            bytes: buffer,
            pool: Some(self.clone()),
        }
    }

    fn take(&self) -> Vec<u8> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_kept {
            idle.push(buffer);
        }
    }
}

/// A word and its box on the page as displayed: points (1/72 inch), origin at
/// the top left, y downwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// The word's text, without spaces.
    pub text: String,
    /// Left edge.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Bottom edge.
    pub y1: f32,
}

/// One or more vectors of one length: `[n, dim]`, row-major, `n >= 1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    data: VectorData,
    dim: usize,
}

/// The numbers of [`Vectors`].
#[derive(Debug, Clone, PartialEq)]
pub enum VectorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
}

impl Vectors {
    /// Wraps `[n, dim]` numbers; `None` if they are not a whole number of rows, or none.
    pub fn new(data: VectorData, dim: usize) -> Option<Self> {
        let len = match &data {
            VectorData::F32(numbers) => numbers.len(),
            VectorData::F16(numbers) => numbers.len(),
        };
        (dim > 0 && len > 0 && len.is_multiple_of(dim)).then_some(Self { data, dim })
    }

    /// One vector of 32-bit floats; `None` if it is empty.
    pub fn single(vector: Vec<f32>) -> Option<Self> {
        let dim = vector.len();
        Self::new(VectorData::F32(vector), dim)
    }

    /// The numbers, row after row.
    pub fn data(&self) -> &VectorData {
        &self.data
    }

    /// Length of each vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of vectors, at least 1.
    pub fn n(&self) -> usize {
        match &self.data {
            VectorData::F32(numbers) => numbers.len() / self.dim,
            VectorData::F16(numbers) => numbers.len() / self.dim,
        }
    }

    fn n_bytes(&self) -> usize {
        match &self.data {
            VectorData::F32(numbers) => numbers.len() * 4,
            VectorData::F16(numbers) => numbers.len() * 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_must_have_as_many_bytes_as_its_sides_claim() {
        assert!(Image::new(vec![0; 12], 2, 2, None).is_some());
        assert!(Image::new(vec![0; 11], 2, 2, None).is_none());
        assert!(Image::new(vec![], 0, 9, None).is_none());
    }

    #[test]
    fn vectors_are_whole_rows_and_never_none() {
        let vectors = Vectors::new(VectorData::F32(vec![0.0; 6]), 3).expect("two rows of three");
        assert_eq!((vectors.n(), vectors.dim()), (2, 3));
        assert!(Vectors::new(VectorData::F32(vec![0.0; 5]), 3).is_none());
        assert!(Vectors::new(VectorData::F32(vec![]), 3).is_none());
        assert!(Vectors::new(VectorData::F16(vec![]), 3).is_none());
        assert!(Vectors::new(VectorData::F16(vec![f16::ONE; 2]), 0).is_none());
        let half = Vectors::new(VectorData::F16(vec![f16::ONE; 6]), 3).expect("two rows of three");
        assert_eq!((half.n(), half.n_bytes()), (2, 12));
    }

    #[test]
    fn a_dropped_buffer_is_used_again_and_the_pool_is_bounded() {
        let pool = BufferPool::new(1);
        let (a, b) = (pool.copy_of(&[1; 64]), pool.copy_of(&[2; 64]));
        let place = a.as_ptr();
        drop(a);
        drop(b);
        assert_eq!(pool.idle.lock().expect("no thread panicked").len(), 1);
        let c = pool.zeroed(64);
        assert_eq!(c.as_ptr(), place);
        assert!(c.iter().all(|byte| *byte == 0));
    }
}

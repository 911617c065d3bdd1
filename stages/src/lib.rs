//! pagemill's sources and stages, one file or folder for each kind.
//!
//! In the order in which data flows: [`ReadFiles`] brings documents in,
//! [`RenderPdf`] makes pages of PDFs and, after it, [`DecodeImage`] of pictures;
//! [`Resize`] and [`Thumbnail`] work on their pixels; [`ChunkText`] splits
//! their text, and [`EmbedText`] turns it into vectors.
//!
//! ```
//! use pagemill_pipeline::Registry;
//!
//! let registry = pagemill_stages::register(Registry::new());
//! assert!(registry.kinds().any(|(kind, _)| kind == "read_files"));
//! ```

// From files to pages.
mod media;

mod read_files;

pub mod render_pdf;

mod decode_image;

// Pages.
mod pixels;

mod resize;

mod thumbnail;

// From text to vectors.
mod models;

mod chunk_text;

mod embed_text;

#[cfg(test)]
mod testing;

use pagemill_pipeline::Registry;

pub use chunk_text::{ChunkText, ChunkTextConfig};
pub use decode_image::{DecodeImage, DecodeImageConfig};
pub use embed_text::{EmbedText, EmbedTextConfig};
pub use read_files::{ReadFiles, ReadFilesConfig};
pub use render_pdf::{RenderPdf, RenderPdfConfig};
pub use resize::{Resize, ResizeConfig};
pub use thumbnail::{Thumbnail, ThumbnailConfig, ThumbnailFormat};

/// Adds the kinds of this crate.
#[must_use]
pub fn register(registry: Registry) -> Registry {
    registry
        .source::<ReadFilesConfig>()
        .stage::<RenderPdfConfig>()
        .stage::<DecodeImageConfig>()
        .stage::<ResizeConfig>()
        .stage::<ThumbnailConfig>()
        .stage::<ChunkTextConfig>()
        .stage::<EmbedTextConfig>()
}

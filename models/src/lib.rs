//! The networks pagemill runs, on candle: pages and text in, vectors or text out.
//!
//! The crate knows no pipeline. A caller goes through it in this order:
//!
//! 1. A model's name becomes a folder: [`resolve()`] looks at a path, pagemill's cache and the
//!    Hugging Face cache, which [`ModelPlaces::from_environment`] finds, and [`fetch()`] fills
//!    the latter from the hub. [`list()`] shows what is there, and [`TextEncoder::describe`]
//!    tells what a model is before it is loaded.
//! 2. The folder becomes an encoder: [`TextEncoder::load`] checks that configuration,
//!    vocabulary and weights fit together, and puts the weights on a [`Device`].
//! 3. Text is cut into chunks that the model reads whole: [`TextTokenizer::count`] measures
//!    as the model does.
//! 4. Chunks become vectors: [`TextEncoder::encode`], or [`TextEncoder::encode_each`] where
//!    one bad text must not take the others with it.
//!
//! Pages become vectors by an [`Encoder`], and text by a [`Generator`], which answers many
//! requests at once.
//!
//! Everything that fails is a [`ModelError`], whose [`hint`](ModelError::hint) says what to
//! do.
//!
//! # Inside
//!
//! `files`, `settings` and `weights` read a model's folder, `batch` lays out token ids, and
//! `bert` is the network in two forms: on the processor our own, over texts packed end to
//! end, whose steps between matrix products are in `fused`, on top of `simd` and
//! `attention`; on any other device candle-transformers' `BertModel`, over texts padded to
//! the longest. Both give the same vectors to rounding. `qwen` are the networks that read
//! pages, and `generate` makes text with them. No type of candle or tokenizers
//! leaves the crate.
//!
//! Larger networks take their weights from a `loader`, whose `checkpoint` knows safetensors,
//! the 4-bit layouts of `w4a16` and `gguf` files, which also say what JSON files would;
//! `quantized` multiplies what is in few bits as it is stored.
//!
//! # Features
//!
//! `cuda` and `metal` bring those devices; `mkl` and `accelerate` bring those libraries'
//! matrix products for the processor.

// Asking for something, and being refused.
mod device;
mod error;

// From a name to what its folder says, and which version of it that is.
mod hub;

mod resolve;
mod revision;

mod files;

mod settings;

mod weights;

mod card;

// From text to tokens to vectors.
mod tokenizer;

mod batch;

mod simd;

mod attention;

mod fused;

mod bert;

mod text_encoder;

// From pixels and text to vectors, by whichever network.
mod open;

mod loader;

mod lora;

mod quantized;

mod w4a16;

mod gguf;

mod checkpoint;

mod linear;

mod ops;

mod preprocess;

mod vocabulary;

mod qwen;

mod dual;

mod embedding;

mod col;

mod encoder;

// From pixels and text to text.
mod generate;

#[doc(hidden)]
pub mod fuzzing;

#[cfg(test)]
mod reference;

#[cfg(test)]
mod testing;

pub use card::{ModelCard, Prompts};
pub use col::TextRole;
pub use device::Device;
pub use embedding::{Embedding, Numbers, PatchPlaces, Precision};
pub use encoder::{Encoder, EncoderKind, EncoderOptions};
pub use error::{Cause, ModelError, ShapeMismatch};
pub use generate::{
    Constraint, Event, FinishReason, GenerateProblem, GenerateRequest, Generated, Generator,
    GeneratorCard, GeneratorOptions, Limits, Message, Part, RequestId, Sampling,
};
pub use hub::{FetchProblem, FetchProgress, Hub, fetch, resolve_or_fetch};
pub use loader::{Dtype, Quantization};
pub use preprocess::{
    Family, Grid, ImageProblem, ImageProcessor, Patches, ProcessorOptions, RgbView,
};
pub use resolve::{InstalledModel, ModelPlaces, list, resolve};
pub use revision::revision;
pub use text_encoder::{LoadOptions, TextEncoder};
pub use tokenizer::TextTokenizer;

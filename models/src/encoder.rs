//! Whatever turns pages, pictures or text into vectors, chosen by what a model's folder says.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use crate::card::ModelCard;
use crate::col::{ColEncoder, ColOptions, TextRole};
use crate::device::Device;
use crate::dual::{DualEncoder, DualOptions};
use crate::embedding::{Embedding, Numbers, Precision};
use crate::error::ModelError;
use crate::generate::card::only_writes;
use crate::loader::{Dtype, LoaderOptions, Quantization};
use crate::open;
use crate::preprocess::{Grid, ImageProcessor, Patches};
use crate::qwen::config;
use crate::text_encoder::{LoadOptions, TextEncoder};

/// How to load an [`Encoder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderOptions {
    /// Where to compute.
    pub device: Device,
    /// What to compute in. `None`: f32 on the processor, bf16 on a device.
    pub dtype: Option<Dtype>,
    /// Weights in fewer bits, by default those of the language model only.
    pub quantize: Option<Quantization>,
    /// Quantizes the vision tower as well.
    pub quantize_vision: bool,
    /// The most tokens that a page may become, where the model can choose. `None`: what the
    /// model's own processor says.
    pub max_visual_tokens: Option<usize>,
    /// Cuts texts at this many tokens. `None`: at the model's own limit.
    pub max_tokens: Option<usize>,
    /// The most tokens in one pass of the network; a single larger page still gets its pass.
    /// Bounds the memory of a call of any size. `None`: what suits the device.
    pub max_pass_tokens: Option<usize>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: None,
            quantize: None,
            quantize_vision: false,
            max_visual_tokens: None,
            max_tokens: None,
            max_pass_tokens: None,
        }
    }
}

impl EncoderOptions {
    fn loader(&self) -> LoaderOptions {
        let usual = match self.device {
            Device::Cpu => Dtype::F32,
            Device::Cuda(_) | Device::Metal => Dtype::BF16,
        };
        LoaderOptions {
            device: self.device,
            dtype: self.dtype.unwrap_or(usual),
            quantize: self.quantize,
            quantize_vision: self.quantize_vision,
            dequantize: false,
        }
    }

    /// On the processor a page fills the cores, and a second only the memory.
    fn pass_tokens(&self) -> usize {
        let usual = match self.device {
            Device::Cpu => 1024,
            Device::Cuda(_) | Device::Metal => 16_384,
        };
        self.max_pass_tokens.unwrap_or(usual).max(1)
    }
}

/// The families of encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderKind {
    /// BERT and its kin: a text to one vector.
    Sentence,
    /// `ColQwen2.5`, `ColQwen3`: a page or a question to one vector for each token.
    LateInteraction,
    /// CLIP, SigLIP, SigLIP2: a picture or a text to one vector.
    Dual,
}

impl EncoderKind {
    /// Whether it has many vectors for one item.
    pub fn is_multi_vector(self) -> bool {
        self == Self::LateInteraction
    }

    /// Whether it reads pictures.
    pub fn reads_images(self) -> bool {
        self != Self::Sentence
    }

    /// The kind of the model in `folder`, by its configuration; of an adapter, its base's.
    ///
    /// # Errors
    /// The configuration is missing, damaged, or of no encoder that this crate has.
    pub fn of(folder: &Path) -> Result<Self, ModelError> {
        let (base, config) = open::read_config(folder)?;
        // An adapter brings the head for vectors.
        if base == folder && only_writes(&base, &config) {
            let name = config.pointer("/architectures/0");
            let name = name.or_else(|| config.get("model_type"));
            return Err(ModelError::MakesNoVectors {
                architecture: name.and_then(Value::as_str).unwrap_or_default().to_owned(),
                folder: base,
            });
        }
        Self::family(&base, &config)
    }

    /// As [`EncoderKind::of`], and by whose pictures a model that only writes is given them.
    fn family(folder: &Path, config: &Value) -> Result<Self, ModelError> {
        let model_type = config.get("model_type").and_then(Value::as_str);
        match model_type.unwrap_or_default() {
            "clip" | "siglip" | "siglip2" => return Ok(Self::Dual),
            "clip_vision_model"
            | "clip_text_model"
            | "siglip_vision_model"
            | "siglip_text_model"
            | "siglip2_vision_model"
            | "siglip2_text_model" => {
                return Ok(Self::Dual);
            }
            _ => {}
        }
        if config::generation(config).is_some() {
            return Ok(Self::LateInteraction);
        }
        let architecture = config.pointer("/architectures/0").and_then(Value::as_str);
        let found = model_type.or(architecture).unwrap_or_default();
        if found == "bert" || found.starts_with("Bert") {
            return Ok(Self::Sentence);
        }
        Err(ModelError::Unsupported {
            field: "model_type".into(),
            found: found.to_owned(),
            supported: &[
                "bert",
                "qwen2_5_vl",
                "qwen3_vl",
                "clip",
                "siglip",
                "siglip2",
            ],
            path: folder.join("config.json"),
        })
    }
}

/// A loaded model that makes vectors.
///
/// Pictures come as [`Patches`], which [`Encoder::processor`] makes of pixels: that needs no
/// device, so it can be done beside the network's work, on other threads, and once for several
/// models.
///
/// ```no_run
/// use pagemill_models::{Encoder, EncoderOptions, Precision, RgbView, TextRole};
///
/// # fn main() -> Result<(), pagemill_models::ModelError> {
/// # let (folder, pixels) = (std::path::Path::new("colqwen2.5"), vec![0; 600 * 800 * 3]);
/// let encoder = Encoder::load(folder, &EncoderOptions::default())?;
/// let page = RgbView { pixels: &pixels, width_px: 600, height_px: 800 };
/// let processor = encoder.processor().expect("it reads pages");
/// let page = processor.prepare(page)?;
/// let pages = encoder.embed_images(&[&page], Precision::F16)?;
/// let questions = encoder.embed_texts(&["who signed?"], TextRole::Query, Precision::F32)?;
/// # let _ = (pages, questions);
/// # Ok(())
/// # }
/// ```
pub struct Encoder {
    network: Network,
}

enum Network {
    Sentence(Box<TextEncoder>),
    LateInteraction(Box<ColEncoder>),
    Dual(Box<DualEncoder>),
}

impl fmt::Debug for Encoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Encoder")
            .field("kind", &self.kind())
            .field("dim", &self.dim())
            .finish_non_exhaustive()
    }
}

impl Encoder {
    /// Loads the model in `folder`, which may hold an adapter whose base is elsewhere.
    ///
    /// # Errors
    /// A file is missing or damaged, the parts do not fit together, the model needs what this
    /// crate does not compute, or the device is not available.
    pub fn load(folder: &Path, options: &EncoderOptions) -> Result<Self, ModelError> {
        let network = match EncoderKind::of(folder)? {
            EncoderKind::Sentence => Network::Sentence(Box::new(TextEncoder::load(
                folder,
                &LoadOptions {
                    device: options.device,
                    max_tokens: options.max_tokens,
                    ..LoadOptions::default()
                },
            )?)),
            EncoderKind::LateInteraction => {
                let own = ColOptions {
                    max_visual_tokens: options.max_visual_tokens,
                    max_tokens: options.max_tokens,
                    max_pass_tokens: options.pass_tokens(),
                };
                let encoder = ColEncoder::load(folder, &options.loader(), &own)?;
                Network::LateInteraction(Box::new(encoder))
            }
            EncoderKind::Dual => {
                let own = DualOptions {
                    max_visual_tokens: options.max_visual_tokens,
                    max_tokens: options.max_tokens,
                    pass_limit: options.pass_tokens(),
                };
                let encoder = DualEncoder::load(folder, &options.loader(), &own)?;
                Network::Dual(Box::new(encoder))
            }
        };
        Ok(Self { network })
    }

    /// Describes the model in `folder` without loading it.
    ///
    /// # Errors
    /// As for [`Encoder::load`], except that tensors are not looked at.
    pub fn describe(folder: &Path) -> Result<ModelCard, ModelError> {
        crate::card::describe(folder)
    }

    /// Which family it is of.
    pub fn kind(&self) -> EncoderKind {
        match &self.network {
            Network::Sentence(_) => EncoderKind::Sentence,
            Network::LateInteraction(_) => EncoderKind::LateInteraction,
            Network::Dual(_) => EncoderKind::Dual,
        }
    }

    /// Length of each vector.
    pub fn dim(&self) -> usize {
        match &self.network {
            Network::Sentence(encoder) => encoder.dim(),
            Network::LateInteraction(encoder) => encoder.dim(),
            Network::Dual(encoder) => encoder.dim(),
        }
    }

    /// Tokens at which a text is cut.
    pub fn max_tokens(&self) -> usize {
        match &self.network {
            Network::Sentence(encoder) => encoder.max_tokens(),
            Network::LateInteraction(encoder) => encoder.max_tokens(),
            Network::Dual(encoder) => encoder.max_tokens(),
        }
    }

    /// What makes patches of pixels for this model; `None` if it reads only text.
    pub fn processor(&self) -> Option<&ImageProcessor> {
        match &self.network {
            Network::Sentence(_) => None,
            Network::LateInteraction(encoder) => Some(encoder.processor()),
            Network::Dual(encoder) => encoder.processor(),
        }
    }

    /// What a picture costs: the tokens that it becomes, those of a prompt included.
    pub fn n_image_tokens(&self, grid: Grid) -> usize {
        match &self.network {
            Network::LateInteraction(encoder) => encoder.n_page_tokens(grid),
            Network::Sentence(_) | Network::Dual(_) => grid.n_tokens(),
        }
    }

    /// What a text costs.
    pub fn n_text_tokens(&self, text: &str) -> usize {
        match &self.network {
            Network::Sentence(encoder) => encoder.tokenizer().count(text).min(encoder.max_tokens()),
            Network::LateInteraction(encoder) => encoder.n_text_tokens(text),
            Network::Dual(encoder) => encoder.n_text_tokens(text),
        }
    }

    /// The words of a question, each with the vectors that [`Encoder::embed_texts`] gives for
    /// it; empty for models with one vector.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn words(
        &self,
        question: &str,
    ) -> Result<Vec<(String, std::ops::Range<usize>)>, ModelError> {
        match &self.network {
            Network::LateInteraction(encoder) => encoder.words(question),
            Network::Sentence(_) | Network::Dual(_) => Ok(Vec::new()),
        }
    }

    /// What lays pictures out for the model in `folder`, without loading the model.
    ///
    /// # Errors
    /// The model reads no pictures, or its processor's settings are missing, damaged or not
    /// computed here.
    pub fn open_processor(
        folder: &Path,
        max_visual_tokens: Option<usize>,
    ) -> Result<ImageProcessor, ModelError> {
        let (base, config) = open::read_config(folder)?;
        match EncoderKind::family(&base, &config)? {
            EncoderKind::Sentence => Err(ModelError::NotRead { what: "pictures" }),
            EncoderKind::LateInteraction => {
                let folders = [folder, base.as_path()];
                crate::col::open_processor(&folders, max_visual_tokens)
            }
            EncoderKind::Dual => crate::dual::open_processor(folder, max_visual_tokens),
        }
    }

    /// One result for each picture, in their order; the patches must be of this model's
    /// [`Encoder::processor`], or one with the same key. A picture's vectors do not depend on
    /// those beside it, beyond rounding (about 1e-6).
    ///
    /// # Errors
    /// Only what concerns all pictures: the model reads none, or the device fails. One whose
    /// vectors are not finite has its own error.
    pub fn embed_images(
        &self,
        images: &[&Patches],
        precision: Precision,
    ) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        match &self.network {
            Network::LateInteraction(encoder) => encoder.embed_images(images, precision),
            Network::Dual(encoder) => encoder.embed_images(images, precision),
            Network::Sentence(_) => Err(ModelError::NotRead { what: "pictures" }),
        }
    }

    /// One result for each text, in their order. `role` matters to models that mark questions.
    ///
    /// # Errors
    /// Only what concerns all texts: the model reads none, or the device fails.
    pub fn embed_texts(
        &self,
        texts: &[&str],
        role: TextRole,
        precision: Precision,
    ) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        match &self.network {
            Network::LateInteraction(encoder) => encoder.embed_texts(texts, role, precision),
            Network::Dual(encoder) => encoder.embed_texts(texts, precision),
            Network::Sentence(encoder) => {
                let vectors = encoder.encode_each(texts)?;
                let single = |vector: Vec<f32>| Embedding {
                    dim: vector.len(),
                    numbers: Numbers::F32(vector),
                    patches: None,
                };
                Ok(vectors
                    .into_iter()
                    .map(|vector| vector.map(single))
                    .collect())
            }
        }
    }
}

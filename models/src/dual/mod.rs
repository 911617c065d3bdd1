//! CLIP, SigLIP and SigLIP2: a picture or a text to one vector, in one space
//! (Radford et al., <https://arxiv.org/abs/2103.00020>; Zhai et al.,
//! <https://arxiv.org/abs/2303.15343>; Tschannen et al., <https://arxiv.org/abs/2502.14786>).
//!
//! [`config`] reads what a checkpoint says; [`tower`] has the layers that all towers are made
//! of, [`vision`] and [`text`] what stands around them, [`positions`] SigLIP2's table for
//! images of any shape, and [`tokenizer`] the texts as each family was trained on them.

pub(crate) mod config;

mod card;

mod positions;

mod tower;

mod vision;

mod text;

mod tokenizer;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

pub(crate) use self::card::describe;
use self::config::{DualConfig, DualFamily, Side};
use self::text::TextTower;
use self::tokenizer::DualTokenizer;
use self::vision::VisionTower;
use crate::col::passes;
use crate::embedding::{Embedding, Precision};
use crate::error::ModelError;
use crate::loader::{Loader, LoaderOptions};
use crate::open;
use crate::preprocess::{Family, ImageProcessor, Patches, ProcessorOptions};

/// How to load a [`DualEncoder`], beyond its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DualOptions {
    /// The most patches of a picture, for models that read any shape.
    pub(crate) max_visual_tokens: Option<usize>,
    /// Cuts texts here if that is before the model's own limit.
    pub(crate) max_tokens: Option<usize>,
    /// The most patches or tokens in one pass; a single larger picture still gets its pass.
    pub(crate) pass_limit: usize,
}

/// An encoder of pictures, of texts, or of both.
pub(crate) struct DualEncoder {
    vision: Option<(VisionTower, ImageProcessor)>,
    text: Option<TextSide>,
    dim: usize,
    pass_limit: usize,
    dtype: DType,
    device: Device,
}

struct TextSide {
    tower: TextTower,
    /// `None` in a folder that has no `tokenizer.json`, which serves for pictures.
    tokenizer: Option<DualTokenizer>,
    n_positions: usize,
    folder: PathBuf,
}

impl DualEncoder {
    /// Loads the model in `folder`, which may hold an adapter whose base is elsewhere. Files of
    /// one tower make an encoder of one side.
    ///
    /// # Errors
    /// A file is missing or damaged, the parts do not fit together, the model needs what this
    /// crate does not compute, or the device is not available.
    pub(crate) fn load(
        folder: &Path,
        loader_options: &LoaderOptions,
        options: &DualOptions,
    ) -> Result<Self, ModelError> {
        let model = open::open_model(folder)?;
        let config = DualConfig::read(&model.base)?;
        let rename = match config.only {
            None => canonical_dual_name,
            Some(Side::Vision) => canonical_vision_name,
            Some(Side::Text) => canonical_text_name,
        };
        let loader = Loader::new(&model, rename, loader_options)?;
        let (has_vision, has_text) = config.sides_in(|name| loader.contains(name));
        let vision_config = config.vision.as_ref().filter(|_| has_vision);
        let text_config = config.text.as_ref().filter(|_| has_text);
        let vision = vision_config.map(|of| VisionTower::load(&loader, of, config.family));
        let text = text_config.map(|of| TextTower::load(&loader, of, config.family));
        let (dtype, device) = (loader.dtype(), loader.device().clone());
        // A missing tensor is the cause of whatever failed above.
        loader.finish()?;
        let vision = vision
            .transpose()
            .map_err(ModelError::compute("laying out the weights"))?;
        let processor = match vision_config {
            Some(own) => {
                let folders = [folder, &model.base];
                let tokens = options.max_visual_tokens;
                Some(read_processor(
                    &folders,
                    config.family,
                    own.patch_px,
                    tokens,
                )?)
            }
            None => None,
        };
        let own_vocabulary = folder.join("tokenizer.json").is_file();
        let vocabulary = if own_vocabulary { folder } else { &model.base };
        let text = match (text, text_config) {
            (Some(tower), Some(own)) => Some(TextSide {
                tower,
                tokenizer: DualTokenizer::read(vocabulary, own, config.family, options.max_tokens)?,
                n_positions: own.n_positions,
                folder: vocabulary.to_owned(),
            }),
            _ => None,
        };
        tracing::debug!(
            architecture = config.architecture,
            device = %loader_options.device,
            images = vision.is_some(),
            texts = text.is_some(),
            path = %model.base.display(),
            "loaded an encoder of pictures and texts"
        );
        Ok(Self {
            vision: vision.zip(processor),
            text,
            dim: config.dim(),
            pass_limit: options.pass_limit,
            dtype,
            device,
        })
    }

    /// Length of each vector.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Tokens at which a text is cut.
    pub(crate) fn max_tokens(&self) -> usize {
        let Some(text) = &self.text else { return 0 };
        let tokenizer = text.tokenizer.as_ref();
        tokenizer.map_or(text.n_positions, DualTokenizer::max_tokens)
    }

    /// What makes patches of pixels; `None` if the model reads only text.
    pub(crate) fn processor(&self) -> Option<&ImageProcessor> {
        self.vision.as_ref().map(|(_, processor)| processor)
    }

    /// What a text costs; one that cannot be tokenized costs the most.
    pub(crate) fn n_text_tokens(&self, text: &str) -> usize {
        self.encode_text(text)
            .map_or(self.max_tokens(), |ids| ids.len())
    }

    /// The ids of a text as its tower was trained to read them: cut to
    /// [`DualEncoder::max_tokens`] with its special tokens kept, and for SigLIP filled up.
    ///
    /// # Errors
    /// The model reads no text or has no tokenizer, or the vocabulary lacks a piece of it.
    pub(crate) fn encode_text(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let side = self.text_side()?;
        let tokenizer = side
            .tokenizer
            .as_ref()
            .ok_or_else(|| ModelError::MissingFile {
                file: "tokenizer.json".into(),
                folder: side.folder.clone(),
            })?;
        tokenizer.encode(text)
    }

    /// One vector of length 1 for each picture, `[pictures, dim]` f32 on the device.
    ///
    /// # Errors
    /// The model reads no pictures, one has another size than the only one it reads, or the
    /// device fails.
    pub(crate) fn embed_patches(&self, images: &[&Patches]) -> Result<Tensor, ModelError> {
        let (tower, _) = self
            .vision
            .as_ref()
            .ok_or(ModelError::NotRead { what: "pictures" })?;
        let grids: Vec<_> = images.iter().map(|patches| patches.grid).collect();
        vision::pack(images, self.dtype, &self.device)
            .and_then(|pixels| tower.forward(&pixels, &grids))
            .and_then(|vectors| tower::unit(&vectors))
            .map_err(ModelError::compute("embedding pictures"))
    }

    /// One vector of length 1 for each text, `[texts, dim]` f32 on the device, from ids as
    /// [`DualEncoder::encode_text`] gives them.
    ///
    /// # Errors
    /// The model reads no text, an id or a length is outside its tables, or the device fails.
    pub(crate) fn embed_ids(&self, texts: &[&[u32]]) -> Result<Tensor, ModelError> {
        let vectors = self.text_side()?.tower.forward(texts);
        vectors
            .and_then(|vectors| tower::unit(&vectors))
            .map_err(ModelError::compute("embedding texts"))
    }

    /// One embedding for each picture, in their order.
    pub(crate) fn embed_images(
        &self,
        images: &[&Patches],
        precision: Precision,
    ) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        let mut embeddings = Vec::with_capacity(images.len());
        let sizes = images.iter().map(|patches| patches.grid.n_patches());
        for pass in passes(sizes, self.pass_limit) {
            let vectors = self.embed_patches(&images[pass])?;
            embeddings.extend(rows(&vectors, precision, "embedding pictures")?);
        }
        Ok(Embedding::check_all(embeddings))
    }

    /// One embedding for each text, in their order; a text that cannot be tokenized fails
    /// alone.
    pub(crate) fn embed_texts(
        &self,
        texts: &[&str],
        precision: Precision,
    ) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        self.text_side()?;
        let ids: Vec<_> = texts.iter().map(|text| self.encode_text(text)).collect();
        let sound: Vec<&[u32]> = ids.iter().flatten().map(Vec::as_slice).collect();
        let mut embeddings = Vec::with_capacity(sound.len());
        let sizes = sound.iter().map(|ids| ids.len());
        for pass in passes(sizes, self.pass_limit) {
            let vectors = self.embed_ids(&sound[pass])?;
            embeddings.extend(rows(&vectors, precision, "embedding texts")?);
        }
        let mut embeddings = embeddings.into_iter();
        let results = ids.into_iter().enumerate().map(|(row, ids)| {
            ids?;
            let embedding = embeddings
                .next()
                .expect("each text with ids has an embedding");
            embedding.checked(row)
        });
        Ok(results.collect())
    }

    fn text_side(&self) -> Result<&TextSide, ModelError> {
        self.text
            .as_ref()
            .ok_or(ModelError::NotRead { what: "text" })
    }
}

/// What lays pictures out for the model in `folder`, without its weights.
///
/// # Errors
/// The model reads no pictures, or a file is missing or damaged.
pub(crate) fn open_processor(
    folder: &Path,
    max_visual_tokens: Option<usize>,
) -> Result<ImageProcessor, ModelError> {
    let model = open::open_model(folder)?;
    let config = DualConfig::read(&model.base)?;
    let own = config.vision.as_ref();
    let own = own.ok_or(ModelError::NotRead { what: "pictures" })?;
    let folders = [folder, &model.base];
    read_processor(&folders, config.family, own.patch_px, max_visual_tokens)
}

fn read_processor(
    folders: &[&Path],
    family: DualFamily,
    patch_px: usize,
    max_visual_tokens: Option<usize>,
) -> Result<ImageProcessor, ModelError> {
    let options = ProcessorOptions {
        patch_px: Some(patch_px),
        max_visual_tokens,
    };
    ImageProcessor::read_first(folders, family.into(), &options)
}

/// Single vectors off the device.
fn rows(
    vectors: &Tensor,
    precision: Precision,
    action: &'static str,
) -> Result<Vec<Embedding>, ModelError> {
    vectors
        .dim(0)
        .and_then(|n| {
            let rows: Vec<_> = (0..n).map(|row| row..row + 1).collect();
            Embedding::split(vectors, &rows, precision)
        })
        .map_err(ModelError::compute(action))
}

impl From<DualFamily> for Family {
    fn from(family: DualFamily) -> Self {
        match family {
            DualFamily::Clip => Self::Clip,
            DualFamily::Siglip => Self::Siglip,
            DualFamily::Siglip2 => Self::Siglip2,
        }
    }
}

/// The name of a tensor without what wrappers put in front: `vision_model.*`,
/// `text_model.*`, `visual_projection.weight`, `text_projection.weight`.
fn canonical_dual_name(name: &str) -> String {
    let wrappers = ["model.", "clip.", "siglip.", "siglip2.", "base_model."];
    let mut rest = name;
    while let Some(inner) = wrappers
        .iter()
        .find_map(|wrapper| rest.strip_prefix(wrapper))
    {
        rest = inner;
    }
    rest.to_owned()
}

/// The same for a file of the image side alone, which may leave out `vision_model.`.
fn canonical_vision_name(name: &str) -> String {
    canonical_side_name(name, "vision_model.")
}

/// The same for a file of the text side alone, which may leave out `text_model.`.
fn canonical_text_name(name: &str) -> String {
    canonical_side_name(name, "text_model.")
}

fn canonical_side_name(name: &str, tower: &str) -> String {
    let name = canonical_dual_name(name);
    let parts = [
        "embeddings.",
        "encoder.",
        "pre_layrnorm.",
        "post_layernorm.",
        "final_layer_norm.",
        "head.",
    ];
    if parts.iter().any(|part| name.starts_with(part)) {
        return format!("{tower}{name}");
    }
    name
}

#[cfg(test)]
mod tests;

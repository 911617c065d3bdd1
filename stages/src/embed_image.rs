//! `kind = "embed_image"`: page images to vectors, with a visual encoder.

use std::path::PathBuf;
use std::sync::Arc;

use pagemill_models::{Encoder, EncoderOptions, Precision};
use pagemill_pipeline::{
    BatchPolicy, Field, FieldError, FieldType, Fields, Item, ItemError, Outlet, Resources, Stage,
    StageConfig, StageError,
};
use serde::Deserialize;

use crate::models::{self, Compute, Loaded, Output};
use crate::patches::{self, PatchCache, PreparedImage};

const ACTION: &str = "embed";

/// Vectors of the prompt before the first that stands for a part of the page.
pub(crate) const PATCH_START: Field = Field::new("patch_start", FieldType::Integer);
/// Rows of parts that the page has.
pub(crate) const PATCH_ROWS: Field = Field::new("patch_rows", FieldType::Integer);
/// Parts in a row.
pub(crate) const PATCH_COLS: Field = Field::new("patch_cols", FieldType::Integer);

/// Settings of `kind = "embed_image"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedImageConfig {
    /// Name of the model, such as `vidore/colqwen2.5-v0.2`, or the path of its folder.
    pub model: String,
    /// Where to compute: `cpu`, `cuda:0`, `metal`, or `auto`, a GPU if the build and the machine
    /// have one.
    #[serde(default = "models::default_device")]
    pub device: String,
    /// What to compute in: `f32`, `f16` or `bf16`; by default `f32` on the processor and
    /// `bf16` elsewhere.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Weights in fewer bits: `q8_0`, `q6_k` or `q4_k`; those of the language model only.
    #[serde(default)]
    pub quantize: Option<String>,
    /// Whether `quantize` is for the vision tower's weights too.
    #[serde(default)]
    pub quantize_vision: bool,
    /// The most tokens that a page may become, where the model can choose.
    #[serde(default)]
    pub max_visual_tokens: Option<usize>,
    /// The field that the model fills: `vectors`, one for each token of the page, as `ColQwen`
    /// has them, or `vector`, one for the picture, as CLIP and SigLIP have.
    #[serde(default = "Output::many")]
    pub output: Output,
    /// Whether pixels and patches go on to the next stage.
    #[serde(default)]
    pub keep_image: bool,
}

impl EmbedImageConfig {
    /// This model, on the best device, with many vectors a page.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            device: models::default_device(),
            dtype: None,
            quantize: None,
            quantize_vision: false,
            max_visual_tokens: None,
            output: Output::Vectors,
            keep_image: false,
        }
    }

    fn compute(&self) -> Compute<'_> {
        Compute {
            device: &self.device,
            dtype: self.dtype.as_deref(),
            quantize: self.quantize.as_deref(),
        }
    }
}

impl StageConfig for EmbedImageConfig {
    const KIND: &'static str = "embed_image";
    const ABOUT: &'static str = "page images to vectors, with a visual encoder";
    const EXAMPLE: &'static str = "model = \"vidore/colqwen2.5-v0.2\"\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let mut fields = Fields::reads([Field::IMAGE])
            .or_instead(&Field::IMAGE, Field::PATCHES)
            .to_every_item();
        if !self.keep_image {
            fields = fields.drops([Field::IMAGE, Field::PATCHES]);
        }
        match self.output {
            Output::Vector => fields.adds([Field::VECTOR]),
            Output::Vectors => fields.adds([Field::VECTORS, PATCH_START, PATCH_ROWS, PATCH_COLS]),
        }
    }

    fn batch(&self) -> BatchPolicy {
        BatchPolicy::of_items(16, 20).with_max_tokens(16_384)
    }

    fn row_settings(&self) -> String {
        let of_rows = Self {
            device: String::new(),
            keep_image: false,
            ..self.clone()
        };
        format!("{of_rows:?}")
    }

    fn revision(&self, resources: &Resources) -> String {
        models::revision(&self.model, resources)
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(EmbedImage::new(self, resources)?))
    }
}

/// Adds vectors to each item that has a picture or its patches.
pub struct EmbedImage {
    folder: PathBuf,
    options: EncoderOptions,
    output: Output,
    keep_image: bool,
    cache: Arc<PatchCache>,
    /// Shared by all stages of the run that name the same model.
    loaded: Arc<Loaded<Encoder>>,
    /// Set by [`Stage::start`], with the key of its patches.
    encoder: Option<(Arc<Encoder>, Arc<str>)>,
}

impl EmbedImage {
    /// Checks the settings and finds the model.
    ///
    /// # Errors
    /// When a setting names nothing that there is, or the model is not found, reads no
    /// pictures, or makes another kind of output.
    pub fn new(config: &EmbedImageConfig, resources: &Resources) -> Result<Self, FieldError> {
        let mut options = config.compute().options()?;
        options.max_visual_tokens = config.max_visual_tokens;
        if config.quantize_vision && config.quantize.is_none() {
            return Err(FieldError::new(
                "quantize_vision",
                "needs `quantize`, which says to what",
                "set `quantize = \"q8_0\"`, or leave `quantize_vision` out",
            ));
        }
        options.quantize_vision = config.quantize_vision;
        let folder = models::find_folder(&config.model, resources)?;
        let kind = models::kind(&folder)?;
        if !kind.reads_images() {
            return Err(FieldError::new(
                "model",
                format_args!("names a model that reads no pictures: `{}`", config.model),
                "use a visual encoder such as `vidore/colqwen2.5-v0.2`, or `embed_text`",
            ));
        }
        config.output.check(kind)?;
        models::processor(&folder, config.max_visual_tokens)?;
        Ok(Self {
            loaded: models::shared(&folder, &options, resources),
            folder,
            options,
            output: config.output,
            keep_image: config.keep_image,
            cache: resources.get_or_insert("patches", PatchCache::default),
            encoder: None,
        })
    }

    /// The item's patches: those that came with it, if they are this model's, or its picture's.
    fn prepared(&self, item: &Item) -> Result<PreparedImage, ItemError> {
        let (encoder, key) = self.encoder.as_ref().ok_or_else(not_started)?;
        if let Some(prepared) = PreparedImage::of(item) {
            if prepared.key == *key {
                return Ok(prepared.clone());
            }
            if item.image().is_none() {
                let reason = "its patches were made for another model";
                let hint = "give `prepare_image` the same `model` and `max_visual_tokens`";
                return Err(ItemError::new(ACTION, reason).hint(hint));
            }
        }
        let processor = encoder.processor().ok_or_else(not_started)?;
        patches::prepare(ACTION, item, processor, key, &self.cache)
    }
}

fn not_started() -> ItemError {
    ItemError::new(ACTION, "`embed_image` has not been started").hint("call `start` first")
}

impl Stage for EmbedImage {
    fn start(&mut self) -> Result<(), StageError> {
        let load = || Encoder::load(&self.folder, &self.options);
        let encoder = self.loaded.get_or_load(load).map_err(models::fatal)?;
        let key = encoder.processor().map(|processor| processor.key().into());
        self.encoder = key.map(|key| (encoder, key));
        Ok(())
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let Some((encoder, _)) = &self.encoder else {
            return Err(StageError::fatal(
                "`embed_image` has not been started",
                "call `start` first",
            ));
        };
        let encoder = Arc::clone(encoder);
        let mut ready = Vec::with_capacity(batch.len());
        for mut item in batch {
            item.remove(&self.output.field().name);
            match self.prepared(&item) {
                Ok(prepared) => ready.push((item, prepared)),
                Err(error) => outlet.dead_letter(item, error),
            }
        }
        let patches: Vec<_> = ready
            .iter()
            .map(|(_, prepared)| &*prepared.patches)
            .collect();
        // Results are in main memory when this returns: a blocked stage holds nothing on the
        // device.
        let embedded = encoder
            .embed_images(&patches, Precision::F16)
            .map_err(models::fatal)?;
        for ((mut item, _), embedding) in ready.into_iter().zip(embedded) {
            let set = embedding.map_err(models::item_error).and_then(|embedding| {
                if let Some(places) = embedding.patches {
                    let numbers = [
                        (PATCH_START, places.start),
                        (PATCH_ROWS, places.rows),
                        (PATCH_COLS, places.cols),
                    ];
                    for (field, number) in numbers {
                        item.set(field.name, number as i64);
                    }
                }
                self.output.set(&mut item, embedding)
            });
            if let Err(error) = set {
                outlet.dead_letter(item, error);
                continue;
            }
            if !self.keep_image {
                item.remove(&Field::IMAGE.name);
                item.remove(&Field::PATCHES.name);
            }
            outlet.send(item)?;
        }
        Ok(())
    }

    fn n_tokens(&self, item: &Item) -> usize {
        let Some((encoder, key)) = &self.encoder else {
            return 1;
        };
        if let Some(prepared) = PreparedImage::of(item)
            && prepared.key == *key
        {
            return encoder.n_image_tokens(prepared.patches.grid);
        }
        let grid = encoder
            .processor()
            .zip(item.image())
            .and_then(|(processor, image)| processor.grid(image.width_px, image.height_px).ok());
        // What cannot be prepared never reaches the model.
        grid.map_or(1, |grid| encoder.n_image_tokens(grid))
    }
}

#[cfg(test)]
mod tests;

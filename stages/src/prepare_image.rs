//! `kind = "prepare_image"`: page images to the patches that a model takes.

use std::sync::Arc;

use pagemill_models::ImageProcessor;
use pagemill_pipeline::{
    Field, FieldError, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig, StageError,
    Value,
};
use serde::Deserialize;

use crate::models;
use crate::patches::{self, PatchCache};

/// Settings of `kind = "prepare_image"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareImageConfig {
    /// Name of the model that the pictures are for, or the path of its folder.
    pub model: String,
    /// The most tokens that a page may become, where the model can choose.
    #[serde(default)]
    pub max_visual_tokens: Option<usize>,
    /// Whether the pixels go on beside the patches. Without them an item is a fraction of the
    /// size, so more of them fit into an edge's budget.
    #[serde(default)]
    pub keep_image: bool,
}

impl PrepareImageConfig {
    /// For this model, without keeping the pixels.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            max_visual_tokens: None,
            keep_image: false,
        }
    }
}

impl StageConfig for PrepareImageConfig {
    const KIND: &'static str = "prepare_image";
    const ABOUT: &'static str = "resizes page images and cuts them into a model's patches";
    const EXAMPLE: &'static str = "model = \"vidore/colqwen2.5-v0.2\"\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let fields = Fields::reads([Field::IMAGE]).adds([Field::PATCHES]);
        if self.keep_image {
            fields
        } else {
            fields.drops([Field::IMAGE])
        }
    }

    fn revision(&self, resources: &Resources) -> String {
        models::revision(&self.model, resources)
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(PrepareImage::new(self, resources)?))
    }
}

/// Adds to each item the patches of its picture, as the model's own image processor would make
/// them: resized, cut, still 8 bits a channel.
///
/// `embed_image` does the same where there are no patches yet; as a stage of its own it runs
/// beside the model instead of before each batch, on as many threads as `workers` says.
pub struct PrepareImage {
    processor: ImageProcessor,
    key: Arc<str>,
    cache: Arc<PatchCache>,
    keep_image: bool,
}

impl PrepareImage {
    /// Checks the settings and finds the model, of which it reads the image processor alone.
    ///
    /// # Errors
    /// When the model is not found or reads no pictures.
    pub fn new(config: &PrepareImageConfig, resources: &Resources) -> Result<Self, FieldError> {
        let folder = models::find_folder(&config.model, resources)?;
        let processor = models::processor(&folder, config.max_visual_tokens)?;
        Ok(Self {
            key: processor.key().into(),
            processor,
            cache: resources.get_or_insert("patches", PatchCache::default),
            keep_image: config.keep_image,
        })
    }

    fn prepare(&self, item: &mut Item) -> Result<(), ItemError> {
        const ACTION: &str = "prepare";
        let prepared = patches::prepare(ACTION, item, &self.processor, &self.key, &self.cache)?;
        item.set(Field::PATCHES.name, Value::Custom(Arc::new(prepared)));
        if !self.keep_image {
            item.remove(&Field::IMAGE.name);
        }
        Ok(())
    }
}

impl Stage for PrepareImage {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |item| self.prepare(item))
    }
}

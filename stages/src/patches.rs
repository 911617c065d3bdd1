//! Pixels laid out for a model: the value of the field `patches`, and where several stages
//! find what one of them has prepared.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use pagemill_models::{ImageProcessor, ModelError, Patches, RgbView};
use pagemill_pipeline::{CustomValue, Field, Image, Item, ItemError, Value};

use crate::pixels;

/// Patches kept for another stage that prepares the same picture for the same kind of model.
const MAX_CACHED_BYTES: usize = 128 << 20;

/// A value of the field `patches`: a picture as an image processor lays it out.
#[derive(Debug, Clone)]
pub struct PreparedImage {
    /// The pixels.
    pub patches: Arc<Patches>,
    /// What made them: [`ImageProcessor::key`]. A model takes them if its own is the same.
    pub key: Arc<str>,
}

impl CustomValue for PreparedImage {
    fn n_bytes(&self) -> usize {
        self.patches.n_bytes()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl PreparedImage {
    /// The item's patches, if it has any.
    pub fn of(item: &Item) -> Option<&Self> {
        match item.get(&Field::PATCHES.name)? {
            Value::Custom(value) => value.as_any().downcast_ref(),
            _ => None,
        }
    }
}

/// Patches of pictures that other branches of the graph still hold.
///
/// Several encoders on one rendering share its pixels, not a copy, so the place in memory tells
/// whether a picture is the same; nothing has to be hashed. What is prepared is kept while the
/// picture is anywhere in the run, within [`MAX_CACHED_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct PatchCache {
    entries: Mutex<VecDeque<Entry>>,
}

#[derive(Debug)]
struct Entry {
    image: Weak<Image>,
    key: Arc<str>,
    patches: Arc<OnceLock<Arc<Patches>>>,
}

impl PatchCache {
    /// The picture's patches, prepared now unless another stage has done so; one that is at it
    /// is waited for.
    pub(crate) fn get_or_prepare(
        &self,
        image: &Arc<Image>,
        key: &Arc<str>,
        prepare: impl FnOnce() -> Result<Patches, ModelError>,
    ) -> Result<Arc<Patches>, ModelError> {
        // Nobody else has the picture, so nobody else will ask.
        if Arc::strong_count(image) == 1 {
            return prepare().map(Arc::new);
        }
        let slot = self.slot(image, key);
        if let Some(patches) = slot.get() {
            return Ok(Arc::clone(patches));
        }
        // Two stages that come at one moment both work, which is rare, and harmless.
        let patches = Arc::new(prepare()?);
        Ok(Arc::clone(slot.get_or_init(|| patches)))
    }

    fn slot(&self, image: &Arc<Image>, key: &Arc<str>) -> Arc<OnceLock<Arc<Patches>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.image.strong_count() > 0);
        let known = entries
            .iter()
            .find(|entry| entry.image.as_ptr() == Arc::as_ptr(image) && entry.key == *key);
        if let Some(entry) = known {
            return Arc::clone(&entry.patches);
        }
        let n_bytes = |entry: &Entry| entry.patches.get().map_or(0, |patches| patches.n_bytes());
        let mut total: usize = entries.iter().map(n_bytes).sum();
        while total > MAX_CACHED_BYTES {
            let Some(oldest) = entries.pop_front() else {
                break;
            };
            total -= n_bytes(&oldest);
        }
        let patches = Arc::default();
        entries.push_back(Entry {
            image: Arc::downgrade(image),
            key: Arc::clone(key),
            patches: Arc::clone(&patches),
        });
        patches
    }
}

/// Prepares an item's picture.
///
/// # Errors
/// The item has no picture, its pixels do not fit its sides, or the model cannot take it.
pub(crate) fn prepare(
    action: &'static str,
    item: &Item,
    processor: &ImageProcessor,
    key: &Arc<str>,
    cache: &PatchCache,
) -> Result<PreparedImage, ItemError> {
    let Some(Value::Image(image)) = item.get(&Field::IMAGE.name) else {
        return Err(ItemError::missing(action, &Field::IMAGE.name));
    };
    pixels::check(action, image)?;
    let view = RgbView {
        pixels: &image.pixels,
        width_px: image.width_px,
        height_px: image.height_px,
    };
    let patches = cache
        .get_or_prepare(image, key, || processor.prepare(view))
        .map_err(|error| ItemError::new(action, &error).hint(error.hint()))?;
    Ok(PreparedImage {
        patches,
        key: Arc::clone(key),
    })
}

//! Finding models by name and loading each once: what the stages that cut and
//! embed share.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use pagemill_models::{
    Embedding, Encoder, EncoderKind, EncoderOptions, Generator, ImageProcessor, ModelCard,
    ModelError, ModelPlaces, Numbers, resolve,
};
use pagemill_pipeline::{
    Field, FieldError, Item, ItemError, Resources, StageError, VectorData, Vectors,
};
use serde::Deserialize;

/// Something that takes long to load, which the first who needs it loads and
/// the others wait for. It lies in [`Resources`].
#[derive(Debug)]
pub(crate) struct Loaded<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Loaded<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Loaded<T> {
    /// The value, loaded now unless it is there.
    ///
    /// # Errors
    /// Those of `load`; the next caller tries again.
    pub(crate) fn get_or_load<E>(&self, load: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*slot {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(load()?);
        *slot = Some(Arc::clone(&value));
        Ok(value)
    }
}

/// What the stages that embed say about where and how to compute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compute<'a> {
    pub(crate) device: &'a str,
    pub(crate) dtype: Option<&'a str>,
    pub(crate) quantize: Option<&'a str>,
}

/// The setting `device` where it is not given.
pub(crate) fn default_device() -> String {
    "auto".into()
}

impl Compute<'_> {
    /// The settings, read.
    ///
    /// # Errors
    /// One of them names nothing that there is.
    pub(crate) fn options(&self) -> Result<EncoderOptions, FieldError> {
        Ok(EncoderOptions {
            device: parse("device", "names no device", self.device)?,
            dtype: self
                .dtype
                .map(|name| parse("dtype", "names no type", name))
                .transpose()?,
            quantize: self
                .quantize
                .map(|name| parse("quantize", "names no quantization", name))
                .transpose()?,
            ..EncoderOptions::default()
        })
    }
}

fn parse<T: FromStr<Err = ModelError>>(
    field: &'static str,
    problem: &str,
    name: &str,
) -> Result<T, FieldError> {
    name.parse().map_err(|error: ModelError| {
        FieldError::new(field, format_args!("{problem}: `{name}`"), error.hint())
    })
}

/// The field that an encoder fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// One vector an item, as sentence encoders, CLIP and SigLIP make.
    Vector,
    /// One for each token, as late-interaction encoders make.
    Vectors,
}

impl Output {
    pub(crate) fn one() -> Self {
        Self::Vector
    }

    pub(crate) fn many() -> Self {
        Self::Vectors
    }

    pub(crate) fn field(self) -> Field {
        match self {
            Self::Vector => Field::VECTOR,
            Self::Vectors => Field::VECTORS,
        }
    }

    /// Whether a model makes this.
    ///
    /// # Errors
    /// It makes the other.
    pub(crate) fn check(self, kind: EncoderKind) -> Result<(), FieldError> {
        let (one, many) = ("one vector an item", "one vector for each token");
        match (self, kind.is_multi_vector()) {
            (Self::Vector, true) => Err(FieldError::new(
                "output",
                format_args!("is `vector`, but the model makes {many}"),
                "set `output = \"vectors\"`",
            )),
            (Self::Vectors, false) => Err(FieldError::new(
                "output",
                format_args!("is `vectors`, but the model makes {one}"),
                "set `output = \"vector\"`",
            )),
            _ => Ok(()),
        }
    }

    /// Puts what a model made into its field.
    ///
    /// # Errors
    /// It made nothing.
    pub(crate) fn set(self, item: &mut Item, embedding: Embedding) -> Result<(), ItemError> {
        let data = match embedding.numbers {
            Numbers::F16(numbers) => VectorData::F16(numbers),
            Numbers::F32(numbers) => VectorData::F32(numbers),
        };
        let vectors = Vectors::new(data, embedding.dim)
            .ok_or_else(|| ItemError::new("embed", "the model gave no vector"))?;
        item.set(self.field().name, vectors);
        Ok(())
    }
}

/// Why one item has no vectors.
pub(crate) fn item_error(error: ModelError) -> ItemError {
    match error {
        // The place within the batch says nothing to the reader.
        ModelError::NotFinite { .. } => {
            ItemError::new("embed", "the model gave a vector that is not finite").hint(error.hint())
        }
        error => ItemError::new("embed", &error).hint(error.hint()),
    }
}

/// The folder of the model that the setting `model` names.
///
/// [`ModelPlaces`] lies in `resources` under the name `""` if the program put
/// it there; otherwise the user's usual places are looked at.
///
/// # Errors
/// When it is not there.
pub(crate) fn find_folder(name: &str, resources: &Resources) -> Result<PathBuf, FieldError> {
    let places = resources.get_or_insert("", ModelPlaces::from_environment);
    resolve(name, &places).map_err(|error| match &error {
        ModelError::NotFound { looked_in, .. } => {
            let places = looked_in
                .iter()
                .map(|place| format!("`{}`", place.display()));
            FieldError::new(
                "model",
                format_args!(
                    "names no model: `{name}` is not in {}",
                    places.collect::<Vec<_>>().join(", ")
                ),
                format_args!(
                    "run `make setup` for the models of the shipped pipelines; otherwise {}",
                    error.hint()
                ),
            )
        }
        _ => refused(&error),
    })
}

/// Finds the model that the setting `model` names, and what it is.
///
/// # Errors
/// When it is not there, or is none that can be used.
pub(crate) fn find(name: &str, resources: &Resources) -> Result<(PathBuf, ModelCard), FieldError> {
    let folder = find_folder(name, resources)?;
    let card = Encoder::describe(&folder).map_err(|error| refused(&error))?;
    Ok((folder, card))
}

/// Which family the model in a folder is of.
///
/// # Errors
/// None that makes vectors.
pub(crate) fn kind(folder: &Path) -> Result<EncoderKind, FieldError> {
    EncoderKind::of(folder).map_err(|error| refused(&error))
}

/// Whether the model in a folder generates text.
///
/// # Errors
/// It does not, or its configuration cannot be read.
pub(crate) fn check_speaks(folder: &Path, name: &str) -> Result<(), FieldError> {
    match Generator::is_generator(folder) {
        Ok(true) => Ok(()),
        Ok(false) => Err(FieldError::new(
            "model",
            format_args!("names a model that does not generate text: `{name}`"),
            "use a model such as `Qwen/Qwen2.5-VL-3B-Instruct`",
        )),
        Err(error) => Err(refused(&error)),
    }
}

/// What lays pictures out for the model in a folder.
///
/// # Errors
/// The folder has none, or the limit on tokens is none that a model can have.
pub(crate) fn processor(
    folder: &Path,
    max_visual_tokens: Option<usize>,
) -> Result<ImageProcessor, FieldError> {
    if max_visual_tokens == Some(0) {
        return Err(FieldError::new(
            "max_visual_tokens",
            "must be at least 1",
            "leave it out for what the model's own processor says",
        ));
    }
    Encoder::open_processor(folder, max_visual_tokens).map_err(|error| refused(&error))
}

/// The place where all stages of a run that load this model in this way find it.
pub(crate) fn shared(
    folder: &Path,
    options: &EncoderOptions,
    resources: &Resources,
) -> Arc<Loaded<Encoder>> {
    let name = format!("{} {options:?}", folder.display());
    resources.get_or_insert(&name, Loaded::default)
}

/// What the rows owe to the model that `name` names: see [`pagemill_models::revision`].
/// Empty if it is not there, which `build` reports.
pub(crate) fn revision(name: &str, resources: &Resources) -> String {
    let places = resources.get_or_insert("", ModelPlaces::from_environment);
    resolve(name, &places).map_or_else(
        |_| String::new(),
        |folder| pagemill_models::revision(&folder),
    )
}

fn refused(error: &ModelError) -> FieldError {
    FieldError::new(
        "model",
        format_args!("names a model that cannot be used: {error}"),
        error.hint(),
    )
}

/// A model that fails stops the run: no item of it would fare better.
pub(crate) fn fatal(error: ModelError) -> StageError {
    let hint = error.hint();
    StageError::caused(error.to_string(), hint, error)
}

//! Finding models by name and loading each once: what `chunk_text` and
//! `embed_text` share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pagemill_models::{ModelCard, ModelError, ModelPlaces, TextEncoder, resolve};
use pagemill_pipeline::{FieldError, Resources, StageError};

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

/// Finds the model that the setting `model` names, and what it is.
///
/// [`ModelPlaces`] lies in `resources` under the name `""` if the program put
/// it there; otherwise the user's usual places are looked at.
///
/// # Errors
/// When it is not there, or is none that can be used.
pub(crate) fn find(name: &str, resources: &Resources) -> Result<(PathBuf, ModelCard), FieldError> {
    let places = resources.get_or_insert("", ModelPlaces::from_environment);
    let folder = resolve(name, &places).map_err(|error| match &error {
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
    })?;
    let card = TextEncoder::describe(&folder).map_err(|error| refused(&error))?;
    Ok((folder, card))
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

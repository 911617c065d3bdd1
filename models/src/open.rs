//! From a model's folder to the folders of its parts: an adapter's base lies elsewhere.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::ModelError;
use crate::files;
use crate::gguf;
use crate::lora::AdapterConfig;
use crate::resolve::{ModelPlaces, resolve};

/// Where a model's parts are.
pub(crate) struct ModelFolders {
    /// Configuration and weights of the whole network.
    pub(crate) base: PathBuf,
    /// What changes some of its weights.
    pub(crate) adapter: Option<(PathBuf, AdapterConfig)>,
}

/// Finds the parts of the model in `folder`. It is an adapter if it has `adapter_config.json`
/// and no weights of its own; its base is the folder that the file names, relative to the
/// adapter's, or a model that [`resolve`] finds.
///
/// # Errors
/// The adapter's configuration is damaged or asks for what this crate does not compute, or its
/// base is not here.
pub(crate) fn open_model(folder: &Path) -> Result<ModelFolders, ModelError> {
    let Some(config) = adapter_config(folder)? else {
        return Ok(ModelFolders {
            base: folder.to_owned(),
            adapter: None,
        });
    };
    let base = Base::of(&config);
    let named = folder.join(&base.name);
    let base = if named.is_dir() {
        named
    } else {
        // A base lies where its adapter does, if not in the usual places.
        let beside = ModelPlaces::around(folder);
        base.find(&ModelPlaces::from_environment())
            .or_else(|error| base.find(&beside.ok_or(error)?))?
    };
    // An adapter on an adapter would need its base's base.
    if !files::is_there(&base.join("config.json")) {
        return Err(ModelError::MissingFile {
            file: "config.json".into(),
            folder: base,
        });
    }
    Ok(ModelFolders {
        base,
        adapter: Some((folder.to_owned(), config)),
    })
}

/// What an adapter changes.
pub(crate) struct Base {
    /// A model, or a folder relative to the adapter's.
    pub(crate) name: String,
    /// The version that it was trained on.
    pub(crate) revision: Option<String>,
}

impl Base {
    fn of(config: &AdapterConfig) -> Self {
        Self {
            name: config.base_model_name_or_path.clone(),
            revision: config.revision.clone(),
        }
    }

    /// Its folder at its version, or else at the one in use.
    ///
    /// # Errors
    /// Those of [`resolve`].
    pub(crate) fn find(&self, places: &ModelPlaces) -> Result<PathBuf, ModelError> {
        if let Some(revision) = &self.revision
            && let Ok(folder) = resolve(&format!("{}@{revision}", self.name), places)
        {
            return Ok(folder);
        }
        resolve(&self.name, places)
    }
}

/// The base that the model in `folder` needs, if it is an adapter.
///
/// # Errors
/// Its configuration is damaged or asks for what this crate does not compute.
pub(crate) fn base_of(folder: &Path) -> Result<Option<Base>, ModelError> {
    let config = adapter_config(folder)?;
    Ok(config.as_ref().map(Base::of))
}

/// The configuration of the adapter in `folder`, unless a whole model is there.
fn adapter_config(folder: &Path) -> Result<Option<AdapterConfig>, ModelError> {
    let own_weights = ["model.safetensors", "model.safetensors.index.json"];
    if own_weights.iter().any(|file| folder.join(file).is_file()) || gguf::is_in(folder) {
        return Ok(None);
    }
    AdapterConfig::read(folder)
}

/// The base's folder, and what its `config.json` says.
///
/// # Errors
/// Those of [`open_model`], and of reading the file.
pub(crate) fn read_config(folder: &Path) -> Result<(PathBuf, Value), ModelError> {
    let folders = open_model(folder)?;
    let config = files::read_json(&folders.base.join("config.json"))?;
    Ok((folders.base, config))
}

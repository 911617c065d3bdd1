//! Reading a model's small files.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::ModelError;
use crate::gguf;

/// Reads a JSON file that must be there.
///
/// # Errors
/// It is missing, unreadable or malformed.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    read_optional_json(path)?.ok_or_else(|| {
        let file = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        ModelError::MissingFile { file, folder }
    })
}

/// Whether a JSON file is there, or GGUF files that may say the same.
pub(crate) fn is_there(path: &Path) -> bool {
    path.is_file() || gguf::json::may_stand_in(path)
}

/// The bytes of a JSON file that must be there, for a library that reads them itself.
///
/// # Errors
/// It is missing or unreadable.
pub(crate) fn json_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    if !path.is_file() {
        let value: serde_json::Value = read_json(path)?;
        return Ok(value.to_string().into_bytes());
    }
    fs::read(path).map_err(|source| ModelError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a JSON file if it is there. Where it is not, GGUF files in its folder may say the
/// same, and stand in for it.
///
/// # Errors
/// It is unreadable or malformed.
pub(crate) fn read_optional_json<T: DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, ModelError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let Some(value) = gguf::json::stand_in(path)? else {
                return Ok(None);
            };
            return serde_json::from_value(value)
                .map(Some)
                .map_err(|source| ModelError::Json {
                    path: path.to_owned(),
                    source,
                });
        }
        Err(source) => {
            return Err(ModelError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(ModelError::Json {
            path: path.to_owned(),
            source,
        }),
    }
}

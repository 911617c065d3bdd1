//! All weights of a network, in whatever files they are: safetensors, floats or packed in 4
//! bits, and GGUF.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::error::ModelError;
use crate::gguf::weights::{GgufWeights, StoredBlocks};
use crate::quantized::QuantizedMatrix;
use crate::qwen::table::BlockRows;
use crate::w4a16::{self, PackedMatrix};
use crate::weights::{Rename, Weights};

/// What a network is loaded from. Where several files have a tensor, GGUF's counts.
pub(crate) struct Checkpoint {
    path: PathBuf,
    gguf: Option<GgufWeights>,
    plain: Option<Weights>,
    /// Of `plain`, by the names that the whole matrices would have.
    packed: HashMap<String, PackedMatrix>,
}

impl Checkpoint {
    /// Opens a folder's files, their tensors under the names that `rename` makes. Reads the
    /// headers only.
    ///
    /// # Errors
    /// There are none, or one is damaged or holds what this crate does not compute.
    pub(crate) fn open(folder: &Path, rename: Rename) -> Result<Self, ModelError> {
        let gguf = GgufWeights::open(folder, rename)?;
        let mut names = ["model.safetensors", "model.safetensors.index.json"].iter();
        let has_plain = names.any(|name| folder.join(name).is_file());
        let plain = if has_plain || gguf.is_none() {
            Some(Weights::open_renamed(folder, "model", rename)?)
        } else {
            None
        };
        let packed = match &plain {
            Some(weights) => w4a16::find(weights, folder)?,
            None => HashMap::new(),
        };
        let path = match (&gguf, &plain) {
            (Some(gguf), _) => gguf.path(),
            (None, Some(plain)) => plain.path(),
            (None, None) => folder,
        };
        Ok(Self {
            path: path.to_owned(),
            gguf,
            plain,
            packed,
        })
    }

    /// The file, or the folder of several.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of the tensor `name`, if there is one; of a packed one, the whole's.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        let gguf = self.gguf.as_ref().and_then(|gguf| gguf.shape(name));
        let packed = || self.packed.get(name).map(|matrix| &matrix.shape[..]);
        let plain = || self.plain.as_ref().and_then(|plain| plain.shape(name));
        gguf.or_else(packed).or_else(plain)
    }

    /// Copies one tensor to the device as `wanted`, dequantized if need be.
    ///
    /// # Errors
    /// It is absent, of a type that we do not know, or does not fit on the device.
    pub(crate) fn tensor(
        &self,
        name: &str,
        wanted: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let gguf = self.gguf.as_ref().filter(|gguf| gguf.shape(name).is_some());
        let tensor = match (gguf, self.packed.get(name), &self.plain) {
            (Some(gguf), ..) => gguf.f32_tensor(name)?,
            (None, Some(packed), Some(plain)) => packed.dequantize(plain)?,
            (None, _, Some(plain)) => return plain.tensor(name, wanted, device),
            (None, _, None) => {
                return Err(ModelError::MissingTensors {
                    names: vec![name.to_owned()],
                    path: self.path.clone(),
                });
            }
        };
        tensor
            .to_dtype(wanted)
            .and_then(|tensor| tensor.to_device(device))
            .map_err(ModelError::compute("copying a weight to the device"))
    }

    /// The matrix `name` as it is stored, if that is in few bits and can stay so.
    ///
    /// # Errors
    /// It is of a type that we do not know, or does not fit on the device.
    pub(crate) fn matrix(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        if let Some(gguf) = &self.gguf
            && gguf.shape(name).is_some()
        {
            let Some(stored) = gguf.blocks(name)? else {
                return Ok(None);
            };
            let blocks = stored.blocks();
            let matrix = blocks.and_then(|blocks| QuantizedMatrix::of_blocks(blocks, device));
            let matrix = matrix.map_err(ModelError::compute("repacking a weight"))?;
            gguf.forget(name);
            return Ok(Some(matrix));
        }
        match (self.packed.get(name), &self.plain) {
            (Some(packed), Some(plain)) => packed.load(plain, device),
            _ => Ok(None),
        }
    }

    /// The rows of the matrix `name` in ggml's blocks, if it is stored so.
    ///
    /// # Errors
    /// It is of a type that we do not know.
    pub(crate) fn block_rows(&self, name: &str) -> Result<Option<BlockRows>, ModelError> {
        let gguf = self.gguf.as_ref().filter(|gguf| gguf.shape(name).is_some());
        let Some(gguf) = gguf else { return Ok(None) };
        let rows = gguf.blocks(name)?.map(StoredBlocks::into_rows);
        gguf.forget(name);
        Ok(rows)
    }

    /// The type of the floats `name`, if it is stored as floats.
    pub(crate) fn float_type(&self, name: &str) -> Option<DType> {
        match &self.gguf {
            Some(gguf) if gguf.shape(name).is_some() => gguf.float_type(name),
            _ => self.plain.as_ref()?.float_type(name),
        }
    }

    /// Size of the files.
    pub(crate) fn n_bytes(&self) -> u64 {
        let plain = self.plain.as_ref().map_or(0, Weights::n_bytes);
        plain + self.gguf.as_ref().map_or(0, GgufWeights::n_bytes)
    }
}

#[cfg(test)]
mod tests;

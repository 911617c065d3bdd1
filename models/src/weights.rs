//! Tensors of a model's `.safetensors` files, by name, checked and memory-mapped.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use crate::error::{ModelError, ShapeMismatch};
use crate::files;

/// Makes the name by which a network asks for a tensor of the one in the file.
pub(crate) type Rename = fn(&str) -> String;

/// The files of one model, mapped into memory, with an index of their tensors.
pub(crate) struct Weights {
    path: PathBuf,
    maps: Vec<(PathBuf, Mmap)>,
    /// By the name that networks use.
    tensors: HashMap<String, Entry>,
    n_header_bytes: Vec<usize>,
    rename: Rename,
}

/// Where one tensor is.
struct Entry {
    /// Its file's place in `maps`.
    file: usize,
    info: TensorInfo,
    name_in_file: String,
}

/// The part we need of `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    /// Reads the headers only.
    ///
    /// # Errors
    /// A file is missing, unreadable, or shorter than its header says.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_renamed(folder, "model", str::to_owned)
    }

    /// As [`Weights::open`], for files called `stem` instead of `model`, with each tensor
    /// under the name that `rename` makes of the file's.
    ///
    /// # Errors
    /// Those of [`Weights::open`], and two tensors that come to have one name.
    pub(crate) fn open_renamed(
        folder: &Path,
        stem: &str,
        rename: Rename,
    ) -> Result<Self, ModelError> {
        let whole = format!("{stem}.safetensors");
        let index = folder.join(format!("{whole}.index.json"));
        let names = if !folder.join(&whole).is_file() && index.is_file() {
            shard_names(&index)?
        } else {
            BTreeSet::from([whole])
        };
        // Errors name the one file, or the folder of several.
        let path = match names.first() {
            Some(name) if names.len() == 1 => folder.join(name),
            _ => folder.to_owned(),
        };
        let mut weights = Self {
            path,
            maps: Vec::new(),
            tensors: HashMap::new(),
            n_header_bytes: Vec::new(),
            rename,
        };
        for name in names {
            weights.add_file(folder, &name)?;
        }
        Ok(weights)
    }

    fn add_file(&mut self, folder: &Path, name: &str) -> Result<(), ModelError> {
        let path = folder.join(name);
        if !path.is_file() {
            return Err(ModelError::MissingFile {
                file: name.into(),
                folder: folder.into(),
            });
        }
        let read = |source| ModelError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the mapping is private to us and read only while loading. As for every
        // reader of mapped weights, a process that truncates the file meanwhile kills us;
        // model files are replaced by renaming, never cut.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let damaged = |source| ModelError::Weights {
            path: path.clone(),
            source,
        };
        let (n_header_bytes, metadata): (usize, Metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged(Box::new(error)))?;
        let n_expected_bytes = 8 + n_header_bytes + metadata.data_len();
        if map.len() != n_expected_bytes {
            let text = format!("{} bytes instead of {n_expected_bytes}", map.len());
            return Err(damaged(text.into()));
        }
        for (name_in_file, info) in metadata.tensors() {
            let name = (self.rename)(&name_in_file);
            let entry = Entry {
                file: self.maps.len(),
                info: info.clone(),
                name_in_file,
            };
            if let Some(twin) = self.tensors.get(&name) {
                let mut names = vec![twin.name_in_file.clone(), entry.name_in_file];
                names.sort();
                return Err(ModelError::TwinTensors { names, name, path });
            }
            self.tensors.insert(name, entry);
        }
        self.maps.push((path, map));
        self.n_header_bytes.push(8 + n_header_bytes);
        Ok(())
    }

    /// The one file, or the folder of several.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of the tensor `name`, if there is one.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors
            .get(name)
            .map(|entry| entry.info.shape.as_slice())
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Number of trained values: buffers of integers do not count.
    pub(crate) fn n_parameters(&self) -> usize {
        let floats = self
            .tensors
            .values()
            .filter(|entry| float_type(entry.info.dtype).is_some());
        floats
            .map(|entry| entry.info.shape.iter().product::<usize>())
            .sum()
    }

    /// Size of the files.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.maps.iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// Checks all tensors at once, so that one run tells everything that is wrong.
    ///
    /// # Errors
    /// The absent tensors, or else those of another shape.
    pub(crate) fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<(), ModelError> {
        let path = self.path.clone();
        let missing = expected.iter().filter(|(name, _)| !self.contains(name));
        let names: Vec<String> = missing.map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            return Err(ModelError::MissingTensors { names, path });
        }
        let mismatch = |(name, expected): &(String, Vec<usize>)| {
            let found = &self.tensors[name].info.shape;
            (found != expected).then(|| ShapeMismatch {
                name: name.clone(),
                expected: expected.clone(),
                found: found.clone(),
            })
        };
        let mismatches: Vec<ShapeMismatch> = expected.iter().filter_map(mismatch).collect();
        if mismatches.is_empty() {
            return Ok(());
        }
        Err(ModelError::MisshapenTensors { mismatches, path })
    }

    /// Copies one tensor to the device as f32, whatever float type the file has.
    ///
    /// # Errors
    /// It is absent, no float tensor, or does not fit on the device.
    pub(crate) fn f32_tensor(&self, name: &str, device: &Device) -> Result<Tensor, ModelError> {
        self.tensor(name, DType::F32, device)
    }

    /// Copies one tensor to the device as `wanted`, whatever float type the file has.
    ///
    /// # Errors
    /// It is absent, no float tensor, or does not fit on the device.
    pub(crate) fn tensor(
        &self,
        name: &str,
        wanted: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let Some(entry) = self.tensors.get(name) else {
            let names = vec![name.to_owned()];
            return Err(ModelError::MissingTensors {
                names,
                path: self.path.clone(),
            });
        };
        let dtype = float_type(entry.info.dtype).ok_or_else(|| ModelError::Unsupported {
            field: name.to_owned(),
            found: format!("{:?}", entry.info.dtype),
            supported: &["F32", "F16", "BF16"],
            path: self.maps[entry.file].0.clone(),
        })?;
        let (start, end) = entry.info.data_offsets;
        let header = self.n_header_bytes[entry.file];
        let bytes = &self.maps[entry.file].1[header + start..header + end];
        // Converted on the processor: half the bytes may then cross to the device.
        Tensor::from_raw_buffer(bytes, dtype, &entry.info.shape, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(wanted)?.to_device(device))
            .map_err(ModelError::compute("copying a weight to the device"))
    }
}

/// The files that an index of shards names, which lie beside it.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, ModelError> {
    let shards: ShardIndex = files::read_json(index)?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    let outside = names
        .iter()
        .find(|name| Path::new(name).file_name() != Some(name.as_ref()));
    if let Some(name) = outside {
        return Err(ModelError::InvalidSetting {
            field: "weight_map",
            problem: format!("names `{name}`, which is no file beside it"),
            path: index.to_owned(),
        });
    }
    Ok(names)
}

fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

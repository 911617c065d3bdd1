//! Tensors of a model's `.safetensors` files, by name, checked and memory-mapped.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use crate::error::{Cause, ModelError, ShapeMismatch};
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
        let (n_header_bytes, metadata) =
            read_header(&map).map_err(|source| ModelError::Weights {
                path: path.clone(),
                source,
            })?;
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

    /// The type of a tensor of floats; `None` of any other.
    pub(crate) fn float_type(&self, name: &str) -> Option<DType> {
        self.tensors
            .get(name)
            .and_then(|entry| float_type(entry.info.dtype))
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
        let (dtype, bytes) = self.floats(name)?;
        let shape = self.shape(name).unwrap_or_default();
        let tensor = if wanted == DType::F32 {
            Tensor::from_vec(widen(bytes, dtype), shape, &Device::Cpu)
        } else {
            Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)
        };
        // Converted on the processor: half the bytes may then cross to the device.
        let tensor = tensor.and_then(|tensor| tensor.to_dtype(wanted)?.to_device(device));
        self.forget(name);
        tensor.map_err(ModelError::compute("copying a weight to the device"))
    }

    /// The values of one tensor of floats.
    ///
    /// # Errors
    /// It is absent or of another type.
    pub(crate) fn f32_values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (dtype, bytes) = self.floats(name)?;
        Ok(widen(bytes, dtype))
    }

    /// The words of a tensor of 32-bit whole numbers, low bytes first.
    ///
    /// # Errors
    /// It is absent or of another type.
    pub(crate) fn words(&self, name: &str) -> Result<&[[u8; 4]], ModelError> {
        let entry = self.entry(name)?;
        if !matches!(entry.info.dtype, Dtype::I32 | Dtype::U32) {
            return Err(self.unsupported(name, entry, &["I32", "U32"]));
        }
        Ok(self.bytes(entry).as_chunks().0)
    }

    fn floats(&self, name: &str) -> Result<(DType, &[u8]), ModelError> {
        let entry = self.entry(name)?;
        let dtype = float_type(entry.info.dtype)
            .ok_or_else(|| self.unsupported(name, entry, &["F32", "F16", "BF16"]))?;
        Ok((dtype, self.bytes(entry)))
    }

    fn entry(&self, name: &str) -> Result<&Entry, ModelError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::MissingTensors {
                names: vec![name.to_owned()],
                path: self.path.clone(),
            })
    }

    fn unsupported(
        &self,
        name: &str,
        entry: &Entry,
        supported: &'static [&'static str],
    ) -> ModelError {
        ModelError::Unsupported {
            field: name.to_owned(),
            found: format!("{:?}", entry.info.dtype),
            supported,
            path: self.maps[entry.file].0.clone(),
        }
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        let (start, end) = entry.info.data_offsets;
        let header = self.n_header_bytes[entry.file];
        &self.maps[entry.file].1[header + start..header + end]
    }

    /// Gives the memory of a tensor's file pages back.
    pub(crate) fn forget(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            let (start, end) = entry.info.data_offsets;
            let header = self.n_header_bytes[entry.file];
            release(&self.maps[entry.file].1, header + start, end - start);
        }
    }
}

/// Reads the header of a whole file: its length, and what it says.
///
/// # Errors
/// It is damaged, or describes another file than this one.
pub(crate) fn read_header(file: &[u8]) -> Result<(usize, Metadata), Cause> {
    let (n_header_bytes, metadata) = SafeTensors::read_metadata(file)?;
    // The library adds the same without regard to overflow. Tensors follow each other
    // without gaps, so what holds for the end holds for all.
    let n_expected_bytes = metadata.data_len().checked_add(8 + n_header_bytes);
    if n_expected_bytes != Some(file.len()) {
        let text = format!(
            "the header does not describe the file's {} bytes",
            file.len()
        );
        return Err(text.into());
    }
    Ok((n_header_bytes, metadata))
}

/// Values that one core converts at a time.
const N_VALUES_PER_TASK: usize = 1 << 16;

/// Little-endian values as f32. All cores take part, also in reading the file.
pub(crate) fn widen(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let n_value_bytes = dtype.size_in_bytes();
    let mut values = vec![0.0; bytes.len() / n_value_bytes];
    values
        .par_chunks_mut(N_VALUES_PER_TASK)
        .zip(bytes.par_chunks(N_VALUES_PER_TASK * n_value_bytes))
        .for_each(|(values, bytes)| match dtype {
            DType::F16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            DType::BF16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            _ => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        });
    values
}

/// Gives the memory of a part of a file back, which would otherwise lie beside its copy. The
/// part can still be read: from the file, again.
#[cfg(unix)]
pub(crate) fn release(map: &Mmap, start: usize, n_bytes: usize) {
    // SAFETY: the mapping is of a file and never written, so that dropping its pages
    // changes nothing that anyone could read.
    let released = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, n_bytes) };
    // It is only a wish.
    let _ = released;
}

#[cfg(not(unix))]
pub(crate) fn release(_map: &Mmap, _start: usize, _n_bytes: usize) {}

/// The files that an index of shards names, which lie beside it.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, ModelError> {
    let shards: ShardIndex = files::read_json(index)?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    let outside = names
        .iter()
        .find(|name| Path::new(name).file_name() != Some(name.as_ref()));
    if names.is_empty() {
        return Err(ModelError::InvalidSetting {
            field: "weight_map",
            problem: "names no file".into(),
            path: index.to_owned(),
        });
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::tensor::TensorView;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Weights, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        Weights::open(folder.path())
    }

    #[test]
    fn damaged_files_are_errors() {
        let tensor = |shape: &str, offsets: &str| {
            format!(r#""a": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}"#)
        };
        let whole = file(&format!("{{{}}}", tensor("[2]", "[0, 8]")), &[0; 8]);
        open(&whole).unwrap();
        for n_bytes in 0..whole.len() {
            assert!(open(&whole[..n_bytes]).is_err(), "cut to {n_bytes} bytes");
        }
        let twins = format!(
            r#"{{{}, "b": {{"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}}}"#,
            tensor("[2]", "[0, 8]")
        );
        let huge = (1_u64 << 61) - 1;
        let ends: Vec<u64> = (1..=9).map(|n| huge.wrapping_mul(n)).collect();
        let wrapping: Vec<String> = ends
            .iter()
            .enumerate()
            .map(|(index, end)| {
                let start = if index == 0 { 0 } else { ends[index - 1] };
                format!(
                    r#""{index}": {{"dtype": "U8", "shape": [{huge}], "data_offsets": [{start}, {end}]}}"#
                )
            })
            .collect();
        let damaged = [
            ("longer than it says", [whole.clone(), vec![0]].concat()),
            (
                "a header of 2^64 bytes",
                [vec![0xff; 8], vec![0; 8]].concat(),
            ),
            (
                "a header of 2^40 bytes",
                [(1_u64 << 40).to_le_bytes().to_vec(), vec![0; 8]].concat(),
            ),
            ("no JSON", file("no JSON", &[])),
            ("a list", file("[]", &[])),
            ("overlapping", file(&twins, &[0; 12])),
            (
                "backwards",
                file(&format!("{{{}}}", tensor("[2]", "[8, 0]")), &[0; 8]),
            ),
            (
                "past the end",
                file(&format!("{{{}}}", tensor("[2]", "[0, 80]")), &[0; 8]),
            ),
            (
                "another size",
                file(&format!("{{{}}}", tensor("[3]", "[0, 8]")), &[0; 8]),
            ),
            (
                "a product that overflows",
                file(
                    &format!("{{{}}}", tensor("[4294967296, 4294967296, 4]", "[0, 8]")),
                    &[0; 8],
                ),
            ),
            (
                "one that overflows to what is there",
                file(
                    &format!("{{{}}}", tensor("[4611686018427387906]", "[0, 8]")),
                    &[0; 8],
                ),
            ),
            (
                "ends that overflow",
                file(&format!("{{{}}}", wrapping.join(", ")), &[0; 8]),
            ),
        ];
        for (what, bytes) in damaged {
            let error = open(&bytes).map(|_| ()).unwrap_err();
            assert!(
                matches!(error, ModelError::Weights { .. }),
                "{what}: {error}"
            );
        }
    }

    #[test]
    fn an_index_that_leads_elsewhere_or_to_nothing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        for (name, said) in [
            ("../model.safetensors", "names `../model.safetensors`"),
            ("/model.safetensors", "names `/model.safetensors`"),
            (
                "model-1.safetensors",
                "the model has no `model-1.safetensors`",
            ),
        ] {
            fs::write(&index, format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#)).unwrap();
            let error = Weights::open(folder.path()).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
        assert!(Weights::open(folder.path()).is_err());
    }

    #[test]
    fn every_float_type_becomes_every_other_and_the_rest_is_refused() {
        let values = [0.5_f32, -2.0, 1024.0];
        let f32s: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let f16s: Vec<u8> = values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect();
        let bf16s: Vec<u8> = values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
            .collect();
        let views = [
            ("f32", TensorView::new(Dtype::F32, vec![3], &f32s).unwrap()),
            ("f16", TensorView::new(Dtype::F16, vec![3], &f16s).unwrap()),
            (
                "bf16",
                TensorView::new(Dtype::BF16, vec![3], &bf16s).unwrap(),
            ),
            (
                "u8",
                TensorView::new(Dtype::U8, vec![3], &f32s[..3]).unwrap(),
            ),
        ];
        let weights = open(&safetensors::serialize(views, None).unwrap()).unwrap();
        for name in ["f32", "f16", "bf16"] {
            // Twice: what was released is read again.
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::F32] {
                let tensor = weights.tensor(name, dtype, &Device::Cpu).unwrap();
                assert_eq!(tensor.dtype(), dtype);
                let tensor = tensor.to_dtype(DType::F32).unwrap();
                assert_eq!(
                    tensor.to_vec1::<f32>().unwrap(),
                    values,
                    "{name} as {dtype:?}"
                );
            }
        }
        let error = weights.tensor("u8", DType::F32, &Device::Cpu).unwrap_err();
        assert!(error.to_string().starts_with("`u8` is `U8`"), "{error}");
        let error = weights
            .tensor("none", DType::F32, &Device::Cpu)
            .unwrap_err();
        assert!(
            error.to_string().starts_with("the weights lack `none`"),
            "{error}"
        );
    }

    #[test]
    fn two_tensors_of_one_name_are_an_error() {
        let views = ["model.norm.weight", "norm.weight"]
            .map(|name| (name, TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
        let folder = tempfile::tempdir().unwrap();
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let rename = crate::loader::canonical_qwen_name;
        let error = Weights::open_renamed(folder.path(), "model", rename).map(|_| ());
        let text = error.unwrap_err().to_string();
        let said = "`model.norm.weight`, `norm.weight` are the same tensor, \
                    `language_model.norm.weight`: ";
        assert!(text.starts_with(said), "{text}");
    }
}

//! A GGUF model's tensors by the names that networks use.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};

use super::header::Info;
use super::names::{self, Part, Tower};
use super::{Gguf, GgufModel};
use crate::error::ModelError;
use crate::quantized::stored::Blocks;
use crate::qwen::table::BlockRows;
use crate::weights::{self, Rename};

/// Types of tensors that are computed with.
const FORMATS: &[&str] = &[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K",
    "Q2_K",
];

/// The files of one model, with an index of their tensors.
pub(crate) struct GgufWeights {
    model: GgufModel,
    /// By the name that networks use.
    tensors: HashMap<String, Entry>,
}

struct Entry {
    parts: Vec<Place>,
    shape: Vec<usize>,
    /// Whether the parts are two frames of one layer; else they lie below each other.
    frames: bool,
}

/// One tensor of one file.
struct Place {
    file: usize,
    name: String,
    info: Info,
}

impl GgufWeights {
    /// The GGUF files in a folder, with each tensor under the name that `rename` makes of that
    /// which Hugging Face's checkpoints have. `None`: there are no such files.
    ///
    /// # Errors
    /// A file is damaged, there are several models, or two tensors come to have one name.
    pub(crate) fn open(folder: &Path, rename: Rename) -> Result<Option<Self>, ModelError> {
        let Some(model) = GgufModel::find(folder)? else {
            return Ok(None);
        };
        let mut found: BTreeMap<String, Vec<(Part, Place)>> = BTreeMap::new();
        for (index, file) in model.files().enumerate() {
            let tower = file.is_vision().then(|| Tower::of(&file.header));
            for (name, info) in file.header.tensors() {
                let ours = match &tower {
                    Some(tower) => tower.tensor(name),
                    None => names::text_tensor(name).map(|name| (name, Part::Whole)),
                };
                if let Some((ours, part)) = ours {
                    let place = Place {
                        file: index,
                        name: name.to_owned(),
                        info: info.clone(),
                    };
                    found.entry(rename(&ours)).or_default().push((part, place));
                }
            }
        }
        let mut tensors = HashMap::new();
        for (name, mut parts) in found {
            parts.sort_by_key(|(part, _)| *part);
            let path = || model.folder.clone();
            let Some(entry) = joined(&parts) else {
                let names = parts.into_iter().map(|(_, place)| place.name).collect();
                return Err(ModelError::TwinTensors {
                    names,
                    name,
                    path: path(),
                });
            };
            let (frames, shape) = entry;
            let parts = parts.into_iter().map(|(_, place)| place).collect();
            tensors.insert(
                name,
                Entry {
                    parts,
                    shape,
                    frames,
                },
            );
        }
        // A tied output layer is the embedding table, in few bits where that is.
        let output = rename("lm_head.weight");
        let table = tensors.get(&rename("model.language_model.embed_tokens.weight"));
        if let (false, Some(table)) = (tensors.contains_key(&output), table)
            && table.quantized().is_some()
        {
            let alias = Entry {
                parts: table.parts.iter().map(Place::again).collect(),
                shape: table.shape.clone(),
                frames: false,
            };
            tensors.insert(output, alias);
        }
        Ok(Some(Self { model, tensors }))
    }

    /// The shape of the tensor `name`, if there is one.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The language model's file.
    pub(crate) fn path(&self) -> &Path {
        let first = self.model.files().next();
        first.map_or(&self.model.folder, |file| &file.path)
    }

    /// Size of the files.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.model.files().map(Gguf::n_file_bytes).sum()
    }

    /// One tensor as floats, on the processor.
    ///
    /// # Errors
    /// It is absent or of a type that we do not know.
    pub(crate) fn f32_tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensors {
                names: vec![name.to_owned()],
                path: self.path().to_owned(),
            });
        };
        let mut parts = Vec::with_capacity(entry.parts.len());
        for place in &entry.parts {
            parts.push(self.floats(place)?);
        }
        let whole = match (&parts[..], entry.frames) {
            ([whole], _) => Ok(whole.clone()),
            (_, true) => Tensor::stack(&parts, 2).and_then(|whole| whole.contiguous()),
            (_, false) => Tensor::cat(&parts, 0),
        };
        whole.map_err(ModelError::compute("putting a weight together"))
    }

    /// The type of a tensor of floats; `None` of any other.
    pub(crate) fn float_type(&self, name: &str) -> Option<DType> {
        match &self.tensors.get(name)?.parts[..] {
            [place] => place.info.format.ok().and_then(float_type),
            _ => None,
        }
    }

    fn floats(&self, place: &Place) -> Result<Tensor, ModelError> {
        let (format, bytes) = self.bytes(place)?;
        let shape = place.info.shape.as_slice();
        let tensor = if let Some(dtype) = float_type(format) {
            Tensor::from_vec(weights::widen(bytes, dtype), shape, &Device::Cpu)
        } else {
            let width = shape.last().copied().unwrap_or(1);
            let n_rows = shape.iter().product::<usize>() / width;
            Blocks::new(format, bytes, [n_rows, width])
                .and_then(|blocks| blocks.dequantize()?.reshape(shape))
        };
        tensor.map_err(ModelError::compute("dequantizing a weight"))
    }

    fn bytes(&self, place: &Place) -> Result<(GgmlDType, &[u8]), ModelError> {
        let file = self.model.files().nth(place.file);
        let file = file.expect("places are of these files");
        match (place.info.format, file.bytes(&place.info)) {
            (Ok(format), Some(bytes)) => Ok((format, bytes)),
            (found, _) => Err(ModelError::Unsupported {
                field: place.name.clone(),
                found: match found {
                    Ok(format) => format!("{format:?}"),
                    Err(number) => format!("type {number} of ggml"),
                },
                supported: FORMATS,
                path: file.path.clone(),
            }),
        }
    }

    /// Gives the memory of a tensor's file pages back.
    pub(crate) fn forget(&self, name: &str) {
        let places = self.tensors.get(name).map(|entry| &entry.parts);
        for place in places.into_iter().flatten() {
            if let Some(file) = self.model.files().nth(place.file) {
                file.forget(&place.info);
            }
        }
    }

    /// The blocks of a matrix that the file has in few bits; `None` of any other.
    ///
    /// # Errors
    /// It is of a type that we do not know.
    pub(crate) fn blocks(&self, name: &str) -> Result<Option<StoredBlocks<'_>>, ModelError> {
        let Some(entry) = self.tensors.get(name) else {
            return Ok(None);
        };
        for place in &entry.parts {
            self.bytes(place)?;
        }
        let (&[n_out, n_in], Some(format)) = (entry.shape.as_slice(), entry.quantized()) else {
            return Ok(None);
        };
        let mut bytes = Cow::Borrowed(&[][..]);
        for place in &entry.parts {
            let (_, part) = self.bytes(place)?;
            match entry.parts.len() {
                1 => bytes = Cow::Borrowed(part),
                _ => bytes.to_mut().extend_from_slice(part),
            }
        }
        Ok(Some(StoredBlocks {
            format,
            bytes,
            shape: [n_out, n_in],
        }))
    }
}

/// The blocks of a whole matrix.
pub(crate) struct StoredBlocks<'a> {
    format: GgmlDType,
    bytes: Cow<'a, [u8]>,
    shape: [usize; 2],
}

fn float_type(format: GgmlDType) -> Option<DType> {
    match format {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

impl StoredBlocks<'_> {
    /// To be looked up.
    pub(crate) fn into_rows(self) -> BlockRows {
        let [n, width] = self.shape;
        BlockRows {
            format: self.format,
            bytes: self.bytes.into_owned(),
            n,
            width,
        }
    }

    /// # Errors
    /// The bytes are no whole blocks.
    pub(crate) fn blocks(&self) -> candle_core::Result<Blocks<'_>> {
        Blocks::new(self.format, &self.bytes, self.shape)
    }
}

impl Entry {
    /// The type of all parts, if they have one and it is no float.
    fn quantized(&self) -> Option<GgmlDType> {
        let first = self.parts.first()?.info.format.ok()?;
        let floats = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];
        let same = |place: &Place| place.info.format == Ok(first);
        (!floats.contains(&first) && !self.frames && self.parts.iter().all(same)).then_some(first)
    }
}

impl Place {
    fn again(&self) -> Self {
        Self {
            file: self.file,
            name: self.name.clone(),
            info: self.info.clone(),
        }
    }
}

/// Whether parts are frames, and their shape together; `None` if they do not fit.
fn joined(parts: &[(Part, Place)]) -> Option<(bool, Vec<usize>)> {
    let kinds: Vec<Part> = parts.iter().map(|(part, _)| *part).collect();
    let (_, first) = parts.first()?;
    let mut shape = first.info.shape.clone();
    match kinds[..] {
        [Part::Whole] => Some((false, shape)),
        [Part::Frame(0), Part::Frame(1)] => {
            let same = parts.iter().all(|(_, place)| place.info.shape == shape);
            if shape.len() != 4 || !same {
                return None;
            }
            shape.insert(2, 2);
            Some((true, shape))
        }
        [Part::Rows(0), Part::Rows(1), Part::Rows(2)] => {
            let fits = |(_, place): &(Part, Place)| place.info.shape.get(1..) == shape.get(1..);
            if !parts.iter().all(fits) {
                return None;
            }
            let rows = parts.iter().map(|(_, place)| place.info.shape[0]);
            shape[0] = rows.fold(0_usize, usize::saturating_add);
            Some((false, shape))
        }
        _ => None,
    }
}

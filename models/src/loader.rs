//! A network's tensors by their canonical names, in the type it computes in.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::error::{ModelError, ShapeMismatch};
use crate::linear::Linear;
use crate::lora::Adapter;
use crate::open::ModelFolders;
use crate::quantized::QuantizedMatrix;
use crate::qwen::table::Table;
use crate::weights::Rename;

pub use crate::quantized::Quantization;

/// Canonical names of the linear maps that quantization is for start so.
const QUANTIZED: &str = "language_model.layers.";

/// And so, where the vision tower's are wanted too.
const QUANTIZED_VISION: &str = "visual.";

/// The float type a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// 32 bits: exact, and the fastest on most processors.
    #[default]
    F32,
    /// 16 bits with a small range: large activations may overflow.
    F16,
    /// 16 bits with the range of f32, in which most models were trained.
    BF16,
}

impl FromStr for Dtype {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            _ => Err(ModelError::UnknownDtype {
                found: name.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

/// How weights are brought into memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoaderOptions {
    /// Where the network computes.
    pub device: Device,
    /// What it computes in.
    pub dtype: Dtype,
    /// What the weights of linear maps become, if they do not stay floats: those of the
    /// language model's layers. Its embeddings and its heads stay.
    pub quantize: Option<Quantization>,
    /// Quantizes the vision tower's linear maps as well.
    pub quantize_vision: bool,
    /// Makes floats of weights that the files have in few bits. They stay as they are otherwise,
    /// whatever `quantize` says.
    pub dequantize: bool,
}

/// What loading brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Memory of the weights.
    #[cfg_attr(not(test), allow(dead_code, reason = "for those who report it"))]
    pub(crate) n_bytes: usize,
    /// From opening the files to the last tensor.
    #[cfg_attr(not(test), allow(dead_code, reason = "for those who report it"))]
    pub(crate) time: Duration,
}

/// Hands out the tensors a network asks for and remembers what is wrong with them, so
/// that one run tells everything.
pub(crate) struct Loader<'a> {
    folders: &'a ModelFolders,
    weights: Checkpoint,
    adapter: Option<Adapter>,
    device: candle_core::Device,
    dtype: DType,
    quantize: Option<Quantization>,
    quantize_vision: bool,
    dequantize: bool,
    started: Instant,
    n_bytes: Cell<usize>,
    problems: RefCell<Problems>,
}

#[derive(Default)]
struct Problems {
    missing: Vec<String>,
    mismatches: Vec<ShapeMismatch>,
    /// The first of any other kind, such as a full device.
    other: Option<ModelError>,
}

impl<'a> Loader<'a> {
    /// Opens the weights, under the names that `rename` makes of the files', and the adapter
    /// that changes them.
    ///
    /// # Errors
    /// A file is missing or damaged, or the device is not there.
    pub(crate) fn new(
        folders: &'a ModelFolders,
        rename: Rename,
        options: &LoaderOptions,
    ) -> Result<Self, ModelError> {
        let started = Instant::now();
        let adapter = folders.adapter.as_ref();
        let adapter = adapter.map(|(folder, config)| Adapter::open(folder, config.clone(), rename));
        Ok(Self {
            folders,
            weights: Checkpoint::open(&folders.base, rename)?,
            adapter: adapter.transpose()?,
            device: options.device.open()?,
            dtype: options.dtype.into(),
            quantize: options.quantize,
            quantize_vision: options.quantize_vision,
            dequantize: options.dequantize,
            started,
            n_bytes: Cell::new(0),
            problems: RefCell::default(),
        })
    }

    /// Where the tensors go.
    pub(crate) fn device(&self) -> &candle_core::Device {
        &self.device
    }

    /// What the tensors are converted to.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether the files hold a tensor of this canonical name. A network with tied
    /// embeddings has no `lm_head.weight`: it asks, and takes the embeddings instead.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// The shape of the tensor `name`, if there is one.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        let replaced = self
            .adapter
            .as_ref()
            .and_then(|adapter| adapter.replaced_shape(name));
        replaced.or_else(|| self.weights.shape(name))
    }

    /// The tensor `name` in the network's type, on its device. One that is missing or of
    /// another shape is noted for [`Loader::finish`], and a scalar comes back in its place.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Tensor {
        self.load(name, shape, self.dtype, &self.device)
            .unwrap_or_else(|| self.placeholder())
    }

    /// The linear map of `name.weight`, `[n_out, n_in]`, and, if `bias`, `name.bias`, `[n_out]`.
    /// Weights that the file has in few bits stay so, others are quantized if the options say
    /// so; `x` and the bias are of the network's type even then.
    pub(crate) fn linear(&self, name: &str, n_in: usize, n_out: usize, bias: bool) -> Linear {
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[n_out]));
        let name = format!("{name}.weight");
        let shape = [n_out, n_in];
        if !self.fits(&name, &shape) {
            return Linear::dense(self.placeholder(), bias);
        }
        let mut quantized = self.stored(&name);
        if quantized.is_none()
            && let Some(format) = self.quantization(&name)
        {
            quantized = self.quantized(&name, format);
        }
        match quantized {
            Some(weight) => {
                self.count(weight.n_bytes());
                Linear::quantized(weight, bias)
            }
            None => Linear::dense(self.tensor(&name, &shape), bias),
        }
    }

    /// The output layer of weight `name`, `[n_out, n_in]`, if the files have it in fewer bits,
    /// or `format` says that it gets them.
    pub(crate) fn output(
        &self,
        name: &str,
        n_in: usize,
        n_out: usize,
        format: Option<Quantization>,
    ) -> Option<Linear> {
        // What does not fit is told where the floats are asked for.
        if self.shape(name) != Some(&[n_out, n_in][..]) {
            return None;
        }
        let mut quantized = self.stored(name);
        if let (None, Some(format)) = (&quantized, format) {
            quantized = self.quantized(name, format);
        }
        let quantized = quantized?;
        self.count(quantized.n_bytes());
        Some(Linear::quantized(quantized, None))
    }

    /// The table `name`, `[n, width]`, whose rows are only looked up: on the processor as the
    /// files have it, if that is in less than the network computes in.
    pub(crate) fn table(&self, name: &str, [n, width]: [usize; 2]) -> Table {
        let here = self.device.is_cpu()
            && !self.is_changed(name)
            && self.shape(name) == Some(&[n, width][..]);
        if here && !self.dequantize {
            let rows = self.note(self.weights.block_rows(name)).flatten();
            if let Some(rows) = rows {
                self.count(rows.bytes.len());
                return Table::of_blocks(rows, self.dtype);
            }
        }
        let stored = self
            .weights
            .float_type(name)
            .filter(|stored| here && stored.size_in_bytes() < self.dtype.size_in_bytes());
        let rows = self.load(
            name,
            &[n, width],
            stored.unwrap_or(self.dtype),
            &self.device,
        );
        Table::of_floats(rows.unwrap_or_else(|| self.placeholder()), n, self.dtype)
    }

    /// The matrix `name` in the few bits that the files have it in, if it may stay so.
    fn stored(&self, name: &str) -> Option<QuantizedMatrix> {
        if self.dequantize || self.is_changed(name) {
            return None;
        }
        self.note(self.weights.matrix(name, &self.device)).flatten()
    }

    /// Whether the adapter makes another tensor of `name`.
    fn is_changed(&self, name: &str) -> bool {
        self.adapter.as_ref().is_some_and(|own| own.changes(name))
    }

    /// What a linear map's weight becomes.
    fn quantization(&self, name: &str) -> Option<Quantization> {
        let vision = self.quantize_vision && name.starts_with(QUANTIZED_VISION);
        self.quantize
            .filter(|_| vision || name.starts_with(QUANTIZED))
    }

    fn quantized(&self, name: &str, format: Quantization) -> Option<QuantizedMatrix> {
        let cpu = candle_core::Device::Cpu;
        let weight = self.note(self.read(name, DType::F32, &cpu))?;
        let quantized = QuantizedMatrix::new(format, &weight, &self.device);
        let error = ModelError::compute("quantizing a weight");
        self.note(quantized.map_err(error))
    }

    fn count(&self, n_bytes: usize) {
        self.n_bytes.set(self.n_bytes.get() + n_bytes);
    }

    /// Ends the loading.
    ///
    /// # Errors
    /// Everything that was missing or misshapen, or else what failed first.
    pub(crate) fn finish(self) -> Result<Loaded, ModelError> {
        let problems = self.problems.take();
        if let Some(adapter) = &self.adapter
            && problems.other.is_none()
        {
            adapter.check(&self.folders.base)?;
        }
        let path = self.weights.path().to_owned();
        match (problems.missing, problems.mismatches, problems.other) {
            (_, _, Some(other)) => Err(other),
            (names, mismatches, None) if !names.is_empty() && !mismatches.is_empty() => {
                Err(ModelError::UnfitTensors {
                    missing: names,
                    mismatches,
                    path,
                })
            }
            (names, _, None) if !names.is_empty() => {
                Err(ModelError::MissingTensors { names, path })
            }
            (_, mismatches, None) if !mismatches.is_empty() => {
                Err(ModelError::MisshapenTensors { mismatches, path })
            }
            _ => {
                let loaded = Loaded {
                    n_bytes: self.n_bytes.get(),
                    time: self.started.elapsed(),
                };
                let ms = loaded.time.as_millis();
                tracing::debug!(n_bytes = loaded.n_bytes, ms, path = %path.display(), "loaded");
                Ok(loaded)
            }
        }
    }

    fn load(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &candle_core::Device,
    ) -> Option<Tensor> {
        if !self.fits(name, shape) {
            return None;
        }
        let tensor = self.note(self.read(name, dtype, device))?;
        self.count(tensor.elem_count() * tensor.dtype().size_in_bytes());
        Some(tensor)
    }

    /// Whether the tensor is there in this shape; what is wrong is noted.
    fn fits(&self, name: &str, shape: &[usize]) -> bool {
        let Some(found) = self.shape(name) else {
            self.problems.borrow_mut().missing.push(name.to_owned());
            return false;
        };
        if found == shape {
            return true;
        }
        self.problems.borrow_mut().mismatches.push(ShapeMismatch {
            name: name.to_owned(),
            expected: shape.to_vec(),
            found: found.to_vec(),
        });
        false
    }

    /// The value, or `None` once its error is noted.
    fn note<T>(&self, result: Result<T, ModelError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.borrow_mut().other.get_or_insert(error);
                None
            }
        }
    }

    /// The tensor as the files have it, or as the adapter makes it.
    fn read(
        &self,
        name: &str,
        dtype: DType,
        device: &candle_core::Device,
    ) -> Result<Tensor, ModelError> {
        let adapter = self.adapter.as_ref();
        let Some(adapter) = adapter.filter(|adapter| adapter.changes(name)) else {
            return self.weights.tensor(name, dtype, device);
        };
        let cpu = candle_core::Device::Cpu;
        let merged = adapter.merge(name, || self.weights.tensor(name, DType::F32, &cpu))?;
        merged
            .to_dtype(dtype)
            .and_then(|merged| merged.to_device(device))
            .map_err(ModelError::compute("merging an adapter"))
    }

    fn placeholder(&self) -> Tensor {
        // A scalar on the processor is made of nothing that could fail.
        Tensor::zeros((), self.dtype, &candle_core::Device::Cpu)
            .expect("the processor has room for one number")
    }
}

/// The one name of a tensor of the Qwen2.5-VL and Qwen3-VL families, whichever of
/// the names in use a file has: `visual.*`, `language_model.*`, `lm_head.weight` and
/// `custom_text_proj.*`.
///
/// Wrappers have put `model.`, `vlm.` and `base_model.` in front over the years, old files
/// name the decoder's parts without `language_model.`, and some retrieval models call the
/// head `embedding_proj_layer`.
pub(crate) fn canonical_qwen_name(name: &str) -> String {
    let mut rest = name;
    while let Some(inner) = ["model.", "vlm.", "base_model."]
        .iter()
        .find_map(|wrapper| rest.strip_prefix(wrapper))
    {
        rest = inner;
    }
    if ["layers.", "embed_tokens.", "norm."]
        .iter()
        .any(|part| rest.starts_with(part))
    {
        return format!("language_model.{rest}");
    }
    match rest.strip_prefix("embedding_proj_layer.") {
        Some(parameter) => format!("custom_text_proj.{parameter}"),
        None => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests;

//! Defines the options that a generator is loaded with.

use candle_core::DType;

use crate::device::Device;
use crate::loader::{Dtype, LoaderOptions, Quantization};

/// How to load a [`Generator`](super::Generator).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Where to compute.
    pub device: Device,
    /// What to compute in. `None`: f32 on the processor, bf16 on a device.
    pub dtype: Option<Dtype>,
    /// Weights of the language model in fewer bits. Its output layer becomes `q8_0` then, and
    /// keys and values are kept in 16 bits.
    pub quantize: Option<Quantization>,
    /// Quantizes the vision tower as well.
    pub quantize_vision: bool,
    /// The most tokens that an image may become. `None`: what the model's own processor says.
    pub max_visual_tokens: Option<usize>,
    /// The most tokens of a prompt and its answer together. `None`: the model's own limit.
    pub max_context: Option<usize>,
    /// The most answers that grow at once.
    pub max_batch: usize,
    /// Memory for keys and values, in MiB; on the processor only what is used is taken.
    /// `None`: 2048 there, 8192 on a device.
    pub cache_mb: Option<u32>,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: None,
            quantize: None,
            quantize_vision: false,
            max_visual_tokens: None,
            max_context: None,
            max_batch: 8,
            cache_mb: None,
        }
    }
}

impl GeneratorOptions {
    pub(super) fn loader(&self) -> LoaderOptions {
        let usual = match self.device {
            Device::Cpu => Dtype::F32,
            Device::Cuda(_) | Device::Metal => Dtype::BF16,
        };
        LoaderOptions {
            device: self.device,
            dtype: self.dtype.unwrap_or(usual),
            quantize: self.quantize,
            quantize_vision: self.quantize_vision,
            dequantize: false,
        }
    }

    pub(super) fn cache_bytes(&self) -> usize {
        let usual = match self.device {
            Device::Cpu => 2048,
            Device::Cuda(_) | Device::Metal => 8192,
        };
        self.cache_mb.unwrap_or(usual) as usize * (1 << 20)
    }

    /// In which keys and values are kept. Weights in fewer bits lose more than they do in 16,
    /// and with several answers at once there is more to read of them than of weights.
    pub(super) fn cache_dtype(network: DType, is_quantized: bool) -> DType {
        if is_quantized && network == DType::F32 {
            DType::F16
        } else {
            network
        }
    }

    /// Tokens of prompts that are computed at once: more would fill the memory, not the cores.
    pub(super) fn pass_tokens(&self) -> usize {
        match self.device {
            Device::Cpu => 1024,
            Device::Cuda(_) | Device::Metal => 8192,
        }
    }
}

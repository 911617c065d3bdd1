//! Linear maps whose weights are 8-, 6- or 4-bit whole numbers with scales.
//!
//! The formats are ggml's: `q8_0` gives each 32 weights of a row a scale, `q4_k` a scale
//! and a minimum, themselves in 6 bits with a shared scale for 256, `q6_k` each 16 a scale,
//! in 8 bits with a shared one. [`stored`] takes over what files have in these and others.
//! Rows that meet the weights are quantized on the way as `q8_0`, so that the products are of
//! whole numbers.
//!
//! On an x86 processor with AVX2 or better the weights lie in tiles and meet our own
//! kernel: candle's, on such a processor, needs widths that are multiples of 256 to be any
//! faster than f32, and twice the memory. Everywhere else, candle computes.
//!
//! A width that is no multiple of the format's block goes on with zeros, in weights and
//! rows alike, which changes no product.

#[cfg(target_arch = "x86_64")]
mod few_bits;
#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(not(target_arch = "x86_64"))]
#[path = "quantized/no_kernel.rs"]
mod kernel;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod packed;
pub(crate) mod stored;
mod tiles;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Module, Result, Shape, Storage,
    Tensor, bail,
};

use crate::error::ModelError;
use kernel::Level;
use packed::{Multiply, Packed};

/// A format of fewer bits for the weights of linear maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantization {
    /// 8 bits and a scale for each 32: 8.5 bits a weight. Hardly to be told from f32.
    Q8_0,
    /// 6 bits and a scale for each 16: 6.6 bits a weight.
    Q6K,
    /// 4 bits, and a scale and a minimum for each 32: 4.5 bits a weight.
    Q4K,
}

impl FromStr for Quantization {
    type Err = ModelError;

    fn from_str(name: &str) -> std::result::Result<Self, ModelError> {
        match name {
            "q8_0" => Ok(Self::Q8_0),
            "q6_k" => Ok(Self::Q6K),
            "q4_k" => Ok(Self::Q4K),
            _ => Err(ModelError::UnknownQuantization {
                found: name.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q4K => "q4_k",
        })
    }
}

impl Quantization {
    fn ggml(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q4K => GgmlDType::Q4K,
        }
    }

    /// Size of `[n_out, n_in]` weights in this format, as ggml would store them.
    pub fn n_bytes(self, n_in: usize, n_out: usize) -> usize {
        let format = self.ggml();
        n_in.div_ceil(format.block_size()) * n_out * format.type_size()
    }
}

/// Weights `[n_out, n_in]` in a [`Quantization`].
pub(crate) struct QuantizedMatrix {
    n_in: usize,
    n_out: usize,
    form: Form,
    /// The place in a row of each input, `[n_in]` u32, where that is another.
    order: Option<Tensor>,
}

enum Form {
    /// In tiles, for our kernel.
    Packed(Box<dyn Multiply>),
    /// `[n_out, width]`, the width a multiple of the format's block.
    Candle { matrix: QMatMul, width: usize },
}

impl Form {
    fn of(packed: impl Multiply + 'static) -> Self {
        Self::Packed(Box::new(packed))
    }
}

impl QuantizedMatrix {
    /// Quantizes `weights`, `[n_out, n_in]` f32 on the processor, for use on `device`. All
    /// cores take part.
    ///
    /// # Errors
    /// Weights without values, or no room on the device.
    pub(crate) fn new(
        quantization: Quantization,
        weights: &Tensor,
        device: &Device,
    ) -> Result<Self> {
        let (n_out, n_in) = weights.dims2()?;
        if n_in == 0 || n_out == 0 {
            bail!("a quantized matrix needs values, this is [{n_out}, {n_in}]");
        }
        match Level::detect() {
            Some(level) if device.is_cpu() => Self::packed(quantization, weights, level),
            _ => Self::by_candle(quantization, weights, device),
        }
    }

    fn packed(quantization: Quantization, weights: &Tensor, level: Level) -> Result<Self> {
        let (n_out, n_in) = weights.dims2()?;
        let weights = weights.contiguous()?;
        let (storage, layout) = weights.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("weights are quantized on the processor");
        };
        let values = contiguous(storage, layout)?;
        let form = match quantization {
            Quantization::Q8_0 => Form::of(Packed::q8_0(level, values, n_in)),
            Quantization::Q6K => Form::of(Packed::q6_k(level, values, n_in)?),
            Quantization::Q4K => Form::of(Packed::q4_k(level, values, n_in)?),
        };
        Ok(Self::of_form(form, n_in, n_out))
    }

    fn by_candle(quantization: Quantization, weights: &Tensor, device: &Device) -> Result<Self> {
        let (n_out, n_in) = weights.dims2()?;
        let format = quantization.ggml();
        let width = n_in.next_multiple_of(format.block_size());
        let weights = weights.pad_with_zeros(1, 0, width - n_in)?;
        let weights = QTensor::quantize_onto(&weights, format, device)?;
        let matrix = QMatMul::from_qtensor(weights)?;
        Ok(Self::of_form(Form::Candle { matrix, width }, n_in, n_out))
    }

    fn of_form(form: Form, n_in: usize, n_out: usize) -> Self {
        Self {
            n_in,
            n_out,
            form,
            order: None,
        }
    }

    /// Width of the rows that it takes.
    pub(crate) fn n_in(&self) -> usize {
        self.n_in
    }

    /// `x W^T + bias`. `x` is `[n, n_in]` of any float type, on the matrix's device, and
    /// `bias` `[n_out]` of the same; so is the result, `[n, n_out]`. A row with a value that
    /// is not finite gives no finite value.
    ///
    /// # Errors
    /// Another width, or no room.
    pub(crate) fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (_, n_in) = x.dims2()?;
        if n_in != self.n_in {
            bail!("rows of {n_in} values for weights of {}", self.n_in);
        }
        let mut wide = x.to_dtype(DType::F32)?;
        if let Some(order) = &self.order {
            wide = wide.index_select(order, 1)?;
        }
        let wide = wide.contiguous()?;
        let Form::Candle { matrix, width } = &self.form else {
            return match bias {
                Some(bias) => {
                    let bias = bias.to_dtype(DType::F32)?;
                    wide.apply_op2_no_bwd(&bias, &Product(self))
                }
                None => wide.apply_op1_no_bwd(&Product(self)),
            }?
            .to_dtype(x.dtype());
        };
        let product = matrix.forward(&wide.pad_with_zeros(1, 0, width - n_in)?)?;
        // Candle takes the largest of a block without regard to NaN, and so loses it.
        let product = product.broadcast_add(&(&wide * 0.0)?.sum_keepdim(1)?)?;
        let product = product.to_dtype(x.dtype())?;
        match bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    /// Memory of the weights.
    pub(crate) fn n_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(packed) => packed.n_bytes(),
            Form::Candle { matrix, .. } => match matrix {
                QMatMul::QTensor(weights) => weights.storage_size_in_bytes(),
                QMatMul::Tensor(weights) | QMatMul::TensorF16(weights) => {
                    weights.elem_count() * weights.dtype().size_in_bytes()
                }
            },
        }
    }
}

/// The product on the processor, of contiguous f32 rows and, as a second operand, a bias.
struct Product<'a>(&'a QuantizedMatrix);

impl Product<'_> {
    fn multiply(&self, x: &[f32], bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let n = x.len() / self.0.n_in;
        let out = match &self.0.form {
            Form::Packed(packed) => packed.multiply(x, bias),
            Form::Candle { .. } => bail!("candle multiplies its own"),
        };
        let shape = Shape::from((n, self.0.n_out));
        Ok((CpuStorage::F32(out), shape))
    }
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "quantized-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.multiply(contiguous(x, layout)?, None)
    }
}

impl CustomOp2 for Product<'_> {
    fn name(&self) -> &'static str {
        "quantized-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = contiguous(bias, bias_layout)?;
        self.multiply(contiguous(x, layout)?, Some(bias))
    }
}

/// The values of a contiguous f32 tensor on the processor.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the tensor is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

//! The affine maps of which every network is made.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use gemm::Parallelism;
use rayon::prelude::*;

use crate::quantized::QuantizedMatrix;

/// Rows to whose products one core adds the bias at a time.
const N_ROWS_PER_TASK: usize = 16;

/// `x W^T + b`, with `W` dense or quantized.
#[derive(Clone)]
pub(crate) struct Linear {
    weight: Weight,
    /// `[out]`.
    bias: Option<Tensor>,
}

#[derive(Clone)]
enum Weight {
    /// `[out, in]`.
    Dense(Tensor),
    Quantized(Arc<QuantizedMatrix>),
}

impl Linear {
    /// Of `weight` `[out, in]` and `bias` `[out]`, of one float type.
    pub(crate) fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            weight: Weight::Dense(weight),
            bias,
        }
    }

    /// Whether its weight has fewer bits than floats.
    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self.weight, Weight::Quantized(_))
    }

    /// Of a quantized weight, and `bias` `[out]` of the type that rows will have.
    pub(crate) fn quantized(weight: QuantizedMatrix, bias: Option<Tensor>) -> Self {
        Self {
            weight: Weight::Quantized(Arc::new(weight)),
            bias,
        }
    }

    /// Width of the rows that it takes.
    pub(crate) fn n_in(&self) -> usize {
        match &self.weight {
            Weight::Dense(weight) => weight.dims().last().copied().unwrap_or(0),
            Weight::Quantized(weight) => weight.n_in(),
        }
    }

    /// `x` is `[n, in]`, in the weight's type if that is dense; the result is `[n, out]`.
    ///
    /// # Errors
    /// A width that is not `in`, or the device has no room.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        let weight = match &self.weight {
            Weight::Dense(weight) => weight,
            Weight::Quantized(weight) => return weight.forward(x, bias),
        };
        // Those libraries multiply faster than what we call.
        let library = cfg!(any(feature = "mkl", feature = "accelerate"));
        if x.device().is_cpu() && x.dtype() == DType::F32 && !library {
            let x = x.contiguous()?;
            return match bias {
                Some(bias) => x.apply_op3_no_bwd(weight, bias, &Product),
                None => x.apply_op2_no_bwd(weight, &Product),
            };
        }
        let product = x.matmul(&weight.t()?)?; // [n, out]
        match bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// The product of f32 on the processor. It is candle's, without its pass that fills the
/// result with zeros first and the one that adds the bias after, which together take a
/// tenth of the time where rows are short.
struct Product;

/// A contiguous matrix.
struct Matrix<'a> {
    values: &'a [f32],
    n_rows: usize,
    width: usize,
}

impl<'a> Matrix<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (n_rows, width) = layout.shape().dims2()?;
        let values = contiguous(storage, layout)?;
        Ok(Self {
            values,
            n_rows,
            width,
        })
    }
}

impl Product {
    fn multiply(
        x: &Matrix<'_>,
        weight: &Matrix<'_>,
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, n_in, n_out) = (x.n_rows, x.width, weight.n_rows);
        if weight.width != n_in || bias.is_some_and(|bias| bias.len() != n_out) {
            bail!(
                "rows of {n_in} values for weights [{n_out}, {}]",
                weight.width
            );
        }
        let mut out: Vec<f32> = Vec::with_capacity(n * n_out);
        // SAFETY: the slices hold `[n, n_in]` and `[n_out, n_in]` values in rows, and `out`
        // has room for `[n, n_out]`, which `gemm` writes without reading it.
        unsafe {
            gemm::gemm(
                n,
                n_out,
                n_in,
                out.as_mut_ptr(),
                1,
                n_out as isize,
                false,
                x.values.as_ptr(),
                1,
                n_in as isize,
                weight.values.as_ptr(),
                n_in as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(0),
            );
            out.set_len(n * n_out);
        }
        if let Some(bias) = bias {
            out.par_chunks_mut(N_ROWS_PER_TASK * n_out.max(1))
                .for_each(|rows| {
                    for row in rows.chunks_exact_mut(n_out) {
                        row.iter_mut()
                            .zip(bias)
                            .for_each(|(out, bias)| *out += bias);
                    }
                });
        }
        Ok((CpuStorage::F32(out), Shape::from((n, n_out))))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (Matrix::of(x, x_layout)?, Matrix::of(weight, weight_layout)?);
        Self::multiply(&x, &weight, None)
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "product-and-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (Matrix::of(x, x_layout)?, Matrix::of(weight, weight_layout)?);
        Self::multiply(&x, &weight, Some(contiguous(bias, bias_layout)?))
    }
}

/// The values of a contiguous f32 tensor on the processor.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the tensor is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::quantized::Quantization;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = a.sub(b).unwrap().abs().unwrap();
        difference.max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn our_product_is_candles_with_and_without_a_bias() {
        for (n, n_in, n_out) in [(1, 5, 3), (7, 64, 48), (40, 100, 257), (0, 4, 4), (3, 8, 1)] {
            let (x, weight) = (random((n, n_in)), random((n_out, n_in)));
            let bias = random((1, n_out)).squeeze(0).unwrap();
            let product = x.matmul(&weight.t().unwrap()).unwrap();
            let ours = Linear::dense(weight.clone(), None).forward(&x).unwrap();
            assert_eq!(ours.dims(), [n, n_out]);
            let with_bias = Linear::dense(weight, Some(bias.clone()))
                .forward(&x)
                .unwrap();
            if n > 0 {
                assert!(largest_difference(&ours, &product) < 1e-4);
                let product = product.broadcast_add(&bias).unwrap();
                assert!(largest_difference(&with_bias, &product) < 1e-4);
            }
        }
    }

    #[test]
    fn rows_need_not_be_contiguous_and_other_types_are_multiplied_too() {
        let (x, weight) = (random((6, 9)), random((4, 9)));
        let whole = Linear::dense(weight.clone(), None).forward(&x).unwrap();
        let turned = x.t().unwrap().contiguous().unwrap().t().unwrap();
        let ours = Linear::dense(weight.clone(), None)
            .forward(&turned)
            .unwrap();
        assert!(largest_difference(&ours, &whole) <= 0.0);
        for dtype in [DType::F16, DType::BF16] {
            let weight = weight.to_dtype(dtype).unwrap();
            let bias = Tensor::zeros(4, dtype, &Device::Cpu).unwrap();
            let linear = Linear::dense(weight, Some(bias));
            let narrow = linear.forward(&x.to_dtype(dtype).unwrap()).unwrap();
            assert_eq!(narrow.dtype(), dtype);
            let narrow = narrow.to_dtype(DType::F32).unwrap();
            assert!(largest_difference(&narrow, &whole) < 0.1);
        }
    }

    #[test]
    fn another_width_is_an_error() {
        let linear = Linear::dense(random((4, 9)), None);
        let message = linear.forward(&random((2, 8))).unwrap_err().to_string();
        assert!(
            message.contains("rows of 8 values for weights [4, 9]"),
            "{message}"
        );
        let weight = QuantizedMatrix::new(Quantization::Q8_0, &random((4, 9)), &Device::Cpu);
        let linear = Linear::quantized(weight.unwrap(), None);
        assert!(linear.forward(&random((2, 8))).is_err());
    }
}

//! The affine maps of which every network is made.

use candle_core::{Result, Tensor};

/// `x W^T + b`, with `W` dense.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// Of `weight` `[out, in]` and `bias` `[out]`, of one float type.
    pub(crate) fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    pub(crate) fn n_in(&self) -> usize { self.weight.dims()[1] }
    /// `x` is `[n, in]` in the weight's type; the result is `[n, out]`.
    ///
    /// # Errors
    /// A width that is not `in`, or the device has no room.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.weight.t()?)?; // [n, out]
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

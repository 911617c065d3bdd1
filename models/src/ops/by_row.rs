//! The steps over rows on the processor in f32: each one pass over memory, spread over the
//! cores.

use std::mem::MaybeUninit;

use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

use super::{Activation, is_dense, rows};

/// Values that one core takes at a time, about: they fit in the nearest cache, and fewer are
/// not worth the wait for another core.
const N_VALUES_PER_TASK: usize = 8 * 1024;

/// As [`super::rms_norm`].
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm { eps })
}

/// As [`super::layer_norm`].
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op3_no_bwd(weight, bias, &LayerNorm { eps })
}

/// As [`super::rope`].
pub(super) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    x.apply_op3_no_bwd(cos, sin, &Rope)
}

/// As [`super::silu_mul`].
pub(super) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2_no_bwd(up, &SiluMul)
}

/// As [`super::activate`], of a contiguous x, in place.
pub(super) fn activate(x: Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    match bias {
        _ if x.elem_count() == 0 => (),
        Some(bias) => x.inplace_op2(bias, &Activate { activation })?,
        None => x.inplace_op1(&Activate { activation })?,
    }
    Ok(x)
}

/// As [`super::add`], of a contiguous x, in place.
pub(super) fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if x.elem_count() > 0 {
        x.inplace_op2(y, &Add)?;
    }
    Ok(x)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight = values(weight, weight_layout)?;
        let normal = Rows::of(x, x_layout)?.map(|_, row| rows::rms_norm(row, weight, self.eps));
        Ok((CpuStorage::F32(normal), x_layout.shape().clone()))
    }
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let weight = values(weight, weight_layout)?;
        let bias = values(bias, bias_layout)?;
        let normal =
            Rows::of(x, x_layout)?.map(|_, row| rows::layer_norm(row, weight, bias, self.eps));
        Ok((CpuStorage::F32(normal), x_layout.shape().clone()))
    }
}

struct Rope;

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (cos, sin) = (Rows::of(cos, cos_layout)?, Rows::of(sin, sin_layout)?);
        let turned = Rows::of(x, x_layout)?
            .map(|index, row| rows::rope(row, cos.row(index), sin.row(index)));
        Ok((CpuStorage::F32(turned), x_layout.shape().clone()))
    }
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let up = Rows::of(up, up_layout)?;
        let gated =
            Rows::of(gate, gate_layout)?.map(|index, row| rows::silu_mul(row, up.row(index)));
        Ok((CpuStorage::F32(gated), gate_layout.shape().clone()))
    }
}

struct Activate {
    activation: Activation,
}

impl InplaceOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        spread(values_mut(x, layout)?, 1, |_, values| {
            rows::activate(values, None, self.activation);
        });
        Ok(())
    }
}

impl InplaceOp2 for Activate {
    fn name(&self) -> &'static str {
        "bias-activate"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let bias = values(bias, bias_layout)?;
        spread(values_mut(x, x_layout)?, bias.len(), |_, rows| {
            rows::activate(rows, Some(bias), self.activation);
        });
        Ok(())
    }
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let y = values(y, y_layout)?;
        spread(values_mut(x, x_layout)?, 1, |first, values| {
            rows::add(values, &y[first..first + values.len()]);
        });
        Ok(())
    }
}

/// The values of a contiguous tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the tensor is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the tensor is not contiguous")
    };
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => bail!("the tensor is not f32"),
    }
}

/// Changes values in place, some rows at a time, of which `change` learns where the first
/// value stands.
fn spread(values: &mut [f32], width: usize, change: impl Fn(usize, &mut [f32]) + Sync) {
    if values.len() <= N_VALUES_PER_TASK {
        change(0, values);
        return;
    }
    let n_at_once = (N_VALUES_PER_TASK / width).max(1) * width;
    let tasks = values.par_chunks_mut(n_at_once).enumerate();
    tasks.for_each(|(index, values)| change(index * n_at_once, values));
}

/// Rows of one width, with gaps between them.
struct Rows<'a> {
    values: &'a [f32],
    n: usize,
    width: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Those of a tensor `[n, ..]` whose dimensions after the first have no gaps.
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (Some(n), Some(stride)) = (layout.dims().first(), layout.stride().first()) else {
            bail!("a single value has no rows")
        };
        if !is_dense(layout, 1) {
            bail!("there are gaps within a row")
        }
        Ok(Self {
            values: &storage.as_slice::<f32>()?[layout.start_offset()..],
            n: *n,
            width: layout.dims()[1..].iter().product(),
            stride: *stride,
        })
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..self.width]
    }

    /// The rows without gaps, each changed by `change`.
    fn map(&self, change: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
        let n_values = self.n * self.width;
        let mut output: Vec<f32> = Vec::with_capacity(n_values);
        if n_values == 0 {
            return output;
        }
        let n_at_once = (N_VALUES_PER_TASK / self.width).max(1);
        let task = |(index, copies): (usize, &mut [MaybeUninit<f32>])| {
            let copies = copies.chunks_exact_mut(self.width);
            for (row, copy) in (index * n_at_once..).zip(copies) {
                change(row, copy.write_copy_of_slice(self.row(row)));
            }
        };
        let room = &mut output.spare_capacity_mut()[..n_values];
        if n_values <= N_VALUES_PER_TASK {
            task((0, room));
        } else {
            let tasks = room.par_chunks_mut(n_at_once * self.width);
            tasks.enumerate().for_each(task);
        }
        // SAFETY: `room` is the first `n_values` of the spare capacity, a whole number of
        // rows, and each of them has been copied.
        unsafe { output.set_len(n_values) };
        output
    }
}

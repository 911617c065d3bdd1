//! The steps between BERT's matrix products on the processor.
//!
//! Each is one pass over memory, spread over the cores.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp2, D, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::attention::{self, AttentionScratch, Projected};
use crate::ops;
use crate::settings::Activation;
use crate::simd;

/// Rows that one core takes at a time.
const N_ROWS_PER_TASK: usize = 16;

/// Queries of one text that one core takes at a time. More than a few, since each task
/// lays out the keys and values anew.
const N_QUERIES_PER_TASK: usize = 128;

/// `activation(x + bias)`. `x`: `[n, width]`, freshly computed and contiguous.
pub(crate) fn bias_activation(x: Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => ops::activate(x, Some(bias), ops::Activation::Gelu),
        Activation::GeluTanh => ops::activate(x, Some(bias), ops::Activation::GeluTanh),
        Activation::Relu => x.broadcast_add(bias)?.relu(),
    }
}

/// The bias of a projection and the layer norm after its residual connection.
pub(crate) struct ResidualNorm {
    /// `[3, hidden]`: bias, weight, offset.
    pub(crate) parameters: Tensor,
    pub(crate) epsilon: f64,
}

impl ResidualNorm {
    /// `norm(x + bias + residual)`. Both `[n, hidden]`, `x` freshly computed and contiguous.
    pub(crate) fn forward(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        let epsilon = self.epsilon as f32;
        let residual = residual.contiguous()?;
        x.inplace_op3(&residual, &self.parameters, &BiasResidualNorm { epsilon })?;
        Ok(x)
    }
}

/// Full attention within each text of a batch.
///
/// `projected`: `[n, 3 * hidden]`, contiguous; `bias`: `[3 * hidden]`; text `i` is rows
/// `starts[i]..starts[i + 1]`. Gives `[n, hidden]`.
pub(crate) fn attend(
    projected: &Tensor,
    bias: &Tensor,
    n_heads: usize,
    starts: &[usize],
) -> Result<Tensor> {
    projected.apply_op2_no_bwd(bias, &PackedAttention { starts, n_heads })
}

/// The values of a contiguous tensor on the processor.
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

struct BiasResidualNorm {
    epsilon: f32,
}

impl InplaceOp3 for BiasResidualNorm {
    fn name(&self) -> &'static str {
        "bias-residual-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<()> {
        let parameters = values(parameters, parameters_layout)?;
        let n_values_per_task = N_ROWS_PER_TASK * parameters.len() / 3;
        let residual = values(residual, residual_layout)?.par_chunks(n_values_per_task);
        values_mut(x, x_layout)?
            .par_chunks_mut(n_values_per_task)
            .zip(residual)
            .for_each(|(rows, residual)| {
                simd::bias_residual_norm(rows, residual, parameters, self.epsilon);
            });
        Ok(())
    }
}

struct PackedAttention<'a> {
    starts: &'a [usize],
    n_heads: usize,
}

impl CustomOp2 for PackedAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        projected: &CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        thread_local! {
            static SCRATCH: RefCell<AttentionScratch> = RefCell::default();
        }
        let projected = values(projected, layout)?;
        let bias = values(bias, bias_layout)?;
        let hidden = bias.len() / 3;
        let n_tokens = layout.dim(D::Minus2)?;
        let mut output = vec![0.0; n_tokens * hidden];

        // Each task owns a run of output rows that lies within one text.
        let mut tasks = Vec::new();
        let mut rest = output.as_mut_slice();
        for bounds in self.starts.windows(2) {
            let text = &projected[bounds[0] * bias.len()..bounds[1] * bias.len()];
            for first_query in (0..bounds[1] - bounds[0]).step_by(N_QUERIES_PER_TASK) {
                let n_queries = N_QUERIES_PER_TASK.min(bounds[1] - bounds[0] - first_query);
                let (own, others) = rest.split_at_mut(n_queries * hidden);
                rest = others;
                let n_heads = self.n_heads;
                tasks.push((
                    Projected {
                        rows: text,
                        bias,
                        n_heads,
                        first_query,
                    },
                    own,
                ));
            }
        }
        tasks.into_par_iter().for_each(|(text, own)| {
            SCRATCH.with_borrow_mut(|scratch| attention::attend(text, scratch, own));
        });
        Ok((CpuStorage::F32(output), Shape::from((n_tokens, hidden))))
    }
}

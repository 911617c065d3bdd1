//! The steps of the networks between their matrix products.
//!
//! Sequences are packed: the rows of all of them stand end to end in one tensor, without
//! padding, and [`Span`]s say where each begins and ends. Every step runs on any device and
//! in any float type by candle's own operations (`plain`); on the processor in f32 it is one
//! pass of ours over memory instead.
//!
//! No result depends on which rows share a call.

use std::ops::Range;

use candle_core::{DType, Device, Layout, Result, Tensor, bail};

// On any device.
mod plain;

// On the processor, in f32: attention, from the call to its tiles, and the steps over rows.
mod spread;

mod attention;

mod tile;

mod decode;

mod widen;

mod by_row;

mod rows;

#[cfg(test)]
mod tests;

pub(crate) use decode::{Kept, attend_kept};

/// Rows `queries` of q attend to rows `keys` of k and v.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) queries: Range<usize>,
    pub(crate) keys: Range<usize>,
}

/// Which of its span's keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mask {
    /// All of them.
    Full,
    /// The last query of the span sees all keys, and each query before it one key less, so
    /// that a span of one sequence is the usual triangle, and keys kept from earlier calls
    /// come first.
    Causal,
}

/// What follows a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    Gelu,
    /// The tanh approximation, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Attention of each span's queries over its keys: `softmax(q k^T * scale) v`, scores and
/// softmax in f32.
///
/// q is `[n, heads, head_dim]`, k and v are `[m, kv_heads, head_dim]`; each key head serves
/// `heads / kv_heads` neighbouring heads. All three may be views with gaps between rows, such
/// as parts of one fused projection: the processor reads them where they are. The spans'
/// queries ascend and together are `0..n`; their keys may overlap. Gives
/// `[n, heads * head_dim]`, contiguous.
///
/// A value that is not finite makes the rows that see it not finite, and no others outside
/// its span.
///
/// # Errors
/// Shapes or spans do not fit together, a span has queries without keys, or the device fails.
pub(crate) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    mask: Mask,
    scale: f32,
) -> Result<Tensor> {
    match (q.device(), q.dtype()) {
        (Device::Cpu, DType::F32) => spread::attend(q, k, v, spans, mask, scale),
        (Device::Cpu, DType::F16 | DType::BF16) => {
            let wide = |x: &Tensor| x.to_dtype(DType::F32);
            attend(&wide(q)?, &wide(k)?, &wide(v)?, spans, mask, scale)?.to_dtype(q.dtype())
        }
        _ => {
            check_attention(q, k, v, spans, mask)?;
            plain::attend(q, k, v, spans, mask, scale)
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over rows: x is `[n, width]`, weight `[width]`.
///
/// Normalised in f32, then cast to x's type, then multiplied.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    check_row_parameter("weight", x, weight)?;
    if !is_fused(x) {
        return plain::rms_norm(x, weight, eps);
    }
    by_row::rms_norm(&dense(x, 1)?, &like(weight, x)?, eps)
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over rows, in f32: x is `[n, width]`,
/// weight and bias are `[width]`.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    check_row_parameter("weight", x, weight)?;
    check_row_parameter("bias", x, bias)?;
    if !is_fused(x) {
        return plain::layer_norm(x, weight, bias, eps);
    }
    by_row::layer_norm(&dense(x, 1)?, &like(weight, x)?, &like(bias, x)?, eps)
}

/// Rotary position embedding (<https://arxiv.org/abs/2104.09864>) with a head's halves as the
/// pairs ("rotate half"): `x1 cos - x2 sin | x2 cos + x1 sin`.
///
/// x is `[n, heads, head_dim]`, cos and sin are `[n, head_dim / 2]`. x may be a view with gaps
/// between rows: of a fused projection seen as `[n, 3 * heads, head_dim]`, one call over
/// `narrow(1, 0, 2 * heads)` turns queries and keys at once. If cos and sin are f32, it is
/// computed in f32 whatever x is. Gives x's shape and type, contiguous.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (n, _, head_dim) = x.dims3()?;
    let expected = (n, head_dim / 2);
    if head_dim % 2 != 0 || cos.dims2()? != expected || sin.dims2()? != expected {
        bail!(
            "angles of shape {:?} and {:?} do not fit rows of shape {:?}",
            cos.shape(),
            sin.shape(),
            x.shape()
        )
    }
    if !is_fused(x) {
        return plain::rope(x, cos, sin);
    }
    by_row::rope(&dense(x, 1)?, &like(cos, x)?, &like(sin, x)?)
}

/// `silu(gate) * up`, both `[n, width]`, possibly views with gaps between rows, such as the
/// halves of one projection.
pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims2()? != up.dims2()? {
        bail!(
            "a gate of shape {:?} does not fit {:?}",
            gate.shape(),
            up.shape()
        )
    }
    if !is_fused(gate) {
        return plain::silu_mul(gate, up);
    }
    by_row::silu_mul(&dense(gate, 1)?, &dense(&up.to_dtype(DType::F32)?, 1)?)
}

/// `activation(x + bias)`. x: `[n, width]`, freshly computed, since its memory may be used
/// for the result; bias: `[width]`.
pub(crate) fn activate(x: Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    if let Some(bias) = bias {
        check_row_parameter("bias", &x, bias)?;
    }
    if !is_fused(&x) {
        return plain::activate(&x, bias, activation);
    }
    let bias = bias.map(|bias| like(bias, &x)).transpose()?;
    by_row::activate(packed(x)?, bias.as_ref(), activation)
}

/// `x + y`, of one shape. x: freshly computed, since its memory may be used for the result.
pub(crate) fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if !is_fused(&x) || x.dims() != y.dims() {
        return &x + y;
    }
    let y = like(y, &x)?;
    by_row::add(packed(x)?, &y)
}

fn check_row_parameter(name: &str, x: &Tensor, parameter: &Tensor) -> Result<()> {
    let (_, width) = x.dims2()?;
    if parameter.dims() != [width] {
        bail!(
            "a {name} of shape {:?} does not fit rows of {width}",
            parameter.shape()
        )
    }
    Ok(())
}

/// Whether all shapes fit, the spans' queries are `0..n` one after another, and their keys are
/// there. No reading or writing out of bounds follows.
fn check_attention(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span], mask: Mask) -> Result<()> {
    let (n_queries, n_heads, head_dim) = q.dims3()?;
    let (n_keys, n_kv_heads, key_dim) = k.dims3()?;
    let divides = n_kv_heads > 0 && n_heads > 0 && n_heads % n_kv_heads == 0;
    if key_dim != head_dim || head_dim == 0 || k.dims() != v.dims() || !divides {
        bail!(
            "queries {:?}, keys {:?} and values {:?} do not fit together",
            q.shape(),
            k.shape(),
            v.shape()
        )
    }
    let mut next = 0;
    for Span { queries, keys } in spans {
        if queries.start != next || queries.end < next {
            bail!("the spans' queries leave a gap or overlap at row {next}")
        }
        next = queries.end;
        if keys.end > n_keys || keys.start > keys.end {
            bail!("a span's keys, {keys:?}, are not among the {n_keys} rows")
        }
        let n_needed = match mask {
            Mask::Full => queries.len().min(1),
            Mask::Causal => queries.len(),
        };
        if keys.len() < n_needed {
            bail!(
                "a span of {} queries has only {} keys",
                queries.len(),
                keys.len()
            )
        }
    }
    if next != n_queries {
        bail!("the spans' queries end at row {next} of {n_queries}")
    }
    Ok(())
}

/// Whether the step is our own.
fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// A parameter in x's type, contiguous.
fn like(parameter: &Tensor, x: &Tensor) -> Result<Tensor> {
    parameter.to_dtype(x.dtype())?.contiguous()
}

/// The tensor itself, or a contiguous copy.
fn packed(x: Tensor) -> Result<Tensor> {
    if x.is_contiguous() {
        Ok(x)
    } else {
        x.contiguous()
    }
}

/// The tensor with no gaps in the dimensions from `first` on, copied only if there are.
fn dense(x: &Tensor, first: usize) -> Result<Tensor> {
    if is_dense(x.layout(), first) {
        Ok(x.clone())
    } else {
        x.contiguous()
    }
}

/// Whether the dimensions from `first` on have no gaps.
fn is_dense(layout: &Layout, first: usize) -> bool {
    let mut expected = 1;
    let dimensions = layout.dims().iter().zip(layout.stride()).skip(first);
    dimensions.rev().all(|(n, stride)| {
        let follows = *stride == expected || *n == 1;
        expected *= n;
        follows
    })
}

/// What scores, norms and angles are computed in.
fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

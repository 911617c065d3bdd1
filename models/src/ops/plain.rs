//! The steps by candle's own operations, for any device and float type.
//!
//! A launch on a device costs as much as a small matrix product, so heads and spans of one
//! shape go into one product.

use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Activation, Mask, Span, wide};

/// Scores of one product, at most, unless a single query has more: 256 MiB in f32.
const MAX_SCORES: usize = 1 << 26;

/// As [`super::attend`], of checked arguments.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    mask: Mask,
    scale: f32,
) -> Result<Tensor> {
    let dtype = q.dtype();
    // The processor has no products of its own in the short types.
    let compute = match q.device() {
        Device::Cpu => wide(dtype),
        _ => dtype,
    };
    let (q, k, v) = (
        q.to_dtype(compute)?.contiguous()?,
        k.to_dtype(compute)?.contiguous()?,
        v.to_dtype(compute)?.contiguous()?,
    );
    let spans: Vec<Span> = spans
        .iter()
        .filter(|span| !span.queries.is_empty())
        .cloned()
        .collect();
    let attended = match Order::of(&spans) {
        Some(order) => {
            let rows = Tensor::new(order.rows, q.device())?;
            let sorted = |x: &Tensor| x.index_select(&rows, 0);
            let (q, k, v) = (sorted(&q)?, sorted(&k)?, sorted(&v)?);
            let attended = attend_runs(&q, &k, &v, &order.spans, mask, scale)?;
            attended.index_select(&Tensor::new(order.places, q.device())?, 0)?
        }
        None => attend_runs(&q, &k, &v, &spans, mask, scale)?,
    };
    attended.to_dtype(dtype)
}

/// How to sort spans so that those of one shape follow each other.
struct Order {
    spans: Vec<Span>,
    /// Which row comes to each place.
    rows: Vec<u32>,
    /// Which place each row came to.
    places: Vec<u32>,
}

impl Order {
    /// Nothing where sorting saves nothing, or where queries and keys are not the same rows.
    fn of(spans: &[Span]) -> Option<Self> {
        let alike = |a: &Span, b: &Span| a.queries.len() == b.queries.len();
        let n_runs = spans.chunk_by(alike).count();
        let mut sorted: Vec<&Span> = spans.iter().collect();
        sorted.sort_by_key(|span| span.queries.len());
        let n_shapes = sorted.chunk_by(|a, b| alike(a, b)).count();
        if n_runs == n_shapes || spans.iter().any(|span| span.queries != span.keys) {
            return None;
        }
        let mut order = Self {
            spans: Vec::new(),
            rows: Vec::new(),
            places: vec![0; spans.last()?.queries.end],
        };
        for span in sorted {
            let start = order.rows.len();
            for row in span.queries.clone() {
                order.places[row] = order.rows.len() as u32;
                order.rows.push(row as u32);
            }
            order.spans.push(Span {
                queries: start..order.rows.len(),
                keys: start..order.rows.len(),
            });
        }
        Some(order)
    }
}

/// Attention in spans that are not empty, as many at once as have one shape and follow each
/// other. All tensors are contiguous; gives `[n, heads * head_dim]`.
fn attend_runs(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    mask: Mask,
    scale: f32,
) -> Result<Tensor> {
    let (n, n_heads, head_dim) = q.dims3()?;
    let follows = |a: &Span, b: &Span| {
        let lengths = |span: &Span| (span.queries.len(), span.keys.len());
        lengths(a) == lengths(b) && a.keys.end == b.keys.start
    };
    let mut attended = Vec::new();
    for run in spans.chunk_by(follows) {
        let rows = |x: &Tensor, rows: &Range<usize>| {
            x.narrow(0, rows.start, run.len() * rows.len())?.reshape((
                run.len(),
                rows.len(),
                x.dim(1)?,
                head_dim,
            ))
        };
        let Span { queries, keys } = &run[0];
        let (q, k, v) = (rows(q, queries)?, rows(k, keys)?, rows(v, keys)?);
        attended.push(attend_alike(&q, &k, &v, mask, scale)?.reshape(((), n_heads * head_dim))?);
    }
    match attended.len() {
        0 => q.reshape((n, n_heads * head_dim)),
        1 => Ok(attended.swap_remove(0)),
        _ => Tensor::cat(&attended, 0),
    }
}

/// Attention in spans of one shape. q: `[spans, queries, heads, head_dim]`, k and v:
/// `[spans, keys, kv_heads, head_dim]`; gives q's shape.
fn attend_alike(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f32) -> Result<Tensor> {
    let (n_spans, n_queries, n_heads, head_dim) = q.dims4()?;
    let (_, n_keys, n_kv_heads, _) = k.dims4()?;
    let group = n_heads / n_kv_heads;
    // A power of two changes no digit of q, and keeps the scores within f16; the rest of the
    // scale waits until they are f32.
    let power = scale.abs().log2().floor().exp2();
    let q = (q * f64::from(power.copysign(scale)))?;

    let keys = k.permute((0, 2, 3, 1))?.contiguous()?; // [spans, kv_heads, head_dim, keys]
    let values = v.transpose(1, 2)?.contiguous()?; // [spans, kv_heads, keys, head_dim]
    let n_at_once = (MAX_SCORES / (n_spans * n_heads * n_keys)).clamp(1, n_queries);
    let mut blocks = Vec::new();
    for first in (0..n_queries).step_by(n_at_once) {
        let n_rows = n_at_once.min(n_queries - first);
        let q = q
            .narrow(1, first, n_rows)?
            .reshape((n_spans, n_rows, n_kv_heads, group, head_dim))?
            .permute((0, 2, 3, 1, 4))?
            .reshape((n_spans, n_kv_heads, group * n_rows, head_dim))?;
        let scores = q.matmul(&keys)?; // [spans, kv_heads, group * rows, keys]
        let scores = scores.to_dtype(wide(q.dtype()))?;
        let scores = if power < scale.abs() {
            (scores * f64::from(scale.abs() / power))?
        } else {
            scores
        };
        let scores = match mask {
            Mask::Full => scores,
            Mask::Causal => {
                let scores = scores.reshape((n_spans * n_heads, n_rows, n_keys))?;
                hide_later_keys(&scores, n_keys - n_queries + first)?.reshape((
                    n_spans,
                    n_kv_heads,
                    group * n_rows,
                    n_keys,
                ))?
            }
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(q.dtype())?;
        let attended = weights
            .matmul(&values)? // [spans, kv_heads, group * rows, head_dim]
            .reshape((n_spans, n_kv_heads, group, n_rows, head_dim))?
            .permute((0, 3, 1, 2, 4))?
            .reshape((n_spans, n_rows, n_heads, head_dim))?;
        blocks.push(attended);
    }
    match blocks.len() {
        1 => Ok(blocks.swap_remove(0)),
        _ => Tensor::cat(&blocks, 1),
    }
}

/// Row r of `[.., rows, keys]` keeps its scores up to key `first + r`.
fn hide_later_keys(scores: &Tensor, first: usize) -> Result<Tensor> {
    let (_, n_rows, n_keys) = scores.dims3()?;
    if n_rows == 1 && first + 1 == n_keys {
        return Ok(scores.clone());
    }
    let device = scores.device();
    let last = Tensor::arange(first as u32, (first + n_rows) as u32, device)?;
    let keys = Tensor::arange(0, n_keys as u32, device)?;
    let seen = keys
        .unsqueeze(0)?
        .broadcast_le(&last.unsqueeze(1)?)? // [rows, keys]
        .broadcast_as(scores.shape())?;
    let hidden = Tensor::new(f32::NEG_INFINITY, device)?
        .to_dtype(scores.dtype())?
        .broadcast_as(scores.shape())?;
    seen.where_cond(scores, &hidden)
}

/// As [`super::rms_norm`].
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let weight = weight.to_dtype(x.dtype())?;
    if !x.device().is_cpu() {
        return candle_nn::ops::rms_norm(&x.contiguous()?, &weight.contiguous()?, eps);
    }
    let normal = x.to_dtype(wide(x.dtype()))?;
    let mean = normal.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (mean + f64::from(eps))?.sqrt()?;
    let normal = normal.broadcast_div(&root)?;
    normal.to_dtype(x.dtype())?.broadcast_mul(&weight)
}

/// As [`super::layer_norm`].
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let dtype = x.dtype();
    if !x.device().is_cpu() {
        let weight = weight.to_dtype(dtype)?.contiguous()?;
        let bias = bias.to_dtype(dtype)?.contiguous()?;
        return candle_nn::ops::layer_norm(&x.contiguous()?, &weight, &bias, eps);
    }
    let x = x.to_dtype(wide(dtype))?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
    normal
        .broadcast_mul(&weight.to_dtype(wide(dtype))?)?
        .broadcast_add(&bias.to_dtype(wide(dtype))?)?
        .to_dtype(dtype)
}

/// As [`super::rope`].
pub(super) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let angle_dtype = if x.device().is_cpu() {
        wide(dtype)
    } else {
        cos.dtype()
    };
    let x = x.to_dtype(angle_dtype)?.contiguous()?.unsqueeze(0)?; // [1, n, heads, head_dim]
    let (cos, sin) = (cos.to_dtype(angle_dtype)?, sin.to_dtype(angle_dtype)?);
    candle_nn::rotary_emb::rope_thd(&x, &cos.contiguous()?, &sin.contiguous()?)?
        .squeeze(0)?
        .to_dtype(dtype)
}

/// As [`super::silu_mul`].
pub(super) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let dtype = gate.dtype();
    let compute = elementwise(gate);
    (gate.to_dtype(compute)?.silu()? * up.to_dtype(compute)?)?.to_dtype(dtype)
}

/// As [`super::activate`].
pub(super) fn activate(
    x: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let compute = elementwise(x);
    let x = x.to_dtype(compute)?;
    let x = match bias {
        Some(bias) => x.broadcast_add(&bias.to_dtype(compute)?)?,
        None => x,
    };
    let x = match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => &x * candle_nn::ops::sigmoid(&(&x * 1.702)?)?,
        Activation::Silu => x.silu(),
    };
    x?.to_dtype(dtype)
}

/// What functions of single values are computed in: the processor goes by way of f32, while
/// a device has its own in every type.
fn elementwise(x: &Tensor) -> DType {
    if x.device().is_cpu() {
        wide(x.dtype())
    } else {
        x.dtype()
    }
}

//! Attention of single queries over the keys and values that earlier steps have kept.
//!
//! On the processor the cost is that of reading them, so each is read once, for all the heads
//! that share it. Long stretches are cut into pieces that several cores take; where the cuts
//! are depends on the stretch alone, and so does the result.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use std::ops::Range;

use candle_core::{CpuStorage, D, DType, Device, Layout, Result, Storage, Tensor, bail};
use half::f16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::widen::widen;
use super::{is_dense, wide};
use crate::simd;

/// Keys that one core takes at a time.
const N_KEYS: usize = 512;

/// Keys that are made wider at a time, where they are kept in 16 bits: they stay in the nearest
/// cache. A multiple of four.
const N_WIDENED: usize = 32;

/// Products that are not worth the wait for another core.
const N_PRODUCTS_ALONE: usize = 1 << 17;

/// What one sequence has kept: `[kv_heads, room, head_dim]` each, of which the first `n` rows
/// of each head count. Beside queries in f32 they may be f16, half as much to read.
pub(crate) struct Kept<'a> {
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
    pub(crate) n: usize,
}

impl Kept<'_> {
    /// Whether our own loops read these types.
    fn is_read_here(&self) -> bool {
        let dtypes = [self.keys.dtype(), self.values.dtype()];
        dtypes == [DType::F32; 2] || dtypes == [DType::F16; 2]
    }
}

/// Attention of one query of each sequence, `[sequences, heads, head_dim]`, over all that the
/// sequence has kept: `[sequences, heads * head_dim]`. A sequence's row does not depend on the
/// others.
///
/// # Errors
/// Shapes do not fit together, a sequence has kept nothing, or the device fails.
pub(crate) fn attend_kept(q: &Tensor, kept: &[Kept<'_>], scale: f32) -> Result<Tensor> {
    let (n, n_heads, head_dim) = q.dims3()?;
    if n != kept.len() {
        bail!("{n} queries for {} sequences", kept.len())
    }
    for Kept { keys, values, n } in kept {
        let (kv_heads, room, key_dim) = keys.dims3()?;
        let fits = keys.dims() == values.dims()
            && key_dim == head_dim
            && kv_heads > 0
            && n_heads.is_multiple_of(kv_heads)
            && (1..=room).contains(n);
        if !fits {
            bail!(
                "queries {:?} do not fit {n} of keys {:?}",
                q.shape(),
                keys.shape()
            )
        }
    }
    match (q.device(), q.dtype()) {
        (Device::Cpu, DType::F32) if kept.iter().all(Kept::is_read_here) => {
            on_processor(q, kept, scale)
        }
        _ => anywhere(q, kept, scale),
    }
}

/// By candle's own operations, without a copy of what is kept.
fn anywhere(q: &Tensor, kept: &[Kept<'_>], scale: f32) -> Result<Tensor> {
    let (_, n_heads, head_dim) = q.dims3()?;
    let dtype = q.dtype();
    // The processor has no products of its own in the short types.
    let compute = match q.device() {
        Device::Cpu => wide(dtype),
        _ => dtype,
    };
    let mut attended = Vec::with_capacity(kept.len());
    for (row, Kept { keys, values, n }) in kept.iter().enumerate() {
        let kv_heads = keys.dim(0)?;
        let own = |x: &Tensor| x.narrow(1, 0, *n)?.to_dtype(compute); // [kv_heads, n, head_dim]
        let (keys, values) = (own(keys)?, own(values)?);
        let q = q.narrow(0, row, 1)?.contiguous()?.to_dtype(compute)?;
        let q = q.reshape((kv_heads, n_heads / kv_heads, head_dim))?;
        let scores = q.matmul(&keys.transpose(1, 2)?)?.to_dtype(wide(dtype))?;
        let scores = (scores * f64::from(scale))?; // [kv_heads, group, n]
        let scores = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(compute)?;
        attended.push(scores.matmul(&values)?.reshape((1, n_heads * head_dim))?);
    }
    Tensor::cat(&attended, 0)?.to_dtype(dtype)
}

/// Some keys of one head and one sequence, and who asks.
struct Piece<'a> {
    queries: &'a [f32], // [group, head_dim]
    keys: Rows<'a>,     // [n, head_dim]
    values: Rows<'a>,
}

/// Rows without gaps, in one of the types in which they may be kept.
#[derive(Clone, Copy)]
enum Rows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl<'a> Rows<'a> {
    /// The values of a tensor, from its first on.
    fn of(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let start = layout.start_offset();
        match storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(Self::F32(&values[start..])),
            Storage::Cpu(CpuStorage::F16(values)) => Ok(Self::F16(&values[start..])),
            _ => bail!("keys and values are f32 or f16, on the processor"),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
        }
    }

    /// The values in 32 bits, in `room` if they are not already.
    fn wide<'b>(self, range: Range<usize>, room: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => &values[range],
            Self::F16(values) => {
                let room = &mut room[..range.len()];
                widen(&values[range], room);
                room
            }
        }
    }
}

fn on_processor(q: &Tensor, kept: &[Kept<'_>], scale: f32) -> Result<Tensor> {
    let (n, n_heads, head_dim) = q.dims3()?;
    let q = q.contiguous()?;
    let stored = |tensor: &'_ Tensor| -> Result<()> {
        if is_dense(tensor.layout(), 1) {
            Ok(())
        } else {
            bail!("there are gaps in what is kept")
        }
    };
    kept.iter()
        .try_for_each(|kept| stored(kept.keys).and(stored(kept.values)))?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let Rows::F32(queries) = Rows::of(&q_storage, q_layout)? else {
        bail!("queries are f32")
    };
    let guards: Vec<_> = kept
        .iter()
        .map(|kept| {
            (
                kept.keys.storage_and_layout(),
                kept.values.storage_and_layout(),
            )
        })
        .collect();
    let mut pieces = Vec::new();
    let mut n_pieces = Vec::new(); // Of each sequence and head.
    let mut n_products = 0;
    for (row, (kept, guards)) in kept.iter().zip(&guards).enumerate() {
        let ((keys, keys_layout), (values, values_layout)) = guards;
        let (keys, values) = (
            Rows::of(keys, keys_layout)?,
            Rows::of(values, values_layout)?,
        );
        let (kv_heads, _, _) = kept.keys.dims3()?;
        let group = n_heads / kv_heads;
        n_products += kept.n * n_heads * head_dim;
        for head in 0..kv_heads {
            let first_query = (row * n_heads + head * group) * head_dim;
            let key_start = head * keys_layout.stride()[0];
            let value_start = head * values_layout.stride()[0];
            n_pieces.push(kept.n.div_ceil(N_KEYS));
            for first in (0..kept.n).step_by(N_KEYS) {
                let last = kept.n.min(first + N_KEYS);
                let rows = |start| start + first * head_dim..start + last * head_dim;
                pieces.push(Piece {
                    queries: &queries[first_query..][..group * head_dim],
                    keys: keys.slice(rows(key_start)),
                    values: values.slice(rows(value_start)),
                });
            }
        }
    }
    let attend = |piece: &Piece<'_>| {
        Arch::new().dispatch(AttendPiece {
            piece,
            head_dim,
            scale,
        })
    };
    let parts: Vec<Part> = if n_products <= N_PRODUCTS_ALONE {
        pieces.iter().map(attend).collect()
    } else {
        pieces.par_iter().map(attend).collect()
    };
    let mut output = Vec::with_capacity(n * n_heads * head_dim);
    let mut parts = parts.into_iter();
    for n_pieces in n_pieces {
        let own: Vec<Part> = parts.by_ref().take(n_pieces).collect();
        join(own, head_dim, &mut output);
    }
    Tensor::from_vec(output, (n, n_heads * head_dim), &Device::Cpu)
}

/// What one piece gives for each of its queries.
struct Part {
    largest: Vec<f32>, // [group]
    sums: Vec<f32>,    // [group]
    /// Weighed by the exponents of scores less the largest, not yet divided by their sum.
    attended: Vec<f32>, // [group, head_dim]
}

/// Puts the pieces of one head together.
fn join(mut parts: Vec<Part>, head_dim: usize, output: &mut Vec<f32>) {
    let group = parts.first().map_or(0, |part| part.sums.len());
    for query in 0..group {
        let largest = parts.iter().map(|part| part.largest[query]);
        let largest = largest.fold(
            f32::NEG_INFINITY,
            |a, b| if b > a || b.is_nan() { b } else { a },
        );
        let mut sum = 0.0;
        let own = query * head_dim..(query + 1) * head_dim;
        let start = output.len();
        output.resize(start + head_dim, 0.0);
        for part in &mut parts {
            let factor = (part.largest[query] - largest).exp();
            sum += factor * part.sums[query];
            let values = part.attended[own.clone()].iter();
            output[start..]
                .iter_mut()
                .zip(values)
                .for_each(|(out, value)| *out += factor * value);
        }
        output[start..].iter_mut().for_each(|value| *value /= sum);
    }
}

struct AttendPiece<'a> {
    piece: &'a Piece<'a>,
    head_dim: usize,
    scale: f32,
}

impl WithSimd for AttendPiece<'_> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Part {
        let Self {
            piece,
            head_dim,
            scale,
        } = self;
        let group = piece.queries.len() / head_dim;
        let n_keys = piece.keys.len() / head_dim;
        let mut scores = vec![0.0; group * n_keys]; // [group, keys]
        let mut room = match piece.keys {
            Rows::F32(_) => Vec::new(),
            Rows::F16(_) => vec![0.0; N_WIDENED * head_dim],
        };
        let widened = |first: usize| {
            let last = n_keys.min(first + N_WIDENED);
            first * head_dim..last * head_dim
        };
        for first in (0..n_keys).step_by(N_WIDENED) {
            let keys = piece.keys.wide(widened(first), &mut room);
            for (four, keys) in keys.chunks(4 * head_dim).enumerate() {
                for (query, scores) in piece
                    .queries
                    .chunks_exact(head_dim)
                    .zip(scores.chunks_exact_mut(n_keys))
                {
                    let scores = &mut scores[first + 4 * four..];
                    if keys.len() == 4 * head_dim {
                        let products = four_products(simd, query, keys);
                        scores[..4].copy_from_slice(&products);
                    } else {
                        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(head_dim)) {
                            *score = product(simd, query, key);
                        }
                    }
                }
            }
        }
        let (mut largest, mut sums) = (Vec::with_capacity(group), Vec::with_capacity(group));
        for scores in scores.chunks_exact_mut(n_keys) {
            let (top, sum) = exponentiate(simd, scores, scale);
            largest.push(top);
            sums.push(sum);
        }
        let mut attended = vec![0.0; group * head_dim];
        for first in (0..n_keys).step_by(N_WIDENED) {
            let values = piece.values.wide(widened(first), &mut room);
            for (four, values) in values.chunks(4 * head_dim).enumerate() {
                for (out, weights) in attended
                    .chunks_exact_mut(head_dim)
                    .zip(scores.chunks_exact(n_keys))
                {
                    let weights = &weights[first + 4 * four..];
                    if values.len() == 4 * head_dim {
                        add_four(simd, out, values, weights);
                    } else {
                        for (value, weight) in values.chunks_exact(head_dim).zip(weights) {
                            add_one(simd, out, value, *weight);
                        }
                    }
                }
            }
        }
        Part {
            largest,
            sums,
            attended,
        }
    }
}

/// The products of a query with four keys, side by side in registers.
#[inline(always)]
fn four_products<S: Simd>(simd: S, query: &[f32], keys: &[f32]) -> [f32; 4] {
    let dim = query.len();
    let (registers, rest) = S::as_simd_f32s(query);
    let (first, keys) = keys.split_at(dim);
    let (second, keys) = keys.split_at(dim);
    let (third, fourth) = keys.split_at(dim);
    // No closures: they would be compiled for the plainest processor.
    let keys = [
        S::as_simd_f32s(first),
        S::as_simd_f32s(second),
        S::as_simd_f32s(third),
        S::as_simd_f32s(fourth),
    ];
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (index, query) in registers.iter().enumerate() {
        for (sum, (key, _)) in sums.iter_mut().zip(&keys) {
            *sum = simd.mul_add_e_f32s(*query, key[index], *sum);
        }
    }
    if !rest.is_empty() {
        let rest = simd.partial_load_f32s(rest);
        for (sum, (_, key)) in sums.iter_mut().zip(&keys) {
            *sum = simd.mul_add_e_f32s(rest, simd.partial_load_f32s(key), *sum);
        }
    }
    [
        simd.reduce_sum_f32s(sums[0]),
        simd.reduce_sum_f32s(sums[1]),
        simd.reduce_sum_f32s(sums[2]),
        simd.reduce_sum_f32s(sums[3]),
    ]
}

#[inline(always)]
fn product<S: Simd>(simd: S, query: &[f32], key: &[f32]) -> f32 {
    let (registers, rest) = S::as_simd_f32s(query);
    let (key, key_rest) = S::as_simd_f32s(key);
    let mut sum = simd.splat_f32s(0.0);
    for (query, key) in registers.iter().zip(key) {
        sum = simd.mul_add_e_f32s(*query, *key, sum);
    }
    if !rest.is_empty() {
        let rest = simd.partial_load_f32s(rest);
        sum = simd.mul_add_e_f32s(rest, simd.partial_load_f32s(key_rest), sum);
    }
    simd.reduce_sum_f32s(sum)
}

/// Replaces scores by the exponents of what they are, scaled, below the largest; gives that
/// and the sum.
#[inline(always)]
fn exponentiate<S: Simd>(simd: S, scores: &mut [f32], scale: f32) -> (f32, f32) {
    let mut largest = f32::NEG_INFINITY;
    for score in &mut *scores {
        *score *= scale;
        // A score that is none wins, so that the result is none either.
        if *score > largest || score.is_nan() {
            largest = *score;
        }
    }
    let top = simd.splat_f32s(largest);
    let (registers, rest) = S::as_mut_simd_f32s(scores);
    let mut sums = simd.splat_f32s(0.0);
    for register in registers {
        *register = simd::exp(simd, simd.sub_f32s(*register, top));
        sums = simd.add_f32s(sums, *register);
    }
    let mut sum = simd.reduce_sum_f32s(sums);
    for score in rest {
        *score = (*score - largest).exp();
        sum += *score;
    }
    // An infinite score leaves nothing to weigh by.
    (largest, if largest.is_finite() { sum } else { f32::NAN })
}

/// Adds four values `[4, head_dim]` in their weights.
#[inline(always)]
fn add_four<S: Simd>(simd: S, out: &mut [f32], values: &[f32], weights: &[f32]) {
    let dim = out.len();
    let (first, values) = values.split_at(dim);
    let (second, values) = values.split_at(dim);
    let (third, fourth) = values.split_at(dim);
    let values = [
        S::as_simd_f32s(first),
        S::as_simd_f32s(second),
        S::as_simd_f32s(third),
        S::as_simd_f32s(fourth),
    ];
    let factors = [
        simd.splat_f32s(weights[0]),
        simd.splat_f32s(weights[1]),
        simd.splat_f32s(weights[2]),
        simd.splat_f32s(weights[3]),
    ];
    let (registers, rest) = S::as_mut_simd_f32s(out);
    for (index, register) in registers.iter_mut().enumerate() {
        let mut sum = *register;
        for ((value, _), factor) in values.iter().zip(factors) {
            sum = simd.mul_add_e_f32s(value[index], factor, sum);
        }
        *register = sum;
    }
    for (index, out) in rest.iter_mut().enumerate() {
        for ((_, value), weight) in values.iter().zip(weights) {
            *out += value[index] * weight;
        }
    }
}

#[inline(always)]
fn add_one<S: Simd>(simd: S, out: &mut [f32], value: &[f32], weight: f32) {
    let factor = simd.splat_f32s(weight);
    let (registers, rest) = S::as_mut_simd_f32s(out);
    let (value, value_rest) = S::as_simd_f32s(value);
    for (register, value) in registers.iter_mut().zip(value) {
        *register = simd.mul_add_e_f32s(*value, factor, *register);
    }
    for (out, value) in rest.iter_mut().zip(value_rest) {
        *out += value * weight;
    }
}

//! Attention over one text on the processor, without a matrix of scores in memory.
//!
//! Texts of one chunk are short, so the keys of one head fit in the nearest cache; a few
//! queries at a time are scored against all of them, and scores are weighed while still
//! there.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use pulp::{Arch, Simd, WithSimd};

use crate::simd;

/// Queries handled side by side, each with `N_REGISTERS` sums. Eight sums hide the time
/// that one multiply-and-add takes, and leave room for operands in AVX2's 16 registers.
const N_QUERIES: usize = 4;
const N_REGISTERS: usize = 2;

/// One text's queries, keys and values, as the fused projection leaves them.
#[derive(Clone, Copy)]
pub(crate) struct Projected<'a> {
    /// `[tokens, 3 * hidden]`: a token's query, key and value side by side, each
    /// `[heads, head_dim]`, without their bias.
    pub(crate) rows: &'a [f32],
    /// `[3 * hidden]`.
    pub(crate) bias: &'a [f32],
    pub(crate) n_heads: usize,
    /// The first token to attend from; how many follow is the output's to say.
    pub(crate) first_query: usize,
}

/// Room for one head, kept from one call to the next. Padded dimensions are whole blocks of
/// registers; what they hold beyond the text is zero.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// `[head_dim, padded tokens]`.
    keys: Vec<f32>,
    /// `[tokens, padded head_dim]`.
    values: Vec<f32>,
    /// `[head_dim, N_QUERIES]`, scaled.
    queries: Vec<f32>,
    /// `[N_QUERIES, padded tokens]`.
    weights: Vec<f32>,
    /// `[N_QUERIES, padded head_dim]`.
    attended: Vec<f32>,
}

/// Full attention of some tokens of one text over all of its tokens.
///
/// `output` is `[queries, hidden]`, for `projected.first_query` and those after it.
pub(crate) fn attend(projected: Projected<'_>, scratch: &mut AttentionScratch, output: &mut [f32]) {
    Arch::new().dispatch(Attend {
        projected,
        scratch,
        output,
    });
}

struct Attend<'a> {
    projected: Projected<'a>,
    scratch: &'a mut AttentionScratch,
    output: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            projected,
            scratch,
            output,
        } = self;
        let Projected {
            rows,
            bias,
            n_heads,
            first_query,
        } = projected;
        let hidden = bias.len() / 3;
        let head_dim = hidden / n_heads;
        let n_tokens = rows.len() / bias.len();
        let block = N_REGISTERS * S::F32_LANES;
        let padded_tokens = n_tokens.next_multiple_of(block);
        let padded_dim = head_dim.next_multiple_of(block);
        let AttentionScratch {
            keys,
            values,
            queries,
            weights,
            attended,
        } = scratch;
        refill(keys, head_dim * padded_tokens);
        refill(values, n_tokens * padded_dim);
        refill(queries, N_QUERIES * head_dim);
        refill(weights, N_QUERIES * padded_tokens);
        refill(attended, N_QUERIES * padded_dim);

        for head in 0..n_heads {
            projected.copy_keys_and_values(head, head_dim, keys, values);
            for (first, output) in (first_query..)
                .step_by(N_QUERIES)
                .zip(output.chunks_mut(N_QUERIES * hidden))
            {
                let n_queries = output.len() / hidden;
                projected.copy_queries(head, head_dim, first, n_queries, queries);
                score(simd, queries, keys, weights);
                let mut sums = [0.0; N_QUERIES];
                for (weights, sum) in weights.chunks_exact_mut(padded_tokens).zip(&mut sums) {
                    *sum = exponentiate(simd, weights, n_tokens);
                }
                weigh(simd, weights, values, attended);
                let attended = attended.chunks_exact(padded_dim).zip(sums);
                for (output, (attended, sum)) in output.chunks_exact_mut(hidden).zip(attended) {
                    let output = &mut output[head * head_dim..(head + 1) * head_dim];
                    for (output, attended) in output.iter_mut().zip(attended) {
                        *output = attended / sum;
                    }
                }
            }
        }
    }
}

impl Projected<'_> {
    /// One head's keys, transposed, and values, both with their bias.
    #[inline(always)]
    fn copy_keys_and_values(
        &self,
        head: usize,
        head_dim: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let hidden = self.bias.len() / 3;
        let n_tokens = self.rows.len() / self.bias.len();
        let (padded_tokens, padded_dim) = (keys.len() / head_dim, values.len() / n_tokens);
        let (key_at, value_at) = (hidden + head * head_dim, 2 * hidden + head * head_dim);
        let key_bias = &self.bias[key_at..key_at + head_dim];
        let value_bias = &self.bias[value_at..value_at + head_dim];
        let values = values.chunks_exact_mut(padded_dim);
        for ((token, row), copy) in self
            .rows
            .chunks_exact(self.bias.len())
            .enumerate()
            .zip(values)
        {
            let value = &row[value_at..value_at + head_dim];
            for ((copy, value), bias) in copy.iter_mut().zip(value).zip(value_bias) {
                *copy = value + bias;
            }
            let key = row[key_at..key_at + head_dim].iter().zip(key_bias);
            let copies = keys[token..].iter_mut().step_by(padded_tokens);
            for (copy, (key, bias)) in copies.zip(key) {
                *copy = key + bias;
            }
        }
    }

    /// One head's queries from token `first` on, with their bias and the scale of all
    /// scores. Past `n_queries` the copy holds what was there before, which nobody reads.
    #[inline(always)]
    fn copy_queries(
        &self,
        head: usize,
        head_dim: usize,
        first: usize,
        n_queries: usize,
        queries: &mut [f32],
    ) {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let own = head * head_dim..(head + 1) * head_dim;
        let rows = self.rows[first * self.bias.len()..].chunks_exact(self.bias.len());
        for (query, row) in rows.take(n_queries).enumerate() {
            let values = row[own.clone()].iter().zip(&self.bias[own.clone()]);
            let copies = queries[query..].iter_mut().step_by(N_QUERIES);
            for (copy, (value, bias)) in copies.zip(values) {
                *copy = (value + bias) * scale;
            }
        }
    }
}

/// Makes a buffer `n` zeros long without giving up its memory.
fn refill(buffer: &mut Vec<f32>, n: usize) {
    buffer.clear();
    buffer.resize(n, 0.0);
}

/// `weights[q, t] = sum over d of queries[d, q] * keys[d, t]`.
#[inline(always)]
fn score<S: Simd>(simd: S, queries: &[f32], keys: &[f32], weights: &mut [f32]) {
    let (queries, _) = queries.as_chunks::<N_QUERIES>();
    let (keys, _) = S::as_simd_f32s(keys).0.as_chunks::<N_REGISTERS>();
    let (weights, _) = S::as_mut_simd_f32s(weights)
        .0
        .as_chunks_mut::<N_REGISTERS>();
    let n_blocks = weights.len() / N_QUERIES;
    for block in 0..n_blocks {
        let mut sums = [[simd.splat_f32s(0.0); N_REGISTERS]; N_QUERIES];
        for (queries, keys) in queries.iter().zip(keys[block..].iter().step_by(n_blocks)) {
            accumulate(simd, &mut sums, *queries, *keys);
        }
        for (query, sums) in sums.into_iter().enumerate() {
            weights[query * n_blocks + block] = sums;
        }
    }
}

/// `attended[q, d] = sum over t of weights[q, t] * values[t, d]`.
#[inline(always)]
fn weigh<S: Simd>(simd: S, weights: &[f32], values: &[f32], attended: &mut [f32]) {
    let padded_tokens = weights.len() / N_QUERIES;
    let (values, _) = S::as_simd_f32s(values).0.as_chunks::<N_REGISTERS>();
    let (attended, _) = S::as_mut_simd_f32s(attended)
        .0
        .as_chunks_mut::<N_REGISTERS>();
    let n_blocks = attended.len() / N_QUERIES;
    let n_tokens = values.len() / n_blocks;
    // Of one known length, so that no access in the loop is checked.
    let rows: [&[f32]; N_QUERIES] =
        std::array::from_fn(|query| &weights[query * padded_tokens..][..n_tokens]);
    for block in 0..n_blocks {
        let mut sums = [[simd.splat_f32s(0.0); N_REGISTERS]; N_QUERIES];
        let values = values[block..].iter().step_by(n_blocks);
        for (token, values) in (0..n_tokens).zip(values) {
            accumulate(simd, &mut sums, rows.map(|row| row[token]), *values);
        }
        for (query, sums) in sums.into_iter().enumerate() {
            attended[query * n_blocks + block] = sums;
        }
    }
}

/// `sums[q] += scalars[q] * vectors`.
#[inline(always)]
fn accumulate<S: Simd>(
    simd: S,
    sums: &mut [[S::f32s; N_REGISTERS]; N_QUERIES],
    scalars: [f32; N_QUERIES],
    vectors: [S::f32s; N_REGISTERS],
) {
    for (sums, scalar) in sums.iter_mut().zip(scalars) {
        let scalar = simd.splat_f32s(scalar);
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = simd.mul_add_e_f32s(scalar, vector, *sum);
        }
    }
}

/// Replaces scores by `exp(score - largest)`, zeros past `n_tokens`, and gives their sum.
#[inline(always)]
fn exponentiate<S: Simd>(simd: S, weights: &mut [f32], n_tokens: usize) -> f32 {
    weights[n_tokens..].fill(f32::NEG_INFINITY);
    let (registers, _) = S::as_mut_simd_f32s(weights);
    let mut largest = registers[0];
    for register in &*registers {
        largest = simd.max_f32s(largest, *register);
    }
    let largest = simd.splat_f32s(simd.reduce_max_f32s(largest));
    for register in registers {
        *register = simd::exp(simd, simd.sub_f32s(*register, largest));
    }
    weights[n_tokens..].fill(0.0);
    simd::sum(simd, weights)
}

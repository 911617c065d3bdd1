//! Attention on the processor, without a matrix of scores in memory.
//!
//! A tile of queries meets one tile of keys after another, whose scores are weighed while
//! still in the nearest cache. A largest score and a sum per query, carried from tile to
//! tile, make the softmax exact (Milakov and Gimelshein, <https://arxiv.org/abs/1805.02867>;
//! Dao et al., <https://arxiv.org/abs/2205.14135>).
//!
//! Where a tile of keys begins depends on its span alone, and every sum runs over the keys in
//! their order. So a query's result is the same to the bit whichever queries share its tile.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::tile::{self, N_KEYS, N_ROWS, STATE, Softmax, Values};

/// Vectors of several heads within rows: `[rows, heads, head_dim]`, with gaps.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) values: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) head_stride: usize,
    pub(super) head_dim: usize,
}

impl<'a> Heads<'a> {
    fn vector(&self, row: usize, head: usize) -> &'a [f32] {
        let first = row * self.row_stride + head * self.head_stride;
        &self.values[first..first + self.head_dim]
    }
}

/// What all parts of one call share. Head h of q belongs to head `h / group` of k and v.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: Heads<'a>,
    pub(super) k: Heads<'a>,
    pub(super) v: Heads<'a>,
    pub(super) group: usize,
    pub(super) scale: f32,
}

/// Some queries of one span, in all the heads that one key head serves: what one core takes
/// at a time. One query in one head is a row of the part.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Not empty.
    pub(super) queries: Range<usize>,
    /// Those of the whole span.
    pub(super) keys: Range<usize>,
    /// How many of the keys the part's first query sees: at least one.
    pub(super) n_seen: usize,
    /// Whether each query sees one key more than the query before it, rather than the same.
    pub(super) causal: bool,
    pub(super) kv_head: usize,
}

/// Room for one part, kept from one call to the next.
#[derive(Default)]
pub(super) struct Scratch {
    buffer: Vec<f32>,
}

/// Attends, and gives `store` the result of each row: query, head, and `head_dim` values.
pub(super) fn attend(
    inputs: &Inputs<'_>,
    part: &Part,
    scratch: &mut Scratch,
    store: impl FnMut(usize, usize, &[f32]),
) {
    Arch::new().dispatch(Attend {
        inputs,
        part,
        scratch,
        store,
    });
}

struct Attend<'a, F> {
    inputs: &'a Inputs<'a>,
    part: &'a Part,
    scratch: &'a mut Scratch,
    store: F,
}

impl<F: FnMut(usize, usize, &[f32])> WithSimd for Attend<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many registers side by side as the rows fill, and as the sums of a product
        // leave room for; and enough keys at a time that there are eight sums.
        let n_rows = self.part.queries.len() * self.inputs.group;
        let widest = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        match n_rows.div_ceil(S::F32_LANES).min(widest) {
            _ if S::F32_LANES < N_ROWS => self.attend::<S, N_ROWS, 4>(simd),
            1 => self.attend::<S, 1, 8>(simd),
            2 => self.attend::<S, 2, 4>(simd),
            _ => self.attend::<S, 4, 4>(simd),
        }
    }
}

impl<F: FnMut(usize, usize, &[f32])> Attend<'_, F> {
    /// With tiles of `N` registers of rows, scored against `K` keys at a time.
    #[inline(always)]
    fn attend<S: Simd, const N: usize, const K: usize>(self, simd: S) {
        let Self {
            inputs,
            part,
            scratch,
            mut store,
        } = self;
        let head_dim = inputs.q.head_dim;
        let n_rows = part.n_rows(inputs);
        let tile = N * S::F32_LANES; // Rows of a tile.
        let n_tiles = n_rows.div_ceil(tile);
        let rows = |index: usize| index * tile..n_rows.min((index + 1) * tile);
        let values = Values::of::<S>(head_dim);
        let padded_dim = values.n_registers * S::F32_LANES;
        let key_dim = head_dim.next_multiple_of(S::F32_LANES);
        let (query_len, state_len, attended_len) =
            (head_dim * tile, STATE * tile, tile * padded_dim);
        let [queries, states, attended, scores, key_copies, value_copies] = scratch.split([
            n_tiles * query_len,    // [tiles, head_dim, tile]
            n_tiles * state_len,    // [tiles, STATE, tile]
            n_tiles * attended_len, // [tiles, tile, padded_dim]
            N_KEYS * tile,          // [keys, tile]
            N_KEYS * key_dim,       // [keys, key_dim]
            N_KEYS * padded_dim,    // As `Values` has it.
        ]);
        attended.fill(0.0);
        let starts = queries
            .chunks_exact_mut(query_len)
            .zip(states.chunks_exact_mut(state_len));
        for (index, (queries, state)) in starts.enumerate() {
            part.copy_queries(simd, inputs, rows(index), queries);
            tile::start(state, rows(index).map(|row| part.n_seen(row, inputs)));
        }

        let n_seen = part.n_seen(n_rows - 1, inputs);
        for first_key in (0..n_seen).step_by(N_KEYS) {
            let keys = first_key..n_seen.min(first_key + N_KEYS);
            let copies = key_copies.chunks_exact_mut(key_dim);
            for (place, (key, copy)) in keys.clone().zip(copies).enumerate() {
                let key = part.keys.start + key;
                tile::copy_padded(simd, inputs.k.vector(key, part.kv_head), copy);
                values.copy(
                    simd,
                    inputs.v.vector(key, part.kv_head),
                    place,
                    value_copies,
                );
            }
            let scores = &mut scores[..keys.len() * tile];
            for index in 0..n_tiles {
                let rows = rows(index);
                if part.n_seen(rows.end - 1, inputs) <= keys.start {
                    continue;
                }
                let queries = &queries[index * query_len..][..query_len];
                let state = &mut states[index * state_len..][..state_len];
                let mut softmax = Softmax::<S, N>::of(state);
                let largest = softmax.largest();
                let largest = tile::score::<S, N, K>(simd, queries, key_copies, scores, largest);
                let largest = if part.n_seen(rows.start, inputs) < keys.end {
                    softmax.hide(simd, keys.clone(), scores)
                } else {
                    largest
                };
                softmax.exponentiate(simd, largest, scores);
                let attended = &mut attended[index * attended_len..][..attended_len];
                let factors = tile::factors(state);
                values.weigh(
                    simd,
                    (scores, tile),
                    value_copies,
                    factors,
                    rows.len(),
                    attended,
                );
            }
        }

        let ends = states
            .chunks_exact_mut(state_len)
            .zip(attended.chunks_exact_mut(attended_len));
        for (index, (state, attended)) in ends.enumerate() {
            Softmax::<S, N>::of(state).invert(simd);
            let attended = attended.chunks_exact_mut(padded_dim);
            for ((row, attended), factor) in rows(index).zip(attended).zip(tile::sums(state)) {
                let factor = simd.splat_f32s(*factor);
                for register in S::as_mut_simd_f32s(attended).0 {
                    *register = simd.mul_f32s(*register, factor);
                }
                let (query, head) = part.place(row, inputs);
                store(query, head, &attended[..head_dim]);
            }
        }
    }
}

impl Part {
    fn n_rows(&self, inputs: &Inputs<'_>) -> usize {
        self.queries.len() * inputs.group
    }

    /// The query and the head of a row.
    fn place(&self, row: usize, inputs: &Inputs<'_>) -> (usize, usize) {
        let query = self.queries.start + row / inputs.group;
        (query, self.kv_head * inputs.group + row % inputs.group)
    }

    fn n_seen(&self, row: usize, inputs: &Inputs<'_>) -> usize {
        self.n_seen + usize::from(self.causal) * (row / inputs.group)
    }

    /// Some rows, transposed: `copies` is `[head_dim, tile]`. Past the last row it holds
    /// what was there before, which no other row sees.
    #[inline(always)]
    fn copy_queries<S: Simd>(
        &self,
        simd: S,
        inputs: &Inputs<'_>,
        rows: Range<usize>,
        copies: &mut [f32],
    ) {
        let tile = copies.len() / inputs.q.head_dim;
        let columns = copies.as_chunks_mut::<N_ROWS>().0;
        for (block, first) in rows.clone().step_by(N_ROWS).enumerate() {
            let vectors: [&[f32]; N_ROWS] = std::array::from_fn(|row| {
                let (query, head) = self.place((first + row).min(rows.end - 1), inputs);
                inputs.q.vector(query, head)
            });
            let columns = columns[block..].iter_mut().step_by(tile / N_ROWS);
            for (d, column) in columns.enumerate() {
                for (copy, vector) in column.iter_mut().zip(&vectors) {
                    *copy = vector[d];
                }
            }
        }
        // Weights are powers of two, which are faster to find than those of e.
        let scale = simd.splat_f32s(inputs.scale * std::f32::consts::LOG2_E);
        for queries in S::as_mut_simd_f32s(copies).0 {
            *queries = simd.mul_f32s(*queries, scale);
        }
    }
}

impl Scratch {
    /// Stretches of the buffer, each from the start of a cache line on, so that no register
    /// is loaded from two lines.
    fn split<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        const LINE: usize = 16;
        let padded = lengths.map(|length| length.next_multiple_of(LINE));
        let n_values = padded.iter().sum::<usize>() + LINE;
        if self.buffer.len() < n_values {
            self.buffer.resize(n_values, 0.0);
        }
        let line_bytes = LINE * size_of::<f32>();
        let start = self.buffer.as_ptr().align_offset(line_bytes).min(LINE);
        let mut rest = &mut self.buffer[start..];
        let mut lengths = lengths.into_iter();
        padded.map(|padded| {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(padded);
            rest = others;
            &mut own[..lengths.next().unwrap_or(padded)]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attend_with<S: Simd>(simd: S, inputs: &Inputs<'_>, part: &Part) -> Vec<f32> {
        let mut rows = Vec::new();
        let mut scratch = Scratch::default();
        let attend = Attend {
            inputs,
            part,
            scratch: &mut scratch,
            store: |_, _, values: &[f32]| rows.extend_from_slice(values),
        };
        simd.vectorize(attend);
        rows
    }

    #[test]
    fn every_set_of_vector_instructions_gives_the_same_result() {
        let value = |index: usize| ((index * 7_919) % 1_013) as f32 / 1_013.0 - 0.5;
        for (head_dim, n_queries) in [(20, 1), (24, 9), (80, 70), (3, 5)] {
            let values: Vec<f32> = (0..150 * 4 * head_dim).map(value).collect();
            let heads = Heads {
                values: &values,
                row_stride: 4 * head_dim,
                head_stride: head_dim,
                head_dim,
            };
            let inputs = Inputs {
                q: heads,
                k: heads,
                v: heads,
                group: 2,
                scale: 1.0,
            };
            let part = Part {
                queries: 0..n_queries,
                keys: 10..150,
                n_seen: 65,
                causal: true,
                kv_head: 1,
            };
            let expected = attend_with(pulp::Scalar, &inputs, &part);
            assert_eq!(expected.len(), n_queries * 2 * head_dim);
            let alike = |ours: Vec<f32>| {
                let pairs = ours.iter().zip(&expected);
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-6
            };
            let mut widest = Vec::new();
            attend(&inputs, &part, &mut Scratch::default(), |_, _, values| {
                widest.extend_from_slice(values);
            });
            assert!(alike(widest));
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                assert!(alike(attend_with(simd, &inputs, &part)));
            }
        }
    }
}

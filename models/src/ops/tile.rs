//! One tile of queries and one tile of keys: scores, weights, weighted values.
//!
//! While they are scored, queries lie side by side in registers, and keys are scalars. While
//! they are weighed, values lie in registers, and weights are scalars. So no sum ever runs
//! across a register, and only the queries need to be transposed.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use std::f32::consts::LN_2;
use std::ops::Range;

use pulp::Simd;

/// Keys of one tile. Their scores against 64 queries take 16 KiB, a third to a half of the
/// nearest cache.
pub(super) const N_KEYS: usize = 64;

/// Queries that are weighed at a time: each with up to five registers of values, these are
/// the sums that fill the registers and hide the time that one multiply-and-add takes.
pub(super) const N_ROWS: usize = 4;

/// Scores all keys against all queries of a tile of `N` registers, `K` keys at a time.
///
/// `queries` is `[head_dim, tile]`, `keys` is `[N_KEYS, key_dim]`, of which the first are
/// used; `scores` is `[keys, tile]`. Gives the larger of `largest` and each query's scores.
#[inline(always)]
pub(super) fn score<S: Simd, const N: usize, const K: usize>(
    simd: S,
    queries: &[f32],
    keys: &[f32],
    scores: &mut [f32],
    mut largest: [S::f32s; N],
) -> [S::f32s; N] {
    let (queries, _) = S::as_simd_f32s(queries).0.as_chunks::<N>();
    let (scores, _) = S::as_mut_simd_f32s(scores).0.as_chunks_mut::<N>();
    let key_dim = keys.len() / N_KEYS;
    for (scores, keys) in scores.chunks_mut(K).zip(keys.chunks_exact(K * key_dim)) {
        // Of one known length, so that no access in the loop is checked.
        let keys: [&[f32]; K] = std::array::from_fn(|key| &keys[key * key_dim..][..queries.len()]);
        let mut sums = [[simd.splat_f32s(0.0); N]; K];
        for (d, queries) in queries.iter().enumerate() {
            for (sums, key) in sums.iter_mut().zip(&keys) {
                accumulate(simd, sums, key[d], queries);
            }
        }
        for (scores, sums) in scores.iter_mut().zip(sums) {
            *scores = sums;
            larger(simd, &mut largest, &sums);
        }
    }
    largest
}

/// What a tile of queries carries from one tile of keys to the next, and what the latter
/// leaves for its values.
pub(super) struct Softmax<'a, S: Simd, const N: usize> {
    largest: &'a mut [S::f32s; N],
    sums: &'a mut [S::f32s; N],
    /// How many of the span's keys each query sees; whole numbers.
    n_seen: &'a mut [S::f32s; N],
    /// What becomes of everything weighed before, since the largest score has grown.
    factors: &'a mut [S::f32s; N],
}

impl<'a, S: Simd, const N: usize> Softmax<'a, S, N> {
    /// `state`: [`STATE`] rows of a tile, as [`start`] made them.
    #[inline(always)]
    pub(super) fn of(state: &'a mut [f32]) -> Self {
        let (rows, _) = S::as_mut_simd_f32s(state).0.as_chunks_mut::<N>();
        let [largest, sums, n_seen, factors] = rows else {
            unreachable!("the state of a tile has four rows")
        };
        Self {
            largest,
            sums,
            n_seen,
            factors,
        }
    }

    #[inline(always)]
    pub(super) fn largest(&self) -> [S::f32s; N] {
        *self.largest
    }

    /// Lowers to minus infinity the scores of keys that a query does not see, and gives the
    /// larger of the largest score before and the others.
    #[inline(always)]
    pub(super) fn hide(&self, simd: S, keys: Range<usize>, scores: &mut [f32]) -> [S::f32s; N] {
        let (scores, _) = S::as_mut_simd_f32s(scores).0.as_chunks_mut::<N>();
        let mut largest = *self.largest;
        for (scores, key) in scores.iter_mut().zip(keys) {
            let key = simd.splat_f32s(key as f32);
            for (score, n_seen) in scores.iter_mut().zip(&*self.n_seen) {
                let seen = simd.less_than_f32s(key, *n_seen);
                *score = simd.select_f32s(seen, *score, simd.splat_f32s(f32::NEG_INFINITY));
            }
            larger(simd, &mut largest, scores);
        }
        largest
    }

    /// Makes weights of scores: 2 to the power of each less `largest`.
    #[inline(always)]
    pub(super) fn exponentiate(&mut self, simd: S, largest: [S::f32s; N], scores: &mut [f32]) {
        let (scores, _) = S::as_mut_simd_f32s(scores).0.as_chunks_mut::<N>();
        let mut sums = [simd.splat_f32s(0.0); N];
        for scores in scores {
            for ((score, largest), sum) in scores.iter_mut().zip(largest).zip(&mut sums) {
                *score = exp2(simd, simd.sub_f32s(*score, largest));
                *sum = simd.add_f32s(*sum, *score);
            }
        }
        for (place, sum) in sums.into_iter().enumerate() {
            let grown = simd.sub_f32s(self.largest[place], largest[place]);
            self.factors[place] = exp2(simd, grown);
            self.sums[place] = simd.mul_add_e_f32s(self.sums[place], self.factors[place], sum);
        }
        *self.largest = largest;
    }

    /// Turns the sums into what the weighted values are to be multiplied by.
    #[inline(always)]
    pub(super) fn invert(&mut self, simd: S) {
        for sum in &mut *self.sums {
            *sum = simd.div_f32s(simd.splat_f32s(1.0), *sum);
        }
    }
}

/// Rows of a tile's state: its parts stand in the order of the fields of [`Softmax`].
pub(super) const STATE: usize = 4;

/// A state before any key, of queries which see so many keys.
#[inline(always)]
pub(super) fn start(state: &mut [f32], n_seen: impl Iterator<Item = usize>) {
    let (largest, others) = state.split_at_mut(state.len() / STATE);
    largest.fill(f32::NEG_INFINITY);
    others.fill(0.0);
    for (limit, n_seen) in others[largest.len()..].iter_mut().zip(n_seen) {
        *limit = n_seen as f32;
    }
}

/// The factors of a state.
#[inline(always)]
pub(super) fn factors(state: &[f32]) -> &[f32] {
    &state[state.len() / STATE * 3..]
}

/// The sums of a state.
#[inline(always)]
pub(super) fn sums(state: &[f32]) -> &[f32] {
    &state[state.len() / STATE..][..state.len() / STATE]
}

/// How a tile of values is laid out: blocks of registers, as even as they can be, and in each
/// block all keys, one after another.
pub(super) struct Values {
    pub(super) n_registers: usize,
    n_blocks: usize,
}

impl Values {
    #[inline(always)]
    pub(super) fn of<S: Simd>(head_dim: usize) -> Self {
        let most = if S::REGISTER_COUNT >= 32 { 5 } else { 2 };
        let n_registers = head_dim.div_ceil(S::F32_LANES);
        Self {
            n_registers,
            n_blocks: n_registers.div_ceil(most),
        }
    }

    fn block(&self, block: usize) -> Range<usize> {
        let (each, more) = (
            self.n_registers / self.n_blocks,
            self.n_registers % self.n_blocks,
        );
        let start = |block: usize| block * each + block.min(more);
        start(block)..start(block + 1)
    }

    /// Copies one key's value to its place in a tile.
    #[inline(always)]
    pub(super) fn copy<S: Simd>(&self, simd: S, value: &[f32], place: usize, copies: &mut [f32]) {
        for block in 0..self.n_blocks {
            let registers = self.block(block);
            let width = registers.len() * S::F32_LANES;
            let first = registers.start * S::F32_LANES;
            let value = &value[first..value.len().min(first + width)];
            let copy = &mut copies[first * N_KEYS + place * width..][..width];
            copy_padded(simd, value, copy);
        }
    }

    /// Adds the weighted values to what there is times its query's factor.
    ///
    /// `weights` is `[keys, tile]`, `attended` is `[tile, padded head_dim]`; the first
    /// `n_rows` queries are used.
    #[inline(always)]
    pub(super) fn weigh<S: Simd>(
        &self,
        simd: S,
        (weights, tile): (&[f32], usize),
        copies: &[f32],
        factors: &[f32],
        n_rows: usize,
        attended: &mut [f32],
    ) {
        let padded_dim = self.n_registers * S::F32_LANES;
        for block in 0..self.n_blocks {
            let registers = self.block(block);
            let values = &copies[registers.start * S::F32_LANES * N_KEYS..];
            for first in (0..n_rows).step_by(N_ROWS) {
                let rows = Rows {
                    weights,
                    tile,
                    first,
                    factors: &factors[first..first + N_ROWS],
                    attended: &mut attended[first * padded_dim..][..N_ROWS * padded_dim],
                };
                match registers.len() {
                    1 => rows.weigh::<S, 1>(simd, values, registers.start),
                    2 => rows.weigh::<S, 2>(simd, values, registers.start),
                    3 => rows.weigh::<S, 3>(simd, values, registers.start),
                    4 => rows.weigh::<S, 4>(simd, values, registers.start),
                    _ => rows.weigh::<S, 5>(simd, values, registers.start),
                }
            }
        }
    }
}

/// `N_ROWS` queries of a tile, from `first` on.
struct Rows<'a> {
    weights: &'a [f32],
    tile: usize,
    first: usize,
    factors: &'a [f32],
    attended: &'a mut [f32],
}

impl Rows<'_> {
    #[inline(always)]
    fn weigh<S: Simd, const N: usize>(self, simd: S, values: &[f32], start: usize) {
        let (values, _) = S::as_simd_f32s(values).0.as_chunks::<N>();
        let mut sums = [[simd.splat_f32s(0.0); N]; N_ROWS];
        for (weights, values) in self.weights.chunks_exact(self.tile).zip(values) {
            let weights = &weights[self.first..self.first + N_ROWS];
            for (sums, weight) in sums.iter_mut().zip(weights) {
                accumulate(simd, sums, *weight, values);
            }
        }
        let padded_dim = self.attended.len() / N_ROWS;
        let rows = self.attended.chunks_exact_mut(padded_dim);
        for ((row, sums), factor) in rows.zip(sums).zip(self.factors) {
            let factor = simd.splat_f32s(*factor);
            let row = &mut S::as_mut_simd_f32s(row).0[start..start + N];
            for (attended, sum) in row.iter_mut().zip(sums) {
                *attended = simd.mul_add_e_f32s(*attended, factor, sum);
            }
        }
    }
}

/// Copies values and fills up their last register with zeros.
#[inline(always)]
pub(super) fn copy_padded<S: Simd>(simd: S, values: &[f32], copy: &mut [f32]) {
    let (values, rest) = S::as_simd_f32s(values);
    let (copy, _) = S::as_mut_simd_f32s(copy);
    for (copy, value) in copy.iter_mut().zip(values) {
        *copy = *value;
    }
    if !rest.is_empty() {
        copy[values.len()] = simd.partial_load_f32s(rest);
    }
}

#[inline(always)]
fn larger<S: Simd, const N: usize>(simd: S, largest: &mut [S::f32s; N], values: &[S::f32s; N]) {
    for (largest, value) in largest.iter_mut().zip(values) {
        *largest = simd.max_f32s(*largest, *value);
    }
}

/// `sums += scalar * vectors`.
#[inline(always)]
fn accumulate<S: Simd, const N: usize>(
    simd: S,
    sums: &mut [S::f32s; N],
    scalar: f32,
    vectors: &[S::f32s; N],
) {
    let scalar = simd.splat_f32s(scalar);
    for (sum, vector) in sums.iter_mut().zip(vectors) {
        *sum = simd.mul_add_e_f32s(scalar, *vector, *sum);
    }
}

/// 2 to the power x for x <= 0, within 3e-7 of itself; 0 where that is no normal number.
///
/// The whole part of x goes into the exponent bits, the rest into a polynomial: the one of
/// its degree with the smallest relative error from -1/2 to 1/2 among those that are exact to the
/// first order at 0.
#[inline(always)]
fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits; 127 more
    // is how an exponent is written.
    const ROUNDER: f32 = 12_582_912.0 + 127.0;
    // By selection, since the larger of a number and NaN is the number on some processors.
    let lowest = simd.splat_f32s(-127.0);
    let x = simd.select_f32s(simd.less_than_f32s(x, lowest), lowest, x);
    let shifted = simd.add_f32s(x, simd.splat_f32s(ROUNDER));
    let rest = simd.sub_f32s(x, simd.sub_f32s(shifted, simd.splat_f32s(ROUNDER)));
    let mut sum = simd.splat_f32s(0.001_330_060_5);
    for coefficient in [0.009_669_691, 0.055_505_585, 0.240_222_83, LN_2, 1.0] {
        sum = simd.mul_add_e_f32s(sum, rest, simd.splat_f32s(coefficient));
    }
    let exponent = simd.transmute_u32s_f32s(shifted);
    let exponent = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(sum, simd.transmute_f32s_u32s(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_exact_to_rounding() {
        for step in 0..=12_500_u16 {
            let x = f32::from(step) / -100.0;
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2(pulp::Scalar, x)) - exact).abs() / exact;
            assert!(error < 3e-7, "{x}: {error:e}");
        }
        assert!(exp2(pulp::Scalar, f32::NAN).is_nan());
        for x in [-127.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp2(pulp::Scalar, x).to_bits(), 0, "{x}");
        }
    }
}

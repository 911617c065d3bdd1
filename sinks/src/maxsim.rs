//! MaxSim, the score of late interaction: for each vector of the question the
//! best dot product among the page's vectors, summed over the question (Khattab
//! and Zaharia, `ColBERT`, 2020).
//!
//! The vectors have unit length, so that the dot product is the cosine. Nothing
//! is padded: a page that answers nothing scores below 0.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use half::f16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Question vectors that are scored side by side: one register of AVX-512, two of AVX2,
/// four of NEON.
const LANES: usize = 16;

/// Page vectors that are scored at a time. Their sums stay in registers: a sum
/// is added to every fourth cycle, and two can be in each, so eight keep the
/// processor busy.
const ROWS: usize = 8;

/// Numbers of each vector that are read at a time, at places that are known when compiling.
const STEP: usize = 4;

/// Pages that one thread takes at a time, at least.
const PAGES_PER_TASK: usize = 8;

/// A number of a page's vectors.
pub trait Number: sealed::Number {}

impl Number for f16 {}
impl Number for f32 {}

mod sealed {
    use half::f16;

    pub trait Number: Copy + Send + Sync + 'static {
        fn widened(self) -> f32;
    }

    impl Number for f32 {
        #[inline(always)]
        fn widened(self) -> f32 {
            self
        }
    }

    impl Number for f16 {
        /// In integer steps, which a compiler turns into the vector instructions of
        /// any processor; `half` calls a function for every eight numbers.
        #[inline(always)]
        fn widened(self) -> f32 {
            /// 2^112: by so much do the exponents of the two types differ.
            const SCALE: f32 = f32::from_bits(0x7780_0000);
            let bits = u32::from(self.to_bits());
            let finite = f32::from_bits((bits & 0x7fff) << 13) * SCALE;
            // Infinite, or no number: all bits of the exponent are set.
            let special = u32::from(bits & 0x7c00 == 0x7c00) * 0x7f80_0000;
            f32::from_bits(finite.to_bits() | special | (bits & 0x8000) << 16)
        }
    }
}

/// The vectors of a question, laid out for scoring many pages.
#[derive(Debug, Clone, PartialEq)]
pub struct MaxSim {
    /// `[groups, dim, LANES]`: the vectors of a group side by side; zeros in the
    /// lanes that no vector fills.
    panels: Vec<f32>,
    n: usize,
    dim: usize,
}

impl MaxSim {
    /// A question of `[n, dim]` numbers, row by row; an incomplete last row is left out.
    pub fn new(values: &[f32], dim: usize) -> Self {
        let rows = values.chunks_exact(dim.max(1));
        let n = if dim == 0 { 0 } else { rows.len() };
        let mut panels = vec![0.0; n.div_ceil(LANES) * dim * LANES];
        for (row, vector) in rows.take(n).enumerate() {
            let panel = &mut panels[row / LANES * dim * LANES..];
            for (at, number) in vector.iter().enumerate() {
                panel[at * LANES + row % LANES] = *number;
            }
        }
        Self { panels, n, dim }
    }

    /// Number of the question's vectors.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Length of each vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Scores a page of `[n, dim]` numbers, row by row.
    ///
    /// Negative infinity is the score of a page without vectors, and of one with
    /// a number that is not finite: it comes after all others.
    pub fn score<T: Number>(&self, page: &[T]) -> f32 {
        self.score_with(page, &mut Scratch::default())
    }

    /// Scores pages on all cores; the scores come in the order of the pages.
    pub fn scores<T: Number>(&self, pages: &[&[T]]) -> Vec<f32> {
        pages
            .par_iter()
            .with_min_len(PAGES_PER_TASK)
            .map_init(Scratch::default, |scratch, page| {
                self.score_with(page, scratch)
            })
            .collect()
    }

    fn score_with<T: Number>(&self, page: &[T], scratch: &mut Scratch) -> f32 {
        if self.dim == 0 {
            return f32::NEG_INFINITY;
        }
        scratch.rows.resize(ROWS * self.dim, 0.0);
        scratch.best.resize(self.n.next_multiple_of(LANES), 0.0);
        Arch::new().dispatch(Score {
            question: self,
            page,
            scratch,
        })
    }
}

/// The similarity of each of the question's vectors to each of a page's:
/// `[n_question, n_page]`, row by row. Both are `[n, dim]`; an incomplete last row is left out.
pub fn similarities<T: Number>(question: &[f32], page: &[T], dim: usize) -> Vec<f32> {
    if dim == 0 {
        return Vec::new();
    }
    let page: Vec<f32> = page.iter().map(|number| number.widened()).collect();
    let similarity = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| a * b).sum();
    question
        .chunks_exact(dim)
        .flat_map(|token| page.chunks_exact(dim).map(move |row| (token, row)))
        .map(similarity)
        .collect()
}

/// What the scoring of a page needs; kept from page to page.
#[derive(Default)]
struct Scratch {
    /// `[ROWS, dim]`: vectors of the page, widened.
    rows: Vec<f32>,
    /// `[groups, LANES]`: the best similarity of each of the question's vectors so far.
    best: Vec<f32>,
}

struct Score<'a, T> {
    question: &'a MaxSim,
    page: &'a [T],
    scratch: &'a mut Scratch,
}

impl<T: Number> WithSimd for Score<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let MaxSim { panels, n, dim } = self.question;
        let Scratch { rows, best } = self.scratch;
        best.fill(f32::NEG_INFINITY);
        let n_numbers = self.page.len() / dim * dim;
        if n_numbers == 0 {
            return f32::NEG_INFINITY;
        }
        let mut poison = simd.splat_f32s(0.0);
        for vectors in self.page[..n_numbers].chunks(ROWS * dim) {
            for (wide, number) in rows.iter_mut().zip(vectors) {
                *wide = number.widened();
            }
            // The last ones are fewer: that one of them comes again changes no maximum.
            for row in vectors.len() / dim..ROWS {
                rows.copy_within(..*dim, row * dim);
            }
            let panels = panels.chunks_exact(dim * LANES);
            for (panel, best) in panels.zip(best.chunks_exact_mut(LANES)) {
                let (panel, best) = (S::as_simd_f32s(panel).0, S::as_mut_simd_f32s(best).0);
                match LANES / S::F32_LANES {
                    1 => block::<S, 1, 8>(simd, panel, rows, best, &mut poison),
                    2 => block::<S, 2, 4>(simd, panel, rows, best, &mut poison),
                    4 => block::<S, 4, 4>(simd, panel, rows, best, &mut poison),
                    _ => block::<S, LANES, 1>(simd, panel, rows, best, &mut poison),
                }
            }
        }
        let score = best[..*n].iter().sum::<f32>() + simd.reduce_sum_f32s(poison);
        if score.is_finite() {
            score
        } else {
            f32::NEG_INFINITY
        }
    }
}

/// Raises `best` (LANES numbers in `W` registers) by the similarities of all `rows` (`[ROWS, dim]`),
/// `R` of them at a time, to the question's vectors in `panel` (`[dim, W]` registers).
#[inline(always)]
fn block<S: Simd, const W: usize, const R: usize>(
    simd: S,
    panel: &[S::f32s],
    rows: &[f32],
    best: &mut [S::f32s],
    poison: &mut S::f32s,
) {
    let dim = panel.len() / W;
    let (steps, last) = panel.as_chunks::<W>().0.as_chunks::<STEP>();
    for rows in rows.chunks_exact(R * dim) {
        let mut sums = [[simd.splat_f32s(0.0); W]; R];
        let rows: [(&[[f32; STEP]], &[f32]); R] =
            std::array::from_fn(|row| rows[row * dim..][..dim].as_chunks());
        for (at, question) in steps.iter().enumerate() {
            let numbers = rows.map(|(steps, _)| &steps[at]);
            for (at, question) in question.iter().enumerate() {
                add(simd, &mut sums, question, numbers.map(|row| row[at]));
            }
        }
        for (at, question) in last.iter().enumerate() {
            add(simd, &mut sums, question, rows.map(|(_, last)| last[at]));
        }
        for sums in sums {
            for (sum, best) in sums.into_iter().zip(best.iter_mut()) {
                *best = simd.max_f32s(*best, sum);
                // A maximum forgets what is no number; this sum does not.
                *poison = simd.mul_add_e_f32s(sum, simd.splat_f32s(0.0), *poison);
            }
        }
    }
}

/// Adds one number's share of each dot product.
#[inline(always)]
fn add<S: Simd, const W: usize, const R: usize>(
    simd: S,
    sums: &mut [[S::f32s; W]; R],
    question: &[S::f32s; W],
    numbers: [f32; R],
) {
    for (sums, number) in sums.iter_mut().zip(numbers) {
        let number = simd.splat_f32s(number);
        for (sum, question) in sums.iter_mut().zip(question) {
            *sum = simd.mul_add_e_f32s(number, *question, *sum);
        }
    }
}

#[cfg(test)]
mod tests;

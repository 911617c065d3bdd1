//! Loops over f32 slices in the widest vector instructions the processor has.
//!
//! A portable build has only SSE2, so `pulp` compiles each loop several times and picks one
//! when it runs. Whatever a loop calls must be inlined into it to be compiled with it.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use pulp::{Arch, Simd, WithSimd};

/// `x / 2 * (1 + erf(x / sqrt 2))`.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.mul_f32s(simd.splat_f32s(0.5), x);
    let erf = erf(
        simd,
        simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)),
    );
    // Exactly, so that nothing is left of values far below zero.
    let nothing = simd.less_than_f32s(x, simd.splat_f32s(-5.7));
    let erf = simd.select_f32s(nothing, simd.splat_f32s(-1.0), erf);
    simd.mul_add_e_f32s(half, erf, half)
}

/// Makes `rows` the layer norm of `rows + bias + residual`, in place.
///
/// `rows` and `residual` are `[n, hidden]`; `parameters` is `[3, hidden]`: bias, then the
/// norm's weight and offset.
pub(crate) fn bias_residual_norm(
    rows: &mut [f32],
    residual: &[f32],
    parameters: &[f32],
    epsilon: f32,
) {
    Arch::new().dispatch(BiasResidualNorm {
        rows,
        residual,
        parameters,
        epsilon,
    });
}

struct BiasResidualNorm<'a> {
    rows: &'a mut [f32],
    residual: &'a [f32],
    parameters: &'a [f32],
    epsilon: f32,
}

impl WithSimd for BiasResidualNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let hidden = self.parameters.len() / 3;
        let (bias, parameters) = self.parameters.split_at(hidden);
        let (weight, offset) = parameters.split_at(hidden);
        let residuals = self.residual.chunks_exact(hidden);
        for (row, residual) in self.rows.chunks_exact_mut(hidden).zip(residuals) {
            for ((value, residual), bias) in row.iter_mut().zip(residual).zip(bias) {
                *value += residual + bias;
            }
            layer_norm(simd, row, weight, offset, self.epsilon);
        }
    }
}

/// Makes a row its own layer norm: `(row - mean) / sqrt(variance + epsilon) * weight + offset`.
#[inline(always)]
pub(crate) fn layer_norm<S: Simd>(
    simd: S,
    row: &mut [f32],
    weight: &[f32],
    offset: &[f32],
    epsilon: f32,
) {
    let width = row.len() as f32;
    let mean = sum(simd, row) / width;
    // In two passes: the difference of squares loses the digits we need.
    for value in &mut *row {
        *value -= mean;
    }
    let variance = sum_of_squares(simd, row) / width;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for ((value, weight), offset) in row.iter_mut().zip(weight).zip(offset) {
        *value = *value * scale * weight + offset;
    }
}

/// The sum of `values`.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let (values, rest) = S::as_simd_f32s(values);
    let mut sums = simd.partial_load_f32s(rest); // Filled up with zeros.
    for value in values {
        sums = simd.add_f32s(sums, *value);
    }
    simd.reduce_sum_f32s(sums)
}

/// The sum of the squares of `values`.
#[inline(always)]
pub(crate) fn sum_of_squares<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let (values, rest) = S::as_simd_f32s(values);
    let rest = simd.partial_load_f32s(rest); // Filled up with zeros.
    let mut sums = simd.mul_f32s(rest, rest);
    for value in values {
        sums = simd.mul_add_e_f32s(*value, *value, sums);
    }
    simd.reduce_sum_f32s(sums)
}

/// Evaluates a polynomial, highest power first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(*coefficient));
    }
    sum
}

/// e to the power x for x <= 88, within 2 units in the last place.
/// Cephes' `expf`: x = n ln 2 + r, a polynomial in r, and n into the exponent bits.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    let x = simd.max_f32s(simd.splat_f32s(-87.0), x);
    let shifted = simd.mul_add_e_f32s(
        x,
        simd.splat_f32s(std::f32::consts::LOG2_E),
        simd.splat_f32s(ROUNDER),
    );
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUNDER));
    // ln 2 in two parts, so that r keeps its low bits.
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let sum = polynomial(
        simd,
        r,
        [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            0.166_666_65,
            0.5,
        ],
    );
    let fraction = simd.mul_add_e_f32s(simd.mul_f32s(sum, r), r, r);
    let fraction = simd.add_f32s(fraction, simd.splat_f32s(1.0));
    let exponent = simd.sub_u32s(
        simd.transmute_u32s_f32s(shifted),
        simd.splat_u32s(ROUNDER.to_bits().wrapping_sub(127)),
    );
    let exponent = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(fraction, simd.transmute_f32s_u32s(exponent))
}

/// The error function within 4e-7, by the rational approximation that Eigen and XLA use.
#[inline(always)]
fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.min_f32s(
        simd.splat_f32s(4.0),
        simd.max_f32s(simd.splat_f32s(-4.0), x),
    );
    let square = simd.mul_f32s(x, x);
    let numerator = polynomial(
        simd,
        square,
        [
            -2.726_142_3e-10,
            2.770_681_5e-8,
            -2.101_024e-6,
            -5.692_506_6e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let denominator = polynomial(
        simd,
        square,
        [
            -1.456_607_2e-5,
            -2.133_740_6e-4,
            -1.682_827e-3,
            -7.373_329e-3,
            -1.426_473_9e-2,
        ],
    );
    simd.div_f32s(simd.mul_f32s(x, numerator), denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies a function to values by way of whole registers.
    struct Exp<'a>(&'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (values, rest) = S::as_mut_simd_f32s(self.0);
            for value in values {
                *value = exp(simd, *value);
            }
            let last = exp(simd, simd.partial_load_f32s(rest));
            simd.partial_store_f32s(rest, last);
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let inputs: Vec<f32> = (-8_600..=8_800_i16)
            .map(|step| f32::from(step) / 100.0)
            .collect();
        let mut outputs = inputs.clone();
        Arch::new().dispatch(Exp(&mut outputs));
        for (x, ours) in inputs.iter().zip(outputs) {
            let exact = f64::from(*x).exp();
            let error = (f64::from(ours) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): {error:e}");
            assert!((ours - pulp_scalar_exp(*x)).abs() <= 2.5e-7 * ours);
        }
        let mut outputs = [f32::NEG_INFINITY];
        Arch::new().dispatch(Exp(&mut outputs));
        assert!(outputs[0] < 1e-37);
    }

    fn pulp_scalar_exp(x: f32) -> f32 {
        exp(pulp::Scalar, x)
    }

    #[test]
    fn erf_is_within_4e_7() {
        for step in -6_000..=6_000_i16 {
            let x = f32::from(step) / 1_000.0;
            let exact = candle_core::cpu::erf::erf_f64(f64::from(x));
            let error = (f64::from(erf(pulp::Scalar, x)) - exact).abs();
            assert!(error < 4e-7, "erf({x}): {error:e}");
        }
    }
}

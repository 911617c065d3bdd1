//! Loops over rows for the steps on the processor, in place.
//!
//! Each changes rows that were just copied or computed, so they are in the nearest cache.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};

use super::Activation;
use crate::simd;

/// Divides a row by its root mean square and multiplies it by `weight`.
pub(super) fn rms_norm(row: &mut [f32], weight: &[f32], eps: f32) {
    Arch::new().dispatch(RmsNorm { row, weight, eps });
}

struct RmsNorm<'a> {
    row: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl WithSimd for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mean = simd::sum_of_squares(simd, self.row) / self.row.len() as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        for (value, weight) in self.row.iter_mut().zip(self.weight) {
            *value = *value * scale * weight;
        }
    }
}

/// The layer norm of a row.
pub(super) fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    Arch::new().dispatch(LayerNorm {
        row,
        weight,
        bias,
        eps,
    });
}

struct LayerNorm<'a> {
    row: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl WithSimd for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        simd::layer_norm(simd, self.row, self.weight, self.bias, self.eps);
    }
}

/// Turns each head of a row, whose halves are pairs, by the angles of the row.
pub(super) fn rope(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    Arch::new().dispatch(Rope { row, cos, sin });
}

struct Rope<'a> {
    row: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl WithSimd for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let half = self.cos.len();
        for head in self.row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            let angles = self.cos.iter().zip(self.sin);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// `silu(gate) * up`, in place of `gate`.
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    WithEach::<Gated>::dispatch(gate, up);
}

/// Adds `others` to `values`, of one length.
pub(super) fn add(values: &mut [f32], others: &[f32]) {
    WithEach::<Sum>::dispatch(values, others);
}

/// `activation(rows + bias)`; without a bias any number of values is one row.
pub(super) fn activate(rows: &mut [f32], bias: Option<&[f32]>, activation: Activation) {
    match activation {
        Activation::Gelu => activate_with::<Gelu>(rows, bias),
        Activation::GeluTanh => activate_with::<GeluTanh>(rows, bias),
        Activation::QuickGelu => activate_with::<QuickGelu>(rows, bias),
        Activation::Silu => activate_with::<Silu>(rows, bias),
    }
}

fn activate_with<F: Function>(rows: &mut [f32], bias: Option<&[f32]>) {
    match bias {
        Some(bias) => WithEach::<Biased<F>>::dispatch(rows, bias),
        None => Each::<F>::dispatch(rows),
    }
}

/// Replaces each value by a function of it.
struct Each<'a, F> {
    values: &'a mut [f32],
    function: PhantomData<F>,
}

impl<'a, F: Function> Each<'a, F> {
    fn dispatch(values: &'a mut [f32]) {
        Arch::new().dispatch(Self {
            values,
            function: PhantomData,
        });
    }
}

impl<F: Function> WithSimd for Each<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (values, rest) = S::as_mut_simd_f32s(self.values);
        for value in values {
            *value = F::of(simd, *value);
        }
        if !rest.is_empty() {
            let last = F::of(simd, simd.partial_load_f32s(rest));
            simd.partial_store_f32s(rest, last);
        }
    }
}

/// Replaces each value by a function of it and of the one at its place in `others`, which
/// stand for each row of as many values.
struct WithEach<'a, F> {
    values: &'a mut [f32],
    others: &'a [f32],
    function: PhantomData<F>,
}

impl<'a, F: FunctionOfTwo> WithEach<'a, F> {
    fn dispatch(values: &'a mut [f32], others: &'a [f32]) {
        Arch::new().dispatch(Self {
            values,
            others,
            function: PhantomData,
        });
    }
}

impl<F: FunctionOfTwo> WithSimd for WithEach<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (others, others_rest) = S::as_simd_f32s(self.others);
        for row in self.values.chunks_exact_mut(self.others.len()) {
            let (row, rest) = S::as_mut_simd_f32s(row);
            for (value, other) in row.iter_mut().zip(others) {
                *value = F::of(simd, *value, *other);
            }
            if !rest.is_empty() {
                let last = simd.partial_load_f32s(rest);
                let last = F::of(simd, last, simd.partial_load_f32s(others_rest));
                simd.partial_store_f32s(rest, last);
            }
        }
    }
}

/// A function of single values. Not a closure, which would not surely be inlined.
trait Function {
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s;
}

trait FunctionOfTwo {
    fn of<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s;
}

struct Sum;
struct Gated;
struct Biased<F>(PhantomData<F>);

impl FunctionOfTwo for Sum {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
        simd.add_f32s(x, y)
    }
}

impl FunctionOfTwo for Gated {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
        simd.mul_f32s(Silu::of(simd, x), y)
    }
}

impl<F: Function> FunctionOfTwo for Biased<F> {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
        F::of(simd, simd.add_f32s(x, y))
    }
}

struct Gelu;
struct GeluTanh;
struct QuickGelu;
struct Silu;

impl Function for Gelu {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        simd::gelu(simd, x)
    }
}

impl Function for GeluTanh {
    /// Since `(1 + tanh(z)) / 2 = sigmoid(2 z)`.
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        const TWICE_ROOT: f32 = 1.595_769; // 2 * sqrt(2 / pi)
        let cubic = simd.mul_f32s(simd.splat_f32s(TWICE_ROOT * 0.044_715), simd.mul_f32s(x, x));
        let z = simd.mul_f32s(x, simd.add_f32s(cubic, simd.splat_f32s(TWICE_ROOT)));
        times_sigmoid(simd, x, z)
    }
}

impl Function for QuickGelu {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        times_sigmoid(simd, x, simd.mul_f32s(simd.splat_f32s(1.702), x))
    }
}

impl Function for Silu {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        times_sigmoid(simd, x, x)
    }
}

/// `x / (1 + exp(-z))`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::f32s, z: S::f32s) -> S::f32s {
    let largest = simd.splat_f32s(88.0); // Of what `exp` takes.
    let z = simd.neg_f32s(z);
    let exp = simd::exp(simd, simd.min_f32s(largest, z));
    let infinity = simd.splat_f32s(f32::INFINITY);
    let exp = simd.select_f32s(simd.greater_than_f32s(z, largest), infinity, exp);
    simd.div_f32s(x, simd.add_f32s(simd.splat_f32s(1.0), exp))
}

//! The weights with which one axis of an image is resized.
//!
//! What torchvision does to bytes on a processor: filter weights in f64, widened by the
//! scale when the image shrinks (antialiasing), normalized for each output, then rounded to
//! 16 bits at the finest precision at which the axis's largest weight still fits. Our results
//! equal torchvision's to the bit only with the same order of operations.

use std::ops::Range;

/// Taps come in groups of this many, the last filled up with zero weights, so that a kernel
/// reads whole registers.
pub(super) const N_TAPS_PER_GROUP: usize = 4;

/// Weights are scaled by at most two to this power.
const MAX_PRECISION: u32 = 22;

/// The kernel that is laid over the input around each output's center.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// A triangle.
    Bilinear,
    /// Keys' cubic with a = -1/2 (Catmull-Rom).
    Bicubic,
}

impl Filter {
    /// How far it reaches to each side at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            _ => 0.0,
        }
    }
}

/// For each output of one axis, which inputs it is made of.
#[derive(Debug)]
pub(super) struct Axis {
    /// Those outside have no weight. Neither starts nor ends ever step back.
    pub(super) inputs: Vec<Range<usize>>,
    /// `[outputs, n_taps]`, scaled by two to the power of `precision`; zeros past an output's
    /// inputs.
    pub(super) weights: Vec<i16>,
    /// Weights for each output, a multiple of [`N_TAPS_PER_GROUP`].
    pub(super) n_taps: usize,
    pub(super) precision: u32,
}

impl Axis {
    /// Resizes `n_in` inputs to `n_out` and keeps the outputs in `kept`.
    ///
    /// All three are at least 1 and `kept` lies within the outputs. The outputs that are not
    /// kept still count for the precision, but take no memory.
    pub(super) fn new(n_in: usize, n_out: usize, kept: Range<usize>, filter: Filter) -> Self {
        if n_in == n_out {
            return Self::unchanged(kept);
        }
        let mut weights = Vec::new();
        let mut largest = 0.0_f64;
        for output in (0..kept.start).chain(kept.end..n_out) {
            weights.clear();
            filter_weights(n_in, n_out, output, filter, &mut weights);
            largest = weights.iter().copied().fold(largest, f64::max);
        }
        weights.clear();
        let inputs: Vec<Range<usize>> = kept
            .map(|output| filter_weights(n_in, n_out, output, filter, &mut weights))
            .collect();
        largest = weights.iter().copied().fold(largest, f64::max);
        let precision = precision(largest);

        let scale = f64::from(1_u32 << precision);
        // Rounds half away from zero, since the cast cuts off the rest.
        let quantize = |weight: f64| (weight * scale + 0.5_f64.copysign(weight)) as i16;
        let n_taps = inputs.iter().map(ExactSizeIterator::len).max().unwrap_or(1);
        let n_taps = n_taps.next_multiple_of(N_TAPS_PER_GROUP);
        let mut quantized = vec![0; inputs.len() * n_taps];
        let mut rest = weights.as_slice();
        for (quantized, inputs) in quantized.chunks_exact_mut(n_taps).zip(&inputs) {
            let (own, others) = rest.split_at(inputs.len());
            rest = others;
            for (quantized, weight) in quantized.iter_mut().zip(own) {
                *quantized = quantize(*weight);
            }
        }
        Self {
            inputs,
            weights: quantized,
            n_taps,
            precision,
        }
    }

    /// Each output is one input. The filters say so too, with weights of zero around it.
    fn unchanged(kept: Range<usize>) -> Self {
        let precision = precision(1.0);
        let mut one = [0; N_TAPS_PER_GROUP];
        one[0] = 1 << precision;
        Self {
            weights: one.repeat(kept.len()),
            inputs: kept.map(|output| output..output + 1).collect(),
            n_taps: N_TAPS_PER_GROUP,
            precision,
        }
    }

    /// The weights of one output, `n_taps` of them.
    #[inline]
    pub(super) fn weights_of(&self, output: usize) -> &[i16] {
        &self.weights[output * self.n_taps..(output + 1) * self.n_taps]
    }

    /// The largest number of inputs that one output has.
    pub(super) fn most_inputs(&self) -> usize {
        self.inputs
            .iter()
            .map(ExactSizeIterator::len)
            .max()
            .unwrap_or(0)
    }
}

/// Appends the weights of one output, which sum to 1; returns the inputs they belong to.
fn filter_weights(
    n_in: usize,
    n_out: usize,
    output: usize,
    filter: Filter,
    weights: &mut Vec<f64>,
) -> Range<usize> {
    let scale = n_in as f64 / n_out as f64;
    let support = filter.support() * scale.max(1.0);
    let inverse = 1.0 / scale.max(1.0);
    let center = scale * (output as f64 + 0.5);
    // A float cast stops at 0, where the reference takes the larger of the two.
    let first = (center - support + 0.5) as usize;
    let end = ((center + support + 0.5) as usize).min(n_in);
    let n_before = weights.len();
    weights.extend((first..end).map(|input| filter.at((input as f64 - center + 0.5) * inverse)));
    let own = &mut weights[n_before..];
    let sum = own.iter().fold(0.0, |sum, weight| sum + weight);
    if sum != 0.0 {
        for weight in own {
            *weight /= sum;
        }
    }
    first..end
}

/// How many bits a weight may be shifted by, if the largest is to fit 16 bits with its sign.
fn precision(largest: f64) -> u32 {
    (0..MAX_PRECISION)
        .find(|precision| (0.5 + largest * f64::from(2_u32 << precision)) as i32 >= 1 << 15)
        .unwrap_or(MAX_PRECISION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_that_stays_as_it_is_takes_each_input_once() {
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let axis = Axis::new(5, 5, 0..5, filter);
            assert_eq!(axis.inputs, [0..1, 1..2, 2..3, 3..4, 4..5]);
            assert_eq!(axis.precision, 14);
            assert!((0..5).all(|output| axis.weights_of(output) == [1 << 14, 0, 0, 0]));
        }
    }

    #[test]
    fn the_inputs_of_outputs_never_step_back() {
        for (n_in, n_out) in [(10, 30), (30, 10), (1, 7), (97, 64), (5, 4)] {
            let axis = Axis::new(n_in, n_out, 0..n_out, Filter::Bicubic);
            assert!(axis.inputs.is_sorted_by_key(|inputs| inputs.start));
            assert!(axis.inputs.is_sorted_by_key(|inputs| inputs.end));
            assert!(
                axis.inputs
                    .iter()
                    .all(|inputs| !inputs.is_empty() && inputs.end <= n_in)
            );
        }
    }

    #[test]
    fn halving_by_triangles_weighs_one_to_three() {
        let axis = Axis::new(8, 4, 0..4, Filter::Bilinear);
        let sum: i32 = axis.weights_of(1).iter().map(|w| i32::from(*w)).sum();
        assert_eq!(sum, 1 << axis.precision);
        assert_eq!(axis.inputs[1], 1..5);
        let eighth = 1 << (axis.precision - 3);
        assert_eq!(axis.weights_of(1), [eighth, 3 * eighth, 3 * eighth, eighth]);
    }

    #[test]
    fn outputs_that_are_cut_off_still_decide_the_precision() {
        let whole = Axis::new(90, 31, 0..31, Filter::Bicubic);
        let part = Axis::new(90, 31, 11..19, Filter::Bicubic);
        assert_eq!(part.precision, whole.precision);
        assert_eq!(part.inputs, whole.inputs[11..19]);
        assert_eq!(
            (0..8).map(|i| part.weights_of(i)).collect::<Vec<_>>(),
            (11..19).map(|i| whole.weights_of(i)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_very_strong_reduction_uses_the_finest_precision() {
        let axis = Axis::new(40_000, 28, 0..28, Filter::Bicubic);
        assert_eq!(axis.precision, MAX_PRECISION);
        assert!(axis.most_inputs() > 4000);
    }
}

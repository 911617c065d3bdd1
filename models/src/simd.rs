//! Loops over f32 slices that the compiler turns into vector instructions.
//!
//! The portable build has only SSE2, so each loop is compiled several times, and the
//! widest form that the processor has is chosen when it runs. Every arithmetic helper must
//! be inlined into those forms to be compiled with their instructions.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

/// Values handled side by side: one AVX-512 register, two AVX2, four NEON or SSE2.
pub(crate) const LANES: usize = 16;

/// Defines a function that runs `$body::<FMA, QUERIES>` compiled for this processor.
/// `FMA`: one instruction multiplies and adds. `QUERIES`: accumulators that fit in the
/// registers, each of `LANES` values.
macro_rules! dispatched {
    ($(#[$attribute:meta])* $name:ident => $body:ident($($argument:ident: $type:ty),* $(,)?)) => {
        $(#[$attribute])*
        pub(crate) fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($argument: $type),*) {
                    $body::<true, 8>($($argument),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) {
                    $body::<true, 4>($($argument),*);
                }
                if has_avx512() {
                    // SAFETY: the processor has just been asked for these instructions.
                    return unsafe { avx512($($argument),*) };
                }
                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body::<{ cfg!(target_arch = "aarch64") }, 4>($($argument),*);
        }
    };
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
}

/// `a * b + c`. Without the instruction, `f32::mul_add` would call a slow library function.
#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Evaluates a polynomial, highest power first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = multiply_add::<FMA>(sum, x, *coefficient);
    }
    sum
}

/// e to the power x for x <= 88, within 2 units in the last place; NaN stays NaN.
/// Cephes' `expf`: x = n ln 2 + r, a polynomial in r, and n into the exponent bits.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    // ln 2 in two parts, so that r keeps its low bits.
    let r = multiply_add::<FMA>(n, -0.693_359_4, x);
    let r = multiply_add::<FMA>(n, 2.121_944_4e-4, r);
    let sum = polynomial::<FMA, 6>(
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
    let fraction = multiply_add::<FMA>(sum * r, r, r) + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUNDER.to_bits())
        .wrapping_add(127)
        << 23;
    fraction * f32::from_bits(exponent)
}

/// The error function within 4e-7, by the rational approximation that Eigen and XLA use.
#[inline(always)]
fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let numerator = polynomial::<FMA, 7>(
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
    let denominator = polynomial::<FMA, 5>(
        square,
        [
            -1.456_607_2e-5,
            -2.133_740_6e-4,
            -1.682_827e-3,
            -7.373_329e-3,
            -1.426_473_9e-2,
        ],
    );
    x * numerator / denominator
}

dispatched! {
    /// Adds `bias` to each row of `rows` and applies the exact GELU,
    /// `x / 2 * (1 + erf(x / sqrt 2))`, in place.
    bias_gelu => bias_gelu_body(rows: &mut [f32], bias: &[f32])
}

#[inline(always)]
fn bias_gelu_body<const FMA: bool, const QUERIES: usize>(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            let x = *value + bias;
            let half = 0.5 * x;
            let erf = erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2);
            *value = multiply_add::<FMA>(half, erf, half);
        }
    }
}

dispatched! {
    /// Makes `rows` the layer norm of `rows + bias + residual`, in place.
    ///
    /// `rows` and `residual` are `[n, hidden]`; `parameters` is `[3, hidden]`: bias, then
    /// the norm's weight and offset.
    bias_residual_norm => bias_residual_norm_body(
        rows: &mut [f32],
        residual: &[f32],
        parameters: &[f32],
        epsilon: f32,
    )
}

#[inline(always)]
fn bias_residual_norm_body<const FMA: bool, const QUERIES: usize>(
    rows: &mut [f32],
    residual: &[f32],
    parameters: &[f32],
    epsilon: f32,
) {
    let hidden = parameters.len() / 3;
    let (bias, parameters) = parameters.split_at(hidden);
    let (weight, offset) = parameters.split_at(hidden);
    for (row, residual) in rows
        .chunks_exact_mut(hidden)
        .zip(residual.chunks_exact(hidden))
    {
        for ((value, residual), bias) in row.iter_mut().zip(residual).zip(bias) {
            *value += residual + bias;
        }
        let mean = sum_of(row, |value| value) / hidden as f32;
        // In two passes: the difference of squares loses the digits we need.
        let variance = sum_of(row, |value| (value - mean) * (value - mean)) / hidden as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for ((value, weight), offset) in row.iter_mut().zip(weight).zip(offset) {
            *value = multiply_add::<FMA>((*value - mean) * scale, *weight, *offset);
        }
    }
}

/// Sums in lanes, which the compiler may not do by itself: it changes the rounding.
#[inline(always)]
fn sum_of(values: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|value| map(*value)).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += map(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// One text's queries, keys and values, as the fused projection leaves them.
#[derive(Clone, Copy)]
pub(crate) struct Projected<'a> {
    /// `[tokens, 3 * hidden]`: a token's query, key and value side by side, each
    /// `[heads, head_dim]`, without their bias.
    pub(crate) rows: &'a [f32],
    /// `[3 * hidden]`.
    pub(crate) bias: &'a [f32],
    pub(crate) n_heads: usize,
    /// The first token to attend from; how many follows from the output's length.
    pub(crate) first_query: usize,
}

/// Room for one head's keys and values, kept from one call to the next.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// `[head_dim, padded tokens]`, zero beyond the text.
    keys: Vec<f32>,
    /// `[tokens, padded head_dim]`.
    values: Vec<f32>,
    /// `[head_dim, QUERIES]`, scaled.
    queries: Vec<f32>,
    /// `[QUERIES, padded tokens]`.
    weights: Vec<f32>,
}

dispatched! {
    /// Full attention of some tokens of one text over all of its tokens.
    ///
    /// `output` is `[queries, hidden]`, for `projected.first_query` and those after it.
    attend => attend_body(
        projected: Projected<'_>,
        scratch: &mut AttentionScratch,
        output: &mut [f32],
    )
}

#[inline(always)]
fn attend_body<const FMA: bool, const QUERIES: usize>(
    projected: Projected<'_>,
    scratch: &mut AttentionScratch,
    output: &mut [f32],
) {
    let Projected {
        rows,
        bias,
        n_heads,
        first_query,
    } = projected;
    let hidden = bias.len() / 3;
    let head_dim = hidden / n_heads;
    let n_tokens = rows.len() / bias.len();
    let n_queries = output.len() / hidden;
    let padded_tokens = n_tokens.next_multiple_of(LANES);
    let padded_dim = head_dim.next_multiple_of(LANES);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let AttentionScratch {
        keys,
        values,
        queries,
        weights,
    } = scratch;
    refill(keys, head_dim * padded_tokens);
    refill(values, n_tokens * padded_dim);
    refill(queries, QUERIES * head_dim);
    refill(weights, QUERIES * padded_tokens);

    for head in 0..n_heads {
        let at = |part: usize| part * hidden + head * head_dim;
        let (query_bias, key_bias) = (&bias[at(0)..][..head_dim], &bias[at(1)..][..head_dim]);
        let value_bias = &bias[at(2)..][..head_dim];
        for (token, row) in rows.chunks_exact(bias.len()).enumerate() {
            let key = &row[at(1)..][..head_dim];
            for (index, (key, bias)) in key.iter().zip(key_bias).enumerate() {
                keys[index * padded_tokens + token] = key + bias;
            }
            let value = &row[at(2)..][..head_dim];
            let copy = &mut values[token * padded_dim..][..head_dim];
            for ((copy, value), bias) in copy.iter_mut().zip(value).zip(value_bias) {
                *copy = value + bias;
            }
        }
        for block in (0..n_queries).step_by(QUERIES) {
            let n_in_block = QUERIES.min(n_queries - block);
            for query in 0..n_in_block {
                let token = first_query + block + query;
                let row = &rows[token * bias.len() + at(0)..][..head_dim];
                for (index, (value, bias)) in row.iter().zip(query_bias).enumerate() {
                    queries[index * QUERIES + query] = (value + bias) * scale;
                }
            }
            score::<FMA, QUERIES>(queries, keys, weights);
            let mut normalizers = [0.0; QUERIES];
            for (weights, normalizer) in weights
                .chunks_exact_mut(padded_tokens)
                .zip(&mut normalizers)
            {
                *normalizer = 1.0 / exponentiate::<FMA>(weights, n_tokens);
            }
            for first in (0..head_dim).step_by(LANES) {
                let sums = weigh::<FMA, QUERIES>(weights, padded_tokens, values, padded_dim, first);
                let n_lanes = LANES.min(head_dim - first);
                for query in 0..n_in_block {
                    let place = (block + query) * hidden + head * head_dim + first;
                    for lane in 0..n_lanes {
                        output[place + lane] = sums[query][lane] * normalizers[query];
                    }
                }
            }
        }
    }
}

/// Makes a buffer `n` zeros long without giving up its memory.
#[inline(always)]
fn refill(buffer: &mut Vec<f32>, n: usize) {
    buffer.clear();
    buffer.resize(n, 0.0);
}

/// `sums[q] += scalars[q] * lanes`, spelled out: as a loop over q the compiler leaves the
/// sums in memory and adds one value at a time, ten times slower.
#[inline(always)]
fn accumulate<const FMA: bool, const QUERIES: usize>(
    sums: &mut [[f32; LANES]; QUERIES],
    scalars: [f32; QUERIES],
    lanes: &[f32; LANES],
) {
    macro_rules! accumulate_each {
        ($($query:literal)*) => {
            $(if $query < QUERIES {
                for (sum, lane) in sums[$query].iter_mut().zip(lanes) {
                    *sum = multiply_add::<FMA>(scalars[$query], *lane, *sum);
                }
            })*
        };
    }
    const { assert!(QUERIES <= 8) };
    accumulate_each!(0 1 2 3 4 5 6 7);
}

/// `weights[q, t] = sum over d of queries[d, q] * keys[d, t]`.
#[inline(always)]
fn score<const FMA: bool, const QUERIES: usize>(
    queries: &[f32],
    keys: &[f32],
    weights: &mut [f32],
) {
    let (queries, _) = queries.as_chunks::<QUERIES>();
    let padded_tokens = weights.len() / QUERIES;
    let (keys, _) = keys.as_chunks::<LANES>();
    let n_chunks = padded_tokens / LANES;
    for chunk in 0..n_chunks {
        let mut sums = [[0.0; LANES]; QUERIES];
        for (query, keys) in queries.iter().zip(keys[chunk..].iter().step_by(n_chunks)) {
            accumulate::<FMA, QUERIES>(&mut sums, *query, keys);
        }
        for (query, sums) in sums.iter().enumerate() {
            weights[query * padded_tokens + chunk * LANES..][..LANES].copy_from_slice(sums);
        }
    }
}

/// Replaces scores by `exp(score - largest)`, zeros past `n_tokens`, and gives their sum.
#[inline(always)]
fn exponentiate<const FMA: bool>(weights: &mut [f32], n_tokens: usize) -> f32 {
    weights[n_tokens..].fill(f32::NEG_INFINITY);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in weights.chunks_exact(LANES) {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            // Not `f32::max`, whose care for NaN costs more than the rest of this loop.
            *lane = if *weight > *lane { *weight } else { *lane };
        }
    }
    let largest = lanes
        .iter()
        .fold(f32::NEG_INFINITY, |largest, lane| largest.max(*lane));
    for weight in weights.iter_mut() {
        *weight = exp::<FMA>(*weight - largest);
    }
    weights[n_tokens..].fill(0.0);
    sum_of(weights, |weight| weight)
}

/// `sums[q, lane] = sum over t of weights[q, t] * values[t, first + lane]`.
#[inline(always)]
fn weigh<const FMA: bool, const QUERIES: usize>(
    weights: &[f32],
    padded_tokens: usize,
    values: &[f32],
    padded_dim: usize,
    first: usize,
) -> [[f32; LANES]; QUERIES] {
    let n_tokens = values.len() / padded_dim;
    let rows: [&[f32]; QUERIES] =
        std::array::from_fn(|query| &weights[query * padded_tokens..][..n_tokens]);
    let (values, _) = values.as_chunks::<LANES>();
    let values = values[first / LANES..].iter().step_by(padded_dim / LANES);
    let mut sums = [[0.0; LANES]; QUERIES];
    for (token, values) in (0..n_tokens).zip(values) {
        accumulate::<FMA, QUERIES>(&mut sums, rows.map(|row| row[token]), values);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -8_600..=8_800_i16 {
            let x = f32::from(step) / 100.0;
            let exact = f64::from(x).exp();
            for ours in [exp::<false>(x), exp::<true>(x)] {
                let error = (f64::from(ours) - exact).abs() / exact;
                assert!(error < 2.5e-7, "exp({x}): {error:e}");
            }
        }
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(exp::<true>(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn erf_is_within_4e_7() {
        for step in -6_000..=6_000_i16 {
            let x = f32::from(step) / 1_000.0;
            let exact = candle_core::cpu::erf::erf_f64(f64::from(x));
            for ours in [erf::<false>(x), erf::<true>(x)] {
                let error = (f64::from(ours) - exact).abs();
                assert!(error < 4e-7, "erf({x}): {error:e}");
            }
        }
        assert!(erf::<true>(f32::NAN).is_nan());
    }
}

//! The two inner loops of resizing, over bytes with 16-bit weights and 32-bit sums.
//!
//! Every sum starts at one half and is shifted down and clamped at the end, so that any order
//! of additions gives the same byte. No sum overflows: the weights of an output sum to two to
//! the power of 22 at most, their magnitudes to less than twice that, and 255 times two to the
//! power of 23 is below two to the power of 31.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use super::axis::{Axis, N_TAPS_PER_GROUP};

/// Rows that [`Kernels::narrow`] resizes at a time, so that each weight is loaded once for all.
pub(super) const N_ROWS_PER_STEP: usize = 4;

/// Outputs that [`Kernels::narrow`] writes at a time, the last of them filled up.
pub(super) const N_OUTPUTS_PER_STEP: usize = 8;

/// Bytes that [`Kernels::blend`] writes at a time.
pub(super) const N_BYTES_PER_STEP: usize = 32;

/// Bytes of one pixel of the input.
pub(super) const N_CHANNELS: usize = 3;

/// Bytes of one group of taps, and as many as one load reads.
const N_GROUP_BYTES: usize = N_TAPS_PER_GROUP * N_CHANNELS;
const N_LOAD_BYTES: usize = 16;

/// Where the columns come from: [`Axis`] laid out for the loop over a row.
pub(super) struct Columns {
    /// First byte of each output's inputs; filled up to whole steps.
    starts: Vec<usize>,
    /// `[outputs, n_groups, N_TAPS_PER_GROUP]`.
    weights: Vec<i16>,
    n_groups: usize,
    precision: u32,
    /// Bytes that a row must have, those past its last pixel weighing nothing.
    pub(super) n_row_bytes: usize,
}

impl Columns {
    pub(super) fn new(axis: &Axis) -> Self {
        let n_outputs = axis.inputs.len().next_multiple_of(N_OUTPUTS_PER_STEP);
        let mut starts: Vec<usize> = axis
            .inputs
            .iter()
            .map(|inputs| inputs.start * N_CHANNELS)
            .collect();
        starts.resize(n_outputs, 0);
        let mut weights = axis.weights.clone();
        weights.resize(n_outputs * axis.n_taps, 0);
        let n_groups = axis.n_taps / N_TAPS_PER_GROUP;
        let n_row_bytes = starts.iter().max().unwrap_or(&0) + window_bytes(n_groups);
        Self {
            starts,
            weights,
            n_groups,
            precision: axis.precision,
            n_row_bytes,
        }
    }

    /// Multiplications for one row.
    pub(super) fn n_products_per_row(&self) -> usize {
        self.weights.len() * N_CHANNELS
    }

    /// Outputs, filled up to whole steps.
    pub(super) fn n_outputs(&self) -> usize {
        self.starts.len()
    }
}

/// Bytes that the loads for one output touch.
const fn window_bytes(n_groups: usize) -> usize {
    (n_groups - 1) * N_GROUP_BYTES + N_LOAD_BYTES
}

/// The inner loops in one kind of instructions.
pub(super) trait Kernels: Copy {
    /// Resizes rows of pixels along the row.
    ///
    /// A row is `[width, 3]` and has at least `columns.n_row_bytes` bytes. Each of `planes`
    /// holds three planes of `plane_bytes` each; a plane's first `columns.n_outputs()` bytes
    /// are written.
    fn narrow(
        self,
        rows: [&[u8]; N_ROWS_PER_STEP],
        columns: &Columns,
        planes: [&mut [u8]; N_ROWS_PER_STEP],
        plane_bytes: usize,
    );

    /// Writes to `out` the sum of rows by weight.
    ///
    /// `starts` says where in `lines` each row begins, two for each pair in `weights`; `out`
    /// is a multiple of [`N_BYTES_PER_STEP`].
    fn blend(
        self,
        lines: &[u8],
        starts: &[[usize; 2]],
        weights: &[[i16; 2]],
        precision: u32,
        out: &mut [u8],
    );
}

/// For any processor; the compiler finds what vector instructions it may use.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Kernels for Plain {
    #[inline(always)]
    fn narrow(
        self,
        rows: [&[u8]; N_ROWS_PER_STEP],
        columns: &Columns,
        planes: [&mut [u8]; N_ROWS_PER_STEP],
        plane_bytes: usize,
    ) {
        let n_taps = columns.n_groups * N_TAPS_PER_GROUP;
        for (row, planes) in rows.into_iter().zip(planes) {
            let weights = columns.weights.chunks_exact(n_taps);
            for (output, (start, weights)) in columns.starts.iter().zip(weights).enumerate() {
                let mut sums = [1 << (columns.precision - 1); N_CHANNELS];
                let pixels = row[*start..].chunks_exact(N_CHANNELS);
                for (pixel, weight) in pixels.zip(weights) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*value) * i32::from(*weight);
                    }
                }
                for (channel, sum) in sums.into_iter().enumerate() {
                    planes[channel * plane_bytes + output] = to_byte(sum, columns.precision);
                }
            }
        }
    }

    #[inline(always)]
    fn blend(
        self,
        lines: &[u8],
        starts: &[[usize; 2]],
        weights: &[[i16; 2]],
        precision: u32,
        out: &mut [u8],
    ) {
        for (step, out) in out.chunks_exact_mut(N_BYTES_PER_STEP).enumerate() {
            let mut sums = [1 << (precision - 1); N_BYTES_PER_STEP];
            for (start, weight) in starts.as_flattened().iter().zip(weights.as_flattened()) {
                let line = &lines[start + step * N_BYTES_PER_STEP..][..N_BYTES_PER_STEP];
                for (sum, value) in sums.iter_mut().zip(line) {
                    *sum += i32::from(*value) * i32::from(*weight);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_byte(sum, precision);
            }
        }
    }
}

#[inline(always)]
fn to_byte(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m128i, __m256i};

    use pulp::bytemuck::pod_read_unaligned;
    use pulp::x86::V3;

    use super::{
        Columns, Kernels, N_BYTES_PER_STEP, N_GROUP_BYTES, N_LOAD_BYTES, N_OUTPUTS_PER_STEP,
        N_ROWS_PER_STEP, N_TAPS_PER_GROUP, window_bytes,
    };

    /// Picks two neighbouring pixels out of a load, as 16-bit numbers in pairs by channel:
    /// `r0 r1 g0 g1 b0 b1 0 0`. A negative index gives a zero.
    const FIRST_PAIR: [i8; 32] = twice([0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1]);
    const SECOND_PAIR: [i8; 32] =
        twice([6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1]);

    /// Makes planes, `r0 r1 r2 r3 g0 ...`, of four pixels `r0 g0 b0 _ r1 ...`.
    const TO_PLANES: [i8; 32] = twice([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);

    /// A shuffle works within each half of a register, so both get the same indices.
    const fn twice(half: [i8; 16]) -> [i8; 32] {
        let mut both = [0; 32];
        let mut i = 0;
        while i < 32 {
            both[i] = half[i % 16];
            i += 1;
        }
        both
    }

    impl Kernels for V3 {
        #[inline(always)]
        fn narrow(
            self,
            rows: [&[u8]; N_ROWS_PER_STEP],
            columns: &Columns,
            planes: [&mut [u8]; N_ROWS_PER_STEP],
            plane_bytes: usize,
        ) {
            // The usual numbers of groups are unrolled: 1 for enlarging, 2 for halving.
            match columns.n_groups {
                1 => narrow(self, rows, columns, planes, plane_bytes, 1),
                2 => narrow(self, rows, columns, planes, plane_bytes, 2),
                3 => narrow(self, rows, columns, planes, plane_bytes, 3),
                4 => narrow(self, rows, columns, planes, plane_bytes, 4),
                n_groups => narrow(self, rows, columns, planes, plane_bytes, n_groups),
            }
        }

        #[inline(always)]
        fn blend(
            self,
            lines: &[u8],
            starts: &[[usize; 2]],
            weights: &[[i16; 2]],
            precision: u32,
            out: &mut [u8],
        ) {
            let half = self.avx._mm256_set1_epi32(1 << (precision - 1));
            let precision = self.sse2._mm_cvtsi32_si128(precision as i32);
            let zero = self.avx._mm256_setzero_si256();
            for (step, out) in out.chunks_exact_mut(N_BYTES_PER_STEP).enumerate() {
                let mut sums = [half; 4];
                for (starts, weights) in starts.iter().zip(weights) {
                    let weights = self.avx._mm256_set1_epi32(pulp::cast(*weights));
                    let a = load(&lines[starts[0] + step * N_BYTES_PER_STEP..]);
                    let b = load(&lines[starts[1] + step * N_BYTES_PER_STEP..]);
                    let low = self.avx2._mm256_unpacklo_epi8(a, b);
                    let high = self.avx2._mm256_unpackhi_epi8(a, b);
                    let pairs = [
                        self.avx2._mm256_unpacklo_epi8(low, zero),
                        self.avx2._mm256_unpackhi_epi8(low, zero),
                        self.avx2._mm256_unpacklo_epi8(high, zero),
                        self.avx2._mm256_unpackhi_epi8(high, zero),
                    ];
                    for i in 0..4 {
                        let products = self.avx2._mm256_madd_epi16(pairs[i], weights);
                        sums[i] = self.avx2._mm256_add_epi32(sums[i], products);
                    }
                }
                let bytes: [u8; N_BYTES_PER_STEP] = pulp::cast(to_bytes(self, sums, precision));
                out.copy_from_slice(&bytes);
            }
        }
    }

    /// Each half of a register is one row: the first register holds the first two rows, the
    /// second the others.
    #[inline(always)]
    fn narrow(
        simd: V3,
        rows: [&[u8]; N_ROWS_PER_STEP],
        columns: &Columns,
        planes: [&mut [u8]; N_ROWS_PER_STEP],
        plane_bytes: usize,
        n_groups: usize,
    ) {
        let half = simd.avx._mm256_set1_epi32(1 << (columns.precision - 1));
        let precision = simd.sse2._mm_cvtsi32_si128(columns.precision as i32);
        let first_pair = pulp::cast(FIRST_PAIR);
        let second_pair = pulp::cast(SECOND_PAIR);
        let n_taps = n_groups * N_TAPS_PER_GROUP;
        let n_window_bytes = window_bytes(n_groups);
        let [a, b, c, d] = rows;
        // Of one length, so that one check of a window's bounds does for all.
        let n_bytes = columns.n_row_bytes;
        let (a, b, c, d) = (&a[..n_bytes], &b[..n_bytes], &c[..n_bytes], &d[..n_bytes]);
        let [first, second, third, fourth] = planes;
        let steps = columns.starts.chunks_exact(N_OUTPUTS_PER_STEP);
        let weights = columns.weights.chunks_exact(N_OUTPUTS_PER_STEP * n_taps);
        for (step, (starts, weights)) in steps.zip(weights).enumerate() {
            let mut low_sums = [half; N_OUTPUTS_PER_STEP];
            let mut high_sums = [half; N_OUTPUTS_PER_STEP];
            for output in 0..N_OUTPUTS_PER_STEP {
                let start = starts[output];
                let a = &a[start..][..n_window_bytes];
                let b = &b[start..][..n_window_bytes];
                let c = &c[start..][..n_window_bytes];
                let d = &d[start..][..n_window_bytes];
                let weights = &weights[output * n_taps..][..n_taps];
                let (mut low, mut high) = (half, half);
                for group in 0..n_groups {
                    let at = group * N_GROUP_BYTES;
                    let low_pixels = load_two(simd, &a[at..], &b[at..]);
                    let high_pixels = load_two(simd, &c[at..], &d[at..]);
                    let weights = &weights[group * N_TAPS_PER_GROUP..][..N_TAPS_PER_GROUP];
                    let pair = pulp::cast([weights[0], weights[1]]);
                    let pair = simd.avx._mm256_set1_epi32(pair);
                    low = add_products(simd, low, low_pixels, first_pair, pair);
                    high = add_products(simd, high, high_pixels, first_pair, pair);
                    let pair = pulp::cast([weights[2], weights[3]]);
                    let pair = simd.avx._mm256_set1_epi32(pair);
                    low = add_products(simd, low, low_pixels, second_pair, pair);
                    high = add_products(simd, high, high_pixels, second_pair, pair);
                }
                low_sums[output] = low;
                high_sums[output] = high;
            }
            let at = step * N_OUTPUTS_PER_STEP;
            let [one, other] = to_planes(simd, low_sums, precision);
            store(first, at, plane_bytes, one);
            store(second, at, plane_bytes, other);
            let [one, other] = to_planes(simd, high_sums, precision);
            store(third, at, plane_bytes, one);
            store(fourth, at, plane_bytes, other);
        }
    }

    /// Adds to `sums` the pixels that `shuffle` picks, times a pair of weights.
    #[inline(always)]
    fn add_products(
        simd: V3,
        sums: __m256i,
        pixels: __m256i,
        shuffle: __m256i,
        weights: __m256i,
    ) -> __m256i {
        let pixels = simd.avx2._mm256_shuffle_epi8(pixels, shuffle);
        let products = simd.avx2._mm256_madd_epi16(pixels, weights);
        simd.avx2._mm256_add_epi32(sums, products)
    }

    /// Eight outputs of two rows as bytes: for each row, eight of each channel.
    #[inline(always)]
    fn to_planes(
        simd: V3,
        sums: [__m256i; N_OUTPUTS_PER_STEP],
        precision: __m128i,
    ) -> [[[u8; 8]; 3]; 2] {
        let to_planes = pulp::cast(TO_PLANES);
        let halves = sums.as_chunks::<4>().0;
        let low = to_bytes(simd, halves[0], precision);
        let high = to_bytes(simd, halves[1], precision);
        let low = simd.avx2._mm256_shuffle_epi8(low, to_planes);
        let high = simd.avx2._mm256_shuffle_epi8(high, to_planes);
        let red_green = simd.avx2._mm256_unpacklo_epi32(low, high);
        let blue = simd.avx2._mm256_unpackhi_epi32(low, high);
        let red_green: [[u8; 8]; 4] = pulp::cast(red_green);
        let blue: [[u8; 8]; 4] = pulp::cast(blue);
        [
            [red_green[0], red_green[1], blue[0]],
            [red_green[2], red_green[3], blue[2]],
        ]
    }

    #[inline(always)]
    fn load(bytes: &[u8]) -> __m256i {
        pod_read_unaligned(&bytes[..N_BYTES_PER_STEP])
    }

    /// The beginning of two rows, one in each half.
    #[inline(always)]
    fn load_two(simd: V3, low: &[u8], high: &[u8]) -> __m256i {
        let low: __m128i = pod_read_unaligned(&low[..N_LOAD_BYTES]);
        let high: __m128i = pod_read_unaligned(&high[..N_LOAD_BYTES]);
        simd.avx._mm256_set_m128i(high, low)
    }

    /// Writes one step of each plane.
    #[inline(always)]
    fn store(planes: &mut [u8], at: usize, plane_bytes: usize, bytes: [[u8; 8]; 3]) {
        for (channel, bytes) in bytes.iter().enumerate() {
            planes[channel * plane_bytes + at..][..N_OUTPUTS_PER_STEP].copy_from_slice(bytes);
        }
    }

    /// Shifts sums down and clamps them to bytes, in the order in which they lie within each
    /// half.
    #[inline(always)]
    fn to_bytes(simd: V3, sums: [__m256i; 4], precision: __m128i) -> __m256i {
        let [a, b, c, d] = sums;
        let a = simd.avx2._mm256_sra_epi32(a, precision);
        let b = simd.avx2._mm256_sra_epi32(b, precision);
        let c = simd.avx2._mm256_sra_epi32(c, precision);
        let d = simd.avx2._mm256_sra_epi32(d, precision);
        let low = simd.avx2._mm256_packs_epi32(a, b);
        let high = simd.avx2._mm256_packs_epi32(c, d);
        simd.avx2._mm256_packus_epi16(low, high)
    }
}

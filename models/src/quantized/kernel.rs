//! Products of quantized rows with quantized weights.
//!
//! Both sides are bytes in blocks of 32 with a scale each, so a block's 32 products are
//! summed in whole numbers, exactly, and then scaled and added to a float: this is what
//! ggml computes for `q8_0` times `q8_0`. A register of 16 outputs meets four inputs of one
//! row an instruction, and a few rows are done at once so that weights are loaded rarely.
//!
//! Every row is summed in the same order however many are done at once.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::lanes::{Avx2, Avx512, Lanes};
use super::tiles::{BLOCK, COLUMNS, Tile, Tile8};

/// 1.5 * 2^23. As bits, adding a whole number within ±2^22 to it gives the float that is
/// larger by as much. Sums therefore start at its bits and need no conversion, and a fused
/// multiply-subtract takes it away while it applies a scale.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Words that one row's block takes: its scale, [`MAGIC`] times the scale, the start of
/// its sums (or what the weights' minimum is multiplied by), and 32 bytes.
pub(super) const ROW_WORDS: usize = 3 + BLOCK / 4;

/// How far ahead of their use weights are asked for.
const AHEAD_BYTES: usize = 8 << 10;

/// The most rows done at once.
pub(super) const MAX_ROWS: usize = 6;

/// What a call computes: up to [`MAX_ROWS`] rows of one panel.
pub(super) type Patch = [[f32; COLUMNS]; MAX_ROWS];

/// The instructions to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// AVX-512 with VNNI.
    Avx512,
    /// 256 bits with VNNI.
    AvxVnni,
    /// 256 bits without.
    Avx2,
}

impl Level {
    /// From the best down.
    pub(super) const ALL: [Self; 3] = [Self::Avx512, Self::AvxVnni, Self::Avx2];

    /// The best of this processor, if any serves.
    pub(super) fn detect() -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.is_there())
    }

    /// Whether the processor has all the instructions that the level is compiled with.
    pub(super) fn is_there(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        avx2 && match self {
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::AvxVnni => is_x86_feature_detected!("avxvnni"),
            Self::Avx2 => true,
        }
    }

    /// Rows to do at once: as many as the registers hold sums for.
    pub(super) fn n_rows(self) -> usize {
        match self {
            Self::Avx512 => MAX_ROWS,
            Self::AvxVnni => 3,
            Self::Avx2 => 2,
        }
    }
}

/// Weights that the kernel multiplies.
pub(super) trait Product: Tile {
    /// Writes into `out` the products of `n_rows` rows with the panel `tiles`; `rows` is
    /// what [`Product::quantize`] made of them.
    ///
    /// # Panics
    /// `n_rows` is 0 or more than the level's, or `rows` has another length than it calls for.
    fn multiply(level: Level, tiles: &[Self], rows: &[u32], n_rows: usize, out: &mut Patch) {
        assert!(level.is_there(), "the level was detected");
        let n_blocks = rows.len() / (n_rows * ROW_WORDS);
        assert_eq!(
            rows.len(),
            n_blocks * n_rows * ROW_WORDS,
            "whole blocks of rows"
        );
        assert_eq!(
            tiles.len(),
            n_blocks.div_ceil(Self::N_BLOCKS),
            "a panel as long as the rows"
        );
        // SAFETY: the processor has the instructions; `rows` holds `n_blocks` blocks of
        // `n_rows` rows, and `tiles` the weights of as many.
        unsafe {
            match (level, n_rows) {
                (Level::Avx512, 1) => multiply_avx512::<Self, 1>(tiles, rows, out),
                (Level::Avx512, 2) => multiply_avx512::<Self, 2>(tiles, rows, out),
                (Level::Avx512, 3) => multiply_avx512::<Self, 3>(tiles, rows, out),
                (Level::Avx512, 4) => multiply_avx512::<Self, 4>(tiles, rows, out),
                (Level::Avx512, 5) => multiply_avx512::<Self, 5>(tiles, rows, out),
                (Level::Avx512, 6) => multiply_avx512::<Self, 6>(tiles, rows, out),
                (Level::AvxVnni, 1) => multiply_avx_vnni::<Self, 1>(tiles, rows, out),
                (Level::AvxVnni, 2) => multiply_avx_vnni::<Self, 2>(tiles, rows, out),
                (Level::AvxVnni, 3) => multiply_avx_vnni::<Self, 3>(tiles, rows, out),
                (Level::Avx2, 1) => multiply_avx2::<Self, 1>(tiles, rows, out),
                (Level::Avx2, 2) => multiply_avx2::<Self, 2>(tiles, rows, out),
                _ => panic!("{level:?} does not do {n_rows} rows at once"),
            }
        }
    }

    /// Quantizes rows `[n, n_in]`, at most as many as the level does at once, into `n *
    /// ROW_WORDS` words a block: of each row in turn the scale, then the same of the next
    /// word and of the one after, then each row's bytes.
    ///
    /// # Panics
    /// The lengths do not fit together.
    fn quantize(level: Level, x: &[f32], n_in: usize, words: &mut [u32]) {
        assert!(level.is_there(), "the level was detected");
        // SAFETY: the processor has the instructions.
        unsafe {
            match level {
                Level::Avx512 => quantize_avx512::<Self>(x, n_in, words),
                Level::AvxVnni => quantize_avx_vnni::<Self>(x, n_in, words),
                Level::Avx2 => quantize_avx2::<Self>(x, n_in, words),
            }
        }
    }

    /// The third word of a row's block, of its scale, the sum of its bytes, and them.
    fn third_word<L: Lanes>(scale: f32, sum: i32, bytes: &[u32; BLOCK / 4]) -> u32;

    /// # Safety
    /// The processor has the instructions of `L`; `rows` holds blocks of `ROWS` rows, no
    /// more than `tiles` has weights for.
    unsafe fn product<L: Lanes, const ROWS: usize>(tiles: &[Self], rows: &[u32], out: &mut Patch);
}

macro_rules! compile_for {
    ($lanes:ty, $features:literal, $multiply:ident, $quantize:ident) => {
        /// # Safety
        /// As [`Product::product`].
        #[target_feature(enable = $features)]
        unsafe fn $multiply<T: Product, const ROWS: usize>(
            tiles: &[T],
            rows: &[u32],
            out: &mut Patch,
        ) {
            // SAFETY: the caller's.
            unsafe { T::product::<$lanes, ROWS>(tiles, rows, out) }
        }

        #[target_feature(enable = $features)]
        fn $quantize<T: Product>(x: &[f32], n_in: usize, words: &mut [u32]) {
            // SAFETY: this function is compiled for, and called with, the instructions.
            unsafe { quantize_rows::<T, $lanes>(x, n_in, words) }
        }
    };
}

compile_for!(
    Avx512,
    "avx512f,avx512bw,avx512vnni,avx2,fma,f16c",
    multiply_avx512,
    quantize_avx512
);
compile_for!(
    Avx2<true>,
    "avxvnni,avx2,fma,f16c",
    multiply_avx_vnni,
    quantize_avx_vnni
);
compile_for!(Avx2<false>, "avx2,fma,f16c", multiply_avx2, quantize_avx2);

/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn quantize_rows<T: Product, L: Lanes>(x: &[f32], n_in: usize, words: &mut [u32]) {
    let n_rows = x.len() / n_in;
    let blocks = words.chunks_exact_mut(n_rows * ROW_WORDS);
    assert_eq!(blocks.len(), n_in.div_ceil(BLOCK), "words for every block");
    for (block, words) in blocks.enumerate() {
        let (heads, bytes) = words.split_at_mut(3 * n_rows);
        for (row, bytes) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
            let values = &x[row * n_in..][..n_in][block * BLOCK..];
            let mut padded = [0.0; BLOCK];
            let values = if let Some(whole) = values.first_chunk() {
                whole
            } else {
                padded[..values.len()].copy_from_slice(values);
                &padded
            };
            // SAFETY: the caller's.
            let (scale, sum) = unsafe { quantize_block::<L>(values, bytes) };
            heads[row] = scale.to_bits();
            heads[n_rows + row] = (MAGIC * scale).to_bits();
            heads[2 * n_rows + row] = T::third_word::<L>(scale, sum, bytes);
        }
    }
}

/// Quantizes one block and gives its scale and the sum of its whole numbers. A value
/// that is not finite makes the scale NaN, and so every product.
///
/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn quantize_block<L: Lanes>(
    values: &[f32; BLOCK],
    words: &mut [u32; BLOCK / 4],
) -> (f32, i32) {
    // SAFETY: the caller's.
    let largest = unsafe { L::largest_magnitude(values) };
    let scale = if largest.is_finite() {
        // With 16 bits of mantissa, `MAGIC` times the scale is exact.
        let scale = f32::from_bits((largest * (1.0 / 127.0)).to_bits() & 0xffff_ff00);
        // The inverse of less is infinite.
        if scale < f32::MIN_POSITIVE {
            0.0
        } else {
            scale
        }
    } else {
        f32::NAN
    };
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // SAFETY: the caller's.
    let sum = unsafe { L::to_bytes(values, inverse, words) };
    (scale, sum)
}

/// Asks for the weights that come after these: part `part` of `n_parts` of as many bytes as the
/// tile has. With several rows the processor reads weights in bursts, to which its own
/// prefetching does not hold: this makes products of eight rows a sixth faster.
#[inline(always)]
pub(super) fn fetch_ahead<T>(tile: &T, part: usize, n_parts: usize) {
    const LINE: usize = 64;
    let n_bytes = size_of::<T>() / n_parts;
    let ahead = std::ptr::from_ref(tile).cast::<i8>();
    let ahead = ahead.wrapping_add(part * n_bytes + AHEAD_BYTES);
    for line in 0..n_bytes / LINE {
        // SAFETY: a prefetch reads nothing that could be told, wherever it points, and every
        // x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(LINE * line)) };
    }
}

impl Product for Tile8 {
    /// The sums' start: less by what the weights' offset adds to them.
    #[inline(always)]
    fn third_word<L: Lanes>(_scale: f32, sum: i32, _bytes: &[u32; BLOCK / 4]) -> u32 {
        (MAGIC.to_bits() as i32).wrapping_sub(L::OFFSET.wrapping_mul(sum)) as u32
    }

    #[inline(always)]
    unsafe fn product<L: Lanes, const ROWS: usize>(tiles: &[Self], rows: &[u32], out: &mut Patch) {
        // SAFETY: the processor has the instructions; all reads are within a tile, since
        // `column` + 2 * N <= 32, or within one block of `rows`, of which there is one for
        // each tile; a patch has 32 columns and at least `ROWS` rows.
        unsafe {
            for column in (0..COLUMNS).step_by(2 * L::N) {
                let mut totals = [[L::splat(0.0); 2]; ROWS];
                let mut words = rows.as_ptr();
                for tile in tiles {
                    fetch_ahead(tile, 0, 1);
                    let mut sums = [[L::splat_int(0); 2]; ROWS];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        *sums = [L::splat_int(*words.add(2 * ROWS + row) as i32); 2];
                    }
                    for four in 0..BLOCK / 4 {
                        let weights = tile.quants[four].as_ptr().add(4 * column);
                        let weights = [L::load(weights), L::load(weights.add(4 * L::N))];
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let place = 3 * ROWS + row * (BLOCK / 4) + four;
                            let x = L::splat_int(*words.add(place) as i32);
                            *sums = [
                                L::dot(sums[0], weights[0], x),
                                L::dot(sums[1], weights[1], x),
                            ];
                        }
                    }
                    let scales = tile.scales.as_ptr().add(column);
                    let scales = [L::load_f16(scales), L::load_f16(scales.add(L::N))];
                    for (row, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                        let scale = L::splat(f32::from_bits(*words.add(row)));
                        let magic = L::splat(f32::from_bits(*words.add(ROWS + row)));
                        for part in 0..2 {
                            let sum = L::mul_sub(L::as_floats(sums[part]), scale, magic);
                            totals[part] = L::mul_add(sum, scales[part], totals[part]);
                        }
                    }
                    words = words.add(ROWS * ROW_WORDS);
                }
                for (out, totals) in out.iter_mut().zip(totals) {
                    L::store(totals[0], out.as_mut_ptr().add(column));
                    L::store(totals[1], out.as_mut_ptr().add(column + L::N));
                }
            }
        }
    }
}

const _: () = assert!(COLUMNS == 2 * Avx512::N);

//! Products with weights of four, five and six bits, unpacked on the way.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use super::kernel::{MAGIC, Patch, Product, ROW_WORDS, fetch_ahead};
use super::lanes::Lanes;
use super::tiles::{BLOCK, COLUMNS, Five, Flat4, HALF, SUPERBLOCK, Tile, Tile4, Tile6};

/// Tiles of 4-bit weights, whose blocks of 32 inputs each have a scale and a minimum.
trait Fours: Tile {
    /// Two weights a byte: `[input / 8][output][input % 4]`.
    fn quants(&self) -> &[[u8; 4 * COLUMNS]];

    /// A fifth bit of each weight, by block, if they have one.
    #[inline(always)]
    fn fifths(&self) -> Option<&[[u8; 4 * COLUMNS]]> {
        None
    }

    /// Scales and minimums of a block, for two registers of outputs from `column`.
    ///
    /// # Safety
    /// The processor has the instructions, the tile has the block, and `column + 2 * N` is
    /// at most [`COLUMNS`].
    unsafe fn scales_and_mins<L: Lanes>(&self, block: usize, column: usize) -> [[L::Floats; 2]; 2];
}

impl Fours for Tile4 {
    #[inline(always)]
    fn quants(&self) -> &[[u8; 4 * COLUMNS]] {
        &self.quants
    }

    #[inline(always)]
    unsafe fn scales_and_mins<L: Lanes>(&self, block: usize, column: usize) -> [[L::Floats; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            let (scales, mins) = (
                self.scales.get_unchecked(block),
                self.mins.get_unchecked(block),
            );
            [
                widen_pair::<L>(&self.scale, scales, column),
                widen_pair::<L>(&self.min, mins, column),
            ]
        }
    }
}

impl Fours for Flat4<u8> {
    #[inline(always)]
    fn quants(&self) -> &[[u8; 4 * COLUMNS]] {
        &self.quants
    }

    #[inline(always)]
    unsafe fn scales_and_mins<L: Lanes>(&self, block: usize, column: usize) -> [[L::Floats; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            let (scales, zeros) = (
                self.scales.get_unchecked(block),
                self.offsets.get_unchecked(block),
            );
            [
                load_pair::<L>(scales, column),
                widen_pair::<L>(scales, zeros, column), // 11 bits by 8: exact.
            ]
        }
    }
}

impl Fours for Flat4<u16> {
    #[inline(always)]
    fn quants(&self) -> &[[u8; 4 * COLUMNS]] {
        &self.quants
    }

    #[inline(always)]
    unsafe fn scales_and_mins<L: Lanes>(&self, block: usize, column: usize) -> [[L::Floats; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            [
                load_pair::<L>(self.scales.get_unchecked(block), column),
                load_pair::<L>(self.offsets.get_unchecked(block), column),
            ]
        }
    }
}

impl<T: Fours, const N: usize> Fours for Five<T, N> {
    #[inline(always)]
    fn quants(&self) -> &[[u8; 4 * COLUMNS]] {
        self.fours.quants()
    }

    #[inline(always)]
    fn fifths(&self) -> Option<&[[u8; 4 * COLUMNS]]> {
        Some(&self.fifths)
    }

    #[inline(always)]
    unsafe fn scales_and_mins<L: Lanes>(&self, block: usize, column: usize) -> [[L::Floats; 2]; 2] {
        // SAFETY: the caller's.
        unsafe { self.fours.scales_and_mins::<L>(block, column) }
    }
}

impl<T: Fours> Product for T {
    /// What a block's minimum is multiplied by: the sum of the row's values.
    #[inline(always)]
    fn third_word<L: Lanes>(scale: f32, sum: i32, _bytes: &[u32; BLOCK / 4]) -> u32 {
        (scale * sum as f32).to_bits()
    }

    #[inline(always)]
    unsafe fn product<L: Lanes, const ROWS: usize>(tiles: &[Self], rows: &[u32], out: &mut Patch) {
        let n_blocks = rows.len() / (ROWS * ROW_WORDS);
        // SAFETY: the processor has the instructions; all reads are within a tile, since
        // `column` + 2 * N <= 32, or within one of the `n_blocks` blocks of `rows`, for which
        // there are tiles enough; a patch has 32 columns and at least `ROWS` rows.
        unsafe {
            for column in (0..COLUMNS).step_by(2 * L::N) {
                let mut totals = [[L::splat(0.0); 2]; ROWS];
                let mut words = rows.as_ptr();
                for block in 0..n_blocks {
                    let tile = tiles.get_unchecked(block / Self::N_BLOCKS);
                    let block = block % Self::N_BLOCKS;
                    fetch_ahead(tile, block, Self::N_BLOCKS);
                    let mut sums = [[L::splat_int(MAGIC.to_bits() as i32); 2]; ROWS];
                    // None of this is left where there are no fifth bits.
                    let mut planes = [L::splat_int(0); 2];
                    if let Some(fifths) = tile.fifths() {
                        planes = load_bytes::<L>(fifths.get_unchecked(block), column);
                    }
                    let low_planes = [L::swap_up(planes[0]), L::swap_up(planes[1])];
                    for eight in 0..BLOCK / 8 {
                        let quants = tile.quants().get_unchecked(block * (BLOCK / 8) + eight);
                        let weights = load_bytes::<L>(quants, column);
                        // Both before the rows: a tenth faster with AVX-512.
                        let mut low = [L::low(weights[0]), L::low(weights[1])];
                        let mut high = [L::high(weights[0]), L::high(weights[1])];
                        if tile.fifths().is_some() {
                            if eight == BLOCK / 16 {
                                planes = low_planes;
                            }
                            low = [L::five(low[0], planes[0]), L::five(low[1], planes[1])];
                            planes = [L::down(planes[0]), L::down(planes[1])];
                            high = [L::five(high[0], planes[0]), L::five(high[1], planes[1])];
                            planes = [L::down(planes[0]), L::down(planes[1])];
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let place = 3 * ROWS + row * (BLOCK / 4) + 2 * eight;
                            let x = L::splat_int(*words.add(place) as i32);
                            *sums = [
                                L::dot_small(sums[0], low[0], x),
                                L::dot_small(sums[1], low[1], x),
                            ];
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let place = 3 * ROWS + row * (BLOCK / 4) + 2 * eight + 1;
                            let x = L::splat_int(*words.add(place) as i32);
                            *sums = [
                                L::dot_small(sums[0], high[0], x),
                                L::dot_small(sums[1], high[1], x),
                            ];
                        }
                    }
                    // No closures: they would not be compiled for the instructions.
                    let [scales, mins] = tile.scales_and_mins::<L>(block, column);
                    for (row, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                        let scale = L::splat(f32::from_bits(*words.add(row)));
                        let magic = L::splat(f32::from_bits(*words.add(ROWS + row)));
                        let x_sum = L::splat(f32::from_bits(*words.add(2 * ROWS + row)));
                        for part in 0..2 {
                            let sum = L::mul_sub(L::as_floats(sums[part]), scale, magic);
                            let total = L::mul_add(sum, scales[part], totals[part]);
                            totals[part] = L::sub_mul(total, mins[part], x_sum);
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

/// What is taken off each 6-bit weight.
const OFFSET6: i32 = 32;

impl Product for Tile6 {
    /// The sums of the row's bytes in each half of the block, 16 bits each.
    #[inline(always)]
    fn third_word<L: Lanes>(_scale: f32, sum: i32, bytes: &[u32; BLOCK / 4]) -> u32 {
        let mut first = 0;
        for four in &bytes[..HALF / 4] {
            for byte in four.to_le_bytes() {
                first += i32::from(byte as i8);
            }
        }
        (first as u32 & 0xffff) | ((sum - first) as u32) << 16
    }

    #[inline(always)]
    unsafe fn product<L: Lanes, const ROWS: usize>(tiles: &[Self], rows: &[u32], out: &mut Patch) {
        let n_blocks = rows.len() / (ROWS * ROW_WORDS);
        // SAFETY: as for four bits.
        unsafe {
            for column in (0..COLUMNS).step_by(2 * L::N) {
                let mut totals = [[L::splat(0.0); 2]; ROWS];
                let mut words = rows.as_ptr();
                for block in 0..n_blocks {
                    let tile = tiles.get_unchecked(block / Self::N_BLOCKS);
                    fetch_ahead(tile, block % Self::N_BLOCKS, Self::N_BLOCKS);
                    for part in 0..BLOCK / HALF {
                        let half = block % Self::N_BLOCKS * (BLOCK / HALF) + part;
                        let mut sums = [[L::splat_int(0); 2]; ROWS];
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let both = *words.add(2 * ROWS + row);
                            let own = (both >> (16 * part)) as i16;
                            let start = MAGIC.to_bits() as i32 - OFFSET6 * i32::from(own);
                            *sums = [L::splat_int(start); 2];
                        }
                        let high = load_bytes::<L>(tile.high.get_unchecked(half), column);
                        let first = load_bytes::<L>(tile.low.get_unchecked(2 * half), column);
                        let second = load_bytes::<L>(tile.low.get_unchecked(2 * half + 1), column);
                        let fours = [
                            [
                                L::six::<0>(L::low(first[0]), high[0]),
                                L::six::<0>(L::low(first[1]), high[1]),
                            ],
                            [
                                L::six::<1>(L::high(first[0]), high[0]),
                                L::six::<1>(L::high(first[1]), high[1]),
                            ],
                            [
                                L::six::<2>(L::low(second[0]), high[0]),
                                L::six::<2>(L::low(second[1]), high[1]),
                            ],
                            [
                                L::six::<3>(L::high(second[0]), high[0]),
                                L::six::<3>(L::high(second[1]), high[1]),
                            ],
                        ];
                        for (four, weights) in fours.into_iter().enumerate() {
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let four = part * (HALF / 4) + four;
                                let place = 3 * ROWS + row * (BLOCK / 4) + four;
                                let x = L::splat_int(*words.add(place) as i32);
                                *sums = [
                                    L::dot_small(sums[0], weights[0], x),
                                    L::dot_small(sums[1], weights[1], x),
                                ];
                            }
                        }
                        let own = tile.scales.get_unchecked(half).as_ptr().add(column);
                        let scales = load_pair::<L>(&tile.scale, column);
                        let scales = [
                            L::mul(scales[0], L::load_i8(own)),
                            L::mul(scales[1], L::load_i8(own.add(L::N))),
                        ];
                        for (row, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                            let scale = L::splat(f32::from_bits(*words.add(row)));
                            let magic = L::splat(f32::from_bits(*words.add(ROWS + row)));
                            for part in 0..2 {
                                let sum = L::mul_sub(L::as_floats(sums[part]), scale, magic);
                                totals[part] = L::mul_add(sum, scales[part], totals[part]);
                            }
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

/// Two registers of bytes from `column`, four to an output.
///
/// # Safety
/// The processor has the instructions, and `column + 2 * N` is at most [`COLUMNS`]; so below.
#[inline(always)]
unsafe fn load_bytes<L: Lanes>(bytes: &[u8; 4 * COLUMNS], column: usize) -> [L::Ints; 2] {
    // SAFETY: the caller's.
    unsafe {
        let bytes = bytes.as_ptr().add(4 * column);
        [L::load(bytes), L::load(bytes.add(4 * L::N))]
    }
}

/// Numbers of f16 for two registers of outputs from `column`.
///
/// # Safety
/// As [`load_bytes`].
#[inline(always)]
unsafe fn load_pair<L: Lanes>(numbers: &[u16; COLUMNS], column: usize) -> [L::Floats; 2] {
    // SAFETY: the caller's.
    unsafe {
        let numbers = numbers.as_ptr().add(column);
        [L::load_f16(numbers), L::load_f16(numbers.add(L::N))]
    }
}

/// Products of `shared`, f16, and `own` for two registers of outputs from `column`.
///
/// # Safety
/// As [`load_bytes`].
#[inline(always)]
unsafe fn widen_pair<L: Lanes>(
    shared: &[u16; COLUMNS],
    own: &[u8; COLUMNS],
    column: usize,
) -> [L::Floats; 2] {
    // SAFETY: the caller's.
    unsafe {
        let shared = load_pair::<L>(shared, column);
        let own = own.as_ptr().add(column);
        [
            L::mul(shared[0], L::load_u8(own)),
            L::mul(shared[1], L::load_u8(own.add(L::N))),
        ]
    }
}

const _: () = assert!(SUPERBLOCK.is_multiple_of(BLOCK) && BLOCK == 2 * HALF);

//! Quantized weights in the order in which the kernel reads them.
//!
//! A matrix `[n_out, n_in]` is cut into panels of 32 outputs, and a panel into blocks of 32
//! inputs. In a block the bytes lie `[4 inputs' group][output][4 inputs]`: one register
//! holds four inputs of 16 outputs, which is what one instruction multiplies.
//!
//! What does not fill a panel or a block is filled up with weights of zero.

use super::kernel::MAGIC;

/// Outputs of a panel.
pub(super) const COLUMNS: usize = 32;

/// Inputs that share a scale.
pub(super) const BLOCK: usize = 32;

/// Inputs that share the scale of their scales, in 4 bits.
pub(super) const SUPERBLOCK: usize = 256;

pub(super) const N_SUBBLOCKS: usize = SUPERBLOCK / BLOCK;

/// Bytes of one [`SUPERBLOCK`] of `q4_k` as ggml lays it out: two f16, twelve bytes of
/// 6-bit scales, 128 bytes of 4-bit weights.
pub(super) const SUPERBLOCK_BYTES: usize = 4 + 12 + SUPERBLOCK / 2;

/// Inputs that share a scale in `q6_k`.
pub(super) const HALF: usize = 16;

/// Bytes of one [`SUPERBLOCK`] of `q5_k` as ggml lays it out: as `q4_k`, with the fifth bits
/// before the others.
pub(super) const SUPERBLOCK5_BYTES: usize = SUPERBLOCK_BYTES + SUPERBLOCK / 8;

/// Bytes of one [`SUPERBLOCK`] of `q6_k` as ggml lays it out: the low four bits, the high
/// two, 8-bit scales, one f16.
pub(super) const SUPERBLOCK6_BYTES: usize = SUPERBLOCK / 2 + SUPERBLOCK / 4 + SUPERBLOCK / HALF + 2;

/// One block of a panel in `q8_0`: weight = quant * scale.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Tile8 {
    /// Each weight plus 128. `[input / 4][output][input % 4]`.
    pub(super) quants: [[u8; 4 * COLUMNS]; BLOCK / 4],
    /// Bits of f16, by output.
    pub(super) scales: [u16; COLUMNS],
}

/// One superblock of a panel in `q4_k`: weight = quant * scale * scales - min * mins.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Tile4 {
    /// Two weights a byte, the second in the high bits: `[input / 8][output][input % 4]`,
    /// the low bits being inputs 0..4 of the eight and the high bits 4..8.
    pub(super) quants: [[u8; 4 * COLUMNS]; SUPERBLOCK / 8],
    /// Bits of f16, by output.
    pub(super) scale: [u16; COLUMNS],
    /// Bits of f16, by output.
    pub(super) min: [u16; COLUMNS],
    /// By block and output.
    pub(super) scales: [[u8; COLUMNS]; N_SUBBLOCKS],
    /// By block and output.
    pub(super) mins: [[u8; COLUMNS]; N_SUBBLOCKS],
}

/// One superblock of a panel in `q6_k`: weight = (quant - 32) * scale * scales.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Tile6 {
    /// The low four bits of two weights a byte, as in [`Tile4`].
    pub(super) low: [[u8; 4 * COLUMNS]; SUPERBLOCK / 8],
    /// The high two bits of four weights a byte, the later the higher:
    /// `[input / 16][output][input % 4]`.
    pub(super) high: [[u8; 4 * COLUMNS]; SUPERBLOCK / HALF],
    /// Bits of f16, by output.
    pub(super) scale: [u16; COLUMNS],
    /// By half a block and output.
    pub(super) scales: [[i8; COLUMNS]; SUPERBLOCK / HALF],
}

/// Two blocks of a panel in 4 bits with a scale and an offset for each block and output.
///
/// Offsets of u8 are zero points, weight = (quant - offset) * scale: `q4_0`, GPTQ, AWQ and
/// AutoRound. Those of f16 are minimums, weight = quant * scale - offset: `q4_1`.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Flat4<O> {
    /// As in [`Tile4`].
    pub(super) quants: [[u8; 4 * COLUMNS]; FLAT_BLOCKS * BLOCK / 8],
    /// Bits of f16, by block and output.
    pub(super) scales: [[u16; COLUMNS]; FLAT_BLOCKS],
    /// By block and output; bits where they are f16.
    pub(super) offsets: [[O; COLUMNS]; FLAT_BLOCKS],
}

/// A tile of 4-bit weights with a fifth bit for each: `q5_k`, `q5_1`, `q5_0`. `N` is the tile's
/// number of blocks.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Five<T, const N: usize> {
    pub(super) fours: T,
    /// By block: `[output][input % 4]`, a bit for each four of inputs. Those of the first four
    /// fours are the high bits.
    pub(super) fifths: [[u8; 4 * COLUMNS]; N],
}

/// Blocks of a [`Flat4`]: with two, no byte of its alignment is lost.
pub(super) const FLAT_BLOCKS: usize = 2;

/// What the tiles have in common.
pub(super) trait Tile: Clone + Send + Sync {
    /// Blocks of a tile.
    const N_BLOCKS: usize;
    /// Weights of zero.
    const ZERO: Self;
}

impl Tile for Tile8 {
    const N_BLOCKS: usize = 1;
    const ZERO: Self = Self {
        quants: [[128; 4 * COLUMNS]; BLOCK / 4],
        scales: [0; COLUMNS],
    };
}

impl Tile for Tile4 {
    const N_BLOCKS: usize = N_SUBBLOCKS;
    const ZERO: Self = Self {
        quants: [[0; 4 * COLUMNS]; SUPERBLOCK / 8],
        scale: [0; COLUMNS],
        min: [0; COLUMNS],
        scales: [[0; COLUMNS]; N_SUBBLOCKS],
        mins: [[0; COLUMNS]; N_SUBBLOCKS],
    };
}

impl Tile for Tile6 {
    const N_BLOCKS: usize = N_SUBBLOCKS;
    const ZERO: Self = Self {
        low: [[0; 4 * COLUMNS]; SUPERBLOCK / 8],
        high: [[0; 4 * COLUMNS]; SUPERBLOCK / HALF],
        scale: [0; COLUMNS],
        scales: [[0; COLUMNS]; SUPERBLOCK / HALF],
    };
}

/// A [`Flat4`]'s offset.
pub(super) trait Offset: Copy + Send + Sync {
    /// Nothing.
    const ZERO: Self;
}

impl Offset for u8 {
    const ZERO: Self = 0;
}

impl Offset for u16 {
    const ZERO: Self = 0;
}

impl<O: Offset> Tile for Flat4<O> {
    const N_BLOCKS: usize = FLAT_BLOCKS;
    const ZERO: Self = Self {
        quants: [[0; 4 * COLUMNS]; FLAT_BLOCKS * BLOCK / 8],
        scales: [[0; COLUMNS]; FLAT_BLOCKS],
        offsets: [[O::ZERO; COLUMNS]; FLAT_BLOCKS],
    };
}

impl<T: Tile, const N: usize> Tile for Five<T, N> {
    const N_BLOCKS: usize = T::N_BLOCKS;
    const ZERO: Self = Self {
        fours: T::ZERO,
        fifths: [[0; 4 * COLUMNS]; N],
    };
}

impl<T, const N: usize> Five<T, N> {
    /// Takes over the fifth bits of one output's block, the first input's being the lowest.
    pub(super) fn put_fifths(&mut self, column: usize, block: usize, bits: u32) {
        // Four bits, one to each byte.
        let spread = |four: usize| ((bits >> (4 * four) & 15) * 0x0020_4081) & 0x0101_0101;
        self.put_fours_fifths(column, block, spread);
    }

    /// The same, of each four's bits as the lowest of bytes.
    fn put_fours_fifths(&mut self, column: usize, block: usize, bits: impl Fn(usize) -> u32) {
        let mut word = 0;
        for four in 0..BLOCK / 4 {
            word |= bits(four) << ((four + 4) % 8);
        }
        self.fifths[block].as_chunks_mut().0[column] = word.to_le_bytes();
    }
}

impl Five<Tile4, N_SUBBLOCKS> {
    /// Takes over one output's superblock from ggml's layout.
    pub(super) fn put(&mut self, column: usize, bytes: &[u8; SUPERBLOCK5_BYTES]) {
        let (head, rest) = bytes.split_at(16);
        let (fifths, quants) = rest.split_at(BLOCK);
        let mut four = [0; SUPERBLOCK_BYTES];
        four[..16].copy_from_slice(head);
        four[16..].copy_from_slice(quants);
        self.fours.put(column, &four);
        let (fours, _) = fifths.as_chunks();
        for block in 0..N_SUBBLOCKS {
            let bits = |four: usize| u32::from_le_bytes(fours[four]) >> block & 0x0101_0101;
            self.put_fours_fifths(column, block, bits);
        }
    }
}

impl Tile8 {
    /// Takes over one output's block: the bits of its scale, f16, and its quants.
    pub(super) fn put_quants(&mut self, column: usize, scale: u16, quants: &[u8; BLOCK]) {
        self.scales[column] = scale;
        for (four, quants) in self.quants.iter_mut().zip(quants.as_chunks::<4>().0) {
            for (input, quant) in quants.iter().enumerate() {
                four[4 * column + input] = quant.wrapping_add(128);
            }
        }
    }

    /// Quantizes one output's block to the bit as ggml does: the largest magnitude
    /// becomes 127.
    pub(super) fn put(&mut self, column: usize, weights: &[f32; BLOCK]) {
        let largest = largest_magnitude(weights);
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        self.scales[column] = half::f16::from_f32(scale).to_bits();
        for (input, weight) in weights.iter().enumerate() {
            let quant = round(weight * inverse).wrapping_add(128) as u8;
            self.quants[input / 4][4 * column + input % 4] = quant;
        }
    }
}

impl Tile4 {
    /// Takes over one output's superblock from ggml's layout.
    pub(super) fn put(&mut self, column: usize, bytes: &[u8; SUPERBLOCK_BYTES]) {
        let (halves, rest) = bytes.split_at(4);
        let (packed, quants) = rest.split_at(12);
        self.scale[column] = u16::from_le_bytes([halves[0], halves[1]]);
        self.min[column] = u16::from_le_bytes([halves[2], halves[3]]);
        for block in 0..N_SUBBLOCKS {
            let (scale, min) = unpack_scale_and_min(packed, block);
            self.scales[block][column] = scale;
            self.mins[block][column] = min;
        }
        let mut numbers = [0; SUPERBLOCK];
        let runs = numbers.as_chunks_mut::<{ 2 * BLOCK }>().0.iter_mut();
        for (run, bytes) in runs.zip(quants.as_chunks::<BLOCK>().0) {
            // 32 bytes hold two blocks, the second in the high bits.
            let (first, second) = run.split_at_mut(BLOCK);
            for place in 0..BLOCK {
                (first[place], second[place]) = (bytes[place] & 15, bytes[place] >> 4);
            }
        }
        put_fours(&mut self.quants, column, &numbers);
    }
}

/// Writes a column's numbers of four bits, two a byte: of each eight, one of the first four
/// with one of the last.
fn put_fours(rows: &mut [[u8; 4 * COLUMNS]], column: usize, numbers: &[u8]) {
    for (row, eight) in rows.iter_mut().zip(numbers.as_chunks::<8>().0) {
        let low = u32::from_le_bytes([eight[0], eight[1], eight[2], eight[3]]);
        let high = u32::from_le_bytes([eight[4], eight[5], eight[6], eight[7]]);
        row.as_chunks_mut().0[column] = (low | high << 4).to_le_bytes();
    }
}

impl Tile6 {
    /// Takes over one output's superblock from ggml's layout.
    pub(super) fn put(&mut self, column: usize, bytes: &[u8; SUPERBLOCK6_BYTES]) {
        let (low, rest) = bytes.split_at(SUPERBLOCK / 2);
        let (high, rest) = rest.split_at(SUPERBLOCK / 4);
        let (scales, scale) = rest.split_at(SUPERBLOCK / HALF);
        self.scale[column] = u16::from_le_bytes([scale[0], scale[1]]);
        for (own, scale) in self.scales.iter_mut().zip(scales) {
            own[column] = *scale as i8;
        }
        // 128 weights share 64 and 32 bytes: four runs of 32, the latter two's low bits in the
        // high halves of bytes.
        let (mut lows, mut highs) = ([0; SUPERBLOCK], [0; SUPERBLOCK]);
        for part in 0..SUPERBLOCK / 128 {
            let (low, high) = (&low[64 * part..][..64], &high[32 * part..][..32]);
            let lows = lows[128 * part..][..128].as_chunks_mut::<BLOCK>().0;
            let highs = highs[128 * part..][..128].as_chunks_mut::<BLOCK>().0;
            for place in 0..BLOCK {
                lows[0][place] = low[place] & 15;
                lows[1][place] = low[BLOCK + place] & 15;
                lows[2][place] = low[place] >> 4;
                lows[3][place] = low[BLOCK + place] >> 4;
                for (run, highs) in highs.iter_mut().enumerate() {
                    highs[place] = high[place] >> (2 * run) & 3;
                }
            }
        }
        put_fours(&mut self.low, column, &lows);
        for (row, half) in self.high.iter_mut().zip(highs.as_chunks::<HALF>().0) {
            let mut word = 0;
            for (four, bytes) in half.as_chunks().0.iter().enumerate() {
                word |= u32::from_le_bytes(*bytes) << (2 * four);
            }
            row.as_chunks_mut().0[column] = word.to_le_bytes();
        }
    }
}

impl<O: Offset> Flat4<O> {
    /// Takes over one output's block: quants within 0..=15, and the bits of their scale, f16.
    pub(super) fn put(
        &mut self,
        column: usize,
        block: usize,
        quants: &[u8; BLOCK],
        scale: u16,
        offset: O,
    ) {
        self.scales[block][column] = scale;
        self.offsets[block][column] = offset;
        let rows = &mut self.quants[block * (BLOCK / 8)..][..BLOCK / 8];
        put_fours(rows, column, quants);
    }
}

/// The two 6-bit numbers of one block. Of the last four blocks, the low four bits share a
/// byte and the high two sit on top of the first four blocks' numbers.
fn unpack_scale_and_min(packed: &[u8], block: usize) -> (u8, u8) {
    if block < 4 {
        (packed[block] & 63, packed[block + 4] & 63)
    } else {
        let low = packed[block + 4];
        (
            (low & 15) | (packed[block - 4] >> 6) << 4,
            (low >> 4) | (packed[block] >> 6) << 4,
        )
    }
}

/// The largest magnitude; infinite or NaN if any value is. Magnitudes order like their bits.
fn largest_magnitude(values: &[f32; BLOCK]) -> f32 {
    let mut largest = 0;
    for value in values {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(largest)
}

/// The nearest whole number, halves away from zero, of a value within ±2^22. Adding 1.5 *
/// 2^23 leaves the nearest in the low bits, of two the even one; what a half lost there
/// comes back.
#[allow(clippy::float_cmp, reason = "halves are exact")]
fn round(value: f32) -> i32 {
    let sum = value + MAGIC;
    let lost = value - (sum - MAGIC);
    let even = (sum.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    even + i32::from(lost >= 0.5 && value > 0.0) - i32::from(lost <= -0.5 && value < 0.0)
}

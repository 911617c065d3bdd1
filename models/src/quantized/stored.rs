//! Weights that a file already has in few bits, taken over without loss.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::Level;
use super::packed::Packed;
use super::tiles::{BLOCK, FLAT_BLOCKS, Five, Flat4, N_SUBBLOCKS, Tile4, Tile6, Tile8};
use super::{Form, QuantizedMatrix};

/// Weights that one core dequantizes at a time.
const N_VALUES_PER_TASK: usize = 1 << 18;

/// Where the minimum's sign stands in an f16.
const SIGN: u16 = 1 << 15;

/// Weights `[n_out, n_in]` in blocks of ggml's, row after row.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    format: GgmlDType,
    bytes: &'a [u8],
    n_in: usize,
    n_out: usize,
}

impl<'a> Blocks<'a> {
    /// # Errors
    /// The rows are no whole blocks, there are none, or `bytes` does not hold them all.
    pub(crate) fn new(
        format: GgmlDType,
        bytes: &'a [u8],
        [n_out, n_in]: [usize; 2],
    ) -> Result<Self> {
        let width = format.block_size();
        let n_bytes = n_in
            .checked_mul(n_out)
            .and_then(|n| (n / width).checked_mul(format.type_size()));
        if n_in == 0 || n_out == 0 || !n_in.is_multiple_of(width) || n_bytes != Some(bytes.len()) {
            bail!(
                "{} bytes are no weights [{n_out}, {n_in}] of {format:?}",
                bytes.len()
            );
        }
        Ok(Self {
            format,
            bytes,
            n_in,
            n_out,
        })
    }

    /// The weights as floats, `[n_out, n_in]` f32 on the processor.
    ///
    /// # Errors
    /// No room.
    pub(crate) fn dequantize(&self) -> Result<Tensor> {
        // In parts, which all cores take: candle's own goes alone.
        let row_bytes = self.bytes.len() / self.n_out;
        let n_rows = N_VALUES_PER_TASK.div_ceil(self.n_in);
        let parts: Result<Vec<Tensor>> = self
            .bytes
            .par_chunks(n_rows * row_bytes)
            .map(|bytes| {
                let shape = (bytes.len() / row_bytes, self.n_in);
                tensor(self.format, bytes, shape, &Device::Cpu)?.dequantize(&Device::Cpu)
            })
            .collect();
        Tensor::cat(&parts?, 0)
    }
}

/// Candle's tensor of ggml's blocks.
fn tensor(
    format: GgmlDType,
    bytes: &[u8],
    shape: (usize, usize),
    device: &Device,
) -> Result<QTensor> {
    // Candle reads blocks in place and wants them where their type may lie.
    let words: Vec<u64>;
    let aligned = if bytes.as_ptr().addr().is_multiple_of(align_of::<u64>()) {
        bytes
    } else {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let (chunks, _) = bytes.as_chunks();
        words = chunks
            .iter()
            .map(|bytes| u64::from_ne_bytes(*bytes))
            .collect();
        // SAFETY: eight bytes of each word are as many bytes.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
    };
    let n_bytes = shape.0 * shape.1 / format.block_size() * format.type_size();
    let storage = QStorage::from_data(Cow::Borrowed(&aligned[..n_bytes]), device, format)?;
    QTensor::new(storage, shape)
}

/// 4-bit weights `[n_out, n_in]` with a scale and a zero point for each run of inputs:
/// weight = (quant - zero) * scale.
pub(crate) struct Groups<'a> {
    pub(crate) n_in: usize,
    pub(crate) n_out: usize,
    /// Inputs of a run, a multiple of 32 unless one run holds them all.
    pub(crate) group_size: usize,
    /// Writes the quants, within 0..=15, of the 32 inputs of an output's block. What is
    /// beyond the last input does not matter.
    pub(crate) quants: &'a (dyn Fn(usize, usize, &mut [u8; BLOCK]) + Sync),
    /// The bits of the scale, f16, and the zero point, at most 16, of an output's run.
    pub(crate) scale: &'a (dyn Fn(usize, usize) -> (u16, u8) + Sync),
    /// The place in a row of each input, where that is another.
    pub(crate) order: Option<Vec<u32>>,
}

impl Groups<'_> {
    /// The scale and zero point of an output's block.
    fn of_block(&self, output: usize, block: usize) -> (u16, u8) {
        (self.scale)(output, block * BLOCK / self.group_size)
    }

    fn quants(&self, output: usize, block: usize) -> [u8; BLOCK] {
        let mut quants = [0; BLOCK];
        (self.quants)(output, block, &mut quants);
        quants
    }

    fn check(&self) -> Result<()> {
        let Self {
            n_in, group_size, ..
        } = *self;
        let fits = group_size.is_multiple_of(BLOCK) || group_size >= n_in;
        if n_in == 0 || self.n_out == 0 || group_size == 0 || !fits {
            bail!("groups of {group_size} inputs do not fit blocks of {BLOCK}");
        }
        let order = self.order.as_ref();
        if order.is_some_and(|order| order.len() != n_in) {
            bail!("the order of inputs is not of {n_in}");
        }
        Ok(())
    }

    /// The same weights as ggml's `q8_0`, which holds them all without loss.
    fn as_q8_0(&self) -> Vec<u8> {
        let n_bytes = GgmlDType::Q8_0.type_size();
        let n_blocks = self.n_in.div_ceil(BLOCK);
        let mut bytes = vec![0; self.n_out * n_blocks * n_bytes];
        let rows = bytes.par_chunks_mut(n_blocks * n_bytes).enumerate();
        rows.for_each(|(output, row)| {
            for (block, bytes) in row.chunks_exact_mut(n_bytes).enumerate() {
                let (scale, zero) = self.of_block(output, block);
                bytes[..2].copy_from_slice(&scale.to_le_bytes());
                for (byte, quant) in bytes[2..].iter_mut().zip(self.quants(output, block)) {
                    *byte = quant.wrapping_sub(zero);
                }
            }
        });
        bytes
    }
}

impl QuantizedMatrix {
    /// Takes over weights of ggml's. On a processor with our kernel `q8_0`, `q6_k` and those of
    /// five and four bits go there; candle multiplies `q3_k` and `q2_k`, and everything
    /// elsewhere, which is slower but as exact.
    ///
    /// # Errors
    /// Floats, or no room on the device.
    pub(crate) fn of_blocks(blocks: Blocks<'_>, device: &Device) -> Result<Self> {
        match Level::detect().filter(|_| device.is_cpu()) {
            Some(level) => match Self::packed_blocks(blocks, level) {
                Some(form) => Ok(Self::of_form(form, blocks.n_in, blocks.n_out)),
                None => Self::blocks_by_candle(blocks, device),
            },
            None => Self::blocks_by_candle(blocks, device),
        }
    }

    /// The form for our kernel, if it multiplies the format.
    pub(super) fn packed_blocks(blocks: Blocks<'_>, level: Level) -> Option<Form> {
        let Blocks {
            format,
            bytes,
            n_in,
            n_out,
        } = blocks;
        let shape = [n_out, n_in];
        Some(match format {
            GgmlDType::Q8_0 => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Tile8, column, _, block: &[u8; 34]| {
                    let (scale, quants) = half_and::<32>(block);
                    tile.put_quants(column, scale, quants);
                },
            )),
            GgmlDType::Q5_1 => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Five<Flat4<u16>, FLAT_BLOCKS>, column, place, block: &[u8; 24]| {
                    let (scale, rest) = half_and::<22>(block);
                    let min = u16::from_le_bytes([rest[0], rest[1]]) ^ SIGN;
                    let quants = nibbles(&rest[6..]);
                    tile.fours.put(column, place, &quants, scale, min);
                    let bits = u32::from_le_bytes([rest[2], rest[3], rest[4], rest[5]]);
                    tile.put_fifths(column, place, bits);
                },
            )),
            GgmlDType::Q5_0 => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Five<Flat4<u8>, FLAT_BLOCKS>, column, place, block: &[u8; 22]| {
                    let (scale, rest) = half_and::<20>(block);
                    let quants = nibbles(&rest[4..]);
                    tile.fours.put(column, place, &quants, scale, 16);
                    let bits = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
                    tile.put_fifths(column, place, bits);
                },
            )),
            GgmlDType::Q5K => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Five<Tile4, N_SUBBLOCKS>, column, _, block| tile.put(column, block),
            )),
            GgmlDType::Q4_0 => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Flat4<u8>, column, place, block: &[u8; 18]| {
                    let (scale, quants) = half_and::<16>(block);
                    tile.put(column, place, &nibbles(quants), scale, 8);
                },
            )),
            GgmlDType::Q4_1 => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Flat4<u16>, column, place, block: &[u8; 20]| {
                    let (scale, rest) = half_and::<18>(block);
                    // Ours is taken away, theirs added.
                    let min = u16::from_le_bytes([rest[0], rest[1]]) ^ SIGN;
                    tile.put(column, place, &nibbles(&rest[2..]), scale, min);
                },
            )),
            GgmlDType::Q4K => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Tile4, column, _, block| tile.put(column, block),
            )),
            GgmlDType::Q6K => Form::of(Packed::of_blocks(
                level,
                bytes,
                shape,
                |tile: &mut Tile6, column, _, block| tile.put(column, block),
            )),
            _ => return None,
        })
    }

    pub(super) fn blocks_by_candle(blocks: Blocks<'_>, device: &Device) -> Result<Self> {
        if matches!(
            blocks.format,
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16
        ) {
            bail!("weights of {:?} are not quantized", blocks.format);
        }
        let shape = (blocks.n_out, blocks.n_in);
        let weights = tensor(blocks.format, blocks.bytes, shape, device)?;
        let form = Form::Candle {
            matrix: QMatMul::from_qtensor(weights)?,
            width: blocks.n_in,
        };
        Ok(Self::of_form(form, blocks.n_in, blocks.n_out))
    }

    /// Takes over 4-bit weights in groups. Where our kernel does not serve they become
    /// candle's `q8_0`, of twice the size.
    ///
    /// # Errors
    /// Groups that do not fit blocks of 32 inputs, or no room on the device.
    pub(crate) fn of_groups(groups: Groups<'_>, device: &Device) -> Result<Self> {
        groups.check()?;
        let level = Level::detect().filter(|_| device.is_cpu());
        let mut matrix = match level {
            Some(level) => {
                let form = Form::of(Self::packed_groups(&groups, level));
                Self::of_form(form, groups.n_in, groups.n_out)
            }
            None => Self::groups_by_candle(&groups, device)?,
        };
        if let Some(order) = groups.order {
            matrix.order = Some(Tensor::from_vec(order, groups.n_in, device)?);
        }
        Ok(matrix)
    }

    pub(super) fn packed_groups(groups: &Groups<'_>, level: Level) -> Packed<Flat4<u8>> {
        let shape = [groups.n_out, groups.n_in];
        Packed::filled(level, shape, |tiles: &mut [Flat4<u8>], column, output| {
            for block in 0..groups.n_in.div_ceil(BLOCK) {
                let (scale, zero) = groups.of_block(output, block);
                let quants = groups.quants(output, block);
                let tile = &mut tiles[block / FLAT_BLOCKS];
                let place = block % FLAT_BLOCKS;
                tile.put(column, place, &quants, scale, zero);
            }
        })
    }

    pub(super) fn groups_by_candle(groups: &Groups<'_>, device: &Device) -> Result<Self> {
        let (n_in, n_out) = (groups.n_in, groups.n_out);
        let width = n_in.next_multiple_of(BLOCK);
        let bytes = groups.as_q8_0();
        let weights = tensor(GgmlDType::Q8_0, &bytes, (n_out, width), device)?;
        let matrix = QMatMul::from_qtensor(weights)?;
        Ok(Self::of_form(Form::Candle { matrix, width }, n_in, n_out))
    }
}

/// A block's scale, bits of f16, and the `N` bytes after it.
fn half_and<const N: usize>(block: &[u8]) -> (u16, &[u8; N]) {
    let (half, rest) = block
        .split_first_chunk()
        .expect("a block starts with a scale");
    let rest = rest.first_chunk().expect("the block is as long");
    (u16::from_le_bytes(*half), rest)
}

/// The 32 numbers of 16 bytes: their low halves, then their high ones.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    let mut numbers = [0; BLOCK];
    let (low, high) = numbers.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    numbers
}

#[cfg(test)]
pub(crate) mod tests;

//! Stored formats at every level against plain loops that follow their descriptions.

use candle_core::{DType, IndexOp};
use half::f16;

use super::*;
use crate::quantized::kernel::Level;
use crate::quantized::tests::{levels, product, random, relative_error, rounded};

/// Formats that our kernel multiplies.
const OURS: [GgmlDType; 8] = [
    GgmlDType::Q8_0,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q5K,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q4K,
    GgmlDType::Q6K,
];

/// Formats that candle multiplies.
const CANDLES: [GgmlDType; 2] = [GgmlDType::Q2K, GgmlDType::Q3K];

/// Numbers that look random, the same each time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u32 {
        // Knuth's generator; its high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }
}

/// Blocks of random bits, with scales of a usual size.
pub(crate) fn blocks(format: GgmlDType, n_blocks: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let halves: &[usize] = match format {
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => &[0],
    };
    let mut bytes = Vec::new();
    for _ in 0..n_blocks {
        let mut block: Vec<u8> = (0..format.type_size())
            .map(|_| numbers.next() as u8)
            .collect();
        for place in halves {
            let scale = (numbers.below(2001) as f32 - 1000.0) / 40_000.0;
            block[*place..place + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// One block as ggml's own description has it.
pub(crate) fn plainly(format: GgmlDType, block: &[u8]) -> Vec<f64> {
    let half =
        |place: usize| f64::from(f16::from_le_bytes([block[place], block[place + 1]]).to_f32());
    let nibble = |byte: u8, high: bool| f64::from(if high { byte >> 4 } else { byte & 15 });
    match format {
        GgmlDType::Q8_0 => block[2..]
            .iter()
            .map(|byte| f64::from(*byte as i8) * half(0))
            .collect(),
        GgmlDType::Q4_0 => (0..32)
            .map(|i| (nibble(block[2 + i % 16], i >= 16) - 8.0) * half(0))
            .collect(),
        GgmlDType::Q4_1 => (0..32)
            .map(|i| nibble(block[4 + i % 16], i >= 16) * half(0) + half(2))
            .collect(),
        GgmlDType::Q5_0 => (0..32)
            .map(|i| {
                let fifth = block[2 + i / 8] >> (i % 8) & 1;
                (nibble(block[6 + i % 16], i >= 16) + 16.0 * f64::from(fifth) - 16.0) * half(0)
            })
            .collect(),
        GgmlDType::Q5_1 => (0..32)
            .map(|i| {
                let fifth = block[4 + i / 8] >> (i % 8) & 1;
                let quant = nibble(block[8 + i % 16], i >= 16) + 16.0 * f64::from(fifth);
                quant * half(0) + half(2)
            })
            .collect(),
        GgmlDType::Q4K | GgmlDType::Q5K => (0..256)
            .map(|i| {
                let (sub, packed) = (i / 32, &block[4..16]);
                let (scale, min) = if sub < 4 {
                    (packed[sub] & 63, packed[sub + 4] & 63)
                } else {
                    (
                        packed[sub + 4] & 15 | packed[sub - 4] >> 6 << 4,
                        packed[sub + 4] >> 4 | packed[sub] >> 6 << 4,
                    )
                };
                let (start, fifth) = if format == GgmlDType::Q5K {
                    (48, block[16 + i % 32] >> sub & 1)
                } else {
                    (16, 0)
                };
                let quant = nibble(block[start + sub / 2 * 32 + i % 32], sub % 2 == 1)
                    + 16.0 * f64::from(fifth);
                half(0) * f64::from(scale) * quant - half(2) * f64::from(min)
            })
            .collect(),
        GgmlDType::Q6K => (0..256)
            .map(|i| {
                let (part, run, place) = (i / 128, i / 32 % 4, i % 32);
                let low = nibble(block[64 * part + 32 * (run % 2) + place], run >= 2);
                let high = block[128 + 32 * part + place] >> (2 * run) & 3;
                let scale = f64::from(block[192 + i / 16] as i8);
                half(208) * scale * (low + 16.0 * f64::from(high) - 32.0)
            })
            .collect(),
        other => panic!("{other:?} is not told plainly"),
    }
}

fn rows_of(tensor: &Tensor) -> Vec<Vec<f64>> {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// A matrix of each kind that a level multiplies, or candle, and the weights it stands for.
fn matrices(level: Option<Level>) -> Vec<(String, QuantizedMatrix, Vec<Vec<f64>>)> {
    let (n_out, n_in) = (70, 768);
    let mut all = Vec::new();
    for format in OURS {
        let width = format.block_size();
        let bytes = blocks(format, n_out * n_in / width, 7);
        let stored = Blocks::new(format, &bytes, [n_out, n_in]).unwrap();
        let plain: Vec<f64> = bytes
            .chunks(format.type_size())
            .flat_map(|block| plainly(format, block))
            .collect();
        let plain = plain.chunks(n_in).map(<[f64]>::to_vec).collect();
        let matrix = match level {
            Some(level) => {
                let form = QuantizedMatrix::packed_blocks(stored, level).unwrap();
                QuantizedMatrix::of_form(form, n_in, n_out)
            }
            None => QuantizedMatrix::blocks_by_candle(stored, &Device::Cpu).unwrap(),
        };
        all.push((format!("{format:?} {level:?}"), matrix, plain));
    }
    for (n_in, group_size) in [(256, 32), (192, 64), (300, 128), (77, 77), (40, 4096)] {
        let quants = |output: usize, block: usize, quants: &mut [u8; BLOCK]| {
            for (input, quant) in quants.iter_mut().enumerate() {
                *quant = ((output * 7 + (block * BLOCK + input) * 5) % 16) as u8;
            }
        };
        // Zero points reach 16: a stored 15 stands for it in GPTQ's files.
        let scale = |output: usize, group: usize| {
            let scale = f16::from_f32(0.01 + 0.003 * ((output + group) % 9) as f32);
            (scale.to_bits(), ((output + 3 * group) % 17) as u8)
        };
        let groups = Groups {
            n_in,
            n_out,
            group_size,
            quants: &quants,
            scale: &scale,
            order: None,
        };
        let weight = |output: usize, input: usize| {
            let mut block = [0; BLOCK];
            quants(output, input / BLOCK, &mut block);
            let (scale, zero) = scale(output, input / group_size);
            let quant = f64::from(block[input % BLOCK]) - f64::from(zero);
            quant * f64::from(f16::from_bits(scale).to_f32())
        };
        let plain: Vec<Vec<f64>> = (0..n_out)
            .map(|output| (0..n_in).map(|input| weight(output, input)).collect())
            .collect();
        let matrix = match level {
            Some(level) => {
                let form = Form::of(QuantizedMatrix::packed_groups(&groups, level));
                QuantizedMatrix::of_form(form, n_in, n_out)
            }
            None => QuantizedMatrix::groups_by_candle(&groups, &Device::Cpu).unwrap(),
        };
        all.push((format!("groups of {group_size} {level:?}"), matrix, plain));
    }
    all
}

#[test]
fn every_level_multiplies_rounded_rows_with_the_weights_as_stored() {
    for level in levels() {
        for (what, matrix, plain) in matrices(Some(level)) {
            let x = random(13, matrix.n_in());
            let bias = random(1, 70).squeeze(0).unwrap();
            let exact = product(&rounded(&x), &plain, &bias.to_vec1().unwrap());
            let ours = matrix.forward(&x, Some(&bias)).unwrap();
            let error = relative_error(&ours, &exact);
            assert!(error < 1e-5, "{what}: {error:e}");
        }
    }
}

#[test]
fn candle_multiplies_the_same_weights() {
    for (what, matrix, plain) in matrices(None) {
        let x = random(5, matrix.n_in());
        let exact = product(&rows_of(&x), &plain, &[0.0; 70]);
        let error = relative_error(&matrix.forward(&x, None).unwrap(), &exact);
        assert!(error < 0.02, "{what}: {error:e}");
    }
}

#[test]
fn a_row_alone_gives_the_same_bits_and_spoils_no_other() {
    for level in levels() {
        for (what, matrix, _) in matrices(Some(level)) {
            let n_in = matrix.n_in();
            let mut x: Vec<Vec<f32>> = random(9, n_in).to_vec2().unwrap();
            x[4][n_in / 2] = f32::NAN;
            let x = Tensor::new(x, &Device::Cpu).unwrap();
            let together = matrix.forward(&x, None).unwrap();
            for row in 0..9 {
                let same: Vec<f32> = together.i(row).unwrap().to_vec1().unwrap();
                if row == 4 {
                    assert!(same.iter().all(|value| value.is_nan()), "{what}");
                    continue;
                }
                let alone = matrix.forward(&x.narrow(0, row, 1).unwrap(), None).unwrap();
                let alone: Vec<f32> = alone.i(0).unwrap().to_vec1().unwrap();
                assert_eq!(alone, same, "{what} row {row}");
            }
        }
    }
}

#[test]
fn inputs_may_be_in_another_order() {
    let order: Vec<u32> = (0..64).map(|input| (input * 37 + 11) % 64).collect();
    let quants = |output: usize, block: usize, quants: &mut [u8; BLOCK]| {
        for (input, quant) in quants.iter_mut().enumerate() {
            *quant = ((output + block + input * 3) % 16) as u8;
        }
    };
    let scale = |_: usize, group: usize| (f16::from_f32(0.1).to_bits(), 7 + group as u8);
    let groups = |order| Groups {
        n_in: 64,
        n_out: 5,
        group_size: 32,
        quants: &quants,
        scale: &scale,
        order,
    };
    let mut turned = vec![vec![0.0; 64]; 5];
    for (output, row) in turned.iter_mut().enumerate() {
        for (input, place) in order.iter().enumerate() {
            let mut block = [0; BLOCK];
            quants(output, input / BLOCK, &mut block);
            let zero = 7.0 + (input / BLOCK) as f64;
            let scale = f64::from(f16::from_f32(0.1).to_f32());
            row[*place as usize] = (f64::from(block[input % BLOCK]) - zero) * scale;
        }
    }
    let x = random(3, 64);
    let exact = product(&rows_of(&x), &turned, &[0.0; 5]);
    let matrix = QuantizedMatrix::of_groups(groups(Some(order)), &Device::Cpu).unwrap();
    assert!(relative_error(&matrix.forward(&x, None).unwrap(), &exact) < 0.02);
    assert!(QuantizedMatrix::of_groups(groups(Some(vec![0; 3])), &Device::Cpu).is_err());
}

#[test]
fn dequantizing_follows_the_descriptions() {
    for format in OURS {
        let bytes = blocks(format, 6, 3);
        let n_in = 2 * format.block_size();
        // Not where a word may lie.
        let odd: Vec<u8> = [vec![0], bytes.clone()].concat();
        for bytes in [bytes.as_slice(), &odd[1..]] {
            let ours = Blocks::new(format, bytes, [3, n_in]).unwrap();
            let ours = ours.dequantize().unwrap().flatten_all().unwrap();
            let ours: Vec<f32> = ours.to_vec1().unwrap();
            let plain = bytes
                .chunks(format.type_size())
                .flat_map(|block| plainly(format, block));
            for (ours, plain) in ours.into_iter().zip(plain) {
                let error = (f64::from(ours) - plain).abs();
                assert!(
                    error <= 2e-7 * plain.abs() + 1e-7,
                    "{format:?}: {ours} {plain}"
                );
            }
        }
    }
}

#[test]
fn what_no_kernel_multiplies_goes_by_candle() {
    for format in CANDLES {
        let bytes = blocks(format, 8 * 512 / format.block_size(), 5);
        let stored = Blocks::new(format, &bytes, [8, 512]).unwrap();
        let x = random(3, 512);
        let exact = product(
            &rows_of(&x),
            &rows_of(&stored.dequantize().unwrap()),
            &[0.0; 8],
        );
        let matrix = QuantizedMatrix::of_blocks(stored, &Device::Cpu).unwrap();
        let error = relative_error(&matrix.forward(&x, None).unwrap(), &exact);
        assert!(error < 0.02, "{format:?}: {error:e}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let bytes = vec![0; 34 * 4];
    assert!(Blocks::new(GgmlDType::Q8_0, &bytes, [2, 64]).is_ok());
    for shape in [
        [2, 63],
        [4, 64],
        [0, 64],
        [2, 0],
        [usize::MAX, 64],
        [1 << 40, 1 << 40],
    ] {
        assert!(
            Blocks::new(GgmlDType::Q8_0, &bytes, shape).is_err(),
            "{shape:?}"
        );
    }
    let floats = vec![0; 64];
    let floats = Blocks::new(GgmlDType::F32, &floats, [4, 4]).unwrap();
    assert!(QuantizedMatrix::of_blocks(floats, &Device::Cpu).is_err());
}

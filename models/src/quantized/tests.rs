//! The kernel at every level against plain loops, and what it does with odd input.

use candle_core::IndexOp;

use super::*;

/// Shapes that fill neither panels, blocks nor superblocks, and some that do.
const SHAPES: [(usize, usize); 6] = [(1, 1), (31, 5), (100, 70), (256, 32), (300, 64), (1408, 40)];

const FORMATS: [Quantization; 3] = [Quantization::Q8_0, Quantization::Q6K, Quantization::Q4K];

pub(super) fn random(n: usize, width: usize) -> Tensor {
    Tensor::randn(0_f32, 1.0, (n, width), &Device::Cpu).unwrap()
}

pub(super) fn levels() -> Vec<Level> {
    #[cfg(target_arch = "x86_64")]
    let levels = [Level::Avx512, Level::AvxVnni, Level::Avx2];
    #[cfg(not(target_arch = "x86_64"))]
    let levels: [Level; 0] = [];
    levels
        .into_iter()
        .filter(|level| level.is_there())
        .collect()
}

/// Rows as they become in blocks of 8-bit numbers.
pub(super) fn rounded(x: &Tensor) -> Vec<Vec<f64>> {
    let mut rows: Vec<Vec<f32>> = x.to_vec2().unwrap();
    for row in &mut rows {
        for block in row.chunks_mut(32) {
            let largest = block.iter().fold(0_f32, |largest, x| largest.max(x.abs()));
            let scale = f32::from_bits((largest * (1.0 / 127.0)).to_bits() & 0xffff_ff00);
            for x in block {
                *x = (*x * (1.0 / scale)).round_ties_even() * scale;
            }
        }
    }
    let widen = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
    rows.into_iter().map(widen).collect()
}

/// Weights as they become, by way of candle.
fn dequantized(format: Quantization, weights: &Tensor) -> Vec<Vec<f64>> {
    let (_, n_in) = weights.dims2().unwrap();
    let width = n_in.next_multiple_of(format.ggml().block_size());
    let padded = weights.pad_with_zeros(1, 0, width - n_in).unwrap();
    let weights = QTensor::quantize(&padded, format.ggml()).unwrap();
    let weights = weights.dequantize(&Device::Cpu).unwrap();
    let weights = weights.narrow(1, 0, n_in).unwrap();
    let rows: Vec<Vec<f32>> = weights.to_vec2().unwrap();
    let widen = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
    rows.into_iter().map(widen).collect()
}

pub(super) fn relative_error(ours: &Tensor, exact: &[Vec<f64>]) -> f64 {
    let ours: Vec<Vec<f32>> = ours.to_vec2().unwrap();
    let (mut difference, mut size) = (0.0, 0.0);
    for (ours, exact) in ours.iter().flatten().zip(exact.iter().flatten()) {
        difference += (f64::from(*ours) - exact).powi(2);
        size += exact.powi(2);
    }
    (difference / size).sqrt()
}

pub(super) fn product(x: &[Vec<f64>], weights: &[Vec<f64>], bias: &[f32]) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let row = |x: &Vec<f64>| {
        let columns = weights.iter().zip(bias);
        columns
            .map(|(w, bias)| dot(x, w) + f64::from(*bias))
            .collect()
    };
    x.iter().map(row).collect()
}

#[test]
fn every_level_multiplies_rounded_rows_with_rounded_weights() {
    for (n_in, n_out) in SHAPES {
        let (x, weights) = (random(13, n_in), random(n_out, n_in));
        let bias = random(1, n_out).squeeze(0).unwrap();
        let biases: Vec<f32> = bias.to_vec1().unwrap();
        for format in FORMATS {
            let exact = product(&rounded(&x), &dequantized(format, &weights), &biases);
            for level in levels() {
                let matrix = QuantizedMatrix::packed(format, &weights, level).unwrap();
                let ours = matrix.forward(&x, Some(&bias)).unwrap();
                let error = relative_error(&ours, &exact);
                assert!(
                    error < 1e-5,
                    "{format} {level:?} [{n_out}, {n_in}]: {error:e}"
                );
            }
        }
    }
}

/// Random weights meet a half once in some thousands: here each block is made of them.
#[test]
fn halves_of_weights_are_rounded_as_candle_rounds_them() {
    let value = |i: usize| match i % 32 {
        0 => 127.0,
        i => (i as f32 - 16.0) + 0.5,
    };
    let weights = Tensor::from_iter((0..64 * 32).map(value), &Device::Cpu).unwrap();
    let weights = weights.reshape((32, 64)).unwrap();
    let x = random(13, 64);
    let exact = dequantized(Quantization::Q8_0, &weights);
    let exact = product(&rounded(&x), &exact, &[0.0; 32]);
    for level in levels() {
        let matrix = QuantizedMatrix::packed(Quantization::Q8_0, &weights, level).unwrap();
        let error = relative_error(&matrix.forward(&x, None).unwrap(), &exact);
        assert!(error < 1e-5, "{level:?}: {error:e}");
    }
}

#[test]
fn products_are_close_to_those_of_f32() {
    let (x, weights) = (random(20, 1408), random(96, 1408));
    let none = vec![0.0; 96];
    let widen = |tensor: &Tensor| -> Vec<Vec<f64>> {
        tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
    };
    let exact = product(&widen(&x), &widen(&weights), &none);
    for (format, bound) in [
        (Quantization::Q8_0, 0.01),
        (Quantization::Q6K, 0.03),
        (Quantization::Q4K, 0.1),
    ] {
        let matrices = [
            QuantizedMatrix::new(format, &weights, &Device::Cpu).unwrap(),
            QuantizedMatrix::by_candle(format, &weights, &Device::Cpu).unwrap(),
        ];
        for matrix in matrices {
            let error = relative_error(&matrix.forward(&x, None).unwrap(), &exact);
            assert!(error < bound, "{format}: {error}");
        }
    }
}

#[test]
fn a_row_in_a_batch_equals_that_row_alone_to_the_bit() {
    let weights = random(70, 200);
    let x = random(17, 200);
    for format in FORMATS {
        for level in levels() {
            let matrix = QuantizedMatrix::packed(format, &weights, level).unwrap();
            let together = matrix.forward(&x, None).unwrap();
            for row in 0..17 {
                let alone = x.narrow(0, row, 1).unwrap();
                let alone = matrix.forward(&alone, None).unwrap();
                let alone: Vec<f32> = alone.i(0).unwrap().to_vec1().unwrap();
                let same: Vec<f32> = together.i(row).unwrap().to_vec1().unwrap();
                assert_eq!(alone, same, "{format} {level:?} row {row}");
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_spoils_its_row_and_no_other() {
    let weights = random(40, 96);
    for spoiler in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows: Vec<Vec<f32>> = random(9, 96).to_vec2().unwrap();
        rows[4][50] = spoiler;
        let x = Tensor::new(rows, &Device::Cpu).unwrap();
        for format in FORMATS {
            let mut matrices =
                vec![QuantizedMatrix::by_candle(format, &weights, &Device::Cpu).unwrap()];
            for level in levels() {
                matrices.push(QuantizedMatrix::packed(format, &weights, level).unwrap());
            }
            for matrix in matrices {
                let out: Vec<Vec<f32>> = matrix.forward(&x, None).unwrap().to_vec2().unwrap();
                for (row, values) in out.iter().enumerate() {
                    let n_finite = values.iter().filter(|value| value.is_finite()).count();
                    assert_eq!(
                        n_finite,
                        if row == 4 { 0 } else { 40 },
                        "{format} row {row}"
                    );
                }
            }
        }
    }
}

#[test]
fn zeros_nothing_and_the_ends_of_the_range_are_fine() {
    for format in FORMATS {
        let matrix = QuantizedMatrix::new(format, &random(33, 40), &Device::Cpu).unwrap();
        let zeros = Tensor::zeros((3, 40), DType::F32, &Device::Cpu).unwrap();
        let out = matrix.forward(&zeros, None).unwrap().abs().unwrap();
        assert!(out.max_all().unwrap().to_scalar::<f32>().unwrap() <= 0.0);
        let nothing = zeros.narrow(0, 0, 0).unwrap();
        assert_eq!(matrix.forward(&nothing, None).unwrap().dims(), [0, 33]);
        for size in [1e-44_f64, 1e-38, 1e-30, 1e30] {
            let x = (random(3, 40) * size).unwrap();
            let out: Vec<Vec<f32>> = matrix.forward(&x, None).unwrap().to_vec2().unwrap();
            let largest = out.iter().flatten().fold(0_f32, |a, b| a.max(b.abs()));
            assert!(
                f64::from(largest) < 100.0 * size + 1e-35,
                "{format} {size:e}: {largest:e}"
            );
        }
    }
}

#[test]
fn rows_of_another_type_give_that_type() {
    let matrix = QuantizedMatrix::new(Quantization::Q8_0, &random(33, 40), &Device::Cpu).unwrap();
    let x = random(3, 40);
    let bias = random(1, 33).squeeze(0).unwrap();
    let exact: Vec<Vec<f64>> = matrix
        .forward(&x, Some(&bias))
        .and_then(|out| out.to_dtype(DType::F64)?.to_vec2())
        .unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let bias = bias.to_dtype(dtype).unwrap();
        let out = matrix
            .forward(&x.to_dtype(dtype).unwrap(), Some(&bias))
            .unwrap();
        assert_eq!(out.dtype(), dtype);
        let out = out.to_dtype(DType::F32).unwrap();
        assert!(relative_error(&out, &exact) < 0.01);
    }
}

#[test]
fn memory_is_that_of_the_format() {
    for (format, n_bits) in [
        (Quantization::Q8_0, 8.5),
        (Quantization::Q6K, 6.5625),
        (Quantization::Q4K, 4.625),
    ] {
        let matrix = QuantizedMatrix::new(format, &random(64, 512), &Device::Cpu).unwrap();
        assert!(matrix.n_bytes() as f64 <= 64.0 * 512.0 * n_bits / 8.0);
        let counted = format.n_bytes(512, 64);
        assert!(counted <= matrix.n_bytes() && counted * 100 > matrix.n_bytes() * 97);
    }
}

#[test]
fn names_parse_and_print_back() {
    for format in FORMATS {
        assert_eq!(format.to_string().parse::<Quantization>().unwrap(), format);
    }
    assert_eq!(
        "q5".parse::<Quantization>().unwrap_err().to_string(),
        "unknown quantization `q5`, supported: `q8_0`, `q6_k`, `q4_k`"
    );
}

#[test]
fn weights_without_values_are_an_error() {
    let empty = Tensor::zeros((4, 0), DType::F32, &Device::Cpu).unwrap();
    assert!(QuantizedMatrix::new(Quantization::Q8_0, &empty, &Device::Cpu).is_err());
}

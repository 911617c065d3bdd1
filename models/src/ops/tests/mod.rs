//! Every step beside a model of it in plain f64 loops.

use candle_core::{DType, Device, Tensor};

mod attention;

mod decode;

mod rows;

/// Values from -1 to 1, the same for the same seed.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mix = |index: u32| {
        let mut z = (seed.wrapping_mul(0x85EB_CA6B) ^ index).wrapping_mul(0x9E37_79B1);
        z = (z ^ (z >> 15)).wrapping_mul(0x2C1B_3C6D);
        z = (z ^ (z >> 12)).wrapping_mul(0x297A_2D39);
        ((z ^ (z >> 15)) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n as u32).map(mix).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    let x = x.to_dtype(DType::F32).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Each difference in relation to the largest value of its row.
fn assert_close(ours: &[f32], exact: &[f64], width: usize, tolerance: f64) {
    assert_eq!(ours.len(), exact.len());
    for (row, (ours, exact)) in ours.chunks(width).zip(exact.chunks(width)).enumerate() {
        let largest = exact.iter().fold(0.0, |sum: f64, x| sum.max(x.abs()));
        for (column, (ours, exact)) in ours.iter().zip(exact).enumerate() {
            let error = (f64::from(*ours) - exact).abs();
            assert!(
                error <= tolerance * largest,
                "row {row}, column {column}: {ours} for {exact}"
            );
        }
    }
}

/// Means of values from -1 to 1, so each difference in relation to 1.
fn assert_alike(ours: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), exact.len());
    for (index, (ours, exact)) in ours.iter().zip(exact).enumerate() {
        let error = (f64::from(*ours) - exact).abs();
        assert!(error <= tolerance, "value {index}: {ours} for {exact}");
    }
}

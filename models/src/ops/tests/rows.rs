//! The steps over rows beside models of them in plain f64 loops.

use candle_core::{DType, Tensor};

use super::super::{self as ops, Activation, plain};
use super::{assert_close, flat, noise, tensor};

/// Rows, width and values of a step over rows.
const ROWS: [(usize, usize); 4] = [(1, 1), (3, 20), (50, 37), (17, 1_280)];

fn exact_norm(x: &[f32], width: usize, centre: bool, eps: f64) -> Vec<f64> {
    let rows = x.chunks(width).flat_map(|row| {
        let mean = if centre {
            row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64
        } else {
            0.0
        };
        let squares = row.iter().map(|x| (f64::from(*x) - mean).powi(2));
        let root = (squares.sum::<f64>() / width as f64 + eps).sqrt();
        row.iter().map(move |x| (f64::from(*x) - mean) / root)
    });
    rows.collect()
}

#[test]
fn norms_are_exact_to_rounding() {
    for (n, width) in ROWS {
        let (x, weight, bias) = (noise(1, n * width), noise(2, width), noise(3, width));
        let x: Vec<f32> = x.iter().map(|x| 4.0 * x + 1.0).collect();
        let (xs, ws, bs) = (
            tensor(&x, &[n, width]),
            tensor(&weight, &[width]),
            tensor(&bias, &[width]),
        );
        let scaled = |normal: Vec<f64>, bias: &[f32]| {
            let columns = weight.iter().zip(bias).cycle();
            let values = normal.into_iter().zip(columns);
            let values = values.map(|(x, (w, b))| x * f64::from(*w) + f64::from(*b));
            values.collect::<Vec<f64>>()
        };
        let exact = scaled(exact_norm(&x, width, false, 1e-6), &vec![0.0; width]);
        for ours in [
            ops::rms_norm(&xs, &ws, 1e-6).unwrap(),
            plain::rms_norm(&xs, &ws, 1e-6).unwrap(),
        ] {
            assert_close(&flat(&ours), &exact, width, 1e-6);
        }
        let exact = scaled(exact_norm(&x, width, true, 1e-6), &bias);
        for ours in [
            ops::layer_norm(&xs, &ws, &bs, 1e-6).unwrap(),
            plain::layer_norm(&xs, &ws, &bs, 1e-6).unwrap(),
        ] {
            assert_close(&flat(&ours), &exact, width, 1e-6);
        }
    }
}

#[test]
fn rope_turns_the_halves_of_each_head() {
    for (n, n_heads, head_dim) in [(1, 1, 2), (5, 3, 20), (40, 4, 80), (9, 2, 128)] {
        let half = head_dim / 2;
        let x = noise(1, n * n_heads * head_dim);
        let angles = noise(2, n * half);
        let cos: Vec<f32> = angles.iter().map(|angle| (3.0 * angle).cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|angle| (3.0 * angle).sin()).collect();
        let mut exact = Vec::new();
        for (index, head) in x.chunks(head_dim).enumerate() {
            let row = index / n_heads * half;
            let angle = |d: usize| (f64::from(cos[row + d]), f64::from(sin[row + d]));
            let pair = |d: usize| (f64::from(head[d]), f64::from(head[d + half]));
            for d in 0..half {
                exact.push(pair(d).0 * angle(d).0 - pair(d).1 * angle(d).1);
            }
            for d in 0..half {
                exact.push(pair(d).1 * angle(d).0 + pair(d).0 * angle(d).1);
            }
        }
        let xs = tensor(&x, &[n, n_heads, head_dim]);
        let (cos, sin) = (tensor(&cos, &[n, half]), tensor(&sin, &[n, half]));
        for ours in [
            ops::rope(&xs, &cos, &sin).unwrap(),
            plain::rope(&xs, &cos, &sin).unwrap(),
        ] {
            assert_eq!(ours.dims(), xs.dims());
            assert_close(&flat(&ours), &exact, head_dim, 1e-6);
        }
    }
}

fn exact_activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => x / 2.0 * (1.0 + candle_core::cpu::erf::erf_f64(x / 2.0_f64.sqrt())),
        Activation::GeluTanh => {
            let cube = x + 0.044_715 * x.powi(3);
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * cube).tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

const ACTIVATIONS: [Activation; 4] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
];

#[test]
fn activations_are_exact_to_rounding() {
    for activation in ACTIVATIONS {
        for (n, width) in ROWS {
            let (x, bias) = (noise(1, n * width), noise(2, width));
            let x: Vec<f32> = x.iter().map(|x| 12.0 * x).collect();
            let (xs, bs) = (tensor(&x, &[n, width]), tensor(&bias, &[width]));
            let exact = |bias: &[f32]| {
                let pairs = x.iter().zip(bias.iter().cycle());
                let sums = pairs.map(|(x, bias)| f64::from(x + bias));
                sums.map(|x| exact_activation(activation, x))
                    .collect::<Vec<f64>>()
            };
            let fresh = || xs.copy().unwrap();
            let (with, without) = (exact(&bias), exact(&vec![0.0; width]));
            for (ours, exact) in [
                (ops::activate(fresh(), Some(&bs), activation), &with),
                (plain::activate(&xs, Some(&bs), activation), &with),
                (ops::activate(fresh(), None, activation), &without),
                (plain::activate(&xs, None, activation), &without),
            ] {
                assert_close(&flat(&ours.unwrap()), exact, width, 1e-6);
            }
        }
    }
}

#[test]
fn gated_activation_is_exact_to_rounding() {
    for (n, width) in ROWS {
        let (gate, up) = (noise(1, n * width), noise(2, n * width));
        let gate: Vec<f32> = gate.iter().map(|x| 12.0 * x).collect();
        let exact: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(gate, up)| exact_activation(Activation::Silu, f64::from(*gate)) * f64::from(*up))
            .collect();
        let (gate, up) = (tensor(&gate, &[n, width]), tensor(&up, &[n, width]));
        for ours in [
            ops::silu_mul(&gate, &up).unwrap(),
            plain::silu_mul(&gate, &up).unwrap(),
        ] {
            assert_close(&flat(&ours), &exact, width, 1e-6);
        }
    }
}

#[test]
fn sums_are_exact() {
    for (n, width) in ROWS {
        let (x, y) = (noise(1, n * width), noise(2, n * width));
        let fresh = || tensor(&x, &[n, width]);
        let sum = ops::add(fresh(), &tensor(&y, &[n, width])).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(flat(&sum), expected);
    }
    let x = tensor(&noise(1, 6), &[2, 3]);
    assert!(ops::add(x.copy().unwrap(), &tensor(&[1.0], &[1])).is_err());
    let short = tensor(&[1.0, 2.0], &[2]);
    assert!(ops::activate(x, Some(&short), Activation::Gelu).is_err());
}

/// Every step over rows of `[n, width]`, for two heads.
fn all_steps(x: &Tensor, first: usize) -> Vec<Vec<f32>> {
    let (n, width) = x.dims2().unwrap();
    let parameter = tensor(&noise(7, width), &[width]);
    let angles = tensor(&noise(8, 400 * width / 4), &[400, width / 4]);
    let angles = angles.narrow(0, first, n).unwrap();
    let fresh = || x.copy().unwrap();
    let heads = x.reshape((n, 2, width / 2)).unwrap();
    let mut results = vec![
        ops::rms_norm(x, &parameter, 1e-6),
        ops::layer_norm(x, &parameter, &parameter, 1e-6),
        ops::rope(&heads, &angles, &angles),
        ops::silu_mul(x, x),
        ops::add(fresh(), x),
    ];
    for activation in ACTIVATIONS {
        results.push(ops::activate(fresh(), None, activation));
        results.push(ops::activate(fresh(), Some(&parameter), activation));
    }
    results
        .into_iter()
        .map(|result| flat(&result.unwrap()))
        .collect()
}

#[test]
fn a_row_alone_is_the_same_to_the_bit() {
    let (n, width) = (400, 44);
    let x = tensor(&noise(1, n * width), &[n, width]);
    let all = all_steps(&x, 0);
    for row in [0, 1, 211, 399] {
        let alone = all_steps(&x.narrow(0, row, 1).unwrap(), row);
        for (all, alone) in all.iter().zip(alone) {
            assert_eq!(all[row * width..(row + 1) * width], alone);
        }
    }
}

#[test]
fn rows_with_gaps_or_transposed_are_the_same_to_the_bit() {
    let (n, width) = (30, 44);
    let x = tensor(&noise(1, n * 3 * width), &[n, 3 * width]);
    let gaps = x.narrow(1, width, width).unwrap();
    let dense = gaps.contiguous().unwrap();
    let transposed = dense.t().unwrap().contiguous().unwrap().t().unwrap();
    assert_eq!(all_steps(&gaps, 0), all_steps(&dense, 0));
    assert_eq!(all_steps(&transposed, 0), all_steps(&dense, 0));
}

#[test]
fn values_that_are_not_numbers_stay_so_in_their_row() {
    let (n, width) = (5, 44);
    let mut values = noise(1, n * width);
    values[2 * width + 41] = f32::NAN;
    for result in all_steps(&tensor(&values, &[n, width]), 0) {
        for (row, values) in result.chunks(width).enumerate() {
            assert_eq!(values.iter().any(|x| x.is_nan()), row == 2);
        }
    }
}

#[test]
fn activations_of_huge_values_are_the_value_or_nothing() {
    let huge = [1e30, 1e38, f32::MAX, 100.0, -100.0, -1e30, -1e38, f32::MIN];
    for activation in ACTIVATIONS {
        let ours = ops::activate(tensor(&huge, &[1, 8]), None, activation).unwrap();
        for (x, ours) in huge.iter().zip(flat(&ours)) {
            let exact = if *x > 0.0 { *x } else { 0.0 };
            assert!(
                (ours - exact).abs() <= 1e-6 * exact,
                "{activation:?} of {x}: {ours}"
            );
        }
    }
}

#[test]
fn short_types_are_exact_to_their_rounding() {
    let (n, width) = (9, 44);
    let x = tensor(&noise(1, n * width), &[n, width]);
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let short = all_steps(&x.to_dtype(dtype).unwrap(), 0);
        for (short, exact) in short.iter().zip(all_steps(&x, 0)) {
            let exact: Vec<f64> = exact.into_iter().map(f64::from).collect();
            assert_close(short, &exact, width, tolerance);
        }
    }
}

#[test]
fn rows_and_parameters_that_do_not_fit_are_refused() {
    let x = tensor(&noise(1, 12), &[3, 4]);
    let short = tensor(&noise(1, 3), &[3]);
    let refusal = ops::rms_norm(&x, &short, 1e-6).unwrap_err().to_string();
    assert!(refusal.contains("a weight of shape [3] does not fit rows of 4"));
    let whole = tensor(&noise(1, 4), &[4]);
    let refusal = ops::layer_norm(&x, &whole, &short, 1e-6).unwrap_err();
    assert!(refusal.to_string().contains("a bias of shape [3]"));
    let heads = x.reshape((3, 2, 2)).unwrap();
    assert!(ops::rope(&heads, &x, &x).is_err());
    assert!(ops::silu_mul(&x, &short).is_err());
    let empty = tensor(&[], &[0, 4]);
    assert_eq!(ops::rms_norm(&empty, &whole, 1e-6).unwrap().dims(), [0, 4]);
    assert_eq!(ops::silu_mul(&empty, &empty).unwrap().dims(), [0, 4]);
    let narrow = || tensor(&[], &[3, 0]);
    let none = tensor(&[], &[0]);
    for changed in [
        ops::add(narrow(), &narrow()),
        ops::activate(narrow(), Some(&none), Activation::Silu),
        ops::layer_norm(&narrow(), &none, &none, 1e-6),
    ] {
        assert_eq!(changed.unwrap().dims(), [3, 0]);
    }
}

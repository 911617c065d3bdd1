use candle_core::{DType, Tensor};

use super::{assert_alike, flat, noise, tensor};
use crate::ops::decode::{Kept, attend_kept};

/// One sequence's keys and values, with rows beyond those that count.
struct Stored {
    keys: Tensor,
    values: Tensor,
    n: usize,
}

impl Stored {
    fn new(seed: u32, kv_heads: usize, n: usize, room: usize, head_dim: usize) -> Self {
        let shape = [kv_heads, room, head_dim];
        let n_values = kv_heads * room * head_dim;
        Self {
            keys: tensor(&noise(seed, n_values), &shape),
            values: tensor(&noise(seed + 1, n_values), &shape),
            n,
        }
    }

    fn kept(&self) -> Kept<'_> {
        Kept {
            keys: &self.keys,
            values: &self.values,
            n: self.n,
        }
    }

    /// The result for one query `[heads, head_dim]`, in f64.
    fn exact(&self, query: &[f32], head_dim: usize, scale: f64) -> Vec<f64> {
        let (kv_heads, room, _) = self.keys.dims3().unwrap();
        let (keys, values) = (flat(&self.keys), flat(&self.values));
        let group = query.len() / head_dim / kv_heads;
        let mut attended = Vec::new();
        for (head, query) in query.chunks(head_dim).enumerate() {
            let start = head / group * room * head_dim;
            let row = |x: &[f32], key: usize| -> Vec<f64> {
                let row = &x[start + key * head_dim..][..head_dim];
                row.iter().map(|x| f64::from(*x)).collect()
            };
            let score = |key| {
                let products = row(&keys, key);
                let products = products.iter().zip(query).map(|(k, q)| k * f64::from(*q));
                (scale * products.sum::<f64>()).exp()
            };
            let scores: Vec<f64> = (0..self.n).map(score).collect();
            let sum: f64 = scores.iter().sum();
            let mut out = vec![0.0; head_dim];
            for (key, score) in scores.iter().enumerate() {
                let values = row(&values, key);
                out.iter_mut()
                    .zip(values)
                    .for_each(|(out, value)| *out += score / sum * value);
            }
            attended.extend(out);
        }
        attended
    }
}

#[test]
fn single_queries_attend_to_all_that_is_kept_however_long() {
    for (kv_heads, group, head_dim) in [(2, 2, 64), (1, 3, 20), (3, 1, 7), (2, 4, 128)] {
        let lengths = [1, 5, 512, 513, 1300];
        let stored: Vec<Stored> = (10..)
            .zip(lengths)
            .map(|(seed, n)| Stored::new(2 * seed, kv_heads, n, n + 3, head_dim))
            .collect();
        let width = kv_heads * group * head_dim;
        let queries = noise(1, lengths.len() * width);
        let shape = [lengths.len(), kv_heads * group, head_dim];
        let q = tensor(&queries, &shape);
        let kept: Vec<Kept<'_>> = stored.iter().map(Stored::kept).collect();
        let ours = attend_kept(&q, &kept, 0.7).unwrap();
        assert_eq!(ours.dims(), [lengths.len(), width]);
        for (row, stored) in stored.iter().enumerate() {
            let query = &queries[row * width..(row + 1) * width];
            let exact = stored.exact(query, head_dim, 0.7);
            let own = ours.narrow(0, row, 1).unwrap();
            assert_alike(&flat(&own), &exact, 2e-6);
            // Alone it is the same to the bit.
            let alone = attend_kept(&q.narrow(0, row, 1).unwrap(), &[stored.kept()], 0.7).unwrap();
            assert_eq!(flat(&alone), flat(&own));
            // In 16 bits it is what they are, in 32.
            let narrow = |x: &Tensor| x.to_dtype(DType::F16).unwrap();
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let (keys, values) = (narrow(&stored.keys), narrow(&stored.values));
            let (wide_keys, wide_values) = (wide(&keys), wide(&values));
            let q = q.narrow(0, row, 1).unwrap();
            let n = stored.n;
            let attend = |keys, values| {
                let kept = Kept { keys, values, n };
                flat(&attend_kept(&q, &[kept], 0.7).unwrap())
            };
            assert_eq!(attend(&keys, &values), attend(&wide_keys, &wide_values));
        }
    }
}

#[test]
fn other_float_types_give_nearly_the_same() {
    let stored = Stored::new(3, 2, 40, 44, 16);
    let q = tensor(&noise(9, 4 * 16), &[1, 4, 16]);
    let exact = stored.exact(&flat(&q), 16, 0.5);
    let narrow = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let (keys, values) = (narrow(&stored.keys), narrow(&stored.values));
    let kept = Kept {
        keys: &keys,
        values: &values,
        n: 40,
    };
    let ours = attend_kept(&narrow(&q), &[kept], 0.5).unwrap();
    assert_eq!(ours.dtype(), DType::BF16);
    assert_alike(&flat(&ours), &exact, 2e-2);
}

#[test]
fn a_value_that_is_no_number_spoils_its_own_sequence_only() {
    let sound = Stored::new(3, 1, 9, 9, 8);
    let mut keys = flat(&sound.keys);
    keys[20] = f32::NAN;
    let spoiled = Stored {
        keys: tensor(&keys, &[1, 9, 8]),
        values: sound.values.clone(),
        n: 9,
    };
    let q = tensor(&noise(1, 16), &[2, 1, 8]);
    let ours = flat(&attend_kept(&q, &[sound.kept(), spoiled.kept()], 1.0).unwrap());
    assert!(ours[..8].iter().all(|value| value.is_finite()));
    assert!(ours[8..].iter().all(|value| value.is_nan()));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let stored = Stored::new(3, 2, 4, 6, 8);
    let q = tensor(&noise(1, 32), &[1, 4, 8]);
    assert!(attend_kept(&q, &[], 1.0).is_err());
    for n in [0, 7] {
        let kept = Kept { n, ..stored.kept() };
        assert!(attend_kept(&q, &[kept], 1.0).is_err());
    }
    let odd = tensor(&noise(1, 24), &[1, 3, 8]);
    assert!(attend_kept(&odd, &[stored.kept()], 1.0).is_err());
}

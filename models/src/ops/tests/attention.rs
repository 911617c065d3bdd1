//! Attention beside a model of it in plain f64 loops.

use candle_core::{DType, Tensor};

use super::super::{self as ops, Mask, Span, plain};
use super::{assert_alike, flat, noise, tensor};

/// Shapes of one call of attention, and its inputs.
struct Case {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    spans: Vec<Span>,
    mask: Mask,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

const SCALE: f32 = 0.1;

impl Case {
    /// `lengths`: the numbers of queries and of keys of each span.
    fn new(heads: (usize, usize), head_dim: usize, mask: Mask, lengths: &[(usize, usize)]) -> Self {
        let (n_heads, n_kv_heads) = heads;
        let (mut n, mut m) = (0, 0);
        let mut spans = Vec::new();
        for (n_queries, n_keys) in lengths {
            spans.push(Span {
                queries: n..n + n_queries,
                keys: m..m + n_keys,
            });
            (n, m) = (n + n_queries, m + n_keys);
        }
        let spread = |values: Vec<f32>| values.iter().map(|x| 3.0 * x).collect();
        Self {
            n_heads,
            n_kv_heads,
            head_dim,
            spans,
            mask,
            q: spread(noise(1, n * n_heads * head_dim)),
            k: noise(2, m * n_kv_heads * head_dim),
            v: noise(3, m * n_kv_heads * head_dim),
        }
    }

    fn tensors(&self) -> [Tensor; 3] {
        let shaped = |values: &[f32], n_heads: usize| {
            let n = values.len() / n_heads / self.head_dim;
            tensor(values, &[n, n_heads, self.head_dim])
        };
        [
            shaped(&self.q, self.n_heads),
            shaped(&self.k, self.n_kv_heads),
            shaped(&self.v, self.n_kv_heads),
        ]
    }

    fn attend(&self) -> Vec<f32> {
        let [q, k, v] = self.tensors();
        let attended = ops::attend(&q, &k, &v, &self.spans, self.mask, SCALE).unwrap();
        assert_eq!(attended.dims(), [q.dims()[0], self.n_heads * self.head_dim]);
        flat(&attended)
    }

    fn attend_plainly(&self) -> Vec<f32> {
        let [q, k, v] = self.tensors();
        flat(&plain::attend(&q, &k, &v, &self.spans, self.mask, SCALE).unwrap())
    }

    fn exact(&self) -> Vec<f64> {
        let dim = self.head_dim;
        let mut attended = Vec::new();
        for span in &self.spans {
            for (place, query) in span.queries.clone().enumerate() {
                let n_seen = match self.mask {
                    Mask::Full => span.keys.len(),
                    Mask::Causal => span.keys.len() - span.queries.len() + place + 1,
                };
                for head in 0..self.n_heads {
                    let kv_head = head / (self.n_heads / self.n_kv_heads);
                    let row = |values: &[f32], n_heads: usize, row: usize, head: usize| {
                        let first = (row * n_heads + head) * dim;
                        let values = values[first..first + dim].iter();
                        values.map(|x| f64::from(*x)).collect::<Vec<f64>>()
                    };
                    let query = row(&self.q, self.n_heads, query, head);
                    let keys = span.keys.clone().take(n_seen);
                    let scores: Vec<f64> = keys
                        .clone()
                        .map(|key| row(&self.k, self.n_kv_heads, key, kv_head))
                        .map(|key| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>())
                        .map(|score| score * f64::from(SCALE))
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights = scores.iter().map(|score| (score - largest).exp());
                    let sum: f64 = weights.clone().sum();
                    let mut output = vec![0.0; dim];
                    for (key, weight) in keys.zip(weights) {
                        let value = row(&self.v, self.n_kv_heads, key, kv_head);
                        for (output, value) in output.iter_mut().zip(value) {
                            *output += weight / sum * value;
                        }
                    }
                    attended.extend(output);
                }
            }
        }
        attended
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for head_dim in [16, 20, 24, 64, 80, 128] {
        for heads in [(1, 1), (4, 4), (6, 2)] {
            // Texts of several lengths, one after another; one that is longer than any tile;
            // and one query over a cache.
            let lengths = [64, 1, 7, 64, 64, 1, 33].map(|n| (n, n));
            cases.push(Case::new(heads, head_dim, Mask::Full, &lengths));
            cases.push(Case::new(heads, head_dim, Mask::Causal, &lengths));
            cases.push(Case::new(
                heads,
                head_dim,
                Mask::Causal,
                &[(1, 90), (0, 3), (5, 71)],
            ));
            cases.push(Case::new(
                heads,
                head_dim,
                Mask::Full,
                &[(3, 90), (0, 0), (1, 7)],
            ));
        }
    }
    cases.push(Case::new((2, 1), 20, Mask::Full, &[(700, 700)]));
    cases.push(Case::new((2, 1), 64, Mask::Causal, &[(700, 1_100)]));
    cases
}

#[test]
fn attention_is_exact_to_rounding() {
    for case in cases() {
        assert_alike(&case.attend(), &case.exact(), 1e-6);
    }
}

#[test]
fn attention_by_candle_is_exact_to_rounding() {
    for case in cases() {
        assert_alike(&case.attend_plainly(), &case.exact(), 1e-6);
    }
}

#[test]
fn attention_in_short_types_is_exact_to_their_rounding() {
    let case = Case::new((6, 2), 20, Mask::Causal, &[(9, 9), (4, 12)]);
    for (dtype, tolerance) in [(DType::F16, 3e-3), (DType::BF16, 3e-2)] {
        let [q, k, v] = case.tensors().map(|x| x.to_dtype(dtype).unwrap());
        let attended = ops::attend(&q, &k, &v, &case.spans, case.mask, SCALE).unwrap();
        assert_eq!(attended.dtype(), dtype);
        assert_alike(&flat(&attended), &case.exact(), tolerance);
    }
}

#[test]
fn spans_that_do_not_fit_are_refused() {
    let [q, k, v] = Case::new((2, 1), 4, Mask::Full, &[(3, 3)]).tensors();
    let refusal = |queries, keys, mask| {
        let spans = [Span { queries, keys }];
        ops::attend(&q, &k, &v, &spans, mask, 1.0)
            .unwrap_err()
            .to_string()
    };
    assert!(refusal(0..2, 0..3, Mask::Full).contains("the spans' queries end at row 2 of 3"));
    assert!(refusal(1..3, 0..3, Mask::Full).contains("leave a gap or overlap at row 0"));
    assert!(refusal(0..3, 0..4, Mask::Full).contains("0..4, are not among the 3 rows"));
    assert!(refusal(0..3, 1..1, Mask::Full).contains("a span of 3 queries has only 0 keys"));
    assert!(refusal(0..3, 1..3, Mask::Causal).contains("a span of 3 queries has only 2 keys"));
    assert!(ops::attend(&q, &q, &v, &[], Mask::Full, 1.0).is_err());
    let none = tensor(&[], &[0, 0, 4]);
    assert!(ops::attend(&none, &k, &v, &[], Mask::Full, 1.0).is_err());
    assert!(ops::attend(&q, &none, &none, &[], Mask::Full, 1.0).is_err());
}

#[test]
fn an_empty_batch_is_harmless() {
    let [q, k, v] = Case::new((2, 1), 4, Mask::Full, &[]).tensors();
    let attended = ops::attend(&q, &k, &v, &[], Mask::Causal, 1.0).unwrap();
    assert_eq!(attended.dims(), [0, 8]);
}

/// Which rows of the output have a value that is not a number.
fn spoiled(attended: &[f32], width: usize) -> Vec<usize> {
    let rows = attended.chunks(width).enumerate();
    let spoiled = rows.filter(|(_, row)| row.iter().any(|x| !x.is_finite()));
    spoiled.map(|(row, _)| row).collect()
}

#[test]
fn a_value_that_is_not_finite_spoils_the_rows_that_see_it_and_no_other_span() {
    let lengths = [(9, 9), (150, 150), (70, 70)];
    let infinity = f32::INFINITY; // In a key it may as well mean that nobody looks.
    for (input, value) in [
        (0, f32::NAN),
        (1, f32::NAN),
        (2, f32::NAN),
        (0, infinity),
        (2, infinity),
    ] {
        let mut case = Case::new((4, 2), 20, Mask::Full, &lengths);
        let (values, width) = match input {
            0 => (&mut case.q, 4 * 20),
            1 => (&mut case.k, 2 * 20),
            _ => (&mut case.v, 2 * 20),
        };
        values[77 * width + 3] = value; // Within the second span.
        let spoiled = spoiled(&case.attend(), 80);
        let expected: Vec<usize> = if input == 0 {
            vec![77]
        } else {
            (9..159).collect()
        };
        assert_eq!(spoiled, expected, "input {input}");
    }
    let mut case = Case::new((1, 1), 16, Mask::Causal, &[(200, 200), (3, 3)]);
    case.v[100 * 16] = f32::NAN;
    let spoiled = spoiled(&case.attend(), 16);
    assert!((100..200).all(|row| spoiled.contains(&row)));
    assert!(!spoiled.contains(&200));
}

#[test]
fn scores_of_any_size_stay_finite() {
    let mut case = Case::new((2, 2), 16, Mask::Full, &[(5, 3_000)]);
    for q in &mut case.q {
        *q *= 1e6;
    }
    assert_alike(&case.attend(), &case.exact(), 1e-6);
}

#[test]
fn a_query_alone_is_the_same_to_the_bit() {
    let (n, n_heads, head_dim) = (203, 6, 20);
    let case = Case::new((n_heads, 2), head_dim, Mask::Causal, &[(n, n)]);
    let all = case.attend();
    let [q, k, v] = case.tensors();
    // As a cache grows: in blocks and one by one.
    for n_at_once in [1, 7, 64] {
        for first in (0..n).step_by(n_at_once) {
            let last = n.min(first + n_at_once);
            let q = q.narrow(0, first, last - first).unwrap();
            let span = Span {
                queries: 0..last - first,
                keys: 0..last,
            };
            let some = ops::attend(&q, &k, &v, &[span], Mask::Causal, SCALE).unwrap();
            let width = n_heads * head_dim;
            assert_eq!(flat(&some), all[first * width..last * width]);
        }
    }
}

#[test]
fn a_span_in_a_batch_is_the_same_to_the_bit_as_alone() {
    let lengths = [(64, 64), (30, 30), (300, 300), (64, 64)];
    let case = Case::new((4, 4), 24, Mask::Full, &lengths);
    let all = case.attend();
    let [q, k, v] = case.tensors();
    for Span { queries, keys } in &case.spans {
        let q = q.narrow(0, queries.start, queries.len()).unwrap();
        let k = k.narrow(0, keys.start, keys.len()).unwrap();
        let v = v.narrow(0, keys.start, keys.len()).unwrap();
        let span = Span {
            queries: 0..queries.len(),
            keys: 0..keys.len(),
        };
        let alone = ops::attend(&q, &k, &v, &[span], Mask::Full, SCALE).unwrap();
        let width = 4 * 24;
        assert_eq!(
            flat(&alone),
            all[queries.start * width..queries.end * width]
        );
    }
}

#[test]
fn inputs_may_be_parts_of_one_projection_or_transposed() {
    let case = Case::new((3, 3), 20, Mask::Full, &[(40, 40), (9, 9)]);
    let [q, k, v] = case.tensors();
    let attended = case.attend();
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
        flat(&ops::attend(q, k, v, &case.spans, Mask::Full, SCALE).unwrap())
    };
    let fused = Tensor::cat(&[&q, &k, &v], 1).unwrap(); // [n, 3 * heads, head_dim]
    let part = |part: usize| fused.narrow(1, 3 * part, 3).unwrap();
    assert_eq!(attend(&part(0), &part(1), &part(2)), attended);
    let transposed = |x: &Tensor, a: usize, b: usize| {
        let x = x.transpose(a, b).unwrap().contiguous().unwrap();
        x.transpose(a, b).unwrap()
    };
    assert_eq!(
        attend(&transposed(&q, 1, 2), &transposed(&k, 0, 1), &v),
        attended
    );
}

#[test]
fn keys_may_be_shared_between_spans() {
    let case = Case::new((2, 2), 16, Mask::Full, &[(6, 80)]);
    let [q, k, v] = case.tensors();
    let spans = [0..2, 2..3, 3..6].map(|queries| Span {
        queries,
        keys: 0..80,
    });
    let attended = ops::attend(&q, &k, &v, &spans, Mask::Full, SCALE).unwrap();
    assert_eq!(flat(&attended), case.attend());
}

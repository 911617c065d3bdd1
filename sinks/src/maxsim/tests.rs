#![allow(clippy::float_cmp, reason = "exact by construction")]
use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// As defined, in f64, of the numbers as they are stored.
fn model<T: Number>(question: &[f32], page: &[T], dim: usize) -> f64 {
    let dot = |a: &[f32], b: &[T]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs
            .map(|(a, b)| f64::from(*a) * f64::from(b.widened()))
            .sum()
    };
    let best = |token| {
        let rows = page.chunks_exact(dim).map(|row| dot(token, row));
        rows.fold(f64::NEG_INFINITY, f64::max)
    };
    question.chunks_exact(dim).map(best).sum()
}

/// `n` rows of unit length, from a seed.
fn rows(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let mut rows: Vec<f32> = (0..n * dim).map(|_| next()).collect();
    for row in rows.chunks_exact_mut(dim) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        for x in row {
            *x /= norm;
        }
    }
    rows
}

fn halves(numbers: &[f32]) -> Vec<f16> {
    numbers
        .iter()
        .map(|number| f16::from_f32(*number))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_score_is_what_the_definition_says(
        n_question in 1_usize..40,
        n_page in 1_usize..60,
        dim in prop_oneof![Just(1), Just(7), Just(96), Just(128), Just(320), 1_usize..50],
        seed in any::<u64>(),
    ) {
        let question = rows(n_question, dim, seed);
        let page = rows(n_page, dim, seed ^ 1);
        let maxsim = MaxSim::new(&question, dim);
        let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-5 * n_question as f64;
        let (narrow, wide) = (halves(&page), page);
        let expected = model(&question, &narrow, dim);
        prop_assert!(close(maxsim.score(&narrow), expected), "{} {expected}", maxsim.score(&narrow));
        let expected = model(&question, &wide, dim);
        prop_assert!(close(maxsim.score(&wide), expected), "{} {expected}", maxsim.score(&wide));
    }

    #[test]
    fn a_page_scores_the_same_whatever_stands_beside_it(
        lengths in vec(0_usize..30, 1..40),
        seed in any::<u64>(),
    ) {
        let maxsim = MaxSim::new(&rows(5, 24, seed), 24);
        let pages: Vec<Vec<f16>> = lengths
            .iter()
            .enumerate()
            .map(|(place, n)| halves(&rows(*n, 24, seed ^ place as u64)))
            .collect();
        let slices: Vec<&[f16]> = pages.iter().map(Vec::as_slice).collect();
        let alone: Vec<f32> = slices.iter().map(|page| maxsim.score(page)).collect();
        prop_assert_eq!(maxsim.scores(&slices), alone);
    }

    #[test]
    fn every_half_float_is_widened_exactly(bits in any::<u16>()) {
        let number = f16::from_bits(bits);
        let (found, expected) = (sealed::Number::widened(number), number.to_f32());
        prop_assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
    }
}

#[test]
fn the_best_of_a_page_that_answers_nothing_is_below_zero() {
    let maxsim = MaxSim::new(&[1.0, 0.0, 0.0, 1.0], 2);
    let page = halves(&[-1.0, 0.0, -0.5, -0.5]);
    assert!((maxsim.score(&page) - -0.5).abs() < 1e-6);
}

#[test]
fn a_page_without_vectors_and_one_with_numbers_that_are_not_finite_come_last() {
    let dim = 5;
    let maxsim = MaxSim::new(&rows(3, dim, 7), dim);
    let worst = maxsim.score(
        &halves(&rows(3, dim, 7))
            .iter()
            .map(|x| -*x)
            .collect::<Vec<_>>(),
    );
    assert!(worst.is_finite());
    assert_eq!(maxsim.score::<f16>(&[]), f32::NEG_INFINITY);
    assert_eq!(
        maxsim.score(&[f16::ONE; 4]),
        f32::NEG_INFINITY,
        "not one whole row"
    );
    for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        for place in [0, 6, 12 * dim - 1] {
            let mut page = halves(&rows(12, dim, 9));
            page[place] = bad;
            assert_eq!(maxsim.score(&page), f32::NEG_INFINITY, "{bad} at {place}");
        }
    }
    let page = [f32::MAX; 5];
    let large = MaxSim::new(&[f32::MAX; 5], dim);
    assert_eq!(large.score(&page), f32::NEG_INFINITY);
}

#[test]
fn a_question_with_a_number_that_is_not_finite_finds_nothing() {
    let maxsim = MaxSim::new(&[f32::NAN, 0.0], 2);
    assert_eq!(maxsim.score(&[f16::ONE, f16::ZERO]), f32::NEG_INFINITY);
}

#[test]
fn odd_shapes_are_taken_as_they_are() {
    assert_eq!(
        MaxSim::new(&[1.0, 2.0], 0).score(&[f16::ONE]),
        f32::NEG_INFINITY
    );
    let none = MaxSim::new(&[], 4);
    assert_eq!((none.n(), none.score(&[f16::ONE; 4])), (0, 0.0));
    let incomplete = MaxSim::new(&[1.0, 0.0, 1.0], 2);
    assert_eq!((incomplete.n(), incomplete.dim()), (1, 2));
    assert_eq!(incomplete.score(&[f16::ONE; 3]), 1.0);
}

#[test]
fn similarities_are_in_rows_of_the_question() {
    let question = [1.0, 0.0, 0.0, 1.0];
    let page = halves(&[0.5, 0.25, -1.0, 0.0, 0.0, 0.75]);
    let expected = [0.5, -1.0, 0.0, 0.25, 0.0, 0.75];
    assert_eq!(similarities(&question, &page, 2), expected);
    assert!(similarities(&question, &page, 0).is_empty());
}

/// Scores with the instructions of `simd`, not the best ones that there are.
fn score_on<S: Simd>(simd: S, question: &MaxSim, page: &[f16]) -> f32 {
    let mut scratch = Scratch::default();
    scratch.rows.resize(ROWS * question.dim, 0.0);
    scratch.best.resize(question.n.next_multiple_of(LANES), 0.0);
    let scratch = &mut scratch;
    simd.vectorize(Score {
        question,
        page,
        scratch,
    })
}

#[test]
fn processors_with_narrower_registers_score_the_same() {
    for (n_question, n_page, dim) in [(1, 1, 1), (20, 13, 7), (16, 200, 128), (33, 9, 96)] {
        let maxsim = MaxSim::new(&rows(n_question, dim, 3), dim);
        let page = halves(&rows(n_page, dim, 4));
        let expected = maxsim.score(&page);
        let close = |found: f32| (found - expected).abs() < 1e-5 * n_question as f32;
        assert!(close(score_on(pulp::Scalar::new(), &maxsim, &page)));
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            assert!(close(score_on(avx2, &maxsim, &page)));
        }
    }
}

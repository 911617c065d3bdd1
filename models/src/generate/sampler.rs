//! From scores to a token.

use std::cmp::Ordering;

use super::request::Sampling;

/// Candidates that are sorted first when `top_p` cuts: as a rule the cut is among them.
const N_SORTED_FIRST: usize = 256;

/// Chooses the tokens of one answer. Its chance is its own, so that an answer does not depend
/// on those beside it.
pub(super) struct Sampler {
    sampling: Sampling,
    random: Random,
    /// Tokens of prompt and answer, each once, while there is a penalty for them.
    seen: Vec<bool>,
}

impl Sampler {
    /// `prompt`: the ids whose repetition is penalized, besides those of the answer.
    pub(super) fn new(sampling: Sampling, prompt: impl Iterator<Item = u32>) -> Self {
        let mut sampler = Self {
            random: Random(sampling.seed),
            sampling,
            seen: Vec::new(),
        };
        if sampler.penalizes() {
            prompt.for_each(|id| sampler.see(id));
        }
        sampler
    }

    fn penalizes(&self) -> bool {
        (self.sampling.repetition_penalty - 1.0).abs() > f32::EPSILON
    }

    fn see(&mut self, id: u32) {
        let id = id as usize;
        if self.seen.len() <= id {
            self.seen.resize(id + 1, false);
        }
        self.seen[id] = true;
    }

    /// Takes the penalty off the scores of tokens that were there before, as the paper has it
    /// (<https://arxiv.org/abs/1909.05858>, section 4.1), with scores below zero multiplied.
    pub(super) fn penalize(&self, scores: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        for (score, _) in scores.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *score = if *score < 0.0 {
                *score * penalty
            } else {
                *score / penalty
            };
        }
    }

    /// The token chosen by the scores, which are spent; `None` if none is above minus infinity.
    pub(super) fn choose(&mut self, scores: &mut [f32]) -> Option<u32> {
        let id = if self.sampling.temperature > 0.0 {
            self.draw(scores)
        } else {
            likeliest(scores)
        }?;
        if self.penalizes() {
            self.see(id);
        }
        Some(id)
    }

    fn draw(&mut self, scores: &mut [f32]) -> Option<u32> {
        let Sampling {
            temperature,
            top_p,
            top_k,
            ..
        } = self.sampling;
        let largest = scores[likeliest(scores)? as usize];
        // Chances in relation to the largest, which is 1.
        let chance = |score: f32| ((score - largest) / temperature).exp();
        let mut candidates: Vec<(u32, f32)> = (0..)
            .zip(scores.iter())
            .map(|(id, score)| (id, chance(*score)))
            .filter(|(_, chance)| *chance > 0.0)
            .collect();
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
        }
        let mut sum: f64 = candidates
            .iter()
            .map(|(_, chance)| f64::from(*chance))
            .sum();
        if top_p < 1.0 {
            sum = cut(&mut candidates, f64::from(top_p) * sum);
        }
        let mut place = self.random.next() * sum;
        for (id, chance) in &candidates {
            place -= f64::from(*chance);
            if place < 0.0 {
                return Some(*id);
            }
        }
        candidates.last().map(|(id, _)| *id)
    }
}

/// Keeps the likeliest candidates, as many as it takes for their chances to reach `enough`;
/// gives the sum of those kept.
fn cut(candidates: &mut Vec<(u32, f32)>, enough: f64) -> f64 {
    let mut n_sorted = N_SORTED_FIRST.min(candidates.len());
    loop {
        if n_sorted < candidates.len() {
            candidates.select_nth_unstable_by(n_sorted, likelier);
        }
        candidates[..n_sorted].sort_unstable_by(likelier);
        let mut sum = 0.0;
        for (place, (_, chance)) in candidates[..n_sorted].iter().enumerate() {
            sum += f64::from(*chance);
            if sum >= enough {
                candidates.truncate(place + 1);
                return sum;
            }
        }
        if n_sorted == candidates.len() {
            return sum;
        }
        n_sorted = candidates.len();
    }
}

/// Likelier first, of equal chances the lower id.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "sorting compares by reference"
)]
fn likelier(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The first of the largest scores; `None` if none is above minus infinity.
fn likeliest(scores: &[f32]) -> Option<u32> {
    // In stretches: the compiler makes vector instructions of the inner loop.
    let largest = |stretch: &[f32]| stretch.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let (mut best, mut place) = (f32::NEG_INFINITY, None);
    for (index, stretch) in scores.chunks(1024).enumerate() {
        let top = largest(stretch);
        if top > best {
            (best, place) = (top, Some(index * 1024));
        }
    }
    let start = place?;
    let within = scores[start..].iter().position(|score| *score >= best)?;
    Some((start + within) as u32)
}

/// The logarithm of the chance that these scores give to a token.
pub(super) fn log_chance(scores: &[f32], id: u32) -> Option<f64> {
    let score = f64::from(*scores.get(id as usize)?);
    let largest = f64::from(scores[likeliest(scores)? as usize]);
    let sum: f64 = scores
        .iter()
        .map(|score| (f64::from(*score) - largest).exp())
        .sum();
    Some(score - largest - sum.ln())
}

/// Numbers from 0 to 1, by splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampler {
        let sampling = Sampling {
            temperature,
            top_p,
            top_k,
            seed,
            ..Sampling::default()
        };
        Sampler::new(sampling, std::iter::empty())
    }

    /// How often each of the first tokens comes in 4000 draws.
    fn shares(mut sampler: Sampler, scores: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; scores.len()];
        for _ in 0..4000 {
            let id = sampler.choose(&mut scores.to_vec()).unwrap();
            counts[id as usize] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn without_temperature_the_first_of_the_likeliest_is_taken() {
        let mut scores = vec![0.5; 3000];
        scores[2000] = 2.0;
        scores[2500] = 2.0;
        assert_eq!(sampler(0.0, 1.0, 0, 0).choose(&mut scores), Some(2000));
        let mut none = vec![f32::NEG_INFINITY; 5];
        assert_eq!(sampler(0.0, 1.0, 0, 0).choose(&mut none), None);
        assert_eq!(sampler(1.0, 1.0, 0, 0).choose(&mut none), None);
    }

    #[test]
    fn tokens_come_as_often_as_their_scores_say() {
        let scores: Vec<f32> = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln).to_vec();
        let near = |found: Vec<f64>, expected: [f64; 4]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 0.03, "{found} for {expected}");
            }
        };
        near(
            shares(sampler(1.0, 1.0, 0, 1), &scores),
            [0.5, 0.3, 0.15, 0.05],
        );
        near(
            shares(sampler(1.0, 1.0, 2, 2), &scores),
            [0.625, 0.375, 0.0, 0.0],
        );
        near(
            shares(sampler(1.0, 0.79, 0, 3), &scores),
            [0.625, 0.375, 0.0, 0.0],
        );
        near(
            shares(sampler(1.0, 0.81, 0, 4), &scores),
            [0.526, 0.316, 0.158, 0.0],
        );
        near(
            shares(sampler(1.0, 0.01, 0, 5), &scores),
            [1.0, 0.0, 0.0, 0.0],
        );
        // Chances to the power of two.
        near(
            shares(sampler(0.5, 1.0, 0, 6), &scores),
            [0.685, 0.247, 0.062, 0.007],
        );
    }

    #[test]
    fn a_cut_beyond_those_sorted_first_is_found_too() {
        let mut candidates: Vec<(u32, f32)> = (0..2000).map(|id| (id, 1.0)).collect();
        candidates[1700].1 = 3.0;
        let sum = cut(&mut candidates, 1000.0);
        assert!((sum - 1000.0).abs() < 1e-9);
        assert_eq!((candidates.len(), candidates[0].0), (998, 1700));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_others() {
        let scores = vec![0.0; 1000];
        let draw = |seed| {
            let mut sampler = sampler(1.0, 1.0, 0, seed);
            (0..20)
                .map(|_| sampler.choose(&mut scores.clone()).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn repeated_tokens_lose_whether_their_score_is_above_or_below_zero() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling, [1, 3, 90].into_iter());
        let mut scores = vec![1.0, 1.5, -1.0, -1.0];
        sampler.penalize(&mut scores);
        assert_eq!(scores, [1.0, 0.75, -1.0, -2.0]);
        assert_eq!(sampler.choose(&mut scores), Some(0));
        let mut scores = vec![1.0, 1.5, -1.0, -1.0];
        sampler.penalize(&mut scores);
        assert_eq!(scores, [0.5, 0.75, -1.0, -2.0]);
    }

    #[test]
    fn chances_add_up_to_one() {
        let scores = [3.0, -2.0, 0.5, f32::NEG_INFINITY];
        let chances = (0..4).map(|id| log_chance(&scores, id).unwrap().exp());
        assert!((chances.sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(log_chance(&scores, 4), None);
    }
}

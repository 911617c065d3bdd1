//! Computes the likelihoods of given answers: to classify by labels.

use super::generator::Generator;
use super::problem::GenerateProblem;
use super::request::GenerateRequest;
use super::sampler;
use crate::error::ModelError;
use crate::preprocess::Patches;
use crate::qwen::cache::KvCache;
use crate::qwen::decoder::Pass;

impl Generator {
    /// For each of some answers, the sum of the logarithms of its tokens' chances after the
    /// request's prompt, which is computed once. Sampling, limits and constraint are not
    /// looked at. With `ended`, the chance that the answer ends there is a part of it, so that
    /// `letter` is not at least as likely as `letter of intent`; without, a longer answer is
    /// less likely by itself.
    ///
    /// # Errors
    /// Messages and images do not fit together, prompt and answers need more room than there
    /// is, an answer is empty, or the device fails.
    pub fn score(
        &mut self,
        request: &GenerateRequest,
        continuations: &[&str],
        ended: bool,
    ) -> Result<Vec<f64>, ModelError> {
        let prompt = self.prompt(request)?;
        let n_prompt = prompt.n_tokens();
        let mut answers = Vec::with_capacity(continuations.len());
        for text in continuations {
            let mut ids = self.vocabulary.encode(text)?;
            if ids.is_empty() {
                return Err(GenerateProblem::InvalidRequest {
                    field: "continuations",
                    problem: "has an empty text".into(),
                }
                .into());
            }
            if let (true, Some(end)) = (ended, self.tokens.end_ids.first()) {
                ids.push(*end);
            }
            answers.push(ids);
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let room = n_prompt + longest;
        if room > self.max_context() {
            return Err(GenerateProblem::TooLong {
                n_tokens: n_prompt,
                max_context: self.max_context(),
            }
            .into());
        }
        self.make_room(room)?;
        let images: Vec<&Patches> = request.images.iter().map(AsRef::as_ref).collect();
        let failed = || ModelError::compute("scoring answers");
        let (mut caches, first) = self
            .compute(&[(&prompt, room)], &images)
            .map_err(failed())?;
        let cache = &mut caches[0];
        let mut sums = Vec::with_capacity(answers.len());
        for ids in answers {
            cache.truncate(n_prompt);
            let later = self
                .follow(&ids, prompt.positions().next, cache)
                .map_err(failed())?;
            let rows = first.chunks_exact(self.vocab_size);
            let rows = rows.chain(later.chunks_exact(self.vocab_size));
            let chances = rows
                .zip(&ids)
                .map(|(scores, id)| sampler::log_chance(scores, *id));
            let sum: Option<f64> = chances.sum();
            let sum = sum.filter(|sum| sum.is_finite());
            sums.push(sum.ok_or(GenerateProblem::NotFinite { n_tokens: 0 })?);
        }
        Ok(sums)
    }

    /// Waits for nobody: what does not fit beside the answers that grow is refused.
    fn make_room(&mut self, n_tokens: usize) -> Result<(), GenerateProblem> {
        self.check_room(n_tokens)?;
        let needed_bytes = n_tokens * self.shape.token_bytes();
        if self.cache_bytes() + needed_bytes > self.max_cache_bytes {
            self.prefixes.forget();
        }
        let available_bytes = self.max_cache_bytes.saturating_sub(self.cache_bytes());
        if needed_bytes <= available_bytes {
            return Ok(());
        }
        Err(GenerateProblem::TooLarge {
            n_tokens,
            needed_bytes,
            available_bytes,
        })
    }

    /// The scores after each token of an answer but the last, `[tokens - 1, vocab]`.
    fn follow(
        &self,
        ids: &[u32],
        position: u32,
        cache: &mut KvCache,
    ) -> candle_core::Result<Vec<f32>> {
        let Some((_, ids)) = ids.split_last().filter(|(_, ids)| !ids.is_empty()) else {
            return Ok(Vec::new());
        };
        let positions = (position..).take(ids.len()).map(|at| [at; 3]);
        let positions: Vec<[u32; 3]> = positions.collect();
        let decoder = &self.network.decoder;
        let pass = Pass {
            hidden: decoder.embed(ids)?,
            positions: &positions,
            n_tokens: &[ids.len()],
            deepstack: &[],
            image_tokens: None,
        };
        let hidden = decoder.forward_cached(pass, &mut [cache])?;
        decoder.logits(&hidden)?.flatten_all()?.to_vec1()
    }
}

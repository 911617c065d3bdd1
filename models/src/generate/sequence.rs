//! One answer as it grows.

use std::time::{Duration, Instant};

use super::constraint::Guide;
use super::problem::GenerateProblem;
use super::repetition::RepetitionGuard;
use super::request::{Event, FinishReason, Generated, Limits, RequestId, Sampling};
use super::sampler::Sampler;
use super::text::TextStream;
use crate::qwen::cache::KvCache;
use crate::vocabulary::Piece;

/// What a model's tokens say, and which of them end an answer.
pub(super) struct Tokens {
    pub(super) pieces: Vec<Piece>,
    pub(super) end_ids: Vec<u32>,
}

/// How an answer is to be made.
pub(super) struct Plan {
    pub(super) id: RequestId,
    pub(super) sampling: Sampling,
    pub(super) limits: Limits,
    /// Prompt and answer together, at most.
    pub(super) max_context: usize,
    pub(super) n_prompt: usize,
    /// Where M-RoPE sees the answer's first token.
    pub(super) position: u32,
    pub(super) submitted: Instant,
}

/// A request whose prompt has been computed.
pub(super) struct Sequence {
    plan: Plan,
    pub(super) cache: KvCache,
    sampler: Sampler,
    guide: Option<Guide>,
    guard: Option<RepetitionGuard>,
    text: TextStream,
    token_ids: Vec<u32>,
    first: Option<Instant>,
}

impl Sequence {
    /// `seen`: the prompt's tokens, for those who are not to repeat them.
    pub(super) fn new(
        plan: Plan,
        cache: KvCache,
        guide: Option<Guide>,
        seen: impl Iterator<Item = u32>,
    ) -> Self {
        let guard = plan.limits.repetition_guard.then(RepetitionGuard::new);
        Self {
            sampler: Sampler::new(plan.sampling.clone(), seen),
            text: TextStream::new(&plan.limits.stop),
            cache,
            guide,
            guard,
            token_ids: Vec::new(),
            first: None,
            plan,
        }
    }

    pub(super) fn id(&self) -> RequestId {
        self.plan.id
    }

    /// The newest token, which the network has not seen yet, and its position.
    pub(super) fn newest(&self) -> (u32, u32) {
        let id = self.token_ids.last().copied().unwrap_or(0);
        let before = self.token_ids.len().saturating_sub(1);
        (id, self.plan.position + before as u32)
    }

    /// Chooses the next token by the network's scores, which are spent; says why, if that was
    /// the last.
    pub(super) fn go_on(
        &mut self,
        scores: &mut [f32],
        tokens: &Tokens,
    ) -> Result<Option<FinishReason>, GenerateProblem> {
        if !are_finite(scores) {
            let n_tokens = self.token_ids.len();
            return Err(GenerateProblem::NotFinite { n_tokens });
        }
        let chosen = self.choose(scores, tokens)?;
        self.first.get_or_insert_with(Instant::now);
        let Some(id) = chosen else {
            // Nothing may follow what the constraint has.
            return Ok(Some(FinishReason::Stop));
        };
        self.token_ids.push(id);
        if tokens.end_ids.contains(&id) {
            return Ok(Some(FinishReason::Stop));
        }
        let complete = match &mut self.guide {
            Some(guide) => guide.advance(id)?,
            None => false,
        };
        let stopped = match tokens.pieces.get(id as usize) {
            Some(Piece::Text(bytes)) => self.text.push(bytes),
            _ => false,
        };
        let circles = self.guard.as_mut();
        let circles = circles.is_some_and(|guard| guard.push(&self.token_ids));
        let n = self.token_ids.len();
        Ok(if stopped || complete {
            Some(FinishReason::Stop)
        } else if circles {
            Some(FinishReason::Repetition)
        } else if n >= self.plan.limits.max_new_tokens {
            Some(FinishReason::Length)
        } else if self.plan.n_prompt + n >= self.plan.max_context {
            Some(FinishReason::Context)
        } else {
            None
        })
    }

    fn choose(
        &mut self,
        scores: &mut [f32],
        tokens: &Tokens,
    ) -> Result<Option<u32>, GenerateProblem> {
        self.sampler.penalize(scores);
        if let Some(guide) = &mut self.guide {
            guide.mask(scores)?;
        }
        if self.token_ids.len() >= self.plan.limits.min_new_tokens {
            return Ok(self.sampler.choose(scores));
        }
        let ends = tokens.end_ids.iter().filter_map(|id| {
            let score = scores.get_mut(*id as usize)?;
            let own = std::mem::replace(score, f32::NEG_INFINITY);
            Some((*id as usize, own))
        });
        let ends: Vec<(usize, f32)> = ends.collect();
        if let Some(id) = self.sampler.choose(scores) {
            return Ok(Some(id));
        }
        // A constraint that is met in full goes before a least number of tokens.
        for (id, score) in ends {
            scores[id] = score;
        }
        Ok(self.sampler.choose(scores))
    }

    /// What may be shown since the last time.
    pub(super) fn news(&mut self) -> Option<Event> {
        let delta = self.text.delta();
        let id = self.plan.id;
        (!delta.is_empty()).then_some(Event::Text { id, delta })
    }

    /// Ends the answer: the rest of its text, if any, and the whole.
    pub(super) fn finish(self, finish_reason: FinishReason) -> (Option<Event>, Event) {
        let id = self.plan.id;
        let (delta, text) = self.text.finish();
        let submitted = self.plan.submitted;
        let first = self.first.map(|first| (first - submitted, first.elapsed()));
        let (time_to_first_token, decode_time) = first.unwrap_or((Duration::ZERO, Duration::ZERO));
        let generated = Generated {
            token_ids: self.token_ids,
            text,
            finish_reason,
            prompt_tokens: self.plan.n_prompt,
            time_to_first_token,
            decode_time,
        };
        let rest = (!delta.is_empty()).then_some(Event::Text { id, delta });
        (rest, Event::Done { id, generated })
    }
}

/// Whether all scores are numbers: without a branch, so that it is one pass of vector
/// instructions.
fn are_finite(scores: &[f32]) -> bool {
    let largest = |a: u32, b: &f32| a.max(b.to_bits() & 0x7fff_ffff);
    scores.iter().fold(0, largest) < f32::INFINITY.to_bits()
}

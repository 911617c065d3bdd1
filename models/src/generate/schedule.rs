//! Chooses the requests that are computed together: they join and leave between steps.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::constraint::Guide;
use super::generator::Generator;
use super::problem::GenerateProblem;
use super::request::{Event, FinishReason};
use super::sequence::{Plan, Sequence};
use crate::error::ModelError;
use crate::preprocess::Patches;
use crate::qwen::Prompt;
use crate::qwen::cache::KvCache;
use crate::qwen::decoder::Pass;

/// A request whose prompt has not been computed.
pub(super) struct Waiting {
    pub(super) plan: Plan,
    /// Tokens of prompt and answer together, at most.
    pub(super) room: usize,
    pub(super) prompt: Prompt,
    pub(super) images: Vec<Arc<Patches>>,
    pub(super) guide: Option<Guide>,
}

/// What the network makes of a group of prompts: caches, and the scores of the first token of
/// each answer, `[prompts, vocab]`.
type Computed = (Vec<KvCache>, Vec<f32>);

impl Generator {
    /// Computes the prompts of requests for which there is room, in the order in which they
    /// came, and one more token of every answer that grows.
    ///
    /// # Errors
    /// Only what concerns all requests; what happens to one is an event.
    pub fn step(&mut self) -> Result<Vec<Event>, ModelError> {
        self.admit();
        self.decode();
        Ok(std::mem::take(&mut self.events))
    }

    /// Lets requests in while there is room.
    fn admit(&mut self) {
        loop {
            let group = self.next_group();
            if group.is_empty() {
                return;
            }
            self.prefill(group);
        }
    }

    /// Requests whose prompts are computed together: never one before those that came
    /// earlier.
    fn next_group(&mut self) -> Vec<Waiting> {
        let mut group: Vec<Waiting> = Vec::new();
        let (mut n_tokens, mut n_bytes) = (0, 0);
        while let Some(next) = self.waiting.front() {
            if self.running.len() + group.len() >= self.max_batch {
                break;
            }
            let own_bytes = next.room * self.shape.token_bytes();
            let taken = self.cache_bytes() + n_bytes;
            if taken + own_bytes > self.max_cache_bytes {
                // A request goes before what might help later ones.
                if taken - self.prefixes.n_bytes() + own_bytes > self.max_cache_bytes {
                    break;
                }
                self.prefixes.forget();
                continue;
            }
            let lead = next.prompt.lead();
            let n_new = next.plan.n_prompt - self.n_known(&next.prompt);
            let joins = group.first().is_none_or(|first| {
                n_tokens + n_new <= self.pass_tokens
                    && !self.prefixes.is_worth_waiting(first.prompt.lead(), lead)
            });
            if !joins {
                break;
            }
            n_tokens += n_new;
            n_bytes += own_bytes;
            group.extend(self.waiting.pop_front());
        }
        group
    }

    /// How many tokens of a prompt need not be computed: not all, since the last one's scores
    /// are wanted.
    pub(super) fn n_known(&self, prompt: &Prompt) -> usize {
        let n = self.prefixes.n_known(prompt.lead());
        n.min(prompt.n_tokens() - 1)
    }

    fn prefill(&mut self, group: Vec<Waiting>) {
        let prompts: Vec<(&Prompt, usize)> = group
            .iter()
            .map(|waiting| (&waiting.prompt, waiting.room))
            .collect();
        let images: Vec<&Patches> = group
            .iter()
            .flat_map(|waiting| waiting.images.iter().map(AsRef::as_ref))
            .collect();
        let computed = self
            .compute(&prompts, &images)
            .and_then(|(caches, scores)| {
                let next = self.waiting.front().map(|next| next.prompt.lead());
                let held = caches.iter().map(KvCache::n_bytes).sum::<usize>() + self.cache_bytes();
                let room = self.max_cache_bytes.saturating_sub(held);
                for (waiting, cache) in group.iter().zip(&caches) {
                    let lead = waiting.prompt.lead();
                    self.prefixes.learn(lead, next, cache, &self.shape, room)?;
                }
                Ok((caches, scores))
            });
        let (caches, mut scores) = match computed {
            Ok(computed) => computed,
            Err(error) => {
                let failed = group
                    .into_iter()
                    .map(|waiting| failed(&waiting.plan, &error));
                self.events.extend(failed);
                return;
            }
        };
        let rows = scores.chunks_exact_mut(self.vocab_size);
        for ((waiting, cache), scores) in group.into_iter().zip(caches).zip(rows) {
            let Waiting {
                plan,
                prompt,
                guide,
                ..
            } = waiting;
            let mut sequence = Sequence::new(plan, cache, guide, prompt.text_ids());
            let result = sequence.go_on(scores, &self.tokens);
            self.tell(sequence, result);
        }
    }

    /// The prompts' keys, values and last scores; `prompts` with the room of each.
    pub(super) fn compute(
        &self,
        prompts: &[(&Prompt, usize)],
        images: &[&Patches],
    ) -> candle_core::Result<Computed> {
        let mut caches = Vec::with_capacity(prompts.len());
        let mut rests = Vec::with_capacity(prompts.len());
        for (prompt, room) in prompts {
            let n_known = self.n_known(prompt);
            let mut cache = KvCache::new(&self.shape, *room)?;
            self.prefixes.copy_to(&mut cache, n_known)?;
            caches.push(cache);
            rests.push(prompt.after(n_known));
        }
        let scores = self.on_cores(|| {
            let laid_out = self.network.lay_out(&rests, images)?;
            let decoder = &self.network.decoder;
            let last = match caches.as_mut_slice() {
                [cache] => {
                    let n = rests[0].n_tokens();
                    let mut last = None;
                    for start in (0..n).step_by(self.pass_tokens) {
                        let tokens = start..n.min(start + self.pass_tokens);
                        let stretch = laid_out.stretch(tokens.clone())?;
                        let hidden = decoder.forward_cached(stretch.pass(), &mut [&mut *cache])?;
                        last = Some(hidden.narrow(0, tokens.len() - 1, 1)?);
                    }
                    last.ok_or_else(|| candle_core::Error::Msg("an empty prompt".into()))?
                }
                caches => {
                    let mut caches: Vec<&mut KvCache> = caches.iter_mut().collect();
                    let hidden = decoder.forward_cached(laid_out.pass(), &mut caches)?;
                    let ends = laid_out.rows().into_iter().map(|rows| rows.end as u32 - 1);
                    let ends: Vec<u32> = ends.collect();
                    hidden.index_select(&Tensor::new(ends, hidden.device())?, 0)?
                }
            };
            decoder.logits(&last)?.flatten_all()?.to_vec1()
        })?;
        Ok((caches, scores))
    }

    /// One more token of every answer.
    fn decode(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let mut running = std::mem::take(&mut self.running);
        match self.advance(&mut running) {
            Ok(mut scores) => {
                let tokens = &self.tokens;
                let rows = scores.par_chunks_exact_mut(self.vocab_size);
                let results: Vec<_> = if running.len() == 1 {
                    vec![running[0].go_on(&mut scores, tokens)]
                } else {
                    let pairs = running.par_iter_mut().zip(rows);
                    pairs
                        .map(|(sequence, scores)| sequence.go_on(scores, tokens))
                        .collect()
                };
                for (sequence, result) in running.into_iter().zip(results) {
                    self.tell(sequence, result);
                }
            }
            Err(error) => {
                let failed = running.iter().map(|sequence| Event::Failed {
                    id: sequence.id(),
                    error: compute_problem(&error).into(),
                });
                self.events.extend(failed);
            }
        }
    }

    /// The scores after the newest token of each answer, `[answers, vocab]`.
    fn advance(&self, running: &mut [Sequence]) -> candle_core::Result<Vec<f32>> {
        let newest = running.iter().map(Sequence::newest);
        let (ids, positions): (Vec<u32>, Vec<[u32; 3]>) =
            newest.map(|(id, position)| (id, [position; 3])).unzip();
        let n_tokens = vec![1; ids.len()];
        let mut caches: Vec<&mut KvCache> = running
            .iter_mut()
            .map(|sequence| &mut sequence.cache)
            .collect();
        self.on_cores(|| {
            let decoder = &self.network.decoder;
            let pass = Pass {
                hidden: decoder.embed(&ids)?,
                positions: &positions,
                n_tokens: &n_tokens,
                deepstack: &[],
                image_tokens: None,
            };
            let hidden = decoder.forward_cached(pass, &mut caches)?;
            decoder.logits(&hidden)?.flatten_all()?.to_vec1()
        })
    }

    /// Runs the network where its products wake no thread: on the processor, a call from
    /// outside the cores' pool waits for it hundreds of times a token. A device belongs to the
    /// calling thread.
    fn on_cores<T: Send>(&self, compute: impl FnOnce() -> T + Send) -> T {
        if self.shape.device.is_cpu() {
            rayon::scope(|_| compute())
        } else {
            compute()
        }
    }

    /// Tells what a token brought; an answer that goes on grows with the others.
    fn tell(
        &mut self,
        mut sequence: Sequence,
        result: Result<Option<FinishReason>, GenerateProblem>,
    ) {
        match result {
            Ok(None) => {
                self.events.extend(sequence.news());
                self.running.push(sequence);
            }
            Ok(Some(reason)) => {
                let (rest, done) = sequence.finish(reason);
                self.events.extend(rest);
                self.events.push(done);
            }
            Err(problem) => self.events.push(Event::Failed {
                id: sequence.id(),
                error: problem.into(),
            }),
        }
    }
}

fn failed(plan: &Plan, error: &candle_core::Error) -> Event {
    Event::Failed {
        id: plan.id,
        error: compute_problem(error).into(),
    }
}

fn compute_problem(error: &candle_core::Error) -> GenerateProblem {
    GenerateProblem::Compute {
        problem: error.to_string(),
    }
}

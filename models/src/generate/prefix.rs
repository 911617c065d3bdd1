//! The beginning that requests have in common, computed once.

use candle_core::Result;

use crate::qwen::cache::{CacheShape, KvCache};

/// A beginning of fewer tokens is computed as fast as copied.
const MIN_TOKENS: usize = 16;

/// Keeps the keys and values of a beginning that two requests had in common, for those that
/// come after.
#[derive(Default)]
pub(super) struct Prefixes {
    kept: Option<(Vec<u32>, KvCache)>,
    /// How the last request began.
    latest: Vec<u32>,
}

impl Prefixes {
    /// Memory of what is kept.
    pub(super) fn n_bytes(&self) -> usize {
        self.kept.as_ref().map_or(0, |(_, cache)| cache.n_bytes())
    }

    /// Gives the memory back.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    /// How many tokens of a request that begins so are kept.
    pub(super) fn n_known(&self, lead: &[u32]) -> usize {
        let n = self.kept.as_ref().map_or(0, |(ids, _)| n_shared(ids, lead));
        if n < MIN_TOKENS { 0 } else { n }
    }

    /// Whether it is worth computing one request before another that begins like it.
    pub(super) fn is_worth_waiting(&self, lead: &[u32], next: &[u32]) -> bool {
        n_shared(lead, next) >= self.n_known(next) + MIN_TOKENS
    }

    /// Copies the first `n` tokens that are kept.
    pub(super) fn copy_to(&self, cache: &mut KvCache, n: usize) -> Result<()> {
        match &self.kept {
            Some((_, kept)) if n > 0 => cache.copy_from(kept, n),
            _ => Ok(()),
        }
    }

    /// Learns of a request that has been computed, and how the one after it begins. Keeps
    /// what is common if that is more than before, and takes at most `room_bytes` more.
    pub(super) fn learn(
        &mut self,
        lead: &[u32],
        next: Option<&[u32]>,
        cache: &KvCache,
        shape: &CacheShape,
        room_bytes: usize,
    ) -> Result<()> {
        let with_next = next.map_or(0, |next| n_shared(lead, next));
        let n = n_shared(&self.latest, lead).max(with_next);
        self.latest.clear();
        self.latest.extend_from_slice(lead);
        let more = n >= self.n_known(lead) + MIN_TOKENS;
        if more && n * shape.token_bytes() <= room_bytes + self.n_bytes() {
            self.forget();
            let mut kept = KvCache::new(shape, n)?;
            kept.copy_from(cache, n)?;
            self.kept = Some((lead[..n].to_vec(), kept));
        }
        Ok(())
    }
}

/// Tokens that two beginnings have in common.
fn n_shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

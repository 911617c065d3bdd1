//! Keys and values of the tokens that a decoder has seen.
#![cfg_attr(
    not(test),
    allow(dead_code, reason = "encoders read a text once; generation comes back")
)]

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

/// A sequence's share gets room for at least so many tokens.
const MIN_ROOM: usize = 64;

/// The cache of several sequences: for each layer one tensor of keys and one of values, in
/// which every sequence has a run of rows. It grows as they do, and can be emptied.
pub(crate) struct KvCache {
    /// For each layer `[rows, kv_heads, head_dim]`.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    shape: (usize, usize),
    dtype: DType,
    device: Device,
    n_rows: usize,
    /// By the sequence's number; `None` once it has left.
    runs: Vec<Option<Run>>,
}

/// One sequence's rows.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: usize,
    n_tokens: usize,
    room: usize,
}

impl KvCache {
    /// An empty cache for so many layers of `kv_heads` heads.
    pub(crate) fn new(
        n_layers: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let empty = Tensor::zeros((0, kv_heads, head_dim), dtype, device)?;
        Ok(Self {
            keys: vec![empty.clone(); n_layers],
            values: vec![empty; n_layers],
            shape: (kv_heads, head_dim),
            dtype,
            device: device.clone(),
            n_rows: 0,
            runs: Vec::new(),
        })
    }

    /// Adds a sequence without tokens; its number is the lowest that is free.
    pub(crate) fn join(&mut self) -> usize {
        let run = Run {
            start: 0,
            n_tokens: 0,
            room: 0,
        };
        let free = self.runs.iter().position(Option::is_none);
        match free {
            Some(sequence) => self.runs[sequence] = Some(run),
            None => self.runs.push(Some(run)),
        }
        free.unwrap_or(self.runs.len() - 1)
    }

    /// Forgets a sequence. Its memory is used again when the cache next grows.
    pub(crate) fn leave(&mut self, sequence: usize) {
        if let Some(run) = self.runs.get_mut(sequence) {
            *run = None;
        }
    }

    /// Forgets every sequence and gives the memory back.
    pub(crate) fn reset(&mut self) -> Result<()> {
        let (kv_heads, head_dim) = self.shape;
        *self = Self::new(
            self.keys.len(),
            kv_heads,
            head_dim,
            self.dtype,
            &self.device,
        )?;
        Ok(())
    }

    /// Tokens that a sequence has here; 0 if it is not here.
    pub(crate) fn n_tokens(&self, sequence: usize) -> usize {
        self.run(sequence).map_or(0, |run| run.n_tokens)
    }

    /// Memory of all keys and values.
    pub(crate) fn n_bytes(&self) -> usize {
        let (kv_heads, head_dim) = self.shape;
        let row = kv_heads * head_dim * self.dtype.size_in_bytes();
        2 * self.keys.len() * self.n_rows * row
    }

    fn run(&self, sequence: usize) -> Option<Run> {
        self.runs.get(sequence).copied().flatten()
    }

    /// Makes room for `n` more tokens of each sequence, and says which rows each then has.
    /// The rows are filled by [`KvCache::put`], layer by layer.
    pub(crate) fn grow(&mut self, coming: &[(usize, usize)]) -> Result<Vec<Range<usize>>> {
        let crowded = coming.iter().any(|(sequence, n)| {
            self.run(*sequence)
                .is_some_and(|run| run.n_tokens + n > run.room)
        });
        if crowded {
            self.lay_out_anew(coming)?;
        }
        let mut rows = Vec::with_capacity(coming.len());
        for (sequence, n) in coming {
            let Some(Some(run)) = self.runs.get_mut(*sequence) else {
                candle_core::bail!("sequence {sequence} is not in the cache")
            };
            run.n_tokens += n;
            rows.push(run.start..run.start + run.n_tokens);
        }
        Ok(rows)
    }

    /// Moves all sequences into new tensors with room to spare: each move doubles the room of
    /// those that need more, so a token is copied a constant number of times.
    fn lay_out_anew(&mut self, coming: &[(usize, usize)]) -> Result<()> {
        let (kv_heads, head_dim) = self.shape;
        let old = self.runs.clone();
        let mut start = 0;
        for (sequence, run) in self.runs.iter_mut().enumerate() {
            let Some(run) = run else { continue };
            let mine = coming.iter().filter(|(other, _)| *other == sequence);
            let needed = run.n_tokens + mine.map(|(_, n)| n).sum::<usize>();
            if needed > run.room {
                run.room = needed.next_power_of_two().max(MIN_ROOM);
            }
            run.start = start;
            start += run.room;
        }
        self.n_rows = start;
        for tensor in self.keys.iter_mut().chain(&mut self.values) {
            let new = Tensor::zeros((start, kv_heads, head_dim), self.dtype, &self.device)?;
            for (old, run) in old.iter().zip(&self.runs) {
                if let (Some(old), Some(run)) = (old, run)
                    && old.n_tokens > 0
                {
                    let rows = tensor.narrow(0, old.start, old.n_tokens)?;
                    new.slice_set(&rows.contiguous()?, 0, run.start)?;
                }
            }
            *tensor = new;
        }
        Ok(())
    }

    /// Writes the newest tokens of one layer. `keys`, `values`: `[new, kv_heads, head_dim]`,
    /// the sequences' new tokens end to end; `new` says how many each has, and `rows` is what
    /// [`KvCache::grow`] gave. Returns all keys and values of the layer.
    pub(crate) fn put(
        &self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        new: &[Range<usize>],
        rows: &[Range<usize>],
    ) -> Result<(Tensor, Tensor)> {
        for (new, rows) in new.iter().zip(rows) {
            let place = rows.end - new.len();
            for (all, part) in [(&self.keys[layer], keys), (&self.values[layer], values)] {
                let part = part.narrow(0, new.start, new.len())?.contiguous()?;
                all.slice_set(&part, 0, place)?;
            }
        }
        Ok((self.keys[layer].clone(), self.values[layer].clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends tokens whose keys are their own numbers, and reads back a sequence's keys.
    fn append(cache: &mut KvCache, sequence: usize, numbers: &[f32]) -> Vec<f32> {
        let n = numbers.len();
        let new = Tensor::from_slice(numbers, (n, 1, 1), &Device::Cpu).unwrap();
        let rows = cache.grow(&[(sequence, n)]).unwrap();
        let mut keys = None;
        for layer in 0..2 {
            let whole = std::iter::once(0..n).collect::<Vec<_>>();
            keys = Some(cache.put(layer, &new, &new, &whole, &rows).unwrap().0);
        }
        let keys = keys
            .unwrap()
            .narrow(0, rows[0].start, rows[0].len())
            .unwrap();
        keys.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn sequences_keep_their_tokens_while_others_grow_come_and_go() {
        let mut cache = KvCache::new(2, 1, 1, DType::F32, &Device::Cpu).unwrap();
        let (a, b) = (cache.join(), cache.join());
        assert_eq!(append(&mut cache, a, &[1.0, 2.0]), [1.0, 2.0]);
        let many: Vec<f32> = (0..200).map(|n| n as f32).collect();
        assert_eq!(append(&mut cache, b, &many), many);
        assert_eq!(append(&mut cache, a, &[3.0]), [1.0, 2.0, 3.0]);
        cache.leave(b);
        let c = cache.join();
        assert_eq!((c, cache.n_tokens(c)), (b, 0));
        assert_eq!(append(&mut cache, c, &[9.0]), [9.0]);
        assert_eq!(append(&mut cache, a, &[4.0]), [1.0, 2.0, 3.0, 4.0]);
        assert!(cache.n_bytes() > 0);
        cache.reset().unwrap();
        assert_eq!((cache.n_bytes(), cache.n_tokens(a)), (0, 0));
        assert!(cache.grow(&[(a, 1)]).is_err());
    }
}

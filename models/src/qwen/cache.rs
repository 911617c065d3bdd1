//! Keys and values of the tokens that a decoder has seen.

use candle_core::{DType, Device, Result, Tensor, bail};

/// What one token's keys and values are, in all layers.
#[derive(Debug, Clone)]
pub(crate) struct CacheShape {
    pub(crate) n_layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// In which they are kept: the network's, or f16 beside f32 on the processor.
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

impl CacheShape {
    /// Memory that one token takes.
    pub(crate) fn token_bytes(&self) -> usize {
        2 * self.n_layers * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()
    }
}

/// The cache of one sequence. Its room is taken once, when the sequence begins, so that no
/// step moves what is there; dropping it gives the memory back. On the processor, memory of
/// which nothing has been written yet is only promised by the system.
pub(crate) struct KvCache {
    shape: CacheShape,
    /// Keys and values of each layer, `[kv_heads, room, head_dim]`: those of one head lie
    /// together, as attention reads them.
    layers: Vec<(Tensor, Tensor)>,
    room: usize,
    n_tokens: usize,
}

impl KvCache {
    /// An empty cache for so many tokens.
    ///
    /// # Errors
    /// The device has no room.
    pub(crate) fn new(shape: &CacheShape, room: usize) -> Result<Self> {
        let zeros = || {
            let size = (shape.kv_heads, room, shape.head_dim);
            Tensor::zeros(size, shape.dtype, &shape.device)
        };
        let layers = (0..shape.n_layers).map(|_| Ok((zeros()?, zeros()?)));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            shape: shape.clone(),
            room,
            n_tokens: 0,
        })
    }

    /// Tokens that it has.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Memory of its whole room.
    pub(crate) fn n_bytes(&self) -> usize {
        self.room * self.shape.token_bytes()
    }

    /// Forgets all but the first `n` tokens.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.n_tokens = self.n_tokens.min(n);
    }

    /// Takes over the first `n` tokens of another cache, in place of its own.
    ///
    /// # Errors
    /// The other has fewer, or there is no room for them.
    pub(crate) fn copy_from(&mut self, other: &Self, n: usize) -> Result<()> {
        if n > other.n_tokens || n > self.room {
            bail!(
                "{n} tokens of {} do not fit a cache for {}",
                other.n_tokens,
                self.room
            )
        }
        for (own, theirs) in self.layers.iter().zip(&other.layers) {
            for (own, theirs) in [(&own.0, &theirs.0), (&own.1, &theirs.1)] {
                own.slice_set(&theirs.narrow(1, 0, n)?.contiguous()?, 1, 0)?;
            }
        }
        self.n_tokens = n;
        Ok(())
    }

    /// Writes the keys and values of tokens that follow those it has, `[new, kv_heads,
    /// head_dim]`, of one layer. They count once [`KvCache::advance`] is told of them.
    ///
    /// # Errors
    /// The room is spent.
    pub(crate) fn put(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (n, kv_heads, head_dim) = keys.dims3()?;
        if self.n_tokens + n > self.room {
            bail!(
                "{} tokens do not fit a cache for {}",
                self.n_tokens + n,
                self.room
            )
        }
        let (all_keys, all_values) = &self.layers[layer];
        for (all, new) in [(all_keys, keys), (all_values, values)] {
            let new = if n == 1 {
                new.reshape((kv_heads, 1, head_dim))?
            } else {
                new.transpose(0, 1)?.contiguous()?
            };
            all.slice_set(&new.to_dtype(self.shape.dtype)?, 1, self.n_tokens)?;
        }
        Ok(())
    }

    /// Counts `n` more tokens, which every layer has been given.
    pub(crate) fn advance(&mut self, n: usize) {
        self.n_tokens += n;
    }

    /// Keys and values of one layer, `[kv_heads, room, head_dim]`.
    pub(crate) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[layer];
        (keys, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> CacheShape {
        CacheShape {
            n_layers: 2,
            kv_heads: 2,
            head_dim: 1,
            dtype: DType::F32,
            device: Device::Cpu,
        }
    }

    /// Appends tokens whose keys are their own numbers, in the second head negative.
    fn append(cache: &mut KvCache, numbers: &[f32]) -> Result<()> {
        let n = numbers.len();
        let both: Vec<f32> = numbers.iter().flat_map(|key| [*key, -key]).collect();
        let new = Tensor::from_vec(both, (n, 2, 1), &Device::Cpu)?;
        for layer in 0..2 {
            cache.put(layer, &new, &new)?;
        }
        cache.advance(n);
        Ok(())
    }

    fn keys(cache: &KvCache) -> Vec<f32> {
        let keys = cache.layer(1).0.narrow(1, 0, cache.n_tokens()).unwrap();
        keys.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn tokens_follow_each_other_head_by_head_until_the_room_is_spent() {
        let mut cache = KvCache::new(&shape(), 4).unwrap();
        append(&mut cache, &[1.0, 2.0]).unwrap();
        append(&mut cache, &[3.0]).unwrap();
        assert_eq!(keys(&cache), [1.0, 2.0, 3.0, -1.0, -2.0, -3.0]);
        assert_eq!(cache.n_bytes(), 4 * 2 * 2 * 2 * 4);
        let error = append(&mut cache, &[4.0, 5.0]).unwrap_err().to_string();
        assert!(
            error.contains("5 tokens do not fit a cache for 4"),
            "{error}"
        );
        cache.truncate(1);
        append(&mut cache, &[9.0]).unwrap();
        assert_eq!(keys(&cache), [1.0, 9.0, -1.0, -9.0]);
    }

    #[test]
    fn a_beginning_is_copied_and_then_goes_its_own_way() {
        let mut first = KvCache::new(&shape(), 3).unwrap();
        append(&mut first, &[1.0, 2.0, 3.0]).unwrap();
        let mut second = KvCache::new(&shape(), 5).unwrap();
        second.copy_from(&first, 2).unwrap();
        append(&mut second, &[7.0]).unwrap();
        assert_eq!(keys(&second), [1.0, 2.0, 7.0, -1.0, -2.0, -7.0]);
        assert_eq!(keys(&first), [1.0, 2.0, 3.0, -1.0, -2.0, -3.0]);
        assert!(second.copy_from(&first, 4).is_err());
    }
}

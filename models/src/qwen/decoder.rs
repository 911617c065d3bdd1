//! The language model of Qwen2.5-VL and Qwen3-VL.
//!
//! Sequences lie end to end, without padding. A pass may be the only one, as for embeddings, or
//! one of many that share a [`KvCache`], as for generation.
#![allow(
    clippy::many_single_char_names,
    reason = "q, k, v and x are the field's own names"
)]

use candle_core::{DType, Device, Result, Tensor};

use super::cache::{CacheShape, KvCache};
use super::config::{QwenConfig, TextConfig};
use super::layout::{self, Angles};
use super::table::Table;
use crate::linear::Linear;
use crate::loader::{Loader, Quantization};
use crate::ops::{self, Kept, Mask, Span};

/// Rows whose product takes so little time that the cores would wait for each other after it.
const FEW_ROWS: usize = 64;

pub(crate) struct Decoder {
    config: TextConfig,
    table: Table,
    layers: Vec<Layer>,
    norm: Tensor, // [hidden]
    /// Absent where the network only embeds.
    output: Option<Linear>,
}

/// What becomes of the output layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// The network only embeds.
    Absent,
    /// As the files have it.
    Kept,
    /// In fewer bits: with a large vocabulary it is as much to read as many layers.
    Quantized(Quantization),
}

struct Layer {
    norm1: Tensor, // [hidden]
    q: Linear,
    k: Linear,
    v: Linear,
    /// Norms of each head's queries and keys, `[head_dim]`.
    qk_norm: Option<(Tensor, Tensor)>,
    output: Linear,
    norm2: Tensor, // [hidden]
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// One pass over tokens of one or more sequences.
pub(crate) struct Pass<'a> {
    /// `[tokens, hidden]`, sequences end to end.
    pub(crate) hidden: Tensor,
    /// Time, row and column of each token.
    pub(crate) positions: &'a [[u32; 3]],
    /// Tokens of each sequence.
    pub(crate) n_tokens: &'a [usize],
    /// What the first layers get besides, and the tokens that get it; none for Qwen2.5.
    pub(crate) deepstack: &'a [Tensor],
    pub(crate) image_tokens: Option<&'a Tensor>,
}

impl Decoder {
    /// Takes the tensors below `language_model`, and `lm_head` if the network is to speak.
    pub(crate) fn load(config: &QwenConfig, output: Output, loader: &Loader<'_>) -> Self {
        let text = &config.text;
        let hidden = text.hidden;
        let layer = |index: usize| {
            let name = |part: &str| format!("language_model.layers.{index}.{part}");
            let tensor = |part: &str, width| loader.tensor(&name(part), &[width]);
            let linear =
                |part: &str, n_in, n_out, bias| loader.linear(&name(part), n_in, n_out, bias);
            let wide = text.n_heads * text.head_dim;
            let narrow = text.n_kv_heads * text.head_dim;
            Layer {
                norm1: tensor("input_layernorm.weight", hidden),
                q: linear("self_attn.q_proj", hidden, wide, text.qkv_bias),
                k: linear("self_attn.k_proj", hidden, narrow, text.qkv_bias),
                v: linear("self_attn.v_proj", hidden, narrow, text.qkv_bias),
                qk_norm: text.qk_norm.then(|| {
                    let q = tensor("self_attn.q_norm.weight", text.head_dim);
                    (q, tensor("self_attn.k_norm.weight", text.head_dim))
                }),
                output: linear("self_attn.o_proj", wide, hidden, text.output_bias),
                norm2: tensor("post_attention_layernorm.weight", hidden),
                gate: linear("mlp.gate_proj", hidden, text.wide, false),
                up: linear("mlp.up_proj", hidden, text.wide, false),
                down: linear("mlp.down_proj", text.wide, hidden, false),
            }
        };
        let table = "language_model.embed_tokens.weight";
        let shape = [text.vocab_size, hidden];
        // Some tied checkpoints carry the output layer all the same.
        let own_output = !config.tied || loader.contains("lm_head.weight");
        let name = if own_output { "lm_head.weight" } else { table };
        let output = match output {
            Output::Absent => None,
            Output::Kept => Some(loader.output(name, hidden, text.vocab_size, None)),
            Output::Quantized(format) => {
                Some(loader.output(name, hidden, text.vocab_size, Some(format)))
            }
        };
        let (table, output) = match output {
            Some(None) if !own_output => {
                // One tensor for both.
                let rows = loader.tensor(table, &shape);
                let output = Linear::dense(rows.clone(), None);
                let table = Table::of_floats(rows, text.vocab_size, loader.dtype());
                (table, Some(output))
            }
            output => {
                let linear = || loader.linear("lm_head", hidden, text.vocab_size, false);
                let output = output.map(|output| output.unwrap_or_else(linear));
                (loader.table(table, shape), output)
            }
        };
        Self {
            layers: (0..text.n_layers).map(layer).collect(),
            norm: loader.tensor("language_model.norm.weight", &[hidden]),
            config: text.clone(),
            table,
            output,
        }
    }

    /// Whether the layers' weights have fewer bits than floats.
    pub(crate) fn is_quantized(&self) -> bool {
        self.layers
            .first()
            .is_some_and(|layer| layer.q.is_quantized())
    }

    pub(crate) fn device(&self) -> &Device {
        self.table.device()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.table.dtype()
    }

    /// The vectors of token ids: `[ids, hidden]`.
    ///
    /// # Errors
    /// An id is beyond the vocabulary.
    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.table.look_up(ids)
    }

    /// What a sequence's cache for this decoder is like.
    pub(crate) fn cache_shape(&self) -> CacheShape {
        CacheShape {
            n_layers: self.layers.len(),
            kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
            dtype: self.dtype(),
            device: self.device().clone(),
        }
    }

    /// The hidden states after the last norm, `[tokens, hidden]`.
    pub(crate) fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        let spans = layout::ranges(pass.n_tokens.iter().copied());
        let spans: Vec<Span> = spans
            .into_iter()
            .map(|range| Span {
                queries: range.clone(),
                keys: range,
            })
            .collect();
        let scale = self.scale();
        self.run(pass, |_, q, k, v| {
            ops::attend(q, k, v, &spans, Mask::Causal, scale)
        })
    }

    /// As [`Decoder::forward`], of tokens that follow those in each sequence's cache, which
    /// then has them too.
    pub(crate) fn forward_cached(
        &self,
        pass: Pass<'_>,
        caches: &mut [&mut KvCache],
    ) -> Result<Tensor> {
        let n_tokens = pass.n_tokens;
        let shared = &*caches;
        let hidden = self.run(pass, |layer, q, k, v| {
            self.attend_cached(layer, [q, k, v], n_tokens, shared)
        })?;
        for (cache, n) in caches.iter_mut().zip(n_tokens) {
            cache.advance(*n);
        }
        Ok(hidden)
    }

    fn attend_cached(
        &self,
        layer: usize,
        [q, k, v]: [&Tensor; 3],
        n_tokens: &[usize],
        caches: &[&mut KvCache],
    ) -> Result<Tensor> {
        let new = layout::ranges(n_tokens.iter().copied());
        for (new, cache) in new.iter().zip(caches) {
            let (k, v) = (
                k.narrow(0, new.start, new.len())?,
                v.narrow(0, new.start, new.len())?,
            );
            cache.put(layer, &k, &v)?;
        }
        let scale = self.scale();
        if n_tokens.iter().all(|n| *n == 1) {
            let kept: Vec<Kept<'_>> = caches
                .iter()
                .map(|cache| {
                    let (keys, values) = cache.layer(layer);
                    let n = cache.n_tokens() + 1;
                    Kept { keys, values, n }
                })
                .collect();
            return ops::attend_kept(q, &kept, scale);
        }
        let mut attended = Vec::with_capacity(caches.len());
        for (new, cache) in new.iter().zip(caches) {
            let n = cache.n_tokens() + new.len();
            let (keys, values) = cache.layer(layer);
            // [n, kv_heads, head_dim]
            let rows = |x: &Tensor| x.narrow(1, 0, n)?.to_dtype(q.dtype())?.transpose(0, 1);
            let span = Span {
                queries: 0..new.len(),
                keys: 0..n,
            };
            let q = q.narrow(0, new.start, new.len())?;
            let (k, v) = (rows(keys)?, rows(values)?);
            attended.push(ops::attend(&q, &k, &v, &[span], Mask::Causal, scale)?);
        }
        match attended.as_slice() {
            [attended] => Ok(attended.clone()),
            _ => Tensor::cat(&attended, 0),
        }
    }

    /// What scores of attention are multiplied by.
    fn scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    /// Scores of every token of the vocabulary, f32: `[rows, hidden]` to `[rows, vocab]`.
    ///
    /// # Errors
    /// The network was loaded without its output layer.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.output {
            Some(output) => output.forward(hidden)?.to_dtype(DType::F32),
            None => candle_core::bail!("the network was loaded without its output layer"),
        }
    }

    fn run(
        &self,
        pass: Pass<'_>,
        attend: impl Fn(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let n = pass.positions.len();
        let angles = Angles::of_tokens(&self.config, pass.positions);
        let angle = |values: Vec<f32>| {
            Tensor::from_vec(values, (n, self.config.head_dim / 2), self.device())?
                .to_dtype(self.dtype())
        };
        let (cosines, sines) = (angle(angles.cosines)?, angle(angles.sines)?);
        let mut x = pass.hidden;
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = layer.project(&x, &self.config)?;
            let q = ops::rope(&q, &cosines, &sines)?;
            let k = ops::rope(&k, &cosines, &sines)?;
            let attended = attend(index, &q, &k, &v)?;
            x = layer.rest(&x, &attended, self.config.norm_epsilon)?;
            if let (Some(extra), Some(tokens)) = (pass.deepstack.get(index), pass.image_tokens) {
                x = x.index_add(tokens, extra, 0)?;
            }
        }
        ops::rms_norm(&x, &self.norm, self.config.norm_epsilon)
    }
}

impl Layer {
    /// Queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`.
    fn project(&self, x: &Tensor, config: &TextConfig) -> Result<(Tensor, Tensor, Tensor)> {
        let n = x.dim(0)?;
        let normed = ops::rms_norm(x, &self.norm1, config.norm_epsilon)?;
        let heads = |linear: &Linear, n_heads| {
            linear
                .forward(&normed)?
                .reshape((n, n_heads, config.head_dim))
        };
        let (q, (k, v)) = together(
            x,
            || heads(&self.q, config.n_heads),
            || {
                let k = heads(&self.k, config.n_kv_heads);
                (k, heads(&self.v, config.n_kv_heads))
            },
        );
        let (mut q, mut k, v) = (q?, k?, v?);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let normed = |x: &Tensor, weight| {
                let rows = x.reshape(((), config.head_dim))?; // [tokens * heads, head_dim]
                ops::rms_norm(&rows, weight, config.norm_epsilon)?.reshape(x.shape())
            };
            (q, k) = (normed(&q, q_norm)?, normed(&k, k_norm)?);
        }
        Ok((q, k, v))
    }

    /// What follows attention.
    fn rest(&self, x: &Tensor, attended: &Tensor, epsilon: f32) -> Result<Tensor> {
        let x = ops::add(self.output.forward(attended)?, x)?;
        let normed = ops::rms_norm(&x, &self.norm2, epsilon)?;
        let (gate, up) = together(
            &x,
            || self.gate.forward(&normed),
            || self.up.forward(&normed),
        );
        let gated = ops::silu_mul(&gate?, &up?)?;
        ops::add(self.down.forward(&gated)?, &x)
    }
}

/// Two products of the same rows, of few rows on the processor at once.
fn together<A: Send, B: Send>(
    rows: &Tensor,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    let few = rows.dims().first().is_some_and(|n| *n <= FEW_ROWS);
    if few && rows.device().is_cpu() {
        rayon::join(first, second)
    } else {
        (first(), second())
    }
}

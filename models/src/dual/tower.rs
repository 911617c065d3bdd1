//! The blocks that all towers are made of: pre-norm transformer layers with biases.
//!
//! Sequences lie end to end without padding, so a row's result depends on its own sequence
//! alone. Every tower keeps one row of each sequence, or all of them for the attention head;
//! where it is one, the last layer computes nothing but that row.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::config::TowerConfig;
use crate::linear::Linear;
use crate::loader::Loader;
use crate::ops::{self, Activation, Mask, Span};

/// The layers of one tower.
pub(super) struct Stack {
    layers: Vec<Layer>,
    n_heads: usize,
    mask: Mask,
}

struct Layer {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    mlp_norm: Norm,
    mlp: Mlp,
}

/// A layer norm with its parameters, each `[width]`.
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

/// Two linear maps with an activation between.
pub(super) struct Mlp {
    widen: Linear,
    narrow: Linear,
    activation: Activation,
}

impl Norm {
    pub(super) fn load(loader: &Loader<'_>, name: &str, config: &TowerConfig) -> Self {
        Self {
            weight: loader.tensor(&format!("{name}.weight"), &[config.width]),
            bias: loader.tensor(&format!("{name}.bias"), &[config.width]),
            epsilon: config.epsilon,
        }
    }

    /// `x` and the result are `[n, width]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

impl Mlp {
    pub(super) fn load(loader: &Loader<'_>, name: &str, config: &TowerConfig) -> Self {
        let (width, wide) = (config.width, config.intermediate);
        Self {
            widen: loader.linear(&format!("{name}.fc1"), width, wide, true),
            narrow: loader.linear(&format!("{name}.fc2"), wide, width, true),
            activation: config.activation,
        }
    }

    /// `x` and the result are `[n, width]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = self.widen.forward(x)?; // [n, intermediate]
        let wide = ops::activate(wide, None, self.activation)?;
        self.narrow.forward(&wide)
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, name: &str, config: &TowerConfig) -> Self {
        let width = config.width;
        let linear = |part| loader.linear(&format!("{name}.self_attn.{part}"), width, width, true);
        Self {
            attention_norm: Norm::load(loader, &format!("{name}.layer_norm1"), config),
            query: linear("q_proj"),
            key: linear("k_proj"),
            value: linear("v_proj"),
            attended: linear("out_proj"),
            mlp_norm: Norm::load(loader, &format!("{name}.layer_norm2"), config),
            mlp: Mlp::load(loader, &format!("{name}.mlp"), config),
        }
    }

    /// `hidden` is `[n, width]`. The result has its rows, or else those that `kept` names, in
    /// that order; `spans` say which of them see which rows of `hidden`.
    fn forward(
        &self,
        hidden: &Tensor,
        kept: Option<&Tensor>,
        spans: &[Span],
        n_heads: usize,
        mask: Mask,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.forward(hidden)?;
        let (key, value) = (self.key.forward(&normed)?, self.value.forward(&normed)?);
        let (hidden, query) = match kept {
            None => (hidden.clone(), self.query.forward(&normed)?),
            Some(kept) => {
                let normed = normed.index_select(kept, 0)?;
                (hidden.index_select(kept, 0)?, self.query.forward(&normed)?)
            }
        };
        let attended = attend(&[query, key, value], spans, n_heads, mask)?;
        let hidden = ops::add(self.attended.forward(&attended)?, &hidden)?;
        let wide = self.mlp.forward(&self.mlp_norm.forward(&hidden)?)?;
        ops::add(wide, &hidden)
    }
}

impl Stack {
    /// Those of `name.encoder`.
    pub(super) fn load(loader: &Loader<'_>, name: &str, config: &TowerConfig, mask: Mask) -> Self {
        let layer = |layer| Layer::load(loader, &format!("{name}.encoder.layers.{layer}"), config);
        Self {
            layers: (0..config.n_layers).map(layer).collect(),
            n_heads: config.n_heads,
            mask,
        }
    }

    /// All rows of the last hidden states. `hidden` is `[n, width]`, and `sequences` cut its
    /// rows into the inputs.
    pub(super) fn forward(&self, hidden: Tensor, sequences: &[Range<usize>]) -> Result<Tensor> {
        self.run(&self.layers, hidden, &whole(sequences))
    }

    /// One row of the last hidden states for each sequence, `[sequences, width]`: the first
    /// or the last. With a causal mask only the last can be asked for.
    pub(super) fn forward_end(
        &self,
        hidden: Tensor,
        sequences: &[Range<usize>],
        end: End,
    ) -> Result<Tensor> {
        let Some((last, others)) = self.layers.split_last() else {
            candle_core::bail!("a tower without layers");
        };
        let hidden = self.run(others, hidden, &whole(sequences))?;
        let kept = sequences.iter().map(|sequence| match end {
            End::First => sequence.start as u32,
            End::Last => sequence.end.saturating_sub(1) as u32,
        });
        let kept = Tensor::from_iter(kept, hidden.device())?;
        let span = |(row, sequence): (usize, &Range<usize>)| Span {
            queries: row..row + 1,
            keys: sequence.clone(),
        };
        let spans: Vec<Span> = sequences.iter().enumerate().map(span).collect();
        last.forward(&hidden, Some(&kept), &spans, self.n_heads, self.mask)
    }

    fn run(&self, layers: &[Layer], mut hidden: Tensor, spans: &[Span]) -> Result<Tensor> {
        for layer in layers {
            hidden = layer.forward(&hidden, None, spans, self.n_heads, self.mask)?;
        }
        Ok(hidden)
    }
}

/// Which row of each sequence is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    First,
    Last,
}

/// Every row of a sequence sees the sequence.
fn whole(sequences: &[Range<usize>]) -> Vec<Span> {
    let span = |sequence: &Range<usize>| Span {
        queries: sequence.clone(),
        keys: sequence.clone(),
    };
    sequences.iter().map(span).collect()
}

/// Attention of `[query, key, value]`, each `[rows, width]`, to `[query rows, width]`.
pub(super) fn attend(
    projected: &[Tensor; 3],
    spans: &[Span],
    n_heads: usize,
    mask: Mask,
) -> Result<Tensor> {
    let width = projected[0].dim(1)?;
    let head_dim = width / n_heads;
    let heads = |x: &Tensor| x.reshape((x.dim(0)?, n_heads, head_dim)); // [rows, heads, head_dim]
    let [query, key, value] = projected;
    let scale = 1.0 / (head_dim as f32).sqrt();
    ops::attend(
        &heads(query)?,
        &heads(key)?,
        &heads(value)?,
        spans,
        mask,
        scale,
    )
}

/// The rows of inputs that lie end to end.
pub(super) fn end_to_end(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut start = 0;
    let range = |length| {
        start += length;
        start - length..start
    };
    lengths.map(range).collect()
}

/// Rows brought to length 1, in f32.
pub(super) fn unit(vectors: &Tensor) -> Result<Tensor> {
    let vectors = vectors.to_dtype(DType::F32)?;
    let lengths = vectors.sqr()?.sum_keepdim(1)?.sqrt()?; // [n, 1]
    vectors.broadcast_div(&lengths)
}

//! The BERT network: token ids in, one vector per token out.
//!
//! Devlin et al., <https://arxiv.org/abs/1810.04805>; post-norm, absolute positions. On the
//! processor the network is our own: query, key and value are one matrix product, and texts
//! are packed end to end, so nothing is computed for padding. Other devices run
//! candle-transformers' `BertModel` over texts padded to the longest.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, HiddenAct};

use crate::batch::TokenBatch;
use crate::error::ModelError;
use crate::fused::{self, ResidualNorm};
use crate::settings::{Activation, BertConfig};
use crate::weights::Weights;

/// A loaded network, in the form that suits its device. All its tensors are f32.
pub(crate) enum BertNetwork {
    Packed(PackedBert),
    Padded(PaddedBert),
}

/// The network on the processor.
pub(crate) struct PackedBert {
    words: Tensor,     // [vocabulary, hidden]
    positions: Tensor, // [max positions, hidden]
    types: Tensor,     // [types, hidden]
    norm_weight: Tensor,
    norm_offset: Tensor,
    epsilon: f64,
    layers: Vec<BertLayer>,
    n_heads: usize,
    activation: Activation,
}

/// The network on any device, by candle's own operations.
pub(crate) struct PaddedBert {
    model: BertModel,
}

struct BertLayer {
    project: Tensor,      // [hidden, 3 * hidden]: query, key, value
    project_bias: Tensor, // [3 * hidden]
    attended: Tensor,     // [hidden, hidden]
    attended_norm: ResidualNorm,
    widen: Tensor,      // [hidden, intermediate]
    widen_bias: Tensor, // [intermediate]
    narrow: Tensor,     // [intermediate, hidden]
    narrow_norm: ResidualNorm,
}

/// Names of a checkpoint's tensors: whether they start with `bert.`, and whether its layer
/// norms are `weight` and `bias` or, as in the first releases, `gamma` and `beta`.
struct Names {
    prefix: &'static str,
    norm_weight: &'static str,
    norm_offset: &'static str,
}

impl Names {
    fn of(weights: &Weights) -> Self {
        let prefixed = weights.contains("bert.embeddings.word_embeddings.weight");
        let prefix = if prefixed { "bert." } else { "" };
        let old = weights.contains(&format!("{prefix}embeddings.LayerNorm.gamma"));
        let (norm_weight, norm_offset) = if old {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Self {
            prefix,
            norm_weight,
            norm_offset,
        }
    }

    fn layer(&self, layer: usize, rest: &str) -> String {
        format!("{}encoder.layer.{layer}.{rest}", self.prefix)
    }

    /// Every tensor that the network reads, with its shape.
    fn expected(&self, config: &BertConfig) -> Vec<(String, Vec<usize>)> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (norm_weight, norm_offset) = (self.norm_weight, self.norm_offset);
        let mut expected = Vec::new();
        let embeddings = [
            (
                "word_embeddings.weight".to_owned(),
                vec![config.vocab_size, hidden],
            ),
            (
                "position_embeddings.weight".to_owned(),
                vec![config.max_position_embeddings, hidden],
            ),
            (
                "token_type_embeddings.weight".to_owned(),
                vec![config.type_vocab_size, hidden],
            ),
            (format!("LayerNorm.{norm_weight}"), vec![hidden]),
            (format!("LayerNorm.{norm_offset}"), vec![hidden]),
        ];
        for (name, shape) in embeddings {
            expected.push((format!("{}embeddings.{name}", self.prefix), shape));
        }
        for layer in 0..config.num_hidden_layers {
            let linears = [
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("intermediate.dense", wide, hidden),
                ("output.dense", hidden, wide),
            ];
            for (name, n_out, n_in) in linears {
                let weight = self.layer(layer, &format!("{name}.weight"));
                expected.push((weight, vec![n_out, n_in]));
                expected.push((self.layer(layer, &format!("{name}.bias")), vec![n_out]));
            }
            for name in ["attention.output", "output"] {
                for part in [norm_weight, norm_offset] {
                    let name = self.layer(layer, &format!("{name}.LayerNorm.{part}"));
                    expected.push((name, vec![hidden]));
                }
            }
        }
        expected
    }
}

impl BertNetwork {
    /// Copies the weights to the device.
    ///
    /// # Errors
    /// Tensors are missing or misshapen, all of which are named, or do not fit.
    pub(crate) fn load(
        weights: &Weights,
        config: &BertConfig,
        activation: Activation,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        if device.is_cpu() {
            PackedBert::load(weights, config, activation).map(Self::Packed)
        } else {
            PaddedBert::load(weights, config, activation, device).map(Self::Padded)
        }
    }

    /// Whether padding is computed like any other token.
    pub(crate) fn pads(&self) -> bool {
        matches!(self, Self::Padded(_))
    }

    /// The last hidden states of the batch's tokens, `[n, hidden]` f32.
    ///
    /// # Errors
    /// An id is outside its table, or the device fails.
    pub(crate) fn forward(&self, batch: &TokenBatch) -> Result<Tensor> {
        match self {
            Self::Packed(network) => network.forward(batch),
            Self::Padded(network) => network.forward(batch),
        }
    }
}

impl PackedBert {
    /// As [`BertNetwork::load`].
    pub(crate) fn load(
        weights: &Weights,
        config: &BertConfig,
        activation: Activation,
    ) -> std::result::Result<Self, ModelError> {
        let names = Names::of(weights);
        weights.check(&names.expected(config))?;
        let embedding = |name: &str| {
            weights.f32_tensor(&format!("{}embeddings.{name}", names.prefix), &Device::Cpu)
        };
        let layer = |layer| load_layer(weights, &names, layer, config);
        Ok(Self {
            words: embedding("word_embeddings.weight")?,
            positions: embedding("position_embeddings.weight")?,
            types: embedding("token_type_embeddings.weight")?,
            norm_weight: embedding(&format!("LayerNorm.{}", names.norm_weight))?,
            norm_offset: embedding(&format!("LayerNorm.{}", names.norm_offset))?,
            epsilon: config.layer_norm_eps,
            layers: (0..config.num_hidden_layers)
                .map(layer)
                .collect::<std::result::Result<_, ModelError>>()?,
            n_heads: config.num_attention_heads,
            activation,
        })
    }

    /// As [`BertNetwork::forward`].
    pub(crate) fn forward(&self, batch: &TokenBatch) -> Result<Tensor> {
        let mut hidden = self.embed(batch)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, batch, self.n_heads, self.activation)?;
        }
        Ok(hidden)
    }

    /// The sum of the three embeddings, normalized: `[n, hidden]`.
    pub(crate) fn embed(&self, batch: &TokenBatch) -> Result<Tensor> {
        let look_up = |table: &Tensor, ids: &[u32]| {
            table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0) // [n, hidden]
        };
        let sum = (look_up(&self.words, &batch.ids)? + look_up(&self.types, &batch.types)?)?;
        let sum = (sum + look_up(&self.positions, &batch.positions())?)?;
        let epsilon = self.epsilon as f32;
        candle_nn::ops::layer_norm(&sum, &self.norm_weight, &self.norm_offset, epsilon)
    }
}

impl PaddedBert {
    /// As [`BertNetwork::load`].
    pub(crate) fn load(
        weights: &Weights,
        config: &BertConfig,
        activation: Activation,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let expected = Names::of(weights).expected(config);
        weights.check(&expected)?;
        // `BertModel` finds the names of all checkpoints itself.
        let tensors = expected.into_iter().map(|(name, _)| {
            let tensor = weights.f32_tensor(&name, device)?;
            Ok((name, tensor))
        });
        let tensors = tensors.collect::<std::result::Result<HashMap<_, _>, ModelError>>()?;
        let config = Config {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: match activation {
                Activation::Gelu => HiddenAct::Gelu,
                Activation::GeluTanh => HiddenAct::GeluApproximate,
                Activation::Relu => HiddenAct::Relu,
            },
            max_position_embeddings: config.max_position_embeddings,
            type_vocab_size: config.type_vocab_size,
            layer_norm_eps: config.layer_norm_eps,
            // The prefix that `BertModel` tries when a tensor is not there without one.
            model_type: Some("bert".to_owned()),
            ..Config::default()
        };
        let builder = VarBuilder::from_tensors(tensors, DType::F32, device);
        let model = BertModel::load(builder, &config)
            .map_err(ModelError::compute("laying out the weights"))?;
        Ok(Self { model })
    }

    /// As [`BertNetwork::forward`].
    pub(crate) fn forward(&self, batch: &TokenBatch) -> Result<Tensor> {
        let device = &self.model.device;
        let padded = |values: &[u32]| {
            let shape = (batch.starts.len() - 1, batch.longest());
            Tensor::from_vec(batch.padded(values), shape, device) // [texts, longest]
        };
        let (ids, types) = (padded(&batch.ids)?, padded(&batch.types)?);
        let mask = padded(&vec![1; batch.ids.len()])?; // 1 for a token, 0 for padding.
        let hidden = self.model.forward(&ids, &types, Some(&mask))?; // [texts, longest, hidden]
        let places = Tensor::new(batch.padded_places(), device)?;
        hidden.flatten(0, 1)?.index_select(&places, 0) // [n, hidden]
    }
}

impl BertLayer {
    /// `hidden` and the result are `[n, hidden]`.
    fn forward(
        &self,
        hidden: &Tensor,
        batch: &TokenBatch,
        n_heads: usize,
        activation: Activation,
    ) -> Result<Tensor> {
        let projected = hidden.matmul(&self.project)?; // [n, 3 * hidden]
        let attended = fused::attend(&projected, &self.project_bias, n_heads, &batch.starts)?;
        let attended = attended.matmul(&self.attended)?;
        let attended = self.attended_norm.forward(attended, hidden)?; // [n, hidden]
        let wide = attended.matmul(&self.widen)?; // [n, intermediate]
        let wide = fused::bias_activation(wide, &self.widen_bias, activation)?;
        self.narrow_norm
            .forward(wide.matmul(&self.narrow)?, &attended)
    }
}

fn load_layer(
    weights: &Weights,
    names: &Names,
    layer: usize,
    config: &BertConfig,
) -> std::result::Result<BertLayer, ModelError> {
    let tensor = |name: &str| weights.f32_tensor(&names.layer(layer, name), &Device::Cpu);
    let copy_failed = || ModelError::compute("laying out the weights");
    // Transposed from `[out, in]` to `[in, out]`.
    let transposed = |name: &str| {
        let weight = tensor(&format!("{name}.weight"))?;
        weight
            .t()
            .and_then(|weight| weight.contiguous())
            .map_err(copy_failed())
    };
    let norm = |dense: &str, norm: &str| {
        let parameters = [
            tensor(&format!("{dense}.bias"))?,
            tensor(&format!("{norm}.{}", names.norm_weight))?,
            tensor(&format!("{norm}.{}", names.norm_offset))?,
        ];
        let parameters = Tensor::stack(&parameters, 0).map_err(copy_failed())?;
        Ok::<_, ModelError>(ResidualNorm {
            parameters,
            epsilon: config.layer_norm_eps,
        })
    };
    let parts = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ];
    let [query, key, value] = parts;
    let project = [transposed(query)?, transposed(key)?, transposed(value)?];
    let bias = |name: &str| tensor(&format!("{name}.bias"));
    let project_bias = [bias(query)?, bias(key)?, bias(value)?];
    Ok(BertLayer {
        project: Tensor::cat(&project, 1).map_err(copy_failed())?,
        project_bias: Tensor::cat(&project_bias, 0).map_err(copy_failed())?,
        attended: transposed("attention.output.dense")?,
        attended_norm: norm("attention.output.dense", "attention.output.LayerNorm")?,
        widen: transposed("intermediate.dense")?,
        widen_bias: bias("intermediate.dense")?,
        narrow: transposed("output.dense")?,
        narrow_norm: norm("output.dense", "output.LayerNorm")?,
    })
}

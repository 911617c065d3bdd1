//! Reads the settings in a model's JSON files for computing its vectors.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::ModelError;
use crate::files;

/// Values of `model_type` that [`crate::TextEncoder`] computes.
const MODEL_TYPES: &[&str] = &["bert"];

/// Everything but the weights and the vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct EncoderSettings {
    pub(crate) architecture: String,
    pub(crate) bert: BertConfig,
    pub(crate) activation: Activation,
    pub(crate) pooling: Pooling,
    /// Whether vectors get length 1.
    pub(crate) normalize: bool,
    /// Longest input, special tokens included.
    pub(crate) max_tokens: usize,
}

/// The fields of `config.json` that change a BERT network's result.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BertConfig {
    pub(crate) model_type: Option<String>,
    #[serde(default)]
    pub(crate) architectures: Vec<String>,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    hidden_act: String,
    pub(crate) max_position_embeddings: usize,
    pub(crate) type_vocab_size: usize,
    #[serde(default = "default_layer_norm_eps")]
    pub(crate) layer_norm_eps: f64,
    position_embedding_type: Option<String>,
}

fn default_layer_norm_eps() -> f64 {
    1e-12
}

/// The function between the two halves of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Exact, by the error function.
    Gelu,
    /// The approximation by the hyperbolic tangent.
    GeluTanh,
    Relu,
}

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The mean over all tokens, special ones included.
    Mean,
    /// The vector of the first token, `[CLS]`.
    Cls,
}

/// The fields that `architecture` looks at, in any model's `config.json`.
#[derive(Deserialize)]
struct AnyConfig {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

/// One entry of sentence-transformers' `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

#[derive(Deserialize)]
struct SentenceBertConfig {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    /// A float, since "no limit" is written as 1e30.
    model_max_length: Option<f64>,
}

/// The first of `architectures` in the folder's `config.json`, or else its `model_type`.
pub(crate) fn architecture(folder: &Path) -> Option<String> {
    let config: AnyConfig = files::read_json(&folder.join("config.json")).ok()?;
    config
        .architectures
        .into_iter()
        .next()
        .or(config.model_type)
}

impl EncoderSettings {
    /// Reads `config.json` and, where present, the files of sentence-transformers.
    ///
    /// # Errors
    /// A file is missing or malformed, or asks for what this crate does not compute.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let any: AnyConfig = files::read_json(&path)?;
        let first = any.architectures.first().map_or("", String::as_str);
        let found = any.model_type.unwrap_or_else(|| first.to_owned());
        // Early checkpoints have no `model_type`, only the class name.
        if found != "bert" && !found.starts_with("Bert") {
            let field = "model_type".to_owned();
            return Err(ModelError::Unsupported {
                field,
                found,
                supported: MODEL_TYPES,
                path,
            });
        }
        let bert: BertConfig = files::read_json(&path)?;
        let activation = bert.check(&path)?;
        let (pooling, normalize) = read_modules(folder)?;
        Ok(Self {
            architecture: bert
                .architectures
                .first()
                .cloned()
                .unwrap_or_else(|| bert.model_type.clone().unwrap_or_else(|| "bert".into())),
            max_tokens: read_max_tokens(folder)?
                .unwrap_or(usize::MAX)
                .min(bert.max_position_embeddings),
            bert,
            activation,
            pooling,
            normalize,
        })
    }
}

impl BertConfig {
    /// Refuses what the network does not compute.
    fn check(&self, path: &Path) -> Result<Activation, ModelError> {
        let unsupported = |field: &str, found: &str, supported| ModelError::Unsupported {
            field: field.to_owned(),
            found: found.to_owned(),
            supported,
            path: path.to_owned(),
        };
        let activation = match self.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                let supported = &["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"];
                return Err(unsupported("hidden_act", other, supported));
            }
        };
        let position = self
            .position_embedding_type
            .as_deref()
            .unwrap_or("absolute");
        if position != "absolute" {
            return Err(unsupported(
                "position_embedding_type",
                position,
                &["absolute"],
            ));
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        let invalid = |field, problem| ModelError::InvalidSetting {
            field,
            problem,
            path: path.to_owned(),
        };
        for (field, size) in sizes {
            if size == 0 {
                return Err(invalid(field, "must be at least 1".to_owned()));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (size, heads) = (self.hidden_size, self.num_attention_heads);
            let problem = format!("is {size}, which {heads} heads cannot share evenly");
            return Err(invalid("hidden_size", problem));
        }
        Ok(activation)
    }
}

/// Pooling and normalization as `modules.json` has them. A folder without that file gets
/// the mean and length 1, which is what sentence-transformers models use most.
fn read_modules(folder: &Path) -> Result<(Pooling, bool), ModelError> {
    let path = folder.join("modules.json");
    let Some(modules) = files::read_optional_json::<Vec<Module>>(&path)? else {
        return Ok((Pooling::Mean, true));
    };
    let mut pooling = Pooling::Mean;
    let mut normalize = false;
    for module in modules {
        match module.r#type.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Pooling" => pooling = read_pooling(&folder.join(&module.path))?,
            "Normalize" => normalize = true,
            _ => {
                return Err(ModelError::Unsupported {
                    field: "type".into(),
                    found: module.r#type,
                    supported: &["Transformer", "Pooling", "Normalize"],
                    path,
                });
            }
        }
    }
    Ok((pooling, normalize))
}

fn read_pooling(folder: &Path) -> Result<Pooling, ModelError> {
    let path = folder.join("config.json");
    // One boolean for each mode, among them modes newer than this code.
    let config: BTreeMap<String, serde_json::Value> = files::read_json(&path)?;
    let is_chosen = |(name, value): &(&String, &serde_json::Value)| {
        name.starts_with("pooling_mode_") && **value == true
    };
    let chosen: Vec<&str> = config
        .iter()
        .filter(is_chosen)
        .map(|(name, _)| name.as_str())
        .collect();
    match chosen[..] {
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        _ => Err(ModelError::Unsupported {
            field: "pooling mode".into(),
            found: if chosen.is_empty() {
                "none".into()
            } else {
                chosen.join(" + ")
            },
            supported: &["pooling_mode_mean_tokens", "pooling_mode_cls_token"],
            path,
        }),
    }
}

/// The first limit that the folder states; `None` leaves it to the position table.
fn read_max_tokens(folder: &Path) -> Result<Option<usize>, ModelError> {
    let path = folder.join("sentence_bert_config.json");
    let sentence: Option<SentenceBertConfig> = files::read_optional_json(&path)?;
    if let Some(max_tokens) = sentence.and_then(|config| config.max_seq_length) {
        return Ok(Some(max_tokens));
    }
    let path = folder.join("tokenizer_config.json");
    let tokenizer: Option<TokenizerConfig> = files::read_optional_json(&path)?;
    let limit = tokenizer.and_then(|config| config.model_max_length);
    Ok(limit.map(|limit| limit as usize)) // Saturates on 1e30.
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<EncoderSettings, String> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("1_Pooling")).unwrap();
        fs::write(root.join("config.json"), CONFIG).unwrap();
        for (name, text) in files {
            fs::write(root.join(name), text).unwrap();
        }
        let place = format!("{}/", root.display());
        EncoderSettings::read(root).map_err(|error| error.to_string().replace(&place, ""))
    }

    const CONFIG: &str = r#"{"architectures": ["BertModel"], "model_type": "bert",
        "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "hidden_act": "gelu", "max_position_embeddings": 12,
        "type_vocab_size": 2}"#;

    const MODULES: &str = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;

    #[test]
    fn a_bare_bert_gets_the_mean_and_length_one() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.architecture, "BertModel");
        assert_eq!(settings.pooling, Pooling::Mean);
        assert!(settings.normalize);
        assert_eq!(settings.max_tokens, 12);
        assert!((settings.bert.layer_norm_eps - 1e-12).abs() < 1e-20);
    }

    #[test]
    fn sentence_transformers_files_decide_pooling_normalization_and_length() {
        let settings = read(&[
            ("modules.json", MODULES),
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_cls_token": true}"#,
            ),
            ("sentence_bert_config.json", r#"{"max_seq_length": 7}"#),
            ("tokenizer_config.json", r#"{"model_max_length": 9}"#),
        ])
        .unwrap();
        assert_eq!(settings.pooling, Pooling::Cls);
        assert!(!settings.normalize);
        assert_eq!(settings.max_tokens, 7);
    }

    #[test]
    fn an_endless_tokenizer_is_bounded_by_the_position_table() {
        let endless = r#"{"model_max_length": 1000000000000000019884624838656}"#;
        assert_eq!(
            read(&[("tokenizer_config.json", endless)])
                .unwrap()
                .max_tokens,
            12
        );
    }

    #[test]
    fn what_it_does_not_compute_is_refused_by_name() {
        let change = |from: &str, to: &str| CONFIG.replace(from, to);
        let cases = [
            (
                change(r#""bert""#, r#""t5""#),
                "`model_type` is `t5`, supported: `bert`: config.json",
            ),
            (
                change(r#""gelu""#, r#""swish""#),
                "`hidden_act` is `swish`, supported: `gelu`, `gelu_new`, `gelu_pytorch_tanh`, \
                 `relu`: config.json",
            ),
            (
                CONFIG.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 3"),
                "`hidden_size` is 8, which 3 heads cannot share evenly: config.json",
            ),
            (
                change(r#""vocab_size": 9"#, r#""vocab_size": 0"#),
                "`vocab_size` must be at least 1: config.json",
            ),
            (
                change(r#""vocab_size": 9,"#, ""),
                "malformed JSON (missing field `vocab_size` at line 4 column 29): config.json",
            ),
            (
                "{".to_owned(),
                "malformed JSON (EOF while parsing an object at line 1 column 1): config.json",
            ),
        ];
        for (config, message) in cases {
            assert_eq!(read(&[("config.json", &config)]).unwrap_err(), message);
        }
        let dense = MODULES.replace("Pooling\"}", "Dense\"}");
        assert_eq!(
            read(&[("modules.json", &dense)]).unwrap_err(),
            "`type` is `sentence_transformers.models.Dense`, supported: `Transformer`, \
             `Pooling`, `Normalize`: modules.json"
        );
        let max = r#"{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}"#;
        assert_eq!(
            read(&[("modules.json", MODULES), ("1_Pooling/config.json", max)]).unwrap_err(),
            "`pooling mode` is `pooling_mode_cls_token + pooling_mode_max_tokens`, supported: \
             `pooling_mode_mean_tokens`, `pooling_mode_cls_token`: 1_Pooling/config.json"
        );
    }
}

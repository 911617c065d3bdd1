//! Reads the `config.json` of a pair of towers, with transformers' defaults for what it leaves
//! out.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::files;
use crate::ops::Activation;

/// Values of `model_type` that [`super::DualEncoder`] computes.
pub(crate) const MODEL_TYPES: &[&str] = &[
    "clip",
    "clip_vision_model",
    "clip_text_model",
    "siglip",
    "siglip_vision_model",
    "siglip_text_model",
    "siglip2",
    "siglip2_vision_model",
    "siglip2_text_model",
];

/// No model has a longer side of anything; products of two stay far from overflowing.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;

/// Which of the three ways of building the towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DualFamily {
    /// A class token, causal text, and a projection behind each tower.
    Clip,
    /// An attention head over the patches, and text that sees its padding.
    Siglip,
    /// As `Siglip`, with images of any shape.
    Siglip2,
}

/// Everything but the weights and the vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct DualConfig {
    pub(crate) family: DualFamily,
    /// The class name in `config.json`, such as `CLIPModel`.
    pub(crate) architecture: String,
    /// Which one-sided class wrote the files, if one did.
    pub(crate) only: Option<Side>,
    pub(crate) vision: Option<VisionConfig>,
    pub(crate) text: Option<TextConfig>,
}

/// One of the two towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Vision,
    Text,
}

/// The blocks that all towers are made of.
#[derive(Debug, Clone)]
pub(crate) struct TowerConfig {
    pub(crate) width: usize, // A multiple of `n_heads`.
    pub(crate) intermediate: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) activation: Activation,
    pub(crate) epsilon: f32,
}

/// The image side.
#[derive(Debug, Clone)]
pub(crate) struct VisionConfig {
    pub(crate) tower: TowerConfig,
    pub(crate) patch_px: usize,
    /// Rows, and columns, of the table of positions; of the image too, unless the family
    /// stretches the table.
    pub(crate) side: usize,
    /// Length of the vectors behind CLIP's projection; without one the tower's width.
    pub(crate) projection: Option<usize>,
}

/// The text side.
#[derive(Debug, Clone)]
pub(crate) struct TextConfig {
    pub(crate) tower: TowerConfig,
    pub(crate) vocabulary: usize,
    pub(crate) n_positions: usize,
    /// The token whose vector stands for a CLIP text.
    pub(crate) end: TextEnd,
    /// Fills SigLIP's texts up, if the tokenizer names no other.
    pub(crate) pad_id: u32,
    /// Length of the vectors, if a projection follows.
    pub(crate) projection: Option<usize>,
}

/// Where CLIP reads a text's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextEnd {
    /// At the first of the largest ids: the configurations of the first checkpoints name
    /// a wrong end token, 2, and their true one is the vocabulary's last.
    LargestId,
    /// At the first of this id, or at the start if there is none.
    Id(u32),
}

/// `config.json`, of one tower or of two.
#[derive(Deserialize)]
struct ConfigFile {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    projection_dim: Option<usize>,
    text_config: Option<Fields>,
    vision_config: Option<Fields>,
    /// These two stand in early CLIP files and win over the two above as a whole.
    text_config_dict: Option<Fields>,
    vision_config_dict: Option<Fields>,
}

/// One tower's fields; what is absent has its family's default.
#[derive(Default, Deserialize)]
struct Fields {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    projection_dim: Option<usize>,
    // Of the image side.
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_patches: Option<usize>,
    vision_use_head: Option<bool>,
    // Of the text side.
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    projection_size: Option<usize>,
    /// A number, or a list of them in families that are not ours.
    eos_token_id: Option<Value>,
    pad_token_id: Option<u32>,
}

impl DualConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// It is missing or malformed, or asks for what this crate does not compute.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let file: ConfigFile = files::read_json(&path)?;
        let architecture = file.architectures.unwrap_or_default().into_iter().next();
        let found = file.model_type.or_else(|| architecture.clone());
        let found = found.unwrap_or_default();
        let Some((family, only)) = family(&found) else {
            return Err(ModelError::Unsupported {
                field: "model_type".to_owned(),
                found,
                supported: MODEL_TYPES,
                path,
            });
        };
        let architecture = architecture.unwrap_or(found);
        let reader = Reader {
            family,
            path: &path,
        };
        // A one-sided class projects only if its name says so.
        let projected = only.is_none() || architecture.ends_with("WithProjection");
        let (vision, text) = match only {
            None => (
                file.vision_config_dict.or(file.vision_config),
                file.text_config_dict.or(file.text_config),
            ),
            // Its fields stand at the top.
            Some(Side::Vision) => (Some(files::read_json(&path)?), None),
            Some(Side::Text) => (None, Some(files::read_json(&path)?)),
        };
        let projection = |fields: &Fields| match only {
            _ if family != DualFamily::Clip || !projected => None,
            None => Some(file.projection_dim.unwrap_or(512)),
            Some(_) => Some(fields.projection_dim.unwrap_or(512)),
        };
        let vision = (only != Some(Side::Text)).then(|| vision.unwrap_or_default());
        let text = (only != Some(Side::Vision)).then(|| text.unwrap_or_default());
        let read_vision = |fields: Fields| {
            let projection = projection(&fields);
            reader.vision(&fields, projection)
        };
        let read_text = |fields: Fields| {
            let projection = projection(&fields);
            reader.text(fields, projection)
        };
        let config = Self {
            family,
            architecture,
            only,
            vision: vision.map(read_vision).transpose()?,
            text: text.map(read_text).transpose()?,
        };
        config.check_lengths(&path)?;
        Ok(config)
    }

    /// Length of the vectors.
    pub(crate) fn dim(&self) -> usize {
        let vision = self.vision.as_ref().map(VisionConfig::dim);
        let text = self.text.as_ref().map(TextConfig::dim);
        vision.or(text).expect("a configuration has a tower")
    }

    /// Which towers the files hold: of a configuration of both, one may have been saved alone.
    /// A tower counts as there if any of its parts is, so that one with a tensor missing is
    /// damaged, not absent; if neither is there, both are missed.
    pub(crate) fn sides_in(&self, contains: impl Fn(&str) -> bool) -> (bool, bool) {
        if self.only.is_some() {
            return (self.vision.is_some(), self.text.is_some());
        }
        let parts = [
            "embeddings.position_embedding.weight",
            "encoder.layers.0.layer_norm1.weight",
            "encoder.layers.0.mlp.fc1.weight",
        ];
        let has = |tower: &str| {
            let mut names = parts.iter().map(|part| format!("{tower}.{part}"));
            names.any(|name| contains(&name))
        };
        let (vision, text) = (has("vision_model"), has("text_model"));
        (vision || !text, text || !vision)
    }

    fn check_lengths(&self, path: &Path) -> Result<(), ModelError> {
        let (Some(vision), Some(text)) = (&self.vision, &self.text) else {
            return Ok(());
        };
        if vision.dim() == text.dim() {
            return Ok(());
        }
        let (vision, text) = (vision.dim(), text.dim());
        Err(ModelError::InvalidSetting {
            field: "projection_size",
            problem: format!("is {text}, but the vectors of images have {vision} values"),
            path: path.to_owned(),
        })
    }
}

impl VisionConfig {
    /// Length of the vectors.
    pub(crate) fn dim(&self) -> usize {
        self.projection.unwrap_or(self.tower.width)
    }
}

impl TextConfig {
    /// Length of the vectors.
    pub(crate) fn dim(&self) -> usize {
        self.projection.unwrap_or(self.tower.width)
    }
}

/// What a `model_type`, or in its place a class name, stands for.
fn family(name: &str) -> Option<(DualFamily, Option<Side>)> {
    let families = [
        ("siglip2", "Siglip2", DualFamily::Siglip2),
        ("siglip", "Siglip", DualFamily::Siglip),
        ("clip", "CLIP", DualFamily::Clip),
    ];
    families
        .into_iter()
        .find_map(|(model_type, class, family)| {
            let rest = name
                .strip_prefix(model_type)
                .or_else(|| name.strip_prefix(class))?;
            match rest {
                "" | "Model" => Some((family, None)),
                "_vision_model" | "VisionModel" | "VisionModelWithProjection" => {
                    Some((family, Some(Side::Vision)))
                }
                "_text_model" | "TextModel" | "TextModelWithProjection" => {
                    Some((family, Some(Side::Text)))
                }
                _ => None,
            }
        })
}

/// Fills in defaults and refuses what the networks do not compute.
struct Reader<'a> {
    family: DualFamily,
    path: &'a Path,
}

impl Reader<'_> {
    fn vision(
        &self,
        fields: &Fields,
        projection: Option<usize>,
    ) -> Result<VisionConfig, ModelError> {
        let clip = self.family == DualFamily::Clip;
        let tower = self.tower(fields, [768, 3072, 12, 12])?;
        let n_channels = fields.num_channels.unwrap_or(3);
        if n_channels != 3 {
            return Err(self.unsupported("num_channels", &n_channels, &["3"]));
        }
        if !clip && fields.vision_use_head == Some(false) {
            return Err(self.unsupported("vision_use_head", &false, &["true"]));
        }
        let patch_px = fields.patch_size.unwrap_or(if clip { 32 } else { 16 });
        self.check("patch_size", patch_px, MAX_SIZE)?;
        let side = if self.family == DualFamily::Siglip2 {
            let n_patches = fields.num_patches.unwrap_or(256);
            self.check("num_patches", n_patches, MAX_SIZE)?;
            let side = n_patches.isqrt();
            if side * side != n_patches {
                let problem = format!("is {n_patches}, which is no square");
                return Err(self.invalid("num_patches", problem));
            }
            side
        } else {
            let image_px = fields.image_size.unwrap_or(224);
            self.check("image_size", image_px, MAX_SIZE)?;
            if image_px < patch_px {
                let problem = format!("is {image_px}, less than one patch of {patch_px}");
                return Err(self.invalid("image_size", problem));
            }
            image_px / patch_px
        };
        if let Some(projection) = projection {
            self.check("projection_dim", projection, MAX_SIZE)?;
        }
        Ok(VisionConfig {
            tower,
            patch_px,
            side,
            projection,
        })
    }

    fn text(&self, fields: Fields, projection: Option<usize>) -> Result<TextConfig, ModelError> {
        let clip = self.family == DualFamily::Clip;
        let defaults = if clip {
            [512, 2048, 12, 8]
        } else {
            [768, 3072, 12, 12]
        };
        let tower = self.tower(&fields, defaults)?;
        let vocabulary = fields
            .vocab_size
            .unwrap_or(if clip { 49408 } else { 32000 });
        let n_positions = fields.max_position_embeddings;
        let n_positions = n_positions.unwrap_or(if clip { 77 } else { 64 });
        self.check("vocab_size", vocabulary, MAX_SIZE)?;
        self.check("max_position_embeddings", n_positions, MAX_SIZE)?;
        let projection = if clip {
            projection
        } else {
            Some(fields.projection_size.unwrap_or(tower.width))
        };
        if let Some(projection) = projection {
            let field = if clip {
                "projection_dim"
            } else {
                "projection_size"
            };
            self.check(field, projection, MAX_SIZE)?;
        }
        let end = fields.eos_token_id.unwrap_or_else(|| 49407.into());
        let id = end.as_u64().and_then(|id| u32::try_from(id).ok());
        let end = match id {
            Some(2) => TextEnd::LargestId,
            Some(id) => TextEnd::Id(id),
            None if clip => return Err(self.unsupported("eos_token_id", &end, &["one token id"])),
            None => TextEnd::LargestId, // SigLIP does not look at it.
        };
        Ok(TextConfig {
            tower,
            vocabulary,
            n_positions,
            end,
            pad_id: fields.pad_token_id.unwrap_or(1),
            projection,
        })
    }

    /// `defaults`: width, intermediate width, layers, heads.
    fn tower(&self, fields: &Fields, defaults: [usize; 4]) -> Result<TowerConfig, ModelError> {
        let clip = self.family == DualFamily::Clip;
        let [width, intermediate, n_layers, n_heads] = defaults;
        let activation = fields.hidden_act.as_deref().unwrap_or(if clip {
            "quick_gelu"
        } else {
            "gelu_pytorch_tanh"
        });
        let activation = match activation {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            other => {
                let supported = &[
                    "quick_gelu",
                    "gelu",
                    "gelu_new",
                    "gelu_pytorch_tanh",
                    "silu",
                ];
                return Err(self.unsupported("hidden_act", &other, supported));
            }
        };
        let epsilon = fields.layer_norm_eps;
        let tower = TowerConfig {
            width: fields.hidden_size.unwrap_or(width),
            intermediate: fields.intermediate_size.unwrap_or(intermediate),
            n_layers: fields.num_hidden_layers.unwrap_or(n_layers),
            n_heads: fields.num_attention_heads.unwrap_or(n_heads),
            activation,
            epsilon: epsilon.unwrap_or(if clip { 1e-5 } else { 1e-6 }),
        };
        self.check("hidden_size", tower.width, MAX_SIZE)?;
        self.check("intermediate_size", tower.intermediate, MAX_SIZE)?;
        self.check("num_hidden_layers", tower.n_layers, MAX_LAYERS)?;
        self.check("num_attention_heads", tower.n_heads, MAX_SIZE)?;
        if !tower.width.is_multiple_of(tower.n_heads) {
            let (width, heads) = (tower.width, tower.n_heads);
            let problem = format!("is {width}, which {heads} heads cannot share evenly");
            return Err(self.invalid("hidden_size", problem));
        }
        Ok(tower)
    }

    fn check(&self, field: &'static str, size: usize, most: usize) -> Result<(), ModelError> {
        if (1..=most).contains(&size) {
            return Ok(());
        }
        let problem = format!("is {size}, but must be from 1 to {most}");
        Err(self.invalid(field, problem))
    }

    fn invalid(&self, field: &'static str, problem: String) -> ModelError {
        ModelError::InvalidSetting {
            field,
            problem,
            path: self.path.to_owned(),
        }
    }

    fn unsupported(
        &self,
        field: &str,
        found: &dyn ToString,
        supported: &'static [&'static str],
    ) -> ModelError {
        ModelError::Unsupported {
            field: field.to_owned(),
            found: found.to_string(),
            supported,
            path: self.path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;

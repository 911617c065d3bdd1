//! Describes a pair of towers by its configuration alone.

use std::path::Path;

use super::config::{DualConfig, DualFamily, TextConfig, TowerConfig, VisionConfig};
use crate::card::ModelCard;
use crate::encoder::EncoderKind;
use crate::error::ModelError;
use crate::open;
use crate::weights::Weights;

/// Describes the model in `folder` without loading it; its weights may be elsewhere yet.
///
/// # Errors
/// `config.json` is missing or malformed, or asks for what this crate does not compute.
pub(crate) fn describe(folder: &Path) -> Result<ModelCard, ModelError> {
    let (base, _) = open::read_config(folder)?;
    let config = DualConfig::read(&base)?;
    let text = config.text.as_ref();
    Ok(ModelCard {
        kind: EncoderKind::Dual,
        dim: config.dim(),
        max_tokens: text.map_or(0, |text| text.n_positions),
        n_parameters: config.n_parameters(),
        n_quantizable: text.map_or(0, |text| {
            text.tower.n_layers * text.tower.n_linear_weights()
        }),
        n_bytes: Weights::open(&base).map_or(0, |weights| weights.n_bytes()),
        prompts: None,
        architecture: config.architecture,
    })
}

impl DualConfig {
    /// Number of trained values.
    fn n_parameters(&self) -> usize {
        let of_vision = |config: &VisionConfig| config.n_parameters(self.family);
        let of_text = |config: &TextConfig| config.n_parameters(self.family);
        let (vision, text) = (
            self.vision.as_ref().map(of_vision),
            self.text.as_ref().map(of_text),
        );
        // What scales and shifts the similarity of a pair.
        let of_pair = match (self.only, self.family) {
            (Some(_), _) => 0,
            (None, DualFamily::Clip) => 1,
            (None, _) => 2,
        };
        vision.unwrap_or(0) + text.unwrap_or(0) + of_pair
    }
}

impl VisionConfig {
    fn n_parameters(&self, family: DualFamily) -> usize {
        let width = self.tower.width;
        let positions = self.side * self.side * width;
        let patches = 3 * self.patch_px * self.patch_px * width;
        let others = if family == DualFamily::Clip {
            // The class token and its position, the norm before, the projection.
            2 * width + 2 * width + self.projection.unwrap_or(0) * width
        } else {
            // The patches' bias, and the head: query, attention, norm, and the two maps.
            let (attention, mlp) = (self.tower.n_of_attention(), self.tower.n_of_mlp());
            width + width + attention + 2 * width + mlp
        };
        patches + positions + self.tower.n_of_layers() + 2 * width + others
    }
}

impl TextConfig {
    fn n_parameters(&self, family: DualFamily) -> usize {
        let width = self.tower.width;
        let tables = (self.vocabulary + self.n_positions) * width;
        let dim = self.projection.unwrap_or(0);
        let bias = if family == DualFamily::Clip { 0 } else { dim };
        tables + self.tower.n_of_layers() + 2 * width + dim * width + bias
    }
}

impl TowerConfig {
    /// Weights of one layer's linear maps.
    fn n_linear_weights(&self) -> usize {
        4 * self.width * self.width + 2 * self.width * self.intermediate
    }

    fn n_of_attention(&self) -> usize {
        4 * (self.width + 1) * self.width
    }

    fn n_of_mlp(&self) -> usize {
        2 * self.width * self.intermediate + self.intermediate + self.width
    }

    /// All layers, with two norms each.
    fn n_of_layers(&self) -> usize {
        self.n_layers * (self.n_of_attention() + self.n_of_mlp() + 4 * self.width)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::reference::own;

    fn n_parameters(config: &str) -> usize {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        describe(folder.path()).unwrap().n_parameters
    }

    #[test]
    fn published_models_have_as_many_parameters_as_they_say() {
        assert_eq!(n_parameters(r#"{"model_type": "clip"}"#), 151_277_313);
        assert_eq!(n_parameters(r#"{"model_type": "siglip"}"#), 203_155_970);
        let large = r#"{"model_type": "clip", "projection_dim": 768,
            "text_config": {"hidden_size": 768, "intermediate_size": 3072,
                "num_attention_heads": 12},
            "vision_config": {"hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}}"#;
        assert_eq!(n_parameters(large), 427_616_513);
    }

    #[test]
    fn a_card_counts_what_the_files_hold() {
        for name in ["clip", "clip_old", "siglip", "siglip2"] {
            let card = describe(&own(name)).unwrap();
            let weights = Weights::open(&own(name)).unwrap();
            assert_eq!(card.n_parameters, weights.n_parameters(), "{name}");
            assert_eq!(card.n_bytes, weights.n_bytes());
            assert!(card.n_quantizable < card.n_parameters);
        }
    }
}

//! The text side: token ids in, one vector a text out.

use candle_core::{Result, Tensor};

use super::config::{DualFamily, TextConfig, TextEnd};
use super::tower::{self, End, Norm, Stack};
use crate::linear::Linear;
use crate::loader::Loader;
use crate::ops::Mask;

/// A loaded text tower.
pub(super) struct TextTower {
    tokens: Tensor,    // [vocabulary, width]
    positions: Tensor, // [positions, width]
    layers: Stack,
    output_norm: Norm,
    projection: Option<Linear>,
    /// Where CLIP ends a text. SigLIP reads to the last token, which may be padding.
    end: Option<TextEnd>,
}

impl TextTower {
    pub(super) fn load(loader: &Loader<'_>, config: &TextConfig, family: DualFamily) -> Self {
        let (tower, width) = (&config.tower, config.tower.width);
        let clip = family == DualFamily::Clip;
        let table = |name, n| {
            loader.tensor(
                &format!("text_model.embeddings.{name}_embedding.weight"),
                &[n, width],
            )
        };
        let mask = if clip { Mask::Causal } else { Mask::Full };
        let projection = |n_out| {
            let name = if clip {
                "text_projection"
            } else {
                "text_model.head"
            };
            loader.linear(name, width, n_out, !clip)
        };
        Self {
            tokens: table("token", config.vocabulary),
            positions: table("position", config.n_positions),
            layers: Stack::load(loader, "text_model", tower, mask),
            output_norm: Norm::load(loader, "text_model.final_layer_norm", tower),
            projection: config.projection.map(projection),
            end: clip.then_some(config.end),
        }
    }

    /// One vector for each text, `[texts, dim]`, of any length.
    ///
    /// # Errors
    /// A text is empty or longer than the table of positions, an id is outside the
    /// vocabulary, or the device fails.
    pub(super) fn forward(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let (vocabulary, n_positions) = (self.tokens.dim(0)?, self.positions.dim(0)?);
        for text in texts {
            if text.is_empty() || text.len() > n_positions {
                let n = text.len();
                candle_core::bail!(
                    "a text of {n} tokens, where the model reads 1 to {n_positions}"
                );
            }
            if let Some(id) = text.iter().find(|id| **id as usize >= vocabulary) {
                candle_core::bail!("token {id}, where the model has {vocabulary}");
            }
        }
        // Causal attention hides what comes after the token that is read: it need not be
        // computed, and the token is then the last.
        let texts: Vec<&[u32]> = texts.iter().map(|text| self.to_the_end(text)).collect();
        let device = self.tokens.device();
        let ids = Tensor::new(texts.concat(), device)?;
        let places: Vec<u32> = texts.iter().flat_map(|text| 0..text.len() as u32).collect();
        let places = Tensor::new(places, device)?;
        let tokens = self.tokens.index_select(&ids, 0)?; // [n, width]
        let hidden = (tokens + self.positions.index_select(&places, 0)?)?;
        let ranges = tower::end_to_end(texts.iter().map(|text| text.len()));
        let last = self.layers.forward_end(hidden, &ranges, End::Last)?;
        let pooled = self.output_norm.forward(&last)?; // [texts, width]
        match &self.projection {
            Some(projection) => projection.forward(&pooled),
            None => Ok(pooled),
        }
    }

    /// A text up to the token that stands for it.
    fn to_the_end<'a>(&self, text: &'a [u32]) -> &'a [u32] {
        let position = match self.end {
            None => return text,
            Some(TextEnd::Id(end)) => text.iter().position(|id| *id == end).unwrap_or(0),
            Some(TextEnd::LargestId) => {
                let largest = text.iter().max();
                text.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
        };
        &text[..(position + 1).min(text.len())]
    }
}

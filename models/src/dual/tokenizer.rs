//! From text to the ids that a text tower was trained on.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, Replace, Sequence, Strip};
use tokenizers::{
    NormalizerWrapper, PaddingDirection, PaddingParams, PaddingStrategy, PostProcessor, Tokenizer,
    TruncationDirection,
};

use super::config::{DualFamily, TextConfig};
use crate::error::ModelError;
use crate::files;

/// The length that SigLIP2 was trained with, and that its processor pads to.
const SIGLIP2_TOKENS: usize = 64;

/// A text tower's tokenizer: it cuts before the special tokens, which stay, and fills up
/// where the tower has learned to see padding.
pub(super) struct DualTokenizer {
    tokenizer: Tokenizer,
    n_special_tokens: usize,
    max_tokens: usize, // Invariant: more than `n_special_tokens`.
    /// Up to a length of at least `max_tokens`.
    padding: Option<Padding>,
}

#[derive(Debug, Clone, Copy)]
struct Padding {
    id: u32,
    length: usize,
    direction: PaddingDirection,
}

/// `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct Settings {
    tokenizer_class: Option<String>,
    /// A float, since "no limit" is written as 1e30.
    model_max_length: Option<f64>,
    do_lower_case: Option<bool>,
    padding_side: Option<String>,
    /// The token, or an object that describes it.
    pad_token: Option<Value>,
}

impl DualTokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` where there is one. `None` without
    /// the first: a folder may be meant for images alone. Texts are cut at the model's own
    /// limit, or at `max_tokens` if that is less.
    ///
    /// # Errors
    /// A file is damaged, the network lacks some of the ids, or the special tokens leave no
    /// room for text.
    pub(super) fn read(
        folder: &Path,
        config: &TextConfig,
        family: DualFamily,
        max_tokens: Option<usize>,
    ) -> Result<Option<Self>, ModelError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(|source| ModelError::Read {
            path: path.clone(),
            source,
        })?;
        let failed = |source| ModelError::Tokenizer {
            action: format!("cannot load the tokenizer {}", path.display()),
            source,
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(failed)?;
        let settings: Option<Settings> =
            files::read_optional_json(&folder.join("tokenizer_config.json"))?;
        let settings = settings.unwrap_or_default();
        let shipped = tokenizer.get_padding().cloned();
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(failed)?;
        clean_as_trained(&mut tokenizer, &settings, family).map_err(failed)?;

        let fixed = shipped.as_ref().and_then(|padding| match padding.strategy {
            PaddingStrategy::Fixed(length) => Some(length),
            PaddingStrategy::BatchLongest => None,
        });
        // Saturates on 1e30.
        let stated = settings.model_max_length.map(|length| length as usize);
        let limit = match family {
            DualFamily::Clip => stated,
            DualFamily::Siglip => fixed.or(stated),
            DualFamily::Siglip2 => fixed.or(Some(SIGLIP2_TOKENS)),
        };
        let limit = limit.unwrap_or(usize::MAX).min(config.n_positions);
        let max_tokens = max_tokens.unwrap_or(usize::MAX).min(limit);

        let padding = (family != DualFamily::Clip).then(|| {
            Padding::of(
                &tokenizer,
                &settings,
                shipped.as_ref(),
                family,
                config.pad_id,
                limit,
            )
        });
        let n_special_tokens = tokenizer.encode_fast("", true).map_err(failed)?.len();
        if max_tokens <= n_special_tokens {
            return Err(ModelError::InvalidSetting {
                field: "max_tokens",
                problem: format!(
                    "is {max_tokens}, but {n_special_tokens} go to special tokens alone"
                ),
                path: folder.to_owned(),
            });
        }
        let ids = tokenizer.get_vocab(true).into_values();
        let n_ids = ids.max().map_or(0, |id| id as usize + 1);
        if n_ids > config.vocabulary {
            let vocabulary = config.vocabulary;
            return Err(ModelError::InvalidSetting {
                field: "vocab_size",
                problem: format!(
                    "is {vocabulary}, but the tokenizer has ids up to {}",
                    n_ids - 1
                ),
                path: folder.join("config.json"),
            });
        }
        Ok(Some(Self {
            tokenizer,
            n_special_tokens,
            max_tokens,
            padding,
        }))
    }

    /// The length at which texts are cut.
    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The ids of a text as its tower reads them.
    ///
    /// # Errors
    /// The vocabulary has neither a token nor an unknown token for a piece of the text.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let failed = |source| ModelError::Tokenizer {
            action: "cannot tokenize the text".into(),
            source,
        };
        let mut encoding = self.tokenizer.encode_fast(text, false).map_err(failed)?;
        let room = self.max_tokens - self.n_special_tokens;
        encoding.truncate(room, 0, TruncationDirection::Right);
        encoding.take_overflowing();
        if let Some(post_processor) = self.tokenizer.get_post_processor() {
            encoding = post_processor
                .process(encoding, None, true)
                .map_err(failed)?;
        }
        let mut ids = encoding.get_ids().to_vec();
        if let Some(Padding {
            id,
            length,
            direction,
        }) = self.padding
        {
            let missing = length.saturating_sub(ids.len());
            let place = match direction {
                PaddingDirection::Left => 0,
                PaddingDirection::Right => ids.len(),
            };
            ids.splice(place..place, std::iter::repeat_n(id, missing));
        }
        Ok(ids)
    }
}

impl Padding {
    /// From what `tokenizer_config.json` says, or else `tokenizer.json`, or else the defaults
    /// of the tokenizer's class.
    fn of(
        tokenizer: &Tokenizer,
        settings: &Settings,
        shipped: Option<&PaddingParams>,
        family: DualFamily,
        usual_id: u32,
        length: usize,
    ) -> Self {
        let gemma = settings.is_gemma(family);
        let usual = if gemma {
            PaddingDirection::Left
        } else {
            PaddingDirection::Right
        };
        let direction = match settings.padding_side.as_deref() {
            Some("left") => PaddingDirection::Left,
            Some(_) => PaddingDirection::Right,
            None => shipped.map_or(usual, |padding| padding.direction),
        };
        let usual = if gemma { "<pad>" } else { "</s>" };
        let id = match (settings.pad_token(), shipped) {
            (Some(token), _) => tokenizer.token_to_id(token),
            (None, Some(padding)) => Some(padding.pad_id),
            (None, None) => tokenizer.token_to_id(usual),
        };
        Self {
            id: id.unwrap_or(usual_id),
            length,
            direction,
        }
    }
}

impl Settings {
    /// Whether it is SigLIP2's tokenizer: that of the Gemma models, under its own name or, in
    /// checkpoints of a fixed image size, under theirs.
    fn is_gemma(&self, family: DualFamily) -> bool {
        family == DualFamily::Siglip2
            || self.is_of("Siglip2Tokenizer")
            || self.is_of("GemmaTokenizer")
    }

    /// Whether `tokenizer_class` is this class, in its fast form or not.
    fn is_of(&self, class: &str) -> bool {
        let found = self.tokenizer_class.as_deref().unwrap_or_default();
        found.strip_suffix("Fast").unwrap_or(found) == class
    }

    fn pad_token(&self) -> Option<&str> {
        let token = self.pad_token.as_ref()?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }
}

/// Puts in front of the tokenizer's own clean-up what was done to the training texts and is
/// not always in `tokenizer.json`; doing it twice changes nothing.
///
/// SigLIP saw lower case without punctuation, as `SiglipTokenizer` gives it, and SigLIP2
/// lower case, as `Siglip2Tokenizer` does.
fn clean_as_trained(
    tokenizer: &mut Tokenizer,
    settings: &Settings,
    family: DualFamily,
) -> tokenizers::Result<()> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if family == DualFamily::Siglip && settings.is_of("SiglipTokenizer") {
        if settings.do_lower_case != Some(false) {
            steps.push(Lowercase.into());
        }
        let replace = |pattern: &str, with: &str| {
            Replace::new(ReplacePattern::Regex(pattern.to_owned()), with)
        };
        steps.push(replace(r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"##, "")?.into());
        steps.push(replace(r"\s+", " ")?.into());
        steps.push(Strip::new(true, true).into());
    } else if family != DualFamily::Clip && settings.is_gemma(family) {
        steps.push(Lowercase.into());
    }
    if steps.is_empty() {
        return Ok(());
    }
    steps.extend(tokenizer.get_normalizer().cloned());
    tokenizer.with_normalizer(Some(Sequence::new(steps)))?;
    Ok(())
}

#[cfg(test)]
mod tests;

//! From text to token ids.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::{DecoderWrapper, PostProcessor, Tokenizer, TruncationDirection};

use crate::error::ModelError;
use crate::files;

/// A model's tokenizer, cheap to clone and to share between threads.
///
/// Lengths include the special tokens that the model puts around a text (for BERT `[CLS]`
/// and `[SEP]`), so the empty string has two tokens, and a text of at most
/// [`TextTokenizer::max_tokens`] is read whole.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// Without truncation or padding of its own.
    tokenizer: Tokenizer,
    n_special_tokens: usize,
    max_tokens: usize, // Invariant: more than `n_special_tokens`.
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TextTokenizer")
            .field("max_tokens", &self.inner.max_tokens)
            .finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Reads `tokenizer.json` of a model's folder; texts are cut to `max_tokens`.
    ///
    /// The file's own truncation and padding are ignored: MiniLM ships one that cuts at
    /// 128 tokens and pads every text to 128, which is half of what the model reads.
    ///
    /// # Errors
    /// The file is missing or damaged, or `max_tokens` leaves no room for text.
    pub fn load(folder: &Path, max_tokens: usize) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let bytes = files::json_bytes(&path)?;
        let failed = |source| ModelError::Tokenizer {
            action: format!("cannot load the tokenizer {}", path.display()),
            source,
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(failed)?;
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
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
        let inner = Inner {
            tokenizer,
            n_special_tokens,
            max_tokens,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The length at which [`TextTokenizer::encode`] cuts a text.
    pub fn max_tokens(&self) -> usize {
        self.inner.max_tokens
    }

    /// One more than the largest token id.
    pub fn n_ids(&self) -> usize {
        let vocabulary = self.inner.tokenizer.get_vocab(true);
        vocabulary
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1)
    }

    /// Whether tokens are bytes in the letters of GPT-2.
    pub(crate) fn is_byte_level(&self) -> bool {
        match self.inner.tokenizer.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(parts)) => parts
                .get_decoders()
                .iter()
                .any(|part| matches!(part, DecoderWrapper::ByteLevel(_))),
            _ => false,
        }
    }

    /// Every token: its id, its name in the vocabulary, and of a token added to it whether it
    /// is a special one.
    pub(crate) fn tokens(&self) -> Vec<(u32, String, Option<bool>)> {
        let added = self.inner.tokenizer.get_added_tokens_decoder();
        let vocabulary = self.inner.tokenizer.get_vocab(true).into_iter();
        let token = |(name, id): (String, u32)| {
            let special = added.get(&id).map(|token| token.special);
            (id, name, special)
        };
        vocabulary.map(token).collect()
    }

    /// The length of the whole text in tokens, uncut, for splitting text into chunks.
    ///
    /// A text that cannot be tokenized counts one token a byte, so that a splitter makes
    /// it small; [`TextTokenizer::encode`] is where it fails.
    pub fn count(&self, text: &str) -> usize {
        match self.inner.tokenizer.encode_fast(text, false) {
            Ok(encoding) => encoding.len() + self.inner.n_special_tokens,
            Err(_) => text.len() + self.inner.n_special_tokens,
        }
    }

    /// The token ids of a text, special tokens included, cut to
    /// [`TextTokenizer::max_tokens`].
    ///
    /// # Errors
    /// The vocabulary has neither a token nor an unknown token for a piece of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let Inner {
            tokenizer,
            n_special_tokens,
            max_tokens,
        } = &*self.inner;
        let failed = |source| ModelError::Tokenizer {
            action: "cannot tokenize the text".into(),
            source,
        };
        let mut encoding = tokenizer.encode_fast(text, false).map_err(failed)?;
        // The cut comes before the special tokens, which must stay at both ends.
        encoding.truncate(max_tokens - n_special_tokens, 0, TruncationDirection::Right);
        encoding.take_overflowing();
        if let Some(post_processor) = tokenizer.get_post_processor() {
            encoding = post_processor
                .process(encoding, None, true)
                .map_err(failed)?;
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// Where in the text each of its tokens is, special tokens left out.
    ///
    /// # Errors
    /// Those of [`TextTokenizer::encode`].
    pub(crate) fn pieces(&self, text: &str) -> Result<Vec<Range<usize>>, ModelError> {
        let encoding = self.inner.tokenizer.encode(text, false);
        let encoding = encoding.map_err(|source| ModelError::Tokenizer {
            action: "cannot tokenize the text".into(),
            source,
        })?;
        Ok(encoding
            .get_offsets()
            .iter()
            .map(|(start, end)| *start..*end)
            .collect())
    }

    /// Encodes texts on all cores, in their order.
    pub(crate) fn encode_all(&self, texts: &[&str]) -> Vec<Result<Vec<u32>, ModelError>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing;

    fn tokenizer(max_tokens: usize) -> TextTokenizer {
        let folder = tempfile::tempdir().unwrap();
        testing::write_tokenizer(folder.path());
        TextTokenizer::load(folder.path(), max_tokens).unwrap()
    }

    #[test]
    fn special_tokens_count_and_the_shipped_padding_does_not() {
        let tokenizer = tokenizer(16);
        assert_eq!(tokenizer.encode("").unwrap(), [1, 2]);
        assert_eq!(tokenizer.encode("A b").unwrap(), [1, 4, 5, 2]);
        assert_eq!(tokenizer.count(""), 2);
        assert_eq!(tokenizer.count("a b"), 4);
    }

    #[test]
    fn a_long_text_is_cut_between_its_special_tokens_but_counted_whole() {
        let tokenizer = tokenizer(5);
        assert_eq!(tokenizer.encode("a b c d e").unwrap(), [1, 4, 5, 6, 2]);
        assert_eq!(tokenizer.count("a b c d e"), 7);
    }

    #[test]
    fn a_limit_without_room_for_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        testing::write_tokenizer(folder.path());
        let error = TextTokenizer::load(folder.path(), 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "`max_tokens` is 2, but 2 go to special tokens alone: {}",
                folder.path().display()
            )
        );
    }

    #[test]
    fn a_missing_or_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().display();
        let error = TextTokenizer::load(folder.path(), 8).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the model has no `tokenizer.json`: {place}")
        );
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let error = TextTokenizer::load(folder.path(), 8)
            .unwrap_err()
            .to_string();
        let start = format!("cannot load the tokenizer {place}/tokenizer.json (");
        assert!(error.starts_with(&start), "{error}");
    }

    #[test]
    fn is_shared_between_threads() {
        fn check<T: Clone + Send + Sync>() {}
        check::<TextTokenizer>();
    }
}

//! `kind = "chunk_text"`: the text of a page to pieces that an encoder reads whole.

mod windows;

use std::path::PathBuf;
use std::sync::Arc;

use pagemill_models::TextTokenizer;
use pagemill_pipeline::{
    Field, FieldError, FieldType, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig,
    StageError, Value,
};
use serde::Deserialize;
use text_splitter::ChunkSizer;

use crate::models::{self, Loaded};
use windows::{Chunk, split};

/// Where the chunk begins in its page's text, in characters.
const CHAR_START: Field = Field::new("char_start", FieldType::Integer);
/// Where it ends.
const CHAR_END: Field = Field::new("char_end", FieldType::Integer);

/// Characters to a token that a chunk may have at most, unless `max_chars`
/// says otherwise. English has four to five; a tokenizer that reads a line of
/// base64 as one unknown word would make one chunk of a megabyte.
const MAX_CHARS_PER_TOKEN: usize = 16;

/// Settings of `kind = "chunk_text"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChunkTextConfig {
    /// Longest chunk, as the model counts (its special tokens included).
    pub max_tokens: usize,
    /// How much of its end a chunk shares with the next one.
    pub overlap_tokens: usize,
    /// Longest chunk in characters; 16 for each token if it is not given.
    pub max_chars: Option<usize>,
    /// Count tokens as this model does: its name or folder. Without it, four
    /// bytes count as a token.
    pub model: Option<String>,
    /// Whether a page without text gives one chunk without text, so that it
    /// is stored. `false` drops it.
    pub keep_empty: bool,
}

impl Default for ChunkTextConfig {
    fn default() -> Self {
        Self {
            max_tokens: 200,
            overlap_tokens: 0,
            max_chars: None,
            model: None,
            keep_empty: true,
        }
    }
}

impl StageConfig for ChunkTextConfig {
    const KIND: &'static str = "chunk_text";
    const ABOUT: &'static str = "splits the text of a page at paragraphs, sentences and words";
    const EXAMPLE: &'static str = "max_tokens = 200\noverlap_tokens = 20\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
            .replaces([Field::TEXT])
            .adds([CHAR_START, CHAR_END])
            .drops([Field::IMAGE, Field::WORDS])
            .one_to_many()
    }

    fn revision(&self, resources: &Resources) -> String {
        let model = self.model.as_deref();
        let revision = model.map_or_else(String::new, |model| models::revision(model, resources));
        // Earlier builds let the last chunk have more characters.
        let is_in_chars = self.max_chars.is_some_and(|max| max < self.max_tokens);
        revision + if is_in_chars { " 2" } else { "" }
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        Ok(Box::new(ChunkText::new(self, resources)?))
    }
}

/// Splits the text of each page into chunks.
pub struct ChunkText {
    limits: ChunkLimits,
    keep_empty: bool,
    counter: Counter,
}

/// How long a chunk may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkLimits {
    pub(crate) max_tokens: usize,     // Invariant: at least 1.
    pub(crate) overlap_tokens: usize, // Invariant: less than `max_tokens`.
    pub(crate) max_chars: usize,      // Invariant: at least 1.
}

impl ChunkLimits {
    /// The largest size that [`Sizer`] gives a chunk. It is the smaller limit, so that
    /// no size is more than the chunk's bytes: `text-splitter` does not ask for the
    /// size of a text that has no more bytes than this.
    fn capacity(&self) -> usize {
        self.max_tokens.min(self.max_chars)
    }

    /// The overlap in the same unit.
    fn overlap(&self) -> usize {
        let overlap =
            self.overlap_tokens as u128 * self.capacity() as u128 / self.max_tokens as u128;
        usize::try_from(overlap).unwrap_or(usize::MAX)
    }
}

/// What counts tokens.
enum Counter {
    /// Four bytes of text are a token, as the engine counts where a stage
    /// does not say better.
    Estimate,
    /// A model's tokenizer, loaded when the run starts.
    Model {
        folder: PathBuf,
        max_tokens: usize,
        loaded: Arc<Loaded<TextTokenizer>>,
        tokenizer: Option<TextTokenizer>,
    },
}

impl ChunkText {
    /// Checks the settings and finds the model.
    ///
    /// # Errors
    /// When a length cannot be used, or the model is not found.
    pub fn new(config: &ChunkTextConfig, resources: &Resources) -> Result<Self, FieldError> {
        if config.max_tokens == 0 {
            return Err(FieldError::new(
                "max_tokens",
                "must be at least 1",
                "leave it out for 200",
            ));
        }
        if config.overlap_tokens >= config.max_tokens {
            return Err(FieldError::new(
                "overlap_tokens",
                format_args!(
                    "must be less than `max_tokens`, which is {}",
                    config.max_tokens
                ),
                "a tenth of `max_tokens` is usual",
            ));
        }
        if config.max_chars == Some(0) {
            return Err(FieldError::new(
                "max_chars",
                "must be at least 1",
                "leave it out to count tokens alone",
            ));
        }
        let counter = match &config.model {
            None => Counter::Estimate,
            Some(name) => Self::model(name, config.max_tokens, resources)?,
        };
        let usual = config.max_tokens.saturating_mul(MAX_CHARS_PER_TOKEN);
        Ok(Self {
            limits: ChunkLimits {
                max_tokens: config.max_tokens,
                overlap_tokens: config.overlap_tokens,
                max_chars: config.max_chars.unwrap_or(usual),
            },
            keep_empty: config.keep_empty,
            counter,
        })
    }

    fn model(name: &str, max_tokens: usize, resources: &Resources) -> Result<Counter, FieldError> {
        let (folder, card) = models::find(name, resources)?;
        if max_tokens > card.max_tokens {
            return Err(FieldError::new(
                "max_tokens",
                format_args!(
                    "is {max_tokens}, and the model reads {} tokens",
                    card.max_tokens
                ),
                format_args!("use at most {}", card.max_tokens),
            ));
        }
        let loaded = resources.get_or_insert(&folder.to_string_lossy(), Loaded::default);
        Ok(Counter::Model {
            folder,
            max_tokens: card.max_tokens,
            loaded,
            tokenizer: None,
        })
    }

    fn send_chunks(
        &self,
        page: &Item,
        text: &str,
        outlet: &mut Outlet<'_>,
    ) -> Result<(), StageError> {
        let sizer = Sizer {
            limits: self.limits,
            tokenizer: self.counter.tokenizer(),
        };
        let mut n_chunks = 0;
        split(text, &sizer, &mut |chunk| {
            n_chunks += 1;
            outlet.send(part_of(page, n_chunks, chunk))
        })?;
        if n_chunks == 0 && self.keep_empty {
            outlet.send(part_of(page, 1, Chunk::EMPTY))?;
        }
        Ok(())
    }
}

/// The item of one chunk: the page's fields with the chunk's text.
fn part_of(page: &Item, part: u32, chunk: Chunk<'_>) -> Item {
    let mut item = page.clone().with_part(part);
    item.set(Field::TEXT.name, chunk.text);
    item.set(CHAR_START.name, chunk.char_start as i64);
    item.set(CHAR_END.name, chunk.char_end as i64);
    item
}

impl Counter {
    fn tokenizer(&self) -> Option<&TextTokenizer> {
        match self {
            Self::Estimate => None,
            Self::Model { tokenizer, .. } => tokenizer.as_ref(),
        }
    }
}

impl Stage for ChunkText {
    fn start(&mut self) -> Result<(), StageError> {
        if let Counter::Model {
            folder,
            max_tokens,
            loaded,
            tokenizer,
        } = &mut self.counter
        {
            let load = || TextTokenizer::load(folder, *max_tokens);
            let shared = loaded.get_or_load(load).map_err(models::fatal)?;
            *tokenizer = Some(TextTokenizer::clone(&shared));
        }
        Ok(())
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for mut page in batch {
            if outlet.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            // A chunk is no place on the page, and its pixels would be stored
            // or carried once for each.
            page.remove(&Field::IMAGE.name);
            page.remove(&Field::WORDS.name);
            if let Some(Value::Text(text)) = page.get(&Field::TEXT.name) {
                let text = Arc::clone(text);
                self.send_chunks(&page, &text, outlet)?;
            } else {
                let error = ItemError::missing("split", &Field::TEXT.name);
                outlet.dead_letter(page, error);
            }
        }
        Ok(())
    }
}

/// Measures text against the limits: in tokens and in characters, both scaled so
/// that the most of them is [`ChunkLimits::capacity`].
pub(crate) struct Sizer<'a> {
    pub(crate) limits: ChunkLimits,
    pub(crate) tokenizer: Option<&'a TextTokenizer>,
}

impl ChunkSizer for Sizer<'_> {
    fn size(&self, chunk: &str) -> usize {
        let capacity = self.limits.capacity();
        let by_chars = scaled(chunk.chars().count(), capacity, self.limits.max_chars);
        if by_chars > capacity {
            return by_chars; // Too long whatever it has in tokens: they need no counting.
        }
        let n_tokens = match self.tokenizer {
            Some(tokenizer) => tokenizer.count(chunk),
            None => chunk.len().div_ceil(4),
        };
        by_chars.max(scaled(n_tokens, capacity, self.limits.max_tokens))
    }
}

/// `n` in a unit of which there are `capacity` where of `n` there are `limit`. It is
/// more than `capacity` exactly where `n` is more than `limit`.
fn scaled(n: usize, capacity: usize, limit: usize) -> usize {
    let scaled = (n as u128 * capacity as u128).div_ceil(limit as u128);
    usize::try_from(scaled).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;

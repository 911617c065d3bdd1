//! The vocabulary of a generative model: text to ids and back, special tokens included.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::files;
use crate::tokenizer::TextTokenizer;

/// The padding token of the Qwen family, where `tokenizer_config.json` names none.
const PAD_TOKEN: &str = "<|endoftext|>";

/// A byte-level vocabulary, which neither cuts nor pads.
pub(crate) struct Vocabulary {
    tokenizer: TextTokenizer,
    pad_token: String,
}

/// What one token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes, which need not be whole characters.
    Text(Vec<u8>),
    /// A mark such as the end of a turn.
    Special(String),
    /// Networks have more ids than vocabularies, to fill their matrices up.
    Nothing,
}

/// The letters that stand for bytes in byte-level vocabularies: printable ones for themselves,
/// the others in order from U+0100 on.
fn byte_letters() -> HashMap<char, u8> {
    let mut next = 0x100;
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
        _ => {
            let letter = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
            next += 1;
            (letter, byte)
        }
    };
    (0..=255).map(letter).collect()
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    pad_token: Option<Value>,
}

impl Vocabulary {
    /// Reads `tokenizer.json` of the first folder that has one.
    ///
    /// # Errors
    /// None has, or it is damaged.
    pub(crate) fn read_first(folders: &[&Path]) -> Result<Self, ModelError> {
        const FILE: &str = "tokenizer.json";
        let with = folders.iter().find(|folder| folder.join(FILE).is_file());
        let last = folders.last().copied().unwrap_or(Path::new(""));
        let folder = with.ok_or_else(|| ModelError::MissingFile {
            file: FILE.into(),
            folder: last.to_owned(),
        })?;
        // No limit: questions are cut by those who know what follows them.
        let tokenizer = TextTokenizer::load(folder, usize::MAX)?;
        let config: Option<TokenizerConfig> =
            files::read_optional_json(&folder.join("tokenizer_config.json"))?;
        let pad_token = match config.unwrap_or_default().pad_token {
            Some(Value::String(token)) => token,
            Some(Value::Object(token)) => token
                .get("content")
                .and_then(Value::as_str)
                .unwrap_or(PAD_TOKEN)
                .to_owned(),
            _ => PAD_TOKEN.to_owned(),
        };
        Ok(Self {
            tokenizer,
            pad_token,
        })
    }

    /// The token that pads, as text.
    pub(crate) fn pad_token(&self) -> &str {
        &self.pad_token
    }

    /// Tokens of a text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.tokenizer.count(text)
    }

    /// What each id stands for, up to `vocab_size`; `None` if the vocabulary is not of bytes.
    pub(crate) fn pieces(&self, vocab_size: usize) -> Option<Vec<Piece>> {
        if !self.tokenizer.is_byte_level() {
            return None;
        }
        let bytes = byte_letters();
        let mut pieces = vec![Piece::Nothing; vocab_size];
        for (id, name, added) in self.tokenizer.tokens() {
            let Some(piece) = pieces.get_mut(id as usize) else {
                continue;
            };
            *piece = match added {
                Some(true) => Piece::Special(name),
                Some(false) => Piece::Text(name.into_bytes()),
                None => {
                    let letters: Option<Vec<u8>> = name
                        .chars()
                        .map(|letter| bytes.get(&letter).copied())
                        .collect();
                    letters.map_or(Piece::Nothing, Piece::Text)
                }
            };
        }
        Some(pieces)
    }

    /// The ids of a text; special tokens in it are recognized.
    ///
    /// # Errors
    /// The library refuses the text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(text)
    }

    /// The words of a text, as white space and tokens divide it, each with its tokens.
    ///
    /// # Errors
    /// The library refuses the text.
    pub(crate) fn words(&self, text: &str) -> Result<Vec<(String, Range<usize>)>, ModelError> {
        let mut words: Vec<(String, Range<usize>)> = Vec::new();
        for (token, piece) in self.tokenizer.pieces(text)?.into_iter().enumerate() {
            // A letter of several tokens belongs to the first; the others are between letters.
            let piece = text.get(piece).unwrap_or_default();
            // Byte-level tokens keep the space before a word; the letters of one word go on.
            let goes_on = piece.chars().next().is_none_or(char::is_alphanumeric)
                && words
                    .last()
                    .is_some_and(|(word, _)| word.ends_with(char::is_alphanumeric));
            match words.last_mut().filter(|_| goes_on) {
                Some((word, tokens)) => {
                    word.push_str(piece);
                    tokens.end = token + 1;
                }
                None => words.push((piece.to_owned(), token..token + 1)),
            }
        }
        for (word, _) in &mut words {
            *word = word.trim().to_owned();
        }
        words.retain(|(word, _)| word.chars().any(char::is_alphanumeric));
        Ok(words)
    }

    /// Checks that the network has a vector for every id.
    ///
    /// # Errors
    /// The vocabulary is larger than the network's.
    pub(crate) fn check_size(&self, vocab_size: usize, folder: &Path) -> Result<(), ModelError> {
        let n_ids = self.tokenizer.n_ids();
        if n_ids <= vocab_size {
            return Ok(());
        }
        Err(ModelError::InvalidSetting {
            field: "vocab_size",
            problem: format!(
                "is {vocab_size}, but the tokenizer has ids up to {}",
                n_ids - 1
            ),
            path: folder.join("config.json"),
        })
    }
}

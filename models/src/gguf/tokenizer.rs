//! The vocabulary in a GGUF file, as the `tokenizer.json` it was made of.

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::error::ModelError;

/// How text is cut into words before their bytes are merged: the `qwen2` of
/// `tokenizer.ggml.pre`.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNUSED: f64 = 5.0;

/// The whole file; `None` if there is no vocabulary here.
///
/// # Errors
/// The vocabulary is of a kind that this crate does not know.
pub(super) fn json(file: &Gguf) -> Result<Option<Value>, ModelError> {
    let header = &file.header;
    let Some(tokens) = header.texts("tokenizer.ggml.tokens") else {
        return Ok(None);
    };
    let check = |field: &str, supported: &'static [&'static str]| {
        let found = header.text(field).unwrap_or(supported[0]);
        if supported.contains(&found) {
            return Ok(());
        }
        Err(ModelError::Unsupported {
            field: field.into(),
            found: found.into(),
            supported,
            path: file.path.clone(),
        })
    };
    check("tokenizer.ggml.model", &["gpt2"])?;
    check("tokenizer.ggml.pre", &["qwen2", "deepseek-r1-qwen"])?;
    let kinds = header.numbers("tokenizer.ggml.token_type").unwrap_or(&[]);
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(1.0);
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kind == CONTROL,
            }));
        } else if kind != UNUSED {
            vocab.insert(token.clone(), id.into());
        }
    }
    let merges = header.texts("tokenizer.ggml.merges").unwrap_or(&[]);
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    Ok(Some(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false},
            bytes,
        ]},
        "post_processor": bytes,
        "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })))
}

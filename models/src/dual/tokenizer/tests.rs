use serde_json::json;

use super::*;
use crate::dual::config::DualConfig;
use crate::reference::{Expected, own};

fn read(folder: &Path) -> DualTokenizer {
    let config = DualConfig::read(folder).unwrap();
    let text = config.text.unwrap();
    DualTokenizer::read(folder, &text, config.family, None)
        .unwrap()
        .unwrap()
}

/// A vocabulary of words, an end token behind each text, and whatever `config` is.
fn toy(model_type: &str, config: &Value, padding: &Value) -> DualTokenizer {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let words = ["<pad>", "</s>", "<unk>", "a", "b", "A", "b!", "</pad>"];
    let vocabulary: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), id.into()))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": padding, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [], "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocabulary}
    });
    let write = |name: &str, value: &Value| fs::write(root.join(name), value.to_string()).unwrap();
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", config);
    let text = json!({"max_position_embeddings": 5, "pad_token_id": 4, "vocab_size": 8});
    write(
        "config.json",
        &json!({"model_type": model_type, "text_config": text}),
    );
    read(root)
}

fn shipped(direction: &str, length: usize) -> Value {
    json!({"strategy": {"Fixed": length}, "direction": direction, "pad_to_multiple_of": null,
        "pad_id": 7, "pad_type_id": 0, "pad_token": "</pad>"})
}

#[test]
fn ids_are_those_of_the_reference_processors() {
    for name in ["clip", "clip_old", "siglip", "siglip2"] {
        let folder = own(name);
        let tokenizer = read(&folder);
        let expected = Expected::read(&folder.join("expected.safetensors"));
        for (index, text) in expected.strings("queries").iter().enumerate() {
            let ours: Vec<i64> = tokenizer
                .encode(text)
                .unwrap()
                .into_iter()
                .map(i64::from)
                .collect();
            let (_, theirs) = expected.integers(&format!("ids.text.{index}"));
            assert_eq!(ours, theirs, "{name}: {text}");
        }
    }
}

#[test]
fn clip_cuts_before_its_end_token_and_fills_nothing_up() {
    let tokenizer = toy(
        "clip",
        &json!({"model_max_length": 4}),
        &shipped("Right", 5),
    );
    assert_eq!(tokenizer.encode("a").unwrap(), [3, 1]);
    assert_eq!(tokenizer.encode("a b a b a b").unwrap(), [3, 4, 3, 1]);
    assert_eq!(tokenizer.encode("A b!").unwrap(), [5, 6, 1]);
}

#[test]
fn siglip_drops_case_and_punctuation_only_under_its_own_tokenizer() {
    let own = json!({"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"});
    let tokenizer = toy("siglip", &own, &Value::Null);
    assert_eq!(tokenizer.encode(" A  b! ").unwrap(), [3, 4, 1, 1, 1]);
    assert_eq!(tokenizer.max_tokens(), 5);
    let other = json!({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"});
    let tokenizer = toy("siglip", &other, &Value::Null);
    assert_eq!(tokenizer.encode("A b!").unwrap(), [5, 6, 1, 0, 0]);
}

#[test]
fn siglip2_reads_lower_case_in_both_kinds_of_checkpoint() {
    let gemma = json!({"tokenizer_class": "GemmaTokenizerFast", "padding_side": "right"});
    for model_type in ["siglip", "siglip2"] {
        let tokenizer = toy(model_type, &gemma, &Value::Null);
        assert_eq!(
            tokenizer.encode("A b!").unwrap(),
            [3, 6, 1, 0, 0],
            "{model_type}"
        );
    }
}

#[test]
fn padding_is_what_the_first_file_that_knows_says() {
    // Nothing is said: the class's own side and token.
    let tokenizer = toy("siglip2", &json!({}), &Value::Null);
    assert_eq!(tokenizer.encode("a").unwrap(), [0, 0, 0, 3, 1]);
    let tokenizer = toy("siglip", &json!({}), &Value::Null);
    assert_eq!(tokenizer.encode("a").unwrap(), [3, 1, 1, 1, 1]);
    // `tokenizer.json` says it.
    let tokenizer = toy("siglip2", &json!({}), &shipped("Right", 4));
    assert_eq!(tokenizer.encode("a").unwrap(), [3, 1, 7, 7]);
    // `tokenizer_config.json` says it.
    let both = json!({"padding_side": "left", "pad_token": {"content": "b"}});
    let tokenizer = toy("siglip2", &both, &shipped("Right", 4));
    assert_eq!(tokenizer.encode("a").unwrap(), [4, 4, 3, 1]);
    // A token that the vocabulary lacks: the network's configuration.
    let tokenizer = toy("siglip", &json!({"pad_token": "<none>"}), &Value::Null);
    assert_eq!(tokenizer.encode("a").unwrap(), [3, 1, 4, 4, 4]);
}

#[test]
fn siglip_is_cut_at_the_stated_length_or_at_the_last_position() {
    let stated = json!({"model_max_length": 3, "padding_side": "right", "pad_token": "<pad>"});
    let tokenizer = toy("siglip", &stated, &Value::Null);
    assert_eq!(tokenizer.encode("a b a b").unwrap(), [3, 4, 1]);
    let endless = json!({"model_max_length": 1e30, "padding_side": "right"});
    let tokenizer = toy("siglip", &endless, &Value::Null);
    assert_eq!(tokenizer.encode("a b a b a b").unwrap(), [3, 4, 3, 4, 1]);
}

#[test]
fn a_limit_of_the_callers_cuts_sooner_but_fills_up_as_far_as_ever() {
    let folder = own("siglip");
    let config = DualConfig::read(&folder).unwrap();
    let read = |max_tokens| {
        let text = config.text.as_ref().unwrap();
        DualTokenizer::read(&folder, text, config.family, Some(max_tokens)).map(Option::unwrap)
    };
    let whole = read(999)
        .unwrap()
        .encode("the river the river the river")
        .unwrap();
    let cut = read(3)
        .unwrap()
        .encode("the river the river the river")
        .unwrap();
    assert_eq!((whole.len(), cut.len()), (16, 16));
    assert_eq!((&cut[..2], &cut[2..]), (&whole[..2], &[1; 14][..]));
    let message = read(1).err().unwrap().to_string();
    let start = "`max_tokens` is 1, but 1 go to special tokens alone: ";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn a_tokenizer_with_more_ids_than_the_network_is_refused() {
    let folder = own("clip");
    let config = DualConfig::read(&folder).unwrap();
    let text = TextConfig {
        vocabulary: 9,
        ..config.text.unwrap()
    };
    let message = DualTokenizer::read(&folder, &text, config.family, None)
        .err()
        .unwrap();
    let message = message.to_string();
    let start = "`vocab_size` is 9, but the tokenizer has ids up to ";
    assert!(message.starts_with(start), "{message}");
}

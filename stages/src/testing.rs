//! For the tests of this crate: pages, and a model so small that it loads at once.

pub(crate) mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pagemill_models::ModelPlaces;
use pagemill_pipeline::{Image, Item, Resources};
use serde_json::json;

/// Page 1 of `a.pdf`, white.
pub(crate) fn blank_page(width_px: u32, height_px: u32) -> Item {
    let n_bytes = width_px as usize * height_px as usize * 3;
    page_of(vec![255; n_bytes], width_px, height_px)
}

/// Page 1 of `a.pdf` with these pixels, whether or not they fit the sides.
pub(crate) fn page_of(pixels: Vec<u8>, width_px: u32, height_px: u32) -> Item {
    let image = Image {
        pixels: pixels.into(),
        width_px,
        height_px,
        dpi: None,
    };
    Item::of_text("a.pdf", "").with_page(1).with("image", image)
}

/// The name under which [`with_tiny_model`] puts its model.
pub(crate) const TINY_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// Length of its vectors.
pub(crate) const TINY_DIM: usize = 4;
/// The most tokens that it reads.
pub(crate) const TINY_MAX_TOKENS: usize = 16;
/// Its vector of any text with this word is not a number.
pub(crate) const BAD_WORD: &str = "bad";

const WORDS: [&str; 8] = [
    "[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "mill", "turns", BAD_WORD,
];

/// Resources whose model places are below `root`, where the tiny model lies.
pub(crate) fn with_tiny_model(root: &Path) -> Resources {
    let places = ModelPlaces {
        pagemill_cache: root.join("pagemill"),
        hugging_face: root.join("hub"),
        hub: pagemill_models::Hub::default(),
    };
    let folder = places.own_folder(TINY_MODEL);
    fs::create_dir_all(&folder).unwrap();
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
        "vocab_size": WORDS.len(), "hidden_size": TINY_DIM, "type_vocab_size": 2,
        "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": TINY_DIM,
        "max_position_embeddings": TINY_MAX_TOKENS, "layer_norm_eps": 1e-12
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), weights()).unwrap();
    put_visual(&places, "colqwen2_5", VISUAL_MODEL);
    put_visual(&places, "clip", PICTURE_MODEL);
    put_visual(&places, "qwen2_5_vl", SPEAKING_MODEL);
    let resources = Resources::default();
    resources.insert("", places);
    resources
}

/// A small late-interaction model, among those of [`with_tiny_model`].
pub(crate) const VISUAL_MODEL: &str = "vidore/colqwen2.5-v0.2";
/// And one with a vector for each picture.
pub(crate) const PICTURE_MODEL: &str = "openai/clip-vit-base-patch32";

/// One that writes: nonsense, but always the same.
pub(crate) const SPEAKING_MODEL: &str = "Qwen/Qwen2.5-VL-3B-Instruct";

/// Puts one of the fixtures of `pagemill-models` where its name is looked up.
fn put_visual(places: &ModelPlaces, fixture: &str, name: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/fixtures")
        .join(fixture);
    let to = places.own_folder(name);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        if entry.file_name() != "expected.safetensors" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn tokenizer() -> serde_json::Value {
    let vocabulary: BTreeMap<&str, usize> = WORDS
        .iter()
        .enumerate()
        .map(|(id, word)| (*word, id))
        .collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "lowercase": true,
            "handle_chinese_chars": true, "strip_accents": null},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}
    })
}

/// The file format of safetensors: length of the header, header, numbers.
fn weights() -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    let mut put = |name: String, shape: &[usize], value: &dyn Fn(usize) -> f32| {
        let from = data.len();
        let n: usize = shape.iter().product();
        data.extend((0..n).flat_map(|i| value(i).to_le_bytes()));
        let tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]});
        header.insert(name, tensor);
    };
    let d = TINY_DIM;
    let wave = |i: usize| (i as f32 * 1.7).sin();
    let word = |i: usize| {
        if i / d == WORDS.len() - 1 {
            f32::NAN
        } else {
            wave(i)
        }
    };
    put(
        "embeddings.word_embeddings.weight".into(),
        &[WORDS.len(), d],
        &word,
    );
    put(
        "embeddings.position_embeddings.weight".into(),
        &[TINY_MAX_TOKENS, d],
        &wave,
    );
    put(
        "embeddings.token_type_embeddings.weight".into(),
        &[2, d],
        &wave,
    );
    let layer = "encoder.layer.0";
    for norm in [
        "embeddings.LayerNorm".to_owned(),
        format!("{layer}.attention.output.LayerNorm"),
        format!("{layer}.output.LayerNorm"),
    ] {
        put(format!("{norm}.weight"), &[d], &|_| 1.0);
        put(format!("{norm}.bias"), &[d], &|_| 0.0);
    }
    for linear in [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ] {
        put(format!("{layer}.{linear}.weight"), &[d, d], &wave);
        put(format!("{layer}.{linear}.bias"), &[d], &wave);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    file
}

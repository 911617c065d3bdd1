//! Converts the metadata of GGUF files to the JSON files that other models have.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::header::{Header, Value as Found};
use super::names::{self, Tower};
use super::{Gguf, GgufModel, is_in, tokenizer};
use crate::error::ModelError;

/// The files that a folder of GGUF files needs not have.
const FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Architectures of language models.
const ARCHITECTURES: &[&str] = &["qwen2", "qwen3", "qwen2vl", "qwen3vl"];

/// Tokens after which a model of the Qwen family has no more to say.
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// Whether the folder of the JSON file `path` has GGUF files, which may say what it would.
pub(crate) fn may_stand_in(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    FILES.iter().any(|file| *file == name) && path.parent().is_some_and(is_in)
}

/// What the JSON file `path`, which is not there, would say, if the GGUF files of its folder
/// tell.
///
/// # Errors
/// They are damaged, or of a network that this crate does not compute.
pub(crate) fn stand_in(path: &Path) -> Result<Option<Value>, ModelError> {
    if !may_stand_in(path) {
        return Ok(None);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let Some(model) = GgufModel::find(folder)? else {
        return Ok(None);
    };
    match path.file_name().unwrap_or_default().to_str() {
        Some("config.json") => config(&model).map(Some),
        Some("generation_config.json") => Ok(Some(generation_config(model.main()?))),
        Some("preprocessor_config.json") => Ok(model.vision.as_ref().map(preprocessor_config)),
        Some("tokenizer.json") => tokenizer::json(model.main()?),
        Some("tokenizer_config.json") => Ok(Some(tokenizer_config(model.main()?))),
        _ => Ok(None),
    }
}

/// The id of a token by its text.
fn token_id(header: &Header, token: &str) -> Option<usize> {
    let tokens = header.texts("tokenizer.ggml.tokens")?;
    tokens.iter().position(|own| own == token)
}

/// A token whose id the file has under `key`.
fn token(header: &Header, key: &str) -> Option<String> {
    let id = usize::try_from(header.number(key)?).ok()?;
    header.texts("tokenizer.ggml.tokens")?.get(id).cloned()
}

fn put(object: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object.insert(key.into(), value.into());
    }
}

fn config(model: &GgufModel) -> Result<Value, ModelError> {
    let main = model.main()?;
    let header = &main.header;
    let architecture = header.text("general.architecture").unwrap_or_default();
    let unsupported = |field: &str, found: &str, supported, file: &Gguf| ModelError::Unsupported {
        field: field.into(),
        found: found.into(),
        supported,
        path: file.path.clone(),
    };
    let (model_type, class) = match architecture {
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        "qwen2vl" => ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
        "qwen3vl" => ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
        other => {
            let field = "general.architecture";
            return Err(unsupported(field, other, ARCHITECTURES, main));
        }
    };
    let mut config = Map::new();
    config.insert("model_type".into(), model_type.into());
    config.insert("architectures".into(), json!([class]));
    let key = |part: &str| format!("{architecture}.{part}");
    let mut text = text_config(header, &key);
    let scaling = header.text(&key("rope.scaling.type")).unwrap_or("none");
    let mut rope = Map::new();
    let kind = if scaling == "none" {
        "default"
    } else {
        scaling
    };
    rope.insert("rope_type".into(), kind.into());
    put(
        &mut rope,
        "rope_theta",
        header.float(&key("rope.freq_base")),
    );
    if let Some(section) = header.numbers(&key("rope.dimension_sections")) {
        let section: Vec<u64> = section.iter().take(3).map(|part| *part as u64).collect();
        rope.insert("mrope_section".into(), section.into());
    }
    text.insert("rope_parameters".into(), rope.into());
    for (name, token) in [
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ] {
        put(&mut config, name, token_id(header, token));
    }
    for (name, key) in [("eos_token_id", "eos"), ("bos_token_id", "bos")] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        put(&mut config, name, header.number(&key));
    }
    let tied = header.tensor("output.weight").is_none()
        && model
            .text
            .iter()
            .all(|part| part.header.tensor("output.weight").is_none());
    config.insert("tie_word_embeddings".into(), tied.into());
    if !architecture.ends_with("vl") {
        config.append(&mut text);
        return Ok(config.into());
    }
    config.insert("text_config".into(), text.into());
    let Some(vision) = &model.vision else {
        return Err(ModelError::MissingFile {
            file: "mmproj*.gguf".into(),
            folder: model.folder.clone(),
        });
    };
    let projector = names::projector(&vision.header);
    let fits = match architecture {
        "qwen2vl" => projector == "qwen2.5vl_merger",
        _ => projector == "qwen3vl_merger",
    };
    if !fits {
        let supported: &[&str] = match architecture {
            "qwen2vl" => &["qwen2.5vl_merger"],
            _ => &["qwen3vl_merger"],
        };
        return Err(unsupported(
            "clip.projector_type",
            projector,
            supported,
            vision,
        ));
    }
    config.insert("vision_config".into(), vision_config(&vision.header));
    Ok(config.into())
}

fn text_config(header: &Header, key: &dyn Fn(&str) -> String) -> Map<String, Value> {
    let mut text = Map::new();
    for (name, part) in [
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("max_position_embeddings", "context_length"),
    ] {
        put(&mut text, name, header.number(&key(part)));
    }
    let epsilon = header.float(&key("attention.layer_norm_rms_epsilon"));
    put(&mut text, "rms_norm_eps", epsilon);
    // The vocabulary's list may be shorter than the table.
    let table = header.tensor("token_embd.weight");
    let n_rows = table.and_then(|info| info.shape.first().copied());
    put(&mut text, "vocab_size", n_rows);
    text.insert("hidden_act".into(), "silu".into());
    let biased = header.tensor("blk.0.attn_q.bias").is_some();
    text.insert("attention_bias".into(), biased.into());
    text
}

fn vision_config(header: &Header) -> Value {
    let tower = Tower::of(header);
    let mut config = Map::new();
    for (name, part) in [
        ("depth", "block_count"),
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_heads", "attention.head_count"),
        ("patch_size", "patch_size"),
        ("spatial_merge_size", "spatial_merge_size"),
        ("window_size", "window_size"),
    ] {
        let value = header.number(&format!("clip.vision.{part}"));
        put(&mut config, name, value.filter(|value| *value > 0));
    }
    let rows = |name: &str| header.tensor(name)?.shape.first().copied();
    put(&mut config, "out_hidden_size", rows("mm.2.weight"));
    if tower.newer {
        put(
            &mut config,
            "num_position_embeddings",
            rows("v.position_embd.weight"),
        );
        config.insert("deepstack_visual_indexes".into(), tower.deepstack.into());
    } else {
        let every = header.number("clip.vision.n_wa_pattern");
        let depth = header.number("clip.vision.block_count");
        // A hostile depth must not become a list.
        if let (Some(every @ 1..), Some(depth @ ..4096)) = (every, depth) {
            let whole: Vec<u64> = (1..=depth / every).map(|n| n * every - 1).collect();
            config.insert("fullatt_block_indexes".into(), whole.into());
        }
    }
    config.into()
}

fn generation_config(file: &Gguf) -> Value {
    let header = &file.header;
    let id = |name: &str| header.number(&format!("tokenizer.ggml.{name}_token_id"));
    let named = ENDS.iter().filter_map(|token| token_id(header, token));
    let mut ends: Vec<u64> = [id("eos"), id("eot")].into_iter().flatten().collect();
    ends.extend(named.map(|id| id as u64));
    let mut unique = Vec::new();
    for end in ends {
        if !unique.contains(&end) {
            unique.push(end);
        }
    }
    let mut config = Map::new();
    config.insert("eos_token_id".into(), unique.into());
    put(&mut config, "bos_token_id", id("bos"));
    put(&mut config, "pad_token_id", id("padding"));
    config.into()
}

fn preprocessor_config(file: &Gguf) -> Value {
    let header = &file.header;
    let newer = Tower::of(header).newer;
    let mut config = Map::new();
    config.insert(
        "image_processor_type".into(),
        "Qwen2VLImageProcessor".into(),
    );
    let number = |part: &str| header.number(&format!("clip.vision.{part}"));
    let patch = number("patch_size").unwrap_or(if newer { 16 } else { 14 });
    config.insert("patch_size".into(), patch.into());
    let merge = number("spatial_merge_size").unwrap_or(2);
    config.insert("merge_size".into(), merge.into());
    config.insert("temporal_patch_size".into(), 2.into());
    for (name, part) in [("image_mean", "image_mean"), ("image_std", "image_std")] {
        let numbers = header.numbers(&format!("clip.vision.{part}"));
        let known = numbers.map(<[f64]>::to_vec);
        let usual = newer.then(|| vec![0.5; 3]);
        put(&mut config, name, known.or(usual));
    }
    for (name, part) in [
        ("min_pixels", "image_min_pixels"),
        ("max_pixels", "image_max_pixels"),
    ] {
        put(&mut config, name, number(part));
    }
    config.into()
}

fn tokenizer_config(file: &Gguf) -> Value {
    let header = &file.header;
    let mut config = Map::new();
    let template = header.text("tokenizer.chat_template");
    put(&mut config, "chat_template", template);
    for (name, key) in [("eos", "eos"), ("bos", "bos"), ("pad", "padding")] {
        let token = token(header, &format!("tokenizer.ggml.{key}_token_id"));
        put(&mut config, &format!("{name}_token"), token);
    }
    if let Some(Found::Bool(add)) = header.value("tokenizer.ggml.add_bos_token") {
        config.insert("add_bos_token".into(), (*add).into());
    }
    config.into()
}

//! Whole networks, converted here as llama.cpp's script converts them, against themselves.

use std::path::Path;

use serde_json::Value as Json;

use super::*;
use crate::loader::{Loader, LoaderOptions};
use crate::open::open_model;
use crate::preprocess::Patches;
use crate::qwen::config::QwenConfig;
use crate::qwen::decoder::Output;
use crate::qwen::{Prompt, Qwen};
use crate::reference::{difference, patches, shared};
use crate::weights::Weights;

/// The language model's and the vision tower's file of a checkpoint of floats.
struct Converted {
    text: Vec<Stored>,
    vision: Vec<Stored>,
}

fn renamed(name: &str, pairs: &[(&str, &str)]) -> String {
    let (_, new) = pairs
        .iter()
        .find(|(old, _)| name.contains(old))
        .unwrap_or_else(|| panic!("{name} has no name there"));
    new.to_string()
}

/// As the network has it: `language_model.layers.3.mlp.up_proj.weight`.
fn text_name(name: &str) -> String {
    let suffix = name.rsplit('.').next().unwrap();
    match name {
        "lm_head.weight" => return "output.weight".into(),
        "language_model.norm.weight" => return "output_norm.weight".into(),
        "language_model.embed_tokens.weight" => return "token_embd.weight".into(),
        _ => {}
    }
    let layer = name.split('.').nth(2).unwrap();
    let part = renamed(
        name,
        &[
            ("q_proj", "attn_q"),
            ("k_proj", "attn_k"),
            ("v_proj", "attn_v"),
            ("o_proj", "attn_output"),
            ("q_norm", "attn_q_norm"),
            ("k_norm", "attn_k_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("gate_proj", "ffn_gate"),
            ("up_proj", "ffn_up"),
            ("down_proj", "ffn_down"),
        ],
    );
    format!("blk.{layer}.{part}.{suffix}")
}

fn vision_name(name: &str, deepstack: &[u64]) -> String {
    let suffix = name.rsplit('.').next().unwrap();
    let number = |place| name.split('.').nth(place).unwrap();
    if name.starts_with("visual.deepstack_merger_list") {
        let pairs = [
            ("norm", "norm"),
            ("linear_fc1", "fc1"),
            ("linear_fc2", "fc2"),
        ];
        let block = deepstack[number(2).parse::<usize>().unwrap()];
        return format!("v.deepstack.{block}.{}.{suffix}", renamed(name, &pairs));
    }
    if name.starts_with("visual.blocks") {
        let part = renamed(
            name,
            &[
                ("norm1", "ln1"),
                ("norm2", "ln2"),
                ("attn.proj", "attn_out"),
                ("attn.qkv", "attn_qkv"),
                ("gate_proj", "ffn_gate"),
                ("up_proj", "ffn_up"),
                ("down_proj", "ffn_down"),
                ("linear_fc1", "ffn_up"),
                ("linear_fc2", "ffn_down"),
            ],
        );
        return format!("v.blk.{}.{part}.{suffix}", number(2));
    }
    let part = renamed(
        name,
        &[
            ("patch_embed.proj", "v.patch_embd"),
            ("pos_embed", "v.position_embd"),
            ("merger.ln_q", "v.post_ln"),
            ("merger.norm", "v.post_ln"),
            ("merger.mlp.0", "mm.0"),
            ("merger.mlp.2", "mm.2"),
            ("merger.linear_fc1", "mm.0"),
            ("merger.linear_fc2", "mm.2"),
        ],
    );
    format!("{part}.{suffix}")
}

fn convert(weights: &Weights, newer: bool, deepstack: &[u64]) -> Converted {
    let (mut text, mut vision) = (Vec::new(), Vec::new());
    for name in weights.names() {
        let shape = weights.shape(name).unwrap().to_vec();
        let values = weights.f32_values(name).unwrap();
        let float = |name: String, shape: Vec<usize>, values: &[f32]| {
            (name, GgmlDType::F32, shape, f32s(values))
        };
        if !name.starts_with("visual.") {
            text.push(float(text_name(name), shape, &values));
            continue;
        }
        let ours = vision_name(name, deepstack);
        if name == "visual.patch_embed.proj.weight" {
            let plane = shape[3] * shape[4];
            for frame in 0..2 {
                let own = values.chunks(2 * plane).flat_map(|both| {
                    let both: Vec<&[f32]> = both.chunks(plane).collect();
                    both[frame].to_vec()
                });
                let own: Vec<f32> = own.collect();
                let name = format!("{ours}{}", if frame == 1 { ".1" } else { "" });
                let shape = vec![shape[0], shape[1], shape[3], shape[4]];
                vision.push(float(name, shape, &own));
            }
        } else if ours.contains("attn_qkv") && !newer {
            let mut third = shape.clone();
            third[0] /= 3;
            for (values, part) in values.chunks(values.len() / 3).zip(["q", "k", "v"]) {
                let name = ours.replace("attn_qkv", &format!("attn_{part}"));
                vision.push(float(name, third.clone(), values));
            }
        } else {
            vision.push(float(ours, shape, &values));
        }
    }
    Converted { text, vision }
}

fn number(value: &Json) -> Value<'static> {
    Value::Number(value.as_u64().unwrap() as u32)
}

fn write(source: &Path, folder: &Path, newer: bool) {
    let config: Json = files::read_json(&source.join("config.json")).unwrap();
    let (text, vision) = (&config["text_config"], &config["vision_config"]);
    let deepstack: Vec<u64> = vision["deepstack_visual_indexes"]
        .as_array()
        .map(|blocks| blocks.iter().map(|block| block.as_u64().unwrap()).collect())
        .unwrap_or_default();
    let weights = Weights::open_renamed(source, "model", canonical_qwen_name).unwrap();
    let converted = convert(&weights, newer, &deepstack);
    let architecture = if newer { "qwen3vl" } else { "qwen2vl" };
    let rope = &text["rope_parameters"];
    let mut sections: Vec<i32> = rope["mrope_section"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part.as_i64().unwrap() as i32)
        .collect();
    sections.push(0);
    // Only the image token's id matters here.
    let vocabulary: Vec<String> = (0..text["vocab_size"].as_u64().unwrap())
        .map(|id| {
            if Some(id) == config["image_token_id"].as_u64() {
                "<|image_pad|>".to_owned()
            } else {
                format!("token {id}")
            }
        })
        .collect();
    let own = |key: &str| format!("{architecture}.{key}");
    let mut values = vec![
        ("general.architecture".to_owned(), Value::Text(architecture)),
        (own("rope.dimension_sections"), Value::Numbers(sections)),
        (
            own("rope.freq_base"),
            Value::Float(rope["rope_theta"].as_f64().unwrap() as f32),
        ),
        (
            own("attention.layer_norm_rms_epsilon"),
            Value::Float(text["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
        (
            "tokenizer.ggml.tokens".into(),
            Value::Texts(vocabulary.iter().map(String::as_str).collect()),
        ),
        (own("block_count"), number(&text["num_hidden_layers"])),
        (own("embedding_length"), number(&text["hidden_size"])),
        (
            own("feed_forward_length"),
            number(&text["intermediate_size"]),
        ),
        (
            own("attention.head_count"),
            number(&text["num_attention_heads"]),
        ),
        (
            own("attention.head_count_kv"),
            number(&text["num_key_value_heads"]),
        ),
        (
            own("context_length"),
            number(&text["max_position_embeddings"]),
        ),
    ];
    if newer {
        values.push((own("attention.key_length"), number(&text["head_dim"])));
    }
    let values: Vec<(&str, Value<'_>)> = values
        .into_iter()
        .map(|(key, value)| (&*key.leak(), value))
        .collect();
    fs::write(folder.join("m.gguf"), file(&values, &converted.text)).unwrap();
    let projector = if newer {
        "qwen3vl_merger"
    } else {
        "qwen2.5vl_merger"
    };
    let mut values = vec![
        ("general.architecture", Value::Text("clip")),
        ("clip.projector_type", Value::Text(projector)),
        ("clip.vision.block_count", number(&vision["depth"])),
        (
            "clip.vision.embedding_length",
            number(&vision["hidden_size"]),
        ),
        (
            "clip.vision.feed_forward_length",
            number(&vision["intermediate_size"]),
        ),
        (
            "clip.vision.attention.head_count",
            number(&vision["num_heads"]),
        ),
        ("clip.vision.patch_size", number(&vision["patch_size"])),
        (
            "clip.vision.spatial_merge_size",
            number(&vision["spatial_merge_size"]),
        ),
    ];
    if let Some(first) = vision["fullatt_block_indexes"][0].as_u64() {
        values.push(("clip.vision.n_wa_pattern", Value::Number(first as u32 + 1)));
    }
    fs::write(folder.join("mmproj.gguf"), file(&values, &converted.vision)).unwrap();
}

/// Scores after a prompt with an image.
fn scores(folder: &Path, page: &Patches) -> (String, Vec<f32>) {
    let model = open_model(folder).unwrap();
    let config = QwenConfig::read(folder).unwrap();
    let loader = Loader::new(&model, canonical_qwen_name, &LoaderOptions::default()).unwrap();
    let network = Qwen::load(&config, Output::Kept, &loader);
    loader.finish().unwrap();
    let prompt = Prompt::default()
        .text(&[5, 7])
        .image(page.grid)
        .text(&[9, 11, 13]);
    let laid_out = network.lay_out(&[prompt], &[page]).unwrap();
    let hidden = network.decoder.forward(laid_out.pass()).unwrap();
    let logits = network.decoder.logits(&hidden).unwrap();
    let logits = logits.flatten_all().unwrap().to_vec1().unwrap();
    let mut config = config;
    config.architecture.clear();
    config.end_token_ids.clear(); // Written with the tokenizer, which these files lack.
    (format!("{config:?}"), logits)
}

#[test]
fn a_network_with_its_tower_computes_the_same_from_gguf_files() {
    for (name, newer) in [
        ("qwen2_5_vl_tied", false),
        ("qwen2_5_vl_untied", false),
        ("qwen3_vl_tied", true),
        ("qwen3_vl_untied", true),
    ] {
        let Some(root) = shared(name) else { return };
        let source = root.join("model");
        let folder = tempfile::tempdir().unwrap();
        write(&source, folder.path(), newer);
        let processor = crate::col::open_processor(&[&source], None).unwrap();
        let page = fs::read_dir(root.join("png"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let page = patches(&processor, &page.path());
        let (their_config, theirs) = scores(&source, &page);
        let (our_config, ours) = scores(folder.path(), &page);
        assert_eq!(our_config, their_config, "{name}");
        let worst = difference(&ours, &theirs);
        assert!(worst < 1e-6, "{name}: {worst:e}");
        // The processor's own settings come from the tower's file.
        assert!(crate::col::open_processor(&[folder.path()], None).is_ok());
    }
}

//! Files written here: what they become, and what is said of damaged ones.

use std::fs;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::writer::{Tensor as Stored, Value, f32s, file};
use super::*;
use crate::checkpoint::Checkpoint;
use crate::files;
use crate::loader::canonical_qwen_name;
use crate::quantized::stored::tests::blocks;
use crate::resolve::{ModelPlaces, resolve};
use crate::revision::revision;
use crate::tokenizer::TextTokenizer;

fn vector(name: &str, n: usize) -> Stored {
    let values: Vec<f32> = (0..n).map(|i| i as f32 + 0.5).collect();
    (name.into(), GgmlDType::F32, vec![n], f32s(&values))
}

fn matrix(name: &str, format: GgmlDType, shape: [usize; 2]) -> Stored {
    let n_blocks = shape[0] * shape[1] / format.block_size();
    let seed = name.bytes().map(u64::from).sum();
    let bytes = match format {
        GgmlDType::F32 => f32s(&vec![0.25; shape[0] * shape[1]]),
        _ => blocks(format, n_blocks, seed),
    };
    (name.into(), format, shape.to_vec(), bytes)
}

const TOKENS: [&str; 8] = [
    "a",
    "b",
    "ab",
    "\u{120}",
    "\u{120}ab",
    "<|endoftext|>",
    "<|im_end|>",
    "[PAD7]",
];

fn metadata(architecture: &str) -> Vec<(String, Value<'_>)> {
    let mut values = vec![
        ("general.architecture".to_owned(), Value::Text(architecture)),
        (
            "tokenizer.ggml.tokens".into(),
            Value::Texts(TOKENS.to_vec()),
        ),
        (
            "tokenizer.ggml.token_type".into(),
            Value::Numbers(vec![1, 1, 1, 1, 1, 3, 3, 5]),
        ),
        (
            "tokenizer.ggml.merges".into(),
            Value::Texts(vec!["a b", "\u{120} ab"]),
        ),
        ("tokenizer.ggml.model".into(), Value::Text("gpt2")),
        ("tokenizer.ggml.pre".into(), Value::Text("qwen2")),
        ("tokenizer.ggml.eos_token_id".into(), Value::Number(6)),
        ("tokenizer.ggml.padding_token_id".into(), Value::Number(5)),
        (
            "tokenizer.chat_template".into(),
            Value::Text("{{ messages }}"),
        ),
        ("tokenizer.ggml.add_bos_token".into(), Value::Bool(false)),
    ];
    for (key, number) in [
        ("block_count", 1),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 16),
        ("context_length", 99),
    ] {
        values.push((format!("{architecture}.{key}"), Value::Number(number)));
    }
    values.push((
        format!("{architecture}.rope.freq_base"),
        Value::Float(10_000.0),
    ));
    values.push((
        format!("{architecture}.rope.dimension_sections"),
        Value::Numbers(vec![2, 3, 3, 0]),
    ));
    values
}

fn language_model(architecture: &str) -> Vec<u8> {
    let values = metadata(architecture);
    let values: Vec<(&str, Value<'_>)> = values
        .into_iter()
        .map(|(key, value)| (&*key.leak(), value))
        .collect();
    let tensors = [
        matrix("token_embd.weight", GgmlDType::Q8_0, [8, 32]),
        vector("output_norm.weight", 32),
        vector("blk.0.attn_norm.weight", 32),
        matrix("blk.0.attn_q.weight", GgmlDType::Q4_0, [32, 32]),
        matrix("blk.0.ffn_down.weight", GgmlDType::Q5_1, [32, 64]),
        matrix("blk.0.ffn_up.weight", GgmlDType::F32, [64, 32]),
    ];
    file(&values, &tensors)
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn a_file_is_a_whole_folder_of_json_files() {
    let folder = folder(&[("m.gguf", language_model("qwen3"))]);
    let read = |name: &str| -> serde_json::Value {
        assert!(files::is_there(&folder.path().join(name)));
        files::read_json(&folder.path().join(name)).unwrap()
    };
    assert_eq!(
        read("config.json"),
        json!({
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 99,
            "vocab_size": 8, "hidden_act": "silu", "attention_bias": false, "eos_token_id": 6,
            "tie_word_embeddings": true,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3]},
        })
    );
    assert_eq!(
        read("tokenizer_config.json"),
        json!({"chat_template": "{{ messages }}", "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>", "add_bos_token": false})
    );
    assert_eq!(
        read("generation_config.json"),
        json!({"eos_token_id": [6, 5], "pad_token_id": 5})
    );
    let tokenizer = TextTokenizer::load(folder.path(), usize::MAX).unwrap();
    assert_eq!(tokenizer.encode("ab ab<|im_end|>b").unwrap(), [2, 4, 6, 1]);
    assert_eq!(tokenizer.n_ids(), 7);
    // A file that is there wins.
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert_eq!(read("config.json"), json!({}));
    assert!(!files::is_there(&folder.path().join("adapter_config.json")));
    let other: Option<serde_json::Value> =
        files::read_optional_json(&folder.path().join("preprocessor_config.json")).unwrap();
    assert_eq!(other, None);
}

#[test]
fn tensors_come_by_the_networks_names_and_matrices_stay_as_stored() {
    let folder = folder(&[("m.gguf", language_model("qwen3"))]);
    let checkpoint = Checkpoint::open(folder.path(), canonical_qwen_name).unwrap();
    let norm = checkpoint
        .tensor("language_model.norm.weight", DType::F32, &Device::Cpu)
        .unwrap();
    assert!((norm.to_vec1::<f32>().unwrap()[3] - 3.5).abs() < 1e-6);
    for (name, shape, stays) in [
        ("lm_head.weight", [8, 32], true),
        ("language_model.embed_tokens.weight", [8, 32], true),
        (
            "language_model.layers.0.self_attn.q_proj.weight",
            [32, 32],
            true,
        ),
        (
            "language_model.layers.0.mlp.down_proj.weight",
            [32, 64],
            true,
        ),
        (
            "language_model.layers.0.mlp.up_proj.weight",
            [64, 32],
            false,
        ),
    ] {
        assert_eq!(checkpoint.shape(name), Some(&shape[..]), "{name}");
        let matrix = checkpoint.matrix(name, &Device::Cpu).unwrap();
        assert_eq!(matrix.is_some(), stays, "{name}");
        let floats = checkpoint.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let Some(matrix) = matrix else { continue };
        let x = Tensor::randn(0_f32, 1.0, (3, shape[1]), &Device::Cpu).unwrap();
        let exact = x.matmul(&floats.t().unwrap()).unwrap();
        let difference = (matrix.forward(&x, None).unwrap() - &exact).unwrap();
        let size = |tensor: &Tensor| -> f32 {
            let sum = tensor.sqr().unwrap().sum_all().unwrap();
            sum.to_scalar::<f32>().unwrap().sqrt()
        };
        assert!(size(&difference) < 0.02 * size(&exact), "{name}");
    }
    assert!(
        checkpoint
            .shape("language_model.layers.1.mlp.up_proj.weight")
            .is_none()
    );
    let absent = checkpoint.tensor("none", DType::F32, &Device::Cpu);
    assert!(
        absent
            .unwrap_err()
            .to_string()
            .contains("the weights lack `none`")
    );
}

fn vision_tower(newer: bool) -> Vec<u8> {
    let projector = if newer {
        "qwen3vl_merger"
    } else {
        "qwen2.5vl_merger"
    };
    let values = [
        ("general.architecture", Value::Text("clip")),
        ("clip.projector_type", Value::Text(projector)),
        ("clip.vision.block_count", Value::Number(4)),
        ("clip.vision.embedding_length", Value::Number(8)),
        ("clip.vision.feed_forward_length", Value::Number(12)),
        ("clip.vision.attention.head_count", Value::Number(2)),
        ("clip.vision.patch_size", Value::Number(2)),
        ("clip.vision.n_wa_pattern", Value::Number(2)),
    ];
    let frame = |name: &str, from: usize| {
        let values: Vec<f32> = (0..8 * 3 * 4).map(|i| (i + from) as f32).collect();
        (
            name.to_owned(),
            GgmlDType::F32,
            vec![8, 3, 2, 2],
            f32s(&values),
        )
    };
    let float = |name: &str, shape| matrix(name, GgmlDType::F32, shape);
    let mut tensors = vec![
        frame("v.patch_embd.weight", 0),
        frame("v.patch_embd.weight.1", 1000),
        float("mm.0.weight", [32, 32]),
        float("mm.2.weight", [32, 32]),
        vector("v.post_ln.weight", 8),
        float("v.blk.3.attn_out.weight", [8, 8]),
    ];
    if newer {
        tensors.extend([
            float("v.position_embd.weight", [9, 8]),
            float("v.blk.3.attn_qkv.weight", [24, 8]),
            float("v.blk.3.ffn_up.weight", [12, 8]),
            vector("v.deepstack.3.norm.bias", 32),
            vector("v.deepstack.1.norm.bias", 32),
            float("v.deepstack.3.fc2.weight", [32, 32]),
        ]);
    } else {
        // Early files have these two under each other's name.
        tensors.extend([
            float("v.blk.0.attn_out.weight", [8, 8]),
            float("v.blk.0.ffn_up.weight", [8, 12]),
            float("v.blk.0.ffn_down.weight", [12, 8]),
            vector("v.blk.3.attn_q.bias", 8),
            vector("v.blk.3.attn_k.bias", 8),
            vector("v.blk.3.attn_v.bias", 8),
            float("v.blk.3.ffn_gate.weight", [12, 8]),
        ]);
    }
    file(&values, &tensors)
}

#[test]
fn towers_of_both_generations_come_by_the_networks_names() {
    for newer in [false, true] {
        let text = if newer { "qwen3vl" } else { "qwen2vl" };
        let folder = folder(&[
            ("m.gguf", language_model(text)),
            ("mmproj-m.gguf", vision_tower(newer)),
        ]);
        let checkpoint = Checkpoint::open(folder.path(), canonical_qwen_name).unwrap();
        let shared: &[(&str, &[usize])] = &[
            ("patch_embed.proj.weight", &[8, 3, 2, 2, 2]),
            ("blocks.3.attn.proj.weight", &[8, 8]),
        ];
        let own: &[(&str, &[usize])] = if newer {
            &[
                ("merger.norm.weight", &[8]),
                ("merger.linear_fc1.weight", &[32, 32]),
                ("merger.linear_fc2.weight", &[32, 32]),
                ("pos_embed.weight", &[9, 8]),
                ("blocks.3.attn.qkv.weight", &[24, 8]),
                ("blocks.3.mlp.linear_fc1.weight", &[12, 8]),
                ("deepstack_merger_list.0.norm.bias", &[32]),
                ("deepstack_merger_list.1.norm.bias", &[32]),
                ("deepstack_merger_list.1.linear_fc2.weight", &[32, 32]),
            ]
        } else {
            &[
                ("merger.ln_q.weight", &[8]),
                ("merger.mlp.0.weight", &[32, 32]),
                ("merger.mlp.2.weight", &[32, 32]),
                ("blocks.3.attn.qkv.bias", &[24]),
                ("blocks.3.mlp.gate_proj.weight", &[12, 8]),
                ("blocks.0.mlp.down_proj.weight", &[8, 12]),
                ("blocks.0.mlp.up_proj.weight", &[12, 8]),
            ]
        };
        for (name, shape) in shared.iter().chain(own) {
            let found = checkpoint.shape(&format!("visual.{name}"));
            assert_eq!(found, Some(*shape), "{name} {newer}");
        }
        let name = "visual.patch_embed.proj.weight";
        let patches = checkpoint.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let first = patches.flatten_from(2).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(
            first[0][1],
            [4.0, 5.0, 6.0, 7.0, 1004.0, 1005.0, 1006.0, 1007.0]
        );
        if !newer {
            let name = "visual.blocks.3.attn.qkv.bias";
            let bias = checkpoint.tensor(name, DType::F32, &Device::Cpu).unwrap();
            let bias = bias.to_vec1::<f32>().unwrap();
            assert_eq!(bias[8..10], [0.5, 1.5]);
        }
        let config: serde_json::Value =
            files::read_json(&folder.path().join("config.json")).unwrap();
        let vision = &config["vision_config"];
        assert_eq!(vision["out_hidden_size"], 32);
        assert_eq!(config["text_config"]["hidden_size"], 32);
        if newer {
            assert_eq!(config["model_type"], "qwen3_vl");
            assert_eq!(vision["deepstack_visual_indexes"], json!([1, 3]));
            assert_eq!(vision["num_position_embeddings"], 9);
        } else {
            assert_eq!(config["model_type"], "qwen2_5_vl");
            assert_eq!(vision["fullatt_block_indexes"], json!([1, 3]));
        }
        let processor: serde_json::Value =
            files::read_json(&folder.path().join("preprocessor_config.json")).unwrap();
        assert_eq!(processor["patch_size"], 2);
    }
}

#[test]
fn what_does_not_belong_together_is_told() {
    let config = |files: &[(&str, Vec<u8>)]| {
        let folder = folder(files);
        let read: Result<serde_json::Value, _> =
            files::read_json(&folder.path().join("config.json"));
        read.unwrap_err().to_string()
    };
    let error = config(&[("m.gguf", language_model("llama"))]);
    assert!(
        error.starts_with("`general.architecture` is `llama`"),
        "{error}"
    );
    let error = config(&[("m.gguf", language_model("qwen3vl"))]);
    assert!(
        error.starts_with("the model has no `mmproj*.gguf`"),
        "{error}"
    );
    let error = config(&[
        ("a.gguf", language_model("qwen3")),
        ("b.gguf", language_model("qwen3")),
    ]);
    assert!(
        error.contains("are 2 models: `a.gguf`, `b.gguf`"),
        "{error}"
    );
    let error = config(&[
        ("m.gguf", language_model("qwen3vl")),
        ("mmproj.gguf", vision_tower(false)),
    ]);
    assert!(
        error.starts_with("`clip.projector_type` is `qwen2.5vl_merger`"),
        "{error}"
    );
    let error = config(&[("mmproj.gguf", vision_tower(false))]);
    assert!(error.contains("the language model's"), "{error}");
}

#[test]
fn a_file_that_is_named_is_the_model_with_its_parts_and_the_mmproj_beside_it() {
    let folder = folder(&[
        ("Model-Q4_K_M.gguf", language_model("qwen3vl")),
        ("Model-Q8_0.gguf", language_model("qwen3vl")),
        ("Model-F16-00001-of-00002.gguf", language_model("qwen3vl")),
        ("Model-F16-00002-of-00002.gguf", Vec::new()),
        ("mmproj-Model-F16.gguf", vision_tower(true)),
    ]);
    let files_of = |place: &str| -> Vec<String> {
        let found = files(&folder.path().join(place)).into_iter();
        found
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let one = ["Model-Q8_0.gguf", "mmproj-Model-F16.gguf"];
    assert_eq!(files_of("Model-Q8_0.gguf"), one);
    let parts = [
        "Model-F16-00001-of-00002.gguf",
        "Model-F16-00002-of-00002.gguf",
        "mmproj-Model-F16.gguf",
    ];
    assert_eq!(files_of("Model-F16-00001-of-00002.gguf"), parts);
    assert_eq!(files_of("").len(), 5);

    let named = folder.path().join("Model-Q8_0.gguf");
    let config: serde_json::Value = files::read_json(&named.join("config.json")).unwrap();
    assert_eq!(config["model_type"], "qwen3_vl");
    let places = ModelPlaces::from_environment();
    assert_eq!(resolve(named.to_str().unwrap(), &places).unwrap(), named);
    let before = revision(&named);
    fs::write(folder.path().join("Model-Q4_K_M.gguf"), "other").unwrap();
    assert!(before.len() == 16 && revision(&named) == before);
    fs::write(folder.path().join("mmproj-Model-F16.gguf"), "other").unwrap();
    assert_ne!(revision(&named), before);
}

mod conversion;

mod damage;

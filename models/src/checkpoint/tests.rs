//! Quantized checkpoints that others wrote, against their dequantized logits.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::loader::{Loader, LoaderOptions, canonical_qwen_name};
use crate::open::ModelFolders;
use crate::qwen::config::QwenConfig;
use crate::qwen::decoder::{Decoder, Output, Pass};
use crate::reference::{Expected, difference, shared};

/// A config that the language model can be loaded by, whatever network it is of.
fn config(folder: &Path) -> QwenConfig {
    let path = folder.join("config.json");
    let mut config: Value = crate::files::read_json(&path).unwrap();
    if config["model_type"] == "qwen3" {
        config["model_type"] = json!("qwen3_vl");
        let vision = json!({"out_hidden_size": config["hidden_size"], "depth": 1,
            "deepstack_visual_indexes": []});
        config["vision_config"] = vision;
        config["image_token_id"] = json!(0);
    }
    QwenConfig::parse(&config, &path).unwrap()
}

/// Logits of the file's ids, `[24, vocab]`, and the memory of the weights.
fn logits(folder: &Path, expected: &Expected, dequantize: bool) -> (Vec<f32>, usize) {
    let model = ModelFolders {
        base: folder.to_owned(),
        adapter: None,
    };
    let options = LoaderOptions {
        dequantize,
        ..LoaderOptions::default()
    };
    let config = config(folder);
    let loader = Loader::new(&model, canonical_qwen_name, &options).unwrap();
    let decoder = Decoder::load(&config, Output::Kept, &loader);
    let in_memory = loader.finish().unwrap();
    assert!(in_memory.time.as_secs() < 60);
    let (_, ids) = expected.integers("input_ids");
    let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let positions: Vec<[u32; 3]> = (0..ids.len() as u32).map(|place| [place; 3]).collect();
    let hidden = decoder
        .forward(Pass {
            hidden: decoder.embed(&ids).unwrap(),
            positions: &positions,
            n_tokens: &[ids.len()],
            deepstack: &[],
            image_tokens: None,
        })
        .unwrap();
    let logits = decoder.logits(&hidden).unwrap().flatten_all().unwrap();
    (logits.to_vec1().unwrap(), in_memory.n_bytes)
}

/// The root mean square of the differences, as a part of that of the numbers.
fn relative(ours: &[f32], theirs: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let difference = square(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
    (difference / square(&mut theirs.iter().copied())).sqrt()
}

fn check(folder: &Path, name: &str, expected: &Expected) {
    let (_, theirs) = expected.floats(&format!("logits.{name}"));
    let (exact, n_exact_bytes) = logits(folder, expected, true);
    let worst = difference(&exact, theirs);
    assert!(worst < 1e-4, "{name}: {worst:e}");
    let (fast, n_fast_bytes) = logits(folder, expected, false);
    let relative = relative(&fast, theirs);
    println!(
        "{name}: exact within {worst:.1e}, in few bits {relative:.2e}, {n_fast_bytes} bytes of \
         {n_exact_bytes}"
    );
    assert!(relative < 0.02, "{name}: {relative:e}");
    assert!(n_fast_bytes * 10 < n_exact_bytes * 9, "{name}");
}

#[test]
fn w4a16_checkpoints_give_the_logits_of_their_dequantized_weights() {
    let Some(root) = shared("autoround") else {
        return;
    };
    for network in ["qwen3", "qwen2_5_vl"] {
        let root = root.join(network);
        let expected = Expected::read(&root.join("reference_logits.safetensors"));
        for folder in folders(&root) {
            let name = folder.file_name().unwrap().to_str().unwrap();
            if name.starts_with("w4") {
                check(&folder, name, &expected);
            }
        }
    }
}

#[test]
fn gguf_files_alone_give_the_logits_of_their_dequantized_weights() {
    let Some(root) = shared("autoround_gguf") else {
        return;
    };
    let expected = Expected::read(&root.join("reference_logits.safetensors"));
    for name in ["q4_0", "q4_k_m", "q8_0"] {
        let folder = root.join(format!("gguf-{name}/qwen3_256_fp32-gguf"));
        check(&folder, name, &expected);
    }
}

#[test]
fn a_gguf_file_has_the_vocabulary_and_template_of_its_source() {
    let Some(root) = shared("autoround_gguf") else {
        return;
    };
    let source = root.join("qwen3_256_fp32");
    let folder = root.join("gguf-q8_0/qwen3_256_fp32-gguf");
    let theirs = crate::tokenizer::TextTokenizer::load(&source, usize::MAX).unwrap();
    let ours = crate::tokenizer::TextTokenizer::load(&folder, usize::MAX).unwrap();
    for text in [
        "",
        "Hello, world! It's 2026\n\n  and  more",
        "<|im_start|>user\nWas steht auf Seite 12?<|im_end|>\n",
        "naïve café 漢字 \u{1f600} e\u{301}",
        "   <|vision_start|><|image_pad|><|vision_end|>x1y22z333\r\n\t",
    ] {
        assert_eq!(
            ours.encode(text).unwrap(),
            theirs.encode(text).unwrap(),
            "{text:?}"
        );
    }
    assert_eq!(ours.n_ids(), theirs.n_ids());
    let template = fs::read_to_string(source.join("chat_template.jinja")).unwrap();
    let config: Value = crate::files::read_json(&folder.join("tokenizer_config.json")).unwrap();
    assert_eq!(config["chat_template"], template);
    assert_eq!(config["eos_token"], "<|im_end|>");
    assert_eq!(config["pad_token"], "<|endoftext|>");
    let generation = folder.join("generation_config.json");
    let generation: Value = crate::files::read_json(&generation).unwrap();
    assert_eq!(generation["eos_token_id"], json!([562, 560]));
    let (theirs, ours) = (config_of(&source), config_of(&folder));
    assert_eq!(theirs, ours);
}

/// All that changes the language model.
fn config_of(folder: &Path) -> String {
    format!("{:?}", config(folder).text)
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

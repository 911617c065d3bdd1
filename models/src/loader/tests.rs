//! Names, types and formats of what comes out of the loader, and what it says of the rest.

use std::fs;

use candle_core::Device as Candle;
use safetensors::tensor::{Dtype as FileType, TensorView};

use super::*;

#[test]
fn every_form_of_a_qwen_name_has_one_canonical_form() {
    for (canonical, forms) in [
        (
            "language_model.layers.3.mlp.up_proj.weight",
            [
                "language_model.layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
                "model.language_model.layers.3.mlp.up_proj.weight",
                "base_model.model.model.language_model.layers.3.mlp.up_proj.weight",
            ],
        ),
        (
            "visual.merger.ln_q.weight",
            [
                "visual.merger.ln_q.weight",
                "model.visual.merger.ln_q.weight",
                "model.model.visual.merger.ln_q.weight",
                "vlm.model.visual.merger.ln_q.weight",
            ],
        ),
        (
            "custom_text_proj.bias",
            [
                "custom_text_proj.bias",
                "model.custom_text_proj.bias",
                "embedding_proj_layer.bias",
                "base_model.model.custom_text_proj.bias",
            ],
        ),
        (
            "lm_head.weight",
            [
                "lm_head.weight",
                "vlm.lm_head.weight",
                "model.lm_head.weight",
                "base_model.model.lm_head.weight",
            ],
        ),
        (
            "language_model.norm.weight",
            [
                "model.norm.weight",
                "norm.weight",
                "language_model.norm.weight",
                "vlm.model.language_model.norm.weight",
            ],
        ),
    ] {
        for form in forms {
            assert_eq!(canonical_qwen_name(form), canonical, "{form}");
        }
    }
}

/// A model of a few matrices `[8, 40]`, in a folder.
fn model() -> (tempfile::TempDir, ModelFolders) {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..320_u16)
        .map(|index| f32::from(index % 37) / 9.0 - 2.0)
        .collect();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let names = [
        "model.language_model.layers.0.a.weight",
        "model.visual.b.weight",
        "lm_head.weight",
    ];
    let matrix = |name| {
        (
            name,
            TensorView::new(FileType::F32, vec![8, 40], &bytes).unwrap(),
        )
    };
    let bias = TensorView::new(FileType::F32, vec![8], &bytes[..32]).unwrap();
    let tensors = names
        .map(matrix)
        .into_iter()
        .chain([("model.visual.b.bias", bias)]);
    let file = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    let folders = ModelFolders {
        base: folder.path().to_owned(),
        adapter: None,
    };
    (folder, folders)
}

/// What each linear map makes of one row.
fn products(options: &LoaderOptions) -> Vec<Vec<f32>> {
    let (_folder, model) = model();
    let loader = Loader::new(&model, canonical_qwen_name, options).unwrap();
    let row: Vec<f32> = (0..40_u16).map(|index| f32::from(index).sin()).collect();
    let row = Tensor::from_vec(row, (1, 40), &Candle::Cpu).unwrap();
    let row = row.to_dtype(loader.dtype()).unwrap();
    let maps = [
        loader.linear("language_model.layers.0.a", 40, 8, false),
        loader.linear("visual.b", 40, 8, true),
        loader.linear("lm_head", 40, 8, false),
    ];
    loader.finish().unwrap();
    maps.iter()
        .map(|map| {
            let product = map.forward(&row).unwrap();
            assert_eq!(product.dtype(), options.dtype.into());
            let product = product.to_dtype(DType::F32).unwrap();
            product.flatten_all().unwrap().to_vec1().unwrap()
        })
        .collect()
}

#[test]
fn only_what_is_asked_for_is_quantized() {
    let exact = products(&LoaderOptions::default());
    for quantize in [Quantization::Q8_0, Quantization::Q6K, Quantization::Q4K] {
        for (quantize_vision, changed) in
            [(false, [true, false, false]), (true, [true, true, false])]
        {
            let options = LoaderOptions {
                quantize: Some(quantize),
                quantize_vision,
                ..LoaderOptions::default()
            };
            let ours = products(&options);
            for ((ours, exact), changed) in ours.iter().zip(&exact).zip(changed) {
                assert_eq!(ours != exact, changed, "{quantize} {quantize_vision}");
                let largest = ours.iter().zip(exact).map(|(a, b)| (a - b).abs());
                assert!(largest.fold(0.0, f32::max) < 1.0);
            }
        }
    }
}

#[test]
fn networks_compute_in_the_type_that_was_asked_for_quantized_or_not() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        for quantize in [None, Some(Quantization::Q8_0)] {
            products(&LoaderOptions {
                dtype,
                quantize,
                ..LoaderOptions::default()
            });
        }
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let (_folder, model) = model();
    let options = LoaderOptions {
        quantize: Some(Quantization::Q8_0),
        ..LoaderOptions::default()
    };
    let loader = Loader::new(&model, canonical_qwen_name, &options).unwrap();
    assert!(loader.contains("lm_head.weight") && !loader.contains("embed_tokens.weight"));
    loader.linear("language_model.layers.0.a", 41, 8, true);
    loader.tensor("visual.c.weight", &[1]);
    let error = loader.finish().unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the weights lack `language_model.layers.0.a.bias`, `visual.c.weight`, and \
             `language_model.layers.0.a.weight` has shape [8, 40] instead of [8, 41]: "
        ),
        "{error}"
    );
}

#[test]
fn names_of_types_parse_and_print_back() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        assert_eq!(dtype.to_string().parse::<Dtype>().unwrap(), dtype);
    }
    let error = "float".parse::<Dtype>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown dtype `float`, supported: `f32`, `f16`, `bf16`"
    );
}

#[test]
fn an_adapter_changes_the_floats_of_what_was_in_few_bits() {
    use candle_core::quantized::GgmlDType;

    use crate::gguf::writer;
    use crate::open::open_model;
    use crate::quantized::stored::tests::blocks;

    let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let matrix = |name: &str| {
        let bytes = blocks(GgmlDType::Q8_0, 32, 3);
        (name.to_owned(), GgmlDType::Q8_0, vec![32, 32], bytes)
    };
    let architecture = [("general.architecture", writer::Value::Text("qwen3"))];
    let tensors = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"].map(matrix);
    fs::write(
        base.path().join("m.gguf"),
        writer::file(&architecture, &tensors),
    )
    .unwrap();
    let config = format!(
        r#"{{"base_model_name_or_path": "{}", "lora_alpha": 2, "r": 1}}"#,
        base.path().display()
    );
    fs::write(adapter.path().join("adapter_config.json"), config).unwrap();
    let ones = writer::f32s(&[1.0; 32]);
    let parts = [("lora_A", vec![1, 32]), ("lora_B", vec![32, 1])];
    let tensors = parts.map(|(part, shape)| {
        let name = format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
        (name, TensorView::new(FileType::F32, shape, &ones).unwrap())
    });
    let file = safetensors::serialize(tensors, None).unwrap();
    fs::write(adapter.path().join("adapter_model.safetensors"), file).unwrap();

    let row = Tensor::ones((1, 32), DType::F32, &Candle::Cpu).unwrap();
    let products = |dequantize| {
        let model = open_model(adapter.path()).unwrap();
        let options = LoaderOptions {
            dequantize,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(&model, canonical_qwen_name, &options).unwrap();
        let maps = ["q_proj", "k_proj"].map(|part| {
            let name = format!("language_model.layers.0.self_attn.{part}");
            loader.linear(&name, 32, 32, false)
        });
        let in_memory = loader.finish().unwrap();
        let products = maps.map(|map| {
            let product = map.forward(&row).unwrap().squeeze(0).unwrap();
            product.to_vec1::<f32>().unwrap()
        });
        (products, in_memory.n_bytes)
    };
    let ([changed, as_it_was], n_bytes) = products(false);
    for (changed, as_it_was) in changed.iter().zip(&as_it_was) {
        assert!(
            (changed - as_it_was - 64.0).abs() < 0.05,
            "{changed} {as_it_was}"
        );
    }
    let (_, n_exact_bytes) = products(true);
    assert_eq!(
        (n_bytes, n_exact_bytes),
        (32 * 32 * 4 + 32 * 34, 2 * 32 * 32 * 4)
    );
}

#[test]
fn a_table_is_kept_as_the_files_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = [0.5_f32, -1.25, 3.0, 8.0]
        .iter()
        .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    let rows = TensorView::new(FileType::BF16, vec![2, 2], &bytes).unwrap();
    let file = safetensors::serialize([("a", rows)], None).unwrap();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    let model = ModelFolders {
        base: folder.path().to_owned(),
        adapter: None,
    };
    for (dequantize, dtype, n_bytes) in [
        (false, Dtype::F32, 8),
        (false, Dtype::BF16, 8),
        (true, Dtype::F32, 8),
    ] {
        let options = LoaderOptions {
            dtype,
            dequantize,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(&model, canonical_qwen_name, &options).unwrap();
        let table = loader.table("a", [2, 2]);
        assert_eq!(loader.finish().unwrap().n_bytes, n_bytes);
        let row = table.look_up(&[1]).unwrap();
        assert_eq!(row.dtype(), dtype.into());
        let row = row.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(row, [[3.0, 8.0]]);
    }
    let loader = Loader::new(&model, canonical_qwen_name, &LoaderOptions::default()).unwrap();
    loader.table("a", [3, 2]);
    let error = loader.finish().unwrap_err().to_string();
    assert!(
        error.contains("`a` has shape [2, 2] instead of [3, 2]"),
        "{error}"
    );
}

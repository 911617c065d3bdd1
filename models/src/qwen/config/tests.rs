use serde_json::json;

use super::*;

fn flat() -> Value {
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4,
        "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": 608, "image_token_id": 572, "tie_word_embeddings": true,
        "vision_config": {"depth": 4, "hidden_size": 64, "intermediate_size": 108,
            "num_heads": 4, "in_chans": 3, "out_hidden_size": 64, "patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [1, 3]}
    })
}

fn parse(config: &Value) -> Result<QwenConfig, String> {
    QwenConfig::parse(config, Path::new("m/config.json")).map_err(|error| error.to_string())
}

#[test]
fn flat_and_nested_files_say_the_same() {
    let flat = flat();
    let mut nested = flat.clone();
    let moved = ["hidden_size", "intermediate_size", "num_attention_heads"]
        .into_iter()
        .chain([
            "num_hidden_layers",
            "num_key_value_heads",
            "rms_norm_eps",
            "vocab_size",
        ]);
    let mut text = serde_json::Map::new();
    let top = nested.as_object_mut().unwrap();
    for key in moved {
        text.insert(key.into(), top.remove(key).unwrap());
    }
    top.remove("rope_theta");
    top.remove("rope_scaling");
    text.insert(
        "rope_parameters".into(),
        json!({"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}),
    );
    top.insert("text_config".into(), text.into());
    let (flat, nested) = (parse(&flat).unwrap(), parse(&nested).unwrap());
    assert_eq!(format!("{flat:?}"), format!("{nested:?}"));
    assert!(flat.tied && flat.text.qkv_bias && !flat.text.qk_norm);
    assert_eq!((flat.text.head_dim, flat.vision.unwrap().window()), (16, 4));
}

#[test]
fn what_cannot_be_computed_is_refused_by_the_name_of_its_field() {
    let with = |pointer: &str, key: &str, value: Value| {
        let mut config = flat();
        let part = config.pointer_mut(pointer).unwrap();
        part.as_object_mut().unwrap().insert(key.into(), value);
        parse(&config).unwrap_err()
    };
    let cases = [
        (
            with("", "hidden_act", json!("relu")),
            "`hidden_act` is `relu`",
        ),
        (
            with("", "use_sliding_window", json!(true)),
            "`use_sliding_window`",
        ),
        (
            with("", "num_key_value_heads", json!(3)),
            "`num_key_value_heads` is 3",
        ),
        (with("", "hidden_size", json!(0)), "`hidden_size` is 0"),
        (
            with("", "vocab_size", json!(100)),
            "`image_token_id` is 572",
        ),
        (
            with("/rope_scaling", "type", json!("yarn")),
            "`rope_parameters.rope_type`",
        ),
        (
            with("/rope_scaling", "mrope_section", json!([9, 9, 9])),
            "`mrope_section`",
        ),
        (
            with("/vision_config", "num_heads", json!(7)),
            "`vision_config.hidden_size`",
        ),
        (
            with("/vision_config", "in_chans", json!(1)),
            "`vision_config.in_channels`",
        ),
        (
            with("/vision_config", "out_hidden_size", json!(63)),
            "`out_hidden_size`",
        ),
        (
            with("/vision_config", "fullatt_block_indexes", json!([9])),
            "`fullatt_block_indexes` names block 9 of 4",
        ),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error} lacks {expected}");
        assert!(error.ends_with("m/config.json"), "{error}");
    }
    let mut other = flat();
    other["model_type"] = json!("mamba");
    other["architectures"] = json!(["Mamba"]);
    assert!(
        parse(&other)
            .unwrap_err()
            .contains("`model_type` is `Mamba`")
    );
}

#[test]
fn a_language_model_alone_has_no_tower_and_plain_positions() {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 128,
        "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "head_dim": 32, "vocab_size": 608, "eos_token_id": [5, 7],
        "tie_word_embeddings": false, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}
    });
    assert!(speaks(&config));
    let config = parse(&config).unwrap();
    assert!(config.vision.is_none() && config.text.qk_norm);
    assert_eq!(config.text.mrope_section, [16, 0, 0]);
    assert_eq!(config.end_token_ids, [5, 7]);
    assert_eq!(config.sizes().vision, 0);
}

#[test]
fn networks_that_speak_are_told_from_those_that_make_vectors() {
    assert!(speaks(&flat()));
    let mut other = flat();
    other["architectures"] = json!(["ColQwen2_5"]);
    assert!(!speaks(&other));
    other["model_type"] = json!("colqwen2_5");
    other.as_object_mut().unwrap().remove("architectures");
    assert!(!speaks(&other));
    assert!(!speaks(&json!({"model_type": "bert"})));
}

use std::fs;

use super::*;

fn read(config: &str) -> Result<DualConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    let place = format!("{}/", folder.path().display());
    DualConfig::read(folder.path()).map_err(|error| error.to_string().replace(&place, ""))
}

fn sizes(tower: &TowerConfig) -> [usize; 4] {
    [
        tower.width,
        tower.intermediate,
        tower.n_layers,
        tower.n_heads,
    ]
}

#[test]
fn what_clip_leaves_out_is_as_in_b_32() {
    let config = read(r#"{"model_type": "clip", "text_config": {}, "vision_config": {}}"#).unwrap();
    assert_eq!((config.family, config.only), (DualFamily::Clip, None));
    assert_eq!(config.dim(), 512);
    let (vision, text) = (config.vision.unwrap(), config.text.unwrap());
    assert_eq!(sizes(&vision.tower), [768, 3072, 12, 12]);
    assert_eq!((vision.patch_px, vision.side), (32, 7));
    assert_eq!(vision.tower.activation, Activation::QuickGelu);
    assert!((vision.tower.epsilon - 1e-5).abs() < 1e-10);
    assert_eq!(sizes(&text.tower), [512, 2048, 12, 8]);
    assert_eq!((text.vocabulary, text.n_positions), (49408, 77));
    assert_eq!(text.end, TextEnd::Id(49407));
}

#[test]
fn what_siglip_leaves_out_is_as_in_b_16() {
    for (model_type, family, side) in [
        ("siglip", DualFamily::Siglip, 14),
        ("siglip2", DualFamily::Siglip2, 16),
    ] {
        let config = read(&format!(r#"{{"model_type": "{model_type}"}}"#)).unwrap();
        assert_eq!(config.family, family);
        assert_eq!(config.dim(), 768);
        let (vision, text) = (config.vision.unwrap(), config.text.unwrap());
        assert_eq!(sizes(&vision.tower), [768, 3072, 12, 12]);
        assert_eq!((vision.patch_px, vision.side), (16, side));
        assert_eq!(vision.tower.activation, Activation::GeluTanh);
        assert!((vision.tower.epsilon - 1e-6).abs() < 1e-12);
        assert_eq!(sizes(&text.tower), [768, 3072, 12, 12]);
        assert_eq!(
            (text.vocabulary, text.n_positions, text.pad_id),
            (32000, 64, 1)
        );
    }
}

#[test]
fn an_early_clip_file_has_its_tower_in_a_second_place_that_wins() {
    let config = read(
        r#"{"model_type": "clip", "projection_dim": 768, "vision_config_dict": null,
            "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14},
            "text_config": {"hidden_size": 512, "max_position_embeddings": 70},
            "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12, "eos_token_id": 2}}"#,
    )
    .unwrap();
    let (vision, text) = (config.vision.unwrap(), config.text.unwrap());
    assert_eq!(
        (vision.tower.width, vision.side, vision.dim()),
        (1024, 16, 768)
    );
    assert_eq!(
        (text.tower.width, text.n_positions, text.dim()),
        (768, 77, 768)
    );
    assert_eq!(text.end, TextEnd::LargestId);
}

#[test]
fn one_tower_alone_has_its_fields_at_the_top() {
    let config = read(
        r#"{"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"],
            "hidden_size": 48, "projection_dim": 20}"#,
    )
    .unwrap();
    assert_eq!((config.only, config.dim()), (Some(Side::Vision), 20));
    assert!(config.text.is_none());
    let config = read(r#"{"model_type": "clip_text_model", "hidden_size": 48}"#).unwrap();
    assert_eq!((config.only, config.dim()), (Some(Side::Text), 48));
    let config = read(r#"{"model_type": "siglip2_vision_model", "num_patches": 64}"#).unwrap();
    assert_eq!(
        (config.only, config.vision.unwrap().side),
        (Some(Side::Vision), 8)
    );
    let config = read(r#"{"architectures": ["SiglipTextModel"], "projection_size": 9}"#).unwrap();
    assert_eq!((config.only, config.dim()), (Some(Side::Text), 9));
}

#[test]
fn what_it_does_not_compute_is_refused_by_name() {
    let cases = [
        (
            r#"{"model_type": "altclip"}"#,
            "`model_type` is `altclip`, supported: `clip`, `clip_vision_model`, \
             `clip_text_model`, `siglip` and 5 more: config.json",
        ),
        (
            r#"{"model_type": "siglip", "vision_config": {"vision_use_head": false}}"#,
            "`vision_use_head` is `false`, supported: `true`: config.json",
        ),
        (
            r#"{"model_type": "clip", "vision_config": {"num_channels": 1}}"#,
            "`num_channels` is `1`, supported: `3`: config.json",
        ),
        (
            r#"{"model_type": "clip", "text_config": {"hidden_act": "relu"}}"#,
            "`hidden_act` is `relu`, supported: `quick_gelu`, `gelu`, `gelu_new`, \
             `gelu_pytorch_tanh` and 1 more: config.json",
        ),
        (
            r#"{"model_type": "clip", "text_config": {"eos_token_id": [1, 2]}}"#,
            "`eos_token_id` is `[1,2]`, supported: `one token id`: config.json",
        ),
        (
            r#"{"model_type": "siglip2", "vision_config": {"num_patches": 50}}"#,
            "`num_patches` is 50, which is no square: config.json",
        ),
        (
            r#"{"model_type": "clip", "vision_config": {"image_size": 16}}"#,
            "`image_size` is 16, less than one patch of 32: config.json",
        ),
        (
            r#"{"model_type": "clip", "vision_config": {"num_attention_heads": 7}}"#,
            "`hidden_size` is 768, which 7 heads cannot share evenly: config.json",
        ),
        (
            r#"{"model_type": "clip", "vision_config": {"num_hidden_layers": 0}}"#,
            "`num_hidden_layers` is 0, but must be from 1 to 1024: config.json",
        ),
        (
            r#"{"model_type": "clip", "vision_config": {"patch_size": 9007199254740992}}"#,
            "`patch_size` is 9007199254740992, but must be from 1 to 16777216: config.json",
        ),
        (
            r#"{"model_type": "siglip", "text_config": {"projection_size": 5}}"#,
            "`projection_size` is 5, but the vectors of images have 768 values: config.json",
        ),
        (
            r#"{"model_type": "clip", "vision_config": {"patch_size": "large"}}"#,
            "malformed JSON (invalid type: string \"large\", expected usize at line 1 column 62): \
             config.json",
        ),
    ];
    for (config, message) in cases {
        assert_eq!(read(config).unwrap_err(), message);
    }
}

#[test]
fn a_tower_counts_as_there_if_any_of_its_parts_is() {
    let config = read(r#"{"model_type": "clip"}"#).unwrap();
    let table = "text_model.embeddings.position_embedding.weight";
    assert_eq!(config.sides_in(|name| name == table), (false, true));
    let norm = "vision_model.encoder.layers.0.layer_norm1.weight";
    assert_eq!(config.sides_in(|name| name == norm), (true, false));
    assert_eq!(
        config.sides_in(|name| name == norm || name == table),
        (true, true)
    );
    assert_eq!(config.sides_in(|_| false), (true, true));
}

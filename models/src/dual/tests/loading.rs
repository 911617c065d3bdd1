//! From the files of a folder to an encoder: names, single towers, and what is missing.

use std::collections::HashMap;

use candle_core::safetensors;
use serde_json::Value;

use super::*;

/// Rewrites the weights: each tensor under the name that `rename` gives, or not at all.
fn rename_tensors(folder: &Path, rename: impl Fn(&str) -> Option<String>) {
    let path = folder.join("model.safetensors");
    let tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    let renamed = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((rename(&name)?, tensor)));
    safetensors::save(&renamed.collect::<HashMap<_, _>>(), path).unwrap();
}

fn rewrite_config(folder: &Path, change: impl Fn(Value) -> Value) {
    let path = folder.join("config.json");
    let config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(path, change(config).to_string()).unwrap();
}

#[test]
fn names_with_a_wrapper_in_front_mean_the_same() {
    let copy = copy_of(&own("siglip2"));
    rename_tensors(copy.path(), |name| Some(format!("model.{name}")));
    let (plain, wrapped) = (load_encoder(&own("siglip2")), load_encoder(copy.path()));
    let ids = plain.encode_text("the river").unwrap();
    let (plain, wrapped) = (plain.embed_ids(&[&ids]), wrapped.embed_ids(&[&ids]));
    assert_eq!(numbers(&plain.unwrap()), numbers(&wrapped.unwrap()));
}

#[test]
fn an_image_tower_alone_gives_the_vectors_it_gives_in_the_pair() {
    let copy = copy_of(&own("clip"));
    // As `CLIPVisionModelWithProjection` names them, and with the tower's own name left out.
    rename_tensors(copy.path(), |name| {
        match name.strip_prefix("vision_model.") {
            Some(rest) => Some(rest.to_owned()),
            None => name
                .starts_with("visual_projection")
                .then(|| name.to_owned()),
        }
    });
    rewrite_config(copy.path(), |pair| {
        let mut config = pair["vision_config"].clone();
        config["architectures"] = serde_json::json!(["CLIPVisionModelWithProjection"]);
        config["projection_dim"] = pair["projection_dim"].clone();
        config
    });
    let (pair, alone) = (load_encoder(&own("clip")), load_encoder(copy.path()));
    assert_eq!(alone.dim(), pair.dim());
    let expected = Expected::read(&own("clip").join("expected.safetensors"));
    let pictures = own_pictures(&alone, &own("clip"), &expected);
    let pictures: Vec<&Patches> = pictures.iter().collect();
    assert_eq!(
        vectors(alone.embed_images(&pictures, Precision::F32)),
        vectors(pair.embed_images(&pictures, Precision::F32))
    );
    let error = alone.embed_texts(&["a"], Precision::F32).unwrap_err();
    assert_eq!(error.to_string(), "the model reads no text");
}

#[test]
fn a_text_tower_whose_pair_was_not_saved_stands_alone() {
    let copy = copy_of(&own("siglip"));
    let is_of_text = |name: &str| name.starts_with("text_model.");
    rename_tensors(copy.path(), |name| {
        is_of_text(name).then(|| name.to_owned())
    });
    fs::remove_file(copy.path().join("processor_config.json")).unwrap();
    let (pair, alone) = (load_encoder(&own("siglip")), load_encoder(copy.path()));
    assert!(alone.processor().is_none());
    let texts = ["the river", "a red bridge"];
    assert_eq!(
        vectors(alone.embed_texts(&texts, Precision::F32)),
        vectors(pair.embed_texts(&texts, Precision::F32))
    );
    let expected = Expected::read(&own("siglip").join("expected.safetensors"));
    let pictures = own_pictures(&pair, &own("siglip"), &expected);
    let error = alone
        .embed_images(&[&pictures[0]], Precision::F32)
        .unwrap_err();
    assert_eq!(error.to_string(), "the model reads no pictures");
}

#[test]
fn all_tensors_that_are_missing_or_misshapen_are_named_at_once() {
    let load = |folder: &Path| {
        let error = DualEncoder::load(folder, &LoaderOptions::default(), &OPTIONS)
            .err()
            .unwrap();
        error
            .to_string()
            .replace(&format!("{}/", folder.display()), "")
    };
    for (fixture, gone) in [
        ("clip", "vision_model.embeddings.patch_embedding.weight"),
        ("siglip", "vision_model.head.attention.in_proj_weight"),
        (
            "siglip2",
            "vision_model.embeddings.position_embedding.weight",
        ),
    ] {
        let copy = copy_of(&own(fixture));
        let gone = [gone, "text_model.final_layer_norm.bias"];
        rename_tensors(copy.path(), |name| {
            (!gone.contains(&name)).then(|| name.to_owned())
        });
        let message = load(copy.path());
        let [first, second] = gone;
        assert_eq!(
            message,
            format!("the weights lack `{first}`, `{second}`: model.safetensors")
        );
    }
    let copy = copy_of(&own("siglip2"));
    rewrite_config(copy.path(), |mut config| {
        config["vision_config"]["num_patches"] = 36.into();
        config
    });
    assert_eq!(
        load(copy.path()),
        "`vision_model.embeddings.position_embedding.weight` has shape [25, 24] instead of \
         [36, 24]: model.safetensors"
    );
}

#[test]
fn a_folder_without_a_tokenizer_serves_for_pictures() {
    let copy = copy_of(&own("clip"));
    fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    let encoder = load_encoder(copy.path());
    let expected = Expected::read(&own("clip").join("expected.safetensors"));
    let pictures = own_pictures(&encoder, &own("clip"), &expected);
    assert!(
        encoder
            .embed_images(&[&pictures[0]], Precision::F16)
            .unwrap()[0]
            .is_ok()
    );
    let results = encoder.embed_texts(&["a"], Precision::F16).unwrap();
    let message = results[0].as_ref().unwrap_err().to_string();
    let place = copy.path().display();
    assert_eq!(
        message,
        format!("the model has no `tokenizer.json`: {place}")
    );
}

#![allow(clippy::print_stdout, reason = "a test that lacks its files says so")]

use std::fs;

use candle_core::{Device as CandleDevice, Tensor};
use tempfile::TempDir;

use super::*;
use crate::bert::{PackedBert, PaddedBert};
use crate::resolve::{ModelPlaces, resolve};
use crate::testing::{self, TinyBert, largest_difference};

fn write(model: &TinyBert) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    model.write(folder.path());
    folder
}

fn load(model: &TinyBert) -> TextEncoder {
    TextEncoder::load(write(model).path(), &LoadOptions::default()).unwrap()
}

/// The message of a failed load, with the folder's path taken out.
fn load_error(folder: &TempDir) -> String {
    let error = TextEncoder::load(folder.path(), &LoadOptions::default()).unwrap_err();
    error
        .to_string()
        .replace(&format!("{}/", folder.path().display()), "")
}

/// Texts of 2 to 160 tokens, in no order of length.
fn texts() -> Vec<String> {
    let lengths = [7, 0, 158, 1, 16, 129, 15, 14, 30, 3, 64, 7];
    lengths
        .iter()
        .enumerate()
        .map(|(row, n)| {
            let words = (0..*n).map(|word| ["a", "b", "ca", "db", "e", "zz"][(word * 7 + row) % 6]);
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn agrees_with_bert_written_once_more_in_plain_loops() {
    let model = TinyBert::seeded(1);
    let encoder = load(&model);
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = encoder.encode(&texts).unwrap();
    for (text, vector) in texts.iter().zip(&vectors) {
        let expected = model.reference(&encoder.tokenizer().encode(text).unwrap());
        let expected: Vec<f32> = expected.iter().map(|value| *value as f32).collect();
        let difference = largest_difference(vector, &expected);
        assert!(difference < 2e-6, "{difference:e} for {} bytes", text.len());
    }
}

#[test]
fn a_row_in_a_batch_equals_that_row_alone_in_every_arrangement() {
    let model = TinyBert::seeded(2);
    let mut encoder = load(&model);
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| encoder.encode(&[text]).unwrap().remove(0))
        .collect();
    for max_pass_tokens in [1, 40, 200, 100_000] {
        encoder.max_pass_tokens = max_pass_tokens;
        let together = encoder.encode(&texts).unwrap();
        for (together, alone) in together.iter().zip(&alone) {
            assert!(largest_difference(together, alone) <= 1e-6);
        }
    }
}

/// The network that other devices run, here on the processor.
fn load_padded(folder: &Path) -> PaddedBert {
    let settings = EncoderSettings::read(folder).unwrap();
    let weights = Weights::open(folder).unwrap();
    let cpu = CandleDevice::Cpu;
    PaddedBert::load(&weights, &settings.bert, settings.activation, &cpu).unwrap()
}

#[test]
fn the_network_for_accelerators_gives_the_same_hidden_states() {
    let folder = write(&TinyBert::seeded(3));
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    for activation in ["gelu", "gelu_new", "relu"] {
        let config = config.replace("\"gelu\"", &format!("\"{activation}\""));
        // An epsilon large enough to notice, so that it must reach both.
        let config = config.replace("1e-12", "0.5");
        assert!(config.contains(activation) && config.contains("0.5"));
        fs::write(&path, config).unwrap();
        let encoder = TextEncoder::load(folder.path(), &LoadOptions::default()).unwrap();
        let rows = texts();
        let rows = rows.iter().map(|text| encoder.tokenizer().encode(text));
        let rows: Vec<Vec<u32>> = rows.map(Result::unwrap).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let batch = TokenBatch::new(&rows);
        let packed = encoder.network.forward(&batch).unwrap();
        let padded = load_padded(folder.path()).forward(&batch).unwrap();
        assert_eq!(packed.dims(), padded.dims());
        assert!(largest_difference(&flat(&packed), &flat(&padded)) < 1e-5);
    }
}

#[test]
fn an_encoder_that_pads_gives_the_same_vectors() {
    let model = TinyBert::seeded(3);
    let mut encoder = load(&model);
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let packed = encoder.encode(&texts).unwrap();
    encoder.network = BertNetwork::Padded(load_padded(write(&model).path()));
    for max_pass_tokens in [1, 40, 200, 100_000] {
        encoder.max_pass_tokens = max_pass_tokens;
        let padded = encoder.encode(&texts).unwrap();
        for (packed, padded) in packed.iter().zip(&padded) {
            assert!(largest_difference(packed, padded) <= 1e-6);
        }
    }
}

#[test]
fn the_empty_text_and_no_texts_are_fine() {
    let encoder = load(&TinyBert::seeded(4));
    let vectors = encoder.encode(&[""]).unwrap();
    assert_eq!(vectors[0].len(), encoder.dim());
    let length: f32 = vectors[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5);
    assert!(encoder.encode(&[]).unwrap().is_empty());
}

#[test]
fn an_overlong_text_is_read_up_to_the_limit() {
    let folder = write(&TinyBert::seeded(5));
    let options = LoadOptions {
        max_tokens: Some(6),
        ..LoadOptions::default()
    };
    let encoder = TextEncoder::load(folder.path(), &options).unwrap();
    assert_eq!(encoder.max_tokens(), 6);
    let vectors = encoder.encode(&["a b c d", "a b c d e f e f"]).unwrap();
    assert!(largest_difference(&vectors[0], &vectors[1]) <= 1e-6);

    let options = LoadOptions {
        max_tokens: Some(161),
        ..LoadOptions::default()
    };
    let error = TextEncoder::load(folder.path(), &options).unwrap_err();
    let place = folder.path().display();
    assert_eq!(
        error.to_string(),
        format!("`max_tokens` is 161, but the model has 160 positions: {place}")
    );
}

#[test]
fn a_vector_that_is_not_finite_spoils_no_other_row() {
    let mut model = TinyBert::seeded(6);
    let hidden = model.hidden;
    let words = model
        .tensors
        .get_mut("embeddings.word_embeddings.weight")
        .unwrap();
    words.1[4 * hidden] = f32::NAN; // The word `a`.
    let encoder = load(&model);
    let results = encoder.encode_each(&["b c", "b a", "c"]).unwrap();
    assert!(results[0].is_ok() && results[2].is_ok());
    let message = "the model gave a vector that is not finite for text 1";
    assert_eq!(results[1].as_ref().unwrap_err().to_string(), message);
    assert_eq!(
        encoder.encode(&["b c", "b a"]).unwrap_err().to_string(),
        message
    );
}

#[test]
fn passes_count_padding_unless_rows_are_packed() {
    let rows: Vec<(usize, Vec<u32>)> = [9, 4, 4, 2, 1]
        .iter()
        .map(|length| (0, vec![0; *length]))
        .collect();
    let sizes = |max_tokens, packed| {
        passes(&rows, max_tokens, packed)
            .iter()
            .map(|pass| pass.len())
            .collect::<Vec<_>>()
    };
    assert_eq!(sizes(8, false), [1, 2, 2]);
    assert_eq!(sizes(8, true), [1, 2, 2]);
    assert_eq!(sizes(18, false), [2, 3]);
    assert_eq!(sizes(18, true), [3, 2]);
    assert!(passes(&[], 8, true).is_empty());
}

#[test]
fn older_tensor_names_load_too() {
    let model = TinyBert::seeded(7);
    let mut renamed = model.clone();
    renamed.tensors = model
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            (
                format!("bert.{}", name.replace("LayerNorm.bias", "LayerNorm.beta")),
                tensor.clone(),
            )
        })
        .collect();
    let vectors = |model| load(model).encode(&["a b c"]).unwrap();
    assert_eq!(vectors(&model), vectors(&renamed));
    let padded = |model| {
        let batch = TokenBatch::new(&[&[1, 4, 5, 2]]);
        flat(&load_padded(write(model).path()).forward(&batch).unwrap())
    };
    assert_eq!(padded(&model), padded(&renamed));
}

#[test]
fn shards_load_like_one_file() {
    let model = TinyBert::seeded(8);
    let folder = write(&model);
    let whole = load(&model).encode(&["a b c"]).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut parts = [testing::Tensors::new(), testing::Tensors::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in model.tensors.iter().enumerate() {
        parts[index % 2].insert(name.clone(), tensor.clone());
        map.insert(
            name.clone(),
            format!("part-{}.safetensors", index % 2).into(),
        );
    }
    for (index, part) in parts.iter().enumerate() {
        testing::write_tensors(
            &folder.path().join(format!("part-{index}.safetensors")),
            part,
        );
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let encoder = TextEncoder::load(folder.path(), &LoadOptions::default()).unwrap();
    assert_eq!(encoder.encode(&["a b c"]).unwrap(), whole);
    fs::remove_file(folder.path().join("part-1.safetensors")).unwrap();
    let place = folder.path().display();
    assert_eq!(
        load_error(&folder),
        format!("the model has no `part-1.safetensors`: {place}")
    );
}

#[test]
fn missing_tensors_are_all_named() {
    let mut model = TinyBert::seeded(9);
    model.tensors.remove("encoder.layer.1.output.dense.bias");
    model.tensors.remove("embeddings.LayerNorm.weight");
    assert_eq!(
        load_error(&write(&model)),
        "the weights lack `embeddings.LayerNorm.weight`, `encoder.layer.1.output.dense.bias`: \
         model.safetensors"
    );
}

#[test]
fn misshapen_tensors_are_named_with_both_shapes() {
    let mut model = TinyBert::seeded(10);
    let name = "encoder.layer.0.intermediate.dense.weight";
    model.tensors.get_mut(name).unwrap().0 = vec![40, 56];
    assert_eq!(
        load_error(&write(&model)),
        "`encoder.layer.0.intermediate.dense.weight` has shape [40, 56] instead of [56, 40]: \
         model.safetensors"
    );
}

#[test]
fn damaged_files_are_named() {
    let folder = write(&TinyBert::seeded(11));
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let message = load_error(&folder);
    assert!(message.starts_with("damaged weights ("), "{message}");
    assert!(message.ends_with("): model.safetensors"), "{message}");
    for n_bytes in [0, 4, 100] {
        fs::write(&path, &bytes[..n_bytes]).unwrap();
        let message = load_error(&folder);
        assert!(message.starts_with("damaged weights ("), "{message}");
    }
    fs::remove_file(&path).unwrap();
    let place = folder.path().display().to_string();
    assert_eq!(
        load_error(&folder),
        format!("the model has no `model.safetensors`: {place}")
    );
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_eq!(
        load_error(&folder),
        format!("the model has no `config.json`: {place}")
    );
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let mut model = TinyBert::seeded(12);
    let words = model
        .tensors
        .get_mut("embeddings.word_embeddings.weight")
        .unwrap();
    words.0[0] = 10;
    words.1.truncate(10 * model.hidden);
    let folder = write(&model);
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        config.replace("\"vocab_size\":12", "\"vocab_size\":10"),
    )
    .unwrap();
    assert_eq!(
        load_error(&folder),
        "`vocab_size` is 10, but the tokenizer has ids up to 11: config.json"
    );
}

#[test]
fn describes_without_loading() {
    let model = TinyBert::seeded(13);
    let folder = write(&model);
    let card = TextEncoder::describe(folder.path()).unwrap();
    let n_parameters = model.tensors.values().map(|(_, values)| values.len()).sum();
    let n_bytes = fs::metadata(folder.path().join("model.safetensors"))
        .unwrap()
        .len();
    assert_eq!(
        card,
        ModelCard {
            kind: crate::EncoderKind::Sentence,
            n_quantizable: 0,
            prompts: None,
            architecture: "BertModel".into(),
            dim: 40,
            max_tokens: 160,
            n_parameters,
            n_bytes
        }
    );
}

#[test]
fn is_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<TextEncoder>();
}

// Against the Hugging Face implementation, where its outputs are at hand.

fn fixture(folder: &Path) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("fixture.safetensors"), &CandleDevice::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The first `lengths[row]` values of each row.
fn ragged(tensor: &Tensor, lengths: &[usize]) -> Vec<Vec<u32>> {
    let rows: Vec<Vec<i64>> = tensor.to_vec2().unwrap();
    let cut =
        |(row, length): (Vec<i64>, &usize)| row.iter().take(*length).map(|id| *id as u32).collect();
    rows.into_iter().zip(lengths).map(cut).collect()
}

#[test]
fn agrees_with_transformers_on_a_random_bert() {
    let Some(folder) = testing::reference_folder("bert") else {
        println!("skipped: no reference outputs for `bert`");
        return;
    };
    let fixture = fixture(&folder);
    let settings = EncoderSettings::read(&folder.join("model")).unwrap();
    let weights = Weights::open(&folder.join("model")).unwrap();
    let cpu = CandleDevice::Cpu;
    let (bert, activation) = (&settings.bert, settings.activation);
    let packed = PackedBert::load(&weights, bert, activation).unwrap();
    let padded = PaddedBert::load(&weights, bert, activation, &cpu).unwrap();
    let lengths: Vec<usize> = fixture["in.attention_mask"]
        .to_vec2::<i64>()
        .unwrap()
        .iter()
        .map(|row| row.iter().sum::<i64>() as usize)
        .collect();
    let ids = ragged(&fixture["in.input_ids"], &lengths);
    let types = ragged(&fixture["in.token_type_ids"], &lengths);
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();

    let mut batch = TokenBatch::new(&rows);
    batch.types = types.concat();
    let compare = |name: &str, ours: &Tensor, key: &str| {
        let ours = ours.to_vec2::<f32>().unwrap();
        let mut largest = 0.0_f32;
        for (row, range) in batch.texts().enumerate() {
            let expected = fixture[key]
                .get(row)
                .unwrap()
                .narrow(0, 0, range.len())
                .unwrap();
            largest = largest.max(largest_difference(&ours[range].concat(), &flat(&expected)));
        }
        println!("bert, {name}, {key}: largest difference {largest:e}");
        assert!(largest < 1e-5);
    };
    compare("packed", &packed.embed(&batch).unwrap(), "mid.embeddings");
    for (name, hidden) in [
        ("packed", packed.forward(&batch).unwrap()),
        ("padded", padded.forward(&batch).unwrap()),
    ] {
        compare(name, &hidden, "out.last_hidden_state");
        let hidden = hidden.to_vec2::<f32>().unwrap();
        let pooled: Vec<f32> = batch
            .texts()
            .flat_map(|range| pool(&hidden[range].concat(), 64, Pooling::Mean, true))
            .collect();
        assert!(largest_difference(&pooled, &flat(&fixture["out.mean_pooled_l2"])) < 1e-5);
    }
}

#[test]
fn agrees_with_transformers_on_minilm() {
    let name = "sentence-transformers/all-MiniLM-L6-v2";
    let Some(folder) = testing::reference_folder("minilm") else {
        println!("skipped: no reference outputs for `{name}`");
        return;
    };
    let Ok(model) = resolve(name, &ModelPlaces::from_environment()) else {
        println!("skipped: no weights of `{name}`");
        return;
    };
    let mut encoder = TextEncoder::load(&model, &LoadOptions::default()).unwrap();
    assert_eq!((encoder.dim(), encoder.max_tokens()), (384, 256));
    let fixture = fixture(&folder);
    let sentences = fs::read_to_string(folder.join("sentences.json")).unwrap();
    let sentences: Vec<String> = serde_json::from_str(&sentences).unwrap();
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();

    let expected_ids: Vec<Vec<i64>> = fixture["input_ids"].to_vec2().unwrap();
    for (text, expected) in texts.iter().zip(&expected_ids) {
        let ids = encoder.tokenizer().encode(text).unwrap();
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        assert_eq!(ids, expected[..ids.len()], "{text}");
        assert!(expected[ids.len()..].iter().all(|id| *id == 0), "{text}");
    }
    let expected = flat(&fixture["embeddings"]);
    let largest = largest_difference(&encoder.encode(&texts).unwrap().concat(), &expected);
    println!("minilm, packed: largest difference {largest:e}");
    assert!(largest < 1e-5);
    encoder.network = BertNetwork::Padded(load_padded(&model));
    let largest = largest_difference(&encoder.encode(&texts).unwrap().concat(), &expected);
    println!("minilm, padded: largest difference {largest:e}");
    assert!(largest < 1e-5);
}

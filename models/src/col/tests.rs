use std::path::Path;

use super::*;
use crate::encoder::{Encoder, EncoderOptions};
use crate::reference::{Expected, difference, own, patches, shared};

const TOLERANCE: f32 = 1e-5;

fn load(folder: &Path) -> Encoder {
    Encoder::load(folder, &EncoderOptions::default())
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn page_vectors(encoder: &Encoder, pages: &[&Patches]) -> Vec<Vec<f32>> {
    let pages = encoder.embed_images(pages, Precision::F32).unwrap();
    pages
        .into_iter()
        .map(|page| page.unwrap().to_f32())
        .collect()
}

fn question_vectors(encoder: &Encoder, questions: &[String]) -> Vec<Vec<f32>> {
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let vectors = encoder
        .embed_texts(&questions, TextRole::Query, Precision::F32)
        .unwrap();
    vectors
        .into_iter()
        .map(|vectors| vectors.unwrap().to_f32())
        .collect()
}

/// Late interaction's score: for each vector of the question, the best of the page.
fn max_sim(question: &[f32], page: &[f32], dim: usize) -> f32 {
    let best = |question: &[f32]| {
        let dot = |page: &[f32]| question.iter().zip(page).map(|(a, b)| a * b).sum::<f32>();
        page.chunks_exact(dim)
            .map(dot)
            .fold(f32::NEG_INFINITY, f32::max)
    };
    question.chunks_exact(dim).map(best).sum()
}

fn check_close(what: &str, ours: &[f32], theirs: &[f32]) {
    let difference = difference(ours, theirs);
    assert!(difference <= TOLERANCE, "{what}: {difference:e}");
}

/// A folder of `models/fixtures`: pages, questions and scores.
fn check_own(name: &str, pages_too: bool) {
    let folder = own(name);
    let expected = Expected::read(&folder.join("expected.safetensors"));
    let encoder = load(&folder);
    let processor = encoder.processor().unwrap();
    let files = expected.strings("images");
    let pages: Vec<Patches> = files
        .iter()
        .map(|file| patches(processor, &folder.join(file)))
        .collect();
    let all: Vec<&Patches> = pages.iter().collect();
    let together = page_vectors(&encoder, &all);
    for (index, page) in pages.iter().enumerate() {
        let name = format!("image.{index}");
        let (shape, theirs) = expected.floats(&name);
        assert_eq!(shape[1], encoder.dim());
        check_close(&name, &together[index], theirs);
        let alone = page_vectors(&encoder, &[page]).remove(0);
        check_close("alone", &alone, &together[index]);
        let pixels = format!("pixel_values.{index}");
        if expected.contains(&pixels) {
            assert_eq!(page.pixel_values(), expected.floats(&pixels).1, "{pixels}");
        }
    }
    let questions = question_vectors(&encoder, &expected.strings("queries"));
    for (index, ours) in questions.iter().enumerate() {
        let name = format!("text.{index}");
        check_close(&name, ours, expected.floats(&name).1);
    }
    if pages_too {
        let (_, scores) = expected.floats("maxsim");
        for (row, question) in questions.iter().enumerate() {
            for (column, page) in together.iter().enumerate() {
                let score = max_sim(question, page, encoder.dim());
                let theirs = scores[row * together.len() + column];
                assert!((score - theirs).abs() < 1e-4, "{score} for {theirs}");
            }
        }
    }
}

#[test]
fn colqwen2_5_gives_the_vectors_of_the_reference() {
    check_own("colqwen2_5", true);
    check_own("colqwen2_5_old", true);
}

#[test]
fn colqwen3_gives_the_vectors_of_the_reference() {
    check_own("colqwen3", true);
}

#[test]
fn the_shared_colqwen2_5_agrees_with_new_and_old_names() {
    let Some(folder) = shared("colqwen2_5") else {
        return;
    };
    let batch = Expected::read(&folder.join("pages_batch.safetensors"));
    let questions = Expected::read(&folder.join("queries.safetensors"));
    let model = folder.join("model");
    let encoder = load(&model);
    let processor = encoder.processor().unwrap();
    let files = ["203x151", "97x310", "56x84", "500x333"];
    let pages = files.map(|file| patches(processor, &folder.join(format!("png/{file}.png"))));
    let all: Vec<&Patches> = pages.iter().collect();
    let ours = page_vectors(&encoder, &all);
    let pixels: Vec<f32> = pages.iter().flat_map(Patches::pixel_values).collect();
    assert_eq!(pixels, batch.floats("pixel_values_flat").1);
    for (row, ours) in ours.iter().enumerate() {
        let theirs = batch.unpadded("embeddings", "attention_mask", row);
        check_close(files[row], ours, &theirs);
    }
    let texts = questions.strings("queries");
    let asked = question_vectors(&encoder, &texts);
    for (row, question) in asked.iter().enumerate() {
        check_close(
            &texts[row],
            question,
            questions.floats(&format!("single_emb.{row}")).1,
        );
        for (column, page) in ours.iter().enumerate() {
            let score = max_sim(question, page, encoder.dim());
            let theirs = questions.floats("maxsim_scores").1[row * ours.len() + column];
            assert!((score - theirs).abs() < 1e-4, "{score} for {theirs}");
        }
    }

    // The old checkpoint has the same weights by other names, and nothing else.
    let old = tempfile::tempdir().unwrap();
    for (from, files) in [
        (
            folder.join("model_oldnames"),
            vec!["config.json", "model.safetensors"],
        ),
        (
            model,
            vec![
                "tokenizer.json",
                "tokenizer_config.json",
                "processor_config.json",
            ],
        ),
    ] {
        for file in files {
            std::fs::copy(from.join(file), old.path().join(file)).unwrap();
        }
    }
    for (ours, again) in ours.iter().zip(page_vectors(&load(old.path()), &all)) {
        assert_eq!(*ours, again);
    }
}

#[test]
fn the_shared_colqwen3_agrees() {
    let Some(folder) = shared("colqwen3") else {
        return;
    };
    let expected = Expected::read(&folder.join("fixture.safetensors"));
    let encoder = load(&folder.join("model"));
    let mut files: Vec<_> = std::fs::read_dir(folder.join("png"))
        .unwrap()
        .flatten()
        .collect();
    files.sort_by_key(std::fs::DirEntry::path);
    let processor = encoder.processor().unwrap();
    let (_, grids) = expected.integers("image_grid_thw");
    for row in 0..grids.len() / 3 {
        let theirs = expected.unpadded("embeddings", "attention_mask", row);
        // The files are named by their sizes, which decide the grid.
        let closest = files.iter().map(|file| {
            let page = patches(processor, &file.path());
            let ours = page_vectors(&encoder, &[&page]).remove(0);
            difference(&ours, &theirs)
        });
        let closest = closest.fold(f32::INFINITY, f32::min);
        assert!(closest <= TOLERANCE, "row {row}: {closest:e}");
    }
}

#[test]
fn a_page_that_is_not_finite_is_refused_alone() {
    let encoder = load(&own("colqwen2_5"));
    let embeddings = vec![
        Embedding {
            numbers: crate::embedding::Numbers::F32(vec![0.0, 1.0]),
            dim: 2,
            patches: None,
        },
        Embedding {
            numbers: crate::embedding::Numbers::F32(vec![f32::NAN, 1.0]),
            dim: 2,
            patches: None,
        },
    ];
    let checked = Embedding::check_all(embeddings);
    assert!(checked[0].is_ok());
    assert!(matches!(checked[1], Err(ModelError::NotFinite { row: 1 })));
    assert_eq!(encoder.dim(), 128);
}

#[test]
fn passes_hold_as_much_as_fits() {
    assert_eq!(passes([3, 3, 9, 1, 1].into_iter(), 6), [0..2, 2..3, 3..5]);
    assert!(passes([].into_iter(), 6).is_empty());
}

/// A copy of an adapter whose base is at `base`.
fn adapter(from: &Path, base: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read(from.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["base_model_name_or_path"] = base.to_str().unwrap().into();
    std::fs::write(
        folder.path().join("adapter_config.json"),
        config.to_string(),
    )
    .unwrap();
    let file = "adapter_model.safetensors";
    std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    folder
}

#[test]
fn adapters_are_merged_as_peft_does() {
    check_own("lora_rslora", true);
    check_own("lora_dora", true);
}

#[test]
fn the_shared_adapters_agree() {
    let (Some(folder), Some(adapters)) = (shared("colqwen2_5"), shared("lora")) else {
        return;
    };
    let batch = Expected::read(&folder.join("pages_batch.safetensors"));
    let files = ["203x151", "97x310", "56x84", "500x333"];
    for kind in ["plain", "plain_oldnames", "rslora", "pattern", "dora"] {
        let own = adapter(&adapters.join(kind), &folder.join("model"));
        let encoder = load(own.path());
        let name = kind.trim_end_matches("_oldnames");
        let mut expected = Expected::read(&adapters.join(format!("{name}_out.safetensors")));
        expected.take_mask(&batch);
        for (row, file) in files.iter().enumerate() {
            let page = folder.join(format!("png/{file}.png"));
            let page = patches(encoder.processor().unwrap(), &page);
            let ours = page_vectors(&encoder, &[&page]).remove(0);
            let theirs = expected.unpadded("pages", "attention_mask", row);
            check_close(&format!("{kind} {file}"), &ours, &theirs);
        }
    }
}

#[test]
fn an_adapter_for_another_base_is_refused_with_its_shapes() {
    let other = adapter(&own("lora_rslora"), &own("colqwen3"));
    let error = Encoder::load(other.path(), &EncoderOptions::default()).unwrap_err();
    assert!(
        matches!(error, ModelError::ForeignAdapter { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("colqwen3"), "{error}");
    assert!(
        error
            .hint()
            .starts_with("the adapter was trained on another base")
    );
}

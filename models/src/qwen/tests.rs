use candle_core::{DType, Tensor};

use super::*;
use crate::loader::{Loader, LoaderOptions, canonical_qwen_name};
use crate::open::open_model;
use crate::preprocess::ImageProcessor;
use crate::qwen::cache::KvCache;
use crate::reference::{Expected, difference, patches, shared};

/// A network that speaks, from a folder of the shared set.
struct Speaker {
    network: Qwen,
    config: QwenConfig,
    processor: ImageProcessor,
}

fn load(folder: &std::path::Path) -> Speaker {
    let options = LoaderOptions::default();
    let model = open_model(folder).unwrap();
    let config = QwenConfig::read(folder).unwrap();
    let loader = Loader::new(&model, canonical_qwen_name, &options).unwrap();
    let network = Qwen::load(&config, Output::Kept, &loader);
    loader.finish().unwrap();
    Speaker {
        network,
        processor: crate::col::open_processor(&[folder], None).unwrap(),
        config,
    }
}

/// The prompt of token ids in which each run of image tokens is one of `grids`.
fn prompt(ids: &[i64], image_token_id: u32, grids: &[Grid]) -> Prompt {
    let mut prompt = Prompt::default();
    let mut grids = grids.iter();
    for run in
        ids.chunk_by(|a, b| (*a == i64::from(image_token_id)) == (*b == i64::from(image_token_id)))
    {
        prompt = if run[0] == i64::from(image_token_id) {
            prompt.image(*grids.next().unwrap())
        } else {
            prompt.text(&run.iter().map(|id| *id as u32).collect::<Vec<_>>())
        };
    }
    prompt
}

/// The whole of a conversation against the reference: positions, the scores at the end of the
/// prompt, and those of each step when the reference's own tokens follow one by one.
fn check(name: &str) {
    let Some(folder) = shared(name) else { return };
    let speaker = load(&folder.join("model"));
    let expected = Expected::read(&folder.join("gen.safetensors"));
    let pixels = Expected::read(&folder.join("gen_pixel_values.safetensors"));
    for case in 0..3 {
        let (_, ids) = expected.integers(&format!("{case}.input_ids"));
        let grids: Vec<Grid> = if expected.contains(&format!("{case}.image_grid_thw")) {
            let (_, grids) = expected.integers(&format!("{case}.image_grid_thw"));
            let grid = |grid: &[i64]| Grid {
                rows: grid[1] as usize,
                cols: grid[2] as usize,
                merge: speaker.config.vision.as_ref().unwrap().merge,
            };
            grids.chunks_exact(3).map(grid).collect()
        } else {
            Vec::new()
        };
        let images = images(&speaker, &folder, &pixels, case, &grids);
        let images: Vec<&Patches> = images.iter().collect();
        let prompt = prompt(ids, speaker.config.image_token_id, &grids);
        assert_eq!(prompt.n_tokens(), ids.len());
        let positions = prompt.positions();
        if expected.contains(&format!("{case}.mrope_position_ids")) {
            let (_, theirs) = expected.integers(&format!("{case}.mrope_position_ids"));
            for (axis, theirs) in theirs.chunks_exact(ids.len()).enumerate() {
                let ours = positions.of_tokens.iter().map(|at| i64::from(at[axis]));
                assert!(
                    ours.eq(theirs.iter().copied()),
                    "{name} {case}: axis {axis}"
                );
            }
        }
        let laid_out = speaker.network.lay_out(&[prompt], &images).unwrap();
        let decoder = &speaker.network.decoder;
        let room = ids.len() + 24;
        let mut cache = KvCache::new(&decoder.cache_shape(), room).unwrap();
        let hidden = decoder
            .forward_cached(laid_out.pass(), &mut [&mut cache])
            .unwrap();
        let whole = decoder.forward(laid_out.pass()).unwrap();
        let apart = (&whole - &hidden)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert!(apart.to_scalar::<f32>().unwrap() < 1e-5);
        in_stretches(&speaker, &laid_out, &hidden, room);

        let last = hidden.narrow(0, ids.len() - 4, 4).unwrap();
        let ours = numbers(&decoder.logits(&last).unwrap());
        let (_, theirs) = expected.floats(&format!("{case}.prefill_logits"));
        let worst = difference(&ours, theirs);
        assert!(worst < 1e-4, "{name} {case}: {worst:e}");

        let (_, generated) = expected.integers(&format!("{case}.generated_ids"));
        let (_, steps) = expected.floats(&format!("{case}.step_logits"));
        let steps: Vec<&[f32]> = steps.chunks_exact(speaker.config.text.vocab_size).collect();
        for (step, id) in generated.iter().enumerate().take(steps.len() - 1) {
            let at = positions.next + step as u32;
            let pass = Pass {
                hidden: decoder.embed(&[*id as u32]).unwrap(),
                positions: &[[at; 3]],
                n_tokens: &[1],
                deepstack: &[],
                image_tokens: None,
            };
            let hidden = decoder.forward_cached(pass, &mut [&mut cache]).unwrap();
            let ours = numbers(&decoder.logits(&hidden).unwrap());
            let worst = difference(&ours, steps[step + 1]);
            assert!(worst < 1e-4, "{name} {case} step {step}: {worst:e}");
        }
        assert_eq!(cache.n_tokens(), ids.len() + steps.len() - 1);
    }
}

/// The same tokens a few at a time, cut within the images as well.
fn in_stretches(speaker: &Speaker, laid_out: &LaidOut, whole: &Tensor, room: usize) {
    let decoder = &speaker.network.decoder;
    let n = whole.dim(0).unwrap();
    let mut cache = KvCache::new(&decoder.cache_shape(), room).unwrap();
    for start in (0..n).step_by(13) {
        let tokens = start..n.min(start + 13);
        let stretch = laid_out.stretch(tokens.clone()).unwrap();
        let hidden = decoder.forward_cached(stretch.pass(), &mut [&mut cache]);
        let whole = whole.narrow(0, tokens.start, tokens.len()).unwrap();
        assert!(difference(&numbers(&hidden.unwrap()), &numbers(&whole)) < 1e-5);
    }
    assert_eq!(cache.n_tokens(), n);
}

/// The pictures of a case: those whose pixel values are the reference's.
fn images(
    speaker: &Speaker,
    folder: &std::path::Path,
    pixels: &Expected,
    case: usize,
    grids: &[Grid],
) -> Vec<Patches> {
    if grids.is_empty() {
        return Vec::new();
    }
    let (_, theirs) = pixels.floats(&format!("{case}.pixel_values"));
    let files = std::fs::read_dir(folder.join("png")).unwrap().flatten();
    let all: Vec<Patches> = files
        .map(|file| patches(&speaker.processor, &file.path()))
        .collect();
    let mut rest = theirs;
    grids
        .iter()
        .map(|grid| {
            let fits =
                |page: &&Patches| page.grid == *grid && rest.starts_with(&page.pixel_values());
            let page = all
                .iter()
                .find(fits)
                .expect("a picture with these pixel values");
            rest = &rest[page.pixel_values().len()..];
            page.clone()
        })
        .collect()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn qwen2_5_vl_scores_tokens_as_the_reference_does() {
    check("qwen2_5_vl_tied");
    check("qwen2_5_vl_untied");
}

#[test]
fn qwen3_vl_scores_tokens_as_the_reference_does() {
    check("qwen3_vl_tied");
    check("qwen3_vl_untied");
}

/// Of a language model without a tower, the scores of every token of one text.
fn check_text_only(name: &str, model: &str) {
    let Some(folder) = shared(name) else { return };
    let options = LoaderOptions::default();
    let model = open_model(&folder.join(model)).unwrap();
    let config = QwenConfig::read(&model.base).unwrap();
    assert!(config.vision.is_none());
    let loader = Loader::new(&model, canonical_qwen_name, &options).unwrap();
    let network = Qwen::load(&config, Output::Kept, &loader);
    loader.finish().unwrap();
    let expected = Expected::read(&folder.join("reference_logits.safetensors"));
    let (_, ids) = expected.integers("input_ids");
    let prompt = prompt(ids, u32::MAX, &[]);
    let laid_out = network.lay_out(&[prompt], &[]).unwrap();
    let hidden = network.decoder.forward(laid_out.pass()).unwrap();
    let ours = numbers(&network.decoder.logits(&hidden).unwrap());
    let (_, theirs) = expected.floats("logits.fp32");
    let worst = difference(&ours, theirs);
    assert!(worst < 1e-4, "{name}: {worst:e}");
}

#[test]
fn a_language_model_alone_scores_tokens_as_the_reference_does() {
    check_text_only("autoround/qwen3", "fp32");
    check_text_only("autoround_gguf", "qwen3_256_fp32");
}

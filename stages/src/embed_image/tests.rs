use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Value, VectorData};

use super::*;
use crate::prepare_image::{PrepareImage, PrepareImageConfig};
use crate::testing::{PICTURE_MODEL, TINY_MODEL, VISUAL_MODEL, page_of, with_tiny_model};

/// A page of stripes, so that no two sizes look alike.
fn page(width_px: u32, height_px: u32, number: u32) -> Item {
    let n = width_px * height_px * 3;
    let pixels = (0..n)
        .map(|at| (at * 7 + at / 300 * 31 + number * 40) as u8)
        .collect();
    page_of(pixels, width_px, height_px).with_page(number)
}

fn stage(model: &str, output: Output, resources: &Resources) -> EmbedImage {
    let config = EmbedImageConfig {
        output,
        ..EmbedImageConfig::new(model)
    };
    EmbedImage::new(&config, resources).unwrap()
}

fn numbers(item: &Item) -> Vec<f32> {
    match item.vectors().unwrap().data() {
        VectorData::F16(numbers) => numbers.iter().map(|number| number.to_f32()).collect(),
        VectorData::F32(_) => panic!("vectors leave the device with 16 bits"),
    }
}

fn integer(item: &Item, field: &Field) -> i64 {
    match item.get(&field.name) {
        Some(Value::Integer(number)) => *number,
        other => panic!("{}: {other:?}", field.name),
    }
}

#[test]
fn a_page_becomes_a_vector_for_each_token_and_says_which_are_its_parts() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let mut stage = stage(VISUAL_MODEL, Output::Vectors, &resources);
    let out = run_stage(&mut stage, [page(90, 60, 1), page(40, 200, 2)]);
    assert!(out.dead.is_empty() && out.error.is_none(), "{out:?}");
    for item in &out.sent {
        let vectors = item.vectors().unwrap();
        assert_eq!(vectors.dim(), 128);
        let parts = integer(item, &PATCH_ROWS) * integer(item, &PATCH_COLS);
        assert!(integer(item, &PATCH_START) + parts < vectors.n() as i64);
        for vector in numbers(item).chunks(128) {
            let length: f32 = vector.iter().map(|number| number * number).sum();
            assert!((length - 1.0).abs() < 5e-3);
        }
        // The pixels have done their duty.
        assert!(item.image().is_none() && PreparedImage::of(item).is_none());
    }
    assert!(integer(&out.sent[0], &PATCH_COLS) > integer(&out.sent[0], &PATCH_ROWS));
    assert!(integer(&out.sent[1], &PATCH_COLS) < integer(&out.sent[1], &PATCH_ROWS));
}

#[test]
fn neither_company_nor_order_changes_a_page() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let sizes = [(90, 60), (40, 200), (200, 40), (64, 64)];
    let pages = || {
        sizes
            .iter()
            .zip([1, 2, 3, 4])
            .map(|((w, h), number)| page(*w, *h, number))
    };
    let mut stage = stage(VISUAL_MODEL, Output::Vectors, &resources);
    let mut embed = |items: Vec<Item>| run_stage(&mut stage, items).sent;
    let together = embed(pages().collect());
    let mut backwards = embed(pages().rev().collect());
    backwards.reverse();
    for ((item, again), alone) in together.iter().zip(&backwards).zip(pages()) {
        let alone = embed(vec![alone]).remove(0);
        for other in [again, &alone] {
            let pairs = numbers(item).into_iter().zip(numbers(other));
            // One step of 16 bits, where rounding falls to the other side.
            assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 5e-4);
        }
    }
}

#[test]
fn patches_that_were_prepared_before_give_the_same() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let config = PrepareImageConfig::new(VISUAL_MODEL);
    let mut prepare = PrepareImage::new(&config, &resources).unwrap();
    let prepared = run_stage(&mut prepare, [page(90, 60, 1)]).sent;
    assert!(prepared[0].image().is_none() && PreparedImage::of(&prepared[0]).is_some());
    let mut embed = stage(VISUAL_MODEL, Output::Vectors, &resources);
    let n_tokens = {
        run_stage(&mut embed, []);
        (
            embed.n_tokens(&prepared[0]),
            embed.n_tokens(&page(90, 60, 1)),
        )
    };
    assert_eq!(n_tokens.0, n_tokens.1);
    let ours = run_stage(&mut embed, prepared).sent;
    let direct = run_stage(&mut embed, [page(90, 60, 1)]).sent;
    assert_eq!(ours[0].vectors().unwrap().n(), n_tokens.0);
    assert_eq!(numbers(&ours[0]), numbers(&direct[0]));
}

#[test]
fn patches_of_another_model_are_refused_unless_the_pixels_are_there() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let keep_image = [false, true].map(|keep_image| {
        let config = PrepareImageConfig {
            keep_image,
            ..PrepareImageConfig::new(PICTURE_MODEL)
        };
        let mut prepare = PrepareImage::new(&config, &resources).unwrap();
        let prepared = run_stage(&mut prepare, [page(90, 60, 1)]).sent;
        run_stage(
            &mut stage(VISUAL_MODEL, Output::Vectors, &resources),
            prepared,
        )
    });
    let [without, with] = keep_image;
    assert_eq!(
        without.dead[0].1,
        "cannot embed `a.pdf#1`: its patches were made for another model"
    );
    assert_eq!(with.sent.len(), 1);
}

#[test]
fn a_picture_that_no_model_can_take_costs_itself_alone() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let no_image = Item::of_text("a.pdf", "").with_page(4);
    let items = [
        page(90, 60, 1),
        page(3000, 5, 2),
        page_of(vec![0; 5], 3, 3),
        no_image,
    ];
    let mut stage = stage(VISUAL_MODEL, Output::Vectors, &resources);
    let out = run_stage(&mut stage, items);
    assert_eq!(out.sent.len(), 1);
    let reasons: Vec<&str> = out.dead.iter().map(|(_, reason)| reason.as_str()).collect();
    assert!(reasons[0].contains("3000 x 5"), "{reasons:?}");
    assert!(reasons[1].contains("5 bytes"), "{reasons:?}");
    assert!(reasons[2].ends_with("it has no `image`"), "{reasons:?}");
}

#[test]
fn one_vector_a_picture_goes_to_its_own_field() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let mut stage = stage(PICTURE_MODEL, Output::Vector, &resources);
    let out = run_stage(&mut stage, [page(90, 60, 1)]);
    assert_eq!(out.sent[0].vector().unwrap().n(), 1);
    assert!(out.sent[0].vectors().is_none());
}

#[test]
fn settings_that_do_not_fit_the_model_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let refused = |config: EmbedImageConfig| {
        EmbedImage::new(&config, &resources)
            .err()
            .unwrap()
            .to_string()
    };
    let config = || EmbedImageConfig::new(VISUAL_MODEL);
    let cases = [
        (
            EmbedImageConfig {
                output: Output::Vector,
                ..config()
            },
            "`output` is `vector`, but the model makes one vector for each token",
        ),
        (
            EmbedImageConfig::new(TINY_MODEL),
            "`model` names a model that reads no pictures",
        ),
        (
            EmbedImageConfig {
                dtype: Some("f8".into()),
                ..config()
            },
            "`dtype` names no type: `f8`",
        ),
        (
            EmbedImageConfig {
                quantize: Some("q2".into()),
                ..config()
            },
            "`quantize` names no quantization: `q2`",
        ),
        (
            EmbedImageConfig {
                max_visual_tokens: Some(0),
                ..config()
            },
            "`max_visual_tokens` must be at least 1",
        ),
    ];
    for (config, expected) in cases {
        let error = refused(config);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn two_branches_prepare_a_picture_once() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let config = PrepareImageConfig::new(VISUAL_MODEL);
    let mut branches = [0, 1].map(|_| PrepareImage::new(&config, &resources).unwrap());
    let page = page(90, 60, 1); // Both branches hold its pixels.
    let prepared = branches.each_mut().map(|branch| {
        let out = run_stage(branch, [page.clone()]);
        Arc::clone(&PreparedImage::of(&out.sent[0]).unwrap().patches)
    });
    assert!(Arc::ptr_eq(&prepared[0], &prepared[1]));
}

use std::fs;

use serde_json::json;

use super::super::file::NEW_FILE;
use super::*;

/// Reads one folder with these files; messages without its path.
fn read_files(
    files: &[(&str, &str)],
    family: Family,
    options: &ProcessorOptions,
) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let place = format!("{}/", folder.path().display());
    Settings::read_first(&[folder.path()], family, options)
        .map_err(|error| error.to_string().replace(&place, ""))
}

fn read(settings: &serde_json::Value, family: Family) -> Result<Settings, String> {
    let options = ProcessorOptions {
        patch_px: (family != Family::Qwen).then_some(16),
        ..ProcessorOptions::default()
    };
    read_files(&[(OLD_FILE, &settings.to_string())], family, &options)
}

fn qwen(settings: &serde_json::Value) -> String {
    let message = read(settings, Family::Qwen).unwrap_err();
    message
        .strip_suffix(": preprocessor_config.json")
        .unwrap()
        .into()
}

#[test]
fn a_file_that_says_nothing_gets_the_class_s_own_numbers() {
    let sizing = |family| format!("{:?}", read(&json!({}), family).unwrap().sizing);
    assert_eq!(
        sizing(Family::Qwen),
        "Qwen { merge: 2, n_frames: 2, min_pixels: 3136, max_pixels: 1003520 }"
    );
    assert_eq!(
        sizing(Family::Clip),
        "Fixed { resize: ShortestTo(224), crop: Some([224, 224]) }"
    );
    assert_eq!(
        sizing(Family::Siglip),
        "Fixed { resize: To([224, 224]), crop: None }"
    );
    assert_eq!(sizing(Family::Siglip2), "Naflex { max_patches: 256 }");
    let filter = |family| read(&json!({}), family).unwrap().filter;
    assert_eq!(filter(Family::Siglip), Filter::Bicubic);
    assert_eq!(filter(Family::Siglip2), Filter::Bilinear);
}

#[test]
fn the_file_s_class_decides_and_the_caller_s_family_fills_in() {
    for (class, family) in [
        ("Qwen2VLImageProcessor", Family::Qwen),
        ("Qwen2VLImageProcessorFast", Family::Qwen),
        ("Qwen2VLImageProcessorPil", Family::Qwen),
        ("CLIPImageProcessorFast", Family::Clip),
        ("SiglipImageProcessor", Family::Siglip),
        ("Siglip2ImageProcessorFast", Family::Siglip2),
    ] {
        let file = json!({"image_processor_type": class, "patch_size": 16});
        assert_eq!(read(&file, Family::Clip).unwrap().family, family, "{class}");
    }
    let old = json!({"feature_extractor_type": "CLIPFeatureExtractor"});
    assert_eq!(read(&old, Family::Siglip).unwrap().family, Family::Clip);
    assert_eq!(
        qwen(&json!({"image_processor_type": "ViTImageProcessor"})),
        "`image_processor_type` is `ViTImageProcessor`, supported: `Qwen2VLImageProcessor`, \
         `CLIPImageProcessor`, `SiglipImageProcessor`, `Siglip2ImageProcessor`"
    );
}

#[test]
fn sizes_are_read_in_every_form_they_had() {
    let pixels = |settings| match read(&settings, Family::Qwen).unwrap().sizing {
        Sizing::Qwen {
            min_pixels,
            max_pixels,
            ..
        } => (min_pixels, max_pixels),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        pixels(json!({"size": {"shortest_edge": 4, "longest_edge": 90}})),
        (4, 90)
    );
    assert_eq!(pixels(json!({"min_pixels": 4, "max_pixels": 90})), (4, 90));
    assert_eq!(
        pixels(json!({"size": {"min_pixels": 4, "max_pixels": 90}})),
        (4, 90)
    );
    // The older fields win, as they do in the reference.
    let both = json!({"size": {"shortest_edge": 5, "longest_edge": 91}, "max_pixels": 90});
    assert_eq!(pixels(both), (5, 90));

    let fixed = |settings, family| format!("{:?}", read(&settings, family).unwrap().sizing);
    let clip = "Fixed { resize: ShortestTo(64), crop: Some([32, 48]) }";
    for settings in [
        json!({"size": 64, "crop_size": [32, 48]}),
        json!({"size": {"shortest_edge": 64}, "crop_size": {"height": 32, "width": 48}}),
    ] {
        assert_eq!(fixed(settings, Family::Clip), clip);
    }
    let siglip = "Fixed { resize: To([64, 80]), crop: None }";
    for settings in [
        json!({"size": [64, 80]}),
        json!({"size": {"height": 64, "width": 80, "depth": 3}}),
    ] {
        assert_eq!(fixed(settings, Family::Siglip), siglip);
    }
}

#[test]
fn the_newer_file_wins_if_the_settings_are_in_it() {
    let old = json!({"patch_size": 12}).to_string();
    let new = json!({"image_processor": {"patch_size": 10}, "processor_class": "X"}).to_string();
    let without = json!({"processor_class": "X"}).to_string();
    let patch_px = |files: &[(&str, &str)]| {
        read_files(files, Family::Qwen, &ProcessorOptions::default()).map(|read| read.patch_px)
    };
    assert_eq!(patch_px(&[(NEW_FILE, &new), (OLD_FILE, &old)]), Ok(10));
    assert_eq!(patch_px(&[(NEW_FILE, &new)]), Ok(10));
    assert_eq!(patch_px(&[(NEW_FILE, &without), (OLD_FILE, &old)]), Ok(12));
    let missing = patch_px(&[(NEW_FILE, &without)]).unwrap_err();
    assert!(
        missing.starts_with("the model has no `preprocessor_config.json`"),
        "{missing}"
    );
    let damaged = patch_px(&[(OLD_FILE, "{\"image_std\": [NaN]}")]).unwrap_err();
    assert!(damaged.starts_with("malformed JSON"), "{damaged}");
}

#[test]
fn an_adapter_without_settings_leaves_them_to_its_base() {
    let (adapter, base) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(base.path().join(OLD_FILE), "{\"patch_size\": 10}").unwrap();
    let folders = [adapter.path(), base.path()];
    let options = ProcessorOptions::default();
    let read = || {
        Settings::read_first(&folders, Family::Qwen, &options)
            .unwrap()
            .patch_px
    };
    assert_eq!(read(), 10);
    fs::write(adapter.path().join(OLD_FILE), "{\"patch_size\": 12}").unwrap();
    assert_eq!(read(), 12);
}

#[test]
fn the_caller_sets_the_number_of_tokens() {
    let read = |family, n_tokens| {
        let options = ProcessorOptions {
            patch_px: Some(14),
            max_visual_tokens: Some(n_tokens),
        };
        let file = json!({"patch_size": 14, "size": {"shortest_edge": 64, "longest_edge": 640}});
        read_files(&[(OLD_FILE, &file.to_string())], family, &options)
    };
    let Sizing::Qwen { max_pixels, .. } = read(Family::Qwen, 768).unwrap().sizing else {
        panic!("not Qwen");
    };
    assert_eq!(max_pixels, 768 * 28 * 28);
    let Sizing::Naflex { max_patches } = read(Family::Siglip2, 99).unwrap().sizing else {
        panic!("not NaFlex");
    };
    assert_eq!(max_patches, 99);
    assert_eq!(
        read(Family::Clip, 99).unwrap_err(),
        "`max_visual_tokens` cannot be set for a model whose images all have one size: \
         preprocessor_config.json"
    );
    for n_tokens in [0, usize::MAX] {
        let message = read(Family::Qwen, n_tokens).unwrap_err();
        assert!(
            message.contains("not a whole number from 1 to 342392"),
            "{message}"
        );
    }
}

#[test]
fn the_patch_s_side_comes_from_one_place_or_two_that_agree() {
    let read = |file, patch_px| {
        let options = ProcessorOptions {
            patch_px,
            ..ProcessorOptions::default()
        };
        let file: serde_json::Value = file;
        let read = read_files(&[(OLD_FILE, &file.to_string())], Family::Clip, &options);
        read.map(|read| read.patch_px)
    };
    assert_eq!(read(json!({}), Some(32)), Ok(32));
    assert_eq!(read(json!({"patch_size": 32}), None), Ok(32));
    assert_eq!(read(json!({"patch_size": 32}), Some(32)), Ok(32));
    let file = "preprocessor_config.json";
    assert_eq!(
        read(json!({"patch_size": 16}), Some(32)),
        Err(format!(
            "`patch_size` is 16, but the model's patches are 32 pixels wide: {file}"
        ))
    );
    assert_eq!(
        read(json!({}), None),
        Err(format!(
            "`patch_size` is neither here nor in the model's configuration: {file}"
        ))
    );
    assert_eq!(
        read(json!({"crop_size": 24}), Some(32)),
        Err(format!(
            "`patch_size` is 32, more than the 24 of an image's side: {file}"
        ))
    );
}

#[test]
fn what_it_does_not_compute_is_refused_by_name() {
    for (settings, message) in [
        (
            json!({"do_resize": false}),
            "`do_resize` is `false`, supported: `true`",
        ),
        (
            json!({"do_rescale": false}),
            "`do_rescale` is `false`, supported: `true`",
        ),
        (
            json!({"do_normalize": false}),
            "`do_normalize` is `false`, supported: `true`",
        ),
        (
            json!({"resample": 1}),
            "`resample` is `1`, supported: `2 (bilinear)`, `3 (bicubic)`",
        ),
        (
            json!({"size": 448}),
            "`size` is `only numbers`, supported: `shortest_edge, longest_edge`",
        ),
    ] {
        assert_eq!(qwen(&settings), message);
    }
    for (settings, field) in [
        (json!({"do_pad": true}), "`do_pad` is `true`"),
        (
            json!({"size": {"longest_edge": 9}}),
            "`size` is `longest_edge`",
        ),
        (
            json!({"size": {"shortest_edge": 64, "longest_edge": 90}}),
            "`size` is `shortest_edge, longest_edge`",
        ),
        (
            json!({"crop_size": {"shortest_edge": 64}}),
            "`crop_size` is `shortest_edge`",
        ),
    ] {
        let message = read(&settings, Family::Clip).unwrap_err();
        assert!(message.starts_with(field), "{message}");
    }
}

#[test]
fn numbers_without_sense_are_refused_by_name() {
    for (field, value) in [
        ("patch_size", json!(0)),
        ("patch_size", json!(-14)),
        ("patch_size", json!(14.5)),
        ("patch_size", json!(1_000_000_000)),
        ("merge_size", json!(0)),
        ("merge_size", json!(1e9)),
        ("temporal_patch_size", json!(0)),
        ("image_mean", json!([0.5, 1e300, 0.5])),
        ("image_std", json!([0.5, 0.0, 0.5])),
        ("image_std", json!([0.5, -1.0, 0.5])),
        ("image_std", json!(0)),
        ("rescale_factor", json!(0)),
        ("rescale_factor", json!(-1)),
    ] {
        let message = qwen(&json!({ field: value }));
        assert!(message.starts_with(&format!("`{field}` is ")), "{message}");
    }
    for (size, field) in [
        (
            json!({"shortest_edge": 0, "longest_edge": 9}),
            "size.shortest_edge",
        ),
        (
            json!({"shortest_edge": 1e9, "longest_edge": 1e9}),
            "size.shortest_edge",
        ),
        (
            json!({"shortest_edge": 9, "longest_edge": 1e9}),
            "size.longest_edge",
        ),
        (
            json!({"shortest_edge": 9, "longest_edge": -1}),
            "size.longest_edge",
        ),
        (json!({"longest_edge": 9}), "size"),
    ] {
        let message = qwen(&json!({ "size": size }));
        assert!(message.starts_with(&format!("`{field}` ")), "{message}");
    }
    for (family, settings, field) in [
        (Family::Clip, json!({"crop_size": 1e9}), "crop_size"),
        (
            Family::Clip,
            json!({"size": {"shortest_edge": 0}}),
            "size.shortest_edge",
        ),
        (
            Family::Siglip,
            json!({"size": {"height": 64, "width": 1e9}}),
            "size.width",
        ),
        (Family::Siglip, json!({"do_center_crop": true}), "crop_size"),
        (
            Family::Siglip2,
            json!({"max_num_patches": 1e12}),
            "max_num_patches",
        ),
    ] {
        let message = read(&settings, family).unwrap_err();
        assert!(message.starts_with(&format!("`{field}` is ")), "{message}");
    }
    // One number may stand for all channels.
    assert!(read(&json!({"image_mean": 0, "image_std": 1}), Family::Qwen).is_ok());
}

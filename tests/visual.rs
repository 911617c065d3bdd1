//! Pages as pictures: from the file to the answer, with the small models of `models/fixtures`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use crate::support::{Mill, json, pagemill, project, stderr, stdout};

const TABLE: &str = r#"
[pages.source.files]
kind = "read_files"
path = "input"
[pages.stage.render]
kind = "render_pdf"
input = "files"
long_side_px = 200
[pages.stage.images]
kind = "decode_image"
input = "render"
[pages.stage.thumbnails]
kind = "thumbnail"
input = "images"
[pages.stage.patches]
kind = "prepare_image"
input = "thumbnails"
model = "MODEL"
[pages.stage.vectors]
kind = "embed_image"
input = "patches"
model = "MODEL"
[pages.sink.table]
kind = "lancedb"
input = "vectors"
uri = "data/lancedb"
"#;

fn model(name: &str) -> PathBuf {
    project().join("models/fixtures").join(name)
}

fn with_model(toml: &str, name: &str) -> Mill {
    let mill = Mill::with(&toml.replace("MODEL", model(name).to_str().unwrap()));
    let documents = project().join("examples/documents");
    for name in ["label.png", "invoice.pdf"] {
        if let Ok(bytes) = fs::read(documents.join(name)) {
            mill.add(name, bytes);
        }
    }
    for name in ["page.png", "strip.png", "small.png"] {
        mill.add(name, fs::read(model("images").join(name)).unwrap());
    }
    mill
}

/// The tensors of a file: shape and numbers.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = file
        .tensors()
        .into_iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32);
    floats
        .map(|(name, view)| {
            let numbers = view.data().as_chunks::<4>().0.iter();
            let numbers = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            (name, (view.shape().to_vec(), numbers))
        })
        .collect()
}

/// The list of strings in a fixture's metadata.
fn listed(path: &Path, key: &str) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
}

#[test]
fn embed_writes_the_vectors_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["colqwen2_5", "colqwen3", "clip", "siglip", "siglip2"] {
        let expected = model(name).join("expected.safetensors");
        let mut arguments: Vec<String> = ["embed", "--model"].map(String::from).into();
        arguments.push(model(name).display().to_string());
        for image in listed(&expected, "images") {
            arguments.push("--image".into());
            arguments.push(model(name).join(image).display().to_string());
        }
        for query in listed(&expected, "queries") {
            // An empty value after `--text` is a question as well.
            arguments.push(format!("--text={query}"));
        }
        arguments.extend(["--out", "vectors.safetensors"].map(String::from));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = pagemill(folder.path(), &arguments);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert!(stdout(&output).is_empty() && stderr(&output).is_empty());
        let ours = tensors(&folder.path().join("vectors.safetensors"));
        let theirs = tensors(&expected);
        assert!(!ours.is_empty());
        for (tensor, (shape, numbers)) in &ours {
            let (expected_shape, expected) = &theirs[tensor];
            let expected_shape = match expected_shape.as_slice() {
                [dim] => vec![1, *dim],
                other => other.to_vec(),
            };
            assert_eq!(*shape, expected_shape, "{name} {tensor}");
            let worst = numbers.iter().zip(expected).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst < 1e-5, "{name} {tensor}: {worst:e}");
        }
    }
}

#[test]
fn a_page_is_found_by_a_question_and_the_map_shows_where() {
    let mill = with_model(TABLE, "colqwen2_5");
    let output = mill.command(&["run", "--json"]);
    let report = json(&output);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{report} {}",
        stderr(&output)
    );
    let output = mill.command(&["search", "Table 2", "--mode", "vector", "--json"]);
    let answer = json(&output);
    let hits = answer["hits"].as_array().unwrap();
    assert!(hits.len() >= 3, "{answer}");
    let scores: Vec<f64> = hits
        .iter()
        .map(|hit| hit["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");

    let explained = mill.command(&[
        "search",
        "Table 2",
        "--mode",
        "vector",
        "--explain",
        "why.png",
    ]);
    assert!(explained.status.success(), "{}", stderr(&explained));
    let bytes = fs::read(mill.path("why.png")).unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));

    // What is stored is what the model gives, to the 16 bits of the column.
    let again = mill.command(&["run", "--json"]);
    assert_eq!(
        json(&again)["pipelines"][0]["documents"]["done"]
            .as_u64()
            .unwrap_or(0),
        0
    );
}

#[test]
fn without_a_stage_of_its_own_the_model_prepares_pages_itself() {
    let direct = TABLE
        .replace("[pages.stage.patches]\nkind = \"prepare_image\"\ninput = \"thumbnails\"\nmodel = \"MODEL\"\n", "")
        .replace("input = \"patches\"", "input = \"thumbnails\"");
    let scores = [TABLE, &direct].map(|toml| {
        let mill = with_model(toml, "colqwen3");
        let output = mill.command(&["run", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let output = mill.command(&["search", "Table 2", "--mode", "vector", "--json"]);
        json(&output)["hits"].clone()
    });
    let [prepared, direct] = scores;
    assert_eq!(
        prepared.as_array().unwrap().len(),
        direct.as_array().unwrap().len()
    );
    for (a, b) in prepared
        .as_array()
        .unwrap()
        .iter()
        .zip(direct.as_array().unwrap())
    {
        assert_eq!(
            a["document"].as_str().map(file_name),
            b["document"].as_str().map(file_name)
        );
        assert!((a["score"].as_f64().unwrap() - b["score"].as_f64().unwrap()).abs() < 1e-3);
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[test]
fn pictures_are_found_by_words_with_one_vector_each() {
    let toml = TABLE.replace(
        "kind = \"embed_image\"",
        "kind = \"embed_image\"\noutput = \"vector\"",
    );
    let mill = with_model(&toml, "siglip2");
    let output = mill.command(&["run", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = mill.command(&["search", "a page", "--mode", "vector", "--json"]);
    assert!(json(&output)["hits"].as_array().unwrap().len() >= 3);
    let output = mill.command(&[
        "search",
        "a page",
        "--mode",
        "vector",
        "--explain",
        "why.png",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("only an encoder with a vector for each token"));
}

#[test]
fn the_wrong_kind_of_output_is_refused_with_the_right_one() {
    let mill = with_model(TABLE, "clip");
    let output = mill.command(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("`output` is `vectors`, but the model makes one vector an item"),
        "{text}"
    );
    assert!(text.contains("set `output = \"vector\"`"), "{text}");
}

#[test]
fn embed_refuses_what_it_cannot_do_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let colqwen = model("colqwen2_5");
    let copy = |name: &str| {
        fs::create_dir_all(at(name)).unwrap();
        for entry in fs::read_dir(&colqwen).unwrap().flatten() {
            fs::copy(entry.path(), at(name).join(entry.file_name())).unwrap();
        }
        at(name)
    };
    fs::remove_file(copy("silent").join("tokenizer.json")).unwrap();
    let cut = copy("cut").join("model.safetensors");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let other = copy("other").join("config.json");
    let config = fs::read_to_string(&other).unwrap();
    fs::write(&other, config.replace("\"silu\"", "\"relu\"")).unwrap();
    for (name, width, height) in [("dot.png", 1, 1), ("thread.png", 30_000, 10)] {
        image::RgbImage::new(width, height).save(at(name)).unwrap();
    }
    fs::write(at("text.png"), "no picture").unwrap();
    let page = model("images").join("page.png").display().to_string();
    let run = |model: &str, image: &str, more: &[&str]| {
        let mut arguments = vec!["embed", "--model", model, "--image", image, "--out", "v"];
        arguments.extend(more);
        let output = pagemill(folder.path(), &arguments);
        (output.status.code().unwrap(), stderr(&output))
    };
    let colqwen = colqwen.to_str().unwrap();
    let cases = [
        (
            run("silent", &page, &[]),
            1,
            "the model has no `tokenizer.json`",
        ),
        (run("cut", &page, &[]), 1, "damaged weights"),
        (run("other", &page, &[]), 1, "hidden_act` is `relu`"),
        (
            run("owner/absent", &page, &[]),
            1,
            "no model `owner/absent`",
        ),
        (run(colqwen, "thread.png", &[]), 1, "30000 x 10 pixels"),
        (run(colqwen, "text.png", &[]), 1, "cannot read the picture"),
        (
            run(colqwen, "absent.png", &[]),
            1,
            "cannot read the picture",
        ),
        (
            run(colqwen, &page, &["--device", "gpu"]),
            2,
            "unknown device `gpu`",
        ),
        (run(colqwen, &page, &["--quantize", "q9"]), 2, "q9"),
        (run(colqwen, &page, &["--dtype", "f64"]), 2, "f64"),
    ];
    for ((code, text), expected_code, expected) in cases {
        assert!(text.contains(expected), "{text} lacks {expected}");
        assert_eq!(code, expected_code, "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    assert!(!at("v").exists());
    // One pixel is a picture.
    assert_eq!(run(colqwen, "dot.png", &[]).0, 0);
    #[cfg(not(feature = "cuda"))]
    {
        let (code, text) = run(colqwen, &page, &["--device", "cuda:0"]);
        assert!(text.contains("device `cuda:0` is not available"), "{text}");
        assert!(text.contains("--features cuda"), "{text}");
        assert_eq!(code, 1);
    }
}

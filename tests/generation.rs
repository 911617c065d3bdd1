//! Models that write: the command and the stages, with the small models of `models/fixtures`.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;

use crate::support::{Mill, json, pagemill, part_rows, project, stderr, stdout};

fn model(name: &str) -> PathBuf {
    project().join("models/fixtures").join(name)
}

/// Token ids that the reference gave.
fn ids(name: &str, tensor: &str) -> Vec<i64> {
    let bytes = fs::read(model(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(tensor).unwrap();
    let (numbers, _) = view.data().as_chunks::<8>();
    numbers
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes))
        .collect()
}

const TWO_BRANCHES: &str = r#"
[both.source.files]
kind = "read_files"
path = "input"
[both.stage.render]
kind = "render_pdf"
input = "files"
long_side_px = 200
[both.stage.vectors]
kind = "embed_image"
input = "render"
model = "EMBEDS"
[both.stage.markdown]
kind = "transcribe"
input = "render"
model = "SPEAKS"
max_new_tokens = 8
words_hint = true
max_batch = 3
[both.sink.rows]
kind = "jsonl"
join = ["vectors", "markdown"]
path = "rows"
"#;

fn with_models(toml: &str) -> Mill {
    let toml = toml
        .replace("EMBEDS", model("colqwen2_5").to_str().unwrap())
        .replace("SPEAKS", model("qwen2_5_vl").to_str().unwrap());
    Mill::with(&toml)
}

#[test]
fn generate_gives_the_tokens_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen2_5_vl", "qwen3_vl"] {
        let model = model(name).display().to_string();
        let image = project().join("models/fixtures/images/page.png");
        let image = image.display().to_string();
        let length = [
            "--min-new-tokens",
            "24",
            "--max-new-tokens",
            "24",
            "--greedy",
            "--json",
        ];
        let about_page = ["--image", &image, "--prompt", "Describe the image."];
        let about_nothing = ["--prompt", "What is the total revenue? Größe 東京"];
        for (index, question) in [(0, &about_page[..]), (2, &about_nothing[..])] {
            let mut arguments = vec!["generate", "--model", &model];
            arguments.extend(question);
            arguments.extend(length);
            let output = pagemill(folder.path(), &arguments);
            assert!(output.status.success(), "{name}: {}", stderr(&output));
            let answer = json(&output);
            let ours: Vec<i64> = serde_json::from_value(answer["token_ids"].clone()).unwrap();
            assert_eq!(
                ours,
                ids(name, &format!("{index}.generated_ids")),
                "{name} {index}"
            );
            let n_prompt = ids(name, &format!("{index}.input_ids")).len();
            assert_eq!(answer["prompt_tokens"], n_prompt);
            assert_eq!(answer["finish_reason"], "length");
            assert!(answer["tokens_per_s"].as_f64().unwrap() > 0.0);
            assert!(answer["time_to_first_token_s"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn an_answer_is_printed_as_text_and_a_mistake_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let speaks = model("qwen3").display().to_string();
    let ask = |more: &[&str]| {
        let arguments = [
            "generate",
            "--model",
            &speaks,
            "--prompt",
            "a",
            "--max-new-tokens",
            "6",
        ];
        pagemill(folder.path(), &[&arguments, more].concat())
    };
    let output = ask(&["--greedy"]);
    assert!(
        output.status.success() && stdout(&output).ends_with('\n'),
        "{}",
        stderr(&output)
    );
    // The same seed, the same answer.
    assert_eq!(
        stdout(&ask(&["--seed", "3"])),
        stdout(&ask(&["--seed", "3"]))
    );
    let quantized = ask(&["--quantize", "q8_0", "--json"]);
    assert!(
        json(&quantized)["memory_bytes"].as_u64() > Some(0),
        "{}",
        stderr(&quantized)
    );
    let output = ask(&["--image", "none.png"]);
    assert_eq!(output.status.code(), Some(1));
    let embeds = model("clip").display().to_string();
    let output = pagemill(
        folder.path(),
        &["generate", "--model", &embeds, "--prompt", "a"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("hint:"), "{}", stderr(&output));
}

#[test]
fn one_rendering_becomes_vectors_and_markdown_in_one_row() {
    let mill = with_models(TWO_BRANCHES);
    let documents = project().join("examples/documents");
    mill.add(
        "manual.pdf",
        fs::read(documents.join("manual.pdf")).unwrap(),
    );
    let (code, report) = mill.run();
    assert_eq!(code, 0, "{report}");
    let model = &report["models"][0];
    assert_eq!(model["name"], "qwen2_5_vl", "{report}");
    let positive = |key: &str| model[key].as_f64().unwrap() > 0.0;
    assert!(
        ["tokens", "busy_s", "memory_bytes", "load_s"]
            .iter()
            .all(|key| positive(key)),
        "{model}"
    );
    let rows = part_rows(&mill.path("rows"));
    assert!(rows.len() > 2);
    for row in &rows {
        assert!(!row["vectors"].as_array().unwrap().is_empty());
        assert!(
            row["markdown"].is_string() && row["markdown_finish"].is_string(),
            "{row}"
        );
        assert!(row.get("image").is_none());
    }
    // A rerun does nothing anew.
    let before = rows.len();
    assert_eq!(mill.run().0, 0);
    assert_eq!(part_rows(&mill.path("rows")).len(), before);
}

#[test]
fn a_prompt_that_names_no_field_is_found_before_anything_runs() {
    let toml = TWO_BRANCHES.replace("max_new_tokens = 8", "prompt = \"About {{ titel }}\"");
    let mill = with_models(&toml);
    let output = mill.command(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(
        message.contains("stage `markdown` reads `titel`, which `render` does not provide"),
        "{message}"
    );
}

#[test]
fn a_model_that_writes_is_described_as_one_and_refused_where_vectors_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| pagemill(folder.path(), arguments);
    let model = model("qwen2_5_vl");
    let model = model.to_str().unwrap();
    let output = run(&["models", "show", model]);
    let text = stdout(&output);
    assert!(
        text.contains("Qwen2_5_VLForConditionalGeneration, writes text about pictures and text"),
        "{text}"
    );
    let card = json(&run(&["models", "show", model, "--json"]));
    assert_eq!(card["max_context"], 2048);
    let out = folder.path().join("v.safetensors");
    let out = out.to_str().unwrap();
    let output = run(&["embed", "--model", model, "--text", "x", "--out", out]);
    let text = stderr(&output);
    assert!(text.contains("writes text and makes no vectors"), "{text}");
    assert!(text.contains("hint: name it in `generate`"), "{text}");
}

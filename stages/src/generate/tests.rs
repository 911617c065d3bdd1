//! The stages with a small model of this process.

use std::collections::BTreeMap;
use std::sync::Mutex;

use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Resources, Stage, StageConfig, Value};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::testing::{PICTURE_MODEL, SPEAKING_MODEL, VISUAL_MODEL, page_of, with_tiny_model};

/// A stage with a model, and the folder in which the model lies.
struct Set {
    resources: Resources,
    _root: TempDir,
}

impl Set {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self {
            resources: with_tiny_model(root.path()),
            _root: root,
        }
    }

    fn config<C: StageConfig>(more: &Json) -> C {
        let mut table = json!({ "model": SPEAKING_MODEL, "device": "cpu" });
        for (key, value) in more.as_object().unwrap() {
            table[key] = value.clone();
        }
        serde_json::from_value(table).unwrap()
    }

    fn stage<C: StageConfig>(&self, more: &Json) -> Box<dyn Stage> {
        Self::config::<C>(more).build(&self.resources).unwrap()
    }

    fn refusal<C: StageConfig>(&self, more: &Json) -> String {
        let error = Self::config::<C>(more)
            .build(&self.resources)
            .err()
            .unwrap();
        format!("{error}; {}", error.hint)
    }
}

/// Page `n`, with stripes of its own.
fn page(n: u32) -> Item {
    let (width, height) = (56 + 28 * (n % 3), 84);
    let pixel = |i: u32| (i * (n + 3) % 251) as u8;
    let pixels = (0..width * height * 3).map(pixel).collect();
    page_of(pixels, width, height).with_page(n)
}

fn text<'a>(item: &'a Item, name: &str) -> &'a str {
    match item.get(name) {
        Some(Value::Text(text)) => text,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_page_gets_its_markdown_and_loses_its_pixels() {
    let set = Set::new();
    let mut stage = set.stage::<TranscribeConfig>(&json!({ "max_new_tokens": 12 }));
    let out = run_stage(&mut *stage, [page(1)]);
    assert!(out.dead.is_empty() && out.error.is_none(), "{:?}", out.dead);
    let item = &out.sent[0];
    assert!(!text(item, "markdown").is_empty());
    assert!(["stop", "length"].contains(&text(item, "markdown_finish")));
    assert_eq!(text(item, "markdown_note"), "");
    assert!(item.image().is_none());
}

#[test]
fn stages_of_a_run_share_a_model_and_each_answer_is_that_of_its_page_alone() {
    let set = Set::new();
    let settings = json!({ "max_new_tokens": 16 });
    let mut alone = BTreeMap::new();
    for n in 1..=6 {
        let mut stage = set.stage::<TranscribeConfig>(&settings);
        let out = run_stage(&mut *stage, [page(n)]);
        alone.insert(n, text(&out.sent[0], "markdown").to_owned());
    }
    // As the runner does with six workers: side by side, joining as they come.
    let together = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for n in 1..=6 {
            let mut stage = set.stage::<TranscribeConfig>(&settings);
            let together = &together;
            scope.spawn(move || {
                let out = run_stage(&mut *stage, [page(n)]);
                let markdown = text(&out.sent[0], "markdown").to_owned();
                together.lock().unwrap().insert(n, markdown);
            });
        }
    });
    assert_eq!(alone, together.into_inner().unwrap());
    assert!(
        alone
            .values()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            > 1
    );
}

#[test]
fn a_prompt_is_filled_in_and_answered_without_a_picture() {
    let set = Set::new();
    let settings = json!({ "prompt": "{{ text }} on {{ page }}", "image": false, "into": "said",
        "max_new_tokens": 4, "system": "You are {{ uri }}." });
    let mut stage = set.stage::<GenerateConfig>(&settings);
    let item = Item::of_text("a.pdf", "mill").with_page(2);
    let out = run_stage(
        &mut *stage,
        [item, Item::of_text("b.pdf", "").with("text", 3_i64)],
    );
    assert_eq!(out.sent.len(), 2, "{:?}", out.dead);
    assert!(!text(&out.sent[0], "said_finish").is_empty());
}

#[test]
fn an_object_always_keeps_to_its_schema() {
    let set = Set::new();
    let schema = json!({ "type": "object", "additionalProperties": false,
        "properties": { "paid": { "type": "boolean" }, "kind": { "enum": ["a", "b"] } },
        "required": ["paid", "kind"] });
    let settings = json!({ "schema": schema, "max_new_tokens": 64 });
    let mut stage = set.stage::<ExtractConfig>(&settings);
    let out = run_stage(&mut *stage, (1..=4).map(page));
    assert!(out.dead.is_empty(), "{:?}", out.dead);
    for item in &out.sent {
        assert!(matches!(item.get("paid"), Some(Value::Bool(_))));
        assert!(["a", "b"].contains(&text(item, "kind")));
    }
}

#[test]
fn an_object_that_is_cut_off_is_set_aside() {
    let set = Set::new();
    let schema = json!({ "type": "object", "required": ["paid"],
        "properties": { "paid": { "type": "boolean" } } });
    let settings = json!({ "schema": schema, "max_new_tokens": 2 });
    let mut stage = set.stage::<ExtractConfig>(&settings);
    let out = run_stage(&mut *stage, [page(1)]);
    let expected =
        "cannot extract `a.pdf#1`: the answer was cut off (length) before its JSON ended";
    assert_eq!(out.dead[0].1, expected);
}

#[test]
fn labels_get_probabilities_that_add_up() {
    let set = Set::new();
    let labels = ["invoice", "letter", "letter of intent"];
    let mut stage = set.stage::<ClassifyConfig>(&json!({ "labels": labels }));
    let out = run_stage(&mut *stage, [page(1), page(2)]);
    assert!(out.dead.is_empty(), "{:?}", out.dead);
    for item in &out.sent {
        let all: BTreeMap<String, f64> =
            serde_json::from_str(text(item, "label_probabilities")).unwrap();
        assert!((all.values().sum::<f64>() - 1.0).abs() < 1e-9 && all.len() == 3);
        let Some(Value::Float(p)) = item.get("label_probability") else {
            panic!()
        };
        assert!((all[text(item, "label")] - p).abs() < 1e-12);
        assert!(all.values().all(|other| other <= p));
    }
}

#[test]
fn a_long_hint_is_cut_and_the_picture_is_not() {
    let set = Set::new();
    let settings = json!({ "words_hint": true, "max_new_tokens": 4, "max_context": 400,
        "prompt": "Read." });
    let mut stage = set.stage::<TranscribeConfig>(&settings);
    let long = page(1).with("text", "word ".repeat(2000).as_str());
    let out = run_stage(&mut *stage, [long, page(2).with("text", "ab")]);
    assert!(out.dead.is_empty(), "{:?}", out.dead);
    let note = text(&out.sent[0], "markdown_note");
    assert!(note.starts_with("the words were cut from "), "{note}");
    assert_eq!(text(&out.sent[1], "markdown_note"), "");
}

#[test]
fn a_sequence_that_never_fits_costs_its_item() {
    let set = Set::new();
    let settings = json!({ "max_context": 8 });
    let mut stage = set.stage::<CaptionConfig>(&settings);
    let out = run_stage(&mut *stage, [page(1)]);
    assert!(out.sent.is_empty() && out.error.is_none());
    assert!(
        out.dead[0].1.starts_with("cannot caption `a.pdf#1`: "),
        "{}",
        out.dead[0].1
    );
}

#[test]
fn an_item_without_a_picture_is_set_aside() {
    let set = Set::new();
    let mut stage = set.stage::<CaptionConfig>(&json!({}));
    let out = run_stage(&mut *stage, [Item::of_text("a.txt", "x")]);
    assert_eq!(out.dead[0].1, "cannot caption `a.txt`: it has no `image`");
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let set = Set::new();
    for (more, expected) in [
        (
            json!({ "labels": [] }),
            "`labels` must be at least two, not 0",
        ),
        (json!({ "labels": ["a", "a"] }), "`labels` has `a` twice"),
        (
            json!({ "labels": ["a", " "] }),
            "`labels` has one without a letter",
        ),
        (
            json!({ "labels": ["a", "b"], "prompt": "{{ a" }),
            "`prompt` is no template",
        ),
        (
            json!({ "labels": ["a", "b"], "into": "1 x" }),
            "`into` is no name of a field",
        ),
        (
            json!({ "labels": ["a", "b"], "max_batch": 0 }),
            "`max_batch` must be at least 1",
        ),
        (
            json!({ "labels": ["a", "b"], "quantize": "q9" }),
            "`quantize` names no quantization",
        ),
        (
            json!({ "labels": ["a", "b"], "model": VISUAL_MODEL }),
            "`model` names a model that does not generate",
        ),
        (
            json!({ "labels": ["a", "b"], "model": PICTURE_MODEL }),
            "`model` names a model that",
        ),
    ] {
        let refusal = set.refusal::<ClassifyConfig>(&more);
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    for (schema, expected) in [
        (
            json!({ "type": "string" }),
            "`schema` must be that of an object",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "integer", "minimum": 2, "maximum": 1 } }, "required": ["a"] }),
            "`schema` cannot be met: Unsatisfiable",
        ),
        (
            json!({ "type": "object", "properties": { "a": { "not": {} } }, "required": ["a"] }),
            "`schema` asks for what is not supported: Unimplemented keys: [\"not\"]",
        ),
        (
            json!("no/such.json"),
            "`schema` cannot be read from `no/such.json`",
        ),
    ] {
        let refusal = set.refusal::<ExtractConfig>(&json!({ "schema": schema }));
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    let refusal = set.refusal::<GenerateConfig>(&json!({ "prompt": "a", "top_p": 0.0 }));
    assert!(refusal.starts_with("`top_p` must be above 0"), "{refusal}");
}

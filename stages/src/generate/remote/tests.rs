use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pagemill_models::{Limits, Sampling};
use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Resources, Stage, StageConfig, Value, VectorData};
use serde_json::json;

use super::*;
use crate::embed_text::EmbedTextConfig;
use crate::generate::ask::Wanted;
use crate::generate::server::{Reply, Server};
use crate::generate::{CaptionConfig, ClassifyConfig, ExtractConfig, GenerateConfig, ModelSetting};
use crate::testing::blank_page;

#[allow(clippy::needless_pass_by_value, reason = "tests write it in place")]
fn settings<C: StageConfig>(url: &str, more: Json) -> C {
    let mut table = json!({ "model": { "url": url, "name": "tiny", "attempts": 3, "key": "abc" } });
    for (key, value) in more.as_object().unwrap() {
        table[key] = value.clone();
    }
    serde_json::from_value(table).unwrap()
}

fn stage<C: StageConfig>(url: &str, more: Json) -> Box<dyn Stage> {
    settings::<C>(url, more)
        .build(&Resources::default())
        .unwrap()
}

fn text<'a>(item: &'a Item, name: &str) -> &'a str {
    match item.get(name) {
        Some(Value::Text(text)) => text,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_picture_and_a_prompt_go_out_and_a_text_comes_back() {
    let server = Server::start(vec![Reply::says(" A mill. ")]);
    let mut stage = stage::<CaptionConfig>(&server.url, json!({ "prompt": "Page {{ page }}?" }));
    let out = run_stage(&mut *stage, [blank_page(8, 4)]);
    assert!(out.dead.is_empty() && out.error.is_none(), "{:?}", out.dead);
    assert_eq!(text(&out.sent[0], "caption"), "A mill.");
    assert_eq!(text(&out.sent[0], "caption_finish"), "stop");
    assert!(out.sent[0].image().is_none());
    let asked = server.asked();
    assert!(asked[0].head.starts_with("POST /v1/chat/completions "));
    assert!(
        asked[0]
            .head
            .to_lowercase()
            .contains("authorization: bearer abc")
    );
    let content = &asked[0].body["messages"][0]["content"];
    assert_eq!(content[1]["text"], "Page 1?");
    let url = content[0]["image_url"]["url"].as_str().unwrap();
    let encoded = url.strip_prefix("data:image/png;base64,").unwrap();
    let picture = image::load_from_memory(&BASE64_STANDARD.decode(encoded).unwrap()).unwrap();
    assert_eq!((picture.width(), picture.height()), (8, 4));
}

#[test]
fn a_server_with_troubles_is_asked_again() {
    let good = Reply::says("It turns.");
    let Reply::Status(_, _, body) = good.clone() else {
        unreachable!()
    };
    for trouble in [
        Reply::Status(
            429,
            "retry-after: 0",
            "{\"error\": {\"message\": \"slow down\"}}".into(),
        ),
        Reply::Status(500, "", "oops".into()),
        Reply::Status(503, "", String::new()),
        Reply::Status(200, "", "no JSON".into()),
        Reply::Status(200, "", "{\"choices\": []}".into()),
        Reply::Half(body),
        Reply::Nothing,
    ] {
        let server = Server::start(vec![trouble.clone(), good.clone()]);
        let mut stage = stage::<CaptionConfig>(&server.url, json!({}));
        let out = run_stage(&mut *stage, [blank_page(4, 4)]);
        assert!(
            out.dead.is_empty() && out.error.is_none(),
            "{trouble:?} {:?}",
            out.dead
        );
        assert_eq!(text(&out.sent[0], "caption"), "It turns.");
        assert_eq!(server.asked().len(), 2);
    }
}

#[test]
fn a_server_that_never_answers_costs_the_item_and_says_why() {
    let busy = || {
        Reply::Status(
            429,
            "retry-after: 0",
            "{\"error\": {\"message\": \"slow down\"}}".into(),
        )
    };
    let server = Server::start(vec![busy(), busy(), busy()]);
    let url = server.url.clone();
    let mut stage = stage::<CaptionConfig>(&url, json!({}));
    let out = run_stage(&mut *stage, [blank_page(4, 4)]);
    assert_eq!(
        out.dead[0].1,
        format!("cannot caption `a.pdf#1`: {url} answered 429: slow down, 3 times")
    );
    assert!(out.error.is_none() && server.asked().len() == 3);
}

#[test]
fn what_no_attempt_mends_is_said_at_once() {
    let refusal = Reply::Status(400, "", "{\"error\": {\"message\": \"too long\"}}".into());
    let server = Server::start(vec![refusal]);
    let mut caption = stage::<CaptionConfig>(&server.url, json!({}));
    let out = run_stage(&mut *caption, [blank_page(4, 4)]);
    assert!(out.dead[0].1.ends_with("answered 400: too long") && server.asked().len() == 1);
    for status in [401, 403, 404] {
        let server = Server::start(vec![Reply::Status(status, "", String::new())]);
        let mut caption = stage::<CaptionConfig>(&server.url, json!({}));
        let error = run_stage(&mut *caption, [blank_page(4, 4)]).error.unwrap();
        assert!(error.to_string().contains(&status.to_string()));
        assert_eq!(
            error.hint(),
            Some("check `url`, `name` and `key` of `model`")
        );
        server.asked();
    }
}

#[test]
fn an_object_is_asked_for_by_its_schema_and_checked() {
    let schema = json!({ "type": "object", "properties": { "total": { "type": "number" } },
        "required": ["total"], "additionalProperties": false });
    let replies = vec![
        Reply::says("{\"total\": \"much\"}"),
        Reply::says("{\"total\": 12.5}"),
    ];
    let server = Server::start(replies);
    let mut stage = stage::<ExtractConfig>(&server.url, json!({ "schema": schema }));
    let out = run_stage(&mut *stage, [blank_page(4, 4)]);
    assert!(out.dead.is_empty(), "{:?}", out.dead);
    assert!(
        matches!(out.sent[0].get("total"), Some(Value::Float(total)) if (*total - 12.5).abs() < 1e-9)
    );
    let asked = server.asked();
    assert_eq!(
        asked.len(),
        2,
        "an answer that does not fit is asked for again"
    );
    let messages = asked[1].body["messages"].as_array().unwrap();
    assert_eq!(messages[1]["content"], "{\"total\": \"much\"}");
    let told = messages[2]["content"].as_str().unwrap();
    assert!(told.starts_with("That is not what was asked for"), "{told}");
    assert_eq!(
        asked[0].body["response_format"]["json_schema"]["schema"],
        schema
    );
}

#[test]
fn a_server_of_the_older_shape_is_told_the_schema_in_that() {
    let schema = json!({ "type": "object", "properties": { "total": { "type": "number" } },
        "required": ["total"], "additionalProperties": false });
    let said = "{'loc': ('body', 'response_format', 'type'), 'msg': \"be 'json_object'\"}";
    let said = json!({ "error": { "message": said } }).to_string();
    for status in [422, 500] {
        let replies = vec![
            Reply::Status(status, "", said.clone()),
            Reply::says("{\"total\": 12.5}"),
            Reply::says("{\"total\": 3}"),
        ];
        let server = Server::start(replies);
        let mut stage = stage::<ExtractConfig>(&server.url, json!({ "schema": schema }));
        let out = run_stage(&mut *stage, [blank_page(4, 4), blank_page(4, 4)]);
        assert!(out.dead.is_empty() && out.sent.len() == 2, "{:?}", out.dead);
        let asked = server.asked();
        let shape = |n: usize| &asked[n].body["response_format"];
        assert_eq!(shape(0)["type"], "json_schema");
        for n in [1, 2] {
            let older = json!({ "type": "json_object", "schema": schema });
            assert_eq!(*shape(n), older);
        }
    }
}

#[test]
fn a_server_without_schemas_is_quoted_with_its_first_refusal() {
    let refusal = |text: &str| Reply::Status(400, "", json!({ "error": text }).to_string());
    let server = Server::start(vec![refusal("no schemas"), refusal("what is this")]);
    let labels = json!({ "labels": ["invoice", "letter"] });
    let mut stage = stage::<ClassifyConfig>(&server.url, labels);
    let out = run_stage(&mut *stage, [blank_page(4, 4)]);
    assert!(
        out.dead[0].1.ends_with("answered 400: no schemas"),
        "{:?}",
        out.dead
    );
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn words_alone_are_one_text() {
    let server = Server::start(vec![Reply::says("A mill.")]);
    let more = json!({ "image": false, "prompt": "Name {{ uri }}." });
    let mut stage = stage::<GenerateConfig>(&server.url, more);
    let out = run_stage(&mut *stage, [blank_page(4, 4)]);
    assert!(out.dead.is_empty(), "{:?}", out.dead);
    let asked = server.asked();
    assert_eq!(
        asked[0].body["messages"],
        json!([{ "role": "user", "content": "Name a.pdf." }])
    );
}

#[test]
fn a_label_comes_with_what_the_server_tells_of_its_likelihood() {
    let body = json!({ "choices": [{ "message": { "content": "\"letter\"" },
        "finish_reason": "stop",
        "logprobs": { "content": [
            { "token": "\"", "logprob": 0.0 }, { "token": "letter", "logprob": 0.8_f64.ln() },
        ] } }] });
    let replies = vec![Reply::Status(200, "", body.to_string())];
    let server = Server::start(replies);
    let labels = json!({ "labels": ["invoice", "letter", "other"] });
    let mut stage = stage::<ClassifyConfig>(&server.url, labels);
    let out = run_stage(&mut *stage, [blank_page(4, 4)]);
    assert_eq!(text(&out.sent[0], "label"), "letter");
    let Some(Value::Float(p)) = out.sent[0].get("label_probability") else {
        panic!()
    };
    assert!((p - 0.8).abs() < 1e-9, "{p}");
    server.asked();
}

#[test]
fn a_server_without_likelihoods_gives_a_label_alone() {
    let unsupported = json!({ "error": { "message": "logprobs is not supported" } }).to_string();
    for status in [400, 500] {
        let replies = vec![
            Reply::Status(status, "", unsupported.clone()),
            Reply::says("\"letter\""),
            Reply::says("other"),
        ];
        let server = Server::start(replies);
        let labels = json!({ "labels": ["invoice", "letter", "other"] });
        let mut stage = stage::<ClassifyConfig>(&server.url, labels);
        let out = run_stage(&mut *stage, [blank_page(4, 4), blank_page(4, 4)]);
        assert!(out.dead.is_empty(), "{:?}", out.dead);
        let found: Vec<_> = out.sent.iter().map(|item| text(item, "label")).collect();
        assert_eq!(found, ["letter", "other"]);
        assert!(
            out.sent[0].get("label_probability").is_none(),
            "it is not known"
        );
        let asked = server.asked();
        let wanted: Vec<_> = asked
            .iter()
            .map(|asked| &asked.body["top_logprobs"])
            .collect();
        assert_eq!(wanted, [&json!(20), &Json::Null, &Json::Null]);
    }
}

#[test]
fn a_label_that_is_none_is_asked_for_again() {
    let server = Server::start(vec![Reply::says("a bill"), Reply::says("invoice")]);
    let labels = json!({ "labels": ["invoice", "letter"] });
    let mut stage = stage::<ClassifyConfig>(&server.url, labels);
    let out = run_stage(&mut *stage, [blank_page(4, 4)]);
    assert_eq!(text(&out.sent[0], "label"), "invoice");
    assert_eq!(server.asked()[1].body["messages"][1]["content"], "a bill");
}

#[test]
fn texts_are_embedded_in_their_order() {
    let body = json!({ "data": [
        { "index": 1, "embedding": [0.0, 1.0] }, { "index": 0, "embedding": [1.0, 0.0] },
    ]});
    let replies = vec![Reply::Status(200, "", body.to_string())];
    let server = Server::start(replies);
    let mut stage = stage::<EmbedTextConfig>(&server.url, json!({}));
    let items = ["one", " ", "two"].map(|text| Item::of_text("a.pdf", text));
    let out = run_stage(&mut *stage, items);
    let first = |item: &Item| {
        item.vector().map(|vector| match vector.data() {
            VectorData::F32(numbers) => numbers[0],
            VectorData::F16(_) => panic!("a server gives 32 bits"),
        })
    };
    let vectors: Vec<_> = out.sent.iter().map(first).collect();
    assert_eq!(vectors, [Some(1.0), None, Some(0.0)]);
    assert_eq!(server.asked()[0].body["input"], json!(["one", "two"]));
}

#[test]
fn vectors_that_are_none_are_found_out() {
    for data in [
        json!([]),
        json!([{ "embedding": [1.0] }, { "embedding": [1.0, 2.0] }]),
        json!([{ "embedding": [] }, { "embedding": [] }]),
        json!([{ "embedding": ["a"] }, { "embedding": [1.0] }]),
        json!([{ "embedding": [1.0] }, { "embedding": [1.0] }, { "embedding": [1.0] }]),
    ] {
        assert!(read_vectors(&json!({ "data": data }), 2).is_err(), "{data}");
    }
}

#[test]
fn vectors_of_tokens_are_told_from_those_of_texts() {
    let body = json!({ "data": [{ "index": 0, "embedding": [[1.0, 0.0], [0.0, 1.0]] }] });
    let server = Server::start(vec![Reply::Status(200, "", body.to_string())]);
    let mut stage = stage::<EmbedTextConfig>(&server.url, json!({}));
    let out = run_stage(&mut *stage, [Item::of_text("a.pdf", "one")]);
    let why = &out.dead[0].1;
    assert!(
        why.ends_with("answered a vector for each token; it must be told to pool them"),
        "{why}"
    );
    assert_eq!(server.asked().len(), 1, "it would say so each time");
}

#[test]
fn a_key_is_never_shown() {
    let mut remote = RemoteModel::new("http://a/v1", "b");
    remote.key = Some("very-secret".into());
    let shown = format!(
        "{remote:?} {:?} {:?}",
        Remote::new(&remote),
        ModelSetting::Remote(remote.clone())
    );
    assert!(!shown.contains("very-secret"), "{shown}");
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    for (more, field) in [
        (json!({ "quantize": "q8_0" }), "quantize"),
        (json!({ "cache_mb": 5 }), "cache_mb"),
        (
            json!({ "model": { "url": "ftp://a", "name": "b" } }),
            "model",
        ),
        (
            json!({ "model": { "url": "http://a", "name": "b", "attempts": 0 } }),
            "model",
        ),
    ] {
        let config: CaptionConfig = settings("http://a", more);
        let error = config.build(&Resources::default()).err().unwrap();
        assert_eq!(error.field, field);
    }
}

#[test]
fn a_hint_is_cut_and_that_is_said() {
    let ask = Ask {
        system: Some("You read.".into()),
        prompt: "Go.".into(),
        hint: Some("x".repeat(100_000)),
        picture: None,
        wanted: Wanted::Text {
            sampling: Sampling::default(),
            limits: Limits::default(),
            grammar: None,
        },
    };
    let dialect = Dialect {
        shape: Shape::JsonSchema,
        logprobs: true,
    };
    let (request, note) = chat_request("tiny", &ask, dialect).unwrap();
    assert_eq!(
        note.unwrap(),
        "the words were cut from 100000 to 16384 bytes"
    );
    assert_eq!(request["messages"][0]["content"], "You read.");
    assert!(request["messages"][1]["content"].as_str().unwrap().len() < 17_000);
}

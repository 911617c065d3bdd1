//! The commands, as a user or a script calls them.

use std::fs;

use crate::support::{Mill, indexed, json, page_of, pagemill, stderr, stdout};

#[test]
fn run_reports_what_scripts_read() {
    let mill = Mill::new();
    mill.add("a.pdf", page_of("first"))
        .add("b.pdf", page_of("second"));
    let (code, report) = mill.run();
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["documents_done"], 2);
    assert_eq!(report["documents_skipped"], 0);
    assert_eq!(report["items_stored"], 2);
    assert_eq!(report["dead_letters"], 0);
    assert!(report["elapsed_s"].as_f64().unwrap() > 0.0);
    assert!(report.get("bottleneck").is_some());
    let names: Vec<_> = report["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["name"])
        .collect();
    assert_eq!(names, ["files", "pages", "images", "chunks", "rows"]);
    for name in ["items", "busy_s", "starved_s", "blocked_s"] {
        assert!(report["nodes"][0][name].is_number(), "{name}");
    }
    let texts: Vec<_> = mill.rows().iter().map(|row| row["text"].clone()).collect();
    assert!(
        texts.contains(&"first".into()) && texts.contains(&"second".into()),
        "{texts:?}"
    );
}

#[test]
fn run_in_a_pipe_shows_no_progress_and_prints_a_report_for_people() {
    let mill = Mill::new();
    mill.add("a.pdf", page_of("first"));
    let output = mill.command(&["run"]);
    assert_eq!(stderr(&output), "");
    let text = stdout(&output);
    assert!(
        text.starts_with("p: 1 documents done, 1 items stored, 0 dead letters in "),
        "{text}"
    );
    assert!(text.contains("busy  starved  blocked"), "{text}");
}

#[test]
fn a_setting_can_be_overridden() {
    let mill = Mill::new();
    fs::create_dir(mill.path("other")).unwrap();
    fs::write(mill.path("other/c.pdf"), page_of("third")).unwrap();
    let output = mill.command(&["run", "p", "--json", "--set", "p.source.files.path=other"]);
    assert_eq!(json(&output)["documents_done"], 1, "{}", stderr(&output));
    let document = mill.rows()[0]["document"].clone();
    assert!(document.as_str().unwrap().ends_with("/other/c.pdf"));
}

#[test]
fn a_wrong_configuration_exits_with_2_and_shows_the_place() {
    let mill = Mill::with("[p.source.files]\nkind = \"read_file\"\n");
    for command in ["run", "check", "graph"] {
        let output = mill.command(&[command]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains(" --> pipelines.toml:2:8"), "{text}");
        assert!(text.contains("hint: did you mean `read_files`?"), "{text}");
    }
    let output = mill.command(&["run", "--config", "absent.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).starts_with("error: cannot read `absent.toml`"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_unknown_pipeline_is_named_with_the_nearest() {
    let mill =
        Mill::with(&fs::read_to_string(crate::support::project().join("pipelines.toml")).unwrap());
    let output = mill.command(&["graph", "document"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("hint: did you mean `documents`?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_prints_the_graph_with_its_fields() {
    let mill = Mill::new();
    let output = mill.command(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains("stage chunks (chunk_text, 1:n)\n    takes from images\n"),
        "{text}"
    );
    // Nobody behind the decoder looks at pixels: the edges from there on let them go.
    let (_, behind) = text.split_once("stage chunks").unwrap();
    assert!(!behind.contains("image,"), "{behind}");
}

#[test]
fn the_graph_is_drawn_in_four_ways() {
    let mill = Mill::new();
    let drawn = |format: &str| stdout(&mill.command(&["graph", "p", "--format", format]));
    assert!(drawn("text").contains("source files (read_files)"));
    assert!(drawn("mermaid").starts_with("flowchart LR\n    n0([\"files<br/>"));
    assert!(drawn("dot").starts_with("digraph \"p\" {"));
    let svg = drawn("svg");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    mill.command(&["graph", "--format", "svg", "--out", "graph.svg"]);
    assert_eq!(fs::read_to_string(mill.path("graph.svg")).unwrap(), svg);
    let output = mill.command(&["graph", "--out", "no/such/folder.svg"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("hint: name a file in a folder that exists"));
}

#[test]
fn models_lists_what_is_here() {
    let mill = Mill::new();
    let output = mill.command(&["models", "--json"]);
    assert!(json(&output)["models"].is_array());
    assert!(stdout(&mill.command(&["models", "list"])).contains("Names are looked up as a folder"));
}

#[test]
fn the_samples_are_stored_and_two_of_them_set_aside_with_reasons() {
    let Some(folder) = indexed() else { return };
    let report = fs::read(folder.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["dead_letters"], 2);
    assert_eq!(report["documents_done"], 9);
    let letters = folder.path().join("data/dead-letters");
    let letters = pagemill::pipeline::read_dead_letters(&letters).unwrap();
    let of = |name: &str| letters.iter().find(|l| l.document.ends_with(name)).unwrap();
    let locked = of("protected.pdf");
    assert!(
        locked.error.contains("needs a password"),
        "{}",
        locked.error
    );
    assert!(locked.hint.as_ref().unwrap().contains("`passwords`"));
    assert!(
        of("damaged.pdf")
            .error
            .starts_with("cannot render `damaged.pdf`: ")
    );
}

#[test]
fn search_answers_in_every_mode_with_the_fixed_fields() {
    let Some(folder) = indexed() else { return };
    for mode in ["text", "vector", "hybrid"] {
        let question = "torque for the membrane housing clamp bolts";
        let arguments = ["search", question, "--mode", mode, "--top", "3", "--json"];
        let output = pagemill(folder.path(), &arguments);
        let answer = json(&output);
        let hits = answer["hits"].as_array().unwrap();
        assert_eq!(hits.len(), 3, "{answer:#}");
        let first = &hits[0];
        assert!(first["score"].is_number() && first["text"].is_string());
        assert!(
            first["document"].as_str().unwrap().ends_with("manual.pdf"),
            "{answer:#}"
        );
        assert_eq!(first["page"], 57, "{mode}: {answer:#}");
    }
    let output = pagemill(folder.path(), &["search", "torque \"AND (", "--top", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn search_before_the_first_run_says_what_to_do() {
    let mill =
        Mill::with(&fs::read_to_string(crate::support::project().join("pipelines.toml")).unwrap());
    let output = mill.command(&["search", "anything", "--mode", "text"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("hint: ") && text.contains("pagemill run"),
        "{text}"
    );
    let json_lines = Mill::new();
    let output = json_lines.command(&["search", "anything"]);
    assert!(
        stderr(&output).contains("has no sink of kind `lancedb`"),
        "{}",
        stderr(&output)
    );
}

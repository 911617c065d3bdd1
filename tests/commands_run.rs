//! `pagemill run` with several pipelines, traces, pruning; `graph` and `check`.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use crate::support::{Mill, json, page_of, stderr, stdout};

/// Two pipelines that read the same folder.
const TWO: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 100
[p.stage.chunks]
kind = "chunk_text"
input = "pages"
[p.sink.rows]
kind = "jsonl"
input = "chunks"
path = "rows.jsonl"

[q]
dead_letters = "q-letters"
[q.source.files]
kind = "read_files"
path = "input"
[q.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 50
[q.stage.chunks]
kind = "chunk_text"
input = "pages"
[q.sink.rows]
kind = "jsonl"
input = "chunks"
path = "others.jsonl"
"#;

#[test]
fn several_pipelines_run_together_and_leave_a_list_of_reports() {
    for arguments in [
        &["run", "q", "p", "--json"][..],
        &["run", "--all", "--json"][..],
    ] {
        let mill = Mill::with(TWO);
        mill.add("a.pdf", page_of("first"));
        let output = mill.command(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let reports = json(&output);
        let mut names: Vec<_> = reports
            .as_array()
            .unwrap()
            .iter()
            .inspect(|report| assert_eq!(report["documents_done"], 1, "{report:#}"))
            .map(|report| report["pipeline"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["p", "q"]);
    }
}

#[test]
fn one_pipeline_that_fails_leaves_the_others_running() {
    let mill = Mill::with(TWO);
    mill.add("a.pdf", page_of("first"));
    fs::write(mill.path("q-letters"), "in the way").unwrap();
    let output = mill.command(&["run", "--all", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).starts_with("error: pipeline `q` stopped at `dead_letters`: "),
        "{}",
        stderr(&output)
    );
    let reports = json(&output);
    let of = |name: &str| {
        let mut reports = reports.as_array().unwrap().iter();
        reports.find(|report| report["pipeline"] == name).unwrap()
    };
    assert_eq!(of("p")["documents_done"], 1);
    assert!(of("p").get("error").is_none());
    assert!(
        of("q")["error"].is_string() && of("q")["hint"].is_string(),
        "{reports:#}"
    );
    let output = mill.command(&["run", "--all"]);
    assert!(stdout(&output).starts_with("p: 0 documents done"));
}

#[test]
fn without_a_name_the_first_runs_and_a_name_that_is_there_twice_is_refused() {
    let mill = Mill::with(TWO);
    mill.add("a.pdf", page_of("first"));
    assert_eq!(json(&mill.command(&["run", "--json"]))["pipeline"], "p");
    for (arguments, hint) in [
        (&["run", "p", "q", "p"][..], "hint: name it once"),
        (&["run", "p", "pp"][..], "hint: did you mean `p`?"),
        (&["run", "p", "--all"][..], "cannot be used with"),
    ] {
        let output = mill.command(arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(hint), "{}", stderr(&output));
    }
}

#[test]
fn a_trace_has_a_lane_for_every_worker() {
    let mill = Mill::with(TWO);
    mill.add("a.pdf", page_of("first"));
    let arguments = ["run", "p", "--trace", "trace.json", "--json"];
    let output = mill.command(&[&arguments[..], &["--set", "p.stage.pages.workers=2"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "", "nobody looks on");
    let text = fs::read_to_string(mill.path("trace.json")).unwrap();
    let events: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let lanes: Vec<&str> = events
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    for lane in ["files", "pages-0", "pages-1", "chunks-0", "rows"] {
        assert!(
            lanes.iter().any(|name| name.ends_with(lane)),
            "{lane}: {lanes:?}"
        );
    }
    assert!(events.iter().any(|event| event["ph"] == "X"));
    let output = mill.command(&["run", "--trace", "no/such/trace.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("hint: name a file in a folder that exists"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_is_gone_is_removed_when_that_is_asked_for() {
    let mill = Mill::new();
    mill.add("a.pdf", page_of("first"))
        .add("b.pdf", page_of("second"));
    assert_eq!(mill.run().0, 0);
    fs::remove_file(mill.path("input/a.pdf")).unwrap();
    let report = json(&mill.command(&["run", "--json"]));
    assert_eq!(report["documents_removed"], 0);
    let report = json(&mill.command(&["run", "--json", "--prune"]));
    assert_eq!(report["documents_removed"], 1, "{report:#}");
    let rows = mill.rows();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["text"], "second");
}

/// Routes, an `else` and a join.
const ROUTED: &str = r#"
[p]
ledger = false
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
[p.stage.small]
kind = "resize"
input = "pages"
long_side_px = 20
when = 'page < 3 && text != "<a>"'
else = "large"
[p.stage.large]
kind = "resize"
input = "pages"
long_side_px = 40
retry = { attempts = 5 }
edge = { max_items = 7 }
[p.stage.chunks]
kind = "chunk_text"
input = ["small", "large"]
[p.sink.rows]
kind = "jsonl"
input = "chunks"
path = "rows.jsonl"
"#;

#[test]
fn routes_are_drawn_and_described() {
    let mill = Mill::with(ROUTED);
    let drawn = |format: &str| {
        let output = mill.command(&["graph", "--format", format]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let mermaid = drawn("mermaid");
    let when = "<b>when page #lt; 3 #amp;#amp; text != #quot;#lt;a#gt;#quot;</b>";
    assert!(
        mermaid.contains(when) && mermaid.contains("<b>else</b>"),
        "{mermaid}"
    );
    let dot = drawn("dot");
    assert!(
        dot.contains(r#"label="when page < 3 && text != \"<a>\"\n"#),
        "{dot}"
    );
    let svg = drawn("svg");
    let title = "<title>when page &lt; 3 &amp;&amp; text != &quot;&lt;a&gt;&quot;</title>";
    assert!(svg.contains(title) && svg.contains(">else</text>"), "{svg}");
    let text = stdout(&mill.command(&["check"]));
    for line in [
        "  keeps no ledger: every run does everything anew\n",
        "    takes from pages when `page < 3 && text != \"<a>\"`\n",
        "    takes from pages what nobody else takes\n",
        "    with edge = { max_items = 7 }, retry = { attempts = 5, base_ms = 200 }\n",
        "    takes from small, large\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// The same pages by two ways, put together again.
const JOINED: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 40
[p.stage.thumbnails]
kind = "thumbnail"
input = "pages"
[p.stage.small]
kind = "resize"
input = "pages"
long_side_px = 20
[p.sink.rows]
kind = "jsonl"
join = ["thumbnails", "small"]
unmatched = "pass"
path = "rows.jsonl"
"#;

#[test]
fn joins_are_drawn_and_described() {
    let mill = Mill::with(JOINED);
    let output = mill.command(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("    joins thumbnails and small\n"), "{text}");
    assert!(text.contains("unmatched = \"pass\""), "{text}");
    let mermaid = stdout(&mill.command(&["graph", "--format", "mermaid"]));
    assert!(mermaid.contains("<small>jsonl, join</small>"), "{mermaid}");
}

/// Reads lines from standard input.
const LINES: &str = r#"
[p.source.files]
kind = "stdin"
text = true
fields = { title = "text" }
"#;

#[test]
fn text_from_standard_input_passes_the_stages_that_read_documents() {
    let mill = Mill::with_source(LINES);
    mill.add("a.pdf", page_of("from the page"));
    let mut run = mill.binary(&["run", "--json"]);
    run.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut run = run.spawn().expect("the binary starts");
    let lines = "{\"uri\": \"note:1\", \"text\": \"from the line\", \"title\": \"A note\"}\n\
                 input/a.pdf\n";
    let mut stdin = run.stdin.take().expect("it is piped");
    stdin.write_all(lines.as_bytes()).expect("it is read");
    drop(stdin);
    let output = run.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let rows = mill.rows();
    let text = |uri: &str, field: &str| {
        let is_of = |row: &&serde_json::Value| row["document"].as_str().unwrap().ends_with(uri);
        let row = rows
            .iter()
            .find(is_of)
            .unwrap_or_else(|| panic!("{rows:?}"));
        row[field].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(text("note:1", "text"), "from the line");
    assert_eq!(text("note:1", "title"), "A note");
    assert_eq!(text("a.pdf", "text").trim(), "from the page");
}

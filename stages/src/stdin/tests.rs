use std::fs;
use std::io::Cursor;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use pagemill_pipeline::{FieldSet, Value};

use super::*;
use crate::testing::sources::{Ran, Runs};

const PDF: &[u8] = b"%PDF-1.7\n";

fn config(settings: &str) -> StdinConfig {
    // The settings as JSON: this crate knows no TOML.
    serde_json::from_str(settings).unwrap()
}

const DECLARED: &str = r#"{"text": true, "fields": {"lang": "text", "year": "integer", "score": "float", "new": "bool"}}"#;

fn records(settings: &str) -> Records {
    Records::new(&config(settings)).unwrap()
}

fn problem(settings: &str, line: &str) -> String {
    let error = records(settings).parse(line).unwrap_err();
    assert!(error.hint.is_some());
    error.reason
}

/// The absolute path of a file in the working directory.
fn here(name: &str) -> String {
    let path = std::env::current_dir().unwrap().join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_line_is_a_path_or_an_object() {
    let records = records("{}");
    let path = |line: &str| {
        let record = records.parse(line).unwrap();
        assert_eq!(record.content, Content::File(record.uri.clone().into()));
        record.uri
    };
    assert_eq!(path("docs/a b.pdf"), here("docs/a b.pdf"));
    assert_eq!(path(r#"{"path": "docs/ü.pdf"}"#), here("docs/ü.pdf"));
    for spelling in ["./a.pdf", "x/../a.pdf", &here("a.pdf")] {
        assert_eq!(path(spelling), here("a.pdf"), "{spelling}");
    }
    let bytes = records
        .parse(r#"{"uri": "a", "bytes": "JVBERg=="}"#)
        .unwrap();
    assert_eq!(
        (bytes.content, &*bytes.uri),
        (Content::Bytes(b"%PDF".into()), "a")
    );
}

#[test]
fn a_path_may_look_like_an_object_where_lines_are_paths() {
    let odd = records(r#"{"format": "paths"}"#).parse("{a}.pdf").unwrap();
    assert_eq!(odd.uri, here("{a}.pdf"));
}

#[test]
fn further_keys_become_fields_of_their_declared_types() {
    let line = r#"{"uri": "a", "text": "x", "lang": "de", "year": 1999, "score": 1, "new": true}"#;
    let record = records(DECLARED).parse(line).unwrap();
    let values: Vec<_> = record.attributes.into_values().collect();
    let described: Vec<_> = values
        .iter()
        .map(|(name, value)| format!("{name} {value:?}"))
        .collect();
    let expected = [
        "lang Text(\"de\")",
        "new Bool(true)",
        "score Float(1.0)",
        "year Integer(1999)",
    ];
    assert_eq!(described, expected);
    let empty = r#"{"uri": "a", "text": "x", "lang": null}"#;
    let record = records(DECLARED).parse(empty).unwrap();
    assert_eq!(record.attributes, Attributes::default());
}

#[test]
fn a_line_that_is_wrong_says_why() {
    for (line, expected) in [
        (
            "{path}",
            "it is no JSON object: key must be a string at line 1 column 2",
        ),
        ("{}", "it has no `path`, `text` or `bytes`"),
        (r#"{"path": 7}"#, "its `path` is not a string"),
        (
            r#"{"path": "a", "uri": "b"}"#,
            "it has both `path` and `uri`",
        ),
        (
            r#"{"path": "a", "text": "b"}"#,
            "it has both `path` and `text`",
        ),
        (r#"{"path": ""}"#, "its path is empty"),
        (r#"{"uri": "", "bytes": ""}"#, "its URI is empty"),
        (r#"{"text": "a"}"#, "it has no `uri`"),
        (r#"{"uri": "a", "text": ""}"#, "its `text` is empty"),
        (
            r#"{"uri": "a", "bytes": "?"}"#,
            "its `bytes` are not base64: Invalid symbol 63, offset 0.",
        ),
        (
            r#"{"path": "a", "size": "de"}"#,
            "its `size` is not declared",
        ),
        (r#"{"path": "a", "lang": 7}"#, "its `lang` is not a string"),
        (
            r#"{"path": "a", "year": 1.5}"#,
            "its `year` is not a whole number of 64 bits",
        ),
        (
            r#"{"path": "a", "score": "1"}"#,
            "its `score` is not a number",
        ),
        (
            r#"{"path": "a", "new": 1}"#,
            "its `new` is not `true` or `false`",
        ),
    ] {
        assert_eq!(problem(DECLARED, line), expected, "{line}");
    }
    assert_eq!(
        problem("{}", r#"{"uri": "a", "text": "b"}"#),
        "it brings a text"
    );
    assert_eq!(
        problem(r#"{"format": "json"}"#, "a.pdf"),
        "it is no JSON object: expected value at line 1 column 1"
    );
    let error = records("{}")
        .parse(r#"{"path": "a", "year": 7}"#)
        .unwrap_err();
    assert_eq!(
        error.hint.unwrap(),
        "declare it: `fields = { year = \"integer\" }`"
    );
}

#[test]
fn other_values_of_further_keys_make_another_version() {
    let hash = |line: &str| {
        let record = records(DECLARED).parse(line).unwrap();
        record.attributes.hash_with(ContentHash::of(b"x"))
    };
    let plain = hash(r#"{"path": "a"}"#);
    assert_eq!(plain, ContentHash::of(b"x"));
    let german = hash(r#"{"path": "a", "lang": "de", "year": 1}"#);
    assert_ne!(german, plain);
    assert_eq!(german, hash(r#"{"year": 1, "lang": "de", "path": "a"}"#));
    assert_ne!(german, hash(r#"{"path": "a", "lang": "en", "year": 1}"#));
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    for (settings, expected) in [
        (
            r#"{"max_line_bytes": 0}"#,
            "`max_line_bytes` must be at least 1",
        ),
        (
            r#"{"max_file_bytes": 0}"#,
            "`max_file_bytes` must be at least 1",
        ),
        (
            r#"{"fields": {"page": "integer"}}"#,
            "`fields` has a name that means something else: `page`",
        ),
        (
            r#"{"fields": {"a b": "text"}}"#,
            "`fields` has a name that is none: `a b`",
        ),
        (
            r#"{"fields": {"": "text"}}"#,
            "`fields` has a name that is none: ``",
        ),
        (
            r#"{"format": "paths", "text": true}"#,
            "`text` cannot be had of lines that are paths",
        ),
        (
            r#"{"format": "paths", "fields": {"a": "text"}}"#,
            "`fields` cannot be had of lines that are paths",
        ),
    ] {
        let error = Stdin::new(&config(settings)).err().unwrap();
        assert_eq!(error.to_string(), expected);
    }
}

/// The source with these bytes as its input, which is to be found in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipedConfig {
    lines: PathBuf,
    #[serde(default)]
    stdin: Option<StdinConfig>,
    /// The input ends never.
    #[serde(default)]
    is_open: bool,
}

/// A terminal at which nobody types.
struct Silent {
    typed: Receiver<()>,
    _keyboard: SyncSender<()>,
}

impl Read for Silent {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        self.typed.recv().map_err(std::io::Error::other)?;
        Ok(0)
    }
}

impl PipedConfig {
    fn stdin(&self) -> StdinConfig {
        self.stdin.clone().unwrap_or_else(|| config("{}"))
    }
}

impl SourceConfig for PipedConfig {
    const KIND: &'static str = "piped";
    const ABOUT: &'static str = "";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        self.stdin().fields()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        let input = Cursor::new(fs::read(&self.lines).unwrap());
        let input: Box<dyn Read + Send> = if self.is_open {
            let (keyboard, typed) = sync_channel(0);
            Box::new(input.chain(Silent {
                typed,
                _keyboard: keyboard,
            }))
        } else {
            Box::new(input)
        };
        let mut stdin = Stdin::of(&self.stdin(), input, false)?;
        stdin.feed.reader.clock = || SystemTime::now() + std::time::Duration::from_hours(1);
        Ok(Box::new(stdin))
    }
}

async fn run(runs: &Runs, lines: &str, settings: &str) -> Ran {
    let input = runs.path("input");
    fs::write(&input, lines).unwrap();
    runs.run::<PipedConfig>(&format!("lines = {input:?}\n{settings}"))
        .await
}

#[tokio::test]
async fn lines_become_documents_and_bad_ones_dead_letters() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    let a = runs.path("documents/a.pdf").display().to_string();
    let lines = format!(
        "{a}\n\n{{\"uri\": \"note\", \"text\": \"the mill\", \"lang\": \"en\"}}\n{{oops\n\
         {{\"uri\": \"b\", \"bytes\": \"JVBERi0xLjcK\"}}\n/no/such.pdf\n"
    );
    let settings = "stdin = { text = true, fields = { lang = \"text\" } }";
    let ran = run(&runs, &lines, settings).await;
    assert_eq!(ran.uris(), [&*a, "note", "b"]);
    assert_eq!(ran.items[0].document().unwrap(), PDF);
    assert_eq!(ran.items[1].text(), Some("the mill"));
    assert!(matches!(ran.items[1].get("lang"), Some(Value::Text(lang)) if &**lang == "en"));
    assert_eq!(&*ran.items[1].origin().media_type, "text/plain");
    assert_eq!(&*ran.items[2].origin().media_type, "application/pdf");
    let mut letters: Vec<_> = ran.letters.iter().map(|letter| &*letter.error).collect();
    letters.sort_unstable();
    assert_eq!(
        letters,
        [
            "cannot read `stdin:4`: it is no JSON object: key must be a string at line 1 column 2",
            "cannot read `such.pdf`: it is gone",
        ]
    );
    assert_eq!(ran.report.totals.documents_expected, 5);
    let fields = runs.kept.fields.lock().unwrap().clone();
    let expected = [
        Field::DOCUMENT,
        Field::TEXT,
        Field::new("lang", FieldType::Text),
    ];
    assert_eq!(fields, FieldSet::from_iter(expected));
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    let a = runs.path("documents/a.pdf").display().to_string();
    let lines = format!("{a}\n{{\"uri\": \"note\", \"text\": \"x\"}}\n");
    let settings = "stdin = { text = true, fields = { lang = \"text\" } }";
    assert_eq!(run(&runs, &lines, settings).await.items.len(), 2);
    let ran = run(&runs, &lines, settings).await;
    assert_eq!(
        (ran.items.len(), ran.report.totals.documents_skipped),
        (0, 2)
    );
    let marked = format!("{{\"path\": \"{a}\", \"lang\": \"de\"}}\n");
    assert_eq!(run(&runs, &marked, settings).await.uris(), [&a]);
    assert_eq!(run(&runs, &marked, settings).await.items.len(), 0);
}

#[tokio::test]
async fn a_retry_goes_by_the_line_that_was_kept() {
    let mut runs = Runs::new();
    runs.put("a.pdf", PDF);
    let a = runs.path("documents/a.pdf").display().to_string();
    let letter = |uri: &str, input: Option<&str>| FeedAgain {
        uri: uri.into(),
        input: input.map(Into::into),
    };
    runs.options.retries = Some(vec![
        letter("note", Some(r#"{"uri": "note", "text": "x"}"#)),
        letter(&a, None),
        letter("stdin:7", None),
        letter("too-long", None),
    ]);
    let ran = run(&runs, "ignored.pdf\n", "stdin = { text = true }").await;
    assert_eq!(ran.uris(), ["note", &a]);
    assert!(ran.letters.is_empty());
}

#[tokio::test]
async fn a_silent_input_keeps_no_run_from_ending() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    let a = format!("{}\n", runs.path("documents/a.pdf").display());
    let waiting = run(&runs, &a, "is_open = true");
    let test = async {
        let (items, _) = runs.kept.wait_for(1, 0).await;
        assert_eq!(&*items[0].origin().uri, a.trim_end());
        runs.until(0.2).await;
        runs.control.drain();
    };
    let (ran, ()) = tokio::join!(waiting, test);
    // It waited for a line for nearly all of the time.
    let node = &ran.report.totals.nodes[0];
    assert!(node.starved_s > 0.1, "{node:?}");
    assert!(node.busy_s < node.starved_s / 2.0, "{node:?}");
}

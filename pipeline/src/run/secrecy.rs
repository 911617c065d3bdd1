//! Secrets of a configuration, on each way on which a value could come out.

use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use serde::Deserialize;

use super::test_kinds::lock;
use crate::{
    ConfigError, ConfigFile, Delivery, Ended, Field, FieldError, Fields, Item, ItemError, Outlet,
    Registry, Report, Resources, RunControl, RunError, Sink, SinkConfig, SinkInput, Source,
    SourceConfig, SourceOutlet, Stage, StageConfig, StageError,
};

const VALUE: &str = "tk-5b1f9e/+0c";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NotesConfig {
    /// What the second document cannot be read for.
    #[serde(default)]
    problem: Option<String>,
}

impl SourceConfig for NotesConfig {
    const KIND: &'static str = "notes";
    const ABOUT: &'static str = "sends two documents";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::provides([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        let problem = self.problem.clone();
        Ok(Box::new(Notes { problem }))
    }
}

struct Notes {
    problem: Option<String>,
}

impl Source for Notes {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(async move {
            outlet.send(Item::of_text("a.txt", "text")).await?;
            match self.problem {
                Some(problem) => outlet.dead_letter("b.txt", &ItemError::new("read", problem)),
                None => Ok(()),
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Build,
    Item,
    Batch,
    Panic,
    Nothing,
}

/// Asks a service that answers with what it was asked with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceConfig {
    api_key: String,
    fails: Step,
    #[serde(default)]
    n: u32,
}

impl StageConfig for ServiceConfig {
    const KIND: &'static str = "service";
    const ABOUT: &'static str = "asks a service";
    const EXAMPLE: &'static str = "api_key = \"${API_TOKEN}\"\nfails = \"nothing\"";
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        if self.fails == Step::Build {
            let problem = format!("is refused: `{}`", self.api_key);
            return Err(FieldError::new("api_key", problem, &self.api_key));
        }
        Ok(Box::new(Service(self.clone())))
    }
}

struct Service(ServiceConfig);

impl Stage for Service {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let ServiceConfig { api_key, fails, n } = &self.0;
        let error = ItemError::new("ask", format!("`{api_key}` is refused, {n}"));
        let error = error.hint(format!("replace {api_key}"));
        match fails {
            Step::Item => outlet.each(batch, |_| Err(error.clone())),
            Step::Batch => {
                let cause = std::io::Error::other(api_key.clone());
                Err(StageError::caused(format!("no {api_key}"), api_key, cause))
            }
            Step::Panic => panic!("the service took {api_key}"),
            Step::Build | Step::Nothing => outlet.each(batch, |_| Ok(())),
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreConfig {
    uri: String,
    #[serde(default)]
    is_gone: bool,
}

impl SinkConfig for StoreConfig {
    const KIND: &'static str = "store";
    const ABOUT: &'static str = "stores nothing";
    const EXAMPLE: &'static str = "uri = \"s3://bucket\"";
    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(Store(self.clone())))
    }
}

struct Store(StoreConfig);

impl Sink for Store {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        let StoreConfig { uri, is_gone } = self.0.clone();
        let error = StageError::fatal(format!("cannot open {uri}"), format!("see {uri}"));
        Box::pin(async move { if is_gone { Err(error) } else { Ok(()) } })
    }
    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        for delivery in batch {
            delivery.ack.durable();
        }
        Box::pin(async { Ok(()) })
    }
    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        ended.ack.durable();
        Box::pin(async { Ok(()) })
    }
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A pipeline whose nodes have these settings more.
fn pipeline(source: &str, stage: &str, sink: &str) -> String {
    format!(
        "[p]\nledger = false\ndead_letters = 'FOLDER'\ndescription = 'with ${{API_TOKEN}}'\n\
         [p.source.notes]\nkind = 'notes'\n{source}\n\
         [p.stage.ask]\nkind = 'service'\ninput = 'notes'\n{stage}\n\
         [p.sink.store]\nkind = 'store'\ninput = 'ask'\n{sink}\n"
    )
}

const KEY: &str = "api_key = '${API_TOKEN}'";
const URI: &str = "uri = 's3://me:${API_TOKEN}@bucket/a'";

fn read(toml: &str, overrides: &[&str], value: &str) -> Result<ConfigFile, ConfigError> {
    let registry = Registry::new()
        .source::<NotesConfig>()
        .stage::<ServiceConfig>()
        .sink::<StoreConfig>();
    let variable = |name: &str| (name == "API_TOKEN").then(|| value.to_owned());
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    ConfigFile::parse(Path::new("p.toml"), toml, &overrides, &registry, &variable)
}

/// What reading and building say, in all words.
fn refused(toml: &str, overrides: &[&str]) -> String {
    let built = read(toml, overrides, VALUE).and_then(|file| {
        file.build(&file.pipelines()[0], &Resources::default())
            .map(drop)
    });
    let error = built.expect_err("it is refused");
    let told = format!("{error}\n{error:?}");
    assert!(!told.contains("5b1f") && !told.contains("9e/+0c"), "{told}");
    error.to_string()
}

struct Ran {
    ended: Result<Report, RunError>,
    /// All letters, as the files are.
    letters: String,
    log: String,
}

/// Everything that is logged while a run goes on. A thread of a stage logs to
/// nobody here; what it logs is checked where it is made.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut visit = |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            *lock(&self.0) += &format!("{field}={value:?} ");
        };
        event.record(&mut visit);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn run(source: &str, stage: &str, sink: &str) -> Ran {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().display().to_string();
    let toml = pipeline(source, stage, sink).replace("FOLDER", &place);
    let file = read(&toml, &[], VALUE).unwrap_or_else(|error| panic!("{error}"));
    let pipeline = file.build(&file.pipelines()[0], &Resources::default());
    let pipeline = pipeline.unwrap_or_else(|error| panic!("{error}"));
    let log = Log::default();
    // With one subscriber alone, another thread that reaches a log statement first
    // switches it off for this one too (tokio-rs/tracing#3611).
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let ended = tracing::subscriber::with_default(log.clone(), || {
        // Sources and sinks log on this thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("it needs nothing");
        runtime.block_on(pipeline.run(&RunControl::default()))
    });
    let letters = crate::read_filed_letters(folder.path()).expect("readable");
    let letters = letters
        .iter()
        .map(|filed| std::fs::read_to_string(&filed.path).expect("readable"))
        .collect();
    let log = lock(&log.0).clone();
    let report = ended.as_ref().map_or_else(
        |error| format!("{error} {error:?} {:?}", error.error.hint()),
        |report| format!("{} {}", report.to_text(), serde_json::json!(report)),
    );
    for told in [&report, &letters, &log] {
        assert!(!told.contains("5b1f") && !told.contains("9e/+0c"), "{told}");
    }
    Ran {
        ended,
        letters,
        log,
    }
}

#[test]
fn a_file_that_is_refused_shows_its_variables_and_no_values() {
    let told = refused(&pipeline("", &format!("{KEY}\nfails = 'build'"), URI), &[]);
    let line = "`api_key` is refused: `${API_TOKEN}`";
    assert!(
        told.contains(line) && told.contains("hint: ${API_TOKEN}"),
        "{told}"
    );
    assert!(told.contains("api_key = '${API_TOKEN}'"), "{told}");
    let fails = format!("{KEY}\nfails = '${{API_TOKEN}}'");
    let told = refused(&pipeline("", &fails, URI), &[]);
    assert!(told.contains("unknown value `${API_TOKEN}`"), "{told}");
    let input = format!("{KEY}\nfails = 'nothing'\nworkers = '${{API_TOKEN}}'");
    let told = refused(&pipeline("", &input, URI), &[]);
    assert!(told.contains("`${API_TOKEN}` is not"), "{told}");
    let when = format!("{KEY}\nfails = 'nothing'\nwhen = 'text == \"${{API_TOKEN}}\" + 1'");
    refused(&pipeline("", &when, URI), &[]);
}

#[test]
fn what_is_written_out_is_not_repeated_either() {
    let whole = pipeline("", &format!("{KEY}\nfails = 'nothing'"), URI);
    for argument in [
        format!("p.stage.ask.api_key=['{VALUE}']"),
        format!("p.stage.ask.api_key={VALUE}"),
        format!("p.stage.asks.api_key={VALUE}"),
        format!("p.sink.store.uris=s3://me:{VALUE}@bucket"),
        format!("p.sink.store.is_gone=s3://me:{VALUE}@bucket"),
    ] {
        let fails = "p.stage.ask.fails=build";
        refused(&whole, &[&argument, fails]);
    }
    let key = format!("api_key = '{VALUE}'\nfails = 'build'");
    let told = refused(&pipeline("", &key, URI), &[]);
    assert!(told.contains("api_key = '*************'"), "{told}");
    // Neither where the file cannot be read.
    refused(&pipeline("", &format!("api_key = '{VALUE}\n"), URI), &[]);
}

#[test]
fn an_item_that_fails_leaves_a_letter_and_a_line_in_the_log_without_secrets() {
    let source = "problem = 'https://me:${API_TOKEN}@host does not answer'";
    let ran = run(source, &format!("{KEY}\nfails = 'item'\nn = 7"), URI);
    assert!(ran.ended.is_ok());
    for told in [
        "cannot ask `a.txt`: `${API_TOKEN}` is refused, 7",
        "replace ${API_TOKEN}",
        "https://***@host does not answer",
    ] {
        assert!(ran.letters.contains(told), "{}", ran.letters);
    }
    assert!(ran.log.contains("***@host"), "{}", ran.log);
    let ran = run("", &format!("{KEY}\nfails = 'panic'"), URI);
    assert!(
        ran.letters.contains("the service took ${API_TOKEN}"),
        "{}",
        ran.letters
    );
}

#[test]
fn a_run_that_stops_says_why_without_secrets() {
    let ran = run("", &format!("{KEY}\nfails = 'batch'"), URI);
    let error = ran.ended.expect_err("the stage broke");
    assert_eq!(
        error.to_string(),
        "pipeline `p` stopped at `ask`: no ${API_TOKEN}"
    );
    assert_eq!(error.error.hint(), Some("${API_TOKEN}"));
    let nothing = format!("{KEY}\nfails = 'nothing'");
    let ran = run("", &nothing, &format!("{URI}\nis_gone = true"));
    let error = ran.ended.expect_err("the sink cannot be opened");
    assert!(
        error.to_string().ends_with("cannot open s3://***@bucket/a"),
        "{error}"
    );
    let stop = format!("{KEY}\nfails = 'item'\non_error = 'stop'");
    let error = run("", &stop, URI)
        .ended
        .expect_err("it stops at the first item");
    assert!(
        error.to_string().contains("`${API_TOKEN}` is refused"),
        "{error}"
    );
    assert!(run("", &nothing, URI).ended.is_ok());
}

#[test]
fn a_graph_shows_no_secret_and_another_value_makes_no_other_rows() {
    let stage =
        format!("{KEY}\nfails = 'nothing'\nwhen = 'text != \"${{API_TOKEN}}\"'\nelse = 'drop'");
    let toml = pipeline("", &stage, URI);
    let fingerprint = |toml: &str, value: &str| {
        let file = read(toml, &[], value).unwrap_or_else(|error| panic!("{error}"));
        let graph = &file.pipelines()[0];
        assert_eq!(graph.description(), Some("with ${API_TOKEN}"));
        assert_eq!(graph.nodes()[1].route(0), Some("text != \"${API_TOKEN}\""));
        assert_eq!(file.secrets().redact(value), "${API_TOKEN}");
        graph.fingerprint(&Resources::default())
    };
    let first = fingerprint(&toml, VALUE);
    assert_eq!(first, fingerprint(&toml, "another value"));
    assert_ne!(
        first,
        fingerprint(&toml.replace("fails", "n = 1\nfails"), VALUE)
    );
}

#[test]
fn the_key_of_a_server_is_a_secret_and_the_name_of_a_field_is_none() {
    let toml = "[p.source.a]\nkind = 'notes'\nmodel = { url = 'http://h', key = 'written-out' }\n\
                fields = { token = 'text', key = 'text' }\nkey = 'id-of-a-row'\n";
    let error = read(toml, &[], VALUE)
        .err()
        .expect("there is no such setting");
    let secrets = &error.sources.secrets;
    assert_eq!(
        secrets.redact("written-out text id-of-a-row"),
        "*** text id-of-a-row"
    );
}

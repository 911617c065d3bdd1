//! Adds a stage of your own.
//!
//! Write its settings and the stage, register the kind with one line, and name
//! it in TOML. Run it with `cargo run --example own_stage`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::Path;
use std::process::ExitCode;

use pagemill::pipeline::{
    Field, FieldError, FieldType, Fields, Item, ItemError, Outlet, Stage, StageConfig, StageError,
};
use pagemill::{ConfigFile, Resources, RunControl};
use serde::Deserialize;

/// Settings of `kind = "count_words"`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountWordsConfig {
    /// Items with fewer words are set aside.
    min_words: usize,
}

/// The field that the stage adds: the sink makes a column of it.
const N_WORDS: Field = Field::new("n_words", FieldType::Integer);

impl StageConfig for CountWordsConfig {
    const KIND: &'static str = "count_words";
    const ABOUT: &'static str = "counts the words of each item";
    const EXAMPLE: &'static str = "min_words = 1";

    // The graph check carries this along the edges: a node that reads
    // `n_words` must stand behind this one.
    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT]).adds([N_WORDS])
    }

    fn build(&self, _: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        if self.min_words == 0 {
            return Err(FieldError::new(
                "min_words",
                "must be at least 1",
                "leave the stage out",
            ));
        }
        Ok(Box::new(CountWords {
            min_words: self.min_words,
        }))
    }
}

/// Counts words.
struct CountWords {
    min_words: usize,
}

impl Stage for CountWords {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        // What the closure refuses is set aside, and the run goes on without it.
        outlet.each(batch, |item| {
            let n_words = item.text().unwrap_or_default().split_whitespace().count();
            if n_words < self.min_words {
                let reason = format!("it has {n_words} words");
                return Err(ItemError::new("count", reason).hint("lower `min_words`"));
            }
            item.set(N_WORDS.name, i64::try_from(n_words).unwrap_or(i64::MAX));
            Ok(())
        })
    }
}

const PIPELINE: &str = r#"
[counted]
dead_letters = "${FOLDER}/dead-letters"
ledger = false # each run has a folder of its own

[counted.source.files]
kind = "read_files"
path = "examples/documents"
include = ["paper.pdf", "slides.pdf", "scan.pdf"]

[counted.stage.pages]
kind = "render_pdf"
input = "files"

[counted.stage.words]
kind = "count_words"
input = "pages"
min_words = 20

[counted.sink.rows]
kind = "jsonl"
input = "words"
path = "${FOLDER}/rows.jsonl"
"#;

fn main() -> ExitCode {
    // PDFs are rendered in processes of their own: this program, started again.
    if let Some(code) = pagemill::run_worker_if_asked() {
        return code;
    }
    match run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("pagemill-own-stage-{}", std::process::id()));
    let variable = |name: &str| (name == "FOLDER").then(|| folder.display().to_string());
    let registry = pagemill::registry().stage::<CountWordsConfig>();
    let file = ConfigFile::parse(Path::new("own_stage"), PIPELINE, &[], &registry, &variable)?;
    let pipeline = file.build(file.pipeline(None)?, &pagemill::resources())?;
    let report = tokio::runtime::Runtime::new()?.block_on(pipeline.run(&RunControl::default()))?;
    let rows = std::fs::read_to_string(folder.join("rows.jsonl/part-00000001.jsonl"))?;
    let first = rows
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(120)
        .collect::<String>();
    std::fs::remove_dir_all(&folder)?;
    Ok(format!(
        "{}\n  {} rows; the first begins {first}",
        report.to_text(),
        rows.lines().count()
    ))
}

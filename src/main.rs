//! The command line.

mod check;
mod dead_letters;
mod document_names;
mod drawing;
mod embed;
mod explain;
mod generate;
mod graph;
mod ledger;
mod metrics;
mod models;
mod picture;
mod progress;
mod run;
mod search;
mod secrets;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pagemill::pipeline::{StageError, is_disk_full, printable_text, without_code_places};
use pagemill::{ConfigError, ConfigFile};

/// The system's allocator gives large blocks back at once, and every tensor of the next batch
/// then costs page faults: a fifth of the time of a quantized page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Everything went well.
const DONE: u8 = 0;
/// The run could not go on.
const FAILED: u8 = 1;
/// The command or the configuration is wrong.
const USAGE: u8 = 2;
/// Done, but some items were set aside.
const DEAD_LETTERS: u8 = 3;

/// Turns documents into searchable vectors.
#[derive(Parser)]
#[command(name = "pagemill", version, about, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 all done, 1 failed, 2 usage or configuration, \
                        3 done with dead letters.\n\nExample:\n  pagemill run documents\n  \
                        pagemill search \"torque of the clamp bolts\""
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run pipelines to their end
    Run(run::RunArgs),
    /// Check a configuration and print its graph with fields
    Check(check::CheckArgs),
    /// Draw the graph of a pipeline
    Graph(graph::GraphArgs),
    /// Ask a question of the table that a pipeline filled
    Search(search::SearchArgs),
    /// List, show, retry or drop what was set aside
    DeadLetters(dead_letters::DeadLettersArgs),
    /// List, rebuild or correct the record of what is done
    Ledger(ledger::LedgerArgs),
    /// Turn pictures and questions into vectors, without a pipeline
    Embed(embed::EmbedArgs),
    /// Ask a model about pictures, without a pipeline
    Generate(generate::GenerateArgs),
    /// List, fetch and describe models
    Models(models::ModelsArgs),
}

/// Which configuration a command reads.
#[derive(Args)]
struct ConfigArgs {
    /// The file with the pipelines
    #[arg(long, value_name = "FILE", default_value = "pipelines.toml")]
    config: PathBuf,
    /// Override a setting: `--set pages.stage.render.long_side_px=768`
    #[arg(long = "set", value_name = "PATH=VALUE")]
    overrides: Vec<String>,
}

impl ConfigArgs {
    fn read(&self) -> Result<ConfigFile, ConfigError> {
        let registry = pagemill::registry();
        let file = ConfigFile::read(&self.config, &self.overrides, &registry, &variable)?;
        secrets::keep(file.secrets());
        Ok(file)
    }

    /// The same with a text that was read from the file before.
    fn parse(&self, text: &str) -> Result<ConfigFile, ConfigError> {
        let registry = pagemill::registry();
        let file = ConfigFile::parse(&self.config, text, &self.overrides, &registry, &variable)?;
        secrets::keep(file.secrets());
        Ok(file)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn main() -> ExitCode {
    // PDFs and pictures are parsed in processes of their own: this program, started again.
    if let Some(code) = pagemill::run_worker_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    start_log();
    let ended = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Search(args) => search::run(&args),
        Command::DeadLetters(args) => dead_letters::run(&args),
        Command::Ledger(args) => ledger::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Models(args) => models::run(&args),
    };
    ended.map_or_else(|error| report_error(&error), ExitCode::from)
}

/// The text of an error as it is printed: without secrets, places in source code
/// and what a terminal would obey.
fn shown(text: &str) -> String {
    printable_text(&without_code_places(&secrets::without(text))).into_owned()
}

/// Prints an error with its causes, and says what kind it was.
fn report_error(error: &anyhow::Error) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    let is_terminal = stderr.is_terminal();
    // Nothing is left to do if the error cannot be printed.
    if let Some(config) = error.downcast_ref::<ConfigError>() {
        let _ = writeln!(stderr, "{}", config.render(is_terminal));
        return USAGE.into();
    }
    if let Some(cause) = error.downcast_ref::<std::io::Error>()
        && cause.kind() == std::io::ErrorKind::BrokenPipe
    {
        return DONE.into(); // Whoever read the output has enough.
    }
    let (problem, hint, code) = match error.downcast_ref::<Hinted>() {
        Some(hinted) => (hinted.to_string(), hinted.hint.as_str(), hinted.code),
        None => unexpected(&**error),
    };
    let _ = writeln!(stderr, "error: {}", shown(&problem));
    if !hint.is_empty() {
        let _ = writeln!(stderr, "hint: {}", shown(hint));
    }
    code.into()
}

/// What is printed of an error that has no hint of its own.
fn unexpected(error: &(dyn std::error::Error + 'static)) -> (String, &'static str, u8) {
    if is_disk_full(error) {
        let hint = "make room, or write the output to another disk";
        (
            "cannot write the output: the disk is full".into(),
            hint,
            FAILED,
        )
    } else {
        (error.to_string(), "", FAILED)
    }
}

/// Why something could not be written, for the end of a message.
fn why(error: &(dyn std::error::Error + 'static)) -> String {
    if is_disk_full(error) {
        "the disk is full".into()
    } else {
        error.to_string()
    }
}

/// An error with its hint.
#[derive(Debug)]
struct Hinted {
    problem: String,
    hint: String,
    code: u8,
}

impl Hinted {
    /// Something that could not be done.
    fn failed(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            hint: hint.into(),
            code: FAILED,
        }
    }

    /// Something that should have been asked for in another way.
    fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            ..Self::failed(problem, hint)
        }
    }
}

impl From<StageError> for Hinted {
    fn from(error: StageError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self::failed(run::with_causes(&error), hint.unwrap_or_default())
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Hinted {}

/// Warnings go to stderr; `PAGEMILL_LOG=debug` shows more.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PAGEMILL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error,pagemill=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(progress::LogWriter::default)
        .fmt_fields(progress::log_fields())
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    // A stage's panic becomes a dead letter, which says what happened; the
    // default hook would print it a second time.
    std::panic::set_hook(Box::new(|panic| tracing::debug!("{panic}")));
}

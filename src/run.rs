//! `pagemill run`.

use std::convert::Infallible;
use std::io::Write as _;

use clap::Args;
use pagemill::{ConfigFile, Pipeline, Report, RunControl, RunError};

use crate::{ConfigArgs, DEAD_LETTERS, DONE, FAILED, progress};

/// Run a pipeline to its end. Ctrl-C stops its sources and finishes what is
/// under way; a second Ctrl-C stops at once.
#[derive(Args)]
#[command(
    after_help = "Example:\n  pagemill run documents --set documents.source.files.path=~/papers"
)]
pub(crate) struct RunArgs {
    /// The pipeline; the file's first if left out
    pipeline: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let file: ConfigFile = args.config.read()?;
    let graph = file.pipeline(args.pipeline.as_deref())?;
    let dead_letters = graph.dead_letters().join(graph.name());
    let pipeline = file.build(graph, &pagemill::resources())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(supervise(pipeline));
    progress::clear();
    let mut stdout = std::io::stdout().lock();
    let (report, code) = match ended {
        Ok(report) => {
            let code = if report.totals.dead_letters > 0 {
                DEAD_LETTERS
            } else {
                DONE
            };
            let cancelled = report.stopped == pagemill::pipeline::StopReason::Cancelled;
            (report, if cancelled { FAILED } else { code })
        }
        Err(error) => {
            report_failure(&error);
            let Some(report) = error.report else {
                return Ok(FAILED);
            };
            (*report, FAILED)
        }
    };
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &report)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{}", report.to_text())?;
        if report.totals.dead_letters > 0 {
            writeln!(stdout, "  dead letters are in {}", dead_letters.display())?;
        }
    }
    Ok(code)
}

/// Runs the pipeline with a progress line, and listens for Ctrl-C.
async fn supervise(pipeline: Pipeline) -> Result<Report, RunError> {
    let control = RunControl::default();
    let beside = async { tokio::join!(progress::show(control.clone()), interrupts(&control)) };
    tokio::select! {
        ended = pipeline.run(&control) => ended,
        (never, _) = beside => match never {},
    }
}

/// The first Ctrl-C drains, the second cancels.
async fn interrupts(control: &RunControl) -> Infallible {
    let listens = tokio::signal::ctrl_c().await.is_ok();
    if listens {
        tracing::warn!("stopping: finishing what is under way (Ctrl-C again to stop at once)");
        control.drain();
        if tokio::signal::ctrl_c().await.is_ok() {
            control.cancel();
        }
    }
    std::future::pending().await
}

#[expect(clippy::print_stderr, reason = "this is where the run's error is told")]
fn report_failure(error: &RunError) {
    eprintln!("error: {error}");
    if let Some(hint) = error.error.hint() {
        eprintln!("hint: {hint}");
    }
}

//! `pagemill run`.

mod board;
mod dry_run;
mod reload;
mod reports;
mod signals;
mod supervise;
mod systemd;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pagemill::pipeline::{Prune, RunOptions, Trace};
use pagemill::{ConfigError, ConfigFile, Graph, Resources};

use crate::{ConfigArgs, Hinted, progress, why};

pub(crate) use board::{Board, Seen};
pub(crate) use reports::{Reports, tell_error, with_causes};
pub(crate) use supervise::{Job, supervise};

use reload::Reload;

/// Run pipelines to their end. Ctrl-C (or SIGTERM) stops their sources and
/// finishes what is under way; a second one stops at once.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  pagemill run documents --set documents.source.files.path=~/papers\n  \
                  pagemill run --all --metrics 127.0.0.1:9464\n  \
                  pagemill run documents --dry-run"
)]
pub(crate) struct RunArgs {
    /// The pipelines; the file's first if left out
    #[arg(value_name = "NAME")]
    pipelines: Vec<String>,
    /// Run all pipelines of the file, together
    #[arg(long, conflicts_with = "pipelines")]
    all: bool,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the report as JSON on standard output; a list for several pipelines
    #[arg(long)]
    json: bool,
    /// Print what a run would do, and change nothing: documents that are new, changed
    /// or gone, pages to make, bytes to read, and the time by the rate of the last run
    #[arg(long, conflicts_with_all = ["trace", "metrics"])]
    dry_run: bool,
    /// Remove what is stored of documents that are gone from their source; refused
    /// where the source finds nothing at all, unless `--prune=all`
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "gone"
    )]
    prune: Option<PruneArg>,
    /// Draw the run into this file, for `ui.perfetto.dev` or `chrome://tracing`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Serve metrics for Prometheus at this address: `127.0.0.1:9464`
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
}

/// Values of `--prune`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PruneArg {
    /// Documents that are gone, unless nothing at all is found
    Gone,
    /// Documents that are gone, even if nothing at all is found
    All,
}

impl PruneArg {
    fn option(given: Option<Self>) -> Prune {
        match given {
            None => Prune::No,
            Some(Self::Gone) => Prune::Gone,
            Some(Self::All) => Prune::All,
        }
    }
}

/// Which pipelines of the file are run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    First,
    All,
    Named(Vec<String>),
}

impl Choice {
    fn new(names: &[String], all: bool) -> Result<Self, Hinted> {
        if all {
            return Ok(Self::All);
        }
        for (number, name) in names.iter().enumerate() {
            if names[..number].contains(name) {
                return Err(Hinted::usage(
                    format!("pipeline `{name}` is named twice"),
                    "name it once: one run of it is enough",
                ));
            }
        }
        Ok(if names.is_empty() {
            Self::First
        } else {
            Self::Named(names.to_vec())
        })
    }

    fn of<'a>(&self, file: &'a ConfigFile) -> Result<Vec<&'a Graph>, ConfigError> {
        match self {
            Self::First => Ok(vec![file.pipeline(None)?]),
            Self::All => Ok(file.pipelines().iter().collect()),
            Self::Named(names) => {
                let graphs = names.iter().map(|name| file.pipeline(Some(name)));
                graphs.collect()
            }
        }
    }

    /// The same of a file that has changed: a pipeline may be gone from it.
    fn still_in<'a>(&self, file: &'a ConfigFile) -> Vec<&'a Graph> {
        match self {
            Self::First => file.pipelines().iter().take(1).collect(),
            Self::All => file.pipelines().iter().collect(),
            Self::Named(names) => {
                let graphs = file.pipelines().iter();
                let is_named = |graph: &&Graph| names.iter().any(|name| name == graph.name());
                graphs.filter(is_named).collect()
            }
        }
    }
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let choice = Choice::new(&args.pipelines, args.all)?;
    let (reload, file) = Reload::begin(&args.config, choice)?;
    let resources = pagemill::resources();
    let graphs = reload.choice().of(&file)?;
    check(&file, &graphs, &resources)?;
    crate::check::warn(&file);
    let is_list = args.all || args.pipelines.len() > 1;
    let mut reports = Reports::new(args.json, is_list);
    let mut options = RunOptions {
        prune: PruneArg::option(args.prune),
        ..RunOptions::default()
    };
    if args.dry_run {
        dry_run::run(&file, &graphs, &resources, &options, &mut reports)?;
        return reports.finish();
    }
    let trace = args.trace.as_deref().map(begin_trace).transpose()?;
    let listener = args.metrics.as_deref().map(listen).transpose()?;
    options.trace.clone_from(&trace);
    let jobs = graphs
        .iter()
        .map(|graph| Job::new(&file, graph, &resources, options.clone()));
    let jobs = jobs.collect::<Result<Vec<Job>, ConfigError>>()?;
    let anew = supervise::Anew {
        reload,
        resources,
        options,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let supervised = runtime.block_on(supervise(jobs, Some(anew), listener, &mut reports));
    progress::clear();
    if let (Some(trace), Some(path)) = (trace, &args.trace) {
        end_trace(&trace, path)?;
    }
    supervised?;
    reports.finish()
}

/// Builds every pipeline, so that all that is wrong is told at once.
fn check(file: &ConfigFile, graphs: &[&Graph], resources: &Resources) -> Result<(), ConfigError> {
    let errors = graphs
        .iter()
        .filter_map(|graph| file.build(graph, resources).err());
    errors.reduce(ConfigError::and).map_or(Ok(()), Err)
}

fn begin_trace(path: &Path) -> Result<Trace, Hinted> {
    Trace::create(path).map_err(|error| {
        Hinted::usage(
            format!("cannot make the trace: {}: {}", why(&error), path.display()),
            "name a file in a folder that exists and can be written, on a disk with room",
        )
    })
}

fn end_trace(trace: &Trace, path: &Path) -> Result<(), Hinted> {
    trace.finish().map_err(|error| {
        Hinted::failed(
            format!(
                "the trace is not whole: {}: {}",
                why(&error),
                path.display()
            ),
            "make room on the disk, or name a file on another one",
        )
    })?;
    if progress::is_terminal() {
        let path = path.display();
        progress::tell(&format!(
            "trace: open {path} in ui.perfetto.dev or chrome://tracing"
        ));
    }
    Ok(())
}

/// Opens the port of the metrics before anything runs, so that one that is
/// taken is told at once.
fn listen(address: &str) -> Result<TcpListener, Hinted> {
    let opened = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    let (listener, bound) = opened.map_err(|error| {
        Hinted::usage(
            format!("cannot serve metrics at `{address}`: {error}"),
            "give a free address with its port, such as `127.0.0.1:9464`; port 0 takes any free one",
        )
    })?;
    progress::tell(&format!("metrics: http://{bound}/metrics"));
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pipeline_is_run_unless_others_are_named() {
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Choice::new(&names, false)
        };
        assert_eq!(named(&[]).expect("none"), Choice::First);
        let two = Choice::Named(vec!["a".into(), "b".into()]);
        assert_eq!(named(&["a", "b"]).expect("two"), two);
        let error = named(&["a", "b", "a"]).expect_err("twice");
        assert_eq!(error.to_string(), "pipeline `a` is named twice");
    }
}

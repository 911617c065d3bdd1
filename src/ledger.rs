//! `pagemill ledger`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use clap::{Args, Subcommand};
use pagemill::pipeline::{DocumentId, Ledger, LedgerDocument, SinkKey, printable_line};
use pagemill::{ConfigFile, Graph};
use serde_json::{Value, json};

use crate::document_names::{Named, WorkingDirectory};
use crate::run::tell_error;
use crate::{ConfigArgs, DONE, FAILED, Hinted};

/// The record of what is done, so that the next run need not do it again.
#[derive(Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  pagemill ledger list documents\n  pagemill ledger rebuild documents\n  \
                  pagemill ledger repair documents\n  pagemill ledger forget papers/report.pdf"
)]
pub(crate) struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// List the documents that are done
    List(ListArgs),
    /// Make the ledger again from what the sinks hold
    Rebuild(NamedArgs),
    /// Drop rows whose data files are gone, so that their documents are made again
    Repair(NamedArgs),
    /// Have documents done again by the next run
    Forget(ForgetArgs),
}

#[derive(Args)]
struct NamedArgs {
    /// The pipeline; the file's first if left out
    #[arg(value_name = "NAME")]
    pipeline: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ForgetArgs {
    /// Documents, or folders with all that is below them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// The pipeline; all of the file if left out
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
}

pub(crate) fn run(args: &LedgerArgs) -> anyhow::Result<u8> {
    match &args.command {
        LedgerCommand::List(args) => list(args),
        LedgerCommand::Rebuild(args) => renew(args, false),
        LedgerCommand::Repair(args) => renew(args, true),
        LedgerCommand::Forget(args) => forget(args),
    }
}

/// Where a pipeline keeps its ledger.
fn folder_of(graph: &Graph) -> Result<&Path, Hinted> {
    graph.ledger().ok_or_else(|| {
        Hinted::usage(
            format!("pipeline `{}` keeps no ledger", graph.name()),
            "remove `ledger = false` from its table",
        )
    })
}

fn list(args: &ListArgs) -> anyhow::Result<u8> {
    let file = args.named.config.read()?;
    let graph = file.pipeline(args.named.pipeline.as_deref())?;
    let ledger = Ledger::open_existing(folder_of(graph)?, graph.name()).map_err(Hinted::from)?;
    let documents = ledger.map(|ledger| ledger.documents()).transpose();
    let documents = documents.map_err(Hinted::from)?.unwrap_or_default();
    let sinks = graph.sink_keys(&pagemill::resources());
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let values = documents.iter().map(|document| {
            json!({
                "document": document.uri,
                "document_id": document.id.to_string(),
                "source": document.source,
                "content_hash": document.content_hash,
                "status": status(document, &sinks),
                "rows": rows_by_sink(document, &sinks),
                "dead_letters": document.n_dead,
            })
        });
        let values: Vec<Value> = values.collect();
        serde_json::to_writer_pretty(&mut stdout, &values)?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    if documents.is_empty() {
        writeln!(stdout, "`{}` has done no document yet", graph.name())?;
        return Ok(DONE);
    }
    writeln!(
        stdout,
        "{:>8}  {:>4}  {:6}  document",
        "rows", "dead", "status"
    )?;
    let folder = WorkingDirectory::current();
    for document in &documents {
        // Each sink has the rows; a document is as large as in the fullest.
        let n_rows = document.rows().into_values().max().unwrap_or(0);
        writeln!(
            stdout,
            "{n_rows:>8}  {:>4}  {:6}  {}",
            document.n_dead,
            status(document, &sinks),
            printable_line(&folder.shown(&document.uri))
        )?;
    }
    let n_again = documents
        .iter()
        .filter(|document| status(document, &sinks) != "done")
        .count();
    writeln!(
        stdout,
        "\n{} documents; the next run does {n_again} of them again",
        documents.len()
    )?;
    Ok(DONE)
}

/// `done`, or `again` for what was forgotten, is missing in a sink or was made by
/// other settings.
fn status(document: &LedgerDocument, sinks: &[SinkKey]) -> &'static str {
    if document.is_done(sinks) {
        "done"
    } else {
        "again"
    }
}

/// The rows in each sink, by the sink's name; by its place where the pipeline has it no more.
fn rows_by_sink(document: &LedgerDocument, sinks: &[SinkKey]) -> BTreeMap<String, u64> {
    let rows = document.rows().into_iter();
    rows.map(|(identity, n_rows)| {
        let sink = sinks.iter().find(|sink| sink.identity == identity);
        (sink.map_or(identity, |sink| sink.node.to_string()), n_rows)
    })
    .collect()
}

fn renew(args: &NamedArgs, repairs: bool) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let graph = file.pipeline(args.pipeline.as_deref())?;
    folder_of(graph)?;
    let pipeline = file.build(graph, &pagemill::resources())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let renewed = if repairs {
        let repaired = runtime.block_on(pipeline.repair_ledger());
        repaired.map(|renewed| (renewed.n_documents, Some(renewed.n_rows_dropped)))
    } else {
        let rebuilt = runtime.block_on(pipeline.rebuild_ledger());
        rebuilt.map(|n_documents| (n_documents, None))
    };
    let (n_documents, n_rows_dropped) = match renewed {
        Ok(renewed) => renewed,
        Err(error) => {
            tell_error(&error);
            return Ok(FAILED);
        }
    };
    let (name, mut stdout) = (graph.name(), std::io::stdout().lock());
    if let Some(n_rows) = n_rows_dropped {
        writeln!(
            stdout,
            "`{name}`: {n_rows} rows whose files are gone were dropped; the next run makes their \
             documents again"
        )?;
    }
    writeln!(
        stdout,
        "`{name}`: the ledger now knows {n_documents} documents, as the sinks hold them"
    )?;
    Ok(DONE)
}

fn forget(args: &ForgetArgs) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let known = known(&file, args.pipeline.as_deref())?;
    let names: Vec<Named<'_>> = args.paths.iter().map(|path| Named::new(path)).collect();
    for (path, name) in args.paths.iter().zip(&names) {
        let mut documents = known.iter().flat_map(|(_, _, documents)| documents);
        if !documents.any(|document| name.holds(&document.uri)) {
            return Err(Hinted::usage(
                format!("no ledger knows a document `{path}`"),
                "`pagemill ledger list` shows the documents as they are known",
            )
            .into());
        }
    }
    let mut stdout = std::io::stdout().lock();
    for (graph, ledger, documents) in &known {
        let is_named = |uri: &str| names.iter().any(|name| name.holds(uri));
        let chosen = documents.iter().filter(|document| is_named(&document.uri));
        let chosen: Vec<DocumentId> = chosen.map(|document| document.id).collect();
        if chosen.is_empty() {
            continue;
        }
        ledger.undo(&chosen).map_err(Hinted::from)?;
        let (name, n) = (graph.name(), chosen.len());
        let what = if n == 1 {
            "document is"
        } else {
            "documents are"
        };
        writeln!(stdout, "`{name}`: {n} {what} done again by the next run")?;
    }
    Ok(DONE)
}

type Known<'a> = (&'a Graph, Ledger, Vec<LedgerDocument>);

/// What the ledgers of the chosen pipelines know.
fn known<'a>(file: &'a ConfigFile, pipeline: Option<&str>) -> anyhow::Result<Vec<Known<'a>>> {
    let graphs: Vec<&Graph> = match pipeline {
        Some(name) => vec![file.pipeline(Some(name))?],
        None => file.pipelines().iter().collect(),
    };
    let mut known = Vec::new();
    for graph in graphs {
        let Some(folder) = graph.ledger() else {
            continue;
        };
        let ledger = Ledger::open_existing(folder, graph.name()).map_err(Hinted::from)?;
        if let Some(ledger) = ledger {
            let documents = ledger.documents().map_err(Hinted::from)?;
            known.push((graph, ledger, documents));
        }
    }
    Ok(known)
}

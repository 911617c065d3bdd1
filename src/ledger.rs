//! `pagemill ledger`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use clap::{Args, Subcommand};
use pagemill::pipeline::{DocumentId, Ledger, LedgerDocument, printable_line};
use pagemill::{ConfigFile, Graph};
use serde_json::{Value, json};

use crate::dead_letters::filed_letters;
use crate::document_names::{Named, WorkingDirectory};
use crate::run::tell_error;
use crate::{ConfigArgs, DONE, FAILED, Hinted};

/// The record of what is done, so that the next run need not do it again.
#[derive(Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  pagemill ledger list documents\n  pagemill ledger rebuild documents\n  \
                  pagemill ledger forget papers/report.pdf"
)]
pub(crate) struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// List the documents that are done
    List(ListArgs),
    /// Make the ledger anew from what the sinks hold
    Rebuild(NamedArgs),
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
        LedgerCommand::Rebuild(args) => rebuild(args),
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
    let fingerprint = graph.fingerprint(&pagemill::resources());
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let values = documents.iter().map(|document| {
            json!({
                "document": document.uri,
                "document_id": document.id.to_string(),
                "source": document.source,
                "content_hash": document.content_hash,
                "fingerprint": document.fingerprint,
                "status": status(document, &fingerprint),
                "rows": document.rows,
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
        let n_rows = document.rows.values().max().copied().unwrap_or(0);
        writeln!(
            stdout,
            "{n_rows:>8}  {:>4}  {:6}  {}",
            document.n_dead,
            status(document, &fingerprint),
            printable_line(&folder.shown(&document.uri))
        )?;
    }
    let n_again = documents
        .iter()
        .filter(|document| status(document, &fingerprint) != "done")
        .count();
    writeln!(
        stdout,
        "\n{} documents; the next run does {n_again} of them again",
        documents.len()
    )?;
    Ok(DONE)
}

/// `done`, or `again` for what was forgotten or made by other settings.
fn status(document: &LedgerDocument, fingerprint: &str) -> &'static str {
    if document.fingerprint == fingerprint {
        "done"
    } else {
        "again"
    }
}

fn rebuild(args: &NamedArgs) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let graph = file.pipeline(args.pipeline.as_deref())?;
    let folder = folder_of(graph)?;
    let pipeline = file.build(graph, &pagemill::resources())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let n_documents = match runtime.block_on(pipeline.rebuild_ledger()) {
        Ok(n_documents) => n_documents,
        Err(error) => {
            tell_error(&error);
            return Ok(FAILED);
        }
    };
    note_dead_letters(graph, folder)?;
    writeln!(
        std::io::stdout().lock(),
        "`{}`: the ledger now knows {n_documents} documents, as the sinks hold them",
        graph.name()
    )?;
    Ok(DONE)
}

/// The sinks know nothing of what was set aside; the letters do.
fn note_dead_letters(graph: &Graph, folder: &Path) -> Result<(), Hinted> {
    let Some(root) = graph.dead_letters() else {
        return Ok(());
    };
    let mut n_dead: BTreeMap<String, u64> = BTreeMap::new();
    for filed in filed_letters(root)? {
        if filed.letter.pipeline == graph.name() {
            *n_dead.entry(filed.letter.document_id).or_default() += 1;
        }
    }
    let n_dead: Vec<(DocumentId, u64)> = n_dead
        .into_iter()
        .filter_map(|(id, n_dead)| Some((DocumentId::from_hex(&id)?, n_dead)))
        .collect();
    Ledger::open(folder, graph.name())?.set_dead(&n_dead)?;
    Ok(())
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
        let named = documents.iter().filter(|document| is_named(&document.uri));
        let named: Vec<DocumentId> = named.map(|document| document.id).collect();
        if named.is_empty() {
            continue;
        }
        ledger.undo(&named).map_err(Hinted::from)?;
        let (name, n) = (graph.name(), named.len());
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

//! `pagemill dead-letters`.

mod letters;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use indicatif::HumanDuration;
use pagemill::ConfigError;
use pagemill::pipeline::{DocumentId, FeedAgain, FiledLetter, Ledger, RunOptions, printable_line};
use serde_json::{Value, json};

use crate::document_names::WorkingDirectory;
use crate::run::{Job, Reports, supervise};
use crate::{ConfigArgs, DEAD_LETTERS, DONE, Hinted, progress};

use letters::Letters;

/// What was set aside, with its error and what to do about it.
#[derive(Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  pagemill dead-letters list\n  pagemill dead-letters retry --all\n  \
                  pagemill dead-letters retry papers/locked.pdf --set \
                  'documents.stage.pages.passwords=[\"secret\"]'"
)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Subcommand)]
enum DeadLettersCommand {
    /// List what was set aside, oldest first
    List(ListArgs),
    /// Show everything that is known of a letter
    Show(ShowArgs),
    /// Feed the documents in again
    Retry(RetryArgs),
    /// Remove letters; their documents are not done again
    Drop(ChooseArgs),
}

#[derive(Args)]
struct Place {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only letters of this pipeline; may be given several times
    #[arg(long = "pipeline", value_name = "NAME")]
    pipelines: Vec<String>,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ShowArgs {
    /// The start of a letter's id, or the path of a document
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Args)]
struct ChooseArgs {
    /// Starts of letters' ids, or paths of documents
    #[arg(
        value_name = "ID",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    ids: Vec<String>,
    /// All letters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct RetryArgs {
    #[command(flatten)]
    choose: ChooseArgs,
    /// Print the reports of the runs as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DeadLettersArgs) -> anyhow::Result<u8> {
    match &args.command {
        DeadLettersCommand::List(args) => list(args),
        DeadLettersCommand::Show(args) => show(args),
        DeadLettersCommand::Retry(args) => retry(args),
        DeadLettersCommand::Drop(args) => drop_letters(args),
    }
}

fn list(args: &ListArgs) -> anyhow::Result<u8> {
    let letters = Letters::read(&args.place)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let values: Vec<Value> = letters.all.iter().map(to_json).collect();
        serde_json::to_writer_pretty(&mut stdout, &values)?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    if letters.all.is_empty() {
        writeln!(stdout, "there are no dead letters")?;
        return Ok(DONE);
    }
    let (now, folder) = (SystemTime::now(), WorkingDirectory::current());
    let head = ["id", "age", "pipeline", "node", "document", "error"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(letters.all.iter().map(|filed| {
        let letter = &filed.letter;
        [
            letters.id(filed).to_owned(),
            age(letter.at_unix_ms, now),
            letter.pipeline.clone(),
            letter.node.clone(),
            place_of(filed, &folder),
            letter.error.replace('\n', " "),
        ]
        .map(|cell| printable_line(&cell).into_owned())
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|c| width(c).unwrap_or(0)).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row[..row.len() - 1].iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        writeln!(stdout, "{line}{}", row[row.len() - 1])?;
    }
    let n = letters.all.len();
    writeln!(
        stdout,
        "\n{n} dead letters; `pagemill dead-letters show ID` tells what to do about one"
    )?;
    Ok(DONE)
}

/// `a.pdf#3.2`: document, page, part.
fn place_of(filed: &FiledLetter, folder: &WorkingDirectory) -> String {
    let letter = &filed.letter;
    let page = letter.page.map(|page| format!("#{page}"));
    let part = letter.part.map(|part| format!(".{part}"));
    let (page, part) = (page.unwrap_or_default(), part.unwrap_or_default());
    format!("{}{page}{part}", folder.shown(&letter.document))
}

fn age(at_unix_ms: u64, now: SystemTime) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_unix_ms);
    let age = now.duration_since(at).unwrap_or_default();
    format!("{:#}", HumanDuration(age))
}

fn to_json(filed: &FiledLetter) -> Value {
    let mut value = serde_json::to_value(&filed.letter).unwrap_or_default();
    value["id"] = json!(filed.id);
    value["file"] = json!(filed.path);
    value
}

fn show(args: &ShowArgs) -> anyhow::Result<u8> {
    let letters = Letters::read(&args.list.place)?;
    let chosen = letters.choose(&args.ids)?;
    let mut stdout = std::io::stdout().lock();
    if args.list.json {
        let values: Vec<Value> = chosen.iter().map(|filed| to_json(filed)).collect();
        serde_json::to_writer_pretty(&mut stdout, &values)?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    let now = SystemTime::now();
    for (number, filed) in chosen.into_iter().enumerate() {
        if number > 0 {
            writeln!(stdout)?;
        }
        let letter = &filed.letter;
        let when = format!(
            "{} ago ({} ms since 1970)",
            age(letter.at_unix_ms, now),
            letter.at_unix_ms
        );
        let file = filed.path.display().to_string();
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let lines = [
            ("id", Some(filed.id.clone())),
            ("error", Some(letter.error.clone())),
            ("hint", letter.hint.clone()),
            ("document", Some(letter.document.clone())),
            ("page", number(letter.page)),
            ("part", number(letter.part)),
            ("pipeline", Some(letter.pipeline.clone())),
            ("node", Some(letter.node.clone())),
            ("source", Some(letter.source.clone())),
            ("input", letter.input.clone()),
            ("content hash", letter.content_hash.clone()),
            ("document id", Some(letter.document_id.clone())),
            ("when", Some(when)),
            ("file", Some(file)),
        ];
        for (name, value) in lines {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                writeln!(stdout, "{name:12}  {}", printable_line(&value))?;
            }
        }
    }
    Ok(DONE)
}

fn retry(args: &RetryArgs) -> anyhow::Result<u8> {
    let letters = Letters::read(&args.choose.place)?;
    let chosen = choose(&letters, &args.choose)?;
    if chosen.is_empty() {
        return nothing_there();
    }
    let mut by_pipeline: BTreeMap<&str, Vec<FeedAgain>> = BTreeMap::new();
    let mut seen = HashSet::new();
    for FiledLetter { letter, .. } in chosen.iter().copied() {
        // A document has a letter for each of its bad pages.
        if seen.insert((&letter.pipeline, &letter.document, &letter.input)) {
            let documents = by_pipeline.entry(&letter.pipeline).or_default();
            documents.push(FeedAgain {
                uri: letter.document.clone(),
                input: letter.input.clone(),
            });
        }
    }
    let resources = pagemill::resources();
    let (mut jobs, mut errors) = (Vec::new(), Vec::new());
    for (name, documents) in by_pipeline {
        let options = RunOptions {
            retries: Some(documents),
            ..RunOptions::default()
        };
        let graph = letters.file.pipeline(Some(name));
        let job = graph.and_then(|graph| Job::new(&letters.file, graph, &resources, options));
        match job {
            Ok(job) => jobs.push(job),
            Err(error) => errors.push(error),
        }
    }
    if let Some(error) = errors.into_iter().reduce(ConfigError::and) {
        return Err(error.into());
    }
    let mut reports = Reports::new(args.json, jobs.len() > 1);
    let runtime = tokio::runtime::Runtime::new()?;
    let supervised = runtime.block_on(supervise(jobs, None, None, &mut reports));
    progress::clear();
    supervised?;
    if tell_untouched(&letters, &chosen) {
        reports.count(DEAD_LETTERS);
    }
    reports.finish()
}

/// Tells of letters that no source has taken up; whether there are some.
fn tell_untouched(letters: &Letters, chosen: &[&FiledLetter]) -> bool {
    let (mut is_any, folder) = (false, WorkingDirectory::current());
    for filed in chosen {
        // A document that is read again takes its letters away first.
        let left = std::fs::read(&filed.path).ok();
        let left = left.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if left.as_ref() == Some(&filed.letter) {
            is_any = true;
            progress::tell(&format!(
                "error: `{}` was not fed in again: no source of `{}` brought it\n\
                 hint: look at the source's settings, or let go of it: `pagemill dead-letters drop {}`",
                printable_line(&folder.shown(&filed.letter.document)),
                printable_line(&filed.letter.pipeline),
                letters.id(filed)
            ));
        }
    }
    is_any
}

fn drop_letters(args: &ChooseArgs) -> anyhow::Result<u8> {
    let letters = Letters::read(&args.place)?;
    let chosen = choose(&letters, args)?;
    if chosen.is_empty() {
        return nothing_there();
    }
    for filed in &chosen {
        filed.remove().map_err(|error| {
            Hinted::failed(
                format!(
                    "cannot remove a dead letter: {error}: {}",
                    filed.path.display()
                ),
                "make its folder writable",
            )
        })?;
    }
    forget_in_ledgers(&letters, &chosen)?;
    let n = chosen.len();
    let what = if n == 1 { "letter" } else { "letters" };
    writeln!(std::io::stdout().lock(), "{n} {what} removed")?;
    Ok(DONE)
}

/// The next runs must not tell of letters that are gone.
fn forget_in_ledgers(letters: &Letters, dropped: &[&FiledLetter]) -> Result<(), Hinted> {
    let is_dropped: HashSet<&Path> = dropped.iter().map(|filed| &*filed.path).collect();
    for graph in letters.file.pipelines() {
        let of_graph = |filed: &&&FiledLetter| filed.letter.pipeline == graph.name();
        let documents: BTreeSet<&str> = dropped
            .iter()
            .filter(of_graph)
            .map(|filed| filed.letter.document_id.as_str())
            .collect();
        let Some(folder) = graph.ledger().filter(|_| !documents.is_empty()) else {
            continue;
        };
        let Some(ledger) = Ledger::open_existing(folder, graph.name())? else {
            continue;
        };
        let mut n_left: HashMap<&str, u64> = HashMap::new();
        for filed in &letters.all {
            if filed.letter.pipeline == graph.name() && !is_dropped.contains(&*filed.path) {
                *n_left.entry(&filed.letter.document_id).or_default() += 1;
            }
        }
        let n_left = documents.into_iter().filter_map(|id| {
            let n_left = n_left.get(id).copied().unwrap_or(0);
            Some((DocumentId::from_hex(id)?, n_left))
        });
        ledger.set_dead(&n_left.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn choose<'a>(letters: &'a Letters, args: &ChooseArgs) -> Result<Vec<&'a FiledLetter>, Hinted> {
    if args.all {
        Ok(letters.all.iter().collect())
    } else {
        letters.choose(&args.ids)
    }
}

fn nothing_there() -> anyhow::Result<u8> {
    writeln!(std::io::stdout().lock(), "there are no dead letters")?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = UNIX_EPOCH + Duration::from_hours(2);
        assert_eq!(age(0, now), "2h");
        assert_eq!(age(7_200_000 + 5, now), "0s");
    }
}

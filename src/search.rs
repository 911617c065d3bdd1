//! `pagemill search`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pagemill::models::ModelPlaces;
use pagemill::pipeline::printable_line;
use pagemill::sinks::lancedb::{Hit, PageDetail, Question, SearchMode};
use pagemill::{EmbeddedQuestion, Searcher};

use crate::document_names::WorkingDirectory;
use crate::explain::Asked;
use crate::{ConfigArgs, DONE, Hinted};

/// Ask a question of the table that a pipeline filled.
#[derive(Args)]
#[command(after_help = "Example:\n  pagemill search \"torque of the clamp bolts\" --top 3")]
pub(crate) struct SearchArgs {
    /// The question
    query: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// The pipeline whose table is searched; the file's first if left out
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// By words, by meaning, or both; both where the pipeline has a model
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// How many passages
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    top: u16,
    /// Draw where on the best page the question's words are
    #[arg(long, value_name = "FILE.png")]
    explain: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Full text, ranked by BM25
    Text,
    /// Vectors, ranked by cosine, or by MaxSim where a page has many
    Vector,
    /// Both, joined by reciprocal rank fusion
    Hybrid,
}

impl From<Mode> for SearchMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Text => Self::Text,
            Mode::Vector => Self::Vector,
            Mode::Hybrid => Self::Hybrid,
        }
    }
}

pub(crate) fn run(args: &SearchArgs) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let graph = file.pipeline(args.pipeline.as_deref())?;
    let mode = args.mode.map(SearchMode::from);
    let runtime = tokio::runtime::Runtime::new()?;
    let places = ModelPlaces::from_environment();
    let answered = runtime.block_on(async {
        let searcher = Searcher::open(graph, &places, mode).await?;
        let mode = mode.unwrap_or_else(|| searcher.default_mode());
        let hits = searcher
            .search(&args.query, Some(mode), args.top.into())
            .await?;
        Ok::<_, pagemill::AskError>((searcher, mode, hits))
    });
    let failed = |error: pagemill::AskError| Hinted::failed(error.to_string(), error.hint());
    let (searcher, mode, hits) = answered.map_err(failed)?;
    if let Some(path) = &args.explain {
        let best = hits.first().ok_or_else(|| {
            Hinted::failed(
                "nothing was found that could be explained",
                "ask something else",
            )
        })?;
        let page = runtime.block_on(searcher.page(best)).map_err(failed)?;
        explain(path, &args.query, &searcher, &page.unwrap_or_default())?;
    }
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let hits: Vec<_> = hits.iter().map(json).collect();
        let answer = serde_json::json!({
            "query": args.query,
            "pipeline": graph.name(),
            "mode": name_of(mode),
            "hits": hits,
        });
        serde_json::to_writer_pretty(&mut stdout, &answer)?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    if hits.is_empty() {
        writeln!(stdout, "nothing found")?;
    }
    let folder = WorkingDirectory::current();
    for (index, hit) in hits.iter().enumerate() {
        let page = hit
            .page
            .map_or_else(String::new, |page| format!(", page {page}"));
        writeln!(
            stdout,
            "{}. {}{page}  (score {:.4})",
            index + 1,
            printable_line(&folder.shown(&hit.document)),
            hit.score
        )?;
        for line in wrapped(&hit.text) {
            writeln!(stdout, "   {line}")?;
        }
        writeln!(stdout)?;
    }
    Ok(DONE)
}

/// Draws why a page was found.
fn explain(path: &Path, query: &str, searcher: &Searcher, page: &PageDetail) -> Result<(), Hinted> {
    let embedded = searcher.embed(query);
    let embedded = embedded.map_err(|error| Hinted::failed(error.to_string(), error.hint()))?;
    let Some(EmbeddedQuestion {
        question: Question::Multi(vectors),
        words,
    }) = embedded
    else {
        let problem = "only an encoder with a vector for each token can explain what it finds";
        let hint = "use a pipeline whose `embed_image` has a ColQwen model";
        return Err(Hinted::usage(problem, hint));
    };
    let asked = Asked {
        text: query,
        vectors: &vectors,
        words,
    };
    crate::explain::write(path, &asked, page)
}

fn name_of(mode: SearchMode) -> &'static str {
    match mode {
        SearchMode::Text => "text",
        SearchMode::Vector => "vector",
        SearchMode::Hybrid => "hybrid",
    }
}

fn json(hit: &Hit) -> serde_json::Value {
    serde_json::json!({
        "score": hit.score,
        "document": hit.document,
        "document_id": hit.document_id,
        "page": hit.page,
        "part": hit.part,
        "text": hit.text,
    })
}

/// The passage in lines that fit a terminal, without its own line breaks.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 88;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace().map(printable_line) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word.into_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passage_is_wrapped_at_words() {
        let lines = wrapped(&"word ".repeat(30));
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() <= 88));
        assert!(wrapped(" \n ").is_empty());
    }

    #[test]
    fn a_passage_cannot_give_orders_to_the_terminal() {
        let lines = wrapped("a\u{1b}[2Jb\u{9b}1m\tc\r\n");
        assert_eq!(lines, [r"a\u{1b}[2Jb\u{9b}1m c"]);
    }
}

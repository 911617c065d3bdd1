//! `pagemill graph`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pagemill::pipeline::printable_text;

use crate::{ConfigArgs, DONE, Hinted, check, drawing, why};

/// Draw the graph of a pipeline, as text, Mermaid, DOT or SVG.
#[derive(Args)]
#[command(after_help = "Example:\n  pagemill graph documents --format svg --out graph.svg")]
pub(crate) struct GraphArgs {
    /// The pipeline; the file's first if left out
    pipeline: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// How to draw it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Nodes with their fields
    Text,
    /// For Markdown that renders Mermaid
    Mermaid,
    /// For Graphviz
    Dot,
    /// A picture
    Svg,
}

pub(crate) fn run(args: &GraphArgs) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let graph = file.pipeline(args.pipeline.as_deref())?;
    let drawn = match args.format {
        Format::Text => {
            printable_text(&check::describe(graph, &pagemill::resources())).into_owned()
        }
        Format::Mermaid => drawing::mermaid(graph),
        Format::Dot => drawing::dot(graph),
        Format::Svg => drawing::svg(graph),
    };
    match &args.out {
        None => std::io::stdout().lock().write_all(drawn.as_bytes())?,
        Some(path) => std::fs::write(path, drawn).map_err(|error| {
            Hinted::failed(
                format!(
                    "cannot write the picture: {}: {}",
                    why(&error),
                    path.display()
                ),
                "name a file in a folder that exists and can be written, on a disk with room",
            )
        })?,
    }
    Ok(DONE)
}

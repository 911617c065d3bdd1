//! `pagemill check`.

use std::io::Write as _;

use clap::Args;
use pagemill::pipeline::{FieldSet, Role};
use pagemill::{ConfigError, Graph};

use crate::{ConfigArgs, DONE};

/// Check a configuration: every mistake is reported in one run, with its place.
#[derive(Args)]
#[command(after_help = "Example:\n  pagemill check --config pipelines.toml")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let resources = pagemill::resources();
    // Building finds what only this machine knows: folders, models, libraries.
    let errors = file
        .pipelines()
        .iter()
        .filter_map(|graph| file.build(graph, &resources).err());
    if let Some(error) = errors.reduce(ConfigError::and) {
        return Err(error.into());
    }
    let mut stdout = std::io::stdout().lock();
    for (index, graph) in file.pipelines().iter().enumerate() {
        if index > 0 {
            writeln!(stdout)?;
        }
        write!(stdout, "{}", describe(graph))?;
    }
    Ok(DONE)
}

/// The graph as text: each node with what it takes, reads and passes on.
pub(crate) fn describe(graph: &Graph) -> String {
    let mut text = graph.name().to_owned();
    if let Some(description) = graph.description() {
        text += &format!(": {description}");
    }
    text += &format!("\n  fingerprint {}\n", graph.fingerprint());
    for node in graph.nodes() {
        text += &format!(
            "\n  {} {} ({}",
            node.role().table(),
            node.name(),
            node.kind()
        );
        if node.workers() > 1 {
            text += &format!(", {} workers", node.workers());
        }
        if node.role() == Role::Stage {
            text += &format!(", {}", node.cardinality());
        }
        text += ")\n";
        let inputs: Vec<&str> = node
            .inputs()
            .iter()
            .map(|input| graph.nodes()[*input].name())
            .collect();
        if !inputs.is_empty() {
            text += &format!("    takes from {}\n", inputs.join(", "));
            text += &format!("    in   {}\n", typed(node.carried(), node.input()));
        }
        if node.role() != Role::Sink {
            text += &format!(
                "    out  {}\n",
                typed(node.output().names().collect(), node.output())
            );
        }
    }
    text
}

/// `text: text, vector: vector`
fn typed(names: Vec<&str>, fields: &FieldSet) -> String {
    let typed = names.into_iter().filter_map(|name| {
        let ty = fields.get(name)?.to_string();
        Some(if ty == name {
            name.to_owned()
        } else {
            format!("{name}: {ty}")
        })
    });
    let typed: Vec<String> = typed.collect();
    if typed.is_empty() {
        "(key only)".into()
    } else {
        typed.join(", ")
    }
}

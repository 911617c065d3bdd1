//! `pagemill check`.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use pagemill::models::{ModelPlaces, resolve};
use pagemill::pipeline::{
    BatchPolicy, EdgeLimits, FieldSet, GraphNode, OnError, Role, Unmatched, fingerprint_of,
    printable_text,
};
use pagemill::stages::cage::{Isolation, WorkerCommand, protections};
use pagemill::stages::generate::{
    CaptionConfig, ClassifyConfig, ExtractConfig, GenerateConfig, ModelSetting, TranscribeConfig,
};
use pagemill::stages::{
    DecodeImageConfig, EmbedImageConfig, EmbedTextConfig, PrepareImageConfig, RenderPdfConfig,
};
use pagemill::{ConfigError, ConfigFile, Graph, Resources};

use crate::{ConfigArgs, DONE, progress};

/// Check a configuration: every mistake is reported in one run, with its place.
#[derive(Args)]
#[command(after_help = "Example:\n  pagemill check --config pipelines.toml")]
pub(crate) struct CheckArgs {
    /// Only these pipelines; all of the file if left out
    #[arg(value_name = "PIPELINE")]
    pipelines: Vec<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<u8> {
    let file = args.config.read()?;
    let resources = pagemill::resources();
    let names = args.pipelines.iter();
    let mut graphs = names
        .map(|name| file.pipeline(Some(name)))
        .collect::<Result<Vec<_>, _>>()?;
    let asked_for = !graphs.is_empty();
    if !asked_for {
        graphs.extend(file.pipelines());
    }
    // Building finds what only this machine knows: folders, models, libraries. A model that
    // can be fetched is no mistake of a file that holds several pipelines.
    let places = ModelPlaces::from_environment();
    let absent = |graph: &Graph| {
        if asked_for {
            Vec::new()
        } else {
            absent_models(graph, &places)
        }
    };
    let errors = graphs
        .iter()
        .filter(|graph| absent(graph).is_empty())
        .filter_map(|graph| file.build(graph, &resources).err());
    if let Some(error) = errors.reduce(ConfigError::and) {
        return Err(error.into());
    }
    warn(&file);
    let mut stdout = std::io::stdout().lock();
    for (index, graph) in graphs.iter().enumerate() {
        if index > 0 {
            writeln!(stdout)?;
        }
        write!(stdout, "{}", printable_text(&describe(graph, &resources)))?;
        for model in absent(graph) {
            writeln!(
                stdout,
                "\n  needs a model that is not here: `pagemill models fetch {model}`"
            )?;
        }
    }
    if graphs.iter().any(|graph| uses_cage(graph)) {
        match protections(&WorkerCommand::default()) {
            Ok(found) => writeln!(stdout, "\nthe cage on this machine: {found}")?,
            Err(error) => writeln!(stdout, "\nthe cage on this machine: {error}")?,
        }
    }
    Ok(DONE)
}

/// Prints what is allowed and rarely meant.
pub(crate) fn warn(file: &ConfigFile) {
    if let Some(warnings) = file.warnings() {
        let is_terminal = std::io::stderr().is_terminal();
        progress::tell(&warnings.render_warnings(is_terminal));
    }
}

/// Whether documents from strangers are parsed in the cage.
fn uses_cage(graph: &Graph) -> bool {
    let mut isolations = graph.nodes().iter().filter_map(|node| {
        let renders = node.settings::<RenderPdfConfig>();
        let decodes = node.settings::<DecodeImageConfig>();
        renders
            .map(|stage| stage.isolation)
            .or_else(|| decodes.map(|stage| stage.isolation))
    });
    isolations.any(|isolation| isolation == Isolation::Cage)
}

/// The models that a pipeline names and that are not on this machine, each once.
fn absent_models(graph: &Graph, places: &ModelPlaces) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for node in graph.nodes() {
        let prepares = node
            .settings::<PrepareImageConfig>()
            .map(|stage| &stage.model);
        let embeds = node
            .settings::<EmbedImageConfig>()
            .map(|stage| &stage.model);
        names.extend([prepares, embeds].into_iter().flatten().map(String::as_str));
        let speaks = [
            node.settings::<EmbedTextConfig>().map(|stage| &stage.model),
            node.settings::<GenerateConfig>().map(|stage| &stage.model),
            node.settings::<TranscribeConfig>()
                .map(|stage| &stage.model),
            node.settings::<CaptionConfig>().map(|stage| &stage.model),
            node.settings::<ClassifyConfig>().map(|stage| &stage.model),
            node.settings::<ExtractConfig>().map(|stage| &stage.model),
        ];
        names.extend(speaks.into_iter().flatten().filter_map(ModelSetting::local));
    }
    names.dedup();
    // A path is a mistake if nothing is there; only a name can be fetched.
    let can_be_fetched =
        |name: &&str| !name.starts_with(['/', '.']) && resolve(name, places).is_err();
    names
        .into_iter()
        .filter(can_be_fetched)
        .map(str::to_owned)
        .collect()
}

/// The graph as text: each node with what it takes, reads and passes on.
pub(crate) fn describe(graph: &Graph, resources: &Resources) -> String {
    let mut text = graph.name().to_owned();
    if let Some(description) = graph.description() {
        text += &format!(": {description}");
    }
    let sinks = graph.sink_keys(resources);
    text += &format!("\n  fingerprint {}\n", fingerprint_of(&sinks));
    for sink in sinks {
        text += &format!("    of `{}` {}\n", sink.node, sink.fingerprint);
    }
    if graph.is_continuous() {
        text += "  runs until it is asked to stop\n";
    }
    if graph.ledger().is_none() {
        text += "  keeps no ledger: every run does everything anew\n";
    }
    for (place, node) in graph.nodes().iter().enumerate() {
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
        if !node.inputs().is_empty() {
            text += &taken(graph, node);
            if node.is_join() && graph.holds_documents(place) {
                text += "    holds items without a partner to the end of their document: \
                         no one stage makes the pages of all its inputs\n";
            }
            text += &format!("    in   {}\n", typed(node.carried(), node.input()));
        }
        if node.role() != Role::Sink {
            text += &format!(
                "    out  {}\n",
                typed(node.output().names().collect(), node.output())
            );
        }
        let settings = settings(node);
        if !settings.is_empty() {
            text += &format!("    with {}\n", settings.join(", "));
        }
    }
    text
}

/// Where items come from, and which of them.
fn taken(graph: &Graph, node: &GraphNode) -> String {
    let names = node
        .inputs()
        .iter()
        .map(|input| graph.nodes()[*input].name());
    if node.is_join() {
        return format!("    joins {}\n", names.collect::<Vec<_>>().join(" and "));
    }
    let routes: Vec<Option<&str>> = (0..node.inputs().len())
        .map(|number| node.route(number))
        .collect();
    let all_alike = routes.iter().all(|route| *route == routes[0]);
    let of_route = |route: Option<&str>| match route {
        None => String::new(),
        Some("else") => " what nobody else takes".to_owned(),
        Some(when) => format!(" when `{when}`"),
    };
    if all_alike {
        let names = names.collect::<Vec<_>>().join(", ");
        return format!("    takes from {names}{}\n", of_route(routes[0]));
    }
    let lines = names
        .zip(routes)
        .map(|(name, route)| format!("    takes from {name}{}\n", of_route(route)));
    lines.collect()
}

/// The engine's settings that are not what they would be without the file, as
/// the file would say them.
fn settings(node: &GraphNode) -> Vec<String> {
    let mut settings = Vec::new();
    if let Some(unmatched @ (Unmatched::Pass | Unmatched::Drop)) = node.unmatched() {
        let unmatched = match unmatched {
            Unmatched::Pass => "pass",
            Unmatched::Drop => "drop",
            Unmatched::DeadLetter => "dead_letter",
        };
        settings.push(format!("unmatched = \"{unmatched}\""));
    }
    let (batch, default) = (node.batch(), node.default_batch());
    let limits: Vec<String> = batch_limits(batch)
        .into_iter()
        .zip(batch_limits(default))
        .filter(|((_, value), (_, default))| value != default)
        .filter_map(|((name, value), _)| Some(format!("{name} = {}", value?)))
        .collect();
    if !limits.is_empty() {
        settings.push(format!("batch = {{ {} }}", limits.join(", ")));
    }
    let (edge, default) = (node.edge(), EdgeLimits::default());
    let limits = [
        ("max_items", edge.max_items, default.max_items),
        ("max_bytes", edge.max_bytes, default.max_bytes),
    ];
    let limits: Vec<String> = limits
        .iter()
        .filter(|(_, value, default)| value != default)
        .map(|(name, value, _)| format!("{name} = {value}"))
        .collect();
    if !limits.is_empty() {
        settings.push(format!("edge = {{ {} }}", limits.join(", ")));
    }
    match node.on_error() {
        OnError::DeadLetter => {}
        OnError::Stop => settings.push("on_error = \"stop\"".to_owned()),
        OnError::Retry(retry) => settings.push(format!(
            "retry = {{ attempts = {}, base_ms = {} }}",
            retry.attempts, retry.base_ms
        )),
    }
    settings
}

fn batch_limits(batch: BatchPolicy) -> [(&'static str, Option<u64>); 4] {
    [
        ("max_items", Some(batch.max_items as u64)),
        ("max_pixels", batch.max_pixels),
        ("max_tokens", batch.max_tokens.map(|tokens| tokens as u64)),
        ("max_wait_ms", Some(batch.max_wait_ms)),
    ]
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

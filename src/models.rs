//! `pagemill models`.

use std::io::Write as _;
use std::path::Path;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use pagemill::models::{
    Encoder, FetchProgress, Generator, GeneratorCard, ModelCard, ModelError, ModelPlaces, fetch,
    list, resolve,
};
use pagemill::pipeline::printable_line;

use crate::{DONE, Hinted, progress};

/// List, fetch and describe models.
#[derive(Args)]
#[command(
    after_help = "Example:\n  pagemill models list\n  pagemill models fetch \
                        vidore/colqwen2.5-v0.2\n  pagemill models show vidore/colqwen2.5-v0.2"
)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum ModelsCommand {
    /// The models that are here (the default)
    List,
    /// Fetch a model from the hub; what has come already is not fetched again
    Fetch {
        /// Name of the model, `owner/model`, or of one of its files, `owner/model/file.gguf`
        name: String,
        /// Another version than the newest
        #[arg(long, value_name = "REVISION")]
        revision: Option<String>,
    },
    /// Describe a model without loading it: parameters, memory, prompts
    Show {
        /// Name of the model, or its folder
        #[arg(value_name = "DIR_OR_NAME")]
        name: String,
    },
}

pub(crate) fn run(args: &ModelsArgs) -> anyhow::Result<u8> {
    let places = ModelPlaces::from_environment();
    match &args.command {
        Some(ModelsCommand::List) | None => show_all(&places, args.json),
        Some(ModelsCommand::Fetch { name, revision }) => {
            bring(name, revision.as_deref(), &places, args.json)
        }
        Some(ModelsCommand::Show { name }) => show(name, &places, args.json),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn failed(error: ModelError) -> Hinted {
    Hinted::failed(error.to_string(), error.hint())
}

/// Fetches a model, with a bar on a terminal.
fn bring(
    name: &str,
    revision: Option<&str>,
    places: &ModelPlaces,
    json: bool,
) -> anyhow::Result<u8> {
    let bar = if progress::is_terminal() {
        ProgressBar::no_length()
    } else {
        ProgressBar::hidden()
    };
    let template = "{msg} {wide_bar} {bytes}/{total_bytes}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let folder = fetch(name, revision, places, &mut |now: &FetchProgress| {
        if let Some(total) = now.model_total_bytes {
            bar.set_length(total);
        }
        bar.set_position(now.model_bytes);
        bar.set_message(format!(
            "{} ({} of {})",
            printable_line(&now.file),
            now.index + 1,
            now.n_files
        ));
    });
    bar.finish_and_clear();
    let folder = folder.map_err(failed)?;
    let mut stdout = std::io::stdout().lock();
    if json {
        let answer = serde_json::json!({ "name": name, "folder": folder });
        serde_json::to_writer_pretty(&mut stdout, &answer)?;
        writeln!(stdout)?;
    } else {
        writeln!(stdout, "{}", folder.display())?;
    }
    Ok(DONE)
}

/// What a model is, from its configuration.
fn show(name: &str, places: &ModelPlaces, json: bool) -> anyhow::Result<u8> {
    let folder = resolve(name, places).map_err(failed)?;
    let card = match Encoder::describe(&folder) {
        Err(ModelError::MakesNoVectors { .. }) => {
            let card = Generator::describe(&folder).map_err(failed)?;
            return show_generator(name, &folder, &card, json);
        }
        card => card.map_err(failed)?,
    };
    let mut stdout = std::io::stdout().lock();
    if json {
        let prompts = card.prompts.as_ref().map(|prompts| {
            serde_json::json!({
                "before_page": prompts.before_page,
                "after_page": prompts.after_page,
                "after_question": prompts.after_question,
            })
        });
        let answer = serde_json::json!({
            "name": name,
            "folder": folder,
            "architecture": card.architecture,
            "kind": kind_of(&card),
            "dim": card.dim,
            "max_tokens": card.max_tokens,
            "n_parameters": card.n_parameters,
            "n_bytes": card.n_bytes,
            "memory_bytes": memory_json(card.memory()),
            "prompts": prompts,
        });
        serde_json::to_writer_pretty(&mut stdout, &answer)?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    let mut line =
        |name: &str, value: &str| writeln!(stdout, "{name:<14}{}", printable_line(value));
    line("folder", &folder.display().to_string())?;
    line(
        "architecture",
        &format!("{}, {}", card.architecture, kind_of(&card)),
    )?;
    line("vectors", &format!("{} numbers each", card.dim))?;
    line("longest text", &format!("{} tokens", card.max_tokens))?;
    line(
        "parameters",
        &format!("{:.1} M", card.n_parameters as f64 / 1e6),
    )?;
    let memory = memory_text(card.memory());
    let memory = if card.n_quantizable > 0 {
        &memory[..]
    } else {
        &memory[..2]
    };
    line("memory", &memory.join(", "))?;
    line("files", &format!("{:.0} MB", card.n_bytes as f64 / 1e6))?;
    if let Some(prompts) = &card.prompts {
        line(
            "page",
            &format!("{:?} <image> {:?}", prompts.before_page, prompts.after_page),
        )?;
        line("question", &format!("<text> {:?}", prompts.after_question))?;
    }
    Ok(DONE)
}

/// What a model that writes is.
fn show_generator(
    name: &str,
    folder: &Path,
    card: &GeneratorCard,
    json: bool,
) -> anyhow::Result<u8> {
    let kind = if card.reads_images {
        "writes text about pictures and text"
    } else {
        "writes text about text"
    };
    let mut stdout = std::io::stdout().lock();
    if json {
        let answer = serde_json::json!({
            "name": name,
            "folder": folder,
            "architecture": card.architecture,
            "kind": kind,
            "max_context": card.max_context,
            "n_parameters": card.n_parameters,
            "n_bytes": card.n_bytes,
            "memory_bytes": (!card.is_stored_in_few_bits()).then(|| memory_json(card.memory())),
        });
        serde_json::to_writer_pretty(&mut stdout, &answer)?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    for (name, value) in [
        ("folder", folder.display().to_string()),
        ("architecture", format!("{}, {kind}", card.architecture)),
        ("context", format!("{} tokens", card.max_context)),
        (
            "parameters",
            format!("{:.1} M", card.n_parameters as f64 / 1e6),
        ),
        (
            "memory",
            if card.is_stored_in_few_bits() {
                "about as the files".to_owned()
            } else {
                memory_text(card.memory()).join(", ")
            },
        ),
        ("files", format!("{:.0} MB", card.n_bytes as f64 / 1e6)),
    ] {
        writeln!(stdout, "{name:<14}{}", printable_line(&value))?;
    }
    Ok(DONE)
}

fn memory_json(memory: [(&str, u64); 4]) -> serde_json::Map<String, serde_json::Value> {
    let entries = memory.into_iter();
    entries
        .map(|(dtype, n_bytes)| (dtype.to_owned(), n_bytes.into()))
        .collect()
}

fn memory_text(memory: [(&str, u64); 4]) -> [String; 4] {
    memory.map(|(dtype, n_bytes)| format!("{dtype} {:.0} MB", n_bytes as f64 / 1e6))
}

fn kind_of(card: &ModelCard) -> &'static str {
    match (card.kind.is_multi_vector(), card.kind.reads_images()) {
        (true, _) => "a vector for each token",
        (false, true) => "a vector for each picture or text",
        (false, false) => "a vector for each text",
    }
}

fn show_all(places: &ModelPlaces, json: bool) -> anyhow::Result<u8> {
    let models = list(places);
    let mut stdout = std::io::stdout().lock();
    if json {
        let models: Vec<_> = models
            .iter()
            .map(|model| {
                serde_json::json!({
                    "name": model.name,
                    "architecture": model.architecture,
                    "dim": model.dim,
                    "n_bytes": model.n_bytes,
                    "folder": model.folder,
                })
            })
            .collect();
        serde_json::to_writer_pretty(&mut stdout, &serde_json::json!({ "models": models }))?;
        writeln!(stdout)?;
        return Ok(DONE);
    }
    for model in &models {
        let architecture = model.architecture.as_deref().unwrap_or("unknown");
        let dim = model
            .dim
            .map_or_else(String::new, |dim| format!(", {dim}-d"));
        let megabytes = model.n_bytes as f64 / 1e6;
        writeln!(
            stdout,
            "{} ({}{dim}, {megabytes:.0} MB)",
            printable_line(&model.name),
            printable_line(architecture)
        )?;
        let folder = model.folder.display().to_string();
        writeln!(stdout, "    {}", printable_line(&folder))?;
    }
    if models.is_empty() {
        writeln!(
            stdout,
            "no models here yet; `make setup` fetches all-MiniLM-L6-v2"
        )?;
    }
    writeln!(stdout, "\nNames are looked up as a folder, then in")?;
    writeln!(
        stdout,
        "    {}",
        places.pagemill_cache.join("models").display()
    )?;
    writeln!(stdout, "    {}", places.hugging_face.display())?;
    Ok(DONE)
}

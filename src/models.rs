//! `pagemill models`.

use std::io::Write as _;

use clap::{Args, Subcommand};
use pagemill::models::{ModelPlaces, list};

use crate::DONE;

/// List the models on this machine and where names are looked up.
#[derive(Args)]
#[command(after_help = "Example:\n  pagemill models list")]
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
}

pub(crate) fn run(args: &ModelsArgs) -> anyhow::Result<u8> {
    match args.command {
        Some(ModelsCommand::List) | None => {}
    }
    let places = ModelPlaces::from_environment();
    let models = list(&places);
    let mut stdout = std::io::stdout().lock();
    if args.json {
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
            "{} ({architecture}{dim}, {megabytes:.0} MB)",
            model.name
        )?;
        writeln!(stdout, "    {}", model.folder.display())?;
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

//! Runs `pagemill run --dry-run`.

use pagemill::pipeline::RunOptions;
use pagemill::{ConfigFile, Graph, Resources};

use super::reports::{Ended, Reports};

/// Adds to `reports` what a run of each pipeline would do.
///
/// # Errors
/// A pipeline that cannot be built.
pub(super) fn run(
    file: &ConfigFile,
    graphs: &[&Graph],
    resources: &Resources,
    options: &RunOptions,
    reports: &mut Reports,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    for graph in graphs {
        let pipeline = file.build(graph, resources)?.with_options(options.clone());
        match runtime.block_on(pipeline.dry_run()) {
            Ok(forecast) => reports.add_forecast(&forecast)?,
            Err(error) => reports.add(Ended {
                pipeline: graph.name().to_owned(),
                result: Err(error),
                letters: None,
            }),
        }
    }
    Ok(())
}

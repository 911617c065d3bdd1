//! `pagemill run --dry-run`.

use std::io::{self, Write as _};

use pagemill::pipeline::{RunOptions, printable_text};
use pagemill::{ConfigFile, Graph, Resources};
use serde_json::{Value, json};

use super::reports::{tell_error, with_causes};
use crate::{DONE, FAILED};

/// Prints what a run of each pipeline would do; the exit code.
///
/// # Errors
/// A pipeline that cannot be built, or standard output that cannot be written.
pub(super) fn run(
    file: &ConfigFile,
    graphs: &[&Graph],
    resources: &Resources,
    options: &RunOptions,
    is_json: bool,
    is_list: bool,
) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut code, mut values) = (DONE, Vec::new());
    for (number, graph) in graphs.iter().enumerate() {
        let pipeline = file.build(graph, resources)?.with_options(options.clone());
        match runtime.block_on(pipeline.dry_run()) {
            Ok(forecast) if is_json => values.push(serde_json::to_value(forecast)?),
            Ok(forecast) => {
                let gap = if number == 0 { "" } else { "\n" };
                let text = format!("{gap}{}", forecast.to_text());
                io::stdout().write_all(printable_text(&text).as_bytes())?;
            }
            Err(error) => {
                code = FAILED;
                tell_error(&error);
                values.push(json!({
                    "pipeline": graph.name(),
                    "error": with_causes(&error),
                    "hint": error.error.hint(),
                }));
            }
        }
    }
    if is_json {
        let value = match values.pop() {
            Some(value) if !is_list => value,
            last => Value::Array(values.into_iter().chain(last).collect()),
        };
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&value)?)?;
    }
    Ok(code)
}

//! Runs the examples: each holds its own assertions.

use std::process::Command;

use crate::support::{project, stderr, stdout};

/// Runs an example and gives what it printed.
fn run(name: &str) -> String {
    // `cargo test` builds the examples beside the binary.
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_pagemill"));
    let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    let example = binary.parent().unwrap().join("examples").join(name);
    let output = Command::new(example)
        .current_dir(project())
        .output()
        .expect("the example was built");
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    text
}

#[test]
fn the_example_of_an_own_stage_runs() {
    let text = run("own_stage");
    assert!(text.contains("rows; the first begins {"), "{text}");
}

#[test]
fn the_example_of_closures_runs() {
    let text = run("closures");
    assert!(text.contains("the longest words have"), "{text}");
}

#[test]
fn the_example_of_own_fields_runs_and_shows_what_is_wrong() {
    let text = run("own_fields");
    assert!(
        text.contains("hint: put a stage before it that adds `outline`"),
        "{text}"
    );
}

#[test]
fn the_example_of_an_own_source_and_sink_runs() {
    run("own_source_and_sink");
}

#[test]
fn the_example_of_streams_runs_and_is_never_far_ahead() {
    let text = run("streams");
    assert!(text.contains("items ahead"), "{text}");
}

#[test]
fn the_example_of_cancelling_runs() {
    run("cancel");
}

#[test]
fn the_example_of_an_embedded_pipeline_runs() {
    let text = run("embedded");
    assert!(text.contains("pages so far"), "{text}");
    assert!(text.contains("3 documents done"), "{text}");
}

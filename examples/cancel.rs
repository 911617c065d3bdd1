//! Stops a run.
//!
//! Drop it: the stream or the future. Every thread of it ends. To finish what
//! is under way instead, drain it. Run it with `cargo run --example cancel`.

#![allow(clippy::print_stdout)]

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use pagemill::pipeline::{Fields, Outlet, Stage, StopReason};
use pagemill::{
    Field, Item, Pipeline, PipelineBuilder, Resources, RunControl, StageError, from_stage,
    from_stream, sink_fn, stage,
};
use tokio::sync::Semaphore;

/// A stage that tells when it is gone.
struct Worker {
    gone: Arc<Semaphore>,
}

impl Stage for Worker {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |_| Ok(()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.gone.add_permits(1);
    }
}

const N_WORKERS: u32 = 3;

/// A pipeline without end.
fn endless(gone: &Arc<Semaphore>) -> PipelineBuilder {
    let texts = stream::iter(0..).map(|number: u32| Item::of_text(number.to_string(), "text"));
    let gone = Arc::clone(gone);
    let work = from_stage(Fields::reads([Field::TEXT]), move || Worker {
        gone: Arc::clone(&gone),
    });
    Pipeline::builder("endless")
        .source("texts", from_stream(texts).provides([Field::TEXT]))
        .node(
            stage("work", work)
                .input("texts")
                .workers(N_WORKERS as usize),
        )
}

/// Waits until all workers are gone.
async fn all_gone(gone: &Semaphore) {
    let all = gone.acquire_many(N_WORKERS).await;
    all.expect("it is never closed").forget();
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (resources, gone) = (Resources::default(), Arc::new(Semaphore::new(0)));

    // A stream: dropped in the midst of it.
    let mut items = endless(&gone).into_stream(&resources)?;
    items.next().await.expect("it has no end")?;
    drop(items);
    all_gone(&gone).await;

    // The same, and nothing goes on until they are gone.
    let mut items = endless(&gone).into_stream(&resources)?;
    items.next().await.expect("it has no end")?;
    items.cancel().await;
    assert_eq!(gone.available_permits(), N_WORKERS as usize);
    all_gone(&gone).await;

    // A run: whoever drops its future, such as `select!` or a timeout, ends it.
    let nowhere = || sink_fn(|_| async { Ok(()) });
    let (pipeline, control) = (
        endless(&gone)
            .sink("nowhere", nowhere())
            .build(&resources)?,
        RunControl::default(),
    );
    tokio::select! {
        _ = pipeline.run(&control) => unreachable!("it has no end"),
        _ = control.started() => {}
    }
    all_gone(&gone).await;

    // From elsewhere: a clone of its control drains it.
    let pipeline = endless(&gone)
        .sink("nowhere", nowhere())
        .build(&resources)?;
    let control = RunControl::default();
    let elsewhere = control.clone();
    let run = tokio::spawn(async move { pipeline.run(&elsewhere).await });
    control.started().await;
    control.drain();
    let report = run.await??;
    assert_eq!(report.stopped, StopReason::Drained);
    assert_eq!(report.totals.items_stored, report.totals.documents_done);
    println!("{}", report.to_text());
    Ok(())
}

//! Streams at both ends: order, backpressure, acks, and what dropping leaves behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};

use super::*;
use crate::{
    EdgeLimits, Field, Fields, Item, Outlet, Pipeline, PipelineBuilder, Resources, RunControl,
    RunError, Stage, StageError, StopReason, from_stage, map, output, stage,
};

/// A test that waits longer for what must happen has failed.
const LONG: Duration = Duration::from_secs(20);

fn text(number: usize) -> Item {
    Item::of_text(format!("{number}.txt"), "text")
}

/// Texts without end.
fn endless() -> impl Stream<Item = Item> + Send + 'static {
    stream::iter((0..).map(text))
}

fn fed(source: impl Stream<Item = Item> + Send + 'static) -> PipelineBuilder {
    Pipeline::builder("p").source("texts", from_stream(source).provides([Field::TEXT]))
}

fn read(builder: PipelineBuilder) -> ItemStream {
    match builder.into_stream(&Resources::default()) {
        Ok(stream) => stream,
        Err(error) => panic!("{error}"),
    }
}

fn edge(max_items: usize) -> EdgeLimits {
    EdgeLimits {
        max_items,
        ..EdgeLimits::default()
    }
}

async fn until(reached: impl Fn() -> bool) {
    let spin = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, spin)
        .await
        .expect("it comes to this");
}

/// Counts its drops, and passes items on.
struct Tells(Arc<AtomicUsize>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Stage for Tells {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        outlet.each(batch, |_| Ok(()))
    }
}

#[tokio::test]
async fn what_goes_in_comes_out_in_order_and_the_report_has_it_all() {
    let mut items = read(fed(stream::iter((0..100).map(text))).stage("pass", map(Ok)));
    let mut uris = Vec::new();
    while let Some(item) = items.next().await {
        uris.push(item.expect("nothing fails").origin().uri.to_string());
    }
    let expected: Vec<String> = (0..100).map(|number| format!("{number}.txt")).collect();
    assert_eq!(uris, expected);
    let totals = &items.report().expect("it has ended").totals;
    assert_eq!((totals.items_stored, totals.documents_done), (100, 100));
    assert!(items.next().await.is_none());
}

#[tokio::test]
async fn who_reads_slowly_slows_the_source_to_what_the_edges_hold() {
    const EDGE: usize = 2;
    // In the sink's hand and in its channel.
    const OUT: usize = 2;
    let (polled, worked, taken) =
        <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let (most_polled, most_worked) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let ahead = {
        let taken = Arc::clone(&taken);
        move |counter: &AtomicUsize, most: &AtomicUsize| {
            let n = counter.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(n - taken.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    };
    let source = {
        let (ahead, polled, most) = (ahead.clone(), Arc::clone(&polled), Arc::clone(&most_polled));
        endless().inspect(move |_| ahead(&polled, &most))
    };
    let pass = {
        let (worked, most) = (Arc::clone(&worked), Arc::clone(&most_worked));
        map(move |item| {
            ahead(&worked, &most);
            Ok(item)
        })
    };
    let mut items = read(
        fed(source)
            .node(stage("pass", pass).input("texts").edge(edge(EDGE)))
            .node(output("end").input("pass").edge(edge(EDGE))),
    );
    let lead = || polled.load(Ordering::SeqCst) - taken.load(Ordering::SeqCst);
    for number in 0..200 {
        if number % 50 == 0 {
            // The reader does nothing until all that can be full is full.
            until(|| number == 0 || lead() == OUT + EDGE + EDGE).await;
        }
        // Counted before it is asked for: that makes room at once.
        taken.fetch_add(1, Ordering::SeqCst);
        items.next().await.expect("endless").expect("nothing fails");
    }
    until(|| lead() == OUT + EDGE + EDGE).await;
    assert!(most_polled.load(Ordering::SeqCst) <= OUT + EDGE + EDGE);
    assert!(most_worked.load(Ordering::SeqCst) <= OUT + EDGE);
}

#[tokio::test]
async fn a_stage_that_starves_waits_for_the_stream_that_feeds_it() {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let source = stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let mut items = read(fed(source).stage("pass", map(Ok)));
    for number in 0..10 {
        sender.send(text(number)).await.expect("it is read");
        let item = items
            .next()
            .await
            .expect("it passes")
            .expect("nothing fails");
        assert_eq!(item.label().to_string(), format!("{number}.txt"));
    }
    drop(sender);
    assert!(items.next().await.is_none());
}

#[tokio::test]
async fn an_item_counts_as_stored_when_the_next_one_is_asked_for() {
    let mut items = read(fed(stream::iter((0..3).map(text))));
    let control = items.control().clone();
    let stored = || control.snapshot().map_or(0, |now| now.items_stored);
    for n in 0..3 {
        items.next().await.expect("three").expect("nothing fails");
        assert_eq!(stored(), n);
    }
    assert!(items.next().await.is_none());
    assert_eq!(stored(), 3);
}

#[tokio::test]
async fn what_the_reader_did_not_finish_comes_again_in_the_next_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let again = || read(fed(stream::iter((0..6).map(text))).ledger(folder.path()));
    let mut first = again();
    for _ in 0..3 {
        first.next().await.expect("six").expect("nothing fails");
    }
    first.cancel().await;
    let rest: Vec<String> = again()
        .map(|item| item.expect("nothing fails").label().to_string())
        .collect()
        .await;
    for number in 2..6 {
        assert!(rest.contains(&format!("{number}.txt")), "{rest:?}");
    }
    assert_eq!(again().count().await, 0);
}

#[tokio::test]
async fn two_versions_of_one_document_come_one_after_the_other() {
    let versions = ["one", "two", "three"].map(|text| Item::of_text("a.txt", text));
    let items = read(fed(stream::iter(versions)));
    let texts: Vec<String> = items
        .filter_map(|item| async { Some(item.ok()?.text()?.to_owned()) })
        .collect()
        .await;
    assert_eq!(texts, ["one", "two", "three"]);
}

#[tokio::test]
async fn an_error_that_stops_the_run_is_the_last_that_is_read() {
    struct Breaks;
    impl Stage for Breaks {
        fn process(&mut self, _: Vec<Item>, _: &mut Outlet<'_>) -> Result<(), StageError> {
            Err(StageError::fatal("the disk is gone", "plug it in"))
        }
    }
    let breaks = from_stage(Fields::reads([Field::TEXT]), || Breaks);
    let mut items = read(fed(endless()).stage("breaks", breaks));
    let error: RunError = loop {
        match items.next().await.expect("not before the error") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(
        error.to_string(),
        "pipeline `p` stopped at `breaks`: the disk is gone"
    );
    assert!(items.next().await.is_none());
    assert!(items.report().is_some());
}

#[tokio::test]
async fn draining_ends_the_stream_with_what_is_under_way() {
    let polled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&polled);
    let source = endless().inspect(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let mut items = read(fed(source).stage("pass", map(Ok)));
    let mut n_read = 0;
    while let Some(item) = items.next().await {
        item.expect("nothing fails");
        n_read += 1;
        if n_read == 10 {
            items.control().drain();
        }
    }
    assert_eq!(n_read, polled.load(Ordering::SeqCst));
    assert_eq!(
        items.report().expect("it has ended").stopped,
        StopReason::Drained
    );
}

/// Three workers, each of which tells when it is dropped.
fn told(dropped: &Arc<AtomicUsize>) -> PipelineBuilder {
    let tells = Arc::clone(dropped);
    let make = move || Tells(Arc::clone(&tells));
    let source = endless().chain(stream::pending());
    fed(source).node(
        stage("tells", from_stage(Fields::takes_all(), make))
            .input("texts")
            .workers(3),
    )
}

#[tokio::test]
async fn dropping_the_stream_leaves_no_stage_behind() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut items = read(told(&dropped));
    for _ in 0..5 {
        items.next().await.expect("endless").expect("nothing fails");
    }
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(items);
    until(|| dropped.load(Ordering::SeqCst) == 3).await;
}

#[tokio::test]
async fn cancelling_the_stream_waits_until_nothing_is_left() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut items = read(told(&dropped));
    items.next().await.expect("endless").expect("nothing fails");
    items.cancel().await;
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
    // One that was never read has nothing to end.
    read(told(&Arc::default())).cancel().await;
}

#[tokio::test]
async fn dropping_the_future_of_a_run_leaves_no_stage_behind() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let builder = told(&dropped).sink("nowhere", crate::sink_fn(|_| async { Ok(()) }));
    let pipeline = builder.build(&Resources::default()).expect("sound");
    let control = RunControl::default();
    tokio::select! {
        _ = pipeline.run(&control) => panic!("it has no end"),
        () = until(|| control.snapshot().is_some_and(|now| now.items_stored > 10)) => {}
    }
    until(|| dropped.load(Ordering::SeqCst) == 3).await;
}

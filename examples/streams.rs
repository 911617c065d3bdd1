//! Feeds a pipeline from a stream, and reads it as one.
//!
//! Both ends have backpressure, which is counted here: a source without end
//! makes only as much as is read, and what the edges hold. Run it with
//! `cargo run --example streams`.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt as _, stream};
use pagemill::{EdgeLimits, Field, Item, Pipeline, Resources, from_stream, map, output, stage};

/// What each of the two edges may hold.
const EDGE: EdgeLimits = EdgeLimits {
    max_items: 4,
    max_bytes: 1 << 20,
};

/// Both edges, and what is between the last one and the reader.
const MOST_AHEAD: usize = 2 * EDGE.max_items + 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n_made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_made);
    // Any stream of items: of a queue, a socket, a database's cursor.
    let numbers = stream::iter(0..).map(move |number: u32| {
        counter.fetch_add(1, Ordering::SeqCst);
        Item::of_text(format!("{number}.txt"), &number.to_string())
    });
    let double = map(|item: Item| {
        let doubled = item.text().unwrap_or_default().repeat(2);
        Ok(item.with("text", doubled))
    });
    let double = double.reads([Field::TEXT]).replaces([Field::TEXT]);
    let mut items = Pipeline::builder("doubling")
        .source("numbers", from_stream(numbers).provides([Field::TEXT]))
        .node(stage("double", double).input("numbers").edge(EDGE))
        .node(output("out").input("double").edge(EDGE))
        .into_stream(&Resources::default())?;

    let mut most_ahead = 0;
    for n_read in 0..1000 {
        let item = items.next().await.expect("the numbers have no end")?;
        assert_eq!(item.text(), Some(n_read.to_string().repeat(2).as_str()));
        most_ahead = most_ahead.max(n_made.load(Ordering::SeqCst) - n_read);
    }
    assert!(most_ahead <= MOST_AHEAD, "{most_ahead} ahead");

    // Draining ends the source; what is under way still comes out.
    items.control().drain();
    let rest = items.by_ref().count().await;
    let report = items.report().expect("the stream has ended");
    assert_eq!(1000 + rest, n_made.load(Ordering::SeqCst));
    assert_eq!(report.totals.items_stored as usize, 1000 + rest);
    println!(
        "{}\n  never more than {most_ahead} items ahead",
        report.to_text()
    );
    Ok(())
}

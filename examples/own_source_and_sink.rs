//! Brings documents in from a place of your own, and stores rows in one.
//!
//! Implement `Source` and `Sink`. This source asks a queue and waits while it
//! is empty; this sink writes a document's file when all its rows have come, and
//! says only then that they are durable. Run it with
//! `cargo run --example own_source_and_sink`.

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use pagemill::pipeline::{Delivery, DocumentId, Ended, Sink, SinkInput, Source, SourceOutlet};
use pagemill::{
    Field, Item, ItemError, Pipeline, Resources, RunControl, StageError, flat_map, from_sink,
    from_source,
};
use tokio::sync::mpsc;

/// Takes messages off a queue until it is closed or the run drains.
struct Queue {
    messages: mpsc::Receiver<(String, String)>,
}

impl Source for Queue {
    fn run(
        mut self: Box<Self>,
        outlet: SourceOutlet,
    ) -> BoxFuture<'static, Result<(), StageError>> {
        async move {
            loop {
                // What stays in the queue need not be held here.
                outlet.room().await?;
                let message = tokio::select! {
                    () = outlet.draining() => None,
                    message = self.messages.recv() => message,
                };
                let Some((uri, text)) = message else {
                    return Ok(());
                };
                if uri.contains('/') {
                    let error = ItemError::new("take", "its name is a path");
                    outlet.dead_letter(&uri, &error)?; // The run goes on.
                    continue;
                }
                outlet.send(Item::of_text(uri, &text)).await?;
            }
        }
        .boxed()
    }
}

/// Writes a file for each document.
struct Files {
    folder: PathBuf,
    /// Rows of documents that have not ended, with the promise to store them.
    held: HashMap<DocumentId, Vec<Delivery>>,
}

impl Sink for Files {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        async {
            let made = tokio::fs::create_dir_all(&self.folder).await;
            made.map_err(|error| {
                StageError::caused("cannot make the folder", "name another", error)
            })
        }
        .boxed()
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        for delivery in batch {
            let document = delivery.item.key().document;
            self.held.entry(document).or_default().push(delivery);
        }
        async { Ok(()) }.boxed()
    }

    fn end_document(&mut self, ended: Ended) -> BoxFuture<'_, Result<(), StageError>> {
        async move {
            let origin = ended.document.origin();
            let mut rows = self.held.remove(&origin.id).unwrap_or_default();
            // One that lost rows is done again by the next run; its acks are dropped.
            if !ended.document.has_failed() {
                rows.sort_by_key(|row| row.item.key());
                let lines: Vec<&str> = rows.iter().filter_map(|row| row.item.text()).collect();
                let path = self.folder.join(&*origin.uri);
                let written = tokio::fs::write(path, lines.join("\n")).await;
                written.map_err(|error| {
                    StageError::caused("cannot write a file", "make room on the disk", error)
                })?;
                // From here on a rerun with a ledger passes the document over.
                for row in rows {
                    row.ack.durable();
                }
            }
            ended.ack.durable();
            Ok(())
        }
        .boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        async { Ok(()) }.boxed()
    }
}

async fn run(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (sender, messages) = mpsc::channel(1);
    let lines = flat_map(|item: Item| {
        let lines: Vec<String> = item
            .text()
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect();
        let parts = (1..).zip(lines);
        Ok(parts.map(move |(part, line)| item.clone().with_part(part).with("text", line)))
    });
    let sink = Files {
        folder: folder.to_owned(),
        held: HashMap::new(),
    };
    let pipeline = Pipeline::builder("messages")
        .source(
            "queue",
            from_source(Queue { messages }).provides([Field::TEXT]),
        )
        .stage("lines", lines.reads([Field::TEXT]).replaces([Field::TEXT]))
        .sink("files", from_sink(sink).reads([Field::TEXT]))
        .build(&Resources::default())?;
    let control = RunControl::default();
    let writer = async {
        for (uri, text) in [
            ("a.txt", "the mill\nturns"),
            ("../b.txt", "no"),
            ("c.txt", "fin"),
        ] {
            sender.send((uri.to_owned(), text.to_owned())).await?;
        }
        drop(sender); // The source has no more.
        Ok::<(), mpsc::error::SendError<_>>(())
    };
    let (report, written) = tokio::join!(pipeline.run(&control), writer);
    let report = report?;
    written?;
    assert_eq!(
        (report.totals.documents_done, report.totals.dead_letters),
        (2, 1)
    );
    assert_eq!(
        std::fs::read_to_string(folder.join("a.txt"))?,
        "the mill\nturns"
    );
    println!("{}", report.to_text());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("pagemill-own-sink-{}", std::process::id()));
    let ended = run(&folder).await;
    std::fs::remove_dir_all(&folder)?;
    ended
}

//! The counts of pages, as a run shows them while it goes on.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    BatchPolicy, EdgeLimits, Field, Fields, Item, Outlet, Pipeline, Resources, RunControl,
    Snapshot, Stage, StageError, from_iter, from_stage, sink, sink_fn,
};

const N_PAGES: u32 = 20;

/// Makes pages of each PDF, and passes everything else on.
struct Splits;

impl Stage for Splits {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            if !item.origin().uri.ends_with(".pdf") {
                outlet.send(item)?;
                continue;
            }
            outlet.expect_pages(&item, N_PAGES);
            for page in 1..=N_PAGES {
                outlet.send(item.child().with_page(page).with("text", "a page"))?;
            }
        }
        Ok(())
    }
}

/// Runs the documents over edges of one item; what was seen as each item was
/// stored, and at the end.
async fn snapshots_of(documents: &[&str]) -> Vec<Snapshot> {
    let items: Vec<Item> = documents
        .iter()
        .map(|uri| Item::of_text(*uri, "text"))
        .collect();
    let control = RunControl::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (watched, kept) = (control.clone(), Arc::clone(&seen));
    let store = move |_: Vec<Item>| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(watched.snapshot());
        async { Ok(()) }
    };
    let splits = from_stage(
        Fields::reads([Field::TEXT])
            .replaces([Field::TEXT])
            .one_to_many(),
        || Splits,
    );
    let rows = sink("rows", sink_fn(store))
        .batch(BatchPolicy::of_items(1, 0))
        .edge(EdgeLimits {
            max_items: 1,
            ..EdgeLimits::default()
        });
    let pipeline = Pipeline::builder("p")
        .source("files", from_iter(items).provides([Field::TEXT]))
        .stage("split", splits)
        .node(rows)
        .build(&Resources::default())
        .expect("sound");
    let report = pipeline.run(&control).await.expect("nothing fails");
    let mut seen = std::mem::take(&mut *seen.lock().expect("no thread panicked"));
    seen.push(report.totals);
    seen
}

#[tokio::test]
async fn a_long_document_is_counted_page_by_page_before_any_document_is_done() {
    let seen = snapshots_of(&["long.pdf"]).await;
    let (end, under_way) = seen.split_last().expect("the report is there");
    assert_eq!(under_way.len(), N_PAGES as usize);
    for (n_stored, now) in under_way.iter().enumerate() {
        let n_stored = n_stored as u64;
        assert_eq!(now.documents_done, 0);
        assert_eq!(now.pages_expected, u64::from(N_PAGES));
        assert_eq!(now.items_stored, n_stored);
        assert_eq!(now.items_received, n_stored + 1);
        // Before the first page only the queue lies between stage and sink.
        assert!(now.pages_done <= n_stored + 1, "{} pages", now.pages_done);
        assert!(now.pages_done + 2 >= n_stored, "{} pages", now.pages_done);
    }
    let middle = &under_way[N_PAGES as usize / 2];
    assert!(middle.documents_in_part > 0.3 && middle.documents_in_part < 0.7);
    assert!(middle.pages_per_s > 0.0);
    assert_eq!((end.pages_done, end.pages_expected), (20, 20));
    assert_eq!((end.documents_counted, end.items_received), (1, 20));
    assert!(end.documents_in_part.abs() < 1e-9);
}

#[tokio::test]
async fn documents_without_pages_count_as_one_page_each_when_they_are_done() {
    let seen = snapshots_of(&["a.txt", "long.pdf", "b.txt"]).await;
    let end = seen.last().expect("the report is there");
    assert_eq!((end.pages_done, end.pages_expected), (22, 22));
    assert_eq!((end.documents_counted, end.documents_done), (3, 3));
}

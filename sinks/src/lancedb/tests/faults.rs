//! A commit that breaks off at any step, and runs that follow it.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use super::*;

thread_local! {
    /// The step at which the next commit breaks off, and whether by a panic.
    static BREAK_AT: Cell<Option<(&'static str, bool)>> = const { Cell::new(None) };
}

/// Breaks off if the test asked for it at this step.
pub(in super::super) fn failpoint(step: &str) -> Result<(), StageError> {
    match BREAK_AT.get() {
        Some((at, panics)) if at == step => {
            BREAK_AT.set(None);
            assert!(!panics, "injected at `{step}`");
            Err(StageError::fatal(
                format_args!("injected at `{step}`"),
                "none",
            ))
        }
        _ => Ok(()),
    }
}

const STEPS: [&str; 3] = ["written", "committed", "acked"];

async fn undisturbed(folder: &str) -> Vec<String> {
    let mut sink = open(config(folder), &TEXT_AND_VECTOR)
        .await
        .expect("opened");
    store(&mut sink, pages("a.pdf", 3, "new")).await;
    store(&mut sink, pages("b.pdf", 2, "new")).await;
    sink.finish().await.expect("finished");
    rows(folder).await
}

#[tokio::test]
async fn an_error_at_any_step_of_a_commit_is_made_good_by_trying_again() {
    let whole = tempfile::tempdir().expect("a temporary folder");
    let expected = undisturbed(whole.path().to_str().expect("UTF-8")).await;
    for step in STEPS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().to_str().expect("UTF-8");
        let mut sink = open(config(folder), &TEXT_AND_VECTOR)
            .await
            .expect("opened");
        store(&mut sink, pages("a.pdf", 3, "new")).await;
        store(&mut sink, pages("b.pdf", 2, "new")).await;
        BREAK_AT.set(Some((step, false)));
        let error = sink.idle().await.expect_err("injected");
        assert!(error.to_string().contains(step));
        sink.idle().await.expect("tried again");
        sink.finish().await.expect("finished");
        assert_eq!(rows(folder).await, expected, "broken off at `{step}`");
    }
}

#[tokio::test]
async fn a_process_that_dies_at_any_step_of_a_commit_leaves_what_the_next_one_completes() {
    let whole = tempfile::tempdir().expect("a temporary folder");
    let expected = undisturbed(whole.path().to_str().expect("UTF-8")).await;
    for step in STEPS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().to_str().expect("UTF-8").to_owned();
        let mut sink = open(config(&folder), &TEXT_AND_VECTOR)
            .await
            .expect("opened");
        store(&mut sink, pages("a.pdf", 3, "old")).await;
        sink.finish().await.expect("finished");
        let commit = async {
            let mut sink = open(config(&folder), &TEXT_AND_VECTOR)
                .await
                .expect("opened");
            store(&mut sink, pages("a.pdf", 3, "new")).await;
            store(&mut sink, pages("b.pdf", 2, "new")).await;
            BREAK_AT.set(Some((step, true)));
            let _ = sink.idle().await;
        };
        let died = AssertUnwindSafe(commit).catch_unwind().await;
        assert!(died.is_err(), "`{step}` was not passed");
        // Half a document is never seen.
        let seen = rows(&folder).await;
        assert!(seen.len() == 3 || seen == expected, "{seen:?}");
        assert_eq!(undisturbed(&folder).await, expected, "died at `{step}`");
    }
}

#[tokio::test]
async fn a_document_that_is_gone_loses_its_rows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let mut sink = open(config(folder), &TEXT_AND_VECTOR)
        .await
        .expect("opened");
    store(&mut sink, pages("a.pdf", 3, "new")).await;
    store(&mut sink, pages("b.pdf", 1, "new")).await;
    sink.end_document(removed("a.pdf")).await.expect("taken");
    sink.finish().await.expect("finished");
    assert_eq!(rows(folder).await.len(), 1);
}

#[tokio::test]
async fn the_inventory_names_each_document_and_the_mark_spares_the_reading() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let mut sink = open(config(folder), &TEXT_AND_VECTOR)
        .await
        .expect("opened");
    let empty = sink.inventory(None).await.expect("read");
    assert_eq!(empty, Inventory::Documents(Vec::new()));
    store(&mut sink, pages("a.pdf", 3, "new")).await;
    store(&mut sink, pages("b.pdf", 1, "new")).await;
    sink.finish().await.expect("finished");
    let mark = sink.mark().expect("nobody else wrote");

    let mut sink = open(config(folder), &TEXT_AND_VECTOR)
        .await
        .expect("opened");
    let unchanged = sink.inventory(Some(&mark)).await.expect("read");
    assert_eq!(unchanged, Inventory::Unchanged);
    let Inventory::Documents(mut documents) = sink.inventory(None).await.expect("read") else {
        panic!("all of them");
    };
    documents.sort_by(|a, b| a.uri.cmp(&b.uri));
    let found: Vec<(&str, u64)> = documents.iter().map(|d| (&*d.uri, d.n_rows)).collect();
    assert_eq!(found, [("a.pdf", 3), ("b.pdf", 1)]);
    assert_eq!(documents[0].fingerprint, "0123456789abcdef");
}

#[tokio::test]
async fn the_mark_is_lost_when_somebody_else_writes_and_found_again_by_the_inventory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let mut ours = open(config(folder), &TEXT_AND_VECTOR)
        .await
        .expect("opened");
    ours.inventory(None).await.expect("read");
    store(&mut ours, pages("a.pdf", 1, "new")).await;
    ours.idle().await.expect("committed");
    assert!(ours.mark().is_some());
    let mut theirs = open(config(folder), &TEXT_AND_VECTOR)
        .await
        .expect("opened");
    store(&mut theirs, pages("b.pdf", 1, "new")).await;
    theirs.idle().await.expect("committed");
    store(&mut ours, pages("c.pdf", 1, "new")).await;
    ours.idle().await.expect("committed");
    assert_eq!(ours.mark(), None);
    ours.inventory(None).await.expect("read");
    assert!(ours.mark().is_some());
}

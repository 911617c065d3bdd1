//! Tests the part files of every format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use pagemill_pipeline::testing::{deliver, ended, removed, sink_input};
use pagemill_pipeline::{Document, Field, FieldSet};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::jsonl::{BytesAs, Jsonl};
use crate::parquet::{Compression, Parquet};

mod interrupted;
mod merged;
mod reopened;

use interrupted::{
    a_run_that_is_killed_at_any_step_leaves_whole_documents_and_the_next_one_ends_it,
    what_could_not_be_written_is_written_when_it_is_tried_again,
};
use merged::{
    a_document_in_a_merged_part_is_replaced_and_removed,
    a_document_that_is_removed_after_a_merge_failed_does_not_come_back,
    a_merge_keeps_to_the_limits_of_a_part,
    a_merge_that_is_killed_at_any_step_loses_nothing_and_the_next_run_ends_it,
    a_part_that_others_changed_meanwhile_is_not_merged, small_parts_are_merged_while_nothing_comes,
    small_parts_of_earlier_runs_are_merged_at_the_end_of_a_run,
};
use reopened::{
    a_document_some_rows_of_which_others_deleted_is_made_again, a_file_that_is_no_part_is_named,
    a_folder_that_is_not_there_is_not_made_to_look_at_it, a_second_writer_is_refused,
    of_a_document_in_two_parts_the_later_one_stays,
    the_inventory_is_that_of_the_parts_whatever_became_of_the_manifest,
    the_mark_fits_until_a_part_changes,
};

/// URI, page and text.
type Row = (String, Option<u32>, String);

/// A format, and how a test sees what it wrote.
trait Kind: Format {
    fn make(folder: &Path) -> Self;
    fn rows_of(part: &Path) -> Vec<Row>;
}

impl Kind for Jsonl {
    fn make(_: &Path) -> Self {
        Self::new(BytesAs::Base64)
    }

    fn rows_of(part: &Path) -> Vec<Row> {
        let text = fs::read_to_string(part).expect("the part is there");
        let row = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
            let text = |name: &str| line[name].as_str().expect("is text").to_owned();
            let page = line["page"].as_u64().map(|page| page as u32);
            (text("document"), page, text("text"))
        };
        text.lines().map(row).collect()
    }
}

impl Kind for Parquet {
    fn make(folder: &Path) -> Self {
        Self::new(folder, Compression::Zstd)
    }

    fn rows_of(part: &Path) -> Vec<Row> {
        let file = File::open(part).expect("the part is there");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("is Parquet");
        let mut rows = Vec::new();
        for batch in reader.build().expect("can be read") {
            let batch = batch.expect("can be read");
            let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>();
            let (documents, texts) = (text("document"), text("text"));
            let pages = batch.column_by_name("page").unwrap();
            let pages = pages.as_primitive::<UInt32Type>();
            rows.extend((0..batch.num_rows()).map(|row| {
                let page = pages.is_valid(row).then(|| pages.value(row));
                let (document, text) = (documents.value(row), texts.value(row));
                (document.to_owned(), page, text.to_owned())
            }));
        }
        rows
    }
}

/// A sink that writes when it is told to.
fn sink_of<F: Kind>(folder: &Path) -> PartSink<F> {
    let limits = PartConfig {
        max_wait_ms: u64::MAX,
        ..PartConfig::default()
    };
    limited(folder, limits)
}

fn limited<F: Kind>(folder: &Path, limits: PartConfig) -> PartSink<F> {
    let settings = Settings {
        folder: folder.to_owned(),
        limits,
        durability: Durability::Power,
    };
    PartSink::new(settings, F::make(folder)).expect("the settings are good")
}

fn input() -> SinkInput {
    sink_input(FieldSet::from_iter([Field::TEXT]))
}

async fn opened<F: Kind>(folder: &Path) -> PartSink<F> {
    let mut sink = sink_of(folder);
    sink.open(&input()).await.expect("opens");
    sink
}

fn pages(uri: &str, text: &str, n: u32) -> Vec<Item> {
    let page = |page| Item::of_text(uri, text).with_page(page);
    (1..=n).map(page).collect()
}

fn rows_for(uri: &str, text: &str, n: u32) -> Vec<Row> {
    let row = |page| (uri.to_owned(), Some(page), text.to_owned());
    (1..=n).map(row).collect()
}

/// Hands a whole document over.
async fn send<F: Kind>(
    sink: &mut PartSink<F>,
    items: Vec<Item>,
) -> (Arc<Document>, Result<(), StageError>) {
    let (deliveries, document) = deliver(items);
    let document = document.expect("there are items");
    let mut done = sink.store(deliveries).await;
    // A sink that cannot store keeps what it has; the end comes all the same.
    let is_ended = sink.end_document(ended(&document)).await;
    if done.is_ok() {
        done = is_ended;
    }
    (document, done)
}

async fn store<F: Kind>(folder: &Path, documents: &[(&str, &str, u32)]) {
    let mut sink = opened::<F>(folder).await;
    for (uri, text, n) in documents {
        send(&mut sink, pages(uri, text, *n))
            .await
            .1
            .expect("stored");
    }
    sink.finish().await.expect("finishes");
}

/// The names of files, but for the lock and the one that names the pipeline.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let is_content = |name: &String| ![".lock", ".pipeline"].contains(&name.as_str());
    entries.map(name).filter(is_content).collect()
}

fn part<F: Kind>(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("part-{number:08}.{}", F::EXTENSION))
}

/// The rows of all parts, sorted.
fn rows<F: Kind>(folder: &Path) -> Vec<Row> {
    let parts = names(folder)
        .into_iter()
        .filter(|name| name.starts_with("part-"));
    let mut rows: Vec<Row> = parts
        .flat_map(|name| F::rows_of(&folder.join(name)))
        .collect();
    rows.sort();
    rows
}

/// The documents that a sink says it holds, with their numbers of rows.
async fn held<F: Kind>(folder: &Path) -> BTreeMap<String, u64> {
    match opened::<F>(folder).await.inventory(None).await {
        Ok(Inventory::Documents(documents)) => {
            let counted = documents.into_iter().map(|d| (d.uri, d.n_rows));
            counted.collect()
        }
        other => panic!("{other:?} is no list"),
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

macro_rules! for_each_format {
    ($($name:ident)*) => {
        mod as_jsonl {
            $(#[tokio::test] async fn $name() { super::$name::<super::Jsonl>().await; })*
        }
        mod as_parquet {
            $(#[tokio::test] async fn $name() { super::$name::<super::Parquet>().await; })*
        }
    };
}

for_each_format! {
    a_part_holds_whole_documents_and_appears_when_they_are_complete
    a_part_is_due_by_rows_by_bytes_and_by_time
    a_document_that_comes_again_is_replaced_in_its_part
    a_document_that_is_gone_or_empty_leaves_and_an_empty_part_goes
    a_document_that_failed_is_left_out_and_its_old_rows_stay
    a_document_of_which_all_was_set_aside_keeps_its_old_rows
    a_later_arrival_takes_the_place_of_one_that_waits
    a_large_document_waits_in_a_file
    the_inventory_is_that_of_the_parts_whatever_became_of_the_manifest
    the_mark_fits_until_a_part_changes
    a_document_some_rows_of_which_others_deleted_is_made_again
    a_folder_that_is_not_there_is_not_made_to_look_at_it
    a_second_writer_is_refused
    of_a_document_in_two_parts_the_later_one_stays
    a_file_that_is_no_part_is_named
    what_could_not_be_written_is_written_when_it_is_tried_again
    a_run_that_is_killed_at_any_step_leaves_whole_documents_and_the_next_one_ends_it
    small_parts_are_merged_while_nothing_comes
    small_parts_of_earlier_runs_are_merged_at_the_end_of_a_run
    a_document_in_a_merged_part_is_replaced_and_removed
    a_merge_keeps_to_the_limits_of_a_part
    a_part_that_others_changed_meanwhile_is_not_merged
    a_merge_that_is_killed_at_any_step_loses_nothing_and_the_next_run_ends_it
    a_document_that_is_removed_after_a_merge_failed_does_not_come_back
}

async fn a_part_holds_whole_documents_and_appears_when_they_are_complete<F: Kind>() {
    let folder = folder();
    let path = folder.path().join("new/rows");
    let mut sink = opened::<F>(&path).await;
    let (a, _) = send(&mut sink, pages("a", "mill", 2)).await;
    let (deliveries, b) = deliver(pages("b", "wheel", 2));
    sink.store(deliveries).await.expect("stored");
    assert!(names(&path).is_empty());
    sink.idle().await.expect("written");
    assert_eq!(F::rows_of(&part::<F>(&path, 1)), rows_for("a", "mill", 2));
    assert_eq!(a.n_stored(), 2);
    let b = b.expect("there are items");
    assert_eq!(b.n_stored(), 0);
    sink.end_document(ended(&b)).await.expect("ended");
    sink.finish().await.expect("finishes");
    assert_eq!(F::rows_of(&part::<F>(&path, 2)), rows_for("b", "wheel", 2));
    assert_eq!(b.n_stored(), 2);
    drop(sink);
    assert!(!a.has_failed() && !b.has_failed());
    let first = format!("part-00000001.{}", F::EXTENSION);
    let second = format!("part-00000002.{}", F::EXTENSION);
    let expected = [".documents".to_owned(), first, second];
    assert_eq!(names(&path), BTreeSet::from(expected));
}

async fn a_part_is_due_by_rows_by_bytes_and_by_time<F: Kind>() {
    let patient = PartConfig {
        max_rows: 1000,
        max_bytes: 1 << 30,
        max_wait_ms: u64::MAX,
    };
    let limits = [
        (
            PartConfig {
                max_rows: 3,
                ..patient
            },
            2,
        ),
        (
            PartConfig {
                max_bytes: 500,
                ..patient
            },
            2,
        ),
        (
            PartConfig {
                max_wait_ms: 0,
                ..patient
            },
            4,
        ),
        (patient, 1),
    ];
    for (limits, n_parts) in limits {
        let folder = folder();
        let mut sink = limited::<F>(folder.path(), limits);
        sink.open(&input()).await.expect("opens");
        for uri in ["a", "b", "c", "d"] {
            send(&mut sink, pages(uri, "mill", 2))
                .await
                .1
                .expect("stored");
        }
        sink.finish().await.expect("finishes");
        assert_eq!(names(folder.path()).len(), n_parts + 1, "{limits:?}");
        assert_eq!(rows::<F>(folder.path()).len(), 8);
    }
}

async fn a_document_that_comes_again_is_replaced_in_its_part<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "old", 2), ("b", "old", 1)]).await;
    store::<F>(path, &[("c", "old", 1)]).await;
    let untouched = fs::metadata(part::<F>(path, 2))
        .unwrap()
        .modified()
        .unwrap();
    store::<F>(path, &[("a", "new", 3), ("d", "new", 1)]).await;
    let mut first = F::rows_of(&part::<F>(path, 1));
    first.sort();
    let expected = [rows_for("a", "new", 3), rows_for("b", "old", 1)].concat();
    assert_eq!(first, expected);
    let second = fs::metadata(part::<F>(path, 2)).unwrap();
    assert_eq!(second.modified().unwrap(), untouched);
    assert_eq!(F::rows_of(&part::<F>(path, 3)), rows_for("d", "new", 1));
    let n_rows = [("a", 3), ("b", 1), ("c", 1), ("d", 1)];
    let n_rows = n_rows.map(|(uri, n)| (uri.to_owned(), n));
    assert_eq!(held::<F>(path).await, BTreeMap::from(n_rows));
}

async fn a_document_that_is_gone_or_empty_leaves_and_an_empty_part_goes<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "old", 2), ("b", "old", 1), ("c", "old", 1)]).await;
    let mut sink = opened::<F>(path).await;
    let gone = removed("a");
    let document = Arc::clone(&gone.document);
    sink.end_document(gone).await.expect("ended");
    // Nobody has heard of this one.
    sink.end_document(removed("x")).await.expect("ended");
    let empty = empty("b");
    sink.end_document(ended(&empty)).await.expect("ended");
    sink.idle().await.expect("written");
    assert_eq!(rows::<F>(path), rows_for("c", "old", 1));
    sink.end_document(removed("c")).await.expect("ended");
    sink.finish().await.expect("finishes");
    drop(sink);
    assert!(!document.has_failed() && !empty.has_failed());
    assert_eq!(names(path), BTreeSet::from([".documents".to_owned()]));
    assert!(held::<F>(path).await.is_empty());
}

/// A document all of whose items went to another sink.
fn empty(uri: &str) -> Arc<Document> {
    let (deliveries, document) = deliver(pages(uri, "", 1));
    for delivery in deliveries {
        delivery.ack.durable();
    }
    document.expect("there is an item")
}

async fn a_document_that_failed_is_left_out_and_its_old_rows_stay<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "old", 2)]).await;
    let mut sink = opened::<F>(path).await;
    let (mut deliveries, document) = deliver(pages("a", "new", 2));
    drop(deliveries.pop());
    sink.store(deliveries).await.expect("stored");
    let document = document.expect("there are items");
    sink.end_document(ended(&document)).await.expect("ended");
    sink.finish().await.expect("finishes");
    assert_eq!(document.n_stored(), 0);
    assert_eq!(rows::<F>(path), rows_for("a", "old", 2));
}

async fn a_document_of_which_all_was_set_aside_keeps_its_old_rows<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "old", 2)]).await;
    let mut sink = opened::<F>(path).await;
    let document = empty("a");
    sink.lock().end(Ended {
        has_lost_items: true,
        ..ended(&document)
    });
    sink.finish().await.expect("finishes");
    drop(sink);
    assert!(!document.has_failed());
    assert_eq!(rows::<F>(path), rows_for("a", "old", 2));
}

async fn a_later_arrival_takes_the_place_of_one_that_waits<F: Kind>() {
    let folder = folder();
    let mut sink = opened::<F>(folder.path()).await;
    let (first, _) = send(&mut sink, pages("a", "first", 3)).await;
    let (second, _) = send(&mut sink, pages("a", "second", 1)).await;
    sink.finish().await.expect("finishes");
    assert_eq!(rows::<F>(folder.path()), rows_for("a", "second", 1));
    assert_eq!((first.n_stored(), second.n_stored()), (3, 1));
}

async fn a_large_document_waits_in_a_file<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    let mut sink = opened::<F>(path).await;
    sink.lock().spill_bytes = 1;
    let (mut deliveries, a) = deliver(pages("a", "mill", 3));
    let a = a.expect("there are items");
    for page in deliveries.split_off(1) {
        sink.store(vec![page]).await.expect("stored");
    }
    assert_eq!(names(path).len(), 2);
    // This one stays in memory.
    sink.lock().spill_bytes = usize::MAX;
    sink.store(deliveries).await.expect("stored");
    let (deliveries, b) = deliver(pages("b", "mill", 1));
    sink.lock().spill_bytes = 1;
    sink.store(deliveries).await.expect("stored");
    assert_eq!(names(path).len(), 3);
    drop(sink);
    assert!(a.has_failed() && b.expect("there is an item").has_failed());

    // What a killed run leaves is removed.
    fs::write(path.join(".rows-00000009.partial"), "half a ro").unwrap();
    let mut sink = opened::<F>(path).await;
    assert!(names(path).is_empty());
    sink.lock().spill_bytes = 1;
    let (deliveries, document) = deliver(pages("a", "mill", 3));
    for page in deliveries {
        sink.store(vec![page]).await.expect("stored");
    }
    let document = document.expect("there are items");
    sink.end_document(ended(&document)).await.expect("ended");
    sink.finish().await.expect("finishes");
    assert_eq!(document.n_stored(), 3);
    assert_eq!(rows::<F>(path), rows_for("a", "mill", 3));
    assert_eq!(names(path).len(), 2);
}

#[tokio::test]
async fn a_file_in_the_place_of_the_folder_is_refused() {
    let folder = folder();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, "{}\n").unwrap();
    let error = sink_of::<Jsonl>(&path).open(&input()).await;
    let error = error.expect_err("a file is in the way");
    let message = format!("`{}` is a file, and rows go to a folder", path.display());
    assert_eq!(error.to_string(), message);
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let refused = |folder: &str, limits: PartConfig| {
        let settings = Settings {
            folder: folder.into(),
            limits,
            durability: Durability::Process,
        };
        let made = PartSink::new(settings, Jsonl::new(BytesAs::Skip));
        made.err().expect("refused").to_string()
    };
    let limits = PartConfig::default();
    assert_eq!(refused("", limits), "`path` must not be empty");
    let zero = "`part` must let at least one row and one byte wait";
    assert_eq!(
        refused(
            "a",
            PartConfig {
                max_rows: 0,
                ..limits
            }
        ),
        zero
    );
    assert_eq!(
        refused(
            "a",
            PartConfig {
                max_bytes: 0,
                ..limits
            }
        ),
        zero
    );
}

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, UInt32Type};
use futures::TryStreamExt;
use half::f16;
use lancedb::query::ExecutableQuery;
use pagemill_pipeline::testing::{deliver, ended, removed, sink_input};
use pagemill_pipeline::{FieldSet, FieldType, Value, VectorData, Vectors, Word};

use super::*;

mod faults;
mod read_back;
mod search;
mod vectors;

pub(super) use faults::failpoint;

fn config(uri: &str) -> LanceDbConfig {
    LanceDbConfig {
        uri: uri.to_owned(),
        table: Some("pages".into()),
        text_index: true,
        index: IndexConfig::default(),
        durability: Durability::Power,
        commit: CommitConfig::default(),
    }
}

fn input(fields: impl IntoIterator<Item = Field>) -> SinkInput {
    sink_input(FieldSet::from_iter(fields))
}

async fn open(config: LanceDbConfig, fields: &[Field]) -> Result<LanceDb, StageError> {
    let mut sink = LanceDb::new(config).expect("the settings are good");
    sink.open(&input(fields.iter().cloned())).await?;
    Ok(sink)
}

async fn store(sink: &mut LanceDb, items: Vec<Item>) -> Arc<Document> {
    let (deliveries, document) = deliver(items);
    let document = document.expect("there are items");
    sink.store(deliveries).await.expect("stored");
    sink.end_document(ended(&document)).await.expect("ended");
    document
}

/// Writes what has come of a document, as if it were large.
async fn spill(sink: &mut LanceDb, key: usize) {
    let opened = sink.opened.as_mut().expect("opened");
    let rows = sink.coming.get_mut(&key).expect("some have come");
    rows.spill(opened).await.expect("written");
}

/// `n` pages of a document, each saying `word`.
fn pages(uri: &str, n: u32, word: &str) -> Vec<Item> {
    let document = Item::of_text(uri, "");
    let page = |page| {
        let vector = Vectors::single(vec![page as f32, 1.0, 0.0]).expect("three numbers");
        document
            .child()
            .with_page(page)
            .with("text", format!("{word} on page {page}"))
            .with("vector", vector)
    };
    (1..=n).map(page).collect()
}

/// `uri#page: text` of each row, in order.
async fn rows(folder: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in read(folder).await {
        let text = |name: &str| {
            let column = batch.column_by_name(name).expect("the column is there");
            column.as_string::<i32>().clone()
        };
        let (uri, text) = (text("document"), text("text"));
        let pages = batch.column_by_name("page").expect("the column is there");
        let pages = pages.as_primitive::<UInt32Type>();
        for row in 0..batch.num_rows() {
            let (uri, page, text) = (uri.value(row), pages.value(row), text.value(row));
            rows.push(format!("{uri}#{page}: {text}"));
        }
    }
    rows.sort();
    rows
}

/// Reads as any LanceDB client does.
async fn read(folder: &str) -> Vec<RecordBatch> {
    let database = lancedb::connect(folder).execute().await.expect("connects");
    let table = database.open_table("pages").execute().await.expect("opens");
    let stream = table.query().execute().await.expect("reads");
    stream.try_collect().await.expect("reads")
}

const TEXT_AND_VECTOR: [Field; 2] = [Field::TEXT, Field::VECTOR];

#[tokio::test]
async fn a_rerun_replaces_the_rows_of_a_document_and_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    // A name that a URL would have to escape.
    let uri = format!("{}/my data #1 ü", folder.path().display());
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    let a = store(&mut sink, pages("a.pdf", 3, "first")).await;
    let b = store(&mut sink, pages("b.pdf", 1, "first")).await;
    assert_eq!((a.n_stored(), b.n_stored()), (0, 0));
    sink.finish().await.expect("finishes");
    assert_eq!((a.n_stored(), b.n_stored()), (3, 1));
    assert_eq!(
        rows(&uri).await,
        [
            "a.pdf#1: first on page 1",
            "a.pdf#2: first on page 2",
            "a.pdf#3: first on page 3",
            "b.pdf#1: first on page 1"
        ]
    );

    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 2, "second")).await;
    sink.finish().await.expect("finishes");
    assert_eq!(
        rows(&uri).await,
        [
            "a.pdf#1: second on page 1",
            "a.pdf#2: second on page 2",
            "b.pdf#1: first on page 1"
        ]
    );
}

#[tokio::test]
async fn a_table_is_looked_at_without_being_made_or_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = format!("{}/new", folder.path().display());
    let peek = async |mark: Option<&str>| {
        let mut sink = LanceDb::new(config(&uri)).expect("the settings are good");
        let held = sink.peek(&input(TEXT_AND_VECTOR), mark).await;
        held.expect("it is looked at")
    };
    assert_eq!(peek(None).await, Inventory::Documents(Vec::new()));
    assert!(!Path::new(&uri).exists());
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    sink.inventory(None).await.expect("it says what it holds");
    store(&mut sink, pages("a.pdf", 3, "first")).await;
    sink.finish().await.expect("finishes");
    let mark = sink.mark();
    assert_eq!(peek(mark.as_deref()).await, Inventory::Unchanged);
    let Inventory::Documents(held) = peek(None).await else {
        panic!("it is read");
    };
    let held: Vec<_> = held.iter().map(|held| (&*held.uri, held.n_rows)).collect();
    assert_eq!(held, [("a.pdf", 3)]);
}

#[tokio::test]
async fn every_type_of_field_is_read_back_and_pixels_are_no_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let fields = [
        Field::DOCUMENT,
        Field::IMAGE,
        Field::TEXT,
        Field::VECTOR,
        Field::VECTORS,
        Field::THUMBNAIL,
        Field::WORDS,
        Field::new("is_scan", FieldType::Bool),
        Field::new("n_words", FieldType::Integer),
        Field::new("quality", FieldType::Float),
        Field::new("mine", FieldType::Custom),
    ];
    let mut sink = open(config(&uri), &fields).await.expect("opens");
    let word = Word {
        text: "mill".into(),
        x0: 1.0,
        y0: 2.0,
        x1: 3.0,
        y1: 4.0,
    };
    let numbers = [1.0, 0.5, 0.25, 2.0].map(f16::from_f32).to_vec();
    let full = Item::of_document("a.pdf", "application/pdf", b"%PDF".to_vec())
        .with_page(1)
        .with("text", "the mill turns")
        .with("vector", Vectors::single(vec![0.5, 0.25]).expect("two"))
        .with(
            "vectors",
            Vectors::new(VectorData::F16(numbers), 2).expect("two by two"),
        )
        .with(
            "thumbnail",
            Value::Bytes(bytes::Bytes::from_static(b"\xff\xd8jpeg")),
        )
        .with("words", vec![word])
        .with("is_scan", true)
        .with("n_words", 3_i64)
        .with("quality", 0.75);
    let bare = full.child().with_page(2);
    store(&mut sink, vec![full, bare]).await;
    sink.finish().await.expect("finishes");

    let batches = read(&uri).await;
    assert_eq!(batches.len(), 1);
    let row = batches[0].slice(0, 1);
    let column = |name: &str| row.column_by_name(name).expect("the column is there");
    let names: Vec<_> = row
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    let fixed =
        "document_id document content_hash media_type fingerprint pipeline source page part";
    let own = "is_scan n_words quality text thumbnail vector vectors words";
    assert_eq!(names.join(" "), format!("{fixed} {own} document_rows"));
    assert_eq!(
        column("thumbnail").as_binary::<i32>().value(0),
        b"\xff\xd8jpeg"
    );
    assert_eq!(
        column("media_type").as_string::<i32>().value(0),
        "application/pdf"
    );
    assert_eq!(
        column("fingerprint").as_string::<i32>().value(0),
        "0123456789abcdef"
    );
    let vector = column("vector").as_fixed_size_list().value(0);
    assert_eq!(vector.as_primitive::<Float32Type>().values(), &[0.5, 0.25]);
    let vectors = column("vectors").as_list::<i32>().value(0);
    assert_eq!(vectors.len(), 2);
    let words = column("words").as_list::<i32>().value(0);
    let words = words.as_struct();
    assert_eq!(words.column(0).as_string::<i32>().value(0), "mill");
    let y1 = words.column(4).as_primitive::<Float32Type>();
    assert_eq!(y1.values(), &[4.0]);

    let bare = batches[0].slice(1, 1);
    for name in own.split(' ') {
        let column = bare.column_by_name(name).expect("the column is there");
        assert!(column.is_null(0), "`{name}` is not null: {column:?}");
    }
}

#[tokio::test]
async fn a_document_that_failed_is_not_stored_and_keeps_its_old_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 1, "old")).await;
    sink.idle().await.expect("commits");

    let (mut deliveries, document) = deliver(pages("a.pdf", 3, "new"));
    let document = document.expect("there are items");
    // A page is lost on its way: its promise is broken.
    drop(deliveries.pop());
    sink.store(deliveries).await.expect("stored");
    sink.end_document(ended(&document)).await.expect("ended");
    sink.finish().await.expect("finishes");
    assert!(document.has_failed());
    assert_eq!(document.n_stored(), 0);
    assert_eq!(rows(&uri).await, ["a.pdf#1: old on page 1"]);
}

#[tokio::test]
async fn a_document_that_is_still_coming_is_not_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 1, "whole")).await;
    let (deliveries, document) = deliver(pages("b.pdf", 2, "half"));
    sink.store(deliveries).await.expect("stored");
    // Even when part of it had to leave memory.
    let key = address(&document.expect("there are items"));
    spill(&mut sink, key).await;
    assert_eq!(sink.coming[&key].spilled.len(), 1);
    sink.finish().await.expect("finishes");
    assert_eq!(rows(&uri).await, ["a.pdf#1: whole on page 1"]);
}

#[tokio::test]
async fn rows_that_left_memory_early_come_with_their_document() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    let (mut first, document) = deliver(pages("a.pdf", 4, "long"));
    let document = document.expect("there are items");
    let second = first.split_off(3);
    sink.store(first).await.expect("stored");
    spill(&mut sink, address(&document)).await;
    sink.store(second).await.expect("stored");
    sink.end_document(ended(&document)).await.expect("ended");
    sink.finish().await.expect("finishes");
    assert_eq!(document.n_stored(), 4);
    assert_eq!(rows(&uri).await.len(), 4);
}

#[tokio::test]
async fn a_full_batch_is_committed_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut config = config(&uri);
    config.commit.max_rows = 3;
    let mut sink = open(config, &TEXT_AND_VECTOR).await.expect("opens");
    let a = store(&mut sink, pages("a.pdf", 2, "one")).await;
    assert_eq!(a.n_stored(), 0);
    let b = store(&mut sink, pages("b.pdf", 1, "two")).await;
    assert_eq!((a.n_stored(), b.n_stored()), (2, 1));
    assert_eq!(rows(&uri).await.len(), 3);
}

#[tokio::test]
async fn two_writers_keep_each_others_documents_and_store_a_shared_one_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut one = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    let mut two = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    for (n_pages, word) in [(3, "early"), (2, "late")] {
        store(&mut one, pages("a.pdf", n_pages, word)).await;
        store(&mut one, pages("shared.pdf", n_pages, word)).await;
        store(&mut two, pages("b.pdf", n_pages, word)).await;
        store(&mut two, pages("shared.pdf", n_pages, word)).await;
        let (one, two) = tokio::join!(one.commit(), two.commit());
        one.expect("commits");
        two.expect("commits");
        let rows = rows(&uri).await;
        assert_eq!(rows.len(), 3 * n_pages as usize, "{rows:#?}");
        assert!(rows.iter().all(|row| row.contains(word)), "{rows:#?}");
    }
    one.finish().await.expect("finishes");
    two.finish().await.expect("finishes");
    assert_eq!(rows(&uri).await.len(), 6);
}

#[tokio::test]
async fn many_small_commits_are_put_together_in_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    for n in 0..20 {
        store(&mut sink, pages(&format!("{n}.pdf"), 1, "small")).await;
        sink.commit().await.expect("commits");
    }
    sink.finish().await.expect("finishes");
    assert_eq!(rows(&uri).await.len(), 20);
    let dataset = lance::Dataset::open(&format!("{uri}/pages.lance")).await;
    // The first is in the index's first part, and is not put together with the others.
    assert_eq!(dataset.expect("opens").count_fragments(), 2);
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("3.pdf", 2, "again")).await;
    sink.finish().await.expect("finishes");
    assert_eq!(rows(&uri).await.len(), 21);
}

#[tokio::test]
async fn vectors_that_come_late_get_their_column_then() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    let mut plain = pages("a.pdf", 1, "plain");
    plain[0].remove("vector");
    store(&mut sink, plain).await;
    sink.commit().await.expect("commits");
    assert!(read(&uri).await[0].column_by_name("vector").is_none());
    store(&mut sink, pages("b.pdf", 1, "with vector")).await;
    sink.finish().await.expect("finishes");
    let batches = read(&uri).await;
    let nulls = |batch: &RecordBatch| batch.column_by_name("vector").map(Array::null_count);
    assert_eq!(batches.iter().filter_map(nulls).sum::<usize>(), 1);
    assert_eq!(rows(&uri).await.len(), 2);
}

#[tokio::test]
async fn a_document_without_rows_loses_its_old_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 2, "old")).await;
    store(&mut sink, pages("b.pdf", 1, "old")).await;
    sink.commit().await.expect("commits");
    let (deliveries, document) = deliver(pages("a.pdf", 1, ""));
    for delivery in deliveries {
        delivery.ack.durable();
    }
    let document = document.expect("there are items");
    sink.end_document(ended(&document)).await.expect("ended");
    sink.finish().await.expect("finishes");
    assert_eq!(rows(&uri).await, ["b.pdf#1: old on page 1"]);
}

fn problem(error: &StageError) -> String {
    format!("{error}\nhint: {}", error.hint().unwrap_or_default())
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_refused_with_all_that_differs() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 1, "old")).await;
    sink.finish().await.expect("finishes");

    let other = [
        Field::new("text", FieldType::Bytes),
        Field::new("vector", FieldType::MultiVector),
        Field::new("caption", FieldType::Text),
    ];
    let error = open(config(&uri), &other).await.err().expect("refused");
    assert_eq!(
        problem(&error),
        "table `pages` does not fit this pipeline: it has no `caption`; its `text` is text, this \
         pipeline makes bytes; its `vector` is a vector of 3 floats, this pipeline makes multi-vector\n\
         hint: name another `table`, or remove this one so that it is made anew"
    );

    // Columns that are not made now may stay: they are null in new rows.
    let mut sink = open(config(&uri), &[Field::TEXT]).await.expect("opens");
    store(&mut sink, pages("b.pdf", 1, "new")).await;
    sink.finish().await.expect("finishes");
    assert_eq!(rows(&uri).await.len(), 2);

    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    let longer = Vectors::single(vec![0.5; 8]).expect("eight numbers");
    let item = Item::of_text("c.pdf", "new")
        .with_page(4)
        .with("vector", longer);
    let (deliveries, document) = deliver([item]);
    sink.store(deliveries).await.expect("stored");
    let document = document.expect("there are items");
    sink.end_document(ended(&document)).await.expect("ended");
    let error = sink.finish().await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "table `pages` does not fit this pipeline: its `vector` is a vector of 3 floats, \
         `c.pdf#4` has 8 numbers a vector"
    );
    assert_eq!(document.n_stored(), 0);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_found_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let uri = file.join("data").display().to_string();
    let error = open(config(&uri), &[Field::TEXT])
        .await
        .err()
        .expect("refused");
    assert_eq!(
        problem(&error),
        format!(
            "cannot write to the folder `{uri}`\n\
             hint: set `uri` to a folder that this user may write to"
        )
    );
}

#[tokio::test]
async fn a_field_with_the_name_of_a_fixed_column_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let page = Field::new("page", FieldType::Text);
    let error = open(config(&uri), &[page]).await.err().expect("refused");
    assert_eq!(
        error.to_string(),
        "the field `page` has the name of a column that every row has"
    );
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let refused = |change: fn(&mut LanceDbConfig)| {
        let mut config = config("data");
        change(&mut config);
        LanceDb::new(config).err().expect("refused").to_string()
    };
    assert_eq!(refused(|c| c.uri.clear()), "`uri` must not be empty");
    assert_eq!(
        refused(|c| c.table = Some("a/b".into())),
        "`table` `a/b` is no name for a table"
    );
    assert_eq!(
        refused(|c| c.commit.max_rows = 0),
        "`commit` must let at least one row and one byte wait"
    );
}

//! Rows that are read back equal those that were stored.

use bytes::Bytes;
use pagemill_pipeline::{FoundRow, RowReader};

use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};

use super::*;

fn fields() -> Vec<Field> {
    vec![
        Field::TEXT,
        Field::WORDS,
        Field::VECTOR,
        Field::VECTORS,
        Field::THUMBNAIL,
        Field::new("flag", FieldType::Bool),
        Field::new("whole", FieldType::Integer),
        Field::new("number", FieldType::Float),
    ]
}

fn word(text: &str) -> Word {
    Word {
        text: text.into(),
        x0: 0.1,
        y0: -0.0,
        x1: f32::MAX,
        y1: 1e-30,
    }
}

/// Items that have all fields, none, and empty ones.
fn items(uri: &str) -> Vec<Item> {
    let document = Item::of_text(uri, "");
    let page = |page| document.child().with_page(page);
    let f16s = |numbers: &[f32]| {
        numbers
            .iter()
            .map(|n| f16::from_f32(*n))
            .collect::<Vec<_>>()
    };
    let vectors = Vectors::new(VectorData::F16(f16s(&[1.0, 0.1, -2.0, 65504.0])), 2);
    let full = page(1)
        .with("text", "Mühle\0\n")
        .with("words", vec![word("the"), word("")])
        .with(
            "vector",
            Vectors::single(vec![0.1, f32::MIN_POSITIVE, -0.0]).unwrap(),
        )
        .with("vectors", vectors.unwrap())
        .with("thumbnail", Value::Bytes(Bytes::from_static(&[0, 255, 7])))
        .with("flag", false)
        .with("whole", i64::MIN)
        .with("number", 0.1_f64);
    let empty = page(2)
        .with("text", "")
        .with("words", Vec::<Word>::new())
        .with("thumbnail", Value::Bytes(Bytes::new()))
        .with("flag", true)
        .with("number", f64::INFINITY);
    let part = page(3)
        .with_part(2)
        .with("text", "a part")
        .with("words", vec![word("x")]);
    vec![full, empty, page(3).with_part(1), part, document.child()]
}

/// The fields of an item, to compare them.
fn shown<'a>(values: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Vec<String> {
    let shown = values.into_iter();
    let mut shown: Vec<String> = shown
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    shown.sort();
    shown
}

async fn find(reader: &dyn RowReader, uri: &str) -> Vec<FoundRow> {
    let fields = FieldSet::from_iter(fields());
    let found = reader
        .find(DocumentId::of(uri), &fields)
        .await
        .expect("reads");
    let mut found = found.expect("all columns are there");
    found.sort_by_key(|row| row.key);
    found
}

#[tokio::test]
async fn every_value_is_read_back_as_it_was_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &fields()).await.expect("opens");
    assert!(sink.row_reader().is_none());
    for name in ["a.pdf", "b.pdf"] {
        store(&mut sink, items(name)).await;
    }
    sink.finish().await.expect("finishes");
    let reader = sink.row_reader().expect("there is a table");
    let rows = find(&*reader, "b.pdf").await;
    let mut expected = items("b.pdf");
    expected.sort_by_key(Item::key);
    assert_eq!(rows.len(), expected.len());
    let values = reader.read(&rows, &FieldSet::from_iter(fields())).await;
    let values = values.expect("reads");
    for ((row, values), item) in rows.iter().zip(&values).zip(&expected) {
        assert_eq!(row.key, item.key());
        assert_eq!(row.content_hash, item.origin().content_hash.to_string());
        let values = values.iter().map(|(name, value)| (name.as_str(), value));
        assert_eq!(shown(values), shown(item.fields()), "{}", item.label());
    }
    // Only what is asked for, and only of the document.
    let text = FieldSet::from_iter([Field::TEXT]);
    let values = reader.read(&rows[1..2], &text).await.expect("reads");
    assert_eq!(values[0].len(), 1);
    assert!(find(&*reader, "c.pdf").await.is_empty());
}

#[tokio::test]
async fn a_field_without_a_column_cannot_be_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 2, "first")).await;
    sink.finish().await.expect("finishes");
    let reader = sink.row_reader().expect("there is a table");
    let id = DocumentId::of("a.pdf");
    for (field, is_there) in [
        (Field::TEXT, true),
        (Field::VECTORS, false), // It may have been there before.
        (Field::WORDS, false),
        (Field::new("text", FieldType::Integer), false),
    ] {
        let found = reader.find(id, &FieldSet::from_iter([field.clone()])).await;
        assert_eq!(found.expect("reads").is_some(), is_there, "{field:?}");
    }
}

#[tokio::test]
async fn rows_are_found_again_after_others_were_replaced_and_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    for number in 0..20 {
        store(&mut sink, pages(&format!("{number}.pdf"), 2, "first")).await;
        sink.idle().await.expect("commits");
    }
    let reader = sink.row_reader().expect("there is a table");
    let rows = find_text(&*reader, "7.pdf").await;
    store(&mut sink, pages("3.pdf", 5, "second")).await;
    sink.finish().await.expect("commits and compacts");
    let others = lancedb::connect(&uri).execute().await.expect("connects");
    let others = others.open_table("pages").execute().await.expect("opens");
    let dataset = others
        .dataset()
        .expect("a local table")
        .get()
        .await
        .expect("opened");
    let mut dataset = Dataset::clone(&dataset);
    let options = CompactionOptions::default();
    compact_files(&mut dataset, options, None)
        .await
        .expect("compacts");
    let now = lancedb::table::Duration::seconds(0);
    dataset
        .cleanup_old_versions(now, Some(true), Some(false))
        .await
        .expect("removes");
    let values = reader
        .read(&rows, &FieldSet::from_iter([Field::TEXT]))
        .await;
    let values = values.expect("finds them in the latest version");
    let texts: Vec<String> = values
        .iter()
        .flatten()
        .map(|(_, value)| format!("{value:?}"))
        .collect();
    assert_eq!(
        texts,
        ["Text(\"first on page 1\")", "Text(\"first on page 2\")"]
    );
}

async fn find_text(reader: &dyn RowReader, uri: &str) -> Vec<FoundRow> {
    let text = FieldSet::from_iter([Field::TEXT]);
    let found = reader
        .find(DocumentId::of(uri), &text)
        .await
        .expect("reads");
    let mut found = found.expect("the column is there");
    found.sort_by_key(|row| row.key);
    found
}

//! Multi-vectors are stored, indexed and found.

use arrow::array::{ArrayRef, FixedSizeListBuilder, Float32Builder, ListBuilder, StringArray};
use arrow::datatypes::{DataType, Field as Column, Schema};
use lance::index::DatasetIndexExt as _;

use super::*;

const DIM: usize = 8;
const FIELDS: [Field; 3] = [Field::TEXT, Field::VECTORS, Field::VECTOR];

/// `n` directions, each with some of its neighbour's; the same for one seed.
fn directions(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let mut values: Vec<f32> = (0..n * DIM).map(|_| next()).collect();
    for row in values.chunks_exact_mut(DIM) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row {
            *x /= norm;
        }
    }
    values
}

/// A page of which the seed makes the vectors; in `vector` their mean.
fn page(uri: &str, page: u32, seed: usize) -> Item {
    let values = directions(5, seed);
    let mut mean = vec![0.0; DIM];
    for row in values.chunks_exact(DIM) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(mean, x)| *mean += x / 5.0);
    }
    Item::of_text(uri, &format!("seed {seed}"))
        .with_page(page)
        .with(
            "vectors",
            Vectors::new(VectorData::F32(values), DIM).expect("rows"),
        )
        .with("vector", Vectors::single(mean).expect("numbers"))
}

/// The question that the page of this seed answers best.
fn about(seed: usize) -> MultiVector {
    let values = directions(5, seed)[..3 * DIM].to_vec();
    MultiVector { values, dim: DIM }
}

fn asking(question: MultiVector) -> SearchQuery {
    SearchQuery::new(SearchMode::Vector, "", 3).with_question(Question::Multi(question))
}

/// Stores `n` documents of one page, each with the seed of its number.
async fn fill(sink: &mut LanceDb, numbers: std::ops::Range<usize>) {
    for n in numbers {
        store(sink, vec![page(&format!("{n:03}.pdf"), 1, n)]).await;
    }
    sink.commit().await.expect("commits");
}

async fn reader(folder: &str) -> TableReader {
    TableReader::open(folder, "pages").await.expect("opens")
}

async fn documents(reader: &TableReader, query: &SearchQuery) -> Vec<String> {
    let hits = reader.search(query).await.expect("searches");
    hits.into_iter().map(|hit| hit.document).collect()
}

/// The rows that the index over `vectors` covers; `None` without one.
async fn n_indexed(folder: &str) -> Option<usize> {
    let dataset = lance::Dataset::open(&format!("{folder}/pages.lance"))
        .await
        .expect("opens");
    let statistics = dataset.index_statistics("vectors_idx").await.ok()?;
    let statistics: serde_json::Value = serde_json::from_str(&statistics).expect("JSON");
    usize::try_from(statistics["num_indexed_rows"].as_u64()?).ok()
}

fn of_rows(min_rows: usize) -> IndexConfig {
    IndexConfig::Auto(VectorIndexConfig {
        min_rows,
        partitions: Some(2),
        ..VectorIndexConfig::default()
    })
}

#[tokio::test]
async fn pages_are_found_by_the_sum_of_the_best_similarities() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &FIELDS).await.expect("opens");
    let mut bare = page("bare.pdf", 1, 3);
    bare.remove("vectors");
    store(&mut sink, vec![bare]).await;
    fill(&mut sink, 0..40).await;
    let kept = reader(&uri).await;
    let read_anew = reader(&uri).await.keep_vectors(0);
    let too_much = reader(&uri).await.keep_vectors(39 * 5 * DIM * 2);
    for seed in [3, 17, 39] {
        let query = asking(about(seed));
        let hits = kept.search(&query).await.expect("searches");
        assert_eq!(hits.len(), 3);
        assert_eq!(hits[0].document, format!("{seed:03}.pdf"));
        assert_eq!(hits[0].text, format!("seed {seed}"));
        assert!((hits[0].score - 3.0).abs() < 1e-2, "{}", hits[0].score);
        assert!(hits[1].score < hits[0].score);
        for other in [&read_anew, &too_much, &kept.clone()] {
            assert_eq!(other.search(&query).await.expect("searches"), hits);
        }
    }
    let all = SearchQuery {
        top: 100,
        ..asking(about(0))
    };
    assert_eq!(
        documents(&kept, &all).await.len(),
        40,
        "all but the one without"
    );
    assert_eq!(
        (kept.vectors_dim(), kept.vector_dim()),
        (Some(DIM), Some(DIM))
    );
    let none = SearchQuery {
        top: 0,
        ..asking(about(0))
    };
    assert!(documents(&kept, &none).await.is_empty());
}

#[tokio::test]
async fn pages_of_one_score_come_in_the_order_of_their_documents() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &FIELDS).await.expect("opens");
    for name in ["d.pdf", "a.pdf", "c.pdf", "b.pdf"] {
        store(&mut sink, vec![page(name, 1, 5)]).await;
    }
    sink.commit().await.expect("commits");
    let found = documents(&reader(&uri).await, &asking(about(5))).await;
    assert_eq!(found, ["a.pdf", "b.pdf", "c.pdf"]);
}

#[tokio::test]
async fn a_question_of_one_vector_and_one_of_many_find_the_column_that_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &[Field::TEXT, Field::VECTORS])
        .await
        .expect("opens");
    fill(&mut sink, 0..4).await;
    let single = Question::Single(directions(5, 2)[..DIM].to_vec());
    let query = SearchQuery::new(SearchMode::Vector, "", 1).with_question(single);
    assert_eq!(documents(&reader(&uri).await, &query).await, ["002.pdf"]);

    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 2, "plain")).await;
    sink.commit().await.expect("commits");
    let values = vec![0.0, 1.0, 0.0];
    let table = reader(&uri).await;
    let one = asking(MultiVector { values, dim: 3 });
    assert_eq!(documents(&table, &one).await.len(), 2);
    let values = vec![0.0; 6];
    let error = table.search(&asking(MultiVector { values, dim: 3 })).await;
    let error = error.expect_err("there are no multi-vectors");
    assert_eq!(error.to_string(), "table `pages` has no column `vectors`");
}

#[tokio::test]
async fn a_hybrid_search_joins_words_and_multi_vectors() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &FIELDS).await.expect("opens");
    fill(&mut sink, 0..6).await;
    let question = Question::Multi(about(4));
    let query = SearchQuery::new(SearchMode::Hybrid, "2", 2).with_question(question);
    let mut found = documents(&reader(&uri).await, &query).await;
    found.sort();
    assert_eq!(found, ["002.pdf", "004.pdf"]);
}

#[tokio::test]
async fn a_question_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &FIELDS).await.expect("opens");
    fill(&mut sink, 0..2).await;
    let table = reader(&uri).await;
    let refused = async |question: MultiVector, first_step| {
        let query = SearchQuery {
            first_step,
            ..asking(question)
        };
        table.search(&query).await.expect_err("refused").to_string()
    };
    let values = vec![0.5; 12];
    assert_eq!(
        refused(MultiVector { values, dim: 4 }, FirstStep::Auto).await,
        "the question has 4 numbers, the vectors of table `pages` have 8"
    );
    for (values, dim) in [(vec![], DIM), (vec![], 0), (vec![1.0; 5], DIM)] {
        assert_eq!(
            refused(MultiVector { values, dim }, FirstStep::Auto).await,
            "a search by vector needs the question as a vector"
        );
    }
    let error = table
        .search(&SearchQuery::new(SearchMode::Vector, "", 3))
        .await;
    assert!(matches!(error, Err(TableError::NoVector)));

    let item = Item::of_text("c.pdf", "new");
    let longer = Vectors::new(VectorData::F32(vec![0.25; 32]), 16).expect("two of 16");
    let (deliveries, document) = deliver([item.with("vectors", longer)]);
    sink.store(deliveries).await.expect("stored");
    let document = document.expect("there are items");
    sink.end_document(ended(&document)).await.expect("ended");
    let error = sink.finish().await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "table `pages` does not fit this pipeline: its `vectors` is a list, each a vector of 8 \
         half floats, `c.pdf` has 16 numbers a vector"
    );
}

/// A table as somebody else may write it: floats, and rows of every kind.
async fn foreign(folder: &str, rows: &[Option<Vec<Option<[f32; 2]>>>]) {
    let vector = FixedSizeListBuilder::new(Float32Builder::new(), 2);
    let mut lists = ListBuilder::new(vector);
    for row in rows {
        for vector in row.iter().flatten() {
            lists
                .values()
                .values()
                .append_slice(&vector.unwrap_or_default());
            lists.values().append(vector.is_some());
        }
        lists.append(row.is_some());
    }
    let lists: ArrayRef = Arc::new(lists.finish());
    let names = StringArray::from_iter_values((0..rows.len()).map(|n| format!("{n}")));
    let schema = Schema::new(vec![
        Column::new("document", DataType::Utf8, false),
        Column::new("vectors", lists.data_type().clone(), true),
    ]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(names), lists]);
    let database = lancedb::connect(folder).execute().await.expect("connects");
    let batch = batch.expect("columns of one length");
    let made = database.create_table("pages", batch).execute().await;
    made.expect("made");
}

#[tokio::test]
async fn a_table_of_somebody_else_is_searched_whatever_its_rows_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let rows = [
        None,
        Some(vec![]),
        Some(vec![Some([0.0, 1.0])]),
        Some(vec![None, Some([0.6, 0.8]), None]),
        Some(vec![None]),
        Some(vec![Some([f32::NAN, 1.0]), Some([1.0, 0.0])]),
        Some(vec![Some([1.0, 0.0]), Some([0.0, -1.0])]),
    ];
    foreign(&uri, &rows).await;
    let table = reader(&uri).await;
    let values = vec![1.0, 0.0];
    let query = SearchQuery {
        top: 10,
        ..asking(MultiVector { values, dim: 2 })
    };
    for _ in 0..2 {
        let hits = table.search(&query).await.expect("searches");
        let found: Vec<(&str, f32)> = hits.iter().map(|hit| (&*hit.document, hit.score)).collect();
        assert_eq!(found, [("6", 1.0), ("3", 0.6), ("2", 0.0)]);
    }
    let detail = table
        .page(&table.search(&query).await.expect("searches")[1])
        .await;
    let detail = detail.expect("reads").expect("the row is there");
    let values = vec![0.6, 0.8];
    assert_eq!(detail.vectors, Some(MultiVector { values, dim: 2 }));
}

#[tokio::test]
async fn a_column_of_another_type_is_no_multi_vector() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let text = Field::new("vectors", FieldType::Text);
    let mut sink = open(config(&uri), &[text]).await.expect("opens");
    store(
        &mut sink,
        vec![Item::of_text("a.txt", "").with("vectors", "none")],
    )
    .await;
    sink.finish().await.expect("finishes");
    let error = reader(&uri).await.search(&asking(about(0))).await;
    assert_eq!(
        error.expect_err("text").to_string(),
        "the column `vectors` of table `pages` is text, not a list of vectors of floats"
    );
}

#[tokio::test]
async fn a_table_without_rows_has_no_pages_to_find() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut indexed = config(&uri);
    indexed.index = of_rows(0);
    let mut sink = open(indexed, &FIELDS).await.expect("opens");
    let opened = sink.opened();
    let schema = opened.columns.schema(&[page("a.pdf", 1, 1)]);
    opened.table.create(schema).await.expect("made");
    sink.finish().await.expect("finishes");
    let table = reader(&uri).await;
    for first_step in [
        FirstStep::Auto,
        FirstStep::None,
        FirstStep::Index,
        FirstStep::Pooled,
    ] {
        for _ in 0..2 {
            let query = SearchQuery {
                first_step,
                ..asking(about(0))
            };
            assert!(documents(&table, &query).await.is_empty());
        }
    }
}

#[tokio::test]
async fn the_mean_of_a_pages_vectors_is_a_first_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &FIELDS).await.expect("opens");
    fill(&mut sink, 0..30).await;
    let table = reader(&uri).await;
    let whole = MultiVector {
        values: directions(5, 21),
        dim: DIM,
    };
    let pooled = SearchQuery {
        first_step: FirstStep::Pooled,
        refine: Some(1),
        ..asking(whole)
    };
    let hits = table.search(&pooled).await.expect("searches");
    assert_eq!((hits.len(), &*hits[0].document), (3, "021.pdf"));
    assert!(
        (hits[0].score - 5.0).abs() < 1e-2,
        "scored exactly: {}",
        hits[0].score
    );
    let all = SearchQuery {
        refine: Some(10),
        ..pooled.clone()
    };
    let exact = SearchQuery {
        first_step: FirstStep::None,
        ..pooled
    };
    assert_eq!(
        documents(&table, &all).await,
        documents(&table, &exact).await
    );
}

#[tokio::test]
async fn what_explains_a_hit_is_read_by_its_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let number = |name| Field::new(name, FieldType::Integer);
    let fields = [
        Field::VECTORS,
        Field::THUMBNAIL,
        number("patch_rows"),
        number("patch_cols"),
    ];
    let mut sink = open(config(&uri), &fields).await.expect("opens");
    let thumbnail = Value::Bytes(bytes::Bytes::from_static(b"\xff\xd8jpeg"));
    let full = page("a.pdf", 1, 1)
        .with("thumbnail", thumbnail)
        .with("patch_rows", 7_i64)
        .with("patch_cols", -1_i64);
    store(&mut sink, vec![full]).await;
    store(&mut sink, vec![page("b.pdf", 2, 2)]).await;
    sink.commit().await.expect("commits");
    let table = reader(&uri).await;
    let hits = table.search(&asking(about(1))).await.expect("searches");
    let detail = table
        .page(&hits[0])
        .await
        .expect("reads")
        .expect("is there");
    let vectors = detail.vectors.expect("it has some");
    assert_eq!((vectors.n(), vectors.dim), (5, DIM));
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
    assert!(vectors.values.iter().zip(&directions(5, 1)).all(close));
    assert_eq!(detail.thumbnail.as_deref(), Some(&b"\xff\xd8jpeg"[..]));
    assert_eq!(
        (detail.patch_rows, detail.patch_cols, detail.patch_start),
        (Some(7), None, None)
    );
    let bare = table
        .page(&hits[1])
        .await
        .expect("reads")
        .expect("is there");
    assert_eq!((bare.thumbnail, bare.patch_rows), (None, None));
    // A hit of a table that has changed since.
    let other = Hit {
        page: Some(9),
        ..hits[0].clone()
    };
    assert_eq!(table.page(&other).await.expect("reads"), None);
    for row in [u64::MAX, 1 << 40, 99] {
        let other = Hit {
            row,
            ..hits[0].clone()
        };
        assert!(matches!(table.page(&other).await, Ok(None)), "row {row}");
    }
    let by_text = table.rows().await.expect("reads");
    assert!(table.page(&by_text[1]).await.expect("reads").is_some());
}

mod index;

//! Tests that what is stored is found again.

use super::*;

async fn searchable(folder: &str) -> TableReader {
    let mut sink = open(config(folder), &TEXT_AND_VECTOR).await.expect("opens");
    let texts = [
        (
            "a.pdf",
            "The mill grinds \"corn\", said C++ (twice).",
            [1.0, 0.0, 0.0],
        ),
        ("b.pdf", "Le café est à côté du moulin", [0.0, 1.0, 0.0]),
        ("c.pdf", "水车磨坊在河边转动", [0.7, 0.7, 0.0]),
        (
            "d.pdf",
            "windmills and mills, mills, mills",
            [0.0, 0.0, 1.0],
        ),
    ];
    for (place, (uri, text, vector)) in texts.into_iter().enumerate() {
        let vector = Vectors::single(vector.to_vec()).expect("three numbers");
        let item = Item::of_text(uri, text).with_page(1).with("vector", vector);
        let bare = item.child().with_page(2);
        store(&mut sink, vec![item, bare]).await;
        if place == 1 {
            // The rest is searched beside the index.
            sink.commit().await.expect("commits");
        }
    }
    sink.commit().await.expect("commits");
    TableReader::open(folder, "pages").await.expect("opens")
}

async fn found(
    reader: &TableReader,
    mode: SearchMode,
    text: &str,
    vector: [f32; 3],
) -> Vec<String> {
    let question = Question::Single(vector.to_vec());
    let query = SearchQuery::new(mode, text, 10).with_question(question);
    let hits = reader.search(&query).await.expect("searches");
    let label = |hit: &Hit| format!("{}#{}", hit.document, hit.page.unwrap_or(0));
    hits.iter().map(label).collect()
}

#[tokio::test]
async fn words_are_found_in_any_script_whatever_else_is_typed() {
    let folder = tempfile::tempdir().expect("a folder");
    let reader = searchable(&folder.path().display().to_string()).await;
    let none = [0.0; 3];
    for (query, expected) in [
        ("mill", vec!["d.pdf#1", "a.pdf#1"]),
        ("CAFE cote", vec!["b.pdf#1"]),
        ("磨坊", vec!["c.pdf#1"]),
        ("\"corn\" AND (c++ OR text:*) ~2 \\ ' [", vec!["a.pdf#1"]),
        ("nothing", vec![]),
        ("\"'(", vec![]),
        ("", vec![]),
    ] {
        let found = found(&reader, SearchMode::Text, query, none).await;
        assert_eq!(found, expected, "{query}");
    }
}

#[tokio::test]
async fn vectors_are_found_by_cosine_and_rows_without_one_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let reader = searchable(&folder.path().display().to_string()).await;
    let question = Question::Single(vec![2.0, 0.0, 0.0]);
    let query = SearchQuery::new(SearchMode::Vector, "", 10).with_question(question);
    let hits = reader.search(&query).await.expect("searches");
    let ids: Vec<_> = hits.iter().map(|hit| hit.document.as_str()).collect();
    assert_eq!(ids, ["a.pdf", "c.pdf", "b.pdf", "d.pdf"]);
    assert!((hits[0].score - 1.0).abs() < 1e-5, "{}", hits[0].score);
    assert!(
        (hits[1].score - 0.5_f32.sqrt()).abs() < 1e-5,
        "{}",
        hits[1].score
    );
    assert!(hits.iter().all(|hit| hit.page == Some(1)));
    assert_eq!(reader.vector_dim(), Some(3));
    assert_eq!(reader.n_rows().await.expect("counts"), 8);
}

#[tokio::test]
async fn a_hybrid_search_prefers_what_both_find() {
    let folder = tempfile::tempdir().expect("a folder");
    let reader = searchable(&folder.path().display().to_string()).await;
    let found = found(&reader, SearchMode::Hybrid, "corn", [0.7, 0.7, 0.0]).await;
    assert_eq!(found, ["a.pdf#1", "c.pdf#1", "b.pdf#1", "d.pdf#1"]);
}

#[tokio::test]
async fn a_search_that_cannot_be_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let error = TableReader::open(&uri, "pages").await.expect_err("none");
    assert_eq!(
        error.to_string(),
        format!("there is no table `pages` in `{uri}`")
    );
    assert_eq!(error.hint(), "fill it first, with `pagemill run`");

    let mut sink = open(config(&uri), &[Field::TEXT]).await.expect("opens");
    store(&mut sink, pages("a.pdf", 1, "plain")).await;
    sink.finish().await.expect("finishes");
    let error = TableReader::open(&uri, "page").await.expect_err("none");
    assert_eq!(error.hint(), "the tables there: `pages`");
    let reader = TableReader::open(&uri, "pages").await.expect("opens");
    let asking = |n_numbers| {
        let question = Question::Single(vec![0.0; n_numbers]);
        SearchQuery::new(SearchMode::Vector, "plain", 3).with_question(question)
    };
    let error = reader.search(&asking(3)).await.expect_err("no vectors");
    assert_eq!(error.to_string(), "table `pages` has no column `vector`");

    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    store(&mut sink, pages("a.pdf", 1, "plain")).await;
    sink.finish().await.expect("finishes");
    let reader = TableReader::open(&uri, "pages").await.expect("opens");
    let error = reader.search(&asking(4)).await;
    let error = error.expect_err("another length");
    assert_eq!(
        error.to_string(),
        "the question has 4 numbers, the vectors of table `pages` have 3"
    );
}

#[tokio::test]
async fn a_table_without_rows_is_searched_in_vain() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut sink = open(config(&uri), &TEXT_AND_VECTOR).await.expect("opens");
    let opened = sink.opened();
    let schema = opened.columns.schema(&pages("a.pdf", 1, ""));
    opened.table.create(schema).await.expect("made");
    opened.table.make_text_index("text").await.expect("indexed");
    sink.finish().await.expect("finishes");
    let reader = TableReader::open(&uri, "pages").await.expect("opens");
    for mode in [SearchMode::Text, SearchMode::Vector, SearchMode::Hybrid] {
        assert!(
            found(&reader, mode, "mill", [1.0, 0.0, 0.0])
                .await
                .is_empty()
        );
    }
}

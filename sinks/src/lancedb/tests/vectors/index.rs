//! Tests when an index is made, and what is found by it.

use super::*;

#[tokio::test]
async fn a_large_table_gets_an_index_and_rows_beside_it_are_found_as_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut indexed = config(&uri);
    indexed.index = of_rows(150);
    let mut sink = open(indexed.clone(), &FIELDS).await.expect("opens");
    fill(&mut sink, 0..140).await;
    sink.finish().await.expect("finishes");
    assert_eq!(n_indexed(&uri).await, None, "the table is small");

    let mut sink = open(indexed.clone(), &FIELDS).await.expect("opens");
    fill(&mut sink, 140..150).await;
    sink.finish().await.expect("finishes");
    assert_eq!(n_indexed(&uri).await, Some(150));

    let mut sink = open(indexed, &FIELDS).await.expect("opens");
    fill(&mut sink, 150..155).await;
    store(&mut sink, vec![page("007.pdf", 1, 300)]).await;
    sink.commit().await.expect("commits");
    assert_eq!(n_indexed(&uri).await, Some(149), "one was replaced");
    let table = reader(&uri).await;
    for first_step in [FirstStep::Auto, FirstStep::Index, FirstStep::None] {
        let ask = async |seed| {
            let query = SearchQuery {
                first_step,
                ..asking(about(seed))
            };
            documents(&table, &query).await.swap_remove(0)
        };
        assert_eq!(ask(31).await, "031.pdf");
        assert_eq!(ask(152).await, "152.pdf", "not indexed yet");
        assert_eq!(ask(300).await, "007.pdf", "not indexed yet");
        assert_ne!(ask(7).await, "007.pdf", "it says something else now");
    }
    sink.finish().await.expect("finishes");
    assert_eq!(n_indexed(&uri).await, Some(155));
    let exact = SearchQuery {
        first_step: FirstStep::None,
        ..asking(about(60))
    };
    let table = reader(&uri).await;
    let scores = async |query| {
        let hits = table.search(&query).await.expect("searches");
        hits.into_iter()
            .map(|hit| (hit.document, hit.score))
            .collect::<Vec<_>>()
    };
    let mut by_index = exact.clone();
    by_index.first_step = FirstStep::Index;
    by_index.refine = Some(40);
    assert_eq!(scores(by_index).await, scores(exact).await);
}

#[tokio::test]
async fn rows_are_stored_while_the_index_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut indexed = config(&uri);
    indexed.index = of_rows(100);
    let mut sink = open(indexed, &FIELDS).await.expect("opens");
    fill(&mut sink, 0..100).await;
    sink.idle().await.expect("the upkeep begins");
    // Of the same documents, too: their rows go while they are indexed.
    fill(&mut sink, 95..105).await;
    fill(&mut sink, 105..110).await;
    sink.finish().await.expect("finishes");
    assert_eq!(n_indexed(&uri).await, Some(110));
    let table = reader(&uri).await;
    assert_eq!(table.n_rows().await.expect("counts"), 110);
    for seed in [1, 97, 103, 109] {
        let found = documents(&table, &asking(about(seed))).await;
        assert_eq!(found[0], format!("{seed:03}.pdf"));
    }
}

#[tokio::test]
async fn a_table_has_no_index_where_none_is_wanted_or_none_can_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut without = config(&uri);
    without.index = IndexConfig::None;
    let mut sink = open(without, &FIELDS).await.expect("opens");
    fill(&mut sink, 0..30).await;
    sink.finish().await.expect("finishes");
    assert_eq!(n_indexed(&uri).await, None);
    let query = SearchQuery {
        first_step: FirstStep::Index,
        ..asking(about(9))
    };
    assert_eq!(documents(&reader(&uri).await, &query).await[0], "009.pdf");

    // Vectors of three numbers: the index takes eight at a time.
    let folder = tempfile::tempdir().expect("a folder");
    let uri = folder.path().display().to_string();
    let mut indexed = config(&uri);
    indexed.index = of_rows(1);
    let mut sink = open(indexed, &[Field::VECTORS]).await.expect("opens");
    let vectors = Vectors::new(VectorData::F32(vec![0.0, 0.6, 0.8]), 3).expect("three numbers");
    store(
        &mut sink,
        vec![Item::of_text("a.pdf", "").with("vectors", vectors)],
    )
    .await;
    sink.finish().await.expect("finishes");
    assert_eq!(n_indexed(&uri).await, None);
    let values = vec![0.0, 0.6, 0.8];
    let query = asking(MultiVector { values, dim: 3 });
    assert_eq!(documents(&reader(&uri).await, &query).await, ["a.pdf"]);
}

#[test]
fn the_index_is_set_by_a_word_or_a_table() {
    let read = |text: &str| serde_json::from_str::<IndexConfig>(text).map_err(|e| e.to_string());
    assert_eq!(read("\"auto\""), Ok(IndexConfig::default()));
    assert_eq!(read("\"none\""), Ok(IndexConfig::None));
    let expected = VectorIndexConfig {
        min_rows: 7,
        ..VectorIndexConfig::default()
    };
    assert_eq!(read("{\"min_rows\": 7}"), Ok(IndexConfig::Auto(expected)));
    let unknown = read("{\"rows\": 7}").expect_err("unknown");
    assert!(
        unknown.starts_with("unknown field `rows`, expected one of"),
        "{unknown}"
    );
    let wrong = read("\"yes\"").expect_err("wrong");
    assert!(
        wrong.starts_with("unknown variant `yes`, expected `auto` or `none`"),
        "{wrong}"
    );
    let refused = |change: fn(&mut VectorIndexConfig)| {
        let mut settings = VectorIndexConfig::default();
        change(&mut settings);
        let mut config = config("data");
        config.index = IndexConfig::Auto(settings);
        LanceDb::new(config).err().expect("refused").to_string()
    };
    assert_eq!(
        refused(|c| c.partitions = Some(0)),
        "`index` must have from 1 to 65536 `partitions`"
    );
    assert_eq!(
        refused(|c| c.refine = 0),
        "`index` must `refine` by 1 to 1000 pages for each hit"
    );
}

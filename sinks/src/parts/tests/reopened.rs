//! Tests a sink in a folder that others wrote to.

use super::*;

pub(super) async fn the_inventory_is_that_of_the_parts_whatever_became_of_the_manifest<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "mill", 2), ("b", "mill", 1)]).await;
    store::<F>(path, &[("c", "mill", 1)]).await;
    let mut sink = opened::<F>(path).await;
    let Ok(Inventory::Documents(known)) = sink.inventory(None).await else {
        panic!("there is no mark");
    };
    drop(sink);
    assert_eq!(known.len(), 3);
    let of_a = &pages("a", "mill", 1)[0];
    assert_eq!(
        known[0],
        StoredDocument {
            id: of_a.origin().id,
            uri: "a".into(),
            source: String::new(),
            content_hash: of_a.origin().content_hash.to_string(),
            fingerprint: input().fingerprint,
            n_rows: 2,
        }
    );
    let manifest = path.join(".documents");
    let whole = fs::read_to_string(&manifest).expect("it is there");
    let (first_line, _) = whole.split_once('\n').expect("two parts, two lines");
    let wrong = whole.replace("\"n_rows\":2", "\"n_rows\":7");
    let stale = whole.replace("\"n_rows\":2", "\"n_rows\":1");
    let stale = stale.replace("\"size\":", "\"size\":1");
    for text in [
        "",
        "no JSON\n",
        first_line,
        &whole[..whole.len() - 9],
        &stale,
    ] {
        fs::write(&manifest, text).unwrap();
        let read = opened::<F>(path).await.inventory(None).await;
        assert_eq!(read.unwrap(), Inventory::Documents(known.clone()));
        assert_eq!(fs::read_to_string(&manifest).unwrap(), whole);
    }
    // It is believed while the parts are those that it was made from.
    fs::write(&manifest, wrong).unwrap();
    assert_eq!(held::<F>(path).await["a"], 7);
    fs::remove_file(manifest).unwrap();
    assert_eq!(held::<F>(path).await["a"], 2);
}

pub(super) async fn the_mark_fits_until_a_part_changes<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    let mut sink = opened::<F>(path).await;
    let at_first = sink.mark();
    send(&mut sink, pages("a", "mill", 1))
        .await
        .1
        .expect("stored");
    assert_eq!(sink.mark(), at_first);
    sink.idle().await.expect("written");
    let after_a = sink.mark();
    assert_ne!(after_a, at_first);
    send(&mut sink, pages("a", "lime", 1))
        .await
        .1
        .expect("stored");
    sink.finish().await.expect("finishes");
    let after_all = sink.mark();
    assert_ne!(after_all, after_a);
    drop(sink);

    let mut sink = opened::<F>(path).await;
    assert_eq!(sink.mark(), after_all);
    let unchanged = sink.inventory(after_all.as_deref()).await;
    assert_eq!(unchanged.unwrap(), Inventory::Unchanged);
    // One that is not open answers the same, though another one writes there.
    let mut unopened = sink_of::<F>(path);
    let unchanged = unopened.peek(&input(), after_all.as_deref()).await;
    assert_eq!(unchanged.unwrap(), Inventory::Unchanged);
    let held = unopened.peek(&input(), None).await.unwrap();
    assert_eq!(held, sink.inventory(None).await.unwrap());
    let changed = sink.inventory(after_a.as_deref()).await;
    assert!(matches!(changed, Ok(Inventory::Documents(_))));
    drop(sink);
    fs::remove_file(part::<F>(path, 1)).unwrap();
    let changed = opened::<F>(path)
        .await
        .inventory(after_all.as_deref())
        .await;
    assert_eq!(changed.unwrap(), Inventory::Documents(Vec::new()));
}

pub(super) async fn a_folder_that_is_not_there_is_not_made_to_look_at_it<F: Kind>() {
    let folder = folder();
    let path = folder.path().join("rows");
    let held = sink_of::<F>(&path).peek(&input(), None).await;
    assert_eq!(held.unwrap(), Inventory::Documents(Vec::new()));
    assert!(!path.exists());
}

pub(super) async fn a_second_writer_is_refused<F: Kind>() {
    let folder = folder();
    let first = opened::<F>(folder.path()).await;
    let mut second = sink_of::<F>(folder.path());
    let error = second
        .open(&input())
        .await
        .expect_err("the first one writes");
    let message = format!(
        "another run or sink writes to `{}`",
        folder.path().display()
    );
    assert_eq!(error.to_string(), message);
    drop(first);
    second.open(&input()).await.expect("nobody else writes");
}

pub(super) async fn of_a_document_in_two_parts_the_later_one_stays<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "old", 2), ("b", "old", 1), ("c", "old", 1)]).await;
    fs::rename(part::<F>(path, 1), path.join("kept")).unwrap();
    store::<F>(path, &[("a", "new", 1)]).await;
    fs::rename(part::<F>(path, 1), part::<F>(path, 7)).unwrap();
    fs::rename(path.join("kept"), part::<F>(path, 2)).unwrap();
    drop(opened::<F>(path).await);
    assert_eq!(F::rows_of(&part::<F>(path, 7)), rows_for("a", "new", 1));
    let rest = [rows_for("b", "old", 1), rows_for("c", "old", 1)].concat();
    assert_eq!(F::rows_of(&part::<F>(path, 2)), rest);
}

pub(super) async fn a_file_that_is_no_part_is_named<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    store::<F>(path, &[("a", "old", 2)]).await;
    let second = part::<F>(path, 2);
    fs::write(&second, "{\"document\": \"a\"}\n").unwrap();
    fs::write(path.join("part-3.txt"), "a file of somebody else").unwrap();
    let error = sink_of::<F>(path).open(&input()).await;
    let error = error.expect_err("it has no rows");
    let message = format!("cannot read `{}`", second.display());
    assert_eq!(error.to_string(), message);
    assert_eq!(
        error.hint(),
        Some("remove this file and run again: its documents are then made anew")
    );
}

/// The fingerprints of the documents that a sink says it holds.
async fn fingerprints<F: Kind>(folder: &Path) -> BTreeMap<String, String> {
    match opened::<F>(folder).await.inventory(None).await {
        Ok(Inventory::Documents(documents)) => {
            let known = documents.into_iter().map(|d| (d.uri, d.fingerprint));
            known.collect()
        }
        other => panic!("{other:?} is no list"),
    }
}

pub(super) async fn a_document_some_rows_of_which_others_deleted_is_made_again<F: Kind>() {
    let (folder, other) = (folder(), folder());
    let path = folder.path();
    store::<F>(path, &[("a", "mill", 3), ("b", "mill", 2), ("c", "old", 2)]).await;
    // Fewer rows of `a`, as many of `b`, and another version of `c`.
    let fewer = [("a", "mill", 2), ("b", "mill", 2), ("c", "new", 1)];
    store::<F>(other.path(), &fewer).await;
    fs::copy(part::<F>(other.path(), 1), part::<F>(path, 1)).unwrap();
    let known = input().fingerprint;
    let expected = [("a", ""), ("b", &known), ("c", &known)];
    let expected = expected.map(|(uri, text)| (uri.to_owned(), text.to_owned()));
    let expected = BTreeMap::from(expected);
    assert_eq!(fingerprints::<F>(path).await, expected);
    // It is noted until the document has been made again.
    assert_eq!(fingerprints::<F>(path).await, expected);
    store::<F>(path, &[("a", "mill", 3)]).await;
    assert!(
        fingerprints::<F>(path)
            .await
            .values()
            .all(|it| *it == known)
    );
}

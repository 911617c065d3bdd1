//! Small parts become one, whatever happens meanwhile.

use super::*;
use crate::parts::faults::{Faults, Step};
use crate::parts::merge::MIN_PARTS;

/// Those that a merge comes to.
const STEPS: [Step; 12] = [
    Step::BeforeMerging,
    Step::BeforeWrite,
    Step::AfterWrite,
    Step::AfterSync,
    Step::BeforeRename,
    Step::AfterRename,
    Step::BeforeFolderSync,
    Step::AfterFolderSync,
    Step::BeforeRemoval,
    Step::AfterRemoval,
    Step::AfterMerging,
    Step::BeforeManifest,
];

const URIS: [&str; MIN_PARTS + 2] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

fn n_parts(folder: &Path) -> usize {
    let names = names(folder).into_iter();
    names.filter(|name| name.starts_with("part-")).count()
}

/// A part for each document, as a run leaves them that is killed.
async fn part_by_part<F: Kind>(folder: &Path) {
    let mut sink = opened::<F>(folder).await;
    for uri in URIS {
        send(&mut sink, pages(uri, "mill", 2))
            .await
            .1
            .expect("stored");
        sink.lock().publish().expect("written");
    }
    assert_eq!(n_parts(folder), URIS.len());
}

fn expected(uris: &[&str]) -> Vec<Row> {
    let rows = uris.iter().flat_map(|uri| rows_for(uri, "mill", 2));
    rows.collect()
}

fn expected_counts() -> BTreeMap<String, u64> {
    URIS.iter().map(|uri| ((*uri).to_owned(), 2)).collect()
}

pub(super) async fn small_parts_are_merged_while_nothing_comes<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    let mut sink = opened::<F>(path).await;
    for uri in URIS {
        send(&mut sink, pages(uri, "mill", 2))
            .await
            .1
            .expect("stored");
        sink.idle().await.expect("written");
    }
    assert_eq!(n_parts(path), URIS.len() - MIN_PARTS + 1);
    assert_eq!(rows::<F>(path), expected(&URIS));
    let mark = sink.mark();
    sink.idle().await.expect("there is nothing to do");
    assert_eq!(sink.mark(), mark);
    sink.finish().await.expect("finishes");
    drop(sink);
    assert_eq!(held::<F>(path).await, expected_counts());
}

pub(super) async fn small_parts_of_earlier_runs_are_merged_at_the_end_of_a_run<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    for uri in URIS {
        store::<F>(path, &[(uri, "mill", 2)]).await;
    }
    assert_eq!(n_parts(path), URIS.len() - MIN_PARTS + 1);
    assert_eq!(rows::<F>(path), expected(&URIS));
}

pub(super) async fn a_document_in_a_merged_part_is_replaced_and_removed<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    part_by_part::<F>(path).await;
    let mut sink = opened::<F>(path).await;
    sink.idle().await.expect("merged");
    assert_eq!(n_parts(path), 1);
    send(&mut sink, pages("c", "lime", 1))
        .await
        .1
        .expect("stored");
    sink.end_document(removed("d")).await.expect("ended");
    sink.finish().await.expect("finishes");
    drop(sink);
    let mut all = expected(&["a", "b", "e", "f", "g", "h", "i", "j"]);
    all.extend(rows_for("c", "lime", 1));
    all.sort();
    assert_eq!(rows::<F>(path), all);
    assert_eq!(n_parts(path), 1);
}

pub(super) async fn a_merge_keeps_to_the_limits_of_a_part<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    part_by_part::<F>(path).await;
    let limits = PartConfig {
        max_rows: 16,
        ..PartConfig::default()
    };
    let mut sink = limited::<F>(path, limits);
    sink.open(&input()).await.expect("opens");
    sink.idle().await.expect("merged");
    assert_eq!(n_parts(path), 3);
    assert_eq!(rows::<F>(path), expected(&URIS));
}

pub(super) async fn a_part_that_others_changed_meanwhile_is_not_merged<F: Kind>() {
    let folder = folder();
    let path = folder.path();
    part_by_part::<F>(path).await;
    let mut sink = opened::<F>(path).await;
    let (changed, copy) = (part::<F>(path, 3), path.join("copy"));
    fs::copy(&changed, &copy).unwrap();
    fs::rename(&copy, &changed).unwrap();
    sink.idle().await.expect("merged");
    assert_eq!(F::rows_of(&changed), rows_for("c", "mill", 2));
    assert_eq!(n_parts(path), 2);
    assert_eq!(rows::<F>(path), expected(&URIS));
}

/// A run that merges, then removes a document.
async fn merging_run<F: Kind>(folder: &Path, fault: impl FnOnce(&Faults)) -> Faults {
    let mut sink = opened::<F>(folder).await;
    let faults = sink.lock().faults.clone();
    fault(&faults);
    // What goes wrong in a merge is no reason to stop.
    let merged = sink.idle().await;
    assert!(merged.is_ok() || faults.has_died(), "{merged:?}");
    if faults.has_died() {
        return faults;
    }
    sink.end_document(removed("a")).await.expect("ended");
    let removed = sink.idle().await;
    assert!(removed.is_ok() || faults.was_hit(), "{removed:?}");
    let finished = sink.finish().await;
    assert!(finished.is_ok() || faults.has_died(), "{finished:?}");
    faults
}

pub(super) async fn a_merge_that_is_killed_at_any_step_loses_nothing_and_the_next_run_ends_it<
    F: Kind,
>() {
    for step in STEPS {
        for nth in 0.. {
            let folder = folder();
            let path = folder.path();
            part_by_part::<F>(path).await;
            let faults = merging_run::<F>(path, |faults| faults.die_at(step, nth)).await;
            let is_removed = !faults.has_died();

            // A reader finds every row, and some of them twice for a moment.
            let mut found = rows::<F>(path);
            found.dedup();
            let without_a = expected(&URIS[1..]);
            let is_whole = found == expected(&URIS) && !is_removed;
            assert!(is_whole || found == without_a, "at {step:?} {nth}");

            // The next one finds each document once.
            let counts = held::<F>(path).await;
            assert_eq!(counts.values().sum::<u64>(), found.len() as u64);
            assert_eq!(rows::<F>(path), found, "at {step:?} {nth}");
            let partial = names(path)
                .into_iter()
                .find(|name| name.ends_with(".partial"));
            assert_eq!(partial, None);
            merging_run::<F>(path, |_| {}).await;
            assert_eq!(rows::<F>(path), without_a);
            if !faults.was_hit() {
                assert!(nth > 0, "there is no {step:?}");
                break;
            }
        }
    }
}

pub(super) async fn a_document_that_is_removed_after_a_merge_failed_does_not_come_back<F: Kind>() {
    for step in STEPS {
        for nth in 0.. {
            let folder = folder();
            let path = folder.path();
            part_by_part::<F>(path).await;
            let faults = merging_run::<F>(path, |faults| faults.fail_at(step, nth)).await;
            let without_a = expected(&URIS[1..]);
            assert_eq!(rows::<F>(path), without_a, "at {step:?} {nth}");
            let mut counts = expected_counts();
            counts.remove("a");
            assert_eq!(held::<F>(path).await, counts, "at {step:?} {nth}");
            if !faults.was_hit() {
                assert!(nth > 0, "there is no {step:?}");
                break;
            }
        }
    }
}

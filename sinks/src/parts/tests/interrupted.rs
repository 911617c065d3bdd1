//! A publication that fails or dies at any step, and what follows it.

use super::*;
use crate::parts::faults::{Faults, Step};

const STEPS: [Step; 13] = [
    Step::BeforeRewriting,
    Step::BeforeWrite,
    Step::AfterWrite,
    Step::AfterSync,
    Step::BeforeRename,
    Step::AfterRename,
    Step::BeforeRemoval,
    Step::AfterRemoval,
    Step::AfterRewriting,
    Step::BeforeFolderSync,
    Step::AfterFolderSync,
    Step::BeforeManifest,
    Step::AfterManifest,
];

/// Those that [`next_run`] does not come to before it has written once.
const LATE_STEPS: [Step; 4] = [
    Step::BeforeRemoval,
    Step::AfterRemoval,
    Step::BeforeManifest,
    Step::AfterManifest,
];

/// What an earlier run has stored: two parts.
async fn earlier<F: Kind>(folder: &Path) -> BTreeMap<&'static str, Vec<Row>> {
    store::<F>(folder, &[("a", "old", 2), ("b", "old", 1), ("c", "old", 1)]).await;
    store::<F>(folder, &[("d", "old", 1)]).await;
    let old = [("a", 2), ("b", 1), ("c", 1), ("d", 1)];
    BTreeMap::from(old.map(|(uri, n)| (uri, rows_for(uri, "old", n))))
}

/// What there is when the next run has ended.
fn later() -> BTreeMap<&'static str, Vec<Row>> {
    BTreeMap::from([
        ("a", rows_for("a", "new", 3)),
        ("b", Vec::new()),
        ("c", rows_for("c", "old", 1)),
        ("d", Vec::new()),
        ("e", rows_for("e", "new", 2)),
        ("f", rows_for("f", "new", 1)),
    ])
}

/// The next run: documents are replaced, removed and added, and written in
/// three goes. It ends at the first error, or tries again where `tries_again`.
async fn next_run<F: Kind>(
    folder: &Path,
    fault: impl FnOnce(&Faults),
    tries_again: bool,
) -> (Vec<(&'static str, Arc<Document>)>, Faults) {
    let mut sink = sink_of::<F>(folder);
    let faults = sink.lock().faults.clone();
    fault(&faults);
    sink.open(&input()).await.expect("opens");
    let mut documents = Vec::new();
    for step in 0..8 {
        let done = match step {
            0 | 1 | 5 => {
                let (uri, n) = [("a", 3), ("e", 2), ("f", 1)][step % 3];
                let (document, done) = send(&mut sink, pages(uri, "new", n)).await;
                documents.push((uri, document));
                done
            }
            2 | 4 => {
                let uri = ["b", "d"][step / 2 - 1];
                let gone = removed(uri);
                documents.push((uri, Arc::clone(&gone.document)));
                sink.end_document(gone).await
            }
            7 => sink.finish().await,
            _ => sink.idle().await,
        };
        if let Err(error) = done {
            if !tries_again {
                break;
            }
            let again = sink.idle().await;
            again.unwrap_or_else(|_| panic!("it goes well the second time, unlike {error:?}"));
        }
    }
    drop(sink);
    (documents, faults)
}

pub(super) async fn what_could_not_be_written_is_written_when_it_is_tried_again<F: Kind>() {
    for step in STEPS {
        for nth in 0.. {
            let folder = folder();
            let path = folder.path();
            earlier::<F>(path).await;
            let set = |faults: &Faults| faults.fail_at(step, nth);
            let (documents, faults) = next_run::<F>(path, set, true).await;
            assert_eq!(
                rows::<F>(path),
                later().into_values().flatten().collect::<Vec<_>>()
            );
            for (uri, document) in documents {
                assert!(!document.has_failed(), "`{uri}` at {step:?} {nth}");
            }
            if !faults.was_hit() {
                assert!(nth > 0, "there is no {step:?}");
                break;
            }
        }
    }
}

pub(super) async fn a_run_that_is_killed_at_any_step_leaves_whole_documents_and_the_next_one_ends_it<
    F: Kind,
>() {
    for step in STEPS {
        for nth in 0.. {
            let folder = folder();
            let path = folder.path();
            let old = earlier::<F>(path).await;
            let set = |faults: &Faults| faults.die_at(step, nth);
            let (documents, faults) = next_run::<F>(path, set, false).await;
            if faults.was_hit() && nth == 0 && !LATE_STEPS.contains(&step) {
                // It died before the first parts were durable.
                assert!(documents.iter().all(|(_, document)| document.has_failed()));
            }

            let found = rows::<F>(path);
            for (uri, new) in later() {
                let of_it = found.iter().filter(|(document, ..)| document == uri);
                let of_it: Vec<Row> = of_it.cloned().collect();
                let mut acked = documents.iter().filter(|(sent, _)| *sent == uri);
                if acked.any(|(_, document)| !document.has_failed()) {
                    assert_eq!(of_it, new, "`{uri}` was acked before {step:?} {nth}");
                } else {
                    let is_old = old.get(uri).map_or(of_it.is_empty(), |old| *old == of_it);
                    assert!(is_old || of_it == new, "{of_it:?} at {step:?} {nth}");
                }
            }
            let n_found = held::<F>(path).await.into_values().sum::<u64>();
            assert_eq!(n_found, found.len() as u64);

            next_run::<F>(path, |_| {}, false).await;
            assert_eq!(
                rows::<F>(path),
                later().into_values().flatten().collect::<Vec<_>>()
            );
            let partial = names(path)
                .into_iter()
                .find(|name| name.ends_with(".partial"));
            assert_eq!(partial, None);
            if !faults.was_hit() {
                assert!(nth > 0, "there is no {step:?}");
                break;
            }
        }
    }
}

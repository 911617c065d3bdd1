//! The source in a run: once, pruning, feeding letters again, and watching.

use pagemill_pipeline::Prune;

use super::*;
use crate::testing::sources::{Ran, Runs};

/// The source an hour later, when no file is fresh any more.
#[derive(Deserialize)]
#[serde(transparent)]
struct LaterConfig(ReadFilesConfig);

impl SourceConfig for LaterConfig {
    const KIND: &'static str = "later";
    const ABOUT: &'static str = "";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        self.0.fields()
    }
    fn is_continuous(&self) -> bool {
        self.0.is_continuous()
    }
    fn build(&self, _: &Resources) -> Result<Box<dyn Source>, FieldError> {
        let later = || SystemTime::now() + Duration::from_hours(1);
        Ok(Box::new(ReadFiles::new(&self.0)?.with_clock(later)))
    }
}

/// Runs the source on the folder `documents`.
async fn run<C: SourceConfig>(runs: &Runs, settings: &str) -> Ran {
    let settings = format!("path = {:?}\n{settings}", runs.path("documents"));
    runs.run::<C>(&settings).await
}

/// Names of the documents that a run has sent and removed.
fn sent_and_removed(runs: &Runs, ran: &Ran) -> (Vec<String>, Vec<String>) {
    let name_of = |uri: &str| runs.name_of(uri).to_owned();
    let removed = ran.removed.iter().map(|uri| name_of(uri));
    (
        ran.uris().into_iter().map(name_of).collect(),
        removed.collect(),
    )
}

fn names_of(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn every_file_is_a_document_or_a_dead_letter() {
    let runs = Runs::new();
    runs.put("a.bin", PDF);
    runs.put("b/c.pdf", PNG);
    runs.put("empty.pdf", b"");
    runs.put("notes.pdf", b"only text\n");
    runs.put("odd.pdf", &[0, 1, 2, 3]);
    let Ran {
        items,
        mut letters,
        report,
        ..
    } = run::<ReadFilesConfig>(&runs, "").await;
    let described: Vec<_> = items
        .iter()
        .map(|item| (runs.name_of(&item.origin().uri), &*item.origin().media_type))
        .collect();
    let expected = [("a.bin", "application/pdf"), ("b/c.pdf", "image/png")];
    assert_eq!(described, expected);
    assert_eq!(items[0].document().unwrap(), PDF);
    assert_eq!(
        items[0].origin().content_hash,
        pagemill_pipeline::ContentHash::of(PDF)
    );
    assert_eq!(items[0].origin().n_bytes, PDF.len() as u64);

    letters.sort_by(|a, b| a.document.cmp(&b.document));
    let sentences: Vec<_> = letters.iter().map(|letter| letter.error.as_str()).collect();
    assert_eq!(
        sentences,
        [
            "cannot read `empty.pdf`: it is empty",
            "cannot read `notes.pdf`: its content is `text/plain`, not a PDF, PNG, JPEG, TIFF or WebP",
            "cannot read `odd.pdf`: its content is of no known kind, not a PDF, PNG, JPEG, TIFF or WebP",
        ]
    );
    assert!(letters.iter().all(|letter| letter.hint.is_some()));
    assert_eq!(report.totals.documents_set_aside, 3);
}

#[tokio::test]
async fn a_drained_source_sends_no_more() {
    for settings in ["", "watch = true"] {
        let runs = Runs::new();
        runs.put("a.pdf", PDF);
        runs.control.drain();
        let ran = run::<ReadFilesConfig>(&runs, settings).await;
        assert!(ran.items.is_empty() && ran.letters.is_empty());
    }
}

#[tokio::test]
async fn what_has_not_changed_is_not_read_again() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    assert_eq!(run::<LaterConfig>(&runs, "").await.items.len(), 2);
    // If it were read, its content would give it away.
    let path = runs.path("documents/a.pdf");
    let before = state::FileState::of(&fs::metadata(&path).unwrap());
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(
        (ran.items.len(), ran.report.totals.documents_skipped),
        (0, 2)
    );
    assert_eq!(ran.report.totals.documents_expected, 2);
    // The same content at another time is read, and not sent.
    fs::write(&path, PDF).unwrap();
    assert_ne!(state::FileState::of(&fs::metadata(&path).unwrap()), before);
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(
        (ran.items.len(), ran.report.totals.documents_skipped),
        (0, 2)
    );
    fs::write(&path, PNG).unwrap();
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(
        sent_and_removed(&runs, &ran),
        (names_of(&["a.pdf"]), vec![])
    );
}

#[tokio::test]
async fn a_file_that_was_just_written_is_told_by_its_content() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    assert_eq!(run::<ReadFilesConfig>(&runs, "").await.items.len(), 1);
    // Its state was not kept: a change within the same tick would not show.
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(
        (ran.items.len(), ran.report.totals.documents_skipped),
        (0, 1)
    );
}

#[tokio::test]
async fn ten_thousand_files_that_have_not_changed_take_no_time() {
    let runs = Runs::new();
    for n in 0..10_000 {
        runs.put(
            &format!("{}/{n}.pdf", n % 100),
            format!("%PDF-{n}").as_bytes(),
        );
    }
    assert_eq!(run::<LaterConfig>(&runs, "").await.items.len(), 10_000);
    let ran = run::<LaterConfig>(&runs, "").await;
    let totals = ran.report.totals;
    assert_eq!((ran.items.len(), totals.documents_skipped), (0, 10_000));
    println!("{:.3} s", totals.elapsed_s);
    assert!(totals.elapsed_s < 5.0, "{} s", totals.elapsed_s);
}

#[tokio::test]
async fn a_pruning_run_removes_what_is_gone_and_nothing_else() {
    let mut runs = Runs::new();
    for name in ["a.pdf", "b.pdf", "c/d.pdf", "c/e.png"] {
        runs.put(name, PDF);
    }
    run::<LaterConfig>(&runs, "").await;
    fs::remove_file(runs.path("documents/b.pdf")).unwrap();
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(sent_and_removed(&runs, &ran), (vec![], vec![]));
    runs.options.prune = Prune::Gone;
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(
        sent_and_removed(&runs, &ran),
        (vec![], names_of(&["b.pdf"]))
    );
    // What the patterns choose no longer is gone as well.
    let ran = run::<LaterConfig>(&runs, "include = [\"**/*.pdf\"]").await;
    assert_eq!(
        sent_and_removed(&runs, &ran),
        (vec![], names_of(&["c/e.png"]))
    );
    // Another folder's documents are not this one's.
    let deeper = format!("path = {:?}", runs.path("documents/c"));
    let ran = runs.run::<LaterConfig>(&deeper).await;
    assert_eq!(ran.removed, [""; 0]);
}

#[tokio::test]
async fn pruning_is_refused_where_nothing_is_found_and_the_run_fails_at_its_end() {
    let mut runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    run::<LaterConfig>(&runs, "").await;
    let settings = format!("path = {:?}\ninclude = [\"*.png\"]", runs.path("documents"));
    runs.options.prune = Prune::Gone;
    let (ran, error) = runs.run_to_end::<LaterConfig>(&settings).await;
    assert_eq!(ran.removed, [""; 0]);
    assert_eq!(ran.report.stopped, StopReason::Finished);
    let error = error.unwrap();
    let expected = "pipeline `p` stopped at `it`: pruning is refused: no file was found, and 2 \
                    documents are known";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert!(error.error.hint().unwrap().contains("`--prune=all`"));
    // What cannot be read is no file either.
    symlink("nowhere", runs.path("documents/link.png")).unwrap();
    assert!(runs.run_to_end::<LaterConfig>(&settings).await.1.is_some());
    runs.options.prune = Prune::All;
    let ran = runs.run::<LaterConfig>(&settings).await;
    let mut removed = sent_and_removed(&runs, &ran).1;
    removed.sort();
    assert_eq!(removed, ["a.pdf", "b.pdf"]);
    // Nothing is known any more, so there is nothing to refuse.
    runs.options.prune = Prune::Gone;
    let (ran, error) = runs.run_to_end::<LaterConfig>(&settings).await;
    assert!(error.is_none() && ran.removed.is_empty());
}

#[tokio::test]
async fn a_folder_with_a_root_may_be_moved() {
    let mut runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    let ran = run::<LaterConfig>(&runs, "root = \"papers\"").await;
    assert_eq!(ran.uris(), ["papers/a.pdf", "papers/b.pdf"]);
    fs::rename(runs.path("documents"), runs.path("elsewhere")).unwrap();
    fs::remove_file(runs.path("elsewhere/b.pdf")).unwrap();
    runs.options.prune = Prune::Gone;
    let moved = format!("path = {:?}\nroot = \"papers\"", runs.path("elsewhere"));
    let ran = runs.run::<LaterConfig>(&moved).await;
    assert_eq!(ran.removed, ["papers/b.pdf"]);
    assert_eq!(
        (ran.items.len(), ran.report.totals.documents_skipped),
        (0, 1)
    );
    runs.options.prune = Prune::No;
    runs.options.retries = Some(vec![letter("papers/a.pdf".into())]);
    let ran = runs.run::<LaterConfig>(&moved).await;
    assert_eq!(ran.uris(), ["papers/a.pdf"]);
}

#[tokio::test]
async fn a_root_that_is_a_symbolic_link_is_read_pruned_and_watched() {
    let mut runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    runs.put("in/c.pdf", PDF);
    let (folder, link) = (runs.path("real"), runs.path("documents"));
    fs::rename(&link, &folder).unwrap();
    symlink("real", &link).unwrap();
    let ran = run::<LaterConfig>(&runs, "").await;
    let expected = names_of(&["a.pdf", "b.pdf", "in/c.pdf"]);
    assert_eq!(sent_and_removed(&runs, &ran), (expected, vec![]));
    assert!(ran.letters.is_empty());
    fs::remove_file(folder.join("b.pdf")).unwrap();
    runs.options.prune = Prune::Gone;
    let ran = run::<LaterConfig>(&runs, "").await;
    assert_eq!(ran.report.totals.documents_skipped, 2);
    let removed = names_of(&["b.pdf"]);
    assert_eq!(sent_and_removed(&runs, &ran), (vec![], removed));
    runs.control = pagemill_pipeline::RunControl::default();
    // Only what the system tells is followed, in the folder itself as well.
    watch(&runs, async {
        runs.put("new.pdf", PDF);
        let (items, _) = runs.kept.wait_for(1, 0).await;
        assert_eq!(runs.name_of(&items[0].origin().uri), "new.pdf");
        runs.put("new.pdf", PNG);
        runs.kept.wait_for(1, 0).await;
        fs::remove_file(folder.join("new.pdf")).unwrap();
        let (_, removed) = runs.kept.wait_for(0, 1).await;
        assert_eq!(runs.name_of(&removed[0]), "new.pdf");
    })
    .await;
}

fn letter(uri: String) -> FeedAgain {
    FeedAgain { uri, input: None }
}

#[tokio::test]
async fn a_retry_reads_what_it_is_told_and_nothing_else() {
    let mut runs = Runs::new();
    for name in ["a.pdf", "b.pdf", "m%FC.pdf", "folder/c.pdf"] {
        runs.put(name, PDF);
    }
    let odd = std::ffi::OsStr::from_bytes(b"\xfc%.pdf");
    fs::write(runs.path("documents").join(odd), PDF).unwrap();
    run::<LaterConfig>(&runs, "").await;
    let documents = runs.path("documents").display().to_string();
    let names = [
        "a.pdf",
        "m%FC.pdf",
        "%FC%25.pdf",
        "gone.pdf",
        "../x.pdf",
        "folder",
    ];
    let mut letters: Vec<_> = names
        .map(|name| letter(format!("{documents}/{name}")))
        .into();
    letters.push(letter("/elsewhere/a.pdf".into()));
    runs.options.retries = Some(letters);
    for settings in ["", "watch = true"] {
        let ran = run::<LaterConfig>(&runs, settings).await;
        let (mut sent, removed) = sent_and_removed(&runs, &ran);
        sent.sort();
        assert_eq!(sent, ["%FC%25.pdf", "a.pdf", "m%FC.pdf"]);
        // The folder can be read now: nothing is wrong with it any more.
        assert_eq!(removed, ["folder"]);
        let letters: Vec<_> = ran.letters.iter().map(|letter| &*letter.error).collect();
        assert_eq!(letters, ["cannot read `gone.pdf`: it is gone"]);
        assert_eq!(ran.report.stopped, StopReason::Finished);
    }
}

/// Runs the source, watching, beside `test`, and drains it afterwards.
async fn watch(runs: &Runs, test: impl Future<Output = ()>) -> Ran {
    // Only what the system tells is followed.
    let settings = "watch = true\nrest_ms = 10\nrescan_s = 3600";
    let watching = run::<ReadFilesConfig>(runs, settings);
    let test = async {
        test.await;
        runs.control.drain();
    };
    let (ran, ()) = tokio::join!(watching, test);
    assert_eq!(ran.report.stopped, StopReason::Drained);
    ran
}

#[tokio::test]
async fn a_watched_folder_is_followed() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    let documents = runs.path("documents");
    let next = async |n_stored, n_removed| {
        let (items, mut removed) = runs.kept.wait_for(n_stored, n_removed).await;
        let uris = items.iter().map(|item| &*item.origin().uri);
        let mut stored: Vec<_> = uris.map(|uri| runs.name_of(uri).to_owned()).collect();
        stored.sort();
        for uri in &mut removed {
            *uri = runs.name_of(uri).to_owned();
        }
        (stored, removed)
    };
    let ran = watch(&runs, async {
        assert_eq!(next(2, 0).await.0, ["a.pdf", "b.pdf"]);
        runs.put("new.pdf", PDF);
        assert_eq!(next(1, 0).await.0, ["new.pdf"]);
        runs.put("a.pdf", PNG);
        assert_eq!(next(1, 0).await.0, ["a.pdf"]);
        fs::rename(documents.join("b.pdf"), documents.join("c.pdf")).unwrap();
        let (stored, removed) = next(1, 1).await;
        assert_eq!(
            (stored, removed),
            (names_of(&["c.pdf"]), names_of(&["b.pdf"]))
        );
        // A folder that moves in, is changed in, and moves out.
        let aside = runs.path("aside");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("d.pdf"), PDF).unwrap();
        fs::rename(&aside, documents.join("in")).unwrap();
        assert_eq!(next(1, 0).await.0, ["in/d.pdf"]);
        runs.put("in/d.pdf", PNG);
        assert_eq!(next(1, 0).await.0, ["in/d.pdf"]);
        fs::rename(documents.join("in"), &aside).unwrap();
        assert_eq!(next(0, 1).await.1, ["in/d.pdf"]);
        fs::remove_file(documents.join("new.pdf")).unwrap();
        assert_eq!(next(0, 1).await.1, ["new.pdf"]);
    })
    .await;
    assert!(ran.letters.is_empty());
    let totals = ran.report.totals;
    assert_eq!(
        (totals.documents_removed, totals.documents_expected),
        (3, 7)
    );
}

#[tokio::test]
async fn a_watched_folder_catches_up_with_what_happened_before() {
    let mut runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    run::<LaterConfig>(&runs, "").await;
    fs::remove_file(runs.path("documents/a.pdf")).unwrap();
    runs.put("c.pdf", PDF);
    runs.control = pagemill_pipeline::RunControl::default();
    let ran = watch(&runs, async {
        let (items, removed) = runs.kept.wait_for(1, 1).await;
        assert_eq!(runs.name_of(&items[0].origin().uri), "c.pdf");
        assert_eq!(runs.name_of(&removed[0]), "a.pdf");
    })
    .await;
    assert_eq!(ran.report.totals.documents_skipped, 1);
}

#[tokio::test]
async fn a_watched_file_may_be_replaced() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("beside.pdf", PDF);
    let path = runs.path("documents/a.pdf");
    let settings = format!("path = {path:?}\nwatch = true\nrest_ms = 10\nrescan_s = 3600");
    let test = async {
        runs.kept.wait_for(1, 0).await;
        fs::write(runs.path("other"), PNG).unwrap();
        fs::rename(runs.path("other"), &path).unwrap();
        let (items, _) = runs.kept.wait_for(1, 0).await;
        assert_eq!(items[0].document().unwrap(), PNG);
        runs.control.drain();
    };
    let (ran, ()) = tokio::join!(runs.run::<ReadFilesConfig>(&settings), test);
    assert_eq!(ran.removed, [""; 0]);
}

#[tokio::test]
async fn a_watched_folder_that_is_empty_at_the_start_loses_no_rows() {
    let mut runs = Runs::new();
    runs.put("a.pdf", PDF);
    runs.put("b.pdf", PDF);
    run::<LaterConfig>(&runs, "").await;
    let documents = runs.path("documents");
    for name in ["a.pdf", "b.pdf"] {
        fs::remove_file(documents.join(name)).unwrap();
    }
    runs.control = pagemill_pipeline::RunControl::default();
    let ran = watch(&runs, async {
        // Long enough for it to be seen gone twice, 10 ms apart.
        runs.until(0.2).await;
        let now = runs.control.snapshot().unwrap();
        assert_eq!(now.documents_removed, 0);
        runs.put("c.pdf", PDF);
        let (items, mut removed) = runs.kept.wait_for(1, 2).await;
        assert_eq!(runs.name_of(&items[0].origin().uri), "c.pdf");
        removed.sort();
        assert_eq!(runs.name_of(&removed[1]), "b.pdf");
    })
    .await;
    let totals = ran.report.totals;
    assert_eq!((totals.documents_done, totals.documents_removed), (1, 2));
}

#[tokio::test]
async fn a_watched_folder_in_which_nothing_happens_is_starved() {
    let runs = Runs::new();
    runs.put("a.pdf", PDF);
    let ran = watch(&runs, async {
        runs.kept.wait_for(1, 0).await;
        runs.until(0.5).await;
    })
    .await;
    let node = &ran.report.totals.nodes[0];
    assert!(node.starved_s > 0.25, "{node:?}");
    assert!(node.busy_s < node.starved_s / 2.0, "{node:?}");
}

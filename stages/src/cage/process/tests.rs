use super::*;
use crate::cage::protocol::Renderer;
use crate::cage::testing::settings;
use crate::render_pdf::testing::{pdf, three_pages};

fn hayro() -> Reader {
    Reader::Pdf {
        renderer: Renderer::Hayro,
        passwords: Vec::new(),
    }
}

fn exists(id: u32) -> bool {
    std::path::Path::new(&format!("/proc/{id}")).exists()
}

#[test]
fn a_process_renders_one_document_after_the_other() {
    let mut process = WorkerProcess::start(&settings("")).unwrap();
    assert_eq!(process.pdfium_error(), Some("there is no libpdfium"));
    for _ in 0..3 {
        let document = SealedDocument::new(&three_pages()).unwrap();
        assert_eq!(process.open(&document, &hayro()).unwrap().n_pages, 3);
        assert_eq!(
            process.metadata().unwrap().title.as_deref(),
            Some("The Mill")
        );
        assert_eq!(process.render(2).unwrap().text.plain, "third page");
        assert!(process.render(3).is_err());
        let empty = SealedDocument::new(&pdf(&[])).unwrap();
        assert_eq!(process.open(&empty, &hayro()), Err(Failure::NoPages));
    }
}

#[test]
fn the_time_of_a_page_runs_from_its_request() {
    let mut settings = settings("hang any 1");
    settings.limits.page_s = 2;
    let document = SealedDocument::new(&three_pages()).unwrap();
    let [sound, hanging] = [2, 1].map(|index| {
        let mut process = WorkerProcess::start(&settings).unwrap();
        process.open(&document, &hayro()).unwrap();
        process.begin(index)
    });
    let deadline = hanging.asked.deadline;
    let (process, page) = hanging.finish();
    assert_eq!(page.unwrap_err(), Failure::TimedOut { limit_s: 2 });
    assert!(process.is_dead() && deadline.elapsed() < Duration::from_secs(1));
    // The other one's time is over as well, but it answered in time.
    assert!(sound.asked.deadline < deadline);
    let (process, page) = sound.finish();
    assert_eq!(page.unwrap().text.plain, "third page");
    let id = process.id();
    drop(process.begin(0));
    assert!(!exists(id));
}

#[test]
fn nothing_is_left_of_a_process_that_is_dropped_or_died() {
    let process = WorkerProcess::start(&settings("")).unwrap();
    let id = process.id();
    assert!(exists(id));
    drop(process);
    assert!(!exists(id));

    let mut process = WorkerProcess::start(&settings("abort any 0")).unwrap();
    let document = SealedDocument::new(&three_pages()).unwrap();
    process.open(&document, &hayro()).unwrap();
    assert_eq!(
        process.render(0).unwrap_err(),
        Failure::Killed { signal: 6 }
    );
    assert!(process.is_dead() && !exists(process.id()));
}

#[test]
fn a_process_ends_with_the_thread_that_started_it() {
    let mut process = std::thread::scope(|scope| {
        let starter = scope.spawn(|| WorkerProcess::start(&settings("")).unwrap());
        starter.join().unwrap()
    });
    let document = SealedDocument::new(&three_pages()).unwrap();
    let failure = process.open(&document, &hayro()).unwrap_err();
    assert_eq!(failure, Failure::Killed { signal: 9 });
}

//! Tries from inside a worker what its sandbox forbids, each with a control in
//! which the same succeeds.

use std::os::unix::fs::PermissionsExt as _;

use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Resources, StageConfig as _};

use super::confine::{Isolation, Protections};
use super::failure::Failure;
use super::process::{ProcessSettings, WorkerProcess, protections};
use super::protocol::{Reader, Renderer};
use super::shared::SealedDocument;
use super::testing::{
    HIDDEN_FILE, SUCCEEDED, count_warnings, is_found, settings, without_landlock, worker_command,
};
use crate::DecodeImageConfig;
use crate::render_pdf::testing::{pdfium, three_pages};
use crate::render_pdf::{RenderPdfConfig, RenderSetup};

/// What becomes of a worker that commits the deed before it renders a page.
fn outcome(deed: &str, isolation: Isolation) -> Result<(), Failure> {
    let mut settings = settings(&format!("{deed} any 0"));
    settings.isolation = isolation;
    outcome_of(&settings)
}

/// The same in the whole sandbox, on a kernel without landlock.
fn outcome_without_landlock(deed: &str) -> Result<(), Failure> {
    let mut settings = settings(&format!("{deed} any 0"));
    settings.worker = without_landlock(settings.worker);
    outcome_of(&settings)
}

fn outcome_of(settings: &ProcessSettings) -> Result<(), Failure> {
    let mut process = WorkerProcess::start(settings).unwrap();
    let document = SealedDocument::new(&three_pages()).unwrap();
    let reader = Reader::Pdf {
        renderer: Renderer::Hayro,
        passwords: Vec::new(),
    };
    process.open(&document, &reader).unwrap();
    process.render(0).map(drop)
}

/// Whether the kernel has all that the sandbox is made of.
fn is_complete() -> bool {
    let found = protections(&worker_command("")).unwrap();
    assert!(found.limits && found.no_capabilities);
    if !found.are_complete() {
        println!("this kernel lacks a part of the sandbox: {found}");
    }
    found.are_complete()
}

/// What still protects where landlock is missing, if that is enough to test.
fn protections_without_landlock() -> Option<Protections> {
    let found = protections(&without_landlock(worker_command(""))).unwrap();
    assert_eq!(found.landlock, None);
    if !found.seccomp {
        println!("this kernel has no filters: {found}");
    }
    found.seccomp.then_some(found)
}

const FORBIDDEN: Failure = Failure::Killed { signal: 31 };

#[test]
fn a_worker_can_neither_read_nor_write_files_nor_take_more_memory() {
    if !is_complete() {
        return;
    }
    // These fail, and the page is rendered all the same.
    for deed in ["read", "list", "write", "memory", "code", "memfd"] {
        assert_eq!(outcome(deed, Isolation::Cage), Ok(()), "{deed}");
    }
    assert!(!std::path::Path::new("/tmp/pagemill-broke-out").exists());
}

#[test]
fn a_worker_that_reaches_for_others_is_ended() {
    if !is_complete() {
        return;
    }
    for deed in ["socket", "spawn", "exec", "parent", "limits", "thread"] {
        assert_eq!(outcome(deed, Isolation::Cage), Err(FORBIDDEN), "{deed}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_that_makes_a_call_which_no_renderer_makes_is_ended() {
    if !is_complete() {
        return;
    }
    for deed in [
        "fork",
        "ptrace",
        "mount",
        "bpf",
        "io_uring",
        "keyctl",
        "userfaultfd",
        "unshare",
    ] {
        assert_eq!(outcome(deed, Isolation::Cage), Err(FORBIDDEN), "{deed}");
    }
    // The other way to make calls on this processor is closed as well.
    assert_eq!(outcome("x32_getpid", Isolation::Cage), Ok(()));
}

const OPENING: [&str; 8] = [
    "open_write",
    "open_update",
    "open_create",
    "open_truncate",
    "open_append",
    "open_path",
    "open_temporary",
    "open_by_pointer",
];

#[test]
fn a_worker_opens_no_file_but_to_read_it_and_reads_no_links() {
    if !is_complete() {
        return;
    }
    for deed in OPENING.iter().chain(&["read_link"]) {
        assert_eq!(outcome(deed, Isolation::Cage), Ok(()), "{deed}");
    }
}

#[test]
fn a_worker_reads_fonts_where_landlock_keeps_the_other_files_from_it() {
    if !is_complete() || !std::path::Path::new("/usr/share/fonts").exists() {
        return;
    }
    let succeeded = Err(Failure::Exited { code: SUCCEEDED });
    assert_eq!(outcome("fonts", Isolation::Cage), succeeded);
}

#[test]
fn without_landlock_a_worker_neither_opens_nor_looks_up_any_file() {
    if protections_without_landlock().is_none() {
        return;
    }
    let deeds = ["read", "list", "fonts", "write", "look_up", "read_link"];
    for deed in deeds.iter().chain(&OPENING) {
        assert_eq!(outcome_without_landlock(deed), Ok(()), "{deed}");
    }
    assert_eq!(outcome_without_landlock("socket"), Err(FORBIDDEN));
}

/// The sets of capabilities of a thread, as the kernel lists them.
fn capabilities_in(status: &str) -> Vec<(String, String)> {
    let sets = status.lines().filter_map(|line| line.split_once(":\t"));
    let sets = sets.filter(|(name, _)| name.starts_with("Cap"));
    sets.map(|(name, set)| (name.to_owned(), set.to_owned()))
        .collect()
}

/// The state of the thread that is a worker. That of a program is its only thread;
/// here the test's harness may have put it beside a first one, which waits for it
/// and which the filters of the whole process confine as well.
fn state_of_worker(process: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut names: Vec<_> = threads.map(|it| it.unwrap().file_name()).collect();
    if names.len() > 1 {
        names.retain(|name| *name != *process.to_string());
    }
    assert_eq!(names.len(), 1);
    let path = std::path::Path::new("/proc").join(&names[0]);
    std::fs::read_to_string(path.join("status")).unwrap()
}

#[test]
fn a_worker_of_root_holds_no_capabilities() {
    let ours = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let ours = capabilities_in(&ours);
    assert_eq!(ours.len(), 5);
    let is_root = rustix::process::geteuid().is_root();
    for isolation in [Isolation::Cage, Isolation::Process] {
        let mut settings = settings("");
        settings.isolation = isolation;
        // It answers once it has given its rights up.
        let process = WorkerProcess::start(&settings).unwrap();
        let state = state_of_worker(process.id());
        assert!(state.contains("NoNewPrivs:\t1"), "{isolation:?}");
        for (name, set) in capabilities_in(&state) {
            // Only a privileged process can empty the bounding set, and only
            // there can it be used.
            if is_root || name != "CapBnd" {
                assert_eq!(set, "0000000000000000", "{name} {isolation:?}");
            }
        }
    }
    let [_, permitted, ..] = &ours[..] else {
        panic!("there are five sets");
    };
    if permitted.1 == "0000000000000000" {
        println!("this user has no capabilities: nothing was there to drop");
    }
}

#[test]
fn a_worker_of_root_finds_no_file_that_root_alone_can_find() {
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let file = closed.join("file");
    std::fs::write(&file, "x").unwrap();
    let permit = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&closed, permissions).unwrap();
    };
    permit(0o000);
    // The control: this process has the capabilities that a worker drops.
    let is_found_here = is_found(file.as_os_str());
    for isolation in [Isolation::Cage, Isolation::Process] {
        let mut settings = settings("look_up_hidden any 0");
        settings.isolation = isolation;
        let variable = (HIDDEN_FILE.into(), file.clone().into_os_string());
        settings.worker.environment.push(variable);
        assert_eq!(outcome_of(&settings), Ok(()), "{isolation:?}");
        permit(0o755);
        let is_sealed_off = isolation == Isolation::Cage && !is_complete();
        if !is_sealed_off {
            // Another control: without the folder's mode it is found.
            let succeeded = Err(Failure::Exited { code: SUCCEEDED });
            assert_eq!(outcome_of(&settings), succeeded, "{isolation:?}");
        }
        permit(0o000);
    }
    permit(0o755);
    if !is_found_here {
        println!("this user has no capabilities: permissions alone were tested");
    }
}

#[test]
fn a_page_with_a_font_of_the_system_is_rendered_without_landlock_as_well() {
    for worker in [worker_command(""), without_landlock(worker_command(""))] {
        let resources = Resources::default();
        let pdfium = pdfium();
        resources.insert(RenderPdfConfig::KIND, RenderSetup { worker, pdfium });
        let mut stage = RenderPdfConfig::default().build(&resources).unwrap();
        let out = run_stage(&mut *stage, [pdf_with_foreign_font()]);
        assert!(out.dead.is_empty(), "{out:?}");
        assert_eq!(out.sent.len(), 1);
        assert_eq!(out.sent[0].text(), Some("The mill"));
    }
}

/// A page in a font that it does not bring.
fn pdf_with_foreign_font() -> Item {
    let text = "BT /F1 24 Tf 20 40 Td (The mill) Tj ET";
    let pdf = crate::render_pdf::testing::pdf_of(&[
        "<< /Type /Catalog /Pages 3 0 R >>".to_owned(),
        "<< >>".to_owned(),
        "<< /Type /Pages /Kids [4 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Page /Parent 3 0 R /MediaBox [0 0 200 100] /Contents 5 0 R \
         /Resources << /Font << /F1 6 0 R >> >> >>"
            .to_owned(),
        format!("<< /Length {} >>\nstream\n{text}\nendstream", text.len()),
        "<< /Type /Font /Subtype /TrueType /BaseFont /DejaVuSerif /Encoding /WinAnsiEncoding >>"
            .to_owned(),
    ]);
    Item::of_document("foreign.pdf", "application/pdf", pdf)
}

#[test]
fn a_run_warns_once_where_the_kernel_lacks_landlock() {
    let resources = Resources::default();
    let setup = RenderSetup {
        worker: without_landlock(worker_command("")),
        pdfium: pdfium(),
    };
    resources.insert(RenderPdfConfig::KIND, setup);
    let config = RenderPdfConfig {
        long_side_px: 64,
        ..RenderPdfConfig::default()
    };
    let pdf = |uri| Item::of_document(uri, "application/pdf", three_pages());
    let png = Item::of_document("c.png", "image/png", super::fuzzing::PNG.to_vec());
    let mut instances = [(); 2].map(|()| config.build(&resources).unwrap());
    let mut pictures = DecodeImageConfig::default().build(&resources).unwrap();
    let warnings = count_warnings(|| {
        for instance in &mut instances {
            let out = run_stage(&mut **instance, [pdf("a.pdf"), pdf("b.pdf")]);
            assert_eq!(out.sent.len(), 6);
        }
        assert_eq!(run_stage(&mut *pictures, [png]).sent.len(), 1);
    });
    // Where libpdfium is missing, each instance says so as well.
    let of_pdfium = if pdfium().is_some() { 0 } else { 2 };
    assert_eq!(warnings, 1 + of_pdfium);
}

#[test]
fn a_worker_finds_nothing_open_that_its_parent_left_open() {
    let left_open = std::fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).unwrap();
    assert_eq!(outcome("inherited", Isolation::Process), Ok(()));
    assert_eq!(outcome("inherited", Isolation::Cage), Ok(()));
}

#[test]
fn without_the_cage_the_same_deeds_succeed() {
    let succeeded = Err(Failure::Exited { code: SUCCEEDED });
    let deeds = [
        "read",
        "list",
        "look_up",
        "read_link",
        "code",
        "memfd",
        "socket",
        "parent",
    ];
    for deed in deeds.iter().chain(&OPENING) {
        assert_eq!(outcome(deed, Isolation::Process), succeeded, "{deed}");
    }
    // Limits are there in any case.
    assert_eq!(outcome("memory", Isolation::Process), Ok(()));
}

#[test]
fn what_holds_a_worker_is_told_in_words() {
    let found = protections(&worker_command("")).unwrap();
    let words = found.to_string();
    assert!(words.starts_with("processes with limits and no capabilities, "));
    println!("{words}");
    if let Some(found) = protections_without_landlock() {
        assert_eq!(
            found.to_string(),
            "processes with limits and no capabilities, no files, not even fonts (no landlock), \
             listed system calls (seccomp)"
        );
        assert!(!found.are_complete());
    }
}

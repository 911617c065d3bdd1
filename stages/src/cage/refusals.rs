//! What a document that took its renderer over could do: nothing.

use super::confine::Isolation;
use super::failure::Failure;
use super::process::{WorkerProcess, protections};
use super::protocol::{Reader, Renderer};
use super::shared::SealedDocument;
use super::testing::{SUCCEEDED, settings, worker_command};
use crate::render_pdf::testing::three_pages;

/// What becomes of a worker that commits the deed before it renders a page.
fn outcome(deed: &str, isolation: Isolation) -> Result<(), Failure> {
    let mut settings = settings(&format!("{deed} any 0"));
    settings.isolation = isolation;
    let mut process = WorkerProcess::start(&settings).unwrap();
    let document = SealedDocument::new(&three_pages()).unwrap();
    let reader = Reader::Pdf {
        renderer: Renderer::Hayro,
        passwords: Vec::new(),
    };
    process.open(&document, &reader).unwrap();
    process.render(0).map(drop)
}

/// Whether the kernel has all that the cage is made of.
fn is_complete() -> bool {
    let found = protections(&worker_command("")).unwrap();
    assert!(found.limits);
    if !found.are_complete() {
        println!("this kernel lacks a part of the cage: {found}");
    }
    found.are_complete()
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
    for deed in ["read", "list", "code", "memfd", "socket", "parent"] {
        assert_eq!(outcome(deed, Isolation::Process), succeeded, "{deed}");
    }
    // Limits are there in any case.
    assert_eq!(outcome("memory", Isolation::Process), Ok(()));
}

#[test]
fn what_holds_a_worker_is_told_in_words() {
    let found = protections(&worker_command("")).unwrap();
    assert!(found.to_string().starts_with("processes with limits, "));
    println!("{found}");
}

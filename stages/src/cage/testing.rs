//! For tests: a worker that is this test executable, and commits misdeeds.

use std::net::UdpSocket;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use super::confine::Isolation;
use super::limits::DocumentLimits;
use super::process::ProcessSettings;
use super::protocol::Reader;
use super::start::WorkerCommand;
use super::worker;

/// Set in a worker's environment; its value is the misdeed to commit, such as
/// `abort pdfium 1`, or empty.
const MISDEED: &str = "PAGEMILL_TEST_WORKER";

/// Exit code of a worker that got away with it.
pub const SUCCEEDED: i32 = 77;

/// Runs this test executable as a worker that commits a misdeed before it
/// renders a page, for one renderer or for `any`, on a page counted from 0.
pub fn worker_command(misdeed: &str) -> WorkerCommand {
    // Workers enter by a test of their own, since a test executable has no `main`.
    let entry = concat!(module_path!(), "::worker_entry");
    let (_crate_name, entry) = entry.split_once("::").unwrap();
    WorkerCommand {
        program: std::env::current_exe().unwrap(),
        arguments: vec![entry.into(), "--exact".into(), "--test-threads=1".into()],
        environment: vec![(MISDEED.into(), misdeed.into())],
    }
}

/// A caged worker for small pages.
pub fn settings(misdeed: &str) -> ProcessSettings {
    ProcessSettings {
        worker: worker_command(misdeed),
        isolation: Isolation::Cage,
        pdfium: None,
        long_side_px: 64,
        page_buffer_bytes: 64 * 64 * 3,
        words: true,
        limits: DocumentLimits {
            memory_mb: 512,
            ..DocumentLimits::default()
        },
        overhead_mb: 0,
    }
}

#[test]
fn worker_entry() {
    let Ok(misdeed) = std::env::var(MISDEED) else {
        return;
    };
    worker::run(&mut |reader, index| commit(&misdeed, reader, index));
}

fn commit(misdeed: &str, reader: &Reader, index: u32) {
    let [deed, who, page] = misdeed.split(' ').collect::<Vec<_>>()[..] else {
        return;
    };
    let reader = match reader {
        Reader::Pdf { renderer, .. } => renderer.name(),
        Reader::Picture { .. } => "picture",
    };
    if page != index.to_string() || ![reader, "any"].contains(&who) {
        return;
    }
    match deed {
        "abort" => std::process::abort(),
        "hang" => loop {
            std::thread::park_timeout(Duration::from_mins(1));
        },
        "eat" => {
            let hoard: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 64 << 20]).collect();
            assert!(hoard.len() < 64, "4 GB fit into the limit");
        }
        deed => break_out(deed),
    }
}

/// Tries what the cage forbids. Whoever comes back here with an error was
/// refused, and goes on to render the page.
fn break_out(deed: &str) {
    let succeeded = match deed {
        "read" => std::fs::read("/etc/passwd").is_ok(),
        "list" => std::fs::read_dir("/").is_ok(),
        "write" => std::fs::write("/tmp/pagemill-broke-out", "x").is_ok(),
        "memory" => {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: nobody uses the memory.
            let mapped = unsafe {
                mmap_anonymous(std::ptr::null_mut(), 600 << 20, access, MapFlags::PRIVATE)
            };
            mapped.is_ok()
        }
        "code" => {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            let access = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
            // SAFETY: nobody uses the memory.
            let mapped =
                unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, access, MapFlags::PRIVATE) };
            mapped.is_ok()
        }
        "memfd" => {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            rustix::fs::memfd_create("broke-out", flags).is_ok()
        }
        "socket" => UdpSocket::bind("127.0.0.1:0").is_ok(),
        "spawn" => Command::new("/bin/true").status().is_ok(),
        "exec" => {
            // It comes back only if it failed; `false` would not.
            let _refused = Command::new("/bin/sh").args(["-c", "exit 77"]).exec();
            false
        }
        "parent" => {
            let parent = rustix::process::getppid().expect("it has a parent");
            rustix::process::test_kill_process(parent).is_ok()
        }
        "limits" => {
            use rustix::process::{Resource, Rlimit, setrlimit};
            let same = rustix::process::getrlimit(Resource::As);
            let Rlimit { current, maximum } = same;
            setrlimit(Resource::As, Rlimit { current, maximum }).is_ok()
        }
        "inherited" => {
            // Beyond the standard three there is the socket once more.
            let is_open = |number| {
                // SAFETY: the number is asked about and not used.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
                rustix::io::fcntl_getfd(fd).is_ok()
            };
            (3..256).filter(|number| is_open(*number)).count() > 1
        }
        "thread" => std::thread::Builder::new().spawn(|| {}).is_ok(),
        call => raw(call),
    };
    if succeeded {
        #[expect(clippy::exit, reason = "the process's end is the answer")]
        std::process::exit(SUCCEEDED);
    }
}

/// Makes a system call that the libraries at hand have no function for.
#[cfg(target_arch = "x86_64")]
fn raw(call: &str) -> bool {
    const PTRACE_ATTACH: usize = 16;
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get() as usize);
    let (number, arguments) = match call {
        "fork" => (57, [0, 0, 0]),
        "ptrace" => (101, [PTRACE_ATTACH, parent, 0]),
        "mount" => (165, [0, 0, 0]),
        "bpf" => (321, [0, 0, 0]),
        "io_uring" => (425, [1, 0, 0]),
        "keyctl" => (250, [0, 0, 0]),
        "userfaultfd" => (323, [0, 0, 0]),
        "unshare" => (272, [0, 0, 0]),
        "x32_getpid" => (0x4000_0000 | 0x27, [0, 0, 0]),
        other => panic!("no misdeed is called `{other}`"),
    };
    let result: isize;
    // SAFETY: none of these calls writes to memory of this process with the
    // arguments above.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") 0,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result >= 0
}

#[cfg(not(target_arch = "x86_64"))]
fn raw(_call: &str) -> bool {
    false
}

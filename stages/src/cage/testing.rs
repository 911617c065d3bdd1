//! For tests: a worker that is this test executable, and commits misdeeds.

use std::ffi::OsString;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::calls;
use super::confine::{FONT_FOLDERS, Isolation, ProtectionWarning};
use super::limits::DocumentLimits;
use super::process::ProcessSettings;
use super::protocol::Reader;
use super::start::WorkerCommand;
use super::worker;

/// Set in a worker's environment; its value is the misdeed to commit, such as
/// `abort pdfium 1`, or empty.
const MISDEED: &str = "PAGEMILL_TEST_WORKER";

/// Set in the environment of a worker that is to find no landlock.
const WITHOUT_LANDLOCK: &str = "PAGEMILL_TEST_WITHOUT_LANDLOCK";

/// Set in a worker's environment to a file that only root can look up.
pub const HIDDEN_FILE: &str = "PAGEMILL_TEST_HIDDEN_FILE";

/// A file that every user may read.
const PUBLIC_FILE: &str = "/etc/passwd";

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
        warning: ProtectionWarning::default(),
    }
}

/// Has a worker run as on a kernel that was built without landlock.
pub fn without_landlock(mut worker: WorkerCommand) -> WorkerCommand {
    let variable = (WITHOUT_LANDLOCK.into(), OsString::from("1"));
    worker.environment.push(variable);
    worker
}

/// Lets this process find no landlock: its call is answered as if unknown.
fn hide_landlock() {
    let filter = calls::absent(&["landlock_create_ruleset"]).unwrap();
    seccompiler::apply_filter_all_threads(&filter).unwrap();
}

#[test]
fn worker_entry() {
    let Ok(misdeed) = std::env::var(MISDEED) else {
        return;
    };
    if std::env::var_os(WITHOUT_LANDLOCK).is_some() {
        hide_landlock();
    }
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
        "read" => std::fs::read(PUBLIC_FILE).is_ok(),
        "list" => std::fs::read_dir("/").is_ok(),
        "fonts" => std::fs::read_dir(FONT_FOLDERS[0]).is_ok(),
        "look_up" => is_found(PUBLIC_FILE.as_ref()),
        "look_up_hidden" => std::env::var_os(HIDDEN_FILE).is_some_and(|path| is_found(&path)),
        "read_link" => rustix::fs::readlink("/proc/self", Vec::new()).is_ok(),
        deed if deed.starts_with("open_") => opens(&deed["open_".len()..]),
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

/// Whether there is something at `path`, by any of the calls that find it out.
pub fn is_found(path: &std::ffi::OsStr) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, StatxFlags, access, stat, statx};
    let statx = || statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).is_ok();
    stat(path).is_ok() || statx() || access(path, Access::EXISTS).is_ok()
}

/// Whether the filter lets a file be opened for more than reading. Landlock
/// refuses it with another error, after the filter.
fn opens(flags: &str) -> bool {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
    use rustix::io::Errno;
    let (path, flags) = match flags {
        "write" => ("/dev/null", OFlags::WRONLY),
        "update" => ("/dev/null", OFlags::RDWR),
        "create" => ("/dev/null", OFlags::CREATE),
        "truncate" => ("/dev/null", OFlags::TRUNC),
        "append" => ("/dev/null", OFlags::APPEND),
        "path" => ("/dev/null", OFlags::PATH),
        "temporary" => ("/tmp", OFlags::TMPFILE | OFlags::RDWR),
        "by_pointer" => {
            let (mode, resolve) = (Mode::empty(), ResolveFlags::empty());
            let opened = openat2(CWD, "/dev/null", OFlags::RDONLY, mode, resolve);
            // Missing rather than forbidden, so that libraries use `openat`.
            return opened.err() != Some(Errno::NOSYS);
        }
        other => panic!("no misdeed is called `open_{other}`"),
    };
    open(path, flags, Mode::RUSR).err() != Some(Errno::PERM)
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

/// Counts the warnings that this thread logs while `work` runs.
pub fn count_warnings(work: impl FnOnce()) -> usize {
    // With one subscriber alone, a thread without one that reaches a log statement
    // first switches it off for all threads (tokio-rs/tracing#3611). With two,
    // `tracing` asks every subscriber.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let n_warnings = Arc::new(AtomicUsize::new(0));
    let counter = WarningCounter(Arc::clone(&n_warnings));
    tracing::subscriber::with_default(counter, work);
    n_warnings.load(Ordering::Relaxed)
}

struct WarningCounter(Arc<AtomicUsize>);

impl tracing::Subscriber for WarningCounter {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

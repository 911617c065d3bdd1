//! Restricts the system calls of a worker before it gets its first document.
//!
//! Three filters apply to every call, and the strictest answer counts. The
//! first refuses with `ENOSYS` a call whose arguments no filter can read, so
//! that libraries use an older one. The second ends the process on calls that
//! no renderer makes: the process has been taken over. The third refuses all
//! calls that it does not list with `EPERM`, and a library that probes for them
//! continues without.

use rustix::fs::OFlags;
use rustix::io::Errno;
use seccompiler::{BpfProgram, TargetArch, apply_filter_all_threads, compile_from_json};
use serde_json::{Value, json};

/// Memory that is mapped so can be executed.
const PROT_EXEC: u32 = 4;

/// `PR_SET_VMA`, by which allocators name their memory.
const PR_SET_VMA: u32 = 0x5356_4d41;

/// What reading memory files, computing and answering takes.
const ALLOWED: &[&str] = &[
    // The socket, the memory files, and standard error for last words.
    "read",
    "pread64",
    "readv",
    "write",
    "writev",
    "recvmsg",
    "recvfrom",
    "sendmsg",
    "sendto",
    "close",
    "lseek",
    "fcntl",
    "ppoll",
    // The size of a memory file.
    "fstat",
    // Memory.
    "brk",
    "munmap",
    "mremap",
    "madvise",
    // Waiting for oneself.
    "futex",
    "sched_yield",
    "sched_getaffinity",
    "restart_syscall",
    "nanosleep",
    "clock_nanosleep",
    // Reading clocks and the like.
    "clock_gettime",
    "clock_getres",
    "gettimeofday",
    "getrandom",
    "getpid",
    "gettid",
    "getppid",
    "getcpu",
    "uname",
    "sysinfo",
    "getrusage",
    "times",
    "membarrier",
    // Signals of one's own, and the end.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "set_robust_list",
    "rseq",
    "exit",
    "exit_group",
];

/// Older forms of the above that other machines never had.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[&str] = &["poll", "time"];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[&str] = &[];

/// What searching the font folders takes beside opening files. Nothing reads
/// links or asks for permissions.
const FONT_SEARCH: &[&str] = &["newfstatat", "statx", "getdents64"];

/// pdfium's search calls the older `stat` where there is one.
#[cfg(target_arch = "x86_64")]
const FONT_SEARCH_HERE: &[&str] = &["stat"];
#[cfg(not(target_arch = "x86_64"))]
const FONT_SEARCH_HERE: &[&str] = &[];

/// Calls that open a file, with the place of their flags. `openat2` takes them
/// by pointer, which a filter cannot follow.
#[cfg(target_arch = "x86_64")]
const OPENING: &[(&str, u8)] = &[("openat", 2), ("open", 1)];
#[cfg(not(target_arch = "x86_64"))]
const OPENING: &[(&str, u8)] = &[("openat", 2)];

/// Calls that this machine seems not to have.
const ABSENT: &[&str] = &["openat2"];

/// What only somebody calls who wants out.
const FATAL: &[&str] = &[
    // Other processes.
    "execve",
    "execveat",
    "clone",
    "clone3",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "kcmp",
    "kill",
    "tkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "prlimit64",
    "setrlimit",
    // The network.
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    // The machine.
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsmount",
    "setns",
    "unshare",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "reboot",
    "swapon",
    "swapoff",
    "open_by_handle_at",
    // Doors that have been left open in kernels before.
    "bpf",
    "perf_event_open",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    "keyctl",
    "add_key",
    "request_key",
    "personality",
    // What is allowed to others on this machine.
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setgroups",
    "capset",
];

#[cfg(target_arch = "x86_64")]
const FATAL_HERE: &[&str] = &["fork", "vfork", "iopl", "ioperm", "modify_ldt"];
#[cfg(not(target_arch = "x86_64"))]
const FATAL_HERE: &[&str] = &[];

/// Which files a worker may open after its calls are restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paths {
    /// Those that landlock allows, for reading. Landlock does not cover `stat`.
    Confined,
    /// None. A filter cannot read paths, so where nothing else confines them,
    /// every call that takes one is refused.
    Refused,
}

/// Takes all other system calls from this process, for good.
///
/// # Errors
/// The kernel has no filters, or none for this CPU architecture.
pub fn restrict(paths: Paths) -> Result<(), seccompiler::Error> {
    // The last one no longer allows that filters are installed.
    for program in [absent(ABSENT)?, fatal()?, allowed(paths)?] {
        apply_filter_all_threads(&program)?;
    }
    Ok(())
}

/// Answers these calls as a kernel that does not have them.
pub(super) fn absent(names: &[&str]) -> Result<BpfProgram, seccompiler::Error> {
    compile(
        &refused_with(Errno::NOSYS),
        &json!("allow"),
        &rules(&[names]),
    )
}

fn fatal() -> Result<BpfProgram, seccompiler::Error> {
    let fatal = rules(&[FATAL, FATAL_HERE]);
    compile(&json!("kill_process"), &json!("allow"), &fatal)
}

fn allowed(paths: Paths) -> Result<BpfProgram, seccompiler::Error> {
    // A call that another filter answers with `ENOSYS` must not get `EPERM` here.
    let mut allowed = rules(&[ALLOWED, ALLOWED_HERE, ABSENT]);
    allowed.extend(conditional());
    if paths == Paths::Confined {
        allowed.extend(rules(&[FONT_SEARCH, FONT_SEARCH_HERE]));
        allowed.extend(read_only());
    }
    compile(&json!("allow"), &refused_with(Errno::PERM), &allowed)
}

fn refused_with(error: Errno) -> Value {
    json!({ "errno": error.raw_os_error() })
}

fn rules(lists: &[&[&str]]) -> Vec<Value> {
    let names = lists.iter().copied().flatten();
    names.map(|name| json!({ "syscall": name })).collect()
}

/// Opening a file to read it, and for nothing else: `O_PATH` would reach files
/// that landlock does not see being opened.
fn read_only() -> impl Iterator<Item = Value> {
    let tmpfile = OFlags::TMPFILE.difference(OFlags::DIRECTORY);
    let others = OFlags::WRONLY
        | OFlags::RDWR
        | OFlags::CREATE
        | OFlags::TRUNC
        | OFlags::APPEND
        | OFlags::PATH
        | tmpfile;
    let without = json!({ "masked_eq": others.bits() });
    let rule = move |(name, index): &(&str, u8)| with(name, *index, &without, 0);
    OPENING.iter().map(rule)
}

/// A call that is allowed if one of its arguments fits.
fn with(name: &str, index: u8, op: &Value, value: u32) -> Value {
    let condition = json!({ "index": index, "type": "dword", "op": op, "val": value });
    json!({ "syscall": name, "args": [condition] })
}

/// Calls that are allowed with some arguments only.
fn conditional() -> Vec<Value> {
    let not_executable = |name| with(name, 2, &json!({ "masked_eq": PROT_EXEC }), 0);
    let equal = json!("eq");
    vec![
        not_executable("mmap"),
        not_executable("mprotect"),
        with("prctl", 0, &equal, PR_SET_VMA),
        // `abort` sends a signal to its own thread.
        with("tgkill", 0, &equal, std::process::id()),
    ]
}

fn compile(
    on_match: &Value,
    otherwise: &Value,
    rules: &[Value],
) -> Result<BpfProgram, seccompiler::Error> {
    const NAME: &str = "worker";
    let filter = json!({
        NAME: { "match_action": on_match, "mismatch_action": otherwise, "filter": rules }
    });
    let processor = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut programs = compile_from_json(filter.to_string().as_bytes(), processor)?;
    programs.remove(NAME).ok_or(seccompiler::Error::EmptyFilter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_filters_compile_and_no_call_is_in_two_lists() {
        absent(ABSENT).unwrap();
        fatal().unwrap();
        allowed(Paths::Confined).unwrap();
        allowed(Paths::Refused).unwrap();
        let opening: Vec<&str> = OPENING.iter().map(|(name, _)| *name).collect();
        let mut names: Vec<_> = [
            ALLOWED,
            ALLOWED_HERE,
            FONT_SEARCH,
            FONT_SEARCH_HERE,
            &opening[..],
            ABSENT,
            FATAL,
            FATAL_HERE,
        ]
        .concat();
        let n_names = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n_names);
    }
}

//! The system calls that a worker may make once it holds a document.
//!
//! Two filters stand one behind the other. What the first does not list is
//! refused with `EPERM`, as if the machine did not have it: a library that
//! probes goes on without. What the second lists ends the process: a renderer
//! has no use for it, so whoever calls it is no renderer any more.

use seccompiler::{BpfProgram, TargetArch, apply_filter_all_threads, compile_from_json};
use serde_json::{Value, json};

/// Whether a system call failed on purpose: "operation not permitted".
const EPERM: u32 = 1;

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
    // Fonts, which landlock lets through; anything else it does not.
    "openat",
    "fstat",
    "newfstatat",
    "statx",
    "faccessat",
    "faccessat2",
    "readlinkat",
    "getdents64",
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

/// Older forms of the above that other machines never had. Fonts are looked for with `stat`.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[&str] = &[
    "open", "stat", "lstat", "access", "readlink", "getdents", "poll", "time",
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[&str] = &[];

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

/// Takes all other system calls from this process, for good.
///
/// # Errors
/// The kernel has no filters, or none for this kind of processor.
pub fn restrict() -> Result<(), seccompiler::Error> {
    let fatal = compile("kill_process", "allow", &rules(&[FATAL, FATAL_HERE]))?;
    let mut allowed = rules(&[ALLOWED, ALLOWED_HERE]);
    allowed.extend(conditional());
    let allowed = compile("allow", json!({ "errno": EPERM }), &allowed)?;
    // Of two filters the stricter answer counts; the first must still let the
    // second be installed.
    apply_filter_all_threads(&fatal)?;
    apply_filter_all_threads(&allowed)
}

fn rules(lists: &[&[&str]]) -> Vec<Value> {
    let names = lists.iter().copied().flatten();
    names.map(|name| json!({ "syscall": name })).collect()
}

/// Calls that are allowed with some arguments only.
fn conditional() -> Vec<Value> {
    let with = |name: &str, index: u8, op: Value, value: u32| {
        let condition = json!({ "index": index, "type": "dword", "op": op, "val": value });
        json!({ "syscall": name, "args": [condition] })
    };
    let not_executable = |name| with(name, 2, json!({ "masked_eq": PROT_EXEC }), 0);
    vec![
        not_executable("mmap"),
        not_executable("mprotect"),
        with("prctl", 0, json!("eq"), PR_SET_VMA),
        // `abort` sends a signal to its own thread.
        with("tgkill", 0, json!("eq"), std::process::id()),
    ]
}

fn compile(
    on_match: &str,
    otherwise: impl serde::Serialize,
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
    fn both_filters_compile_and_no_call_is_in_both() {
        compile("kill_process", "allow", &rules(&[FATAL, FATAL_HERE])).unwrap();
        let mut allowed = rules(&[ALLOWED, ALLOWED_HERE]);
        allowed.extend(conditional());
        compile("allow", json!({ "errno": EPERM }), &allowed).unwrap();
        let mut names: Vec<_> = [ALLOWED, ALLOWED_HERE, FATAL, FATAL_HERE].concat();
        let n_names = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n_names);
    }
}

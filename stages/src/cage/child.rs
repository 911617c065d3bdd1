//! A worker's process, as the kernel shows it to its parent.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::last_words::LastWords;

/// A child process that is watched.
#[derive(Debug)]
pub struct ChildProcess {
    child: Child,
    last_words: LastWords,
    /// Address space when the limit on it was set.
    base_kb: u64,
    /// The most that was seen since.
    peak_kb: u64,
}

impl ChildProcess {
    pub fn new(child: Child, last_words: LastWords) -> Self {
        Self {
            child,
            last_words,
            base_kb: 0,
            peak_kb: 0,
        }
    }

    /// Process id.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the process has now is not counted.
    pub fn set_base(&mut self) {
        self.base_kb = self.status("VmSize:").unwrap_or_default();
    }

    /// Looks how much memory it has taken.
    pub fn watch(&mut self) {
        let peak_kb = self.status("VmPeak:").unwrap_or_default();
        self.peak_kb = self.peak_kb.max(peak_kb);
    }

    fn status(&self, name: &str) -> Option<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    }

    /// Whether it died because it got no more memory.
    ///
    /// Rust says so. C++ ends itself by a trap or an abort without a word, as
    /// it does when it finds itself in a state that cannot be. So it must have
    /// been seen with half of its memory in use: buffers grow by doubling, and
    /// the half that is there is what the failed one was to replace.
    pub fn ran_out_of_memory(&self, status: ExitStatus, memory_mb: u32) -> bool {
        const BY_ITSELF: [i32; 3] = [4, 5, 6];
        if self.last_words.are_about_memory() {
            return true;
        }
        let used_kb = self.peak_kb.saturating_sub(self.base_kb);
        status
            .signal()
            .is_some_and(|signal| BY_ITSELF.contains(&signal))
            && used_kb >= u64::from(memory_mb) << 9
    }

    /// Waits for its end; none if it lives on.
    pub fn wait_for_exit(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let limit = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))?;
        self.child.try_wait()
    }

    /// Ends it.
    pub fn kill(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Distinguishes a file from its later self without reading it.

use std::fmt;
use std::fs::Metadata;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What says how late it is; tests have their own.
pub(crate) type Clock = fn() -> SystemTime;

/// Clocks of file systems tick every two seconds at worst (FAT). What is
/// written twice within one tick looks the same after both times: git's
/// "racily clean" files.
pub(crate) const COARSE_TICK: Duration = Duration::from_secs(2);

/// Those that write down fractions of a second tick every hundredth of one.
const FINE_TICK: Duration = Duration::from_millis(100);

const NANOS: i64 = 1_000_000_000;

/// A file's size, the times of its last change, and its number on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileState {
    n_bytes: u64,
    /// Nanoseconds since 1970: when the content changed, which programs may set.
    modified_ns: i64,
    /// When content, name or rights changed, which the kernel alone sets; the
    /// same as `modified_ns` where there is no such time.
    changed_ns: i64,
    inode: u64,
}

impl FileState {
    /// Size of the file.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    #[cfg(unix)]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(NANOS).saturating_add(nanos);
        Self {
            n_bytes: metadata.len(),
            modified_ns: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanos(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified_ns = metadata.modified().map_or(0, since_1970_ns);
        Self {
            n_bytes: metadata.len(),
            modified_ns,
            changed_ns: modified_ns,
            inode: 0,
        }
    }

    /// How long the file has been as it is; nothing where its times lie ahead.
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        let last = self.modified_ns.max(self.changed_ns);
        let age_ns = since_1970_ns(now).saturating_sub(last);
        Duration::from_nanos(u64::try_from(age_ns).unwrap_or(0))
    }

    /// Whether the file, looked at `now`, may have changed or may still change
    /// within the same `tick` of the clock, and look the same.
    pub(crate) fn is_fresh(&self, now: SystemTime, tick: Duration) -> bool {
        let tick = i64::try_from(tick.as_nanos()).unwrap_or(i64::MAX);
        let now = since_1970_ns(now);
        let is_recent = |time: i64| time > now.saturating_sub(tick);
        // A program may set `modified` to any year; `changed` can lie ahead
        // only because a clock was set back, which makes it worth nothing.
        let is_set = self.modified_ns > now.saturating_add(tick);
        is_recent(self.changed_ns) || (is_recent(self.modified_ns) && !is_set)
    }

    /// How coarse the clock of the file's disk may be.
    pub(crate) fn tick(&self) -> Duration {
        if self.changed_ns % NANOS == 0 {
            COARSE_TICK
        } else {
            FINE_TICK
        }
    }
}

impl fmt::Display for FileState {
    /// As the ledger keeps it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            n_bytes,
            modified_ns,
            changed_ns,
            inode,
        } = self;
        write!(f, "{n_bytes}:{modified_ns}:{changed_ns}:{inode}")
    }
}

fn since_1970_ns(time: SystemTime) -> i64 {
    let clamp = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => clamp(after),
        Err(before) => -clamp(before.duration()),
    }
}

#[cfg(test)]
impl FileState {
    /// A file of `n_bytes`, changed `changed` after 1970.
    pub(crate) fn made_up(n_bytes: u64, changed: Duration) -> Self {
        let changed_ns = i64::try_from(changed.as_nanos()).unwrap();
        Self {
            n_bytes,
            modified_ns: changed_ns,
            changed_ns,
            inode: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_file_is_fresh_until_the_clock_of_its_disk_has_ticked() {
        let state = FileState::made_up(1, Duration::from_secs(100));
        assert!(state.is_fresh(at(101.9), COARSE_TICK));
        assert!(!state.is_fresh(at(102.0), COARSE_TICK));
        assert!(!state.is_fresh(at(101.0), FINE_TICK));
        // The clock was set back: nothing is known of what happened when.
        assert!(state.is_fresh(at(50.0), COARSE_TICK));
    }

    #[test]
    fn a_time_that_a_program_set_ahead_makes_no_file_fresh_for_ever() {
        let far = FileState {
            modified_ns: 4_000 * NANOS,
            ..FileState::made_up(1, Duration::from_secs(100))
        };
        assert!(!far.is_fresh(at(200.0), COARSE_TICK));
        assert_eq!(far.age(at(200.0)), Duration::ZERO);
    }

    #[test]
    fn the_tick_is_fine_where_times_have_fractions() {
        let whole = FileState::made_up(1, Duration::from_secs(7));
        let fraction = FileState::made_up(1, Duration::from_millis(7_001));
        assert_eq!((whole.tick(), fraction.tick()), (COARSE_TICK, FINE_TICK));
        assert_eq!(fraction.to_string(), "1:7001000000:7001000000:1");
        assert_eq!(fraction.age(at(9.001)), Duration::from_secs(2));
    }

    #[cfg(unix)]
    #[test]
    fn another_file_of_the_same_size_and_time_has_another_state() {
        let folder = tempfile::tempdir().unwrap();
        let state = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "x").unwrap();
            FileState::of(&std::fs::metadata(path).unwrap())
        };
        let (a, b) = (state("a"), state("b"));
        assert_ne!(a.inode, b.inode);
        assert_eq!(a, state_again(folder.path()));
    }

    #[cfg(unix)]
    fn state_again(folder: &std::path::Path) -> FileState {
        FileState::of(&std::fs::metadata(folder.join("a")).unwrap())
    }
}

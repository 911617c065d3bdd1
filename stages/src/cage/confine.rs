//! Restricts a worker before it sees its first document.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};
use pagemill_pipeline::Resources;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::calls::{self, Paths};
use super::protocol::ChannelError;

/// Where fonts are that a document may name without bringing them.
pub(super) const FONT_FOLDERS: [&str; 3] = [
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/usr/share/X11/fonts",
];

/// The newest interface of landlock that is used; an older kernel does what it can.
const LANDLOCK: ABI = ABI::V7;

/// How documents are kept apart from the program that reads them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In processes of their own that can neither open files nor call whom they like.
    #[default]
    Cage,
    /// In processes of their own, with limits and no more.
    Process,
    /// In the program itself: nothing is limited, and a crash ends the run.
    None,
}

/// What holds a worker on this machine, as the worker itself found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protections {
    /// Whether memory, time, files and processes are limited.
    pub limits: bool,
    /// Whether it holds no capabilities, also where the program runs as root.
    pub no_capabilities: bool,
    /// Version of landlock's interface; none where the kernel does not have it.
    pub landlock: Option<u32>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

impl Protections {
    /// Whether nothing is missing that the cage is made of.
    pub fn are_complete(&self) -> bool {
        self.limits && self.no_capabilities && self.landlock.is_some() && self.seccomp
    }

    /// Whether landlock keeps the network away too, on top of the filter.
    fn has_landlock_network(&self) -> bool {
        self.landlock >= Some(ABI::V4 as u32)
    }
}

impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.limits {
            return f.write_str("none: documents are parsed in the program itself");
        }
        f.write_str("processes with limits")?;
        if self.no_capabilities {
            f.write_str(" and no capabilities")?;
        }
        match (self.landlock, self.seccomp) {
            (Some(version), _) => write!(f, ", no files but fonts (landlock {version}")?,
            (None, true) => f.write_str(", no files, not even fonts (no landlock")?,
            (None, false) => f.write_str(", files of the user (no landlock")?,
        }
        let network = if self.has_landlock_network() {
            ", network too)"
        } else {
            ")"
        };
        f.write_str(network)?;
        f.write_str(if self.seccomp {
            ", listed system calls (seccomp)"
        } else {
            ", any system call (no seccomp)"
        })
    }
}

/// Warns of what this kernel lacks, once for all its clones: a run starts a
/// worker for each instance of a stage, and again after each one that died.
#[derive(Debug, Clone, Default)]
pub struct ProtectionWarning {
    is_given: Arc<AtomicBool>,
}

impl ProtectionWarning {
    /// The one that the nodes of a run share.
    pub fn of_run(resources: &Resources) -> Self {
        Self::clone(&resources.get_or_insert("sandbox", Self::default))
    }

    /// One that is not given again.
    pub fn given() -> Self {
        Self {
            is_given: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Warns if something is missing and nobody has warned yet.
    pub fn warn_of_missing(&self, protections: Protections) {
        if protections.are_complete() || self.is_given.swap(true, Ordering::Relaxed) {
            return;
        }
        let hint = "docs/security.md lists what each Linux version adds";
        tracing::warn!(%protections, hint, "this kernel lacks a part of the sandbox");
    }
}

/// What a worker may use.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// Memory beyond what it has when it starts.
    pub memory_mb: u32,
    /// Processor time over its whole life.
    pub cpu_s: u32,
}

/// Gives up what a parser has no use for. Everything after this runs on bytes
/// from strangers.
///
/// # Errors
/// A limit cannot be set. That the kernel knows no landlock or no filters is
/// told in what it answers.
pub fn confine(isolation: Isolation, allowance: Allowance) -> Result<Protections, ChannelError> {
    if isolation == Isolation::None {
        return Ok(Protections::default());
    }
    // Should the machine run out of memory, this process is the one to go.
    // Where the file cannot be written, the limits below must do.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from)?;
    limit(allowance)?;
    let mut protections = Protections {
        limits: true,
        no_capabilities: drop_capabilities(),
        ..Protections::default()
    };
    if isolation == Isolation::Cage {
        // Nobody reads its memory, and its files in /proc are root's.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(io::Error::from)?;
        if let Ok(status) = keep_from_files() {
            let is_enforced = status.ruleset != RulesetStatus::NotEnforced;
            if let (true, LandlockStatus::Available { effective_abi, .. }) =
                (is_enforced, status.landlock)
            {
                protections.landlock = Some(effective_abi as u32);
            }
        }
        // Last: what is above takes calls that it forbids.
        let paths = match protections.landlock {
            Some(_) => Paths::Confined,
            None => Paths::Refused,
        };
        protections.seccomp = calls::restrict(paths).is_ok();
    }
    Ok(protections)
}

/// Empties every set of capabilities; whether the process holds none now.
///
/// Removing one from the bounding set is itself a privilege. A process without
/// it cannot gain capabilities either: it has no new privileges, and programs
/// are not started.
fn drop_capabilities() -> bool {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // `INVAL`: the kernel has no further ones.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(_) => return false,
        }
    }
    // Absent before Linux 4.3; what is not permitted cannot be ambient.
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).is_ok()
        && rustix::thread::capabilities(None).is_ok_and(|held| held == none)
}

fn limit(allowance: Allowance) -> Result<(), ChannelError> {
    let memory_bytes = u64::from(allowance.memory_mb) << 20;
    let limits = [
        // What is mapped already (the executable, libpdfium, the page buffer) is not counted.
        (Resource::As, mapped_bytes()?.saturating_add(memory_bytes)),
        // The parent keeps the clock; this is for a parent that is stopped.
        (Resource::Cpu, u64::from(allowance.cpu_s)),
        (Resource::Core, 0),
        // No file grows; the page buffer is written through its mapping.
        (Resource::Fsize, 0),
        // The socket, two documents, a font or two.
        (Resource::Nofile, 32),
        // No processes and threads; root is not held by this, but by the filter.
        (Resource::Nproc, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Takes all files but fonts away, and with them connections to others.
fn keep_from_files() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(
            FONT_FOLDERS,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .restrict_self()
}

/// Address space that this process uses now.
fn mapped_bytes() -> Result<u64, ChannelError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let size_kb = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .ok_or(ChannelError::Garbled(
            "a /proc/self/status without `VmSize`",
        ))?;
    Ok(size_kb << 10)
}

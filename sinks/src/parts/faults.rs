//! Fails at a step that a test names.

pub(super) use self::plan::Faults;

/// A step on the way of rows into their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A part that holds old rows is to be written anew, or removed.
    BeforeRewriting,
    BeforeWrite,
    /// The file is written, but not synced.
    AfterWrite,
    AfterSync,
    BeforeRename,
    AfterRename,
    BeforeRemoval,
    AfterRemoval,
    AfterRewriting,
    /// Small parts are to become one.
    BeforeMerging,
    AfterMerging,
    BeforeFolderSync,
    AfterFolderSync,
    BeforeManifest,
    AfterManifest,
}

#[cfg(not(test))]
mod plan {
    use std::io;

    use super::Step;

    /// Nothing goes wrong by itself outside of tests.
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Faults {}

    #[expect(clippy::unused_self, reason = "tests have another one")]
    impl Faults {
        #[expect(clippy::unnecessary_wraps, reason = "tests have another one")]
        pub(in super::super) fn at(&self, _: Step) -> io::Result<()> {
            Ok(())
        }

        pub(in super::super) fn has_died(&self) -> bool {
            false
        }
    }
}

#[cfg(test)]
mod plan {
    use std::io;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use super::Step;

    /// What a test wants to go wrong.
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Faults {
        plan: Arc<Mutex<Plan>>,
    }

    #[derive(Debug, Default)]
    struct Plan {
        /// The step, and how many times it still goes well.
        fault: Option<(Step, usize)>,
        is_deadly: bool,
        has_died: bool,
    }

    impl Faults {
        /// The `nth` (from 0) time, this step ends in an error; it goes well after that.
        pub(in super::super) fn fail_at(&self, step: Step, nth: usize) {
            self.plan().fault = Some((step, nth));
        }

        /// The `nth` (from 0) time, the process comes to its end at this step:
        /// files stay as they are, whatever is tried after that.
        pub(in super::super) fn die_at(&self, step: Step, nth: usize) {
            *self.plan() = Plan {
                fault: Some((step, nth)),
                is_deadly: true,
                has_died: false,
            };
        }

        pub(in super::super) fn at(&self, step: Step) -> io::Result<()> {
            let mut plan = self.plan();
            if plan.has_died {
                return Err(io::Error::other("the process has ended"));
            }
            match &mut plan.fault {
                Some((faulty, 0)) if *faulty == step => {
                    plan.fault = None;
                    plan.has_died = plan.is_deadly;
                    Err(io::Error::other(format!("a fault was set at {step:?}")))
                }
                Some((faulty, n_good)) if *faulty == step => {
                    *n_good -= 1;
                    Ok(())
                }
                _ => Ok(()),
            }
        }

        pub(in super::super) fn has_died(&self) -> bool {
            self.plan().has_died
        }

        /// Whether it has come to the fault that was set.
        pub(in super::super) fn was_hit(&self) -> bool {
            self.plan().fault.is_none()
        }

        fn plan(&self) -> MutexGuard<'_, Plan> {
            self.plan.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

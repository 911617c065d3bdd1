//! Limits the rendering processes that the instances of a program keep busy.
//!
//! Instances of one node share them, and so do those of several pipelines. Each instance has a process of its own. While some of them have nothing to
//! do, one with a large document borrows what theirs would have used: it starts
//! further processes, and ends them as soon as another instance gets a document.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What instances share: a count of the processes that they may keep busy. A
/// clone counts the same processes.
#[derive(Clone, Default)]
pub struct ProcessBudget {
    counts: Arc<Mutex<Counts>>,
}

impl fmt::Debug for ProcessBudget {
    /// Without the counts, which change: a pipeline that is wired in Rust tells
    /// the settings of its stages by this text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessBudget").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
#[expect(clippy::struct_field_names, reason = "the names of counts begin so")]
struct Counts {
    /// Instances that exist.
    n_instances: usize,
    /// Processes that may be busy: one for each instance, also for one that is
    /// done because no documents are left for it.
    n_shares: usize,
    /// Those of them that nobody joined with and nobody has taken over: what
    /// instances left that are done.
    n_bequeathed: usize,
    /// Instances that have a document.
    n_working: usize,
    /// Processes that were borrowed.
    n_lent: usize,
}

impl ProcessBudget {
    /// Counts one more instance.
    pub(super) fn join(&self) -> BudgetShare {
        let mut counts = self.lock();
        counts.n_instances += 1;
        // A pipeline that is run again takes the place of its last run.
        let is_taken_over = counts.n_bequeathed > 0;
        if is_taken_over {
            counts.n_bequeathed -= 1;
        } else {
            counts.n_shares += 1;
        }
        BudgetShare {
            budget: self.clone(),
            is_bequeathed: is_taken_over,
        }
    }

    /// Processes that are borrowed now.
    #[cfg(test)]
    pub(super) fn n_lent(&self) -> usize {
        self.lock().n_lent
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one instance adds to the budget.
#[derive(Debug)]
pub struct BudgetShare {
    budget: ProcessBudget,
    /// Whether others may use it when this instance is gone.
    is_bequeathed: bool,
}

impl BudgetShare {
    /// The instance has a document, until the guard is dropped.
    pub fn begin_work(&self) -> Work {
        self.budget.lock().n_working += 1;
        Work {
            budget: self.budget.clone(),
        }
    }

    /// One more process, if the other instances leave one unused.
    pub fn borrow(&self) -> Option<Loan> {
        let mut counts = self.budget.lock();
        if counts.n_working + counts.n_lent >= counts.n_shares {
            return None;
        }
        counts.n_lent += 1;
        Some(Loan {
            budget: self.budget.clone(),
            is_recalled: false,
        })
    }

    /// No more documents will come: the others may use this instance's process
    /// to the end. An instance that is dropped without this takes its share
    /// along, for it never ran (the check of a file builds stages too) or is
    /// replaced by another one (after a panic).
    pub fn bequeath(&mut self) {
        self.is_bequeathed = true;
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        let mut counts = self.budget.lock();
        counts.n_instances -= 1;
        if counts.n_instances == 0 {
            // The next run begins anew.
            counts.n_shares = 0;
            counts.n_bequeathed = 0;
        } else if self.is_bequeathed {
            counts.n_bequeathed += 1;
        } else {
            counts.n_shares -= 1;
        }
    }
}

/// An instance at work; see [`BudgetShare::begin_work`].
#[derive(Debug)]
pub struct Work {
    budget: ProcessBudget,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.budget.lock().n_working -= 1;
    }
}

/// The permission to keep one more process busy.
#[derive(Debug)]
pub struct Loan {
    budget: ProcessBudget,
    is_recalled: bool,
}

impl Loan {
    /// Whether another instance needs the process. Of several borrowers, only
    /// as many are told so as are needed: who is told ends the process.
    pub fn is_recalled(&mut self) -> bool {
        let mut counts = self.budget.lock();
        if !self.is_recalled && counts.n_working + counts.n_lent > counts.n_shares {
            counts.n_lent -= 1;
            self.is_recalled = true;
        }
        self.is_recalled
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.is_recalled {
            self.budget.lock().n_lent -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_lent_as_other_instances_leave_unused() {
        let budget = ProcessBudget::default();
        let shares = [budget.join(), budget.join(), budget.join()];
        let _work = shares[0].begin_work();
        let loans = [shares[0].borrow().unwrap(), shares[0].borrow().unwrap()];
        assert!(shares[0].borrow().is_none());
        drop(loans);
        assert!(shares[0].borrow().is_some());
    }

    #[test]
    fn an_instance_that_gets_a_document_takes_back_one_process_and_no_more() {
        let budget = ProcessBudget::default();
        let shares = [budget.join(), budget.join(), budget.join()];
        let _work = shares[0].begin_work();
        let mut loans = [shares[0].borrow().unwrap(), shares[0].borrow().unwrap()];
        assert!(!loans[0].is_recalled());
        let other_work = shares[1].begin_work();
        assert!(loans[1].is_recalled() && !loans[0].is_recalled());
        drop(loans);
        assert_eq!(budget.n_lent(), 0);
        drop(other_work);
        let _loans = [shares[0].borrow().unwrap(), shares[0].borrow().unwrap()];
    }

    #[test]
    fn an_instance_leaves_its_share_to_the_others_only_when_it_is_done() {
        let budget = ProcessBudget::default();
        let (share, mut done) = (budget.join(), budget.join());
        let _work = share.begin_work();
        drop(budget.join());
        done.bequeath();
        drop(done);
        let _loan = share.borrow().unwrap();
        assert!(share.borrow().is_none());
    }

    #[test]
    fn an_instance_takes_over_what_one_that_is_done_has_left() {
        let budget = ProcessBudget::default();
        let share = budget.join();
        for _ in 0..3 {
            let mut of_other_pipeline = budget.join();
            let _work = share.begin_work();
            let _loan = share.borrow().unwrap();
            assert!(share.borrow().is_none());
            of_other_pipeline.bequeath();
        }
    }

    #[test]
    fn the_next_run_begins_anew() {
        let budget = ProcessBudget::default();
        for _ in 0..2 {
            let mut shares = [budget.join(), budget.join()];
            shares.iter_mut().for_each(BudgetShare::bequeath);
            let _work = shares[0].begin_work();
            let _loan = shares[0].borrow().unwrap();
            assert!(shares[0].borrow().is_none());
        }
    }
}

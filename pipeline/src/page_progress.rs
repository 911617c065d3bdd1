//! Counts the pages of documents under way, for the progress line.
//!
//! A stage that makes pages of a document announces their number
//! ([`Outlet::expect_pages`](crate::Outlet::expect_pages)). A page is done when
//! no item of it moves any more: each is in its sink, dropped or set aside. A
//! document of which nobody announces pages counts as one page when it ends, so
//! that texts and documents of many pages add up.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::key::DocumentId;

/// The pages of a run.
#[derive(Debug)]
pub(crate) struct PageProgress {
    began: Instant,
    /// Whether any page was announced: most graphs need not look any up.
    is_used: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: HashMap<DocumentId, Arc<DocumentPages>>,
    /// Of documents that have ended.
    ended: PageCounts,
    /// When the last stage was ready, and the pages that were done by then.
    ready: Option<(Duration, u64)>,
}

/// How many pages there are, and how many are done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct PageCounts {
    /// Documents whose pages are counted here.
    pub(crate) n_documents: u64,
    pub(crate) n_expected: u64,
    pub(crate) n_done: u64,
    /// Pages among those done that an earlier run had stored.
    n_resumed: u64,
    /// Documents under way, each as the share of its pages that are done.
    pub(crate) documents_in_part: f64,
}

/// The pages of a document under way.
#[derive(Debug)]
struct DocumentPages {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    n_expected: u64,
    n_resumed: u64,
    in_flight: HashMap<u32, Weak<PageInFlight>>,
    done: HashSet<u32>,
}

impl Pages {
    fn n_done(&self) -> u64 {
        self.n_resumed + self.done.len() as u64
    }

    /// At least those that are done: an announcement may be too low.
    fn n_expected(&self) -> u64 {
        self.n_expected.max(self.n_done())
    }
}

/// Lives as long as an item of the page moves; all of them share it.
#[derive(Debug)]
pub(crate) struct PageInFlight {
    document: Arc<DocumentPages>,
    page: u32,
}

impl Drop for PageInFlight {
    fn drop(&mut self) {
        let mut pages = self.document.lock();
        // Another item of the page may have come meanwhile, and follows it anew.
        let is_over = |page: &Weak<Self>| page.strong_count() == 0;
        if pages.in_flight.get(&self.page).is_some_and(is_over) {
            pages.in_flight.remove(&self.page);
            pages.done.insert(self.page);
        }
    }
}

impl DocumentPages {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageProgress {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            is_used: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The document has so many pages; `n_resumed` of them are stored already.
    /// Where several nodes make pages of it, the largest number counts.
    pub(crate) fn expect(&self, document: DocumentId, n_pages: u64, n_resumed: u64) {
        self.is_used.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let document = state.under_way.entry(document).or_insert_with(|| {
            Arc::new(DocumentPages {
                pages: Mutex::default(),
            })
        });
        let mut pages = document.lock();
        pages.n_expected = pages.n_expected.max(n_pages);
        pages.n_resumed = pages.n_resumed.max(n_resumed);
    }

    /// An item of the page moves; `None` where nobody announced pages.
    pub(crate) fn follow(&self, document: DocumentId, page: u32) -> Option<Arc<PageInFlight>> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        let document = Arc::clone(self.lock().under_way.get(&document)?);
        let mut pages = document.lock();
        let known = pages.in_flight.get(&page).and_then(Weak::upgrade);
        let followed = known.unwrap_or_else(|| {
            let followed = Arc::new(PageInFlight {
                document: Arc::clone(&document),
                page,
            });
            pages.in_flight.insert(page, Arc::downgrade(&followed));
            followed
        });
        drop(pages);
        Some(followed)
    }

    /// The document has ended; one that is not whole was interrupted.
    pub(crate) fn end(&self, document: DocumentId, is_whole: bool) {
        let mut state = self.lock();
        let (mut n_expected, mut n_done, mut n_resumed) = (1, u64::from(is_whole), 0);
        if let Some(document) = state.under_way.remove(&document) {
            let pages = document.lock();
            n_expected = pages.n_expected();
            n_done = if is_whole { n_expected } else { pages.n_done() };
            n_resumed = pages.n_resumed;
        }
        let ended = &mut state.ended;
        ended.n_documents += 1;
        ended.n_expected += n_expected;
        ended.n_done += n_done;
        ended.n_resumed += n_resumed;
    }

    /// A worker has started: its model is loaded. The pace counts from the last
    /// of these moments.
    pub(crate) fn worker_started(&self) {
        let now = self.began.elapsed();
        let mut state = self.lock();
        state.ready = Some((now, state.counts().n_worked()));
    }

    /// The counts as they are now, and pages per second.
    pub(crate) fn now(&self) -> (PageCounts, f64) {
        let state = self.lock();
        let counts = state.counts();
        let ready = state.ready.unwrap_or_default();
        (counts, pace(counts.n_worked(), self.began.elapsed(), ready))
    }
}

impl State {
    fn counts(&self) -> PageCounts {
        let mut counts = self.ended;
        for document in self.under_way.values() {
            let pages = document.lock();
            let (n_done, n_expected) = (pages.n_done(), pages.n_expected());
            counts.n_documents += 1;
            counts.n_expected += n_expected;
            counts.n_done += n_done;
            counts.n_resumed += pages.n_resumed;
            counts.documents_in_part += n_done as f64 / n_expected.max(1) as f64;
        }
        counts
    }
}

impl PageCounts {
    /// Pages that took work of this run.
    fn n_worked(&self) -> u64 {
        self.n_done.saturating_sub(self.n_resumed)
    }
}

/// Pages per second since every stage was ready: loading a model takes no page's time.
fn pace(n_worked: u64, elapsed: Duration, ready: (Duration, u64)) -> f64 {
    let (ready_after, n_before) = ready;
    let time_s = elapsed.saturating_sub(ready_after).as_secs_f64();
    if time_s > 0.0 {
        n_worked.saturating_sub(n_before) as f64 / time_s
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(progress: &PageProgress) -> (u64, u64, u64) {
        let counts = progress.now().0;
        (counts.n_documents, counts.n_done, counts.n_expected)
    }

    #[test]
    fn a_page_is_done_when_the_last_of_its_items_moves_no_more() {
        let (progress, id) = (PageProgress::new(), DocumentId::of("a.pdf"));
        progress.expect(id, 4, 0);
        let first = progress.follow(id, 1).expect("announced");
        let chunk = Arc::clone(&first);
        let also = progress.follow(id, 1).expect("announced");
        drop((first, chunk));
        assert_eq!(counts(&progress), (1, 0, 4));
        drop(also);
        assert_eq!(counts(&progress), (1, 1, 4));
        // Made once more, it is still one page.
        drop(progress.follow(id, 1));
        assert_eq!(counts(&progress), (1, 1, 4));
        assert!((progress.now().0.documents_in_part - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_document_that_ends_has_all_its_pages_done_and_one_without_pages_counts_as_one() {
        let progress = PageProgress::new();
        let [long, text, cut] = ["long.pdf", "a.txt", "cut.pdf"].map(DocumentId::of);
        progress.expect(long, 3000, 0);
        assert!(progress.follow(text, 1).is_none());
        progress.end(long, true);
        progress.end(text, true);
        assert_eq!(counts(&progress), (2, 3001, 3001));
        progress.expect(cut, 10, 0);
        drop(progress.follow(cut, 1));
        progress.end(cut, false);
        assert_eq!(counts(&progress), (3, 3002, 3011));
    }

    #[test]
    fn pages_of_an_earlier_run_are_done_and_do_not_speed_the_pace() {
        let (progress, id) = (PageProgress::new(), DocumentId::of("a.pdf"));
        progress.expect(id, 100, 60);
        drop(progress.follow(id, 61));
        assert_eq!(counts(&progress), (1, 61, 100));
        assert_eq!(progress.now().0.n_worked(), 1);
    }

    #[test]
    fn the_pace_counts_from_the_moment_when_every_stage_was_ready() {
        let seconds = Duration::from_secs;
        for (n_done, elapsed_s, ready, expected) in [
            (0, 0, (seconds(0), 0), "0.0"),
            (32, 130, (seconds(120), 2), "3.0"),
            (32, 120, (seconds(120), 2), "0.0"),
        ] {
            let per_s = pace(n_done, seconds(elapsed_s), ready);
            assert_eq!(format!("{per_s:.1}"), expected);
        }
    }

    #[test]
    fn an_announcement_that_was_too_low_is_corrected_by_what_came() {
        let (progress, id) = (PageProgress::new(), DocumentId::of("a.pdf"));
        progress.expect(id, 1, 0);
        for page in 1..=3 {
            drop(progress.follow(id, page));
        }
        assert_eq!(counts(&progress), (1, 3, 3));
        progress.end(id, true);
        assert_eq!(counts(&progress), (1, 3, 3));
    }
}

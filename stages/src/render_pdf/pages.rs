//! The pages of one document, rendered by one process or by several.

use std::collections::{BTreeSet, VecDeque};
use std::ops::DerefMut;
use std::time::{Duration, Instant};

use super::budget::{Loan, Work};
use super::config::RendererChoice;
use super::document::DocumentRenderer;
use super::error::{Attempts, RenderError};
use crate::cage::{Failure, StartError};
use crate::cage::process::{BusyProcess, WorkerProcess};
use crate::cage::protocol::{Metadata, PageReply, Reader, Renderer};
use crate::cage::shared::SealedDocument;

/// Pages that may fail one after the other before the rest is not tried: a
/// file of a few bytes can claim to have a thousand million pages.
const MAX_FAILURES_IN_A_ROW: u32 = 50;

/// With so few pages left, it does not pay to start a further process.
const MIN_PAGES_TO_SHARE: u32 = 8;

/// A document that opens within this time is opened in further processes at
/// once. Another one only after it was rendered for as long as it took to open.
const QUICK_TO_OPEN: Duration = Duration::from_secs(1);

/// A document, and what is known to open it.
#[derive(Debug)]
pub(super) struct ReadableDocument {
    pub(super) document: SealedDocument,
    pub(super) renderer: Renderer,
    pub(super) n_pages: u32,
}

impl ReadableDocument {
    /// Opens it in one more process; all of them share its bytes.
    fn open_in(
        &self,
        process: &mut WorkerProcess,
        reader: &Reader,
    ) -> Result<(), Failure> {
        let n_pages = process.open(&self.document, reader)?.n_pages;
        // Renderers read the page tree in different ways: what hayro calls
        // page 7 may not be the page 7 of the other items.
        if n_pages == self.n_pages {
            Ok(())
        } else {
            Err(Failure::OtherPages)
        }
    }
}

/// A page that is being rendered.
#[derive(Debug)]
struct PageUnderWay {
    /// Its number, from 0.
    index: u32,
    /// Who renders it; a failure if its process could not open the document.
    process: Result<BusyProcess, Failure>,
    /// None for the instance's own process.
    loan: Option<Loan>,
}

/// A document that is being rendered, page after page.
///
/// Each process has one page to render. They are asked for pages, and for
/// their answers, in the order of the pages: so the pages leave in order, and
/// nobody need wait for several processes at once. A page is asked for as soon
/// as the one before left its process, and is lost with its process when the
/// document is dropped before its end.
#[derive(Debug)]
pub struct DocumentPages<'a> {
    owner: &'a mut DocumentRenderer,
    opened: ReadableDocument,
    metadata: Metadata,
    /// Whether the owner's process, if it is idle, has the document open.
    is_open: bool,
    /// Pages that are to be rendered, the first of the document.
    n_wanted: u32,
    /// Pages that are passed over.
    unwanted: BTreeSet<u32>,
    /// The next page that a process will be asked for.
    n_begun: u32,
    /// The last of these, in order: those that did not leave yet.
    under_way: VecDeque<PageUnderWay>,
    /// Whether no other process can open the document.
    is_alone: bool,
    /// hayro, for the pages that pdfium could not do.
    fallback: Option<WorkerProcess>,
    /// Time spent on rendering; waiting for a full edge is not counted.
    spent: Duration,
    /// The part of it that went into opening the document, here and there.
    spent_opening: Duration,
    n_failed_in_a_row: u32,
    /// Tells other instances that this one has a document. It is the last
    /// field, so that the processes above have ended when it is dropped.
    _work: Work,
}

/// A page with its pixels.
#[derive(Debug)]
pub struct RenderedPage<P> {
    /// Sizes and text.
    pub page: PageReply,
    /// RGB8, `[height_px, width_px, 3]`, no padding.
    pub pixels: P,
    /// Who rendered it.
    pub renderer: Renderer,
}

impl<'a> DocumentPages<'a> {
    /// Pages of a document that the owner's process, unless it died since, has
    /// `opened`, which took that long.
    pub(super) fn new(
        owner: &'a mut DocumentRenderer,
        work: Work,
        opened: ReadableDocument,
        metadata: Metadata,
        max_pages: u32,
        took: Duration,
    ) -> Self {
        Self {
            is_open: owner.process.is_some(),
            owner,
            n_wanted: opened.n_pages.min(max_pages),
            opened,
            metadata,
            unwanted: BTreeSet::new(),
            n_begun: 0,
            under_way: VecDeque::new(),
            is_alone: false,
            fallback: None,
            spent: took,
            spent_opening: took,
            n_failed_in_a_row: 0,
            _work: work,
        }
    }

    /// Passes over these pages (from 0), which need not be rendered again. To be
    /// called before the first page is.
    pub fn pass_over(&mut self, pages: BTreeSet<u32>) {
        self.unwanted = pages;
        drop(self.unwanted.split_off(&self.n_wanted));
        self.skip_unwanted();
    }

    fn skip_unwanted(&mut self) {
        while self.unwanted.contains(&self.n_begun) {
            self.n_begun += 1;
        }
    }

    /// Number of pages that the document claims to have, at least 1.
    pub fn n_pages(&self) -> u32 {
        self.opened.n_pages
    }

    /// Title and author.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The page (from 0) that [`DocumentPages::render`] will render; none at the end.
    pub fn next_page(&self) -> Option<u32> {
        let under_way = self.under_way.front().map(|page| page.index);
        let next = under_way.unwrap_or(self.n_begun);
        (next < self.n_wanted).then_some(next)
    }

    /// Whether the remaining pages should be left alone, and why.
    ///
    /// # Errors
    /// The document used up its time, or too many of its pages failed.
    pub fn check_patience(&self) -> Result<(), RenderError> {
        let Some(next) = self.next_page() else {
            return Ok(());
        };
        let (from, to) = (next + 1, self.n_wanted);
        if self.spent > self.owner.document_limit {
            let limit_s = self.owner.document_limit.as_secs() as u32;
            return Err(RenderError::OutOfTime { limit_s, from, to });
        }
        if self.n_failed_in_a_row >= MAX_FAILURES_IN_A_ROW {
            return Err(RenderError::GaveUp {
                n_failed: self.n_failed_in_a_row,
                from,
                to,
            });
        }
        Ok(())
    }

    /// Renders the next page into a buffer of as many bytes as `allocate` is asked for.
    ///
    /// # Errors
    /// No renderer can do the page, or no process can be started
    /// ([`RenderError::is_fatal`]).
    ///
    /// # Panics
    /// [`DocumentPages::next_page`] is none.
    pub fn render<P: DerefMut<Target = [u8]>>(
        &mut self,
        allocate: impl FnOnce(usize) -> P,
    ) -> Result<RenderedPage<P>, RenderError> {
        let began = Instant::now();
        let result = self.try_render(allocate);
        self.spent += began.elapsed();
        self.n_failed_in_a_row = if result.is_ok() {
            0
        } else {
            self.n_failed_in_a_row + 1
        };
        result
    }

    fn try_render<P: DerefMut<Target = [u8]>>(
        &mut self,
        allocate: impl FnOnce(usize) -> P,
    ) -> Result<RenderedPage<P>, RenderError> {
        let index = self.next_page().expect("a page is left");
        self.begin_own()?;
        self.begin_borrowed();
        let page = self.under_way.pop_front();
        let PageUnderWay { process, loan, .. } = page.expect("the own process has a page at least");
        let failure = match process.map(BusyProcess::finish) {
            Ok((process, Ok(page))) => {
                // The pixels lie in the process's buffer until its next page.
                let rendered = copy(page, &process, self.opened.renderer, allocate);
                self.go_on(process, loan);
                return rendered;
            }
            Ok((process, Err(failure))) => {
                self.go_on(process, loan);
                failure
            }
            Err(failure) => failure,
        };
        let failure = if failure.deserves_retry() {
            match self.render_again(index)? {
                Ok((page, process)) => {
                    let rendered = copy(page, &process, self.opened.renderer, allocate);
                    self.keep(process);
                    return rendered;
                }
                Err(failure) => failure,
            }
        } else {
            failure
        };
        self.second_opinion(index, failure, allocate)
    }

    /// Renders a page that its process did not survive in a fresh one. A page
    /// that brings this one down too is to blame, and not what went before.
    fn render_again(
        &self,
        index: u32,
    ) -> Result<Result<(PageReply, WorkerProcess), Failure>, RenderError> {
        let mut process = WorkerProcess::start(&self.owner.settings)?;
        let reader = self.owner.reader(self.opened.renderer);
        let page = self.opened.open_in(&mut process, &reader);
        let page = page.and_then(|()| process.render(index));
        Ok(page.map(|page| (page, process)))
    }

    /// A process that has the document open becomes the own one, if that died.
    fn keep(&mut self, process: WorkerProcess) {
        let has_page = self.under_way.iter().any(|page| page.loan.is_none());
        if !has_page && self.owner.process.is_none() {
            self.owner.process = Some(process);
            self.is_open = true;
        }
    }

    /// Asks the own process for a page, if it has none, and starts it again if it died.
    fn begin_own(&mut self) -> Result<(), RenderError> {
        let has_page = self.under_way.iter().any(|page| page.loan.is_none());
        if has_page || self.n_begun == self.n_wanted {
            return Ok(());
        }
        let mut process = match self.owner.process.take() {
            Some(process) => process,
            None => WorkerProcess::start(&self.owner.settings)?,
        };
        let reader = self.owner.reader(self.opened.renderer);
        if !self.is_open
            && let Err(failure) = self.opened.open_in(&mut process, &reader)
        {
            self.owner.process = Some(process).filter(|process| !process.is_dead());
            self.under_way.push_back(PageUnderWay {
                index: self.n_begun,
                process: Err(failure),
                loan: None,
            });
            self.n_begun += 1;
            self.skip_unwanted();
            return Ok(());
        }
        self.begin(process, None);
        Ok(())
    }

    /// Borrows one more process and asks it for a page, if it pays and one is free.
    fn begin_borrowed(&mut self) {
        let spent_rendering = self.spent.saturating_sub(self.spent_opening);
        let pays = self.n_wanted - self.n_begun > MIN_PAGES_TO_SHARE
            && (self.spent_opening <= QUICK_TO_OPEN || self.spent_opening <= spent_rendering);
        if self.is_alone || !pays {
            return;
        }
        let Some(loan) = self.owner.share.borrow() else {
            return;
        };
        let began = Instant::now();
        let started = WorkerProcess::start(&self.owner.settings).and_then(|mut process| {
            let reader = self.owner.reader(self.opened.renderer);
            let opened = self.opened.open_in(&mut process, &reader);
            opened.map(|()| process).map_err(StartError::NotReady)
        });
        self.spent_opening += began.elapsed();
        match started {
            Ok(process) => self.begin(process, Some(loan)),
            Err(error) => {
                // The document costs no page by this, only the help.
                tracing::debug!(%error, "the document is rendered by one process");
                self.is_alone = true;
            }
        }
    }

    fn begin(&mut self, process: WorkerProcess, loan: Option<Loan>) {
        self.under_way.push_back(PageUnderWay {
            index: self.n_begun,
            process: Ok(process.begin(self.n_begun)),
            loan,
        });
        self.n_begun += 1;
        self.skip_unwanted();
    }

    /// What a process does whose page has left: the next page, as a rule.
    fn go_on(&mut self, process: WorkerProcess, mut loan: Option<Loan>) {
        let is_own = loan.is_none();
        if is_own {
            self.is_open = !process.is_dead();
        }
        let is_recalled = loan.as_mut().is_some_and(Loan::is_recalled);
        if !process.is_dead() && !is_recalled {
            if self.n_begun < self.n_wanted {
                self.begin(process, loan);
                return;
            }
            if is_own {
                self.owner.process = Some(process);
                return;
            }
        }
        // Before its loan, which allows somebody else to start one.
        drop(process);
    }

    /// hayro's, in a process of its own: the one that failed may be in any state.
    fn second_opinion<P: DerefMut<Target = [u8]>>(
        &mut self,
        index: u32,
        failure: Failure,
        allocate: impl FnOnce(usize) -> P,
    ) -> Result<RenderedPage<P>, RenderError> {
        let mut attempts = Attempts(vec![(self.opened.renderer, failure)]);
        if self.owner.choice == RendererChoice::Auto && self.opened.renderer == Renderer::Pdfium {
            let mut page = self.render_fallback(index)?;
            if page.as_ref().is_err_and(Failure::deserves_retry) {
                page = self.render_fallback(index)?;
            }
            match (page, &self.fallback) {
                (Ok(page), Some(process)) => {
                    return copy(page, process, Renderer::Hayro, allocate);
                }
                (Ok(_), None) => {} // It is there when it rendered a page.
                (Err(failure), _) => attempts.0.push((Renderer::Hayro, failure)),
            }
        }
        Err(RenderError::Failed(attempts))
    }

    fn render_fallback(
        &mut self,
        index: u32,
    ) -> Result<Result<PageReply, Failure>, RenderError> {
        let process = match self.fallback.take() {
            Some(process) if !process.is_dead() => process,
            _ => {
                let mut process = WorkerProcess::start(&self.owner.settings)?;
                let reader = self.owner.reader(Renderer::Hayro);
                match self.opened.open_in(&mut process, &reader) {
                    Ok(()) => process,
                    Err(failure) => return Ok(Err(failure)),
                }
            }
        };
        Ok(self.fallback.insert(process).render(index))
    }
}

fn copy<P: DerefMut<Target = [u8]>>(
    page: PageReply,
    process: &WorkerProcess,
    renderer: Renderer,
    allocate: impl FnOnce(usize) -> P,
) -> Result<RenderedPage<P>, RenderError> {
    let mut pixels = allocate(page.n_bytes());
    process
        .read_pixels(&mut pixels)
        .map_err(RenderError::Memory)?;
    Ok(RenderedPage {
        page,
        pixels,
        renderer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render_pdf::budget::{BudgetShare, ProcessBudget};
    use crate::cage::process::ProcessSettings;
    use crate::cage::testing::settings;
    use crate::render_pdf::testing::{numbered_pages, pdf_of, pdfium, three_pages};
    use rustix::process::{Pid, Signal, kill_process};

    const N_PAGES: usize = 40;

    /// An instance whose workers commit a misdeed.
    fn instance(budget: &ProcessBudget, misdeed: &str, page_s: u32) -> DocumentRenderer {
        let mut settings = ProcessSettings {
            pdfium: pdfium(),
            ..settings(misdeed)
        };
        settings.limits.page_s = page_s;
        let limit = Duration::from_mins(1);
        let share = budget.join();
        DocumentRenderer::new(settings, RendererChoice::Auto, Vec::new(), limit, share)
    }

    /// Two instances, of which the second has nothing to do yet.
    fn two(misdeed: &str, page_s: u32) -> (ProcessBudget, DocumentRenderer, BudgetShare) {
        let budget = ProcessBudget::default();
        let first = instance(&budget, misdeed, page_s);
        let second = budget.join();
        (budget, first, second)
    }

    impl DocumentPages<'_> {
        /// Ids of the processes that render pages, the own one's and a borrowed one's.
        fn ids(&self) -> [Option<u32>; 2] {
            [true, false].map(|is_own| {
                let mut pages = self.under_way.iter();
                let page = pages.find(|page| page.loan.is_none() == is_own)?;
                page.process.as_ref().ok().map(BusyProcess::id)
            })
        }

        /// The text of the next page, and who rendered it.
        fn text(&mut self) -> Result<(String, Renderer), String> {
            match self.render(|n_bytes| vec![0; n_bytes]) {
                Ok(page) => Ok((page.page.text.plain, page.renderer)),
                Err(error) => Err(error.to_string()),
            }
        }

        fn texts(&mut self) -> Vec<Result<(String, Renderer), String>> {
            std::iter::from_fn(|| self.next_page().map(|_| self.text())).collect()
        }
    }

    fn first_renderer() -> Renderer {
        pdfium().map_or(Renderer::Hayro, |_| Renderer::Pdfium)
    }

    /// What [`DocumentPages::texts`] answers for pages `from` and on of [`numbered_pages`].
    fn sound(from: usize) -> Vec<Result<(String, Renderer), String>> {
        (from..N_PAGES)
            .map(|page| Ok((format!("page {page}"), first_renderer())))
            .collect()
    }

    fn exists(id: u32) -> bool {
        std::path::Path::new(&format!("/proc/{id}")).exists()
    }

    #[test]
    fn the_pages_of_a_large_document_come_in_order_from_two_processes() {
        let (budget, mut first, _second) = two("", 20);
        for _ in 0..2 {
            let mut document = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
            assert_eq!(document.text(), sound(0)[0]);
            let [Some(own), Some(borrowed)] = document.ids() else {
                panic!("two processes work");
            };
            assert!(own != borrowed && budget.n_lent() == 1);
            assert_eq!(document.texts(), sound(1));
            // It was given back with its last page; the own one stays.
            assert_eq!((exists(own), exists(borrowed)), (true, false));
            assert_eq!(budget.n_lent(), 0);
        }
    }

    #[test]
    fn images_are_the_same_whoever_renders_them() {
        let pixels = |mut instance: DocumentRenderer| -> Vec<Vec<u8>> {
            let mut document = instance.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
            let mut next = || {
                document
                    .next_page()
                    .map(|_| document.render(|n| vec![0; n]))
            };
            std::iter::from_fn(|| next().map(|page| page.unwrap().pixels)).collect()
        };
        let (_budget, shared, _second) = two("", 20);
        let alone = instance(&ProcessBudget::default(), "", 20);
        assert!(pixels(shared) == pixels(alone));
    }

    #[test]
    fn no_process_is_borrowed_for_a_few_pages_or_while_all_instances_work() {
        let (budget, mut first, second) = two("", 20);
        let mut small = first.open(&three_pages(), u32::MAX).unwrap();
        small.text().unwrap();
        assert!(matches!(small.ids(), [Some(_), None]));
        drop(small);
        let mut first_pages = first.open(&numbered_pages(N_PAGES), 3).unwrap();
        assert_eq!(first_pages.texts().len(), 3);
        let _work = second.begin_work();
        let mut large = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
        large.text().unwrap();
        assert!(matches!(large.ids(), [Some(_), None]) && budget.n_lent() == 0);
    }

    #[test]
    fn a_process_is_given_back_when_another_instance_gets_a_document() {
        let (budget, mut first, second) = two("", 20);
        let mut document = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
        let mut texts = vec![document.text(), document.text()];
        let borrowed = document.ids()[1].unwrap();
        let work = second.begin_work();
        // Its page, and the one before it.
        texts.extend([document.text(), document.text()]);
        assert!(matches!(document.ids(), [Some(_), None]));
        assert!(!exists(borrowed) && budget.n_lent() == 0);
        texts.push(document.text());
        drop(work);
        texts.push(document.text());
        assert!(document.ids()[1].is_some());
        texts.extend(document.texts());
        assert_eq!(texts, sound(0));
    }

    #[test]
    fn a_page_that_brings_a_borrowed_process_down_is_handled_like_any_other() {
        // Page 5 is a borrowed process's, as all odd ones are to that point.
        for (misdeed, what) in [
            ("abort any 5", "was killed by signal 6 (abort)"),
            ("hang any 5", "took longer than 1 s"),
        ] {
            let (budget, mut first, _second) = two(misdeed, 1);
            let mut document = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
            let mut texts: Vec<_> = (0..5).map(|_| document.text()).collect();
            let [own, Some(borrowed)] = document.ids() else {
                panic!("two processes work");
            };
            assert!(document.under_way[0].loan.is_some());
            texts.push(document.text());
            assert!(!exists(borrowed) && budget.n_lent() == 0);
            texts.push(document.text());
            assert!(document.ids()[0] == own && document.ids()[1].is_some());
            texts.extend(document.texts());
            let mut expected = sound(0);
            let hayro = format!("hayro {what}");
            expected[5] = Err(match first_renderer() {
                Renderer::Pdfium => format!("pdfium {what}, and {hayro}"),
                Renderer::Hayro => hayro,
            });
            assert_eq!(texts, expected);
        }
    }

    #[test]
    fn a_process_that_somebody_kills_loses_no_page() {
        for who in [0, 1] {
            let (_budget, mut first, _second) = two("", 20);
            let mut document = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
            let mut texts: Vec<_> = (0..3).map(|_| document.text()).collect();
            let id = document.ids()[who].unwrap();
            kill_process(Pid::from_raw(id as i32).unwrap(), Signal::KILL).unwrap();
            texts.extend(document.texts());
            assert_eq!(texts, sound(0));
        }
    }

    /// `PAGEMILL_KILLED_PAGES=10000` renders so many; the default is quick.
    #[test]
    fn pages_come_once_and_in_order_though_a_process_is_killed_every_fifty() {
        let n_pages = std::env::var("PAGEMILL_KILLED_PAGES").ok();
        let n_pages = n_pages.map_or(1000, |n| n.parse().unwrap());
        let (budget, mut first, _second) = two("", 20);
        first.document_limit = Duration::from_hours(1);
        let mut document = first.open(&numbered_pages(n_pages), u32::MAX).unwrap();
        let mut n_killed = 0;
        for page in 0..n_pages {
            if page % 50 == 25 {
                // The own one and the borrowed one by turns.
                let ids = document.ids();
                let id = ids[page / 50 % 2].or(ids[0]).or(ids[1]);
                let pid = id.and_then(|id| Pid::from_raw(id as i32)).unwrap();
                kill_process(pid, Signal::KILL).unwrap();
                n_killed += 1;
            }
            let expected = (format!("page {page}"), first_renderer());
            assert_eq!(document.text(), Ok(expected));
        }
        assert!(document.next_page().is_none() && n_killed == n_pages / 50);
        drop(document);
        assert_eq!(budget.n_lent(), 0);
    }

    #[test]
    fn a_document_that_is_dropped_leaves_no_busy_process() {
        let (budget, mut first, _second) = two("hang any 5", 20);
        let mut document = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
        for _ in 0..5 {
            document.text().unwrap();
        }
        let ids = document.ids();
        drop(document);
        assert!(ids.iter().all(|id| !exists(id.unwrap())));
        assert_eq!(budget.n_lent(), 0);
        let mut document = first.open(&three_pages(), u32::MAX).unwrap();
        assert_eq!(document.texts().len(), 3);
    }

    #[test]
    fn a_page_that_was_ready_in_time_is_fetched_however_late() {
        // Page 0 hangs in the own process and wherever else it is tried; the
        // time of page 1, in the borrowed one, is long over by then.
        let (_budget, mut first, _second) = two("hang any 0", 1);
        let mut document = first.open(&numbered_pages(N_PAGES), u32::MAX).unwrap();
        assert!(document.text().is_err());
        assert_eq!(document.texts(), sound(1));
    }

    #[test]
    fn a_document_that_used_up_its_time_is_left_alone() {
        let mut renderer = instance(&ProcessBudget::default(), "", 20);
        renderer.document_limit = Duration::ZERO;
        let mut document = renderer.open(&three_pages(), u32::MAX).unwrap();
        document.text().unwrap();
        assert_eq!(
            document.check_patience().unwrap_err().to_string(),
            "it took longer than 0 s, so pages 2 to 3 are missing"
        );
    }

    #[test]
    fn a_document_whose_pages_fail_one_after_the_other_is_given_up() {
        // One page, and the claim to have nine hundred million. hayro counts
        // for itself; pdfium believes it.
        let claim = pdf_of(&[
            "<< /Type /Catalog /Pages 3 0 R >>".to_owned(),
            "<< >>".to_owned(),
            "<< /Type /Pages /Kids [4 0 R] /Count 900000000 >>".to_owned(),
            "<< /Type /Page /Parent 3 0 R /MediaBox [0 0 9 9] >>".to_owned(),
        ]);
        let (_budget, shared, _second) = two("", 20);
        for mut instance in [shared, instance(&ProcessBudget::default(), "", 20)] {
            let mut document = instance.open(&claim, u32::MAX).unwrap();
            let mut n_tried = 0;
            while document.next_page().is_some() && document.check_patience().is_ok() {
                let _ = document.text();
                n_tried += 1;
            }
            let is_believed = document.n_pages() > 1;
            assert_eq!(
                n_tried,
                if is_believed {
                    MAX_FAILURES_IN_A_ROW + 1
                } else {
                    1
                }
            );
        }
    }
}

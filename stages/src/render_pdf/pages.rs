//! The pages of one document, rendered by one process or by several.

use std::collections::{BTreeSet, VecDeque};
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Loan, Work};
use super::config::RendererChoice;
use super::document::DocumentRenderer;
use super::error::{Attempts, RenderError};
use crate::cage::process::{BusyProcess, WorkerProcess};
use crate::cage::protocol::{Metadata, PageReply, Reader, Renderer};
use crate::cage::shared::SealedDocument;
use crate::cage::{Failure, StartError};

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
    pub(super) document: Arc<SealedDocument>,
    pub(super) renderer: Renderer,
    pub(super) n_pages: u32,
}

impl ReadableDocument {
    /// Opens it in one more process; all of them share its bytes.
    fn open_in(&self, process: &mut WorkerProcess, reader: &Reader) -> Result<(), Failure> {
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
        first_pages: u32,
        took: Duration,
    ) -> Self {
        Self {
            is_open: owner.process.is_some(),
            owner,
            n_wanted: opened.n_pages.min(first_pages),
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

    /// Compares the number of pages to render with the limit.
    ///
    /// # Errors
    /// [`RenderError::TooManyPages`].
    pub fn check_n_pages(&self, max_pages: u32) -> Result<(), RenderError> {
        if self.n_wanted > max_pages {
            return Err(RenderError::TooManyPages {
                n_pages: self.n_wanted,
                max_pages,
            });
        }
        Ok(())
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

    /// Number of pages to render: at most `first_pages`.
    pub fn n_wanted(&self) -> u32 {
        self.n_wanted
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

    fn render_fallback(&mut self, index: u32) -> Result<Result<PageReply, Failure>, RenderError> {
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
mod tests;

//! `kind = "render_pdf"`: PDF documents to page images, words and text.
//!
//! Each stage instance keeps one worker process in the [cage](crate::cage). In
//! there, pdfium renders; hayro does what pdfium cannot. A process that crashes
//! or takes too long is replaced, and costs the run one page at most. An
//! instance with a large document (`pages.rs`) borrows the processes that others
//! would use (`budget.rs`).

mod budget;
mod config;
mod document;
mod error;
pub(crate) mod hayro;
pub(crate) mod metadata;
#[cfg(test)]
mod mutations;
mod pages;
pub(crate) mod pdfium;
pub(crate) mod renderer;
#[cfg(test)]
pub(crate) mod testing;
mod words;

pub use budget::ProcessBudget;
pub(crate) use config::{DEFAULT_MAX_PAGES, check_max_pages};
pub use config::{RenderPdfConfig, RenderSetup, RendererChoice, find_pdfium};
pub use error::{Attempts, RenderError};

pub use crate::cage::{
    DocumentLimits, Failure, Renderer, WORKER_ARGUMENT, WorkerCommand, run_worker_if_asked,
};

use std::sync::Arc;

use pagemill_pipeline::{
    BufferPool, Field, Image, Item, ItemError, Outlet, PageCount, PixelBuffer, Stage, StageError,
    Word,
};

use document::DocumentRenderer;
use pages::{DocumentPages, RenderedPage};

/// Media type of the documents that are rendered; others pass on unchanged.
const PDF: &str = "application/pdf";

/// Page buffers kept for the next page; those in flight are not counted.
const MAX_IDLE_BUFFERS: usize = 8;

/// Renders the pages of PDF documents in processes of their own.
#[derive(Debug)]
pub struct RenderPdf {
    renderer: DocumentRenderer,
    first_pages: u32, // Invariant: at least 1.
    max_pages: u32,   // Invariant: at least 1.
    words: bool,
    pool: BufferPool,
}

impl RenderPdf {
    /// Renders one document; what is wrong with it goes to the dead letters.
    fn render_document(&mut self, item: Item, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let Some(bytes) = item.document().cloned() else {
            outlet.dead_letter(item, ItemError::missing("render", &Field::DOCUMENT.name));
            return Ok(());
        };
        if outlet.leaves_unfinished(&item) {
            return Ok(());
        }
        let mut document = match self.renderer.open(&bytes, self.first_pages) {
            Ok(document) => document,
            Err(error) => return set_aside(item, error, outlet),
        };
        // Before the first page is sent: nothing of such a document is stored.
        if let Err(error) = document.check_n_pages(self.max_pages) {
            return set_aside(item, error, outlet);
        }
        // What an earlier run stored before it was stopped is not rendered again.
        let stored = outlet.stored_pages(&item);
        document.pass_over(stored.into_iter().map(|page| page - 1).collect());
        outlet.expect_pages(&item, document.n_wanted());
        let origin = DocumentFields::of(&document);
        while let Some(index) = document.next_page() {
            if outlet.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            if outlet.leaves_unfinished(&item) {
                return Ok(());
            }
            if let Err(error) = document.check_patience() {
                return set_aside(item, error, outlet);
            }
            let page = item.child().with_page(index + 1);
            match document.render(|n_bytes| self.pool.zeroed(n_bytes)) {
                Ok(rendered) => {
                    tracing::debug!("rendered `{}`", page.label());
                    outlet.send(origin.fill(page, rendered, self.words))?;
                }
                Err(error) => set_aside(page, error, outlet)?,
            }
        }
        Ok(())
    }
}

impl Stage for RenderPdf {
    /// Starts the process here because it lives no longer than its thread.
    fn start(&mut self) -> Result<(), StageError> {
        self.renderer.start().map_err(fatal)
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            if &*item.origin().media_type == PDF {
                self.render_document(item, outlet)?;
            } else {
                outlet.send(item)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, _outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        self.renderer.end();
        Ok(())
    }

    /// Opens the document, and renders nothing.
    fn count_pages(&mut self, document: &Item) -> Result<PageCount, StageError> {
        if &*document.origin().media_type != PDF {
            return Ok(PageCount::Unknown);
        }
        let Some(bytes) = document.document() else {
            let error = ItemError::missing("render", &Field::DOCUMENT.name);
            return Ok(PageCount::Unreadable(error));
        };
        let opened = self.renderer.open(bytes, self.first_pages);
        let counted = opened.and_then(|opened| {
            opened.check_n_pages(self.max_pages)?;
            Ok(opened.n_wanted())
        });
        match counted {
            Ok(n_pages) => Ok(PageCount::Pages(n_pages)),
            Err(error) if error.is_fatal() => Err(fatal(error)),
            Err(error) => Ok(PageCount::Unreadable(unrendered(&error))),
        }
    }
}

/// One bad page or document goes to the dead letters, a broken machine stops the run.
fn set_aside(item: Item, error: RenderError, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
    if error.is_fatal() {
        return Err(fatal(error));
    }
    outlet.dead_letter(item, unrendered(&error));
    Ok(())
}

fn unrendered(error: &RenderError) -> ItemError {
    ItemError::new("render", error).hint(error.hint())
}

fn fatal(error: RenderError) -> StageError {
    let hint = error.hint();
    StageError::caused("PDF documents cannot be rendered", hint, error)
}

/// What every page of a document repeats.
struct DocumentFields {
    title: Option<Arc<str>>,
    author: Option<Arc<str>>,
    n_pages: u32,
}

impl DocumentFields {
    fn of(document: &DocumentPages<'_>) -> Self {
        let metadata = document.metadata();
        Self {
            title: metadata.title.as_deref().map(Arc::from),
            author: metadata.author.as_deref().map(Arc::from),
            n_pages: document.n_pages(),
        }
    }

    fn fill(&self, mut item: Item, rendered: RenderedPage<PixelBuffer>, words: bool) -> Item {
        let RenderedPage {
            page,
            pixels,
            renderer,
        } = rendered;
        let dpi = Some(page.dpi());
        item.set(
            Field::IMAGE.name,
            Image {
                pixels,
                width_px: page.width_px,
                height_px: page.height_px,
                dpi,
            },
        );
        if words {
            let found = page.text.words.into_iter();
            let found: Vec<Word> = found
                .map(|word| Word {
                    text: word.text,
                    x0: word.x0,
                    y0: word.y0,
                    x1: word.x1,
                    y1: word.y1,
                })
                .collect();
            item.set(Field::WORDS.name, found);
            item.set(Field::TEXT.name, page.text.plain);
        }
        if let Some(title) = &self.title {
            item.set(config::TITLE.name, Arc::clone(title));
        }
        if let Some(author) = &self.author {
            item.set(config::AUTHOR.name, Arc::clone(author));
        }
        item.set(config::PAGE_COUNT.name, self.n_pages);
        item.set(config::RENDERER.name, renderer.name());
        item
    }
}

#[cfg(test)]
mod tests;

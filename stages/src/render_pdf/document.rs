//! One document after the other, with whatever renderer can read it.

use std::ops::DerefMut;
use std::time::{Duration, Instant};

use super::config::RendererChoice;
use super::error::{Attempts, Failure, RenderError};
use super::process::{ProcessSettings, RenderProcess};
use super::protocol::{Metadata, PageReply, Renderer};
use super::shared::SealedDocument;

/// Pages that may fail one after the other before the rest is not tried: a
/// file of a few bytes can claim to have a thousand million pages.
const MAX_FAILURES_IN_A_ROW: u32 = 50;

/// Reading metadata costs as much as the file is long when its tables are
/// damaged; beyond this size it is not worth it.
const MAX_METADATA_BYTES: usize = 256 << 20;

/// Renders documents in a process of its own, which it starts again when a
/// document brings it down.
#[derive(Debug)]
pub struct DocumentRenderer {
    settings: ProcessSettings,
    choice: RendererChoice,
    passwords: Vec<String>,
    document_limit: Duration,
    process: Option<RenderProcess>,
}

impl DocumentRenderer {
    /// Gets ready; no process is started yet.
    pub fn new(
        settings: ProcessSettings,
        choice: RendererChoice,
        passwords: Vec<String>,
        document_limit: Duration,
    ) -> Self {
        Self {
            settings,
            choice,
            passwords,
            document_limit,
            process: None,
        }
    }

    /// Starts the rendering process, so that the first document need not wait for it.
    ///
    /// # Errors
    /// No process can be started, or pdfium is asked for and missing.
    pub fn start(&mut self) -> Result<(), RenderError> {
        let process = self.process()?;
        let Some(reason) = process.pdfium_error().map(str::to_owned) else {
            return Ok(());
        };
        match self.choice {
            RendererChoice::Pdfium => Err(RenderError::NoPdfium { reason }),
            RendererChoice::Hayro => Ok(()),
            RendererChoice::Auto => {
                tracing::warn!(reason, "pdfium cannot be used, hayro renders in its place");
                self.choice = RendererChoice::Hayro;
                Ok(())
            }
        }
    }

    /// Opens a document with the first renderer that can.
    ///
    /// # Errors
    /// None can, or no process can be started ([`RenderError::is_fatal`]).
    pub fn open(&mut self, bytes: &[u8]) -> Result<OpenedDocument<'_>, RenderError> {
        let memory_mb = self.settings.memory_mb;
        if bytes.len() as u64 > u64::from(memory_mb) << 20 {
            return Err(RenderError::TooLarge {
                n_bytes: bytes.len(),
                memory_mb,
            });
        }
        self.start()?;
        let document = SealedDocument::new(bytes).map_err(RenderError::Memory)?;
        let renderers: &[Renderer] = match self.choice {
            RendererChoice::Auto => &[Renderer::Pdfium, Renderer::Hayro],
            RendererChoice::Pdfium => &[Renderer::Pdfium],
            RendererChoice::Hayro => &[Renderer::Hayro],
        };
        let began = Instant::now();
        let mut attempts = Attempts::default();
        for &renderer in renderers {
            match self.open_with(&document, renderer)? {
                Ok(n_pages) => {
                    let metadata = self.metadata(bytes.len());
                    return Ok(OpenedDocument {
                        n_pages,
                        metadata,
                        document,
                        renderer,
                        is_open: self.process.is_some(),
                        fallback: None,
                        spent: began.elapsed(),
                        n_failed_in_a_row: 0,
                        owner: self,
                    });
                }
                Err(Failure::Encrypted) => {
                    return Err(RenderError::Encrypted {
                        n_tried: self.passwords.len(),
                    });
                }
                Err(failure) => attempts.0.push((renderer, failure)),
            }
        }
        if attempts
            .0
            .iter()
            .any(|(_, failure)| *failure == Failure::NoPages)
        {
            return Err(RenderError::NoPages);
        }
        Err(RenderError::Failed(attempts))
    }

    fn process(&mut self) -> Result<&mut RenderProcess, RenderError> {
        let process = match self.process.take() {
            Some(process) => process,
            None => RenderProcess::start(&self.settings)?,
        };
        Ok(self.process.insert(process))
    }

    /// Lets a process that died go, so that the next request starts another.
    fn bury(&mut self) {
        self.process.take_if(|process| process.is_dead());
    }

    fn open_with(
        &mut self,
        document: &SealedDocument,
        renderer: Renderer,
    ) -> Result<Result<u32, Failure>, RenderError> {
        let passwords = std::mem::take(&mut self.passwords);
        let opened = self
            .process()
            .map(|process| process.open(document, renderer, &passwords));
        self.passwords = passwords;
        self.bury();
        opened
    }

    /// Metadata of the open document. Reading it may bring the process down;
    /// the document must not suffer for that.
    fn metadata(&mut self, n_bytes: usize) -> Metadata {
        if n_bytes > MAX_METADATA_BYTES {
            return Metadata::default();
        }
        let Some(process) = self.process.as_mut() else {
            return Metadata::default();
        };
        let metadata = process.metadata().unwrap_or_else(|failure| {
            tracing::debug!(%failure, "no metadata could be read");
            Metadata::default()
        });
        self.bury();
        metadata
    }
}

/// A document that is being rendered.
#[derive(Debug)]
pub struct OpenedDocument<'a> {
    owner: &'a mut DocumentRenderer,
    document: SealedDocument,
    renderer: Renderer,
    n_pages: u32,
    metadata: Metadata,
    /// Whether the owner's process has the document open.
    is_open: bool,
    /// hayro, for the pages that pdfium could not do.
    fallback: Option<RenderProcess>,
    /// Time spent on rendering; waiting for a full edge is not counted.
    spent: Duration,
    n_failed_in_a_row: u32,
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

impl OpenedDocument<'_> {
    /// Number of pages that the document claims to have, at least 1.
    pub fn n_pages(&self) -> u32 {
        self.n_pages
    }

    /// Title and author.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether pages from `index` (from 0) to the `n_pages`th should be left
    /// alone, and why.
    ///
    /// # Errors
    /// The document used up its time, or too many of its pages failed.
    pub fn check_patience(&self, index: u32, n_pages: u32) -> Result<(), RenderError> {
        let (from, to) = (index + 1, n_pages);
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

    /// Renders page `index` (from 0) into a buffer of as many bytes as `allocate` is asked for.
    ///
    /// # Errors
    /// No renderer can do the page, or no process can be started
    /// ([`RenderError::is_fatal`]).
    pub fn render<P: DerefMut<Target = [u8]>>(
        &mut self,
        index: u32,
        allocate: impl FnOnce(usize) -> P,
    ) -> Result<RenderedPage<P>, RenderError> {
        let began = Instant::now();
        let result = self.try_render(index, allocate);
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
        index: u32,
        allocate: impl FnOnce(usize) -> P,
    ) -> Result<RenderedPage<P>, RenderError> {
        let mut attempts = Attempts::default();
        match self.render_first(index)? {
            Ok(page) => {
                let process = self.owner.process()?;
                return finish(page, process, self.renderer, allocate);
            }
            Err(failure) => attempts.0.push((self.renderer, failure)),
        }
        if self.owner.choice == RendererChoice::Auto && self.renderer == Renderer::Pdfium {
            match self.render_fallback(index)? {
                Ok((page, process)) => return finish(page, process, Renderer::Hayro, allocate),
                Err(failure) => attempts.0.push((Renderer::Hayro, failure)),
            }
        }
        Err(RenderError::Failed(attempts))
    }

    fn render_first(&mut self, index: u32) -> Result<Result<PageReply, Failure>, RenderError> {
        if !self.is_open {
            match self.owner.open_with(&self.document, self.renderer)? {
                Ok(_) => self.is_open = true,
                Err(failure) => return Ok(Err(failure)),
            }
        }
        let page = self.owner.process()?.render(index);
        self.owner.bury();
        self.is_open = self.owner.process.is_some();
        Ok(page)
    }

    /// In a process of its own: the one that failed may be in any state.
    fn render_fallback(
        &mut self,
        index: u32,
    ) -> Result<Result<(PageReply, &RenderProcess), Failure>, RenderError> {
        let process = match self.fallback.take() {
            Some(process) if !process.is_dead() => process,
            _ => {
                let mut process = RenderProcess::start(&self.owner.settings)?;
                let passwords = &self.owner.passwords;
                match process.open(&self.document, Renderer::Hayro, passwords) {
                    Ok(n_pages) if n_pages == self.n_pages => process,
                    // They read the page tree in different ways: what hayro calls
                    // page 7 may not be the page 7 of the other items.
                    Ok(_) => return Ok(Err(Failure::OtherPages)),
                    Err(failure) => return Ok(Err(failure)),
                }
            }
        };
        let process = self.fallback.insert(process);
        Ok(process.render(index).map(|page| (page, &*process)))
    }
}

fn finish<P: DerefMut<Target = [u8]>>(
    page: PageReply,
    process: &RenderProcess,
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
    use crate::render_pdf::testing::{pdf_of, pdfium, three_pages, worker_command};

    fn renderer(document_limit: Duration) -> DocumentRenderer {
        let settings = ProcessSettings {
            worker: worker_command(""),
            pdfium: pdfium(),
            long_side_px: 64,
            words: false,
            memory_mb: 512,
            page_s: 20,
        };
        DocumentRenderer::new(settings, RendererChoice::Auto, Vec::new(), document_limit)
    }

    #[test]
    fn a_document_that_used_up_its_time_is_left_alone() {
        let mut renderer = renderer(Duration::ZERO);
        let document = renderer.open(&three_pages()).unwrap();
        assert_eq!(
            document.check_patience(1, 3).unwrap_err().to_string(),
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
        let mut renderer = renderer(Duration::from_mins(1));
        let mut document = renderer.open(&claim).unwrap();
        let n_pages = document.n_pages();
        let n_tried = (0..n_pages).find(|&index| {
            let _ = document.render(index, |n_bytes| vec![0; n_bytes]);
            document.check_patience(index + 1, n_pages).is_err()
        });
        let expected = (n_pages > 1).then_some(MAX_FAILURES_IN_A_ROW);
        assert_eq!(n_tried, expected);
    }
}

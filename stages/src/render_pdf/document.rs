//! One document after the other, with whatever renderer can read it.

use std::time::{Duration, Instant};

use pagemill_pipeline::DocumentBytes;

use super::budget::BudgetShare;
use super::config::RendererChoice;
use super::error::{Attempts, RenderError};
use super::pages::{DocumentPages, ReadableDocument};
use crate::cage::Failure;
use crate::cage::process::{ProcessSettings, WorkerProcess};
use crate::cage::protocol::{Metadata, Reader, Renderer};
use crate::cage::shared::SealedDocument;

/// Reading metadata costs as much as the file is long when its tables are
/// damaged; beyond this size it is not worth it.
const MAX_METADATA_BYTES: usize = 256 << 20;

/// Renders documents in a process of its own, which it starts again when a
/// document brings it down.
#[derive(Debug)]
pub struct DocumentRenderer {
    pub(super) settings: ProcessSettings,
    pub(super) choice: RendererChoice,
    pub(super) passwords: Vec<String>,
    pub(super) document_limit: Duration,
    pub(super) share: BudgetShare,
    /// None before the first document, and after one that it died of.
    pub(super) process: Option<WorkerProcess>,
}

impl DocumentRenderer {
    /// Gets ready; no process is started yet.
    pub fn new(
        settings: ProcessSettings,
        choice: RendererChoice,
        passwords: Vec<String>,
        document_limit: Duration,
        share: BudgetShare,
    ) -> Self {
        Self {
            settings,
            choice,
            passwords,
            document_limit,
            share,
            process: None,
        }
    }

    /// Starts the worker, so that the first document need not wait for it.
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

    /// No more documents will come: others may use what this one leaves unused.
    pub fn end(&mut self) {
        self.share.bequeath();
    }

    /// Opens a document with the first renderer that can, to render its first
    /// pages: at most `first_pages`.
    ///
    /// # Errors
    /// None can, or no process can be started ([`RenderError::is_fatal`]).
    pub fn open(
        &mut self,
        bytes: &DocumentBytes,
        first_pages: u32,
    ) -> Result<DocumentPages<'_>, RenderError> {
        let memory_mb = self.settings.limits.memory_mb;
        if bytes.len() as u64 > u64::from(memory_mb) << 20 {
            return Err(RenderError::TooLarge {
                n_bytes: bytes.len(),
                memory_mb,
            });
        }
        let work = self.share.begin_work();
        self.start()?;
        let document = SealedDocument::of(bytes).map_err(RenderError::Memory)?;
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
                    let opened = ReadableDocument {
                        document,
                        renderer,
                        n_pages,
                    };
                    let took = began.elapsed();
                    return Ok(DocumentPages::new(
                        self,
                        work,
                        opened,
                        metadata,
                        first_pages,
                        took,
                    ));
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

    fn process(&mut self) -> Result<&mut WorkerProcess, RenderError> {
        let process = match self.process.take() {
            Some(process) if !process.is_worn_out() => process,
            _ => WorkerProcess::start(&self.settings)?,
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
        let reader = self.reader(renderer);
        let mut opened = self.process()?.open(document, &reader);
        self.bury();
        if opened.as_ref().is_err_and(Failure::deserves_retry) {
            opened = self.process()?.open(document, &reader);
            self.bury();
        }
        Ok(opened.map(|opened| opened.n_pages))
    }

    pub(super) fn reader(&self, renderer: Renderer) -> Reader {
        Reader::Pdf {
            renderer,
            passwords: self.passwords.clone(),
        }
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

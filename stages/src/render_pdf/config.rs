//! Settings of `kind = "render_pdf"`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pagemill_pipeline::{
    BufferPool, Field, FieldError, FieldType, Fields, Resources, Stage, StageConfig,
};
use serde::Deserialize;

use super::budget::ProcessBudget;
use super::document::DocumentRenderer;
use super::renderer::page_buffer_bytes;
use super::{MAX_IDLE_BUFFERS, RenderPdf};
use crate::cage::process::ProcessSettings;
use crate::cage::{DocumentLimits, Isolation, ProtectionWarning, WorkerCommand};

/// Title of the document, where it has one.
pub(super) const TITLE: Field = Field::new("title", FieldType::Text);
/// Author of the document, where it names one.
pub(super) const AUTHOR: Field = Field::new("author", FieldType::Text);
/// Number of pages of the document, rendered or not.
pub(super) const PAGE_COUNT: Field = Field::new("page_count", FieldType::Integer);
/// `pdfium` or `hayro`.
pub(super) const RENDERER: Field = Field::new("renderer", FieldType::Text);

/// The most pages of a document where the configuration does not say: a file of
/// a thousand bytes can repeat one page a million times.
pub(crate) const DEFAULT_MAX_PAGES: u32 = 20_000;

/// # Errors
/// No document may have a page.
pub(crate) fn check_max_pages(max_pages: u32) -> Result<(), FieldError> {
    if max_pages == 0 {
        let hint = "leave it out for 20000";
        return Err(FieldError::new("max_pages", "must be at least 1", hint));
    }
    Ok(())
}

/// Longest side that can be asked for: 16,384 px square are 805 MB.
const MAX_LONG_SIDE_PX: u32 = 16_384;

/// Settings of `kind = "render_pdf"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenderPdfConfig {
    /// Longer side of each page image, whatever the size of the page.
    pub long_side_px: u32,
    /// Tried on documents that ask for a password.
    pub passwords: Vec<String>,
    /// Whether to read the text layer too: the fields `words` and `text`.
    pub words: bool,
    /// Render only the first so many pages of each document.
    pub first_pages: Option<u32>,
    /// A document with more pages to render becomes a dead letter as a whole.
    pub max_pages: u32,
    /// What one document may use.
    pub limits: DocumentLimits,
    /// Where documents are parsed: `cage`, `process` or `none`.
    pub isolation: Isolation,
    /// Path of libpdfium.so; by default where the setup script puts it.
    pub pdfium: Option<PathBuf>,
    /// Who renders.
    pub renderer: RendererChoice,
    /// The processes that all instances built from this value share; those of
    /// the whole program if left out.
    #[serde(skip)]
    pub budget: Option<ProcessBudget>,
}

impl Default for RenderPdfConfig {
    fn default() -> Self {
        Self {
            long_side_px: 1024,
            passwords: Vec::new(),
            words: true,
            first_pages: None,
            max_pages: DEFAULT_MAX_PAGES,
            limits: DocumentLimits::default(),
            isolation: Isolation::default(),
            pdfium: None,
            renderer: RendererChoice::Auto,
            budget: None,
        }
    }
}

/// Which renderers may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RendererChoice {
    /// pdfium if it is there, and hayro for what pdfium cannot do.
    Auto,
    /// pdfium alone.
    Pdfium,
    /// hayro alone.
    Hayro,
}

/// What the program knows and the configuration need not say: put one into
/// [`Resources`] under the name `render_pdf`.
#[derive(Debug, Clone, Default)]
pub struct RenderSetup {
    /// How a worker is started, for pictures too.
    pub worker: WorkerCommand,
    /// Where libpdfium is, if the configuration does not say; see [`find_pdfium`].
    pub pdfium: Option<PathBuf>,
}

/// The first of `candidates` that is a file.
pub fn find_pdfium(candidates: impl IntoIterator<Item = impl AsRef<Path>>) -> Option<PathBuf> {
    let is_file = |path: &PathBuf| path.is_file();
    candidates
        .into_iter()
        .map(|path| path.as_ref().to_owned())
        .find(is_file)
}

impl RenderPdfConfig {
    fn check_numbers(&self) -> Result<(), FieldError> {
        if !(1..=MAX_LONG_SIDE_PX).contains(&self.long_side_px) {
            return Err(FieldError::new(
                "long_side_px",
                format_args!("must be from 1 to {MAX_LONG_SIDE_PX}"),
                "use the encoder's input side, such as 1024",
            ));
        }
        if self.first_pages == Some(0) {
            let hint = "leave it out to render all pages";
            return Err(FieldError::new("first_pages", "must be at least 1", hint));
        }
        check_max_pages(self.max_pages)?;
        self.limits.check()
    }

    /// Where libpdfium is, if it is to be used.
    fn find_library(&self, setup: &RenderSetup) -> Result<Option<PathBuf>, FieldError> {
        if self.renderer == RendererChoice::Hayro {
            return Ok(None);
        }
        if let Some(path) = &self.pdfium {
            if path.is_file() {
                return Ok(Some(path.clone()));
            }
            return Err(FieldError::new(
                "pdfium",
                format_args!("names no file: `{}`", path.display()),
                "give the path of libpdfium.so itself, or leave it out",
            ));
        }
        if self.renderer == RendererChoice::Pdfium && setup.pdfium.is_none() {
            return Err(FieldError::new(
                "renderer",
                "is `pdfium`, and libpdfium was not found",
                "set `pdfium` to the path of libpdfium.so, or write `auto`",
            ));
        }
        Ok(setup.pdfium.clone())
    }
}

impl StageConfig for RenderPdfConfig {
    const KIND: &'static str = "render_pdf";
    const ABOUT: &'static str = "PDF documents to page images, with the text layer beside them";
    const EXAMPLE: &'static str = "long_side_px = 1024\nlimits = { page_s = 20 }\n";
    const PATHS: &'static [&'static str] = &["pdfium"];

    fn fields(&self) -> Fields {
        let mut adds = vec![Field::IMAGE, TITLE, AUTHOR, PAGE_COUNT, RENDERER];
        if self.words {
            adds.extend([Field::WORDS, Field::TEXT]);
        }
        // Pages come without `document`; what is no PDF passes on with it, for
        // a stage further on that can decode it.
        Fields::reads([Field::DOCUMENT]).adds(adds).one_to_many()
    }

    fn row_settings(&self) -> String {
        // What decides whether a document can be read changes no page of one that can.
        let of_rows = Self {
            long_side_px: self.long_side_px,
            words: self.words,
            first_pages: self.first_pages,
            renderer: self.renderer,
            ..Self::default()
        };
        format!("{of_rows:?}")
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        self.check_numbers()?;
        let setup = resources.get::<RenderSetup>(Self::KIND);
        let setup = setup.as_deref().cloned().unwrap_or_default();
        let settings = ProcessSettings {
            pdfium: self.find_library(&setup)?,
            worker: setup.worker,
            isolation: self.isolation,
            long_side_px: self.long_side_px,
            page_buffer_bytes: page_buffer_bytes(self.long_side_px),
            words: self.words,
            limits: self.limits,
            overhead_mb: 0,
            warning: ProtectionWarning::of_run(resources),
        };
        let document_limit = Duration::from_secs(self.limits.document_s.into());
        let passwords = self.passwords.clone();
        let of_program = || resources.get_or_insert(Self::KIND, ProcessBudget::default);
        let budget = self.budget.clone();
        let share = budget.unwrap_or_else(|| (*of_program()).clone()).join();
        let renderer =
            DocumentRenderer::new(settings, self.renderer, passwords, document_limit, share);
        Ok(Box::new(RenderPdf {
            renderer,
            first_pages: self.first_pages.unwrap_or(u32::MAX),
            max_pages: self.max_pages,
            words: self.words,
            pool: BufferPool::new(MAX_IDLE_BUFFERS),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(config: &RenderPdfConfig) -> Result<(), FieldError> {
        config.build(&Resources::default()).map(|_| ())
    }

    fn complaint(config: &RenderPdfConfig) -> String {
        build(config).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_build() {
        build(&RenderPdfConfig::default()).unwrap();
    }

    #[test]
    fn configurations_share_the_processes_of_the_program_unless_they_have_their_own() {
        let resources = Resources::default();
        let shared = resources.get_or_insert(RenderPdfConfig::KIND, ProcessBudget::default);
        let config = RenderPdfConfig::default();
        let own = RenderPdfConfig {
            budget: Some(ProcessBudget::default()),
            ..config.clone()
        };
        let _instances = [&config, &config, &own].map(|config| config.build(&resources).unwrap());
        let share = shared.join();
        let _work = share.begin_work();
        let _loans = [share.borrow().unwrap(), share.borrow().unwrap()];
        assert!(share.borrow().is_none());
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_by_name() {
        let default = RenderPdfConfig::default;
        assert_eq!(
            complaint(&RenderPdfConfig {
                long_side_px: 0,
                ..default()
            }),
            "`long_side_px` must be from 1 to 16384"
        );
        assert_eq!(
            complaint(&RenderPdfConfig {
                pdfium: Some("/no/such.so".into()),
                ..default()
            }),
            "`pdfium` names no file: `/no/such.so`"
        );
        assert_eq!(
            complaint(&RenderPdfConfig {
                renderer: RendererChoice::Pdfium,
                ..default()
            }),
            "`renderer` is `pdfium`, and libpdfium was not found"
        );
        let limits = DocumentLimits {
            page_s: 0,
            ..DocumentLimits::default()
        };
        assert!(
            complaint(&RenderPdfConfig {
                limits,
                ..default()
            })
            .starts_with("`limits` leaves")
        );
        assert_eq!(
            complaint(&RenderPdfConfig {
                first_pages: Some(0),
                ..default()
            }),
            "`first_pages` must be at least 1"
        );
        assert_eq!(
            complaint(&RenderPdfConfig {
                max_pages: 0,
                ..default()
            }),
            "`max_pages` must be at least 1"
        );
    }

    #[test]
    fn the_first_library_that_exists_is_found() {
        let here = std::env::current_exe().unwrap();
        let candidates = [PathBuf::from("/no/such.so"), here.clone()];
        assert_eq!(find_pdfium(candidates), Some(here));
        assert_eq!(find_pdfium(["/no/such.so"]), None);
    }
}

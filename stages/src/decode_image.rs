//! `kind = "decode_image"`: PNG, JPEG, TIFF and WebP documents to page images.
//!
//! A picture is a page like any other: upright, RGB, over white. A TIFF may
//! hold several, and each becomes a page. They are decoded in a worker process,
//! in the [cage](crate::cage), which is started for the first of them.

pub(crate) mod pages;
pub(crate) mod picture;
mod tiff_pages;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagemill_pipeline::{
    DocumentBytes, Field, FieldError, FieldType, Fields, Image, Item, ItemError, Outlet, PageCount,
    Resources, Stage, StageConfig, StageError, Word,
};
use serde::Deserialize;

use crate::cage::process::{ProcessSettings, WorkerProcess};
use crate::cage::protocol::{Opened, PageReply, Reader};
use crate::cage::shared::SealedDocument;
use crate::cage::{
    DocumentLimits, Failure, Isolation, ProtectionWarning, StartError, WorkerCommand,
};
use crate::media;
use crate::render_pdf::{DEFAULT_MAX_PAGES, RenderPdfConfig, RenderSetup, check_max_pages};
use picture::{PictureError, PictureFormat, PictureLimits};

/// Number of pages of the document.
const PAGE_COUNT: Field = Field::new("page_count", FieldType::Integer);
/// What made the image: `image`, after the library that decodes.
const RENDERER: Field = Field::new("renderer", FieldType::Text);

/// Longest side that can be asked for.
const MAX_LONG_SIDE_PX: u32 = 65_535;

/// Memory of a worker for anything but pixels.
const OVERHEAD_MB: u32 = 64;

/// Settings of `kind = "decode_image"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeImageConfig {
    /// A larger picture is shrunk to this side as soon as it is decoded, so
    /// that what waits on the edges stays small.
    pub long_side_px: u32,
    /// A TIFF with more pages becomes a dead letter as a whole.
    pub max_pages: u32,
    /// What one document may use.
    pub limits: DocumentLimits,
    /// Where documents are parsed: `cage`, `process` or `none`.
    pub isolation: Isolation,
}

impl Default for DecodeImageConfig {
    fn default() -> Self {
        Self {
            long_side_px: 2048,
            max_pages: DEFAULT_MAX_PAGES,
            limits: DocumentLimits::default(),
            isolation: Isolation::default(),
        }
    }
}

impl StageConfig for DecodeImageConfig {
    const KIND: &'static str = "decode_image";
    const ABOUT: &'static str = "PNG, JPEG, TIFF and WebP documents to page images";
    const EXAMPLE: &'static str = "long_side_px = 2048\nlimits = { pixels = 100_000_000 }\n";

    fn fields(&self) -> Fields {
        // It keeps `document`: other documents pass through it.
        let adds = [
            Field::IMAGE,
            Field::WORDS,
            Field::TEXT,
            PAGE_COUNT,
            RENDERER,
        ];
        Fields::reads([Field::DOCUMENT]).adds(adds).one_to_many()
    }

    fn row_settings(&self) -> String {
        // What decides whether a document can be read changes no page of one that can.
        let of_rows = Self {
            long_side_px: self.long_side_px,
            ..Self::default()
        };
        format!("{of_rows:?}")
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        let setup = resources.get::<RenderSetup>(RenderPdfConfig::KIND);
        let worker = setup.map(|setup| setup.worker.clone()).unwrap_or_default();
        let mut stage = DecodeImage::new(self, worker)?;
        stage.settings.warning = ProtectionWarning::of_run(resources);
        Ok(Box::new(stage))
    }
}

/// A picture document that the worker has opened.
struct OpenPicture {
    document: Arc<SealedDocument>,
    reader: Reader,
    opened: Opened,
    /// Time that opening took.
    took: Duration,
}

/// Decodes picture documents; others pass on unchanged.
pub struct DecodeImage {
    settings: ProcessSettings,
    max_pages: u32, // Invariant: at least 1.
    /// None before the first picture, and after one that it died of.
    process: Option<WorkerProcess>,
}

impl DecodeImage {
    /// Checks the settings; no worker is started yet.
    ///
    /// # Errors
    /// When one of them leaves no room.
    pub fn new(config: &DecodeImageConfig, worker: WorkerCommand) -> Result<Self, FieldError> {
        let DecodeImageConfig {
            long_side_px,
            max_pages,
            limits,
            isolation,
        } = *config;
        if !(1..=MAX_LONG_SIDE_PX).contains(&long_side_px) {
            return Err(FieldError::new(
                "long_side_px",
                format_args!("must be from 1 to {MAX_LONG_SIDE_PX}"),
                "leave it out for 2048",
            ));
        }
        check_max_pages(max_pages)?;
        limits.check()?;
        let most_pixels = u64::from(long_side_px).pow(2).min(limits.pixels);
        let settings = ProcessSettings {
            worker,
            isolation,
            pdfium: None,
            long_side_px,
            page_buffer_bytes: most_pixels as usize * 3,
            words: false,
            limits,
            overhead_mb: OVERHEAD_MB,
            warning: ProtectionWarning::default(),
        };
        Ok(Self {
            settings,
            max_pages,
            process: None,
        })
    }

    fn decode_document(
        &mut self,
        item: Item,
        bytes: &DocumentBytes,
        outlet: &mut Outlet<'_>,
    ) -> Result<(), StageError> {
        if outlet.leaves_unfinished(&item) {
            return Ok(());
        }
        let picture = match self.open_picture(&item, bytes)? {
            Ok(picture) => picture,
            Err(error) => {
                outlet.dead_letter(item, error);
                return Ok(());
            }
        };
        let OpenPicture {
            document,
            reader,
            opened,
            took: mut spent,
        } = picture;
        let document_s = self.settings.limits.document_s;
        // What an earlier run stored before it was stopped is not decoded again.
        let stored = outlet.stored_pages(&item);
        outlet.expect_pages(&item, opened.n_pages);
        let indices = (0..opened.n_pages).filter(|index| !stored.contains(&(index + 1)));
        for index in indices {
            if outlet.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            if outlet.leaves_unfinished(&item) {
                return Ok(());
            }
            if spent > Duration::from_secs(document_s.into()) {
                let reason = format!(
                    "it took longer than {document_s} s, so pages {} to {} are missing",
                    index + 1,
                    opened.n_pages
                );
                let error = ItemError::new("decode", reason).hint("raise `limits.document_s`");
                outlet.dead_letter(item, error);
                return Ok(());
            }
            let began = Instant::now();
            let decoded = self.decode(&document, &reader, index).map_err(fatal)?;
            spent += began.elapsed();
            send_page(&item, index + 1, opened.n_pages, decoded, outlet)?;
        }
        if opened.is_cut_off {
            let missing = item.child().with_page(opened.n_pages + 1);
            outlet.dead_letter(missing, PictureError::CutOff.into());
        }
        Ok(())
    }

    /// Opens a picture document; the error says why it is set aside as a whole.
    fn open_picture(
        &mut self,
        item: &Item,
        bytes: &DocumentBytes,
    ) -> Result<Result<OpenPicture, ItemError>, StageError> {
        let media_type = &item.origin().media_type;
        let Some(format) = PictureFormat::of(media_type) else {
            let reason = format!("`{media_type}` is no kind of picture it reads");
            let hint = "convert it to PNG, JPEG, TIFF or WebP";
            return Ok(Err(ItemError::new("decode", reason).hint(hint)));
        };
        let DocumentLimits {
            memory_mb, pixels, ..
        } = self.settings.limits;
        let max_bytes = u64::from(memory_mb) << 20;
        if bytes.len() as u64 > max_bytes {
            let n_mb = bytes.len() >> 20;
            let reason = format!("it has {n_mb} MB, and a worker process may use {memory_mb} MB");
            let hint = "raise `limits.memory_mb`";
            return Ok(Err(ItemError::new("decode", reason).hint(hint)));
        }
        let document =
            SealedDocument::of(bytes).map_err(|error| fatal(StartError::Memory(error)))?;
        let limits = PictureLimits {
            max_pixels: pixels,
            max_bytes,
        };
        let reader = Reader::Picture { format, limits };
        let began = Instant::now();
        let opened = match self.open(&document, &reader).map_err(fatal)? {
            Ok(opened) => opened,
            Err(failure) => return Ok(Err(describe(&failure))),
        };
        // Before the first page is sent: nothing of such a document is stored.
        if opened.n_pages > self.max_pages {
            let (n_pages, max_pages) = (opened.n_pages, self.max_pages);
            let reason = format!("it has {n_pages} pages, and `max_pages` is {max_pages}");
            return Ok(Err(
                ItemError::new("decode", reason).hint("raise `max_pages`")
            ));
        }
        Ok(Ok(OpenPicture {
            document,
            reader,
            opened,
            took: began.elapsed(),
        }))
    }

    /// Opens a document; one that the worker did not survive once more.
    fn open(
        &mut self,
        document: &SealedDocument,
        reader: &Reader,
    ) -> Result<Result<Opened, Failure>, StartError> {
        self.process.take_if(|process| process.is_worn_out());
        let opened = self.try_open(document, reader)?;
        if opened.as_ref().is_err_and(Failure::deserves_retry) {
            return self.try_open(document, reader);
        }
        Ok(opened)
    }

    fn try_open(
        &mut self,
        document: &SealedDocument,
        reader: &Reader,
    ) -> Result<Result<Opened, Failure>, StartError> {
        let process = match self.process.take() {
            Some(process) => process,
            None => WorkerProcess::start(&self.settings)?,
        };
        let process = self.process.insert(process);
        let opened = process.open(document, reader);
        self.process.take_if(|process| process.is_dead());
        Ok(opened)
    }

    /// Decodes a page of the document that was opened last; one that the worker
    /// did not survive once more, in a fresh one.
    fn decode(
        &mut self,
        document: &SealedDocument,
        reader: &Reader,
        index: u32,
    ) -> Result<Result<Image, Failure>, StartError> {
        let decoded = self.try_decode(document, reader, index)?;
        if decoded.as_ref().is_err_and(Failure::deserves_retry) {
            return self.try_decode(document, reader, index);
        }
        Ok(decoded)
    }

    fn try_decode(
        &mut self,
        document: &SealedDocument,
        reader: &Reader,
        index: u32,
    ) -> Result<Result<Image, Failure>, StartError> {
        if self.process.is_none()
            && let Err(failure) = self.try_open(document, reader)?
        {
            return Ok(Err(failure));
        }
        let Some(process) = &mut self.process else {
            unreachable!("a process that opened a document is there");
        };
        let decoded = match process.render(index) {
            Ok(page) => Ok(copy(&page, process).map_err(StartError::Memory)?),
            Err(failure) => Err(failure),
        };
        self.process.take_if(|process| process.is_dead());
        Ok(decoded)
    }
}

fn copy(page: &PageReply, process: &WorkerProcess) -> std::io::Result<Image> {
    let mut pixels = vec![0; page.n_bytes()];
    process.read_pixels(&mut pixels)?;
    Ok(Image {
        pixels: pixels.into(),
        width_px: page.width_px,
        height_px: page.height_px,
        dpi: None,
    })
}

/// What became of a picture, as a dead letter says it.
fn describe(failure: &Failure) -> ItemError {
    let hint = match failure {
        Failure::Picture(error) => return error.clone().into(),
        Failure::OutOfMemory { .. } => "raise `limits.memory_mb`, unless it is made to harm",
        Failure::TimedOut { .. } => "raise `limits.page_s`",
        _ => "open it in a picture viewer, and save it again",
    };
    ItemError::new("decode", format!("its decoder {failure}")).hint(hint)
}

fn fatal(error: StartError) -> StageError {
    let hint = error.hint();
    StageError::caused("pictures cannot be decoded", hint, error)
}

fn send_page(
    item: &Item,
    page: u32,
    n_pages: u32,
    decoded: Result<Image, Failure>,
    outlet: &mut Outlet<'_>,
) -> Result<(), StageError> {
    let mut page = item.child().with_page(page);
    match decoded {
        Ok(image) => {
            page.set(Field::IMAGE.name, image);
            // Present though empty: the page is one like any other to the
            // stages that read text.
            page.set(Field::WORDS.name, Vec::<Word>::new());
            page.set(Field::TEXT.name, "");
            page.set(PAGE_COUNT.name, n_pages);
            page.set(RENDERER.name, "image");
            outlet.send(page)
        }
        Err(failure) => {
            outlet.dead_letter(page, describe(&failure));
            Ok(())
        }
    }
}

fn is_to_decode(item: &Item) -> bool {
    item.origin().media_type.starts_with(media::PICTURE) && item.image().is_none()
}

impl Stage for DecodeImage {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for item in batch {
            if !is_to_decode(&item) {
                outlet.send(item)?;
                continue;
            }
            if let Some(bytes) = item.document().cloned() {
                self.decode_document(item, &bytes, outlet)?;
            } else {
                let error = ItemError::missing("decode", &Field::DOCUMENT.name);
                outlet.dead_letter(item, error);
            }
        }
        Ok(())
    }

    /// Opens the document, and decodes nothing.
    fn count_pages(&mut self, document: &Item) -> Result<PageCount, StageError> {
        if !is_to_decode(document) {
            return Ok(PageCount::Unknown);
        }
        let Some(bytes) = document.document() else {
            let error = ItemError::missing("decode", &Field::DOCUMENT.name);
            return Ok(PageCount::Unreadable(error));
        };
        Ok(match self.open_picture(document, bytes)? {
            Ok(picture) => PageCount::Pages(picture.opened.n_pages),
            Err(error) => PageCount::Unreadable(error),
        })
    }
}

#[cfg(test)]
mod tests;

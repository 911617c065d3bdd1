//! Defines a stage, its outlet and its settings: the traits that every kind of stage implements.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::de::DeserializeOwned;

use crate::batch::BatchPolicy;
use crate::error::{FieldError, ItemError, StageError};
use crate::fields::Fields;
use crate::item::Item;
use crate::resources::Resources;

/// One step of a pipeline. It owns no queue, thread or clock: the runner calls
/// it, so a test needs only a value and an [`Outlet`].
///
/// The runner builds as many as `workers` says and gives each a thread of its
/// own; a stage never sees another one's items.
pub trait Stage: Send {
    /// Runs once, on the stage's own thread, before the first batch: load the
    /// model, start the worker process. It overlaps with other stages' work.
    ///
    /// # Errors
    /// What the stage cannot work without.
    fn start(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    /// Handles one batch. `outlet.send` blocks while the edge is full; a stage
    /// sees nothing else of backpressure.
    ///
    /// # Errors
    /// Only what the pipeline cannot survive. One bad item goes to
    /// [`Outlet::dead_letter`], and the batch goes on.
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError>;

    /// Runs once, after the last batch, for stages that hold items back.
    ///
    /// # Errors
    /// As [`Stage::process`].
    fn finish(&mut self, _outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        Ok(())
    }

    /// How many tokens the item will cost once padded, for `batch.max_tokens`.
    /// The default counts four bytes of text as a token.
    fn n_tokens(&self, item: &Item) -> usize {
        item.text().map_or(1, |text| text.len().div_ceil(4).max(1))
    }

    /// The number of pages that [`Stage::process`] would make of a document,
    /// without making any, for [`Pipeline::dry_run`](crate::Pipeline::dry_run).
    /// It is the number that the stage announces by [`Outlet::expect_pages`].
    /// [`Stage::start`] has not been called.
    ///
    /// # Errors
    /// As [`Stage::process`].
    fn count_pages(&mut self, _document: &Item) -> Result<PageCount, StageError> {
        Ok(PageCount::Unknown)
    }
}

/// What a stage makes of a document; see [`Stage::count_pages`].
#[derive(Debug)]
pub enum PageCount {
    /// The stage makes no pages of this document: it passes on.
    Unknown,
    /// So many pages.
    Pages(u32),
    /// The document would be set aside as a whole, for this reason.
    Unreadable(ItemError),
}

/// Where a stage puts what it made.
pub struct Outlet<'a> {
    port: &'a mut dyn OutletPort,
}

/// What is behind an [`Outlet`]: the runner's edges, or a test's vectors.
pub(crate) trait OutletPort {
    fn send(&mut self, item: Item) -> Result<(), StageError>;
    fn dead_letter(&mut self, item: Item, error: ItemError);
    fn stored_pages(&self, _document: &Item) -> BTreeSet<u32> {
        BTreeSet::new()
    }
    fn expect_pages(&mut self, _document: &Item, _n_pages: u32) {}
    fn leaves_unfinished(&mut self, _document: &Item) -> bool {
        false
    }
    fn is_cancelled(&self) -> bool;
}

impl<'a> Outlet<'a> {
    pub(crate) fn new(port: &'a mut dyn OutletPort) -> Self {
        Self { port }
    }

    /// Sends an item on. Blocks while the edge is full.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] when the run stops; pass it on with `?`.
    pub fn send(&mut self, item: Item) -> Result<(), StageError> {
        self.port.send(item)
    }

    /// Changes each item of a batch and sends it on; one that cannot be changed
    /// is set aside with the reason.
    ///
    /// # Errors
    /// As [`Outlet::send`].
    pub fn each(
        &mut self,
        batch: Vec<Item>,
        mut change: impl FnMut(&mut Item) -> Result<(), ItemError>,
    ) -> Result<(), StageError> {
        for mut item in batch {
            match change(&mut item) {
                Ok(()) => self.send(item)?,
                Err(error) => self.dead_letter(item, error),
            }
        }
        Ok(())
    }

    /// Sets one item aside with the reason; the run goes on.
    pub fn dead_letter(&mut self, item: Item, error: ItemError) {
        self.port.dead_letter(item, error);
    }

    /// The pages of `document` (from 1) that an earlier run has stored already,
    /// as this stage makes them, so that making them can be spared. What is
    /// sent nevertheless is passed over.
    pub fn stored_pages(&self, document: &Item) -> BTreeSet<u32> {
        self.port.stored_pages(document)
    }

    /// Announces that `n_pages` pages are made of `document`, those that are
    /// stored already among them. Call it before the first is sent: progress and
    /// the time that is left are counted in pages.
    pub fn expect_pages(&mut self, document: &Item, n_pages: u32) {
        self.port.expect_pages(document, n_pages);
    }

    /// Whether the rest of the pages of `document` is left to the next run, because
    /// this run drains and the pages sent so far are kept. A stage that makes pages
    /// asks before each page: after `true` it sends nothing more of the document
    /// and returns `Ok`. The document's old rows stay until a run finishes it.
    pub fn leaves_unfinished(&mut self, document: &Item) -> bool {
        self.port.leaves_unfinished(document)
    }

    /// Whether the run is stopping now: a stage with a long loop looks here.
    pub fn is_cancelled(&self) -> bool {
        self.port.is_cancelled()
    }
}

/// Settings of one kind of stage: what its TOML table deserializes into.
///
/// `deny_unknown_fields` on the type makes a misspelt setting an error.
pub trait StageConfig: DeserializeOwned + Debug + Send + Sync + 'static {
    /// The value of `kind` in TOML.
    const KIND: &'static str;

    /// One line on what it does, for `pagemill check` and the docs.
    const ABOUT: &'static str;

    /// Settings (without the engine's keys) that build: used by docs and tests.
    const EXAMPLE: &'static str;

    /// Settings that hold a path: `~` at the start of one is the home folder.
    const PATHS: &'static [&'static str] = &[];

    /// What the graph check carries along the edges.
    ///
    /// Rows that are stored are taken for the items of earlier stages by what this
    /// says: a stage that is one to one sends each item once, under its key and before
    /// it returns, and changes no field but those that it adds or drops.
    fn fields(&self) -> Fields;

    /// How the kind wants its items batched where the file does not say: one
    /// at a time, unless the kind has a reason.
    fn batch(&self) -> BatchPolicy {
        BatchPolicy::default()
    }

    /// On how many threads the kind works where the file does not say: one, unless
    /// its workers mostly wait, as for a model that they share or for a server.
    fn workers(&self) -> usize {
        1
    }

    /// The settings that rows depend on, as text: a part of the fingerprint.
    ///
    /// The default is the `Debug` text of the deserialized settings, so a default
    /// that is written out changes nothing. Override it where some settings change
    /// no row: limits, passwords, isolation, devices, addresses, timeouts.
    fn row_settings(&self) -> String {
        format!("{self:?}")
    }

    /// What else the rows depend on than the settings, such as the weights of a
    /// model: a part of the fingerprint.
    fn revision(&self, _resources: &Resources) -> String {
        String::new()
    }

    /// Makes one worker's stage. It is called at check time too, so it checks
    /// settings and finds files, and leaves what takes long to [`Stage::start`].
    ///
    /// # Errors
    /// A setting that cannot be used.
    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError>;
}

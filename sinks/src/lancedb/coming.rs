//! Documents on their way into a table: those still coming, and those complete.

use std::time::Instant;

use lance::table::format::Fragment;
use pagemill_pipeline::{Ack, Delivery, DocumentId, Item, StageError, Stager};

use super::{Opened, failpoint};
use crate::columns::Totals;

/// What has come of one document.
pub(super) struct Rows {
    pub(super) document: DocumentId,
    /// What is in memory.
    waiting: Vec<Delivery>,
    pub(super) n_bytes: usize,
    /// Rows that are written, in no version of the table, and known to the ledger.
    pub(super) staged: Vec<Fragment>,
    /// The same, but unknown to the ledger.
    pub(super) spilled: Vec<Fragment>,
    /// Of what is written.
    acks: Vec<Ack>,
    /// Of the document's end.
    pub(super) end: Option<Ack>,
}

impl Rows {
    pub(super) fn new(document: DocumentId) -> Self {
        Self {
            document,
            waiting: Vec::new(),
            n_bytes: 0,
            staged: Vec::new(),
            spilled: Vec::new(),
            acks: Vec::new(),
            end: None,
        }
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.n_bytes += delivery.item.n_bytes();
        self.waiting.push(delivery);
    }

    /// Writes the pages of which nothing more will come, and notes them in the ledger.
    pub(super) async fn stage(
        &mut self,
        opened: &mut Opened,
        stager: &Stager,
    ) -> Result<(), StageError> {
        let mut whole = self.take_whole_pages();
        if whole.is_empty() {
            return Ok(());
        }
        let items = whole.iter().map(|delivery| delivery.item.clone());
        let fragments = match opened.write(items.collect(), &Totals::new()).await {
            Ok(fragments) => fragments,
            Err(error) => {
                self.waiting.append(&mut whole);
                return Err(error);
            }
        };
        failpoint("staged rows written")?;
        let n_bytes: usize = whole.iter().map(|delivery| delivery.item.n_bytes()).sum();
        let mut acks: Vec<Ack> = whole.into_iter().map(|delivery| delivery.ack).collect();
        let payload = serde_json::to_vec(&fragments).map_err(|error| {
            StageError::caused(
                "fragments cannot be noted",
                "this is a bug in pagemill",
                error,
            )
        })?;
        stager.stage(&mut acks, payload)?;
        failpoint("staged")?;
        self.n_bytes -= n_bytes;
        self.staged.extend(fragments);
        self.acks.append(&mut acks);
        Ok(())
    }

    /// Takes the pages that can be staged. One page stays: its rows tell, once the
    /// document has ended, how many rows the document has. Of an interrupted document
    /// none stays, as the rows of the next run tell that.
    fn take_whole_pages(&mut self) -> Vec<Delivery> {
        let mut whole = Delivery::take_whole_pages(&mut self.waiting);
        let last = whole.last().map(|delivery| &delivery.ack);
        let is_interrupted = last.is_some_and(|ack| ack.document().is_interrupted());
        if self.waiting.is_empty() && !is_interrupted {
            let last = last.and_then(Ack::page);
            let is_last = |delivery: &mut Delivery| delivery.ack.page() == last;
            self.waiting = whole.extract_if(.., is_last).collect();
        }
        whole
    }

    /// The number of the document's rows, written or not.
    fn n_rows(&self) -> usize {
        let written = self.staged.iter().chain(&self.spilled);
        let n_written: usize = written.filter_map(Fragment::num_rows).sum();
        n_written + self.waiting.len()
    }

    /// Writes what is in memory, whole pages or not: after a crash it is made again.
    /// One row stays, as in [`Rows::stage`].
    pub(super) async fn spill(&mut self, opened: &mut Opened) -> Result<(), StageError> {
        let n_spilled = self.waiting.len().saturating_sub(1);
        if n_spilled == 0 {
            return Ok(());
        }
        let spilled = self.waiting[..n_spilled].iter();
        let items: Vec<Item> = spilled.map(|delivery| delivery.item.clone()).collect();
        let fragments = opened.write(items, &Totals::new()).await?;
        self.spilled.extend(fragments);
        let spilled = self.waiting.drain(..n_spilled);
        self.acks.extend(spilled.map(|delivery| delivery.ack));
        let left = self.waiting.iter();
        self.n_bytes = left.map(|delivery| delivery.item.n_bytes()).sum();
        Ok(())
    }
}

/// Documents that wait for the next commit.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) documents: Vec<Rows>,
    pub(super) n_rows: usize,
    pub(super) n_bytes: usize,
    pub(super) since: Option<Instant>,
}

impl Ready {
    pub(super) fn push(&mut self, rows: Rows) {
        self.n_rows += rows.waiting.len() + rows.acks.len();
        self.n_bytes += rows.n_bytes;
        self.since.get_or_insert_with(Instant::now);
        self.documents.push(rows);
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = DocumentId> {
        self.documents.iter().map(|rows| rows.document)
    }

    /// The number of rows of each document.
    pub(super) fn totals(&self) -> Totals {
        let documents = self.documents.iter();
        documents
            .map(|rows| {
                (
                    rows.document,
                    u32::try_from(rows.n_rows()).unwrap_or(u32::MAX),
                )
            })
            .collect()
    }

    /// The rows that are in memory.
    pub(super) fn items(&self) -> Vec<Item> {
        let waiting = self.documents.iter().flat_map(|rows| &rows.waiting);
        waiting.map(|delivery| delivery.item.clone()).collect()
    }

    /// The rows that are written.
    pub(super) fn fragments(&self) -> Vec<Fragment> {
        let written = self.documents.iter();
        written
            .flat_map(|rows| rows.staged.iter().chain(&rows.spilled))
            .cloned()
            .collect()
    }

    /// All of it is in the table.
    pub(super) fn durable(self) {
        for rows in self.documents {
            let waiting = rows.waiting.into_iter().map(|delivery| delivery.ack);
            for ack in waiting.chain(rows.acks).chain(rows.end) {
                ack.durable();
            }
        }
    }
}

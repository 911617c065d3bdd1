//! Documents on their way into a table: those still coming, and those complete.

use std::time::Instant;

use lance::table::format::Fragment;
use pagemill_pipeline::{Ack, Delivery, DocumentId, Item, StageError, Stager};

use super::{Opened, failpoint};

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
        let waiting = std::mem::take(&mut self.waiting);
        let (mut whole, rest): (Vec<Delivery>, Vec<Delivery>) = waiting
            .into_iter()
            .partition(|delivery| delivery.ack.can_be_staged());
        self.waiting = rest;
        if whole.is_empty() {
            return Ok(());
        }
        let items = whole.iter().map(|delivery| delivery.item.clone());
        let fragments = match opened.write(items.collect()).await {
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

    /// Writes what is in memory, whole pages or not: after a crash it is made again.
    pub(super) async fn spill(&mut self, opened: &mut Opened) -> Result<(), StageError> {
        let items: Vec<Item> = self
            .waiting
            .iter()
            .map(|delivery| delivery.item.clone())
            .collect();
        let fragments = opened.write(items).await?;
        self.spilled.extend(fragments);
        let waiting = self.waiting.drain(..);
        self.acks.extend(waiting.map(|delivery| delivery.ack));
        self.n_bytes = 0;
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

//! Holds the state of a sink of part files: documents that are coming, those that are complete,
//! and the folder that they go to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pagemill_pipeline::{
    Ack, Delivery, Document, DocumentId, Ended, Inventory, Item, SinkInput, SinkMeter, StageError,
    StoredDocument,
};

use super::faults::Faults;
use super::folder::{Folder, WRITE_HINT, or_stage_error};
use super::merge::Size;
use super::{Format, Rows, Settings};
use crate::lancedb::Durability;

/// A document that is still coming holds at most so much in memory; the rest
/// of it waits in files that are no parts yet.
const SPILL_BYTES: usize = 32 << 20;

/// Merges at the end of a run; what is left to merge then waits for the next.
/// Each copies a full part at most.
const MAX_LAST_MERGES: usize = 16;

/// What is behind a [`PartSink`](super::PartSink).
pub(super) struct Store<F> {
    settings: Settings,
    pub(super) spill_bytes: usize,
    pub(super) faults: Faults,
    format: F,
    /// These are set by `open`.
    fingerprint: String,
    meter: SinkMeter,
    folder: Option<Folder>,
    /// Documents that are still coming, by the address of their [`Document`]:
    /// one that comes twice at a time is two of them.
    coming: HashMap<usize, Coming>,
    /// Those among them that hold too much.
    to_spill: HashSet<usize>,
    n_spilled: u64,
    ready: Ready,
    /// Of documents that are in their parts, which are not durable yet.
    placed: Vec<Ack>,
    /// Whether small parts are merged: until that fails once.
    merges: bool,
}

/// What has come of one document.
#[derive(Default)]
struct Coming {
    items: Vec<Item>,
    n_bytes_held: usize,
    /// Those that are spilled count too.
    n_bytes: usize,
    spilled: Vec<Spilled>,
    acks: Vec<Ack>,
}

/// Rows of a document that are in a file of their own; it goes with this.
struct Spilled {
    path: PathBuf,
}

impl Drop for Spilled {
    fn drop(&mut self) {
        // One that stays goes when the folder is opened.
        let _ = fs::remove_file(&self.path);
    }
}

/// A document of which nothing more comes; without rows, it has none any more.
struct Complete {
    document: StoredDocument,
    rows: Coming,
}

/// Documents that wait to be put into parts.
#[derive(Default)]
struct Ready {
    documents: Vec<Complete>,
    ids: HashSet<DocumentId>,
    n_rows: u64,
    n_bytes: usize,
    since: Option<Instant>,
}

impl Ready {
    fn waiting(&mut self, id: DocumentId) -> Option<usize> {
        let is_it = |complete: &Complete| complete.document.id == id;
        self.ids
            .contains(&id)
            .then(|| self.documents.iter().position(is_it))
            .flatten()
    }

    fn push(&mut self, mut complete: Complete) {
        let id = complete.document.id;
        if let Some(place) = self.waiting(id) {
            // The later arrival takes the place of the earlier one.
            let mut earlier = self.documents.remove(place);
            self.n_rows -= earlier.document.n_rows;
            self.n_bytes -= earlier.rows.n_bytes;
            let later = std::mem::take(&mut complete.rows.acks);
            complete.rows.acks = std::mem::take(&mut earlier.rows.acks);
            complete.rows.acks.extend(later);
        }
        self.n_rows += complete.document.n_rows;
        self.n_bytes += complete.rows.n_bytes;
        self.since.get_or_insert_with(Instant::now);
        self.ids.insert(id);
        self.documents.push(complete);
    }
}

impl<F: Format> Store<F> {
    pub(super) fn new(settings: Settings, format: F) -> Self {
        Self {
            settings,
            spill_bytes: SPILL_BYTES,
            faults: Faults::default(),
            format,
            fingerprint: String::new(),
            meter: SinkMeter::default(),
            folder: None,
            coming: HashMap::new(),
            to_spill: HashSet::new(),
            n_spilled: 0,
            ready: Ready::default(),
            placed: Vec::new(),
            merges: true,
        }
    }

    pub(super) fn open(&mut self, input: &SinkInput) -> Result<(), StageError> {
        self.fingerprint.clone_from(&input.fingerprint);
        self.meter = input.meter.clone();
        self.folder = Some(Folder::open(
            &self.settings.folder,
            self.settings.durability == Durability::Power,
            &mut self.format,
            input,
            self.faults.clone(),
        )?);
        Ok(())
    }

    pub(super) fn inventory(&mut self, mark: Option<&str>) -> Inventory {
        let Some(folder) = &mut self.folder else {
            return Inventory::Unknown;
        };
        folder.inventory(mark)
    }

    /// The inventory of a folder that is not open; changes nothing.
    pub(super) fn peek(&self, mark: Option<&str>) -> Result<Inventory, StageError> {
        let folder = Folder::peek(&self.settings.folder, &self.format)?;
        let nothing = Inventory::Documents(Vec::new());
        Ok(folder.map_or(nothing, |mut folder| folder.inventory(mark)))
    }

    pub(super) fn mark(&mut self) -> Option<String> {
        Some(self.folder.as_mut()?.mark().to_owned())
    }

    pub(super) fn take(&mut self, batch: Vec<Delivery>) {
        for Delivery { item, ack } in batch {
            let key = address(ack.document());
            let coming = self.coming.entry(key).or_default();
            coming.n_bytes_held += item.n_bytes();
            coming.n_bytes += item.n_bytes();
            coming.items.push(item);
            coming.acks.push(ack);
            if coming.n_bytes_held >= self.spill_bytes {
                self.to_spill.insert(key);
            }
        }
    }

    pub(super) fn end(&mut self, ended: Ended) {
        let Ended {
            document,
            has_lost_items,
            ack,
        } = ended;
        let key = address(&document);
        self.to_spill.remove(&key);
        let coming = self.coming.remove(&key);
        if document.has_failed() {
            // The acks go undone, so that the next run does it again.
            return;
        }
        let origin = document.origin();
        let mut rows = match coming {
            Some(coming) => coming,
            // Nothing of it could be made now: what an earlier run made is better.
            None if has_lost_items && !document.is_removal() => {
                match self.ready.waiting(origin.id) {
                    Some(place) => self.ready.documents[place].rows.acks.push(ack),
                    None => ack.durable(),
                }
                return;
            }
            // It is gone or has become empty, and so do its rows.
            None => Coming::default(),
        };
        let n_rows = rows.acks.len() as u64;
        rows.acks.push(ack);
        self.ready.push(Complete {
            document: StoredDocument {
                id: origin.id,
                uri: origin.uri.to_string(),
                source: origin.source.to_string(),
                content_hash: origin.content_hash.to_string(),
                fingerprint: self.fingerprint.clone(),
                n_rows,
            },
            rows,
        });
    }

    /// Whether there is something to write now.
    pub(super) fn is_due(&self) -> bool {
        !self.to_spill.is_empty() || self.is_part_due()
    }

    fn is_part_due(&self) -> bool {
        let (limits, ready) = (&self.settings.limits, &self.ready);
        let max_wait = Duration::from_millis(limits.max_wait_ms);
        ready.n_rows >= limits.max_rows as u64
            || ready.n_bytes >= limits.max_bytes
            || ready.since.is_some_and(|since| since.elapsed() >= max_wait)
    }

    /// Writes what [`Store::is_due`] speaks of.
    pub(super) fn write_due(&mut self) -> Result<(), StageError> {
        while let Some(&key) = self.to_spill.iter().next() {
            self.spill(key)?;
            self.to_spill.remove(&key);
        }
        if self.is_part_due() {
            self.publish()?;
        }
        Ok(())
    }

    /// Moves the rows that have come of a document to a file.
    fn spill(&mut self, key: usize) -> Result<(), StageError> {
        let Some(coming) = self.coming.get_mut(&key) else {
            return Ok(());
        };
        self.n_spilled += 1;
        let name = format!("rows-{:08}", self.n_spilled);
        let spilled = Spilled {
            path: opened(&mut self.folder).path_of_partial(&name),
        };
        let written = File::create(&spilled.path)
            .map_err(super::PartError::Io)
            .and_then(|file| self.format.write(&file, &[Rows::Items(&coming.items)], &[]));
        written.map_err(|error| {
            or_stage_error(
                error,
                format_args!("cannot write `{}`", spilled.path.display()),
                WRITE_HINT,
            )
        })?;
        coming.items.clear();
        coming.n_bytes_held = 0;
        coming.spilled.push(spilled);
        Ok(())
    }

    /// Puts the documents that are complete into parts, and releases their
    /// acks once the parts are durable.
    pub(super) fn publish(&mut self) -> Result<(), StageError> {
        let since = Instant::now();
        let folder = opened(&mut self.folder);
        folder.remove_merged()?;
        let ready = std::mem::take(&mut self.ready);
        let mut by_part: BTreeMap<Option<u64>, Vec<Complete>> = BTreeMap::new();
        for complete in ready.documents {
            let holder = folder.holder(complete.document.id);
            by_part.entry(holder).or_default().push(complete);
        }
        let mut result = Ok(());
        while let Some((number, group)) = by_part.pop_first() {
            result = put(folder, &mut self.format, number, &group);
            if result.is_err() {
                by_part.insert(number, group);
                break;
            }
            let acks = group.into_iter().flat_map(|complete| complete.rows.acks);
            self.placed.extend(acks);
        }
        for complete in by_part.into_values().flatten() {
            self.ready.push(complete);
        }
        if result.is_err() {
            self.ready.since = ready.since;
        }
        result?;
        folder.sync()?;
        if !self.placed.is_empty() {
            self.meter.commit(since.elapsed());
        }
        for ack in self.placed.drain(..) {
            ack.durable();
        }
        Ok(())
    }

    /// Writes what waits, and merges small parts once, which copies a full part at most.
    pub(super) fn idle(&mut self) -> Result<(), StageError> {
        self.publish()?;
        self.merge();
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<(), StageError> {
        self.publish()?;
        for _ in 0..MAX_LAST_MERGES {
            if !self.merge() {
                break;
            }
        }
        opened(&mut self.folder).save_manifest();
        Ok(())
    }

    /// Merges small parts into one; false when there is nothing more to merge.
    ///
    /// It is upkeep, so what goes wrong is no reason to stop: all rows are there.
    fn merge(&mut self) -> bool {
        if !self.merges {
            return false;
        }
        let limits = Size {
            n_rows: self.settings.limits.max_rows as u64,
            n_bytes: self.settings.limits.max_bytes as u64,
        };
        let merged = opened(&mut self.folder).merge(&mut self.format, limits);
        merged.unwrap_or_else(|error| {
            self.merges = false;
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "small parts stay as they are until the next run: they cannot be merged"
            );
            false
        })
    }
}

/// Puts documents into the part that holds them, or into a new one.
fn put<F: Format>(
    folder: &mut Folder,
    format: &mut F,
    number: Option<u64>,
    group: &[Complete],
) -> Result<(), StageError> {
    let nothing = HashSet::new();
    let ids = group.iter().map(|complete| complete.document.id).collect();
    let (mut rows, mut documents) = (Vec::new(), Vec::new());
    for complete in group.iter().filter(|group| group.document.n_rows > 0) {
        documents.push(complete.document.clone());
        rows.extend(complete.rows.spilled.iter().map(|spilled| Rows::Part {
            path: &spilled.path,
            without: &nothing,
        }));
        if !complete.rows.items.is_empty() {
            rows.push(Rows::Items(&complete.rows.items));
        }
    }
    folder.put(format, number, &ids, rows, documents)
}

fn opened(folder: &mut Option<Folder>) -> &mut Folder {
    folder
        .as_mut()
        .expect("the runner opens a sink before it hands anything over")
}

/// Tells the arrivals of documents apart.
fn address(document: &Document) -> usize {
    std::ptr::from_ref(document).addr()
}

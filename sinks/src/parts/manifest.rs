//! `.documents`: which part holds which documents, so that opening a folder of
//! many parts does not read them all.
//!
//! It is a cache: an entry is believed if the part is the file that it was
//! made from, and a part without one is read.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pagemill_pipeline::{DocumentId, StoredDocument};
use serde::{Deserialize, Serialize};

use super::merge::Size;

const NAME: &str = ".documents";
const PARTIAL_NAME: &str = ".documents.partial";

/// Tells one content of a file from another without reading it. A part that is
/// written anew is another file, with a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    mtime_s: i64,
    mtime_ns: i64,
    inode: u64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            mtime_s: metadata.mtime(),
            mtime_ns: metadata.mtime_nsec(),
            inode: metadata.ino(),
        }
    }
}

/// A part and what it holds.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) stamp: Stamp,
    pub(super) documents: Vec<StoredDocument>,
}

impl Part {
    pub(super) fn size(&self) -> Size {
        let n_rows = self.documents.iter().map(|document| document.n_rows);
        Size {
            n_rows: n_rows.sum(),
            n_bytes: self.stamp.size,
        }
    }
}

/// One line of the manifest.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    part: String,
    stamp: Stamp,
    documents: Vec<Listed>,
}

/// A document in a list, by the names that columns have.
#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    document_id: String,
    document: String,
    content_hash: String,
    fingerprint: String,
    source: String,
    n_rows: u64,
}

impl From<&StoredDocument> for Listed {
    fn from(stored: &StoredDocument) -> Self {
        Self {
            document_id: stored.id.to_string(),
            document: stored.uri.clone(),
            content_hash: stored.content_hash.clone(),
            fingerprint: stored.fingerprint.clone(),
            source: stored.source.clone(),
            n_rows: stored.n_rows,
        }
    }
}

impl Listed {
    fn stored(self) -> Option<StoredDocument> {
        Some(StoredDocument {
            id: DocumentId::from_hex(&self.document_id)?,
            uri: self.document,
            source: self.source,
            content_hash: self.content_hash,
            fingerprint: self.fingerprint,
            n_rows: self.n_rows,
        })
    }
}

/// A list of documents as JSON.
pub(crate) fn list_to_json(documents: &[StoredDocument]) -> serde_json::Result<String> {
    let listed: Vec<Listed> = documents.iter().map(Listed::from).collect();
    serde_json::to_string(&listed)
}

/// The list that [`list_to_json`] wrote.
pub(crate) fn list_from_json(json: &str) -> Option<Vec<StoredDocument>> {
    let listed: Vec<Listed> = serde_json::from_str(json).ok()?;
    listed.into_iter().map(Listed::stored).collect()
}

/// The parts that the manifest of `folder` tells of, by name; as many as can
/// be understood.
pub(super) fn read(folder: &Path) -> HashMap<String, Part> {
    let mut parts = HashMap::new();
    let Ok(file) = File::open(folder.join(NAME)) else {
        return parts;
    };
    for line in BufReader::new(file).lines() {
        let entry = line.ok().and_then(|line| {
            let entry: Entry = serde_json::from_str(&line).ok()?;
            let documents = entry.documents.into_iter().map(Listed::stored);
            let part = Part {
                stamp: entry.stamp,
                documents: documents.collect::<Option<_>>()?,
            };
            Some((entry.part, part))
        });
        let Some((name, part)) = entry else {
            break;
        };
        parts.insert(name, part);
    }
    parts
}

/// Puts a manifest of these parts in its place. It is not synced: one that is
/// lost is made again.
pub(super) fn write(
    folder: &Path,
    parts: &BTreeMap<u64, Part>,
    name_of: impl Fn(u64) -> String,
) -> io::Result<()> {
    let partial = folder.join(PARTIAL_NAME);
    let mut file = BufWriter::new(File::create(&partial)?);
    for (number, part) in parts {
        let entry = Entry {
            part: name_of(*number),
            stamp: part.stamp,
            documents: part.documents.iter().map(Listed::from).collect(),
        };
        serde_json::to_writer(&mut file, &entry)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    std::fs::rename(partial, folder.join(NAME))
}

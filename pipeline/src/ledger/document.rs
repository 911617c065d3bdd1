//! Defines what the ledger notes of a document, and how that stands in one row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::graph::SinkKey;
use crate::key::DocumentId;

/// A document that is known: from a source, or from the rows of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerDocument {
    /// The document.
    pub id: DocumentId,
    /// Its path or URL.
    pub uri: String,
    /// The source that sent it; empty where neither the ledger nor a row names it.
    pub source: String,
    /// What the source tells its version by.
    pub state: Option<String>,
    /// Hash of its bytes.
    pub content_hash: String,
    /// Whether the next run makes it again, whatever the sinks hold.
    pub is_undone: bool,
    /// What each sink holds of it, by [`SinkKey::identity`](crate::SinkKey).
    pub stored: BTreeMap<String, StoredIn>,
    /// Its dead letters.
    pub n_dead: u64,
}

/// What one sink holds of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredIn {
    /// Hash of the bytes that the rows were made from.
    pub content_hash: String,
    /// Hash of the configuration that made the rows; empty where they are not whole.
    pub fingerprint: String,
    /// Number of rows, which may be 0.
    pub n_rows: u64,
    /// Whether every item that was made for the sink became a row: none was set
    /// aside. Not known of rows that only the sink tells of.
    pub is_whole: bool,
}

impl LedgerDocument {
    /// The number of rows of each sink that has any.
    pub fn rows(&self) -> BTreeMap<String, u64> {
        let stored = self.stored.iter().filter(|(_, stored)| stored.n_rows > 0);
        stored
            .map(|(sink, stored)| (sink.clone(), stored.n_rows))
            .collect()
    }

    /// Whether this sink holds the document with this content, made by its
    /// present configuration.
    pub fn is_in(&self, sink: &SinkKey, content_hash: &str) -> bool {
        !self.is_undone
            && self.stored.get(&*sink.identity).is_some_and(|stored| {
                stored.content_hash == content_hash && stored.fingerprint == sink.fingerprint
            })
    }

    /// Whether all these sinks hold it as it was when it came last.
    pub fn is_done(&self, sinks: &[SinkKey]) -> bool {
        sinks
            .iter()
            .all(|sink| self.is_in(sink, &self.content_hash))
    }
}

/// What a sink is called in the rows of documents: identities are long.
pub(super) fn short_key(identity: &str) -> String {
    blake3::hash(identity.as_bytes()).to_hex()[..12].to_owned()
}

/// What one sink holds of a document: fingerprint, number of rows, the hash of the
/// content where it is not the document's, and whether the rows are whole.
#[derive(Serialize, Deserialize)]
struct StoredJson(String, u64, Option<String>, #[serde(default)] bool);

pub(super) fn stored_to_json(document: &LedgerDocument) -> String {
    let stored = document.stored.iter().map(|(identity, stored)| {
        let is_other = stored.content_hash != document.content_hash;
        let other = is_other.then(|| stored.content_hash.clone());
        let value = StoredJson(
            stored.fingerprint.clone(),
            stored.n_rows,
            other,
            stored.is_whole,
        );
        (short_key(identity), value)
    });
    let stored: BTreeMap<String, StoredJson> = stored.collect();
    serde_json::to_string(&stored).unwrap_or_default()
}

pub(super) fn stored_from_json(
    text: &str,
    content_hash: &str,
    identities: &BTreeMap<String, String>,
) -> BTreeMap<String, StoredIn> {
    // A text that cannot be read means that nothing is known to be stored.
    let stored: BTreeMap<String, StoredJson> = serde_json::from_str(text).unwrap_or_default();
    let known =
        stored
            .into_iter()
            .filter_map(|(key, StoredJson(fingerprint, n_rows, other, is_whole))| {
                let stored = StoredIn {
                    content_hash: other.unwrap_or_else(|| content_hash.to_owned()),
                    fingerprint,
                    n_rows,
                    is_whole,
                };
                Some((identities.get(&key)?.clone(), stored))
            });
    known.collect()
}

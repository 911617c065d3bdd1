//! Counts the rows of documents while a part is read.

use std::borrow::Cow;
use std::collections::HashMap;

use pagemill_pipeline::{DocumentId, StoredDocument};
use serde::Deserialize;

/// What a row says of its document.
#[derive(Debug, Deserialize)]
pub(crate) struct RowHead<'a> {
    #[serde(borrow)]
    pub(crate) document_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) document: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) content_hash: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) fingerprint: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) source: Cow<'a, str>,
}

/// The documents of the rows that were counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    documents: Vec<StoredDocument>,
    places: HashMap<DocumentId, usize>,
    /// The digits of the last row's document: rows of one document are neighbours.
    last: Option<(String, usize)>,
}

impl Tally {
    /// Counts one row; false when `document_id` is none.
    pub(crate) fn count(&mut self, row: &RowHead<'_>) -> bool {
        if let Some((digits, place)) = &self.last
            && *digits == row.document_id
        {
            self.documents[*place].n_rows += 1;
            return true;
        }
        let Some(id) = DocumentId::from_hex(&row.document_id) else {
            return false;
        };
        let place = *self.places.entry(id).or_insert_with(|| {
            self.documents.push(StoredDocument {
                id,
                uri: row.document.to_string(),
                source: row.source.to_string(),
                content_hash: row.content_hash.to_string(),
                fingerprint: row.fingerprint.to_string(),
                n_rows: 0,
            });
            self.documents.len() - 1
        });
        self.documents[place].n_rows += 1;
        self.last = Some((row.document_id.to_string(), place));
        true
    }

    /// The documents, in the order of their first rows.
    pub(crate) fn into_documents(self) -> Vec<StoredDocument> {
        self.documents
    }
}

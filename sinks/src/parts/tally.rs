//! Counts the rows of documents while a part is read.

use std::collections::HashMap;

use pagemill_pipeline::{DocumentId, StoredDocument};

/// What a row says of its document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowHead<'a> {
    pub(crate) document_id: &'a str,
    pub(crate) document: &'a str,
    pub(crate) content_hash: &'a str,
    pub(crate) fingerprint: &'a str,
    pub(crate) source: &'a str,
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
            && digits == row.document_id
        {
            self.documents[*place].n_rows += 1;
            return true;
        }
        let Some(id) = DocumentId::from_hex(row.document_id) else {
            return false;
        };
        let place = *self.places.entry(id).or_insert_with(|| {
            self.documents.push(StoredDocument {
                id,
                uri: row.document.to_owned(),
                source: row.source.to_owned(),
                content_hash: row.content_hash.to_owned(),
                fingerprint: row.fingerprint.to_owned(),
                n_rows: 0,
            });
            self.documents.len() - 1
        });
        self.documents[place].n_rows += 1;
        self.last = Some((row.document_id.to_owned(), place));
        true
    }

    /// The documents, in the order of their first rows.
    pub(crate) fn into_documents(self) -> Vec<StoredDocument> {
        self.documents
    }
}

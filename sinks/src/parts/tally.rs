//! Counts the rows of documents while a part is read.

use std::collections::HashMap;

use pagemill_pipeline::{DocumentId, StoredDocument};

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
    pub(crate) fn count(
        &mut self,
        document_id: &str,
        document: &str,
        content_hash: &str,
        fingerprint: &str,
    ) -> bool {
        if let Some((digits, place)) = &self.last
            && digits == document_id
        {
            self.documents[*place].n_rows += 1;
            return true;
        }
        let Some(id) = DocumentId::from_hex(document_id) else {
            return false;
        };
        let place = *self.places.entry(id).or_insert_with(|| {
            self.documents.push(StoredDocument {
                id,
                uri: document.to_owned(),
                content_hash: content_hash.to_owned(),
                fingerprint: fingerprint.to_owned(),
                n_rows: 0,
            });
            self.documents.len() - 1
        });
        self.documents[place].n_rows += 1;
        self.last = Some((document_id.to_owned(), place));
        true
    }

    /// The documents, in the order of their first rows.
    pub(crate) fn into_documents(self) -> Vec<StoredDocument> {
        self.documents
    }
}

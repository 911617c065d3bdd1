//! Names the columns that every row has, before those of the item's fields.

use pagemill_pipeline::{FieldSet, FieldType, SinkInput, StageError};

/// 32 hexadecimal digits: the document that a row belongs to.
pub(crate) const DOCUMENT_ID: &str = "document_id";
/// The document's path or URL.
pub(crate) const DOCUMENT: &str = "document";
/// Hash of the document's bytes when the row was made.
pub(crate) const CONTENT_HASH: &str = "content_hash";
/// Media type of the document.
pub(crate) const MEDIA_TYPE: &str = "media_type";
/// Hash of the configuration that made the row.
pub(crate) const FINGERPRINT: &str = "fingerprint";
/// The pipeline that stored the row: only a run of it replaces or removes the row.
pub(crate) const PIPELINE: &str = "pipeline";
/// The source that brought the document.
pub(crate) const SOURCE: &str = "source";
/// How many rows the document has, in at least one row of it: fewer than that are
/// noticed. Rows that were written before the document had ended lack it.
pub(crate) const DOCUMENT_ROWS: &str = "document_rows";
/// Page number, from 1.
pub(crate) const PAGE: &str = "page";
/// Part of the page, from 1.
pub(crate) const PART: &str = "part";

const FIXED: [&str; 10] = [
    DOCUMENT_ID,
    DOCUMENT,
    CONTENT_HASH,
    MEDIA_TYPE,
    FINGERPRINT,
    PIPELINE,
    SOURCE,
    PAGE,
    PART,
    DOCUMENT_ROWS,
];

/// What all rows of a sink have in common.
#[derive(Debug, Clone, Default)]
pub(crate) struct MadeBy {
    pub(crate) pipeline: String,
    pub(crate) fingerprint: String,
}

impl MadeBy {
    pub(crate) fn of(input: &SinkInput) -> Self {
        Self {
            pipeline: input.pipeline.clone(),
            fingerprint: input.fingerprint.clone(),
        }
    }
}

/// Where a fixed column stands; others come after them.
pub(crate) fn fixed_place(column: &str) -> usize {
    let place = FIXED.iter().position(|name| *name == column);
    place.unwrap_or(FIXED.len())
}

/// The fields that a sink stores, in order of name.
///
/// # Errors
/// A field that has the name of a fixed column.
pub(crate) fn stored_fields(fields: &FieldSet) -> Result<Vec<(String, FieldType)>, StageError> {
    let stored: Vec<(String, FieldType)> = fields
        .iter()
        .filter(|(_, ty)| ty.is_column())
        .map(|(name, ty)| (name.to_owned(), ty))
        .collect();
    match stored
        .iter()
        .find(|(name, _)| fixed_place(name) < FIXED.len())
    {
        None => Ok(stored),
        Some((name, _)) => Err(StageError::fatal(
            format_args!("the field `{name}` has the name of a column that every row has"),
            "give the field another name in the stage that adds it",
        )),
    }
}

//! From items to rows of a table.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use pagemill_pipeline::{Item, StageError};

use super::schema::mismatch;
use crate::columns;

/// Turns items into rows of the table called `table`, which has this schema.
///
/// # Errors
/// A value that does not fit its column.
pub(super) fn batch(
    table: &str,
    schema: &SchemaRef,
    fingerprint: &str,
    items: &[Item],
) -> Result<RecordBatch, StageError> {
    columns::batch(
        &|problem| mismatch(table, problem),
        schema,
        fingerprint,
        items,
    )
}

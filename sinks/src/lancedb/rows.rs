//! From items to rows of a table.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use pagemill_pipeline::{Item, StageError};

use super::schema::mismatch;
use crate::columns::{self, Totals};
use crate::row::MadeBy;

/// Turns items into rows of the table called `table`, which has this schema.
///
/// # Errors
/// A value that does not fit its column.
pub(super) fn batch(
    table: &str,
    schema: &SchemaRef,
    made_by: &MadeBy,
    totals: &Totals,
    items: &[Item],
) -> Result<RecordBatch, StageError> {
    let misfit = |problem: &str| mismatch(table, problem);
    columns::batch(&misfit, schema, made_by, totals, items)
}

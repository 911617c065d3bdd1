//! Checks whether the rows of a pipeline fit a table.

use arrow::datatypes::{DataType, Field, Schema};
use pagemill_pipeline::{Item, StageError};

pub(super) use crate::columns::Columns;
use crate::row::DOCUMENT_ROWS;

impl Columns {
    /// The schema of a new table; see [`Columns::schema`].
    pub(super) fn table_schema(&self, items: &[Item]) -> Schema {
        let schema = self.schema(items);
        let mut columns: Vec<Field> = schema
            .fields()
            .iter()
            .map(|column| Field::clone(column))
            .collect();
        columns.push(Field::new(DOCUMENT_ROWS, DataType::UInt32, true));
        Schema::new(columns)
    }

    /// Checks that the rows of this pipeline fit the table called `name`.
    ///
    /// # Errors
    /// All that differs, in one sentence.
    pub(super) fn check(&self, name: &str, table: &Schema) -> Result<(), StageError> {
        let rows = table.field_with_name(DOCUMENT_ROWS);
        let counts_rows = rows.is_ok_and(|column| *column.data_type() == DataType::UInt32);
        let problem = self
            .misfit(table)
            .or_else(|| (!counts_rows).then(|| format!("it has no `{DOCUMENT_ROWS}`")));
        problem.map_or(Ok(()), |problem| Err(mismatch(name, &problem)))
    }
}

/// The rows of this pipeline cannot be stored in the table called `name`.
pub(super) fn mismatch(name: &str, problem: &str) -> StageError {
    StageError::fatal(
        format_args!("table `{name}` does not fit this pipeline: {problem}"),
        "name another `table`, or remove this one so that it is made anew",
    )
}

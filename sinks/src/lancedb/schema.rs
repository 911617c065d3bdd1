//! Whether the rows of a pipeline fit a table.

use arrow::datatypes::Schema;
use pagemill_pipeline::StageError;

pub(super) use crate::columns::Columns;

impl Columns {
    /// Checks that the rows of this pipeline fit the table called `name`.
    ///
    /// # Errors
    /// All that differs, in one sentence.
    pub(super) fn check(&self, name: &str, table: &Schema) -> Result<(), StageError> {
        let problem = self.misfit(table);
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

//! Defines the reasons for which a table cannot be searched, and what to do about them.

use lance::Error;

use super::{VECTOR, VECTORS};

/// Why a table cannot be searched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// There is no such table.
    #[error("there is no table `{table}` in `{uri}`")]
    Missing {
        /// Where it was looked for.
        uri: String,
        /// Its name.
        table: String,
        /// The tables that are there.
        others: Vec<String>,
    },
    /// The table lacks the column that the search goes by.
    #[error("table `{table}` has no column `{column}`")]
    NoColumn {
        /// The table's name.
        table: String,
        /// The column.
        column: &'static str,
    },
    /// The column holds something else.
    #[error("the column `{column}` of table `{table}` is {found}, not {expected}")]
    ColumnType {
        /// The table's name.
        table: String,
        /// The column.
        column: &'static str,
        /// What it holds, in words.
        found: String,
        /// What the search needs, in words.
        expected: &'static str,
    },
    /// The search goes by meaning, but the question has no vector.
    #[error("a search by vector needs the question as a vector")]
    NoVector,
    /// The question's vector is of another model.
    #[error("the question has {found} numbers, the vectors of table `{table}` have {expected}")]
    Length {
        /// The table's name.
        table: String,
        /// Numbers in the question's vector.
        found: usize,
        /// Numbers in the table's vectors.
        expected: usize,
    },
    /// The table cannot be read.
    #[error("cannot read table `{table}`")]
    Read {
        /// The table's name.
        table: String,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
}

impl TableError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { others, .. } if others.is_empty() => {
                "fill it first, with `pagemill run`".into()
            }
            Self::Missing { others, .. } => format!("the tables there: `{}`", others.join("`, `")),
            Self::NoColumn { column, .. } if [VECTOR, VECTORS].contains(column) => {
                "search by text, or add a stage that makes vectors to the pipeline".into()
            }
            Self::NoColumn { .. } => {
                "search by vector, or add a stage that makes text to the pipeline".into()
            }
            Self::ColumnType { .. } => {
                "search by text, or let a pipeline of this program make the table".into()
            }
            Self::NoVector | Self::Length { .. } => {
                "embed the question with the model that made the table".into()
            }
            Self::Read { .. } => "check that the files are whole and may be read".into(),
        }
    }
}

//! Searching a table.

mod detail;
mod error;
mod first_step;
mod fuse;
mod kept;
mod query;
mod vectors;

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, UInt32Type, UInt64Type};
use futures::TryStreamExt;
use lance::dataset::scanner::Scanner;
use lance::{Dataset, Error};
use lance_index::scalar::FullTextSearchQuery;
use lance_index::scalar::inverted::query::MatchQuery;
use lancedb::DistanceType;

pub use self::error::TableError;
pub use self::query::{FirstStep, Hit, MultiVector, PageDetail, Question, SearchMode, SearchQuery};

use self::fuse::{fuse, sort};
use self::kept::Kept;
use crate::row::{DOCUMENT, DOCUMENT_ID, PAGE, PART};

/// The field `text`.
const TEXT: &str = "text";
/// The field `vector`.
const VECTOR: &str = "vector";
/// The field `vectors`.
pub(super) const VECTORS: &str = "vectors";
/// What lance calls a row's id.
const ROW_ID: &str = "_rowid";

/// A table, open for searching: the version that was newest when it was opened.
///
/// Clones share what they keep in memory.
#[derive(Debug, Clone)]
pub struct TableReader {
    name: String,
    dataset: Dataset,
    kept: Arc<Kept>,
}

impl TableReader {
    /// How many bytes of the column `vectors` a reader keeps in memory by default.
    pub const KEPT_BYTES: usize = 1 << 30;

    /// Opens the table `table` in the folder or at the URL `uri`.
    ///
    /// # Errors
    /// There is no such table, or it cannot be read.
    pub async fn open(uri: &str, table: &str) -> Result<Self, TableError> {
        let path = format!("{}/{table}.lance", uri.trim_end_matches('/'));
        let opened = Dataset::open(&path).await;
        let dataset = opened.map_err(|error| match error {
            Error::DatasetNotFound { .. } | Error::NotFound { .. } => TableError::Missing {
                uri: uri.to_owned(),
                table: table.to_owned(),
                others: tables_in(Path::new(uri)),
            },
            error => unreadable(table, error),
        })?;
        Ok(Self {
            name: table.to_owned(),
            dataset,
            kept: Arc::new(Kept::new(Self::KEPT_BYTES)),
        })
    }

    /// Keeps the column `vectors` in memory after the first exact search over it, if it has
    /// no more than `max_bytes`: later searches read nothing. With 0, each one reads the
    /// column anew, which suits a reader that is asked once.
    #[must_use]
    pub fn keep_vectors(mut self, max_bytes: usize) -> Self {
        self.kept = Arc::new(Kept::new(max_bytes));
        self
    }

    /// Number of rows.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn n_rows(&self) -> Result<usize, TableError> {
        let counted = self.dataset.count_rows(None).await;
        counted.map_err(|error| self.unreadable(error))
    }

    /// Whether rows have text, which a search by words needs.
    pub fn has_text(&self) -> bool {
        self.column(TEXT).is_some()
    }

    /// Length of the vectors in the column `vector`; `None` if there is none.
    pub fn vector_dim(&self) -> Option<usize> {
        match self.column(VECTOR)? {
            DataType::FixedSizeList(_, dim) => usize::try_from(dim).ok(),
            _ => None,
        }
    }

    /// Length of each vector in the column `vectors`; `None` if there is none.
    pub fn vectors_dim(&self) -> Option<usize> {
        vectors_dim(&self.column(VECTORS)?)
    }

    /// Every row, in order of document, page and part; their score is 0.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn rows(&self) -> Result<Vec<Hit>, TableError> {
        let found = async { self.read(self.scan(None)?).await };
        let batches = found.await.map_err(|error| self.unreadable(error))?;
        Ok(hits(&batches, None, |score| score))
    }

    /// The best rows, best first; rows of one score in the order of their document and page.
    ///
    /// # Errors
    /// The table lacks what the search goes by, or cannot be read.
    pub async fn search(&self, query: &SearchQuery) -> Result<Vec<Hit>, TableError> {
        let mut hits = match query.mode {
            SearchMode::Text => self.by_text(query, query.top).await?,
            SearchMode::Vector => self.by_meaning(query, query.top).await?,
            SearchMode::Hybrid => {
                let n_candidates = query.top.saturating_mul(5).max(50);
                let by_text = self.by_text(query, n_candidates).await?;
                let by_meaning = self.by_meaning(query, n_candidates).await?;
                fuse(&[by_text, by_meaning])
            }
        };
        hits.truncate(query.top);
        Ok(hits)
    }

    async fn by_text(&self, query: &SearchQuery, n: usize) -> Result<Vec<Hit>, TableError> {
        self.has(TEXT)?;
        if query.text.trim().is_empty() || n == 0 {
            return Ok(Vec::new());
        }
        let words = MatchQuery::new(query.text.clone()).with_column(Some(TEXT.into()));
        let found = async {
            let mut scan = self.scan(Some("_score"))?;
            let query = FullTextSearchQuery::new_query(words.into()).limit(Some(n as i64));
            scan.full_text_search(query)?.limit(Some(n as i64), None)?;
            self.read(scan).await
        };
        let batches = found.await.map_err(|error| self.unreadable(error))?;
        Ok(hits(&batches, Some("_score"), |score| score))
    }

    /// By the column that holds what the question is: one vector, or many. Where there is
    /// only the other one, a single vector is a question of one token.
    async fn by_meaning(&self, query: &SearchQuery, n: usize) -> Result<Vec<Hit>, TableError> {
        let is_there = |column: &str| self.column(column).is_some();
        match query.question.as_ref().ok_or(TableError::NoVector)? {
            Question::Single(vector) if !is_there(VECTOR) && is_there(VECTORS) => {
                let question = MultiVector {
                    values: vector.clone(),
                    dim: vector.len(),
                };
                self.by_vectors(&question, query, n).await
            }
            Question::Single(vector) => self.by_vector(vector, n).await,
            Question::Multi(question)
                if question.n() == 1 && is_there(VECTOR) && !is_there(VECTORS) =>
            {
                self.by_vector(&question.values, n).await
            }
            Question::Multi(question) => self.by_vectors(question, query, n).await,
        }
    }

    async fn by_vector(&self, vector: &[f32], n: usize) -> Result<Vec<Hit>, TableError> {
        self.has(VECTOR)?;
        self.has_length(self.vector_dim(), vector.len())?;
        if n == 0 {
            return Ok(Vec::new());
        }
        let found = async {
            let mut scan = self.scan(Some("_distance"))?;
            let vector = Float32Array::from(vector.to_vec());
            scan.nearest(VECTOR, &vector, n)?
                .distance_metric(DistanceType::Cosine.into())
                .use_index(false);
            self.read(scan).await
        };
        let batches = found.await.map_err(|error| self.unreadable(error))?;
        Ok(hits(&batches, Some("_distance"), |distance| 1.0 - distance))
    }

    fn scan(&self, score: Option<&str>) -> lance::Result<Scanner> {
        let mut columns = self.hit_columns();
        columns.extend(score);
        let mut scan = self.dataset.scan();
        scan.project(&columns)?.with_row_id();
        Ok(scan)
    }

    /// The columns that a hit is made of, as far as the table has them.
    fn hit_columns(&self) -> Vec<&'static str> {
        let wanted = [DOCUMENT, DOCUMENT_ID, PAGE, PART, TEXT];
        let is_there = |name: &&str| self.column(name).is_some();
        wanted.into_iter().filter(is_there).collect()
    }

    async fn read(&self, scan: Scanner) -> lance::Result<Vec<RecordBatch>> {
        scan.try_into_stream().await?.try_collect().await
    }

    /// The type of a column; `None` if there is none.
    fn column(&self, name: &str) -> Option<DataType> {
        Some(self.dataset.schema().field(name)?.data_type())
    }

    fn has(&self, column: &'static str) -> Result<(), TableError> {
        if self.column(column).is_some() {
            return Ok(());
        }
        Err(TableError::NoColumn {
            table: self.name.clone(),
            column,
        })
    }

    /// Whether the question's vectors are as long as a column's.
    fn has_length(&self, expected: Option<usize>, found: usize) -> Result<(), TableError> {
        match expected.filter(|expected| *expected != found) {
            None => Ok(()),
            Some(expected) => Err(TableError::Length {
                table: self.name.clone(),
                found,
                expected,
            }),
        }
    }

    fn unreadable(&self, source: Error) -> TableError {
        unreadable(&self.name, source)
    }
}

/// Length of each vector of a column of multi-vectors; `None` for a column of another type.
pub(super) fn vectors_dim(column: &DataType) -> Option<usize> {
    let DataType::List(vectors) = column else {
        return None;
    };
    match vectors.data_type() {
        DataType::FixedSizeList(number, dim)
            if matches!(number.data_type(), DataType::Float16 | DataType::Float32) =>
        {
            usize::try_from(*dim).ok()
        }
        _ => None,
    }
}

/// The rows of batches; those without a score are left out, unless none is asked for.
fn hits(batches: &[RecordBatch], score: Option<&str>, to_score: impl Fn(f32) -> f32) -> Vec<Hit> {
    let mut hits = Vec::new();
    for batch in batches {
        let text = |name: &str, row: usize| -> Option<String> {
            let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let number = |name: &str, row: usize| -> Option<u32> {
            let column = batch
                .column_by_name(name)?
                .as_primitive_opt::<UInt32Type>()?;
            column.is_valid(row).then(|| column.value(row))
        };
        let ids = batch
            .column_by_name(ROW_ID)
            .and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let scores = score.and_then(|score| {
            let column = batch.column_by_name(score)?;
            column.as_primitive_opt::<Float32Type>()
        });
        let score_of = |row: usize| match (score, scores) {
            (None, _) => Some(0.0),
            (Some(_), scores) => scores.filter(|s| s.is_valid(row)).map(|s| s.value(row)),
        };
        for row in 0..batch.num_rows() {
            // A row without a vector is as far from the question as can be.
            let Some(score) = score_of(row).filter(|score| score.is_finite()) else {
                continue;
            };
            hits.push(Hit {
                score: to_score(score),
                document: text(DOCUMENT, row).unwrap_or_default(),
                document_id: text(DOCUMENT_ID, row).unwrap_or_default(),
                page: number(PAGE, row),
                part: number(PART, row),
                text: text(TEXT, row).unwrap_or_default(),
                row: ids.map_or(u64::MAX, |ids| ids.value(row)),
            });
        }
    }
    sort(&mut hits);
    hits
}

fn unreadable(table: &str, source: Error) -> TableError {
    TableError::Read {
        table: table.to_owned(),
        source: Box::new(source),
    }
}

/// Names of the tables in a folder.
fn tables_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        Some(name.to_str()?.strip_suffix(".lance")?.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

//! Searching a table.

use std::collections::HashMap;
use std::path::Path;

use crate::row::{DOCUMENT, DOCUMENT_ID, PAGE, PART};
use arrow::array::{Array, AsArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, UInt32Type};
use futures::TryStreamExt;
use lance::dataset::scanner::Scanner;
use lance::{Dataset, Error};
use lance_index::scalar::FullTextSearchQuery;
use lance_index::scalar::inverted::query::MatchQuery;
use lancedb::DistanceType;

/// The field `text`.
const TEXT: &str = "text";
/// The field `vector`.
const VECTOR: &str = "vector";

/// The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009).
const RANK_CONSTANT: f32 = 60.0;

/// What a search goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchMode {
    /// Words: BM25 over the column `text`.
    Text,
    /// Meaning: cosine similarity to the column `vector`.
    Vector,
    /// Both, by the rank that a row has in each.
    Hybrid,
}

/// A question to a table.
#[derive(Debug, Clone)]
pub struct SearchQuery {
    /// What the search goes by.
    pub mode: SearchMode,
    /// The words, as the user typed them; no character has a meaning of its own.
    pub text: String,
    /// The question as a vector, made by the model that made the table's.
    pub vector: Option<Vec<f32>>,
    /// How many hits are wanted.
    pub top: usize,
}

/// A row that a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Higher is better: BM25, cosine similarity, or reciprocal rank fusion.
    pub score: f32,
    /// Path or URL of the document.
    pub document: String,
    /// The document's id: 32 hexadecimal digits.
    pub document_id: String,
    /// Page of the document, from 1.
    pub page: Option<u32>,
    /// Part of the page, from 1.
    pub part: Option<u32>,
    /// The row's text; empty if it has none.
    pub text: String,
}

impl Hit {
    /// The row's key: what tells rows of one score apart.
    fn key(&self) -> (&str, Option<u32>, Option<u32>) {
        (&self.document, self.page, self.part)
    }
}

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
            Self::NoColumn { column, .. } if *column == VECTOR => {
                "search by text, or add a stage that makes vectors to the pipeline".into()
            }
            Self::NoColumn { .. } => {
                "search by vector, or add a stage that makes text to the pipeline".into()
            }
            Self::NoVector | Self::Length { .. } => {
                "embed the question with the model that made the table".into()
            }
            Self::Read { .. } => "check that the files are whole and may be read".into(),
        }
    }
}

/// A table, open for searching: the version that was newest when it was opened.
#[derive(Debug, Clone)]
pub struct TableReader {
    name: String,
    dataset: Dataset,
}

impl TableReader {
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
        })
    }

    /// Number of rows.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn n_rows(&self) -> Result<usize, TableError> {
        let counted = self.dataset.count_rows(None).await;
        counted.map_err(|error| unreadable(&self.name, error))
    }

    /// Length of the vectors in the column `vector`; `None` if there is none.
    pub fn vector_dim(&self) -> Option<usize> {
        let field = self.dataset.schema().field(VECTOR)?;
        match field.data_type() {
            DataType::FixedSizeList(_, dim) => usize::try_from(dim).ok(),
            _ => None,
        }
    }

    /// Every row, in order of document, page and part; their score is 0.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn rows(&self) -> Result<Vec<Hit>, TableError> {
        let found = async { self.read(self.scan(None)?).await };
        let batches = found.await.map_err(|error| unreadable(&self.name, error))?;
        Ok(hits(&batches, None, |score| score))
    }

    /// The best rows, best first; rows of one score in the order of their document and page.
    ///
    /// # Errors
    /// The table lacks what the search goes by, or cannot be read.
    pub async fn search(&self, query: &SearchQuery) -> Result<Vec<Hit>, TableError> {
        let mut hits = match query.mode {
            SearchMode::Text => self.by_text(query, query.top).await?,
            SearchMode::Vector => self.by_vector(query, query.top).await?,
            SearchMode::Hybrid => {
                let n_candidates = query.top.saturating_mul(5).max(50);
                let by_text = self.by_text(query, n_candidates).await?;
                let by_vector = self.by_vector(query, n_candidates).await?;
                fuse(&[by_text, by_vector])
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
        let batches = found.await.map_err(|error| unreadable(&self.name, error))?;
        Ok(hits(&batches, Some("_score"), |score| score))
    }

    async fn by_vector(&self, query: &SearchQuery, n: usize) -> Result<Vec<Hit>, TableError> {
        self.has(VECTOR)?;
        let vector = query.vector.as_ref().ok_or(TableError::NoVector)?;
        if let Some(expected) = self.vector_dim().filter(|dim| *dim != vector.len()) {
            return Err(TableError::Length {
                table: self.name.clone(),
                found: vector.len(),
                expected,
            });
        }
        if n == 0 {
            return Ok(Vec::new());
        }
        let found = async {
            let mut scan = self.scan(Some("_distance"))?;
            let vector = Float32Array::from(vector.clone());
            scan.nearest(VECTOR, &vector, n)?
                .distance_metric(DistanceType::Cosine.into())
                .use_index(false);
            self.read(scan).await
        };
        let batches = found.await.map_err(|error| unreadable(&self.name, error))?;
        Ok(hits(&batches, Some("_distance"), |distance| 1.0 - distance))
    }

    fn scan(&self, score: Option<&str>) -> lance::Result<Scanner> {
        let wanted = [DOCUMENT, DOCUMENT_ID, PAGE, PART, TEXT];
        let mut columns: Vec<&str> = wanted
            .into_iter()
            .filter(|name| self.dataset.schema().field(name).is_some())
            .collect();
        columns.extend(score);
        let mut scan = self.dataset.scan();
        scan.project(&columns)?;
        Ok(scan)
    }

    async fn read(&self, scan: Scanner) -> lance::Result<Vec<RecordBatch>> {
        scan.try_into_stream().await?.try_collect().await
    }

    fn has(&self, column: &'static str) -> Result<(), TableError> {
        if self.dataset.schema().field(column).is_some() {
            return Ok(());
        }
        Err(TableError::NoColumn {
            table: self.name.clone(),
            column,
        })
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
            });
        }
    }
    sort(&mut hits);
    hits
}

/// Best first; rows of one score by their key.
fn sort(hits: &mut [Hit]) {
    hits.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| a.key().cmp(&b.key()))
    });
}

/// Reciprocal rank fusion: ranks can be added, the scores behind them cannot.
fn fuse(lists: &[Vec<Hit>]) -> Vec<Hit> {
    let mut fused: HashMap<(String, Option<u32>, Option<u32>), Hit> = HashMap::new();
    for list in lists {
        for (rank, hit) in list.iter().enumerate() {
            let key = (hit.document_id.clone(), hit.page, hit.part);
            let score = 1.0 / (RANK_CONSTANT + 1.0 + rank as f32);
            fused
                .entry(key)
                .and_modify(|known| known.score += score)
                .or_insert_with(|| Hit {
                    score,
                    ..hit.clone()
                });
        }
    }
    // Equal sums are common (first and second, second and first). The list that
    // is named first decides: a row with the question's own words comes before
    // one that is only about the same.
    let first: HashMap<_, usize> = lists.first().map_or_else(HashMap::new, |list| {
        list.iter()
            .enumerate()
            .map(|(rank, hit)| (hit.key(), rank))
            .collect()
    });
    let mut hits: Vec<Hit> = fused.into_values().collect();
    let rank = |hit: &Hit| first.get(&hit.key()).copied().unwrap_or(usize::MAX);
    hits.sort_by(|a, b| {
        let by_score = b.score.total_cmp(&a.score);
        by_score
            .then_with(|| rank(a).cmp(&rank(b)))
            .then_with(|| a.key().cmp(&b.key()))
    });
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

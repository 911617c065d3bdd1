//! Search by `MaxSim` over the column `vectors`.
//!
//! Of the table only that column and the rows' ids are read, and scored batch by batch by
//! our own kernel; the other columns are fetched of the winners alone. (Lance scores the
//! column as well, by a function that widens each half float again for each of the
//! question's vectors.)

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{AsArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, UInt64Type};
use futures::{StreamExt as _, TryStreamExt as _};
use lance::dataset::ProjectionRequest;
use lance::table::format::Fragment;

use super::kept::{Column, Keeper, Pages, Scored};
use super::{Hit, MultiVector, ROW_ID, SearchQuery, TableError, TableReader, VECTORS, hits};
use crate::columns::describe;
use crate::maxsim::MaxSim;

/// Rows that are read and scored at a time: some megabytes, or some ten of the largest pages.
const BATCH_ROWS: usize = 64;
/// Batches that are scored while the next ones are read.
const N_AHEAD: usize = 4;
/// The column that scores are put into.
const SCORE: &str = "_score";

impl TableReader {
    pub(super) async fn by_vectors(
        &self,
        question: &MultiVector,
        query: &SearchQuery,
        n: usize,
    ) -> Result<Vec<Hit>, TableError> {
        self.has(VECTORS)?;
        let dim = self.vectors_dim().ok_or_else(|| TableError::ColumnType {
            table: self.name.clone(),
            column: VECTORS,
            found: self
                .column(VECTORS)
                .map_or_else(String::new, |ty| describe(&ty)),
            expected: "a list of vectors of floats",
        })?;
        if question.n() == 0 {
            return Err(TableError::NoVector);
        }
        self.has_length(Some(dim), question.dim)?;
        if n == 0 {
            return Ok(Vec::new());
        }
        let maxsim = Arc::new(MaxSim::new(&question.values, dim));
        let scored = match self.candidates(question, query, n).await? {
            None => self.score_all(&maxsim).await?,
            Some(candidates) => {
                let mut scored = self.score_rows(&maxsim, &candidates.rows).await?;
                if !candidates.unindexed.is_empty() {
                    let rest = Some(candidates.unindexed);
                    scored.extend(self.score_table(&maxsim, rest, &mut Keeper::none()).await?);
                }
                scored
            }
        };
        self.hits_of(best(scored, n)).await
    }

    /// Scores every row, from memory if an earlier question has read the column.
    async fn score_all(&self, question: &Arc<MaxSim>) -> Result<Vec<Scored>, TableError> {
        let mut column = self.kept.column.lock().await;
        match &*column {
            Column::Here(pages) => {
                let pages = Arc::clone(pages);
                drop(column);
                let question = Arc::clone(question);
                self.compute(move || Pages::score(&pages, &question)).await
            }
            Column::TooLarge => {
                drop(column);
                self.score_table(question, None, &mut Keeper::none()).await
            }
            Column::Unread => {
                let mut keeper = self.kept.keeper();
                let scored = self.score_table(question, None, &mut keeper).await?;
                *column = keeper.into_column();
                Ok(scored)
            }
        }
    }

    /// Reads and scores every row of these fragments, or of all.
    async fn score_table(
        &self,
        question: &Arc<MaxSim>,
        fragments: Option<Vec<Fragment>>,
        keeper: &mut Keeper,
    ) -> Result<Vec<Scored>, TableError> {
        let mut scan = self.dataset.scan();
        let scan = scan
            .project(&[VECTORS])
            .map_err(|error| self.unreadable(error))?
            .with_row_id()
            .batch_size(BATCH_ROWS)
            .scan_in_order(false);
        if let Some(fragments) = fragments {
            scan.with_fragments(fragments);
        }
        let batches = scan.try_into_stream().await;
        let batches = batches.map_err(|error| self.unreadable(error))?;
        let mut batches = batches
            .map(|batch| {
                let question = Arc::clone(question);
                async move {
                    let batch = batch.map_err(|error| self.unreadable(error))?;
                    let Some(pages) = Pages::of(&batch) else {
                        return Ok(None);
                    };
                    let score = move || {
                        let scored = Pages::score(std::slice::from_ref(&pages), &question);
                        Some((pages, scored))
                    };
                    self.compute(score).await
                }
            })
            .buffer_unordered(N_AHEAD);
        let mut scored = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            if let Some((pages, of_batch)) = batch {
                keeper.push(pages);
                scored.extend(of_batch);
            }
        }
        Ok(scored)
    }

    /// Reads and scores these rows.
    async fn score_rows(
        &self,
        question: &Arc<MaxSim>,
        rows: &[u64],
    ) -> Result<Vec<Scored>, TableError> {
        let batch = self.take(rows, &[VECTORS]).await?;
        let question = Arc::clone(question);
        self.compute(move || {
            let pages = Pages::of(&batch);
            Pages::score(pages.as_slice(), &question)
        })
        .await
    }

    /// The hits of the winners, best first.
    async fn hits_of(&self, winners: Vec<Scored>) -> Result<Vec<Hit>, TableError> {
        let rows: Vec<u64> = winners.iter().map(|(_, row)| *row).collect();
        let batch = self.take(&rows, &self.hit_columns()).await?;
        let scores: HashMap<u64, f32> = winners.into_iter().map(|(s, row)| (row, s)).collect();
        let ids = batch.column_by_name(ROW_ID);
        let Some(ids) = ids.and_then(|ids| ids.as_primitive_opt::<UInt64Type>()) else {
            return Ok(Vec::new());
        };
        let scores = ids.values().iter().map(|row| scores.get(row).copied());
        let scores: Float32Array = scores.collect();
        let mut fields = batch.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(SCORE, DataType::Float32, true)));
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(scores));
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
        let batch = batch.map_err(|error| self.unreadable(error.into()))?;
        Ok(hits(&[batch], Some(SCORE), |score| score))
    }

    /// These columns and the ids of these rows.
    pub(super) async fn take(
        &self,
        rows: &[u64],
        columns: &[&str],
    ) -> Result<RecordBatch, TableError> {
        let columns = columns.iter().copied().chain([ROW_ID]);
        let columns = ProjectionRequest::from_columns(columns, self.dataset.schema());
        let taken = self.dataset.take_rows(rows, columns).await;
        taken.map_err(|error| self.unreadable(error))
    }

    /// Computes on the threads that may be kept busy.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TableError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| self.unreadable(lance::Error::internal(error.to_string())))
    }
}

/// The `n` best, and those of the same score as the last of them: the order of documents
/// decides between them, which is not known yet.
fn best(mut scored: Vec<Scored>, n: usize) -> Vec<Scored> {
    /// So many at most: blank pages may all have one score.
    const MAX_EQUAL: usize = 100;
    let by_score =
        |a: &Scored, b: &Scored| -> Ordering { b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)) };
    scored.retain(|(score, _)| score.is_finite());
    let n_kept = n.saturating_add(MAX_EQUAL);
    if n_kept < scored.len() {
        scored.select_nth_unstable_by(n_kept, by_score);
        scored.truncate(n_kept);
    }
    scored.sort_unstable_by(by_score);
    if let Some((last, _)) = n.checked_sub(1).and_then(|last| scored.get(last).copied()) {
        let n_equal = scored[n..].partition_point(|(score, _)| *score >= last);
        scored.truncate(n + n_equal);
    }
    scored
}

//! Pages that are worth scoring exactly: found by the index, or by the mean of their vectors.

use arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, UInt64Type};
use lance::dataset::scanner::Scanner;
use lance::index::DatasetIndexExt as _;
use lance::table::format::Fragment;
use lancedb::DistanceType;
use std::sync::Arc;

use super::{
    FirstStep, MultiVector, ROW_ID, SearchQuery, TableError, TableReader, VECTOR, VECTORS,
};
use crate::lancedb::IndexConfig;

/// What the first step leaves to be scored.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Ids of rows.
    pub(super) rows: Vec<u64>,
    /// What the index does not cover.
    pub(super) unindexed: Vec<Fragment>,
}

impl TableReader {
    /// The rows to score; `None` for all.
    pub(super) async fn candidates(
        &self,
        question: &MultiVector,
        query: &SearchQuery,
        n: usize,
    ) -> Result<Option<Candidates>, TableError> {
        let n = n.saturating_mul(query.refine.unwrap_or(IndexConfig::REFINE).max(1));
        match query.first_step {
            FirstStep::None => Ok(None),
            FirstStep::Auto | FirstStep::Index => self.by_index(question, n).await,
            FirstStep::Pooled => self.by_mean(question, n).await.map(Some),
        }
    }

    async fn by_index(
        &self,
        question: &MultiVector,
        n: usize,
    ) -> Result<Option<Candidates>, TableError> {
        let found = async {
            let Some(unindexed) = self.unindexed().await? else {
                return Ok(None);
            };
            let vectors = list_of(question)?;
            let mut scan = self.dataset.scan();
            scan.nearest(VECTORS, &vectors, n)?.fast_search();
            let rows = self.row_ids(scan).await?;
            Ok(Some(Candidates { rows, unindexed }))
        };
        found.await.map_err(|error| self.unreadable(error))
    }

    /// The fragments that the index over `vectors` does not cover; `None` if there is none.
    async fn unindexed(&self) -> lance::Result<Option<Vec<Fragment>>> {
        let Some(field) = self.dataset.schema().field(VECTORS) else {
            return Ok(None);
        };
        let indices = self.dataset.load_indices().await?;
        let parts: Vec<_> = indices
            .iter()
            .filter(|index| index.fields == [field.id])
            .filter_map(|index| index.fragment_bitmap.as_ref())
            .collect();
        let covers = |fragment: &Fragment| {
            let id = u32::try_from(fragment.id);
            id.is_ok_and(|id| parts.iter().any(|part| part.contains(id)))
        };
        let fragments = self.dataset.fragments().iter();
        let unindexed: Vec<Fragment> = fragments.filter(|f| !covers(f)).cloned().collect();
        let is_indexed = unindexed.len() < self.dataset.fragments().len();
        Ok(is_indexed.then_some(unindexed))
    }

    async fn by_mean(&self, question: &MultiVector, n: usize) -> Result<Candidates, TableError> {
        self.has(VECTOR)?;
        self.has_length(self.vector_dim(), question.dim)?;
        let mut mean = vec![0.0; question.dim];
        for row in question.values.chunks_exact(question.dim) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
        }
        let found = async {
            let mut scan = self.dataset.scan();
            scan.nearest(VECTOR, &Float32Array::from(mean), n)?
                .distance_metric(DistanceType::Cosine.into())
                .use_index(false);
            self.row_ids(scan).await
        };
        let rows = found.await.map_err(|error| self.unreadable(error))?;
        let unindexed = Vec::new();
        Ok(Candidates { rows, unindexed })
    }

    async fn row_ids(&self, mut scan: Scanner) -> lance::Result<Vec<u64>> {
        scan.project(&["_distance"])?.with_row_id();
        let batches = self.read(scan).await?;
        let ids = |batch: &RecordBatch| -> Option<Vec<u64>> {
            let ids = batch.column_by_name(ROW_ID)?;
            Some(ids.as_primitive_opt::<UInt64Type>()?.values().to_vec())
        };
        let mut ids: Vec<u64> = batches.iter().filter_map(ids).flatten().collect();
        ids.sort_unstable(); // The order in which they are read.
        Ok(ids)
    }
}

fn list_of(question: &MultiVector) -> lance::Result<FixedSizeListArray> {
    let values = &question.values[..question.n() * question.dim];
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values: ArrayRef = Arc::new(Float32Array::from(values.to_vec()));
    Ok(FixedSizeListArray::try_new(
        item,
        question.dim as i32,
        values,
        None,
    )?)
}

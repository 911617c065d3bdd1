//! Reads what explains a hit: the page's vectors, its picture, and where its patches are.

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;

use super::kept::Pages;
use super::{Hit, PageDetail, TableError, TableReader, VECTORS, hits};

const THUMBNAIL: &str = "thumbnail";
const PATCH_ROWS: &str = "patch_rows";
const PATCH_COLS: &str = "patch_cols";
const PATCH_START: &str = "patch_start";

impl TableReader {
    /// What the table holds of a hit of this reader that explains it. What the table has no
    /// column for is `None`; so is everything of a hit that is no row of this version.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn page(&self, hit: &Hit) -> Result<Option<PageDetail>, TableError> {
        let mut columns = self.hit_columns();
        let is_there = |name: &&str| self.column(name).is_some();
        let wanted = [VECTORS, THUMBNAIL, PATCH_ROWS, PATCH_COLS, PATCH_START];
        columns.extend(wanted.into_iter().filter(is_there));
        if !self.may_have(hit.row) {
            return Ok(None);
        }
        let batch = self.take(&[hit.row], &columns).await?;
        let is_it = |found: &Hit| found.is_same_row(hit);
        let found = hits(std::slice::from_ref(&batch), None, |score| score);
        if !found.first().is_some_and(is_it) {
            return Ok(None);
        }
        Ok(Some(PageDetail {
            vectors: Pages::of(&batch).and_then(|pages| pages.first()),
            thumbnail: bytes(&batch),
            patch_rows: number(&batch, PATCH_ROWS),
            patch_cols: number(&batch, PATCH_COLS),
            patch_start: number(&batch, PATCH_START),
        }))
    }

    /// Whether a row's id can be one of this version: lance takes another for an error.
    fn may_have(&self, row: u64) -> bool {
        if self.dataset.manifest().uses_stable_row_ids() {
            return true; // An id that is unknown is no error then.
        }
        let (fragment, offset) = (row >> 32, row as u32 as usize);
        let mut fragments = self.dataset.fragments().iter();
        fragments
            .find(|known| known.id == fragment)
            .and_then(|fragment| fragment.physical_rows)
            .is_some_and(|n_rows| offset < n_rows)
    }
}

fn bytes(batch: &RecordBatch) -> Option<Vec<u8>> {
    let column = batch.column_by_name(THUMBNAIL)?.as_binary_opt::<i32>()?;
    (!column.is_empty() && column.is_valid(0)).then(|| column.value(0).to_vec())
}

fn number(batch: &RecordBatch, name: &str) -> Option<u32> {
    let column = batch
        .column_by_name(name)?
        .as_primitive_opt::<Int64Type>()?;
    let value = (!column.is_empty() && column.is_valid(0)).then(|| column.value(0))?;
    u32::try_from(value).ok()
}

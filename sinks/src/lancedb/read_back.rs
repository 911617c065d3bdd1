//! Reads rows back into the values that were stored, for documents that need not be
//! made from their source; see [`RowReader`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{UInt32Type, UInt64Type};
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use pagemill_pipeline::{DocumentId, FieldSet, FoundRow, Key, RowReader, RowValues, StageError};
use tokio::sync::Mutex;

use super::commit::Table;
use crate::columns;
use crate::row::{CONTENT_HASH, DOCUMENT_ID, FINGERPRINT, PAGE, PART, PIPELINE};

const ROW_ID: &str = "_rowid";

/// The columns that say which row it is.
const KEYS: [&str; 5] = [DOCUMENT_ID, PAGE, PART, CONTENT_HASH, FINGERPRINT];

/// Reads the rows that one pipeline has in a table.
pub(super) struct TableRows {
    table: String,
    pipeline: String,
    state: Mutex<State>,
}

struct State {
    dataset: Arc<Dataset>,
    /// The ids of the rows of each document, once they are needed. The rows of a
    /// document mostly follow each other.
    documents: Option<HashMap<DocumentId, Vec<Range<u64>>>>,
}

impl Table {
    /// Reads the rows of this pipeline back, as they are now; `None` where there is no table.
    pub(super) fn rows(&self) -> Option<TableRows> {
        Some(TableRows {
            table: self.name.clone(),
            pipeline: self.pipeline.clone(),
            state: Mutex::new(State {
                dataset: Arc::clone(self.dataset.as_ref()?),
                documents: None,
            }),
        })
    }
}

impl TableRows {
    fn cannot(&self, error: lance::Error) -> StageError {
        StageError::caused(
            format_args!("cannot read rows of table `{}` back", self.table),
            "let nobody else change the table during the run, and run again: the document is then \
             made from its source",
            error,
        )
    }
}

impl State {
    /// Goes to the latest version: files of older versions are removed in the end.
    async fn renew(&mut self) -> lance::Result<()> {
        let mut dataset = Dataset::clone(&self.dataset);
        dataset.checkout_latest().await?;
        self.dataset = Arc::new(dataset);
        self.documents = None;
        Ok(())
    }

    /// Whether the columns of the fields are there. One that somebody removed would read
    /// as if no item had had a value.
    fn has(&self, fields: &FieldSet) -> bool {
        let schema = self.dataset.schema();
        let mut fields = fields.iter();
        fields.all(|(name, ty)| {
            let column = schema.field(name);
            column.is_some_and(|column| columns::fits(ty, &column.data_type()))
        })
    }

    /// The rows of a document.
    async fn find(&mut self, pipeline: &str, id: DocumentId) -> lance::Result<Vec<FoundRow>> {
        if self.documents.is_none() {
            self.documents = Some(rows_by_document(&self.dataset, pipeline).await?);
        }
        let documents = self.documents.iter();
        let ranges = documents
            .filter_map(|documents| documents.get(&id))
            .flatten();
        let mut places: Vec<u64> = ranges.cloned().flatten().collect();
        places.sort_unstable();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self.take(&places, &KEYS).await?;
        found(&batch, &places)
    }

    /// The rows at these places, which ascend: else lance panics where the fragments of
    /// all of them are gone.
    async fn take(&self, places: &[u64], columns: &[&str]) -> lance::Result<RecordBatch> {
        let columns = self.dataset.schema().project(columns)?;
        let columns = ProjectionRequest::from_schema(columns);
        let taken = Box::pin(self.dataset.take_rows(places, columns)).await?;
        if taken.num_rows() != places.len() {
            return Err(lance::Error::internal("some of the rows are gone"));
        }
        Ok(taken)
    }

    /// The rows at these places, if they are still the rows that were found.
    async fn take_same(
        &self,
        rows: &[&FoundRow],
        places: &[u64],
        columns: &[&str],
    ) -> lance::Result<RecordBatch> {
        let columns: Vec<&str> = KEYS.iter().chain(columns).copied().collect();
        let batch = self.take(places, &columns).await?;
        let now = found(&batch, places)?;
        let is_same = |(now, row): (&FoundRow, &&FoundRow)| {
            (now.key, &now.content_hash, &now.fingerprint)
                == (row.key, &row.content_hash, &row.fingerprint)
        };
        if now.len() == rows.len() && now.iter().zip(rows).all(is_same) {
            return Ok(batch);
        }
        Err(lance::Error::internal("some of the rows were replaced"))
    }

    /// The values of these rows of one document, in their order.
    async fn read(
        &mut self,
        pipeline: &str,
        rows: &[FoundRow],
        fields: &FieldSet,
    ) -> lance::Result<Vec<RowValues>> {
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        if !self.has(fields) {
            return Err(lance::Error::internal("a column is gone"));
        }
        let columns: Vec<&str> = fields.names().collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_unstable_by_key(|row| rows[*row].place);
        let sorted: Vec<&FoundRow> = order.iter().map(|row| &rows[*row]).collect();
        let places: Vec<u64> = sorted.iter().map(|row| row.place).collect();
        if let Ok(batch) = self.take_same(&sorted, &places, &columns).await {
            return values_of(&batch, &columns, &order);
        }
        // They may have moved.
        let known = self.find(pipeline, first.key.document).await?;
        let place_of = |row: &usize| {
            let now = known.iter().find(|now| now.key == rows[*row].key)?;
            Some((now.place, *row))
        };
        let moved: Option<Vec<(u64, usize)>> = order.iter().map(place_of).collect();
        let moved = moved.ok_or_else(|| lance::Error::internal("some of the rows are gone"));
        let mut moved = moved?;
        moved.sort_unstable();
        order = moved.iter().map(|(_, row)| *row).collect();
        let sorted: Vec<&FoundRow> = order.iter().map(|row| &rows[*row]).collect();
        let places: Vec<u64> = moved.iter().map(|(place, _)| *place).collect();
        let batch = self.take_same(&sorted, &places, &columns).await?;
        values_of(&batch, &columns, &order)
    }
}

/// The values in `batch`, whose rows stand in the order that `order` gives.
fn values_of(
    batch: &RecordBatch,
    columns: &[&str],
    order: &[usize],
) -> lance::Result<Vec<RowValues>> {
    let mut values = vec![RowValues::new(); order.len()];
    for name in columns {
        let column = batch.column_by_name(name).ok_or_else(lacks_columns)?;
        for (place, row) in order.iter().enumerate() {
            let value = columns::value(column, place)?;
            values[*row].extend(value.map(|value| ((*name).to_owned(), value)));
        }
    }
    Ok(values)
}

impl RowReader for TableRows {
    fn find<'a>(
        &'a self,
        document: DocumentId,
        fields: &'a FieldSet,
    ) -> BoxFuture<'a, Result<Option<Vec<FoundRow>>, StageError>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let mut found = state.find(&self.pipeline, document).await;
            if found.is_err() && state.renew().await.is_ok() {
                found = state.find(&self.pipeline, document).await;
            }
            let found = found.map_err(|error| self.cannot(error))?;
            Ok(state.has(fields).then_some(found))
        })
    }

    fn read<'a>(
        &'a self,
        rows: &'a [FoundRow],
        fields: &'a FieldSet,
    ) -> BoxFuture<'a, Result<Vec<RowValues>, StageError>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let mut read = state.read(&self.pipeline, rows, fields).await;
            if read.is_err() && state.renew().await.is_ok() {
                read = state.read(&self.pipeline, rows, fields).await;
            }
            read.map_err(|error| self.cannot(error))
        })
    }
}

/// The rows of `batch`, which are at these places.
fn found(batch: &RecordBatch, places: &[u64]) -> lance::Result<Vec<FoundRow>> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let number = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<UInt32Type>();
    let columns = (
        text(DOCUMENT_ID),
        text(CONTENT_HASH),
        text(FINGERPRINT),
        number(PAGE),
        number(PART),
    );
    let (Some(ids), Some(hashes), Some(fingerprints), Some(pages), Some(parts)) = columns else {
        return Err(lacks_columns());
    };
    let found = places.iter().enumerate().filter_map(|(row, place)| {
        Some(FoundRow {
            key: Key {
                document: DocumentId::from_hex(ids.value(row))?,
                page: pages.is_valid(row).then(|| pages.value(row)),
                part: parts.is_valid(row).then(|| parts.value(row)),
            },
            content_hash: hashes.value(row).to_owned(),
            fingerprint: fingerprints.value(row).to_owned(),
            place: *place,
        })
    });
    Ok(found.collect())
}

/// The ids of the rows of each document of the pipeline.
async fn rows_by_document(
    dataset: &Dataset,
    pipeline: &str,
) -> lance::Result<HashMap<DocumentId, Vec<Range<u64>>>> {
    let mut scanner = dataset.scan();
    scanner.project(&[DOCUMENT_ID, PIPELINE])?.with_row_id();
    let mut batches = scanner.try_into_stream().await?;
    let mut documents: HashMap<DocumentId, Vec<Range<u64>>> = HashMap::new();
    while let Some(batch) = batches.try_next().await? {
        let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
        let row_ids = batch.column_by_name(ROW_ID);
        let row_ids = row_ids.and_then(|ids| ids.as_primitive_opt::<UInt64Type>());
        let (Some(ids), Some(pipelines), Some(row_ids)) =
            (text(DOCUMENT_ID), text(PIPELINE), row_ids)
        else {
            return Err(lacks_columns());
        };
        for row in 0..batch.num_rows() {
            if pipelines.value(row) != pipeline {
                continue;
            }
            let Some(id) = DocumentId::from_hex(ids.value(row)) else {
                continue; // A row of somebody else's.
            };
            let (ranges, place) = (documents.entry(id).or_default(), row_ids.value(row));
            match ranges.last_mut() {
                Some(range) if range.end == place => range.end += 1,
                _ => ranges.push(place..place + 1),
            }
        }
    }
    Ok(documents)
}

fn lacks_columns() -> lance::Error {
    lance::Error::internal("the table lacks columns")
}

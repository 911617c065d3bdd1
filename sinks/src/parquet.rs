//! `kind = "parquet"`: one row an item, in part files.
//!
//! `path` is a folder with files `part-00000001.parquet` and so on, whose
//! columns are those of a LanceDB table: `document_id`, `document`,
//! `content_hash`, `media_type`, `fingerprint`, `pipeline`, `source`, `page`,
//! `part`, then a column for each field. The footer lists the documents that a
//! part holds.
//!
//! A part holds whole documents and appears at once. A document that comes
//! again is replaced in the part that holds it, one that is gone is taken out
//! of it; new ones go to a new part. Small parts are merged.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use pagemill_pipeline::{
    DocumentId, FieldError, Item, Resources, Sink, SinkConfig, SinkInput, SinkPlace, StageError,
    StoredDocument,
};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::ZstdLevel;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, RowGroupMetaData};
use parquet::file::properties::WriterProperties;
use serde::Deserialize;

use crate::columns::{self, Columns, Totals};
use crate::lancedb::Durability;
use crate::parts::{
    self, Format, PartConfig, PartError, PartSink, RowHead, Rows, Settings, Tally, list_from_json,
    list_to_json,
};
use crate::row::{self, CONTENT_HASH, DOCUMENT, DOCUMENT_ID, FINGERPRINT, MadeBy, SOURCE};

/// Where a footer lists its documents.
const DOCUMENTS: &str = "pagemill.documents";
/// A longer list is left out, as every reader loads it; the columns tell it too.
const MAX_LIST_BYTES: usize = 1 << 20;
/// Rows are turned into columns, and copied, so many bytes at a time.
const CHUNK_BYTES: usize = 16 << 20;
/// And at most so many rows.
const CHUNK_ROWS: usize = 4096;

/// Settings of `kind = "parquet"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetConfig {
    /// The folder of the parts; it is made if there is none.
    pub path: PathBuf,
    /// How columns are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// What a stored row survives.
    #[serde(default)]
    pub durability: Durability,
    /// When complete documents become a part.
    #[serde(default)]
    pub part: PartConfig,
}

impl ParquetConfig {
    /// Parts in this folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            compression: Compression::default(),
            durability: Durability::default(),
            part: PartConfig::default(),
        }
    }
}

/// How columns are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// With Zstandard.
    #[default]
    Zstd,
    /// Not at all.
    None,
}

impl SinkConfig for ParquetConfig {
    const KIND: &'static str = "parquet";
    const ABOUT: &'static str = "writes rows to Parquet part files in a folder";
    const EXAMPLE: &'static str = "path = \"data/pages\"";
    const PATHS: &'static [&'static str] = &["path"];

    fn place(&self, _: &str) -> Option<SinkPlace> {
        Some(parts::place(&self.path))
    }

    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        let settings = Settings {
            folder: self.path.clone(),
            limits: self.part,
            durability: self.durability,
        };
        let format = Parquet::new(&self.path, self.compression);
        Ok(Box::new(PartSink::new(settings, format)?))
    }
}

/// Rows as columns of Parquet.
pub(crate) struct Parquet {
    folder: PathBuf,
    compression: Compression,
    /// Set by `open`.
    opened: Option<Opened>,
}

struct Opened {
    columns: Columns,
    made_by: MadeBy,
    /// The columns of the part that was written last: the next one has them too.
    schema: Schema,
}

impl Parquet {
    pub(crate) fn new(folder: &Path, compression: Compression) -> Self {
        Self {
            folder: folder.to_owned(),
            compression,
            opened: None,
        }
    }

    fn opened(&self) -> &Opened {
        self.opened
            .as_ref()
            .expect("the runner opens a sink before it hands anything over")
    }

    /// The columns that a part of these rows has.
    fn schema_of(&self, rows: &[Rows<'_>]) -> Result<SchemaRef, PartError> {
        let opened = self.opened();
        let mut schema = opened.schema.clone();
        for rows in rows {
            match rows {
                Rows::Part { path, .. } => {
                    let part = builder(path)?;
                    for column in part.schema().fields() {
                        let Ok(known) = schema.field_with_name(column.name()) else {
                            let added = plain(column).with_nullable(true);
                            schema = with(&schema, vec![added]);
                            continue;
                        };
                        if known.data_type() != column.data_type() {
                            let problem = format!(
                                "its `{}` is {} in one part, and {} in another",
                                column.name(),
                                columns::describe(column.data_type()),
                                columns::describe(known.data_type())
                            );
                            return Err(misfit(&self.folder, &problem).into());
                        }
                    }
                }
                Rows::Items(items) => {
                    let added = opened.columns.to_add(&schema, items);
                    schema = with(&schema, added);
                }
            }
        }
        Ok(Arc::new(schema))
    }

    fn properties(&self) -> WriterProperties {
        let compression = match self.compression {
            Compression::Zstd => parquet::basic::Compression::ZSTD(ZstdLevel::default()),
            Compression::None => parquet::basic::Compression::UNCOMPRESSED,
        };
        WriterProperties::builder()
            .set_compression(compression)
            // What is in memory until it is written.
            .set_max_row_group_bytes(Some(64 << 20))
            .build()
    }
}

impl Format for Parquet {
    const EXTENSION: &'static str = "parquet";

    fn open(&mut self, input: &SinkInput, newest: Option<&Path>) -> Result<(), StageError> {
        let columns = Columns::new(&input.fields)?;
        let schema = match newest {
            None => columns.schema(&[]),
            Some(newest) => {
                let part = builder(newest).map_err(|error| {
                    let problem = format!("cannot read `{}`", newest.display());
                    let hint = "remove this file and run again: its documents are then made anew";
                    StageError::caused(problem, hint, error)
                })?;
                let fields = part.schema().fields();
                let schema = Schema::new(fields.iter().map(|f| plain(f)).collect::<Vec<_>>());
                // A part may lack what the pipeline makes since then.
                let schema = with(&schema, columns.to_add(&schema, &[]));
                if let Some(problem) = columns.misfit(&schema) {
                    return Err(misfit(&self.folder, &problem));
                }
                schema
            }
        };
        self.opened = Some(Opened {
            columns,
            made_by: MadeBy::of(input),
            schema,
        });
        Ok(())
    }

    fn documents(&self, part: &Path) -> Result<Vec<StoredDocument>, PartError> {
        let builder = builder(part)?;
        let footer = builder.metadata().file_metadata();
        let pairs = footer.key_value_metadata().into_iter().flatten();
        let list = pairs
            .filter(|pair| pair.key == DOCUMENTS)
            .find_map(|pair| list_from_json(pair.value.as_deref()?));
        if let Some(list) = list {
            let n_rows: u64 = list.iter().map(|document| document.n_rows).sum();
            // Other tools copy a footer's values to files with other rows.
            if n_rows == footer.num_rows() as u64 {
                return Ok(list);
            }
        }
        let names = [DOCUMENT_ID, DOCUMENT, CONTENT_HASH, FINGERPRINT, SOURCE];
        let mask = ProjectionMask::columns(builder.parquet_schema(), names);
        let mut tally = Tally::default();
        for batch in builder.with_projection(mask).build()? {
            let batch = batch.map_err(ParquetError::from)?;
            let [ids, documents, hashes, fingerprints, sources] =
                names.map(|name| texts(&batch, name));
            let (ids, documents, hashes) = (ids?, documents?, hashes?);
            let (fingerprints, sources) = (fingerprints?, sources?);
            for row in 0..batch.num_rows() {
                let counted = tally.count(&RowHead {
                    document_id: ids.value(row).into(),
                    document: documents.value(row).into(),
                    content_hash: hashes.value(row).into(),
                    fingerprint: fingerprints.value(row).into(),
                    source: sources.value(row).into(),
                });
                if !counted {
                    return Err(no_id(ids.value(row)));
                }
            }
        }
        Ok(tally.into_documents())
    }

    fn write(
        &mut self,
        file: &File,
        rows: &[Rows<'_>],
        documents: &[StoredDocument],
    ) -> Result<(), PartError> {
        let schema = self.schema_of(rows)?;
        let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(self.properties()))?;
        for rows in rows {
            match rows {
                Rows::Items(items) => {
                    let misfit = |problem: &str| misfit(&self.folder, problem);
                    let totals = Totals::default();
                    for chunk in chunks(items) {
                        let made_by = &self.opened().made_by;
                        let batch = columns::batch(&misfit, &schema, made_by, &totals, chunk)?;
                        writer.write(&batch)?;
                    }
                }
                Rows::Part { path, without } => {
                    for batch in reader(path)? {
                        let batch =
                            without_documents(&batch.map_err(ParquetError::from)?, without)?;
                        writer.write(&with_schema(&batch, &schema)?)?;
                    }
                }
            }
        }
        if !documents.is_empty() {
            let list =
                list_to_json(documents).map_err(|error| ParquetError::External(error.into()))?;
            if list.len() <= MAX_LIST_BYTES {
                writer.append_key_value_metadata(KeyValue::new(DOCUMENTS.to_owned(), list));
            }
        }
        writer.close()?;
        if let Some(opened) = &mut self.opened {
            opened.schema = Schema::clone(&schema);
        }
        Ok(())
    }
}

fn misfit(folder: &Path, problem: &str) -> StageError {
    StageError::fatal(
        format_args!(
            "the parts in `{}` do not fit this pipeline: {problem}",
            folder.display()
        ),
        "set `path` to another folder, or remove this one so that it is made anew",
    )
}

fn builder(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, PartError> {
    Ok(ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?)
}

/// Reads all columns, a chunk at a time.
fn reader(path: &Path) -> Result<ParquetRecordBatchReader, PartError> {
    let builder = builder(path)?;
    let groups = builder.metadata().row_groups().iter();
    let n_bytes: i64 = groups.map(RowGroupMetaData::total_byte_size).sum();
    let n_rows = builder.metadata().file_metadata().num_rows().max(1);
    let row_bytes = (n_bytes / n_rows).max(1) as usize;
    let n_rows = (CHUNK_BYTES / row_bytes).clamp(1, CHUNK_ROWS);
    Ok(builder.with_batch_size(n_rows).build()?)
}

/// Items in runs of at most [`CHUNK_BYTES`] or one item, and [`CHUNK_ROWS`].
fn chunks(items: &[Item]) -> impl Iterator<Item = &[Item]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut n_bytes = 0;
        let fits = |item: &&Item| {
            n_bytes += item.n_bytes();
            n_bytes <= CHUNK_BYTES
        };
        let n = rest.iter().take(CHUNK_ROWS).take_while(fits).count().max(1);
        let (chunk, after) = rest.split_at_checked(n)?;
        rest = after;
        Some(chunk)
    })
}

/// The rows of a batch that are not of these documents.
fn without_documents(
    batch: &RecordBatch,
    without: &HashSet<DocumentId>,
) -> Result<RecordBatch, PartError> {
    if without.is_empty() {
        return Ok(batch.clone());
    }
    let ids = texts(batch, DOCUMENT_ID)?;
    let mut keep = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let id = ids.value(row);
        let id = DocumentId::from_hex(id).ok_or_else(|| no_id(id))?;
        keep.push(!without.contains(&id));
    }
    let kept = filter_record_batch(batch, &BooleanArray::from(keep)).map_err(ParquetError::from)?;
    Ok(kept)
}

/// The same rows; columns that they lack are null.
fn with_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, PartError> {
    let column = |field: &Arc<Field>| -> ArrayRef {
        match batch.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), batch.num_rows()),
        }
    };
    let columns = schema.fields().iter().map(column).collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns).map_err(ParquetError::from)?)
}

fn texts<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a arrow::array::StringArray, PartError> {
    let column = batch.column_by_name(name);
    column
        .and_then(|column| column.as_string_opt())
        .ok_or_else(|| ParquetError::General(format!("it has no column `{name}` of text")).into())
}

fn no_id(text: &str) -> PartError {
    ParquetError::General(format!("`{text}` is no `{DOCUMENT_ID}`")).into()
}

/// The schema with more columns: the fixed ones first, the others by name.
fn with(schema: &Schema, added: Vec<Field>) -> Schema {
    let mut columns: Vec<Arc<Field>> = schema.fields().to_vec();
    columns.extend(added.into_iter().map(Arc::new));
    columns.sort_by_cached_key(|column| (row::fixed_place(column.name()), column.name().clone()));
    Schema::new(columns)
}

/// A column as the schema of a part has it: without what the file adds to it.
fn plain(column: &Field) -> Field {
    Field::new(
        column.name(),
        column.data_type().clone(),
        column.is_nullable(),
    )
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use arrow::datatypes::{DataType, Float16Type};
    use pagemill_pipeline::testing::{deliver, ended, sink_input};
    use pagemill_pipeline::{Field as ItemField, FieldSet, Value, VectorData, Vectors, Word};

    use super::*;

    fn sink(path: &Path) -> Box<dyn Sink> {
        let settings = serde_json::json!({"path": path, "compression": "none"});
        let config: ParquetConfig = serde_json::from_value(settings).expect("good settings");
        config.build(&Resources::default()).expect("a sink")
    }

    fn input() -> SinkInput {
        sink_input(FieldSet::from_iter([
            ItemField::TEXT,
            ItemField::THUMBNAIL,
            ItemField::VECTOR,
            ItemField::VECTORS,
            ItemField::WORDS,
        ]))
    }

    async fn store(path: &Path, items: Vec<Item>) -> Result<(), StageError> {
        let mut sink = sink(path);
        sink.open(&input()).await?;
        let (deliveries, document) = deliver(items);
        sink.store(deliveries).await?;
        let document = document.expect("there are items");
        sink.end_document(ended(&document)).await?;
        sink.finish().await
    }

    fn vectors(dim: usize, n: usize) -> Vectors {
        let numbers = (0..dim * n).map(|number| number as f32).collect();
        Vectors::new(VectorData::F32(numbers), dim).expect("whole vectors")
    }

    fn read(path: &Path, number: u32) -> RecordBatch {
        let mut batches = reader(&path.join(format!("part-{number:08}.parquet"))).expect("a part");
        let batch = batches.next().expect("has rows").expect("can be read");
        assert!(batches.next().is_none());
        batch
    }

    fn column_types(batch: &RecordBatch) -> Vec<(String, DataType)> {
        let fields = batch.schema_ref().fields().iter();
        let pair = |field: &Arc<Field>| (field.name().clone(), field.data_type().clone());
        fields.map(pair).collect()
    }

    #[tokio::test]
    async fn columns_are_those_of_a_table_and_values_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        let word = Word {
            text: "mill".into(),
            x0: 1.0,
            y0: 2.0,
            x1: 3.0,
            y1: 4.0,
        };
        let page = Item::of_text("a.txt", "mill");
        let full = page
            .clone()
            .with_page(1)
            .with("vector", Vectors::single(vec![0.5, 0.25]).expect("two"))
            .with("vectors", vectors(3, 2))
            .with("words", vec![word])
            .with(
                "thumbnail",
                Value::Bytes(bytes::Bytes::from_static(b"jpeg")),
            );
        let bare = page.with_page(2);
        store(path, vec![full.clone(), bare]).await.expect("stored");
        let batch = read(path, 1);
        let columns = Columns::new(&input().fields).expect("good fields");
        let expected = columns.schema(&[full]);
        let expected = RecordBatch::new_empty(Arc::new(expected));
        assert_eq!(column_types(&batch), column_types(&expected));

        let column = |name: &str| batch.column_by_name(name).expect("it is there");
        for name in ["vector", "vectors", "words", "thumbnail"] {
            let column = column(name);
            assert!(column.is_valid(0) && column.is_null(1), "{name}");
        }
        let of_page = column("vectors").as_list::<i32>().value(0);
        let of_page = of_page.as_fixed_size_list();
        assert_eq!((of_page.len(), of_page.value_length()), (2, 3));
        let numbers = of_page.values().as_primitive::<Float16Type>();
        let numbers: Vec<f32> = numbers.values().iter().map(|n| n.to_f32()).collect();
        assert_eq!(numbers, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let words = column("words").as_list::<i32>().value(0);
        assert_eq!(
            words.as_struct().column(0).as_string::<i32>().value(0),
            "mill"
        );
        assert_eq!(column("thumbnail").as_binary::<i32>().value(0), b"jpeg");
    }

    #[tokio::test]
    async fn the_columns_of_an_earlier_part_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        let text = |uri: &str| Item::of_text(uri, "mill");
        store(path, vec![text("a")]).await.expect("stored");
        assert!(read(path, 1).column_by_name("vectors").is_none());
        let with_vectors = text("b").with("vectors", vectors(3, 2));
        store(path, vec![with_vectors]).await.expect("stored");
        assert!(read(path, 2).column_by_name("vectors").is_some());
        store(path, vec![text("c")]).await.expect("stored");
        assert!(
            read(path, 3)
                .column_by_name("vectors")
                .expect("kept")
                .is_null(0)
        );
        // A part that is written anew gets them too.
        let again = text("a").with("vectors", vectors(3, 1));
        store(path, vec![again]).await.expect("stored");
        assert!(
            read(path, 1)
                .column_by_name("vectors")
                .expect("added")
                .is_valid(0)
        );
    }

    #[tokio::test]
    async fn rows_that_do_not_fit_the_parts_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        let page = |dim| Item::of_text("a.txt", "mill").with("vectors", vectors(dim, 2));
        store(path, vec![page(3)]).await.expect("stored");
        let error = store(path, vec![page(4)]).await.expect_err("other vectors");
        let place = path.display();
        assert_eq!(
            error.to_string(),
            format!(
                "the parts in `{place}` do not fit this pipeline: its `vectors` is a list, each a \
                 vector of 3 half floats, `a.txt` has 4 numbers a vector"
            )
        );
        let mut other = input();
        other.fields.remove("words");
        other.fields.insert(ItemField::new(
            "text",
            pagemill_pipeline::FieldType::Integer,
        ));
        let error = sink(path).open(&other).await.expect_err("another type");
        assert_eq!(
            error.to_string(),
            format!(
                "the parts in `{place}` do not fit this pipeline: its `text` is text, this \
                 pipeline makes integer"
            )
        );
    }

    #[tokio::test]
    async fn a_list_of_documents_that_does_not_fit_the_rows_is_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let part = folder.path().join("part-00000001.parquet");
        let pages = |n| {
            (1..=n)
                .map(|page| Item::of_text("a", "mill").with_page(page))
                .collect()
        };
        store(folder.path(), pages(2)).await.expect("stored");
        let format = Parquet::new(folder.path(), Compression::Zstd);
        let listed = format.documents(&part).expect("a part");

        // As other tools do: half of the rows, and the footer's values as they were.
        let batch = read(folder.path(), 1);
        let footer = builder(&part).expect("a part");
        let pairs = footer.metadata().file_metadata().key_value_metadata();
        let list = pairs
            .expect("a list")
            .iter()
            .find(|pair| pair.key == DOCUMENTS);
        let file = File::create(&part).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch.slice(0, 1)).unwrap();
        writer.append_key_value_metadata(list.expect("a list").clone());
        writer.close().unwrap();
        let read = format.documents(&part).expect("a part");
        assert_eq!((listed[0].n_rows, read[0].n_rows), (2, 1));
        assert_eq!(read[0].content_hash, listed[0].content_hash);
    }

    #[test]
    fn items_are_turned_into_columns_a_chunk_at_a_time() {
        let large = "x".repeat(CHUNK_BYTES / 2);
        let items = [
            Item::of_text("a", &large),
            Item::of_text("a", &large),
            Item::of_text("a", ""),
        ];
        let n: Vec<usize> = chunks(&items).map(<[Item]>::len).collect();
        assert_eq!(n, [1, 2]);
        assert_eq!(chunks(&[]).count(), 0);
    }

    #[test]
    fn an_unknown_compression_is_refused() {
        let settings = serde_json::json!({"path": "a", "compression": "gzip"});
        let error = serde_json::from_value::<ParquetConfig>(settings).expect_err("refused");
        assert!(
            error.to_string().contains("expected `zstd` or `none`"),
            "{error}"
        );
    }
}

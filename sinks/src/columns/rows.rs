//! From items to an Arrow batch.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, Float16Array, Float32Array,
    Float64Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray, UInt32Array,
    new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use half::f16;
use pagemill_pipeline::{DocumentId, Item, StageError, Value, VectorData, Vectors, Word};

use super::{describe, word_fields};
use crate::row::{self, MadeBy};

/// The number of rows of each document that has ended.
pub(crate) type Totals = HashMap<DocumentId, u32>;

/// Turns items into rows of a table with this schema. A column that an item has
/// no value for is null.
///
/// # Errors
/// A value that does not fit its column, as `misfit` says it of the table.
pub(crate) fn batch(
    misfit: &dyn Fn(&str) -> StageError,
    schema: &SchemaRef,
    made_by: &MadeBy,
    totals: &Totals,
    items: &[Item],
) -> Result<RecordBatch, StageError> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| column(misfit, field, made_by, totals, items))
        .collect::<Result<Vec<ArrayRef>, StageError>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| {
        StageError::caused("cannot build rows", "this is a bug in pagemill", error)
    })
}

fn column(
    misfit: &dyn Fn(&str) -> StageError,
    field: &Field,
    made_by: &MadeBy,
    totals: &Totals,
    items: &[Item],
) -> Result<ArrayRef, StageError> {
    let text = |of: &dyn Fn(&Item) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(items.iter().map(of)))
    };
    let number = |of: &dyn Fn(&Item) -> Option<u32>| -> ArrayRef {
        Arc::new(items.iter().map(of).collect::<UInt32Array>())
    };
    Ok(match field.name().as_str() {
        row::DOCUMENT_ID => text(&|item| item.origin().id.to_string()),
        row::DOCUMENT => text(&|item| item.origin().uri.to_string()),
        row::CONTENT_HASH => text(&|item| item.origin().content_hash.to_string()),
        row::MEDIA_TYPE => text(&|item| item.origin().media_type.to_string()),
        row::FINGERPRINT => text(&|_| made_by.fingerprint.clone()),
        row::PIPELINE => text(&|_| made_by.pipeline.clone()),
        row::SOURCE => text(&|item| item.origin().source.to_string()),
        row::DOCUMENT_ROWS => number(&|item| totals.get(&item.origin().id).copied()),
        row::PAGE => number(&|item| item.key().page),
        row::PART => number(&|item| item.key().part),
        _ => Values {
            misfit,
            field,
            items,
        }
        .to_array()?,
    })
}

/// The values of one field.
struct Values<'a> {
    misfit: &'a dyn Fn(&str) -> StageError,
    field: &'a Field,
    items: &'a [Item],
}

impl<'a> Values<'a> {
    fn to_array(&self) -> Result<ArrayRef, StageError> {
        Ok(match self.field.data_type() {
            DataType::Utf8 => Arc::new(StringArray::from(self.take(|value| match value {
                Value::Text(text) => Some(&**text),
                _ => None,
            })?)),
            DataType::Binary => Arc::new(BinaryArray::from(self.take(|value| match value {
                Value::Bytes(bytes) => Some(&**bytes),
                _ => None,
            })?)),
            DataType::Boolean => Arc::new(BooleanArray::from(self.take(|value| match value {
                Value::Bool(flag) => Some(*flag),
                _ => None,
            })?)),
            DataType::Int64 => Arc::new(Int64Array::from(self.take(|value| match value {
                Value::Integer(number) => Some(*number),
                _ => None,
            })?)),
            DataType::Float64 => Arc::new(Float64Array::from(self.take(|value| match value {
                Value::Float(number) => Some(*number),
                _ => None,
            })?)),
            DataType::FixedSizeList(number, dim) => {
                let vectors = self.vectors(*dim, 1)?;
                self.built(fixed_size_list(number, *dim, &vectors))?
            }
            DataType::List(item) => match item.data_type() {
                DataType::FixedSizeList(number, dim) => {
                    let rows = self.vectors(*dim, usize::MAX)?;
                    let lengths = rows.iter().map(|row| row.map_or(0, Vectors::n));
                    let offsets = OffsetBuffer::from_lengths(lengths);
                    let nulls: NullBuffer = rows.iter().map(Option::is_some).collect();
                    let present: Vec<_> = rows.into_iter().flatten().map(Some).collect();
                    let vectors = self.built(fixed_size_list(number, *dim, &present))?;
                    let list = ListArray::try_new(Arc::clone(item), offsets, vectors, Some(nulls));
                    self.built(list.map(|list| Arc::new(list) as ArrayRef))?
                }
                DataType::Struct(_) => self.words(item)?,
                // A list column that is not ours.
                _ => new_null_array(self.field.data_type(), self.items.len()),
            },
            other => new_null_array(other, self.items.len()),
        })
    }

    /// The field's value of each item; `of` says `None` where it does not fit.
    fn take<T>(&self, of: impl Fn(&'a Value) -> Option<T>) -> Result<Vec<Option<T>>, StageError> {
        let value = |item: &'a Item| match item.get(self.field.name()) {
            None => Ok(None),
            Some(value) => of(value)
                .map(Some)
                .ok_or_else(|| self.misfit(item, "a value of another type")),
        };
        self.items.iter().map(value).collect()
    }

    fn vectors(&self, dim: i32, max_n: usize) -> Result<Vec<Option<&'a Vectors>>, StageError> {
        let rows = self.take(|value| match value {
            Value::Vectors(vectors) => Some(&**vectors),
            _ => None,
        })?;
        for (item, vectors) in self.items.iter().zip(&rows) {
            let Some(vectors) = vectors else { continue };
            if vectors.dim() != dim as usize {
                let made = format!("{} numbers a vector", vectors.dim());
                return Err(self.misfit(item, &made));
            }
            if vectors.n() > max_n {
                let made = format!("{} vectors an item", vectors.n());
                return Err(self.misfit(item, &made));
            }
        }
        Ok(rows)
    }

    fn words(&self, item: &FieldRef) -> Result<ArrayRef, StageError> {
        let rows = self.take(|value| match value {
            Value::Words(words) => Some(&**words),
            _ => None,
        })?;
        let offsets =
            OffsetBuffer::from_lengths(rows.iter().map(|row| row.map_or(0, <[Word]>::len)));
        let nulls: NullBuffer = rows.iter().map(Option::is_some).collect();
        let words: Vec<&Word> = rows.iter().copied().flatten().flatten().collect();
        let side = |of: fn(&Word) -> f32| -> ArrayRef {
            Arc::new(Float32Array::from_iter_values(
                words.iter().map(|word| of(word)),
            ))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(
                words.iter().map(|word| &word.text),
            )),
            side(|word| word.x0),
            side(|word| word.y0),
            side(|word| word.x1),
            side(|word| word.y1),
        ];
        let list = StructArray::try_new(word_fields(), columns, None).and_then(|words| {
            ListArray::try_new(Arc::clone(item), offsets, Arc::new(words), Some(nulls))
        });
        self.built(list.map(|list| Arc::new(list) as ArrayRef))
    }

    fn built<T, E>(&self, array: Result<T, E>) -> Result<T, StageError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        array.map_err(|error| {
            StageError::caused(
                format_args!("cannot build the column `{}`", self.field.name()),
                "this is a bug in pagemill",
                error,
            )
        })
    }

    fn misfit(&self, item: &Item, made: &str) -> StageError {
        let column = describe(self.field.data_type());
        let name = self.field.name();
        let problem = format!("its `{name}` is {column}, `{}` has {made}", item.label());
        (self.misfit)(&problem)
    }
}

/// `[rows, dim]`: all vectors of all rows, one after the other; a row that is
/// `None` is one null.
fn fixed_size_list(
    number: &FieldRef,
    dim: i32,
    rows: &[Option<&Vectors>],
) -> Result<ArrayRef, arrow::error::ArrowError> {
    let n = rows
        .iter()
        .map(|row| row.map_or(1, Vectors::n))
        .sum::<usize>();
    let n_numbers = n * dim as usize;
    let valid = rows
        .iter()
        .flat_map(|row| std::iter::repeat_n(row.is_some(), row.map_or(1, Vectors::n)));
    let nulls: NullBuffer = valid.collect();
    let values: ArrayRef = if *number.data_type() == DataType::Float16 {
        let mut numbers: Vec<f16> = Vec::with_capacity(n_numbers);
        for row in rows {
            match row.map(Vectors::data) {
                None => numbers.resize(numbers.len() + dim as usize, f16::ZERO),
                Some(VectorData::F16(row)) => numbers.extend_from_slice(row),
                Some(VectorData::F32(row)) => {
                    numbers.extend(row.iter().map(|number| f16::from_f32(*number)));
                }
            }
        }
        Arc::new(Float16Array::new(ScalarBuffer::from(numbers), None))
    } else {
        let mut numbers: Vec<f32> = Vec::with_capacity(n_numbers);
        for row in rows {
            match row.map(Vectors::data) {
                None => numbers.resize(numbers.len() + dim as usize, 0.0),
                Some(VectorData::F32(row)) => numbers.extend_from_slice(row),
                Some(VectorData::F16(row)) => {
                    numbers.extend(row.iter().map(|number| number.to_f32()));
                }
            }
        }
        Arc::new(Float32Array::new(ScalarBuffer::from(numbers), None))
    };
    let list = FixedSizeListArray::try_new(Arc::clone(number), dim, values, Some(nulls))?;
    Ok(Arc::new(list))
}

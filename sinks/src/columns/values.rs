//! From an Arrow column back to the values of a field.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, Int64Type};
use arrow::error::ArrowError;
use bytes::Bytes;
use pagemill_pipeline::{Value, VectorData, Vectors, Word};

/// The value of a row, as it was stored: `None` where the column is null. Vectors have
/// the bits of the column.
///
/// # Errors
/// A column of a type that no field has.
pub(crate) fn value(column: &ArrayRef, row: usize) -> Result<Option<Value>, ArrowError> {
    if column.is_null(row) {
        return Ok(None);
    }
    let value = present(column, row).ok_or_else(|| {
        let ty = column.data_type();
        ArrowError::SchemaError(format!("no field is stored in a column of type {ty}"))
    })?;
    Ok(Some(value))
}

fn present(column: &ArrayRef, row: usize) -> Option<Value> {
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::Binary => {
            let bytes = column.as_binary::<i32>().value(row);
            Value::Bytes(Bytes::copy_from_slice(bytes))
        }
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::FixedSizeList(_, dim) => {
            vectors(&column.as_fixed_size_list().value(row), *dim)?.into()
        }
        DataType::List(item) => {
            let list = column.as_list::<i32>().value(row);
            match item.data_type() {
                DataType::FixedSizeList(_, dim) => {
                    let list = list.as_fixed_size_list();
                    let start = list.value_offset(0) as usize;
                    let numbers = list.values().slice(start, list.len() * *dim as usize);
                    vectors(&numbers, *dim)?.into()
                }
                DataType::Struct(_) => words(&list)?.into(),
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn vectors(numbers: &ArrayRef, dim: i32) -> Option<Vectors> {
    let data = match numbers.data_type() {
        DataType::Float16 => {
            VectorData::F16(numbers.as_primitive::<Float16Type>().values().to_vec())
        }
        DataType::Float32 => {
            VectorData::F32(numbers.as_primitive::<Float32Type>().values().to_vec())
        }
        _ => return None,
    };
    Vectors::new(data, usize::try_from(dim).ok()?)
}

fn words(list: &ArrayRef) -> Option<Vec<Word>> {
    let list = list.as_struct();
    let text = list.column_by_name("text")?.as_string_opt::<i32>()?;
    let side = |name: &str| list.column_by_name(name)?.as_primitive_opt::<Float32Type>();
    let (x0, y0, x1, y1) = (side("x0")?, side("y0")?, side("x1")?, side("y1")?);
    let word = |row: usize| Word {
        text: text.value(row).to_owned(),
        x0: x0.value(row),
        y0: y0.value(row),
        x1: x1.value(row),
        y1: y1.value(row),
    };
    Some((0..list.len()).map(word).collect())
}

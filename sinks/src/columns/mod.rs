//! Arrow columns of the fields that reach a sink: what the tables of LanceDB
//! and the files of Parquet have in common.

mod rows;
mod values;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema};
use pagemill_pipeline::{FieldSet, FieldType, Item, StageError, Value, VectorData, Vectors};

pub(crate) use self::rows::{Totals, batch};
pub(crate) use self::values::value;

use crate::row::{
    CONTENT_HASH, DOCUMENT, DOCUMENT_ID, FINGERPRINT, MEDIA_TYPE, PAGE, PART, PIPELINE, SOURCE,
    stored_fields,
};

/// The columns that every row has, before those of its fields.
fn fixed() -> [Field; 9] {
    [
        Field::new(DOCUMENT_ID, DataType::Utf8, false),
        Field::new(DOCUMENT, DataType::Utf8, false),
        Field::new(CONTENT_HASH, DataType::Utf8, false),
        Field::new(MEDIA_TYPE, DataType::Utf8, false),
        Field::new(FINGERPRINT, DataType::Utf8, false),
        Field::new(PIPELINE, DataType::Utf8, false),
        Field::new(SOURCE, DataType::Utf8, false),
        Field::new(PAGE, DataType::UInt32, true),
        Field::new(PART, DataType::UInt32, true),
    ]
}

/// The columns that a pipeline fills.
#[derive(Debug)]
pub(crate) struct Columns {
    fields: Vec<(String, FieldType)>,
}

impl Columns {
    /// # Errors
    /// A field that has the name of a fixed column.
    pub(crate) fn new(fields: &FieldSet) -> Result<Self, StageError> {
        let fields = stored_fields(fields)?;
        Ok(Self { fields })
    }

    /// The schema of a new table. The length of a vector is that of the first
    /// one among `items`; where there is none yet, its column is left out and
    /// [`Columns::to_add`] brings it later.
    pub(crate) fn schema(&self, items: &[Item]) -> Schema {
        let mut columns = fixed().to_vec();
        columns.extend(self.fields.iter().filter_map(|(name, ty)| {
            Some(Field::new(name, data_type(*ty, first(name, items))?, true))
        }));
        Schema::new(columns)
    }

    /// Vector columns that `table` lacks and that `items` have values for.
    pub(crate) fn to_add(&self, table: &Schema, items: &[Item]) -> Vec<Field> {
        let absent = self
            .fields
            .iter()
            .filter(|(name, _)| table.field_with_name(name).is_err());
        absent
            .filter_map(|(name, ty)| {
                Some(Field::new(name, data_type(*ty, first(name, items))?, true))
            })
            .collect()
    }

    /// How the rows of this pipeline do not fit a table with this schema: all
    /// that differs, in one sentence.
    ///
    /// A column that the pipeline does not fill is fine if it may be null.
    pub(crate) fn misfit(&self, table: &Schema) -> Option<String> {
        let mut problems = Vec::new();
        for needed in &fixed() {
            match table.field_with_name(needed.name()) {
                Err(_) => problems.push(format!("it has no `{}`", needed.name())),
                Ok(found) if found.data_type() != needed.data_type() => {
                    problems.push(differs(
                        needed.name(),
                        found.data_type(),
                        &describe(needed.data_type()),
                    ));
                }
                Ok(_) => {}
            }
        }
        for (field, ty) in &self.fields {
            match table.field_with_name(field) {
                // Added when the first vector tells its length.
                Err(_) if is_vector(*ty) => {}
                Err(_) => problems.push(format!("it has no `{field}`")),
                Ok(found) if !fits(*ty, found.data_type()) => {
                    problems.push(differs(field, found.data_type(), &ty.to_string()));
                }
                Ok(_) => {}
            }
        }
        for column in table.fields() {
            let known = fixed().iter().any(|field| field.name() == column.name())
                || self.fields.iter().any(|(field, _)| field == column.name());
            if !known && !column.is_nullable() {
                problems.push(format!(
                    "its `{}` must not be null, and this pipeline does not fill it",
                    column.name()
                ));
            }
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

fn differs(column: &str, found: &DataType, needed: &str) -> String {
    format!(
        "its `{column}` is {}, this pipeline makes {needed}",
        describe(found)
    )
}

/// The first vectors called `name`.
fn first<'a>(name: &str, items: &'a [Item]) -> Option<&'a Vectors> {
    items.iter().find_map(|item| match item.get(name)? {
        Value::Vectors(vectors) => Some(&**vectors),
        _ => None,
    })
}

fn is_vector(ty: FieldType) -> bool {
    matches!(ty, FieldType::Vector | FieldType::MultiVector)
}

/// The type of a field's column; `None` for a vector of unknown length.
fn data_type(ty: FieldType, vectors: Option<&Vectors>) -> Option<DataType> {
    Some(match ty {
        FieldType::Text => DataType::Utf8,
        FieldType::Bytes => DataType::Binary,
        FieldType::Bool => DataType::Boolean,
        FieldType::Integer => DataType::Int64,
        FieldType::Float => DataType::Float64,
        FieldType::Words => DataType::List(word_item()),
        FieldType::Vector => {
            let vectors = vectors?;
            let number = match vectors.data() {
                VectorData::F32(_) => DataType::Float32,
                VectorData::F16(_) => DataType::Float16,
            };
            vector_type(number, vectors.dim())
        }
        // Late interaction keeps hundreds of vectors a page: 16 bits each, whatever the model makes.
        FieldType::MultiVector => {
            let vector = vector_type(DataType::Float16, vectors?.dim());
            DataType::List(Arc::new(Field::new("item", vector, true)))
        }
        _ => return None,
    })
}

fn vector_type(number: DataType, dim: usize) -> DataType {
    DataType::FixedSizeList(Arc::new(Field::new("item", number, true)), dim as i32)
}

/// `words`: text, and a box in points from the page's top left.
pub(super) fn word_fields() -> Fields {
    Fields::from(vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("x0", DataType::Float32, true),
        Field::new("y0", DataType::Float32, true),
        Field::new("x1", DataType::Float32, true),
        Field::new("y1", DataType::Float32, true),
    ])
}

fn word_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(word_fields()), true))
}

/// Whether values of this field type can be written to a column of type `found`.
pub(crate) fn fits(ty: FieldType, found: &DataType) -> bool {
    match (ty, found) {
        (FieldType::Vector, DataType::FixedSizeList(item, _)) => is_number(item.data_type()),
        (FieldType::MultiVector, DataType::List(item)) => match item.data_type() {
            DataType::FixedSizeList(item, _) => is_number(item.data_type()),
            _ => false,
        },
        (FieldType::Words, DataType::List(item)) => match item.data_type() {
            DataType::Struct(fields) => {
                let names = |fields: &Fields| -> Vec<(String, DataType)> {
                    let pair =
                        |field: &Arc<Field>| (field.name().clone(), field.data_type().clone());
                    fields.iter().map(pair).collect()
                };
                names(fields) == names(&word_fields())
            }
            _ => false,
        },
        (ty, found) => data_type(ty, None).as_ref() == Some(found),
    }
}

fn is_number(ty: &DataType) -> bool {
    matches!(ty, DataType::Float16 | DataType::Float32)
}

/// A column's type in words.
pub(crate) fn describe(ty: &DataType) -> String {
    match ty {
        DataType::Utf8 => "text".into(),
        DataType::Binary => "bytes".into(),
        DataType::Boolean => "bool".into(),
        DataType::Int64 => "integer".into(),
        DataType::Float64 => "float".into(),
        DataType::FixedSizeList(item, dim) => match item.data_type() {
            DataType::Float16 => format!("a vector of {dim} half floats"),
            DataType::Float32 => format!("a vector of {dim} floats"),
            other => format!("a vector of {dim} {other}"),
        },
        DataType::List(item) => match item.data_type() {
            DataType::FixedSizeList(..) => {
                format!("a list, each {}", describe(item.data_type()))
            }
            DataType::Struct(_) => "a list of records".into(),
            other => format!("a list of {other}"),
        },
        other => other.to_string(),
    }
}

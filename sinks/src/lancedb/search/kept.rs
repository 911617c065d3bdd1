//! The column `vectors`, batch by batch: read, scored, and kept for the next question.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, AsArray, ListArray, RecordBatch, UInt64Array};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, UInt64Type};
use tokio::sync::Mutex;

use super::{MultiVector, ROW_ID, VECTORS};
use crate::maxsim::{MaxSim, Number};

/// A row's score and id.
pub(super) type Scored = (f32, u64);

/// Some rows of the column, as they came from the table.
#[derive(Debug)]
pub(super) struct Pages {
    ids: UInt64Array,
    vectors: ListArray,
}

impl Pages {
    /// The rows of a batch with the columns `vectors` and `_rowid`; `None` if it lacks one.
    pub(super) fn of(batch: &RecordBatch) -> Option<Self> {
        let ids = batch.column_by_name(ROW_ID)?;
        let vectors = batch.column_by_name(VECTORS)?;
        let vectors = vectors.as_list_opt::<i32>()?;
        vectors.values().as_fixed_size_list_opt()?;
        Some(Self {
            ids: ids.as_primitive_opt::<UInt64Type>()?.clone(),
            vectors: vectors.clone(),
        })
    }

    /// Bytes of the vectors.
    pub(super) fn n_bytes(&self) -> usize {
        let offsets = self.vectors.value_offsets();
        let n = offsets[self.vectors.len()] - offsets[0];
        let vectors = self.vectors.values().as_fixed_size_list();
        let width = vectors.value_type().primitive_width().unwrap_or(0);
        n as usize * vectors.value_length() as usize * width
    }

    /// Scores every row of `batches` that has vectors.
    pub(super) fn score(batches: &[Self], question: &MaxSim) -> Vec<Scored> {
        let first = batches.first();
        let number = first.map(|pages| pages.vectors.values().as_fixed_size_list().value_type());
        match number {
            Some(DataType::Float16) => Self::score_as::<Float16Type>(batches, question),
            Some(DataType::Float32) => Self::score_as::<Float32Type>(batches, question),
            _ => Vec::new(),
        }
    }

    fn score_as<T>(batches: &[Self], question: &MaxSim) -> Vec<Scored>
    where
        T: ArrowPrimitiveType,
        T::Native: Number,
    {
        let (mut ids, mut pages) = (Vec::new(), Vec::new());
        for batch in batches {
            for row in 0..batch.vectors.len() {
                if let Some(page) = batch.page::<T>(row) {
                    ids.push(batch.ids.value(row));
                    pages.push(page);
                }
            }
        }
        let pages: Vec<&[T::Native]> = pages.iter().map(|page| &**page).collect();
        question.scores(&pages).into_iter().zip(ids).collect()
    }

    /// A row's vectors, `[n, dim]`; `None` if the row has none. A vector that is null, as
    /// no table of ours has one, is left out.
    fn page<T: ArrowPrimitiveType>(&self, row: usize) -> Option<Cow<'_, [T::Native]>> {
        if self.vectors.is_null(row) {
            return None;
        }
        let vectors = self.vectors.values().as_fixed_size_list();
        let numbers = vectors.values().as_primitive_opt::<T>()?.values();
        let dim = vectors.value_length() as usize;
        let offsets = self.vectors.value_offsets();
        let rows = offsets[row] as usize..offsets[row + 1] as usize;
        if vectors.null_count() == 0 {
            return Some(Cow::Borrowed(&numbers[rows.start * dim..rows.end * dim]));
        }
        let valid = rows.filter(|row| vectors.is_valid(*row));
        let numbers = valid.flat_map(|row| &numbers[row * dim..(row + 1) * dim]);
        Some(Cow::Owned(numbers.copied().collect()))
    }

    /// The vectors of the first row.
    pub(super) fn first(&self) -> Option<MultiVector> {
        if self.vectors.is_empty() {
            return None;
        }
        let vectors = self.vectors.values().as_fixed_size_list();
        let values = match vectors.value_type() {
            DataType::Float16 => {
                let page = self.page::<Float16Type>(0)?;
                page.iter().map(|number| number.to_f32()).collect()
            }
            DataType::Float32 => self.page::<Float32Type>(0)?.into_owned(),
            _ => return None,
        };
        let dim = vectors.value_length() as usize;
        Some(MultiVector { values, dim })
    }
}

/// The column in memory, for the questions after the first one.
#[derive(Debug)]
pub(super) struct Kept {
    max_bytes: usize,
    /// Locked while a question reads the column: the next one finds it here.
    pub(super) column: Mutex<Column>,
}

#[derive(Debug)]
pub(super) enum Column {
    Unread,
    /// Every question reads it anew.
    TooLarge,
    Here(Arc<Vec<Pages>>),
}

impl Kept {
    pub(super) fn new(max_bytes: usize) -> Self {
        let column = if max_bytes == 0 {
            Column::TooLarge
        } else {
            Column::Unread
        };
        Self {
            max_bytes,
            column: Mutex::new(column),
        }
    }

    /// An empty collection of what is read.
    pub(super) fn keeper(&self) -> Keeper {
        Keeper {
            left_bytes: Some(self.max_bytes),
            pages: Vec::new(),
        }
    }
}

/// Collects what is read, as long as there is room for it.
pub(super) struct Keeper {
    /// `None` once it was too much.
    left_bytes: Option<usize>,
    pages: Vec<Pages>,
}

impl Keeper {
    /// Keeps nothing.
    pub(super) fn none() -> Self {
        Self {
            left_bytes: None,
            pages: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, pages: Pages) {
        let left_bytes = self.left_bytes;
        self.left_bytes = left_bytes.and_then(|left| left.checked_sub(pages.n_bytes()));
        if self.left_bytes.is_some() {
            self.pages.push(pages);
        } else {
            self.pages = Vec::new();
        }
    }

    pub(super) fn into_column(self) -> Column {
        match self.left_bytes {
            Some(_) => Column::Here(Arc::new(self.pages)),
            None => Column::TooLarge,
        }
    }
}

//! Defines what an encoder returns for one page, image or text.

use std::ops::Range;

use candle_core::{DType, Tensor};
use half::f16;

use crate::error::ModelError;

/// Which numbers leave the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 16 bits: half the memory, and what tables of multi-vectors store. Vectors of length 1
    /// lose less than 0.0005 of each number.
    #[default]
    F16,
    /// 32 bits.
    F32,
}

/// The numbers of an [`Embedding`].
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    /// 16 bits each.
    F16(Vec<f16>),
    /// 32 bits each.
    F32(Vec<f32>),
}

/// Which of a page's vectors stand for which part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchPlaces {
    /// Vectors of the prompt before the first that stands for a part of the page.
    pub start: usize,
    /// Rows of parts.
    pub rows: usize,
    /// Parts in a row, from left to right.
    pub cols: usize,
}

/// One or more vectors of length 1: `[n, dim]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `n * dim` finite numbers.
    pub numbers: Numbers,
    /// Length of each vector.
    pub dim: usize,
    /// Where on the page the vectors are; `None` for text and for single vectors.
    pub patches: Option<PatchPlaces>,
}

impl Embedding {
    /// Number of vectors.
    pub fn n(&self) -> usize {
        let n = match &self.numbers {
            Numbers::F16(numbers) => numbers.len(),
            Numbers::F32(numbers) => numbers.len(),
        };
        n / self.dim.max(1)
    }

    /// The numbers with 32 bits.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.numbers {
            Numbers::F16(numbers) => numbers.iter().map(|number| number.to_f32()).collect(),
            Numbers::F32(numbers) => numbers.clone(),
        }
    }

    /// Copies a pass's vectors off the device, once, and hands out the rows of each sequence.
    /// `vectors`: `[rows, dim]`.
    pub(crate) fn split(
        vectors: &Tensor,
        rows: &[Range<usize>],
        precision: Precision,
    ) -> candle_core::Result<Vec<Self>> {
        let dim = vectors.dim(1)?;
        let own = |range: &Range<usize>| range.start * dim..range.end * dim;
        let with = |numbers| Self {
            numbers,
            dim,
            patches: None,
        };
        Ok(match precision {
            Precision::F16 => {
                let numbers = vectors
                    .to_dtype(DType::F16)?
                    .flatten_all()?
                    .to_vec1::<f16>()?;
                let part = |range| with(Numbers::F16(numbers[own(range)].to_vec()));
                rows.iter().map(part).collect()
            }
            Precision::F32 => {
                let numbers = vectors
                    .to_dtype(DType::F32)?
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                let part = |range| with(Numbers::F32(numbers[own(range)].to_vec()));
                rows.iter().map(part).collect()
            }
        })
    }

    pub(crate) fn with_patches(self, patches: PatchPlaces) -> Self {
        Self {
            patches: Some(patches),
            ..self
        }
    }

    /// Refuses what is not finite, as the result of row `row` of a call.
    pub(crate) fn checked(self, row: usize) -> Result<Self, ModelError> {
        let finite = match &self.numbers {
            Numbers::F16(numbers) => numbers.iter().all(|number| number.is_finite()),
            Numbers::F32(numbers) => numbers.iter().all(|number| number.is_finite()),
        };
        if finite {
            Ok(self)
        } else {
            Err(ModelError::NotFinite { row })
        }
    }

    /// [`Embedding::checked`] for all results of a call.
    pub(crate) fn check_all(embeddings: Vec<Self>) -> Vec<Result<Self, ModelError>> {
        let checked = |(row, embedding): (usize, Self)| embedding.checked(row);
        embeddings.into_iter().enumerate().map(checked).collect()
    }
}

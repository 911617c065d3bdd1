//! Several texts' tokens laid out for one pass of a network.

use candle_core::{Device, Result, Tensor};

/// How the texts of a batch lie in its token dimension.
pub(crate) enum Arrangement {
    /// End to end: text `i` is `starts[i]..starts[i + 1]`. Nothing is computed for padding,
    /// and no mask is needed.
    Packed {
        /// One more than there are texts; the last is the number of tokens.
        starts: Vec<usize>,
    },
    /// Each padded to the longest: text `i` starts at `i * longest`. Few large operations,
    /// which is what a GPU wants.
    Padded {
        n_rows: usize,
        longest: usize,
        lengths: Vec<usize>,
        /// `[rows, 1, 1, longest]`, f32, 0 or the lowest number; `None` without padding.
        mask: Option<Tensor>,
    },
}

/// Token ids of several texts, flat.
pub(crate) struct TokenBatch {
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// The segment of each token, all 0 for single texts.
    pub(crate) types: Vec<u32>,
    pub(crate) arrangement: Arrangement,
}

impl TokenBatch {
    /// Lays texts end to end.
    pub(crate) fn packed(rows: &[&[u32]]) -> Self {
        let ids = rows.concat();
        let mut starts = vec![0];
        starts.extend(rows.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        Self {
            positions: rows.iter().flat_map(|row| 0..row.len() as u32).collect(),
            types: vec![0; ids.len()],
            ids,
            arrangement: Arrangement::Packed { starts },
        }
    }

    /// Pads texts at their end. Pads get id 0; the mask keeps them out of all attention.
    ///
    /// # Errors
    /// The device has no room for the mask.
    pub(crate) fn padded(rows: &[&[u32]], device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let n_rows = rows.len();
        let mut ids = Vec::with_capacity(n_rows * longest);
        let mut mask = Vec::with_capacity(n_rows * longest);
        for row in rows {
            ids.extend_from_slice(row);
            ids.resize(ids.len() + longest - row.len(), 0);
            mask.resize(mask.len() + row.len(), 0.0_f32);
            // Not minus infinity: a finite mask cannot make NaN.
            mask.resize(mask.len() + longest - row.len(), f32::MIN);
        }
        let mask = if lengths.iter().any(|length| *length < longest) {
            Some(Tensor::from_vec(mask, (n_rows, 1, 1, longest), device)?)
        } else {
            None
        };
        Ok(Self {
            positions: (0..n_rows).flat_map(|_| 0..longest as u32).collect(),
            types: vec![0; ids.len()],
            ids,
            arrangement: Arrangement::Padded {
                n_rows,
                longest,
                lengths,
                mask,
            },
        })
    }
}

impl Arrangement {
    /// The tokens of each text, in the texts' order.
    pub(crate) fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        match self {
            Self::Packed { starts } => starts
                .windows(2)
                .map(|bounds| bounds[0]..bounds[1])
                .collect(),
            Self::Padded {
                longest, lengths, ..
            } => lengths
                .iter()
                .enumerate()
                .map(|(row, length)| row * longest..row * longest + length)
                .collect(),
        }
    }
}

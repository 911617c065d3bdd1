//! SigLIP2's table of positions, stretched to the shape of an image.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

/// Shapes whose table is kept; more are seldom in use at a time, and one may hold a megabyte.
const N_KEPT: usize = 32;

/// A square table and what it becomes for other shapes.
pub(super) struct StretchedPositions {
    table: Vec<f32>, // [side, side, width]
    side: usize,
    width: usize,
    dtype: DType,
    device: Device,
    /// By rows and columns.
    kept: Mutex<HashMap<(usize, usize), Tensor>>,
}

impl StretchedPositions {
    /// Of `table`, `[side * side, width]`, in the type and on the device of the results.
    pub(super) fn new(table: &Tensor, side: usize) -> Result<Self> {
        let on_processor = table.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(Self {
            table: on_processor.flatten_all()?.to_vec1()?,
            side,
            width: table.dim(1)?,
            dtype: table.dtype(),
            device: table.device().clone(),
            kept: Mutex::default(),
        })
    }

    /// The table for an image of so many rows and columns of patches, `[rows * cols, width]`.
    pub(super) fn of(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = kept.get(&(rows, cols)) {
            return Ok(tensor.clone());
        }
        let stretched = stretch(
            &self.table,
            (self.side, self.side),
            (rows, cols),
            self.width,
        );
        let tensor = Tensor::from_vec(stretched, (rows * cols, self.width), &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)?;
        if kept.len() >= N_KEPT {
            kept.clear();
        }
        kept.insert((rows, cols), tensor.clone());
        Ok(tensor)
    }
}

/// Bilinear with antialiasing, as torch's `interpolate(antialias=True, align_corners=False)`:
/// along the columns first, then along the rows, all in f32.
/// `table`: `[from.0, from.1, width]`; the result is `[to.0, to.1, width]`.
fn stretch(table: &[f32], from: (usize, usize), to: (usize, usize), width: usize) -> Vec<f32> {
    let cols = taps(from.1, to.1);
    let mut wide = vec![0.0; from.0 * to.1 * width]; // [from.0, to.1, width]
    let rows_of_wide = wide.chunks_exact_mut(to.1 * width);
    for (row, from_row) in rows_of_wide.zip(table.chunks_exact(from.1 * width)) {
        for (target, taps) in row.chunks_exact_mut(width).zip(&cols) {
            taps.mix(from_row, target);
        }
    }
    let rows = taps(from.0, to.0);
    let mut stretched = vec![0.0; to.0 * to.1 * width];
    for (row, taps) in stretched.chunks_exact_mut(to.1 * width).zip(&rows) {
        taps.mix(&wide, row);
    }
    stretched
}

/// Which neighbours make one output, and how much of each.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

impl Taps {
    /// Adds up the neighbours, each as long as `target`, along the outermost axis of `source`.
    fn mix(&self, source: &[f32], target: &mut [f32]) {
        let length = target.len();
        let neighbours = source[self.first * length..].chunks_exact(length);
        for (weight, neighbour) in self.weights.iter().zip(neighbours) {
            for (sum, value) in target.iter_mut().zip(neighbour) {
                *sum += weight * value;
            }
        }
    }
}

/// A triangle around each output's centre, as wide as the larger of the two steps.
fn taps(n_from: usize, n_to: usize) -> Vec<Taps> {
    let scale = n_from as f32 / n_to as f32;
    let support = scale.max(1.0);
    let output = |index: usize| {
        let center = scale * (index as f32 + 0.5);
        let first = ((center - support + 0.5) as isize).max(0) as usize;
        let end = ((center + support + 0.5) as usize).min(n_from);
        let triangle = |neighbour: usize| {
            let distance = (neighbour as f32 - center + 0.5) / support;
            (1.0 - distance.abs()).max(0.0)
        };
        let weights: Vec<f32> = (first..end).map(triangle).collect();
        let sum: f32 = weights.iter().sum();
        Taps {
            first,
            weights: weights.into_iter().map(|weight| weight / sum).collect(),
        }
    };
    (0..n_to).map(output).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(side: usize, width: usize) -> Vec<f32> {
        (0..side * side * width)
            .map(|index| (index as f32 * 0.37).sin())
            .collect()
    }

    #[test]
    fn its_own_shape_leaves_the_table_as_it_is() {
        let table = table(5, 3);
        assert_eq!(stretch(&table, (5, 5), (5, 5), 3), table);
    }

    #[test]
    fn a_constant_stays_constant_in_any_shape() {
        for to in [(1, 1), (1, 40), (7, 3), (40, 1), (12, 12)] {
            let stretched = stretch(&[2.0; 6 * 6], (6, 6), to, 1);
            assert_eq!(stretched.len(), to.0 * to.1);
            assert!(
                stretched.iter().all(|value| (value - 2.0).abs() < 1e-6),
                "{to:?}"
            );
        }
    }

    #[test]
    fn halving_weighs_four_neighbours_as_torch_does() {
        // torch: interpolate(arange(4.).reshape(1, 1, 1, 4), (1, 2), antialias=True) and so on.
        let halved = stretch(&[0.0, 1.0, 2.0, 3.0], (1, 4), (1, 2), 1);
        assert!((halved[0] - 0.714_285_7).abs() < 1e-6, "{halved:?}");
        assert!((halved[1] - 2.285_714_4).abs() < 1e-6, "{halved:?}");
    }

    #[test]
    fn more_shapes_than_are_kept_are_all_right() {
        let width = 2;
        let tensor = Tensor::from_vec(table(4, width), (16, width), &Device::Cpu).unwrap();
        let positions = StretchedPositions::new(&tensor, 4).unwrap();
        let first = positions.of(2, 3).unwrap().to_vec2::<f32>().unwrap();
        for cols in 1..2 * N_KEPT {
            assert_eq!(positions.of(1, cols).unwrap().dims(), [cols, width]);
        }
        assert!(positions.kept.lock().unwrap().len() <= N_KEPT);
        assert_eq!(positions.of(2, 3).unwrap().to_vec2::<f32>().unwrap(), first);
    }
}

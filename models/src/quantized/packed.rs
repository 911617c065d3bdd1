//! A quantized matrix on an x86 processor, and its product with rows of f32.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::kernel::{Level, MAX_ROWS, Product, ROW_WORDS};
use super::tiles::{BLOCK, COLUMNS, SUPERBLOCK, Tile, Tile4, Tile6, Tile8};

/// A task multiplies about so many values of rows at once, as bytes half of a usual
/// second-level cache: they stay there while the weights stream past.
const N_TASK_VALUES: usize = 512 << 10;

/// With fewer products than this, threads cost more than they bring.
const N_SERIAL_PRODUCTS: usize = 1 << 18;

/// Weights in tiles of any kind.
pub(super) trait Multiply: Send + Sync {
    /// The products `[n, n_out]` of rows `x`, `[n, n_in]`, plus `bias`, `[n_out]`.
    fn multiply(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32>;

    /// Memory of the weights.
    fn n_bytes(&self) -> usize;
}

/// Weights `[n_out, n_in]` in tiles: a panel of 32 outputs after the other, each as many
/// tiles as its inputs fill.
pub(super) struct Packed<T> {
    tiles: Vec<T>,
    n_in: usize,
    n_out: usize,
    level: Level,
}

impl Packed<Tile8> {
    /// Quantizes `weights`, `[n_out, n_in]`.
    pub(super) fn q8_0(level: Level, weights: &[f32], n_in: usize) -> Self {
        let mut packed = Self::zeros(level, n_in, weights.len() / n_in);
        let n_tiles = packed.n_tiles();
        let panels = packed.tiles.par_chunks_mut(n_tiles);
        panels
            .zip(weights.par_chunks(COLUMNS * n_in))
            .for_each(|(tiles, weights)| {
                for (column, weights) in weights.chunks_exact(n_in).enumerate() {
                    let (blocks, rest) = weights.as_chunks();
                    for (tile, block) in tiles.iter_mut().zip(blocks) {
                        tile.put(column, block);
                    }
                    if let (false, Some(tile)) = (rest.is_empty(), tiles.last_mut()) {
                        let mut padded = [0.0; BLOCK];
                        padded[..rest.len()].copy_from_slice(rest);
                        tile.put(column, &padded);
                    }
                }
            });
        packed
    }
}

impl Packed<Tile4> {
    /// Quantizes `weights`, `[n_out, n_in]`, with candle's search for the best scales.
    ///
    /// # Errors
    /// Candle's.
    pub(super) fn q4_k(level: Level, weights: &[f32], n_in: usize) -> candle_core::Result<Self> {
        Self::searched(level, weights, n_in, GgmlDType::Q4K, Tile4::put)
    }
}

impl Packed<Tile6> {
    /// Quantizes `weights`, `[n_out, n_in]`, with candle's search for the best scales.
    ///
    /// # Errors
    /// Candle's.
    pub(super) fn q6_k(level: Level, weights: &[f32], n_in: usize) -> candle_core::Result<Self> {
        Self::searched(level, weights, n_in, GgmlDType::Q6K, Tile6::put)
    }
}

impl<T: Tile + Product> Packed<T> {
    /// Quantizes by candle, a panel at a time, and `put`s ggml's superblocks of `N` bytes.
    fn searched<const N: usize>(
        level: Level,
        weights: &[f32],
        n_in: usize,
        format: GgmlDType,
        put: fn(&mut T, usize, &[u8; N]),
    ) -> candle_core::Result<Self> {
        let mut packed = Self::zeros(level, n_in, weights.len() / n_in);
        let n_tiles = packed.n_tiles();
        let width = n_tiles * SUPERBLOCK;
        let panels = packed.tiles.par_chunks_mut(n_tiles);
        panels
            .zip(weights.par_chunks(COLUMNS * n_in))
            .try_for_each(|(tiles, weights)| {
                // A matrix narrower than its superblocks goes on with zeros, which add
                // nothing; the kernel does not even visit blocks that are all zeros.
                let mut padded = Vec::with_capacity(COLUMNS * width);
                for row in weights.chunks_exact(n_in) {
                    padded.extend_from_slice(row);
                    padded.resize(padded.len().next_multiple_of(width), 0.0);
                }
                let n_rows = padded.len() / width;
                let panel = Tensor::from_vec(padded, (n_rows, width), &Device::Cpu)?;
                let panel = QTensor::quantize(&panel, format)?;
                let bytes = panel.data()?;
                let (blocks, _) = bytes.as_chunks::<N>();
                for (column, blocks) in blocks.chunks_exact(n_tiles).enumerate() {
                    for (tile, block) in tiles.iter_mut().zip(blocks) {
                        put(tile, column, block);
                    }
                }
                Ok::<_, candle_core::Error>(())
            })?;
        Ok(packed)
    }

    /// Takes weights `[n_out, n_in]` over from ggml's blocks of `N` bytes, `n_in` being a
    /// multiple of their width: `put` gets the tile, the column, the block's place in the
    /// tile, and the block.
    pub(super) fn of_blocks<const N: usize>(
        level: Level,
        bytes: &[u8],
        [n_out, n_in]: [usize; 2],
        put: impl Fn(&mut T, usize, usize, &[u8; N]) + Sync,
    ) -> Self {
        let (blocks, _) = bytes.as_chunks::<N>();
        let n_row_blocks = blocks.len() / n_out;
        let per_tile = n_row_blocks.div_ceil((n_in.div_ceil(BLOCK)).div_ceil(T::N_BLOCKS));
        Self::filled(level, [n_out, n_in], |tiles, column, output| {
            let blocks = &blocks[output * n_row_blocks..][..n_row_blocks];
            for (index, block) in blocks.iter().enumerate() {
                put(
                    &mut tiles[index / per_tile],
                    column,
                    index % per_tile,
                    block,
                );
            }
        })
    }

    /// Weights `[n_out, n_in]` that `put` writes: it gets a panel's tiles, a column of them,
    /// and the output that is to be there. All cores take part.
    pub(super) fn filled(
        level: Level,
        [n_out, n_in]: [usize; 2],
        put: impl Fn(&mut [T], usize, usize) + Sync,
    ) -> Self {
        let mut packed = Self::zeros(level, n_in, n_out);
        let n_tiles = packed.n_tiles();
        let panels = packed.tiles.par_chunks_mut(n_tiles).enumerate();
        panels.for_each(|(panel, tiles)| {
            let first = panel * COLUMNS;
            for output in first..n_out.min(first + COLUMNS) {
                put(tiles, output - first, output);
            }
        });
        packed
    }

    fn zeros(level: Level, n_in: usize, n_out: usize) -> Self {
        let n_tiles = n_in.div_ceil(BLOCK).div_ceil(T::N_BLOCKS);
        Self {
            // By all cores: fresh memory comes slowly.
            tiles: rayon::iter::repeat_n(T::ZERO, n_tiles * n_out.div_ceil(COLUMNS)).collect(),
            n_in,
            n_out,
            level,
        }
    }

    /// Tiles of a panel.
    fn n_tiles(&self) -> usize {
        self.n_in.div_ceil(BLOCK).div_ceil(T::N_BLOCKS)
    }

    fn quantize(&self, x: &[f32]) -> Vec<u32> {
        let n_blocks = self.n_in.div_ceil(BLOCK);
        let mut words = vec![0; x.len() / self.n_in * n_blocks * ROW_WORDS];
        let n_rows = self.level.n_rows();
        words
            .par_chunks_mut(n_rows * n_blocks * ROW_WORDS)
            .zip(x.par_chunks(n_rows * self.n_in))
            .with_min_len((N_SERIAL_PRODUCTS / 16 / (n_rows * self.n_in)).max(1))
            .for_each(|(words, x)| T::quantize(self.level, x, self.n_in, words));
        words
    }

    /// Cuts the product into rectangles that do not overlap and cover it, a few for each
    /// thread.
    fn tasks(&self, n_rows: usize) -> Vec<Task> {
        let at_once = self.level.n_rows();
        let n_panels = self.n_out.div_ceil(COLUMNS);
        let height = (N_TASK_VALUES / self.n_in / at_once).max(8) * at_once;
        let n_wanted = 4 * rayon::current_num_threads();
        let n_across = n_wanted
            .div_ceil(n_rows.div_ceil(height).max(1))
            .clamp(1, n_panels.max(1));
        let width = n_panels.div_ceil(n_across).max(1);
        let mut tasks = Vec::new();
        for first_row in (0..n_rows).step_by(height) {
            for first_panel in (0..n_panels).step_by(width) {
                tasks.push(Task {
                    rows: first_row..n_rows.min(first_row + height),
                    panels: first_panel..n_panels.min(first_panel + width),
                });
            }
        }
        tasks
    }
}

impl<T: Tile + Product> Multiply for Packed<T> {
    fn multiply(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let n_rows = x.len() / self.n_in;
        let n_values = n_rows * self.n_out;
        let mut out: Vec<f32> = Vec::with_capacity(n_values);
        let rows = self.quantize(x);
        let work = Work {
            matrix: self,
            rows: &rows,
            bias,
            out: out.as_mut_ptr(),
        };
        let tasks = self.tasks(n_rows);
        if n_rows * self.n_in * self.n_out < N_SERIAL_PRODUCTS {
            for task in &tasks {
                work.run(task);
            }
        } else {
            tasks.par_iter().for_each(|task| work.run(task));
        }
        // SAFETY: `out` has that capacity, and the tasks cover every row and column.
        unsafe { out.set_len(n_values) };
        out
    }

    fn n_bytes(&self) -> usize {
        size_of_val(self.tiles.as_slice())
    }
}

/// A rectangle of the product.
struct Task {
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

/// What all tasks of one product share.
struct Work<'a, T> {
    matrix: &'a Packed<T>,
    /// Quantized, in groups as large as the level's.
    rows: &'a [u32],
    bias: Option<&'a [f32]>,
    /// `[n, n_out]`, not yet written.
    out: *mut f32,
}

// SAFETY: the tasks write to rectangles of `out` that do not overlap, and read the rest.
unsafe impl<T: Sync> Sync for Work<'_, T> {}

/// Weights that a core keeps at hand while rows go by: half of a usual second-level cache.
const CACHED_BYTES: usize = 512 << 10;

impl<T: Product> Work<'_, T> {
    fn run(&self, task: &Task) {
        let Packed { n_out, level, .. } = *self.matrix;
        let n_tiles = self.matrix.n_tiles();
        let n_row_words = self.matrix.n_in.div_ceil(BLOCK) * ROW_WORDS;
        let mut patch = [[0.0; COLUMNS]; MAX_ROWS];
        // As many panels as stay in a core's own cache are multiplied by a few rows at a time:
        // results then go to memory in runs, and not to a page of its own each.
        let panel_bytes = n_tiles * size_of::<T>();
        let n_at_once = (CACHED_BYTES / panel_bytes.max(1)).max(1);
        for start in task.panels.clone().step_by(n_at_once) {
            let panels = start..task.panels.end.min(start + n_at_once);
            for first in task.rows.clone().step_by(level.n_rows()) {
                let n_rows = level.n_rows().min(task.rows.end - first);
                let rows = &self.rows[first * n_row_words..][..n_rows * n_row_words];
                for panel in panels.clone() {
                    let tiles = &self.matrix.tiles[panel * n_tiles..][..n_tiles];
                    let columns = panel * COLUMNS..n_out.min((panel + 1) * COLUMNS);
                    let bias = self.bias.map(|bias| &bias[columns.clone()]);
                    T::multiply(level, tiles, rows, n_rows, &mut patch);
                    for (row, values) in patch[..n_rows].iter_mut().enumerate() {
                        let values = &mut values[..columns.len()];
                        if let Some(bias) = bias {
                            values
                                .iter_mut()
                                .zip(bias)
                                .for_each(|(value, bias)| *value += bias);
                        }
                        let start = (first + row) * n_out + columns.start;
                        // SAFETY: row and columns are within `out`, whose capacity is all rows
                        // times all columns, and within this task's rectangle, which no other
                        // task touches.
                        unsafe {
                            let out = self.out.add(start);
                            out.copy_from_nonoverlapping(values.as_ptr(), values.len());
                        }
                    }
                }
            }
        }
    }
}

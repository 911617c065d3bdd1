//! From the pixels of a page straight to patches.
//!
//! Rows are resized along the row first, then blended, as the reference does; between the two
//! everything is rounded to bytes. A task owns some rows of patches: it keeps just the rows
//! that the next output needs, in planes and in a ring that stays in the cache, and puts each
//! finished row in its place in the patches.
#![allow(
    clippy::inline_always,
    reason = "a call would leave the vector instructions behind"
)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::axis::{Axis, Filter};
use super::kernels::{Columns, Kernels, N_BYTES_PER_STEP, N_CHANNELS, N_ROWS_PER_STEP, Plain};
use super::size::Side;
use super::{Grid, RgbView};

/// Tasks for each core, so that one that starts late does not hold up the rest.
const N_TASKS_PER_CORE: usize = 4;

/// What a thread keeps of its ring. Only tall images that are much reduced need more.
const MAX_KEPT_BYTES: usize = 8 << 20;

/// Below so many multiplications a page is not worth sharing.
const MIN_SHARED_PRODUCTS: usize = 1 << 20;

/// Resizes `image` and cuts it into patches: `[patches, 3, p, p]`, in blocks of `grid.merge`.
///
/// The image has the bytes that its sides call for, and `grid` the patches of the two sides.
pub(super) fn to_patches(
    image: RgbView<'_>,
    height: &Side,
    width: &Side,
    grid: Grid,
    patch_px: usize,
    filter: Filter,
) -> Vec<u8> {
    let job = Job::new(image, height, width, grid, patch_px, filter);
    let n_blocks_per_task = (grid.rows / grid.merge).div_ceil(job.n_tasks());
    let n_rows_per_task = n_blocks_per_task * grid.merge;
    let mut pixels = vec![0; grid.n_patches() * job.patch_bytes()];
    pixels
        .par_chunks_mut(n_rows_per_task * grid.cols * job.patch_bytes())
        .enumerate()
        .for_each(|(task, pixels)| {
            let first_y = task * n_rows_per_task * patch_px;
            job.run(Part { first_y, pixels });
        });
    pixels
}

/// What all tasks of one image share.
struct Job<'a> {
    image: RgbView<'a>,
    columns: Columns,
    rows: Axis,
    /// Black columns and rows before the first.
    left_px: usize,
    top_px: usize,
    /// Bytes from one plane of a row to the next, whole steps included.
    plane_bytes: usize,
    grid: Grid,
    patch_px: usize,
}

impl<'a> Job<'a> {
    fn new(
        image: RgbView<'a>,
        height: &Side,
        width: &Side,
        grid: Grid,
        patch_px: usize,
        filter: Filter,
    ) -> Self {
        let axis = |n_in: u32, side: &Side| {
            Axis::new(n_in as usize, side.resized_px, side.kept.clone(), filter)
        };
        let (columns, rows) = rayon::join(
            || Columns::new(&axis(image.width_px, width)),
            || axis(image.height_px, height),
        );
        let plane_bytes = width.margin_px + columns.n_outputs();
        Self {
            image,
            columns,
            rows,
            left_px: width.margin_px,
            top_px: height.margin_px,
            plane_bytes: plane_bytes.max(grid.cols * patch_px),
            grid,
            patch_px,
        }
    }

    /// Bytes of one patch.
    fn patch_bytes(&self) -> usize {
        N_CHANNELS * self.patch_px * self.patch_px
    }

    /// Into how many parts the page is best cut.
    fn n_tasks(&self) -> usize {
        let n_products = self.image.height_px as usize * self.columns.n_products_per_row();
        if n_products < MIN_SHARED_PRODUCTS {
            return 1;
        }
        let n_blocks = self.grid.rows / self.grid.merge;
        n_blocks.clamp(1, rayon::current_num_threads() * N_TASKS_PER_CORE)
    }
}

/// Some rows of blocks.
struct Part<'a> {
    /// The first row of pixels, counted over all patches.
    first_y: usize,
    pixels: &'a mut [u8],
}

/// Memory that a thread uses again.
#[derive(Default)]
struct Scratch {
    /// `[rows, 3, plane_bytes]`: row `y` of the input lies at `y` modulo the number of rows.
    /// Past them come lines that nothing reads.
    ring: Vec<u8>,
    /// A finished row, `[3, plane_bytes]`.
    line: Vec<u8>,
    /// Rows of the input with bytes to spare, for where the input ends.
    tail: [Vec<u8>; N_ROWS_PER_STEP],
    starts: Vec<[usize; 2]>,
    weights: Vec<[i16; 2]>,
}

impl Job<'_> {
    fn run(&self, part: Part<'_>) {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(|scratch| {
            self.dispatch(part, scratch);
            scratch.ring.clear();
            scratch.ring.shrink_to(MAX_KEPT_BYTES);
        });
    }

    /// Picks the instructions that this processor has.
    fn dispatch(&self, part: Part<'_>, scratch: &mut Scratch) {
        let job = self;
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            let kernels = simd;
            return simd.vectorize(Run {
                job,
                part,
                scratch,
                kernels,
            });
        }
        let kernels = Plain;
        Run {
            job,
            part,
            scratch,
            kernels,
        }
        .run();
    }
}

struct Run<'a, K> {
    job: &'a Job<'a>,
    part: Part<'a>,
    scratch: &'a mut Scratch,
    kernels: K,
}

#[cfg(target_arch = "x86_64")]
impl<K: Kernels> pulp::NullaryFnOnce for Run<'_, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.run();
    }
}

impl<K: Kernels> Run<'_, K> {
    #[inline(always)]
    fn run(self) {
        let Self {
            job,
            part,
            scratch,
            kernels,
        } = self;
        let n_rows = part.pixels.len() / (job.grid.cols * job.patch_bytes());
        // Outputs of the row axis that lie in this part.
        let first = part.first_y.max(job.top_px) - job.top_px;
        let end = (part.first_y + n_rows * job.patch_px)
            .saturating_sub(job.top_px)
            .min(job.rows.inputs.len());
        if first >= end || job.columns.n_outputs() == 0 {
            return;
        }

        let line_bytes = (N_CHANNELS * job.plane_bytes).next_multiple_of(N_BYTES_PER_STEP);
        // More than one output needs, since rows come several at a time.
        let n_ring_rows = job.rows.most_inputs() + N_ROWS_PER_STEP;
        scratch.ring.clear();
        scratch
            .ring
            .resize((n_ring_rows + N_ROWS_PER_STEP) * line_bytes, 0);
        scratch.line.resize(line_bytes, 0);
        let last_input = job.rows.inputs[end - 1].end - 1;
        let mut next_input = job.rows.inputs[first].start;
        for output in first..end {
            let inputs = job.rows.inputs[output].clone();
            next_input = next_input.max(inputs.start);
            while next_input < inputs.end {
                narrow(job, scratch, kernels, next_input, last_input, line_bytes);
                next_input += N_ROWS_PER_STEP;
            }
            let weights = &job.rows.weights_of(output)[..inputs.len().next_multiple_of(2)];
            scratch.weights.clear();
            scratch.weights.extend(weights.as_chunks::<2>().0);
            scratch.starts.clear();
            let slot = |y: usize| y % n_ring_rows * line_bytes;
            scratch.starts.extend(inputs.clone().step_by(2).map(|y| {
                // A second row of weight zero may be any.
                [slot(y), slot((y + 1).min(inputs.end - 1))]
            }));
            kernels.blend(
                &scratch.ring,
                &scratch.starts,
                &scratch.weights,
                job.rows.precision,
                &mut scratch.line,
            );
            place(
                job,
                &scratch.line,
                job.top_px + output - part.first_y,
                part.pixels,
            );
        }
    }
}

/// Resizes rows of the input from `first` on into the ring.
///
/// Where there are fewer than a step's, `last` is repeated, and the copies go where nothing is
/// read.
#[inline(always)]
fn narrow<K: Kernels>(
    job: &Job<'_>,
    scratch: &mut Scratch,
    kernels: K,
    first: usize,
    last: usize,
    line_bytes: usize,
) {
    let [a, b, c, d] = &mut scratch.tail;
    let rows = [
        job.row(first, a),
        job.row((first + 1).min(last), b),
        job.row((first + 2).min(last), c),
        job.row((first + 3).min(last), d),
    ];
    // Past the ring come lines for the copies.
    let n_ring_rows = scratch.ring.len() / line_bytes - N_ROWS_PER_STEP;
    let slot = |i: usize| {
        let row = if first + i <= last {
            (first + i) % n_ring_rows
        } else {
            n_ring_rows + i
        };
        row * line_bytes..(row + 1) * line_bytes
    };
    let [a, b, c, d] = scratch
        .ring
        .get_disjoint_mut([slot(0), slot(1), slot(2), slot(3)])
        .expect("neighbouring rows lie in different places of the ring");
    let left = job.left_px;
    let planes = [
        &mut a[left..],
        &mut b[left..],
        &mut c[left..],
        &mut d[left..],
    ];
    kernels.narrow(rows, &job.columns, planes, job.plane_bytes);
}

impl Job<'_> {
    /// One row of the input with the bytes past it that the kernels read, which weigh nothing;
    /// where the image has no such bytes, in a copy.
    #[inline(always)]
    fn row<'a>(&'a self, y: usize, tail: &'a mut Vec<u8>) -> &'a [u8] {
        let row_bytes = self.image.width_px as usize * N_CHANNELS;
        let n_bytes = self.columns.n_row_bytes;
        let rest = &self.image.pixels[y * row_bytes..];
        if let Some(row) = rest.get(..n_bytes) {
            return row;
        }
        tail.clear();
        tail.extend_from_slice(&rest[..row_bytes]);
        tail.resize(n_bytes.max(row_bytes), 0);
        tail
    }
}

/// Copies one finished row to where its patches want it.
///
/// `line` is `[3, plane_bytes]`, `y` counts from the first row of `pixels`, which are whole
/// rows of blocks.
#[inline(always)]
fn place(job: &Job<'_>, line: &[u8], y: usize, pixels: &mut [u8]) {
    // The usual widths are compiled apart: a copy of known length is one or two moves.
    match job.patch_px {
        14 => place_patches(job, line, y, pixels, 14),
        16 => place_patches(job, line, y, pixels, 16),
        32 => place_patches(job, line, y, pixels, 32),
        patch_px => place_patches(job, line, y, pixels, patch_px),
    }
}

#[inline(always)]
fn place_patches(job: &Job<'_>, line: &[u8], y: usize, pixels: &mut [u8], patch_px: usize) {
    let merge = job.grid.merge;
    let plane = patch_px * patch_px;
    let (patch_row, y_in_patch) = (y / patch_px, y % patch_px);
    let row_of_blocks = patch_row / merge * merge * job.grid.cols;
    let row_in_block = patch_row % merge * merge;
    let planes = line.chunks(job.plane_bytes);
    for (channel, line) in planes.take(N_CHANNELS).enumerate() {
        let line = line[..job.grid.cols * patch_px].chunks_exact(patch_px);
        for (column, line) in line.enumerate() {
            let block = column / merge * merge * merge;
            let patch = row_of_blocks + block + row_in_block + column % merge;
            let at = (patch * N_CHANNELS + channel) * plane + y_in_patch * patch_px;
            pixels[at..at + patch_px].copy_from_slice(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_instructions_and_any_number_of_tasks_give_the_same_bytes() {
        let bytes: Vec<u8> = (0..977 * 1210 * 3_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8)
            .collect();
        // Widths and heights, before and after: one group of taps, several, and many.
        for [width_px, height_px, cols, rows] in [
            [977, 1210, 40, 52],
            [97, 31, 12, 20],
            [64, 400, 8, 4],
            [311, 200, 6, 6],
            [977, 1210, 2, 2],
        ] {
            let n_bytes = width_px * height_px * 3;
            let image = RgbView {
                pixels: &bytes[..n_bytes],
                width_px: width_px as u32,
                height_px: height_px as u32,
            };
            let grid = Grid {
                rows,
                cols,
                merge: 2,
            };
            let [height, width] = [rows, cols].map(|n| Side::whole(n * 8, 8));
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let shared = to_patches(image, &height, &width, grid, 8, filter);
                let job = Job::new(image, &height, &width, grid, 8, filter);
                let mut alone = vec![0; shared.len()];
                let part = Part {
                    first_y: 0,
                    pixels: &mut alone,
                };
                let scratch = &mut Scratch::default();
                Run {
                    job: &job,
                    part,
                    scratch,
                    kernels: Plain,
                }
                .run();
                assert!(shared == alone, "{width_px} x {height_px}, {filter:?}");
            }
        }
    }
}

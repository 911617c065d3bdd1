//! Ward's clustering of a page's vectors, with the points and the cut that the
//! `HierarchicalTokenPooler` of colpali-engine 0.3.18 takes from scipy.
//!
//! Its points are not the vectors themselves but the rows of `1 - E Eᵀ`, for
//! vectors `E` `[n, dim]`: what a vector is like to all the others. Points `i` and
//! `j` differ by `E (eⱼ - eᵢ)`, so their distance is the square root of
//! `(eᵢ - eⱼ)ᵀ Eᵀ E (eᵢ - eⱼ)`, which costs `n² dim` where comparing the points costs `n³`.
//!
//! All is computed in 64 bits; the reference has `E Eᵀ` in 32. Vectors between
//! whose distances 32 bits see no difference may be clustered otherwise.

use gemm::Parallelism;
use kodama::{Method, Step, linkage};

/// Rows of products computed at a time.
const PANEL_ROWS: usize = 64;

/// Squared distances below this part of the points' own squares are rounding.
const ROUNDING: f64 = 1e-14;

/// Which vector is in which cluster.
#[derive(Debug, PartialEq)]
pub(super) struct Clusters {
    /// The cluster of each vector, from 0.
    pub(super) of_row: Vec<usize>,
    /// How many clusters there are.
    pub(super) n: usize,
}

/// Groups the vectors `rows`, `[n, dim]`, into at most `max_clusters`, which is at
/// least 1. Vectors that are the same are never parted, so there may be fewer.
/// The clusters are numbered as scipy does.
///
/// Memory is `8 n² / 2` bytes.
pub(super) fn clusters(rows: &[f64], dim: usize, max_clusters: usize) -> Clusters {
    let n = rows.len() / dim;
    if n <= max_clusters {
        let of_row = (0..n).collect();
        return Clusters { of_row, n };
    }
    let mut distances = distances(rows, dim);
    let dendrogram = linkage(&mut distances, n, Method::Ward);
    cut(dendrogram.steps(), max_clusters)
}

/// Distances of the points, the triangle above the diagonal row after row:
/// `n (n - 1) / 2` numbers.
fn distances(rows: &[f64], dim: usize) -> Vec<f64> {
    let n = rows.len() / dim;
    let vectors = Matrix::new(rows, dim);
    // Products of points are `left rightᵀ`, over whichever is shorter: with `G = Eᵀ E`
    // they are `(E G) Eᵀ`, and with `S = E Eᵀ` they are `S Sᵀ`.
    let (left, right, width);
    if dim < n {
        let gram = product(vectors.transposed(), vectors); // [dim, dim]
        left = product(vectors, Matrix::new(&gram, dim)); // [n, dim]
        (right, width) = (rows, dim);
    } else {
        left = product(vectors, vectors.transposed()); // [n, n]
        (right, width) = (left.as_slice(), n);
    }
    let mut squares = Vec::with_capacity(n);
    let mut products = Vec::with_capacity(n * (n - 1) / 2);
    for from in (0..n).step_by(PANEL_ROWS) {
        let to = n.min(from + PANEL_ROWS);
        let some = Matrix::new(&left[from * width..to * width], width);
        let later = Matrix::new(&right[from * width..], width);
        let panel = product(some, later.transposed()); // [to - from, n - from]
        for (row, panel) in panel.chunks_exact(n - from).enumerate() {
            squares.push(panel[row]);
            products.extend_from_slice(&panel[row + 1..]);
        }
    }
    let mut rest = products.as_mut_slice();
    for (row, square) in squares.iter().enumerate() {
        let (own, others) = rest.split_at_mut(n - 1 - row);
        for (value, other) in own.iter_mut().zip(&squares[row + 1..]) {
            let sum = square + other;
            let apart = sum - 2.0 * *value;
            *value = if apart > ROUNDING * sum {
                apart.sqrt()
            } else {
                0.0
            };
        }
        rest = others;
    }
    products
}

/// The clusters that are left when as many of the steps are undone as it takes
/// to have at most `max_clusters`. Steps of one height are done or undone together.
fn cut(steps: &[Step<f64>], max_clusters: usize) -> Clusters {
    // Labels below `n` are vectors, `n + i` is what step `i` made. Heights do not fall.
    let n = steps.len() + 1;
    let height = steps[n - 1 - max_clusters].dissimilarity;
    let n_done = steps.partition_point(|step| step.dissimilarity <= height);
    let mut of_label = vec![0; n + steps.len()];
    let mut n_clusters = 0;
    // From the top down, and at each undone step what is made of several before
    // single vectors: the order in which scipy's traversal numbers them.
    let mut waiting = vec![n + steps.len() - 1];
    while let Some(label) = waiting.pop() {
        if label < n + n_done {
            of_label[label] = n_clusters;
            n_clusters += 1;
            continue;
        }
        let step = &steps[label - n];
        let mut below = [step.cluster1, step.cluster2];
        below.sort_by_key(|label| *label < n); // Stable: the lower label first.
        waiting.extend(below.iter().rev());
    }
    for (label, step) in steps[..n_done].iter().enumerate().rev() {
        for below in [step.cluster1, step.cluster2] {
            of_label[below] = of_label[n + label];
        }
    }
    of_label.truncate(n);
    Clusters {
        of_row: of_label,
        n: n_clusters,
    }
}

/// A matrix, row-major, or the transpose of one.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    numbers: &'a [f64], // Invariant: `n_rows * n_columns` of them.
    n_rows: usize,
    n_columns: usize,
    is_transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Rows of `n_columns` numbers.
    fn new(numbers: &'a [f64], n_columns: usize) -> Self {
        let n_rows = numbers.len() / n_columns;
        assert_eq!(numbers.len(), n_rows * n_columns, "rows are whole");
        Self {
            numbers,
            n_rows,
            n_columns,
            is_transposed: false,
        }
    }

    fn transposed(self) -> Self {
        Self {
            n_rows: self.n_columns,
            n_columns: self.n_rows,
            is_transposed: !self.is_transposed,
            ..self
        }
    }

    /// How far the next column and the next row are.
    fn strides(self) -> (isize, isize) {
        if self.is_transposed {
            (self.n_rows as isize, 1)
        } else {
            (1, self.n_columns as isize)
        }
    }
}

/// The product of two matrices, row-major.
fn product(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f64> {
    assert_eq!(a.n_columns, b.n_rows, "the shapes fit");
    let mut target = vec![0.0; a.n_rows * b.n_columns];
    let (a_column, a_row) = a.strides();
    let (b_column, b_row) = b.strides();
    // SAFETY: the pointers come from slices of exactly `n_rows * n_columns` numbers
    // (`Matrix::new` checks it, `target` is made so), and with these strides every
    // index below `n_rows` and `n_columns` stays inside of them. `target` is ours
    // alone and overlaps neither. The numbers are `f64`, which gemm knows.
    unsafe {
        gemm::gemm(
            a.n_rows,
            b.n_columns,
            a.n_columns,
            target.as_mut_ptr(),
            1,
            b.n_columns as isize,
            false, // What is in `target` does not count.
            a.numbers.as_ptr(),
            a_column,
            a_row,
            b.numbers.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None, // The stage's thread is its worker; more are `workers`.
        );
    }
    target
}

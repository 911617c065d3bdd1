//! Lays patches and tokens out: orders, windows and positions, all as plain numbers.

use std::ops::Range;

use super::config::TextConfig;
use crate::preprocess::Grid;

/// The rows and columns of an image's patches, in the order in which they lie in memory:
/// squares of `merge` x `merge` patches, row by row, and so within a square.
pub(crate) fn patch_places(grid: Grid) -> impl Iterator<Item = (usize, usize)> {
    let merge = grid.merge;
    let (rows, columns) = (grid.rows / merge, grid.cols / merge);
    (0..rows).flat_map(move |row| {
        (0..columns).flat_map(move |column| {
            (0..merge * merge)
                .map(move |inner| (row * merge + inner / merge, column * merge + inner % merge))
        })
    })
}

/// Qwen2.5's order for windowed attention: the merged tokens of an image, window by window,
/// row by row in each, and the number of tokens of each window. Windows at the right and the
/// lower border are cut off.
pub(crate) fn windows(grid: Grid, window: usize) -> (Vec<usize>, Vec<usize>) {
    let (rows, columns) = (grid.rows / grid.merge, grid.cols / grid.merge);
    let mut order = Vec::with_capacity(rows * columns);
    let mut sizes = Vec::new();
    for top in (0..rows).step_by(window) {
        for left in (0..columns).step_by(window) {
            let before = order.len();
            for row in top..rows.min(top + window) {
                let right = columns.min(left + window);
                order.extend((left..right).map(|column| row * columns + column));
            }
            sizes.push(order.len() - before);
        }
    }
    (order, sizes)
}

/// Turns sizes into ranges that follow each other.
pub(crate) fn ranges(sizes: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |size: usize| {
        let start = end;
        end += size;
        start..end
    };
    sizes.into_iter().map(range).collect()
}

/// One stretch of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stretch {
    /// So many tokens of text.
    Text(usize),
    /// An image's merged tokens.
    Image(Grid),
}

/// Positions of a sequence's tokens as M-RoPE counts them: time, row and column.
///
/// Text counts in all three at once. An image's tokens share the time at which it begins, and
/// count rows and columns from there; what follows goes on after the longer of the two
/// (Qwen2-VL, section 2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// `[tokens]`: time, row, column.
    pub(crate) of_tokens: Vec<[u32; 3]>,
    /// The position of the token that would come next.
    pub(crate) next: u32,
}

impl Positions {
    /// Positions of these stretches, one after the other, from `start` on.
    pub(crate) fn of(start: u32, stretches: &[Stretch]) -> Self {
        let mut positions = Self {
            of_tokens: Vec::new(),
            next: start,
        };
        for stretch in stretches {
            positions.push(*stretch);
        }
        positions
    }

    fn push(&mut self, stretch: Stretch) {
        match stretch {
            Stretch::Text(n) => {
                let range = self.next..self.next + n as u32;
                self.next = range.end;
                self.of_tokens.extend(range.map(|at| [at; 3]));
            }
            Stretch::Image(grid) => {
                let (rows, columns) = (grid.rows / grid.merge, grid.cols / grid.merge);
                let start = self.next;
                for row in 0..rows as u32 {
                    for column in 0..columns as u32 {
                        self.of_tokens.push([start, start + row, start + column]);
                    }
                }
                self.next = start + rows.max(columns) as u32;
            }
        }
    }
}

/// The angles by which pairs of a head are turned, as cosine and sine, each
/// `[tokens, head_dim / 2]`.
pub(crate) struct Angles {
    pub(crate) cosines: Vec<f32>,
    pub(crate) sines: Vec<f32>,
}

impl Angles {
    /// M-RoPE: each pair follows the time, the row or the column of its token.
    pub(crate) fn of_tokens(config: &TextConfig, positions: &[[u32; 3]]) -> Self {
        let n_pairs = config.head_dim / 2;
        let last = positions.iter().flatten().max().copied().unwrap_or(0);
        // A few tokens far into a text: all that came before is more than they need.
        if positions.len() < last as usize {
            let frequencies = frequencies(config.rope_theta, config.head_dim);
            let angles = positions.iter().flat_map(|position| {
                let pairs = frequencies.iter().enumerate();
                pairs.map(move |(pair, f)| position[axis(config, pair)] as f32 * f)
            });
            let (sines, cosines) = angles.map(f32::sin_cos).unzip();
            return Self { cosines, sines };
        }
        let table = Self::table(config.rope_theta, config.head_dim, last as usize);
        let axes: Vec<usize> = (0..n_pairs).map(|pair| axis(config, pair)).collect();
        let at = |position: &[u32; 3]| {
            let position = *position;
            let places = axes.iter().enumerate();
            places.map(move |(pair, axis)| position[*axis] as usize * n_pairs + pair)
        };
        let pick = |table: &[f32]| -> Vec<f32> {
            positions.iter().flat_map(at).map(|at| table[at]).collect()
        };
        Self {
            cosines: pick(&table.cosines),
            sines: pick(&table.sines),
        }
    }

    /// The vision tower's: the first half of the pairs follows a patch's row, the second its
    /// column. `n`: more than any row or column.
    pub(crate) fn of_patches(
        theta: f64,
        head_dim: usize,
        n: usize,
        places: &[(usize, usize)],
    ) -> Self {
        let half = head_dim / 4;
        let table = Self::table(theta, head_dim / 2, n);
        let pick = |table: &[f32]| -> Vec<f32> {
            let both = |(row, column)| [row, column].map(|at| &table[at * half..(at + 1) * half]);
            places
                .iter()
                .copied()
                .flat_map(both)
                .flatten()
                .copied()
                .collect()
        };
        Self {
            cosines: pick(&table.cosines),
            sines: pick(&table.sines),
        }
    }

    /// Angles of the positions from 0 to `last`: `[last + 1, width / 2]`.
    fn table(theta: f64, width: usize, last: usize) -> Self {
        let frequencies = frequencies(theta, width);
        let angles = (0..=last).flat_map(|at| frequencies.iter().map(move |f| at as f32 * f));
        let (sines, cosines) = angles.map(f32::sin_cos).unzip();
        Self { cosines, sines }
    }
}

/// Which of time, row and column a pair of a head follows.
fn axis(config: &TextConfig, pair: usize) -> usize {
    let [time, rows, columns] = config.mrope_section;
    if config.interleaved {
        match pair % 3 {
            1 if pair < 3 * rows => 1,
            2 if pair < 3 * columns => 2,
            _ => 0,
        }
    } else if pair < time {
        0
    } else if pair < time + rows {
        1
    } else {
        2
    }
}

/// `theta ^ (-2 i / width)` for each pair, with the reference's roundings to f32.
fn frequencies(theta: f64, width: usize) -> Vec<f32> {
    (0..width / 2)
        .map(|pair| {
            let exponent = (2 * pair) as f32 / width as f32;
            1.0 / (theta.powf(f64::from(exponent)) as f32)
        })
        .collect()
}

/// For each cell along one side of an image: the two entries of a position table's side that
/// it lies between, and how far it is from the first. The first and last cells lie on the
/// first and last entries.
pub(crate) fn between(n_cells: usize, side: usize) -> Vec<(usize, usize, f32)> {
    let last = (side - 1) as f32;
    let step = if n_cells > 1 {
        last / (n_cells - 1) as f32
    } else {
        0.0
    };
    let cell = |cell: usize| {
        // Counted from the nearer end, as torch's `linspace` does.
        let at = if cell < n_cells / 2 || n_cells == 1 {
            step * cell as f32
        } else {
            last - step * (n_cells - 1 - cell) as f32
        };
        let floor = (at as usize).min(side - 1);
        (floor, (floor + 1).min(side - 1), at - floor as f32)
    };
    (0..n_cells).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(rows: usize, cols: usize) -> Grid {
        Grid {
            rows,
            cols,
            merge: 2,
        }
    }

    #[test]
    fn patches_lie_square_by_square() {
        let places: Vec<_> = patch_places(grid(2, 4)).collect();
        assert_eq!(
            places,
            [
                (0, 0),
                (0, 1),
                (1, 0),
                (1, 1),
                (0, 2),
                (0, 3),
                (1, 2),
                (1, 3)
            ]
        );
    }

    #[test]
    fn windows_are_cut_at_the_right_and_below_and_cover_each_token_once() {
        let (order, sizes) = windows(grid(6, 10), 2);
        assert_eq!(sizes, [4, 4, 2, 2, 2, 1]);
        assert_eq!(order[..4], [0, 1, 5, 6]);
        assert_eq!(order[10..], [10, 11, 12, 13, 14]);
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..15).collect::<Vec<_>>());
        assert_eq!(ranges([4, 0, 2]), [0..4, 4..4, 4..6]);
    }

    #[test]
    fn text_goes_on_after_the_longer_side_of_an_image() {
        let stretches = [
            Stretch::Text(2),
            Stretch::Image(grid(4, 6)),
            Stretch::Text(1),
        ];
        let positions = Positions::of(0, &stretches);
        let expected = [
            [0, 0, 0],
            [1, 1, 1],
            [2, 2, 2],
            [2, 2, 3],
            [2, 2, 4],
            [2, 3, 2],
            [2, 3, 3],
            [2, 3, 4],
            [5, 5, 5],
        ];
        assert_eq!(positions.of_tokens, expected);
        assert_eq!(positions.next, 6);
        let later = Positions::of(10, &stretches[1..]);
        assert_eq!(later.of_tokens[0], [10, 10, 10]);
        assert_eq!(later.next, 14);
    }

    #[test]
    fn angles_are_the_same_with_and_without_a_table() {
        let config = serde_json::json!({
            "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 8,
            "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 8, "head_dim": 8
        });
        let config = crate::qwen::config::QwenConfig::parse(&config, std::path::Path::new("c"));
        let config = config.unwrap().text;
        let all: Vec<[u32; 3]> = (0..20).map(|at| [at, at / 2, at / 3]).collect();
        let whole = Angles::of_tokens(&config, &all);
        let last = Angles::of_tokens(&config, &all[18..]);
        assert_eq!(last.cosines, whole.cosines[18 * 4..]);
        assert_eq!(last.sines, whole.sines[18 * 4..]);
    }
}

//! Stands in where there is no kernel of ours: the same names, with nothing behind them.

use super::tiles::{BLOCK, COLUMNS, Five, Flat4, Offset, Tile, Tile4, Tile6, Tile8};

/// As the kernel has it.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// As the kernel has it.
pub(super) const ROW_WORDS: usize = 3 + BLOCK / 4;

/// As the kernel has it.
pub(super) const MAX_ROWS: usize = 6;

/// As the kernel has it.
pub(super) type Patch = [[f32; COLUMNS]; MAX_ROWS];

/// No instructions of this processor serve, so none can be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {}

impl Level {
    pub(super) const ALL: [Self; 0] = [];

    pub(super) fn detect() -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.is_there())
    }

    pub(super) fn is_there(self) -> bool {
        match self {}
    }

    pub(super) fn n_rows(self) -> usize {
        match self {}
    }
}

pub(super) trait Product: Tile {
    fn multiply(level: Level, _tiles: &[Self], _rows: &[u32], _n_rows: usize, _out: &mut Patch) {
        match level {}
    }

    fn quantize(level: Level, _x: &[f32], _n_in: usize, _words: &mut [u32]) {
        match level {}
    }
}

impl Product for Tile8 {}
impl Product for Tile4 {}
impl Product for Tile6 {}
impl<O: Offset> Product for Flat4<O> {}
impl<T: Tile, const N: usize> Product for Five<T, N> {}

//! Defines what the stages of random pipelines do, and to which items, the same for
//! the stage and for the model.

use crate::run::test_kinds::mix;

/// What a stage does. Which items it happens to, [`is_struck`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Step,
    Filter,
    SetAside,
    PanicBefore,
    PanicAfter,
    /// Fails with some items at first, with others always.
    Flaky,
    /// Breaks with some items at first.
    Breaking,
    /// Holds everything back to the end.
    Late,
    Split,
    /// Panics after the first part of some.
    SplitPanic,
    /// Sets some parts aside.
    SplitSetAside,
    Gather,
    /// Sets some of what it gathers aside.
    GatherSetAside,
    GatherPanic,
    GatherBreaking,
}

pub(super) const ALL: [Does; 15] = [
    Does::Step,
    Does::Split,
    Does::Filter,
    Does::SetAside,
    Does::PanicBefore,
    Does::Flaky,
    Does::Gather,
    Does::SplitPanic,
    Does::Breaking,
    Does::PanicAfter,
    Does::GatherSetAside,
    Does::SplitSetAside,
    Does::Late,
    Does::GatherPanic,
    Does::GatherBreaking,
];

impl Does {
    pub(super) fn gathers(self) -> bool {
        matches!(
            self,
            Self::Gather | Self::GatherSetAside | Self::GatherPanic | Self::GatherBreaking
        )
    }

    pub(super) fn splits(self) -> bool {
        matches!(self, Self::Split | Self::SplitPanic | Self::SplitSetAside)
    }

    pub(super) fn of_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|does| format!("{does:?}") == name)
    }
}

/// Which items something happens to, the same in the stage and in the model.
pub(super) fn is_struck(salt: u64, facts: &Facts<'_>, one_in: u64) -> bool {
    let place = [facts.page, facts.part].map(|number| u64::from(number.unwrap_or(0)));
    let uri = facts
        .uri
        .bytes()
        .fold(7, |hash, byte| mix(hash, byte.into()));
    let hash = mix(
        mix(mix(mix(salt, uri), place[0]), place[1]),
        facts.v.cast_unsigned(),
    );
    hash.is_multiple_of(one_in)
}

/// What an item's fate depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) uri: &'a str,
    pub(super) page: Option<u32>,
    pub(super) part: Option<u32>,
    pub(super) v: i64,
}

/// The value that an item gets where it is changed: 0 to 2^31.
pub(super) fn changed(v: i64, by: u64) -> i64 {
    (mix(v.cast_unsigned(), by) >> 33).cast_signed()
}

/// Stages of this salt split an item into [`MANY`] parts.
pub(super) const SPLITS_INTO_MANY: u64 = 1_000_000;

/// Pages of a document that no join may hold all of.
pub(super) const MANY: u32 = 150;

/// How many parts an item is split into.
pub(super) fn n_parts(salt: u64, v: i64) -> u32 {
    if salt == SPLITS_INTO_MANY {
        return MANY;
    }
    u32::try_from(mix(salt, v.cast_unsigned()) % 4).expect("it is below 4")
}

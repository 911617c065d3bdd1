//! Chooses what a run does about documents that are gone from their source.

/// Which stored documents a run removes because its sources no longer have them.
/// A watching source follows deletions by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prune {
    /// None.
    #[default]
    No,
    /// Those that are gone. A source that finds nothing at all refuses to
    /// remove anything: a missing mount or a wrong pattern looks the same.
    Gone,
    /// Those that are gone, even if the source finds nothing at all.
    All,
}

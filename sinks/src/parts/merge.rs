//! Chooses small parts that are merged into one.
//!
//! A watched folder that changes a little every minute leaves a part a minute.
//! Parts of like size are merged once there are some of them, so that a row is
//! copied as often as the logarithm of the number of parts, and not for each
//! part that comes.

/// Fewer parts of like size are left alone.
pub(super) const MIN_PARTS: usize = 8;

/// Parts that are merged at a time: each of them is opened.
const MAX_PARTS: usize = 256;

/// A part of this share of the largest (64 KiB by default) costs more to open
/// than to copy, so its size does not matter.
const TINY_SHARE: u64 = 1024;

/// What a part holds, or may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) n_rows: u64,
    /// Of the file.
    pub(super) n_bytes: u64,
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            n_rows: self.n_rows.saturating_add(other.n_rows),
            n_bytes: self.n_bytes.saturating_add(other.n_bytes),
        }
    }

    fn fits(self, limits: Self) -> bool {
        self.n_rows <= limits.n_rows && self.n_bytes <= limits.n_bytes
    }
}

/// The numbers of parts that are to become one within `limits`, rising; empty
/// if none need to. The smallest come first. A part joins smaller ones if they
/// are half as large as it together, so that each copy makes it grow by a half
/// at least.
pub(super) fn choose(parts: impl IntoIterator<Item = (u64, Size)>, limits: Size) -> Vec<u64> {
    let mut parts: Vec<(u64, Size)> = parts.into_iter().collect();
    parts.sort_unstable_by_key(|(number, size)| (size.n_bytes, *number));
    let tiny_bytes = limits.n_bytes / TINY_SHARE;
    let (mut chosen, mut total) = (Vec::new(), Size::default());
    for (number, size) in parts {
        let is_alike = size.n_bytes <= tiny_bytes.max(total.n_bytes.saturating_mul(2));
        let fits = total.plus(size).fits(limits) && chosen.len() < MAX_PARTS;
        if !(is_alike && fits) {
            if chosen.len() >= MIN_PARTS {
                break;
            }
            // The next ones may be alike.
            (chosen, total) = (Vec::new(), Size::default());
        }
        chosen.push(number);
        total = total.plus(size);
    }
    if chosen.len() < MIN_PARTS {
        return Vec::new();
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Size = Size {
        n_rows: 1000,
        n_bytes: 64_000,
    };

    fn sizes(n_bytes: &[u64]) -> Vec<(u64, Size)> {
        let part = |(index, n_bytes): (usize, &u64)| {
            let size = Size {
                n_rows: 1,
                n_bytes: *n_bytes,
            };
            (index as u64 + 1, size)
        };
        n_bytes.iter().enumerate().map(part).collect()
    }

    #[test]
    fn parts_of_like_size_are_merged_once_there_are_some() {
        assert!(choose(sizes(&[10; 7]), LIMITS).is_empty());
        assert_eq!(choose(sizes(&[10; 9]), LIMITS), (1..=9).collect::<Vec<_>>());
        assert!(choose([], LIMITS).is_empty());
    }

    #[test]
    fn a_large_part_is_not_copied_for_a_few_small_ones() {
        let mut parts = vec![50_000];
        parts.extend([10; 8]);
        assert_eq!(choose(sizes(&parts), LIMITS), (2..=9).collect::<Vec<_>>());
        // One that is less than twice as large as the others together is.
        let parts = [9000, 3000, 1500, 700, 300, 150, 70, 50, 50];
        assert_eq!(choose(sizes(&parts), LIMITS).len(), 9);
    }

    #[test]
    fn larger_parts_are_merged_though_there_are_a_few_small_ones() {
        let mut parts = vec![10, 10];
        parts.extend([5000; 9]);
        assert_eq!(choose(sizes(&parts), LIMITS), (3..=11).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_merged_keeps_to_the_limits_of_a_part() {
        let many = vec![1; 5000];
        assert_eq!(choose(sizes(&many), LIMITS).len(), MAX_PARTS);
        let few_rows = Size {
            n_rows: 20,
            ..LIMITS
        };
        assert_eq!(choose(sizes(&many), few_rows).len(), 20);
        assert!(choose(sizes(&[20_000; 50]), LIMITS).is_empty());
    }

    proptest! {
        #[test]
        fn a_long_watch_leaves_few_parts_and_copies_each_row_a_few_times(
            n_bytes in prop::collection::vec(1_u64..900, 1..600),
        ) {
            let (mut parts, mut n_copied) = (Vec::<(u64, Size)>::new(), 0);
            let n_total: u64 = n_bytes.iter().sum();
            for (_, size) in sizes(&n_bytes) {
                let next = parts.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
                parts.push((next, size));
                let merged = choose(parts.iter().copied(), LIMITS);
                let Some(last) = merged.last() else { continue };
                let is_merged = |(number, _): &(u64, Size)| merged.contains(number);
                let sum = parts.iter().filter(|part| is_merged(part));
                let sum = sum.fold(Size::default(), |sum, (_, size)| sum.plus(*size));
                prop_assert!(sum.fits(LIMITS) && merged.len() >= MIN_PARTS);
                n_copied += sum.n_bytes;
                parts.retain(|part| !is_merged(part));
                parts.push((*last, sum));
            }
            // Beside full parts a few of each size; 11 and 5.8 were seen in 3,000 watches.
            let n_full = n_total / (LIMITS.n_bytes / 2);
            prop_assert!(parts.len() as u64 <= n_full + 24, "{}", parts.len());
            prop_assert!(n_copied <= n_total * 8, "{n_copied} of {n_total}");
        }
    }
}

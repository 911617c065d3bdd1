//! Finds answers that go in circles.

/// The longest circle that is looked for, in tokens: a few rows of a table.
const MAX_PERIOD: usize = 128;

/// A circle has been gone round at least so often...
const MIN_ROUNDS: usize = 8;

/// ...and over at least so many tokens. A line of dashes or dots is shorter.
const MIN_TOKENS: usize = 128;

/// Watches the tokens of one answer.
#[derive(Debug, Clone)]
pub(super) struct RepetitionGuard {
    /// For each period from 1 on, how many of the last tokens are the same as those so many
    /// before.
    same: Vec<usize>,
}

impl RepetitionGuard {
    pub(super) fn new() -> Self {
        Self {
            same: vec![0; MAX_PERIOD],
        }
    }

    /// Learns of the last of `ids`; `true` if the answer goes in circles.
    pub(super) fn push(&mut self, ids: &[u32]) -> bool {
        let Some((last, before)) = ids.split_last() else {
            return false;
        };
        let mut circles = false;
        for (same, period) in self.same.iter_mut().zip(1..) {
            let earlier = before.len().checked_sub(period).map(|place| &before[place]);
            *same = if earlier == Some(last) { *same + 1 } else { 0 };
            circles |= *same > 0 && *same + period >= MIN_TOKENS.max(MIN_ROUNDS * period);
        }
        circles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many tokens the guard ends an answer.
    fn ends(ids: impl IntoIterator<Item = u32>) -> Option<usize> {
        let mut guard = RepetitionGuard::new();
        let mut seen = Vec::new();
        for id in ids {
            seen.push(id);
            if guard.push(&seen) {
                return Some(seen.len());
            }
        }
        None
    }

    #[test]
    fn circles_of_any_length_are_found_after_some_rounds() {
        assert_eq!(ends(std::iter::repeat_n(7, 1000)), Some(MIN_TOKENS));
        for period in [2, 3, 16, 40, 128] {
            let start = 1000..1050;
            let circle = (0..5000).map(|step| step % period);
            let rounds = MIN_TOKENS.max(MIN_ROUNDS * period as usize);
            assert_eq!(ends(start.chain(circle)), Some(50 + rounds), "{period}");
        }
    }

    #[test]
    fn tables_and_dotted_lines_are_not_circles() {
        let dots = (0..20).flat_map(|line| std::iter::repeat_n(9, 60).chain([line + 100]));
        assert_eq!(ends(dots), None);
        let rows = (0..200).flat_map(|row| [1, 2, 3, row + 100, 4]);
        assert_eq!(ends(rows), None);
    }
}

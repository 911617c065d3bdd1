//! Several texts' tokens laid out for one pass of a network.

use std::ops::Range;

/// Token ids of several texts, end to end.
pub(crate) struct TokenBatch {
    pub(crate) ids: Vec<u32>,
    /// The segment of each token, all 0 for single texts.
    pub(crate) types: Vec<u32>,
    /// Text `i` is `starts[i]..starts[i + 1]`. One more than there are texts; the last is
    /// the number of tokens.
    pub(crate) starts: Vec<usize>,
}

impl TokenBatch {
    pub(crate) fn new(rows: &[&[u32]]) -> Self {
        let ids = rows.concat();
        let mut starts = vec![0];
        starts.extend(rows.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        Self {
            types: vec![0; ids.len()],
            ids,
            starts,
        }
    }

    /// The tokens of each text, in the texts' order.
    pub(crate) fn texts(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|bounds| bounds[0]..bounds[1])
    }

    /// The place of each token in its text.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.texts().flat_map(|text| 0..text.len() as u32).collect()
    }

    /// Tokens of the longest text.
    pub(crate) fn longest(&self) -> usize {
        self.texts().map(|text| text.len()).max().unwrap_or(0)
    }

    /// One value for each token, with each text brought to the longest by zeros at its end:
    /// `[texts, longest]`.
    pub(crate) fn padded(&self, values: &[u32]) -> Vec<u32> {
        let longest = self.longest();
        let mut padded = Vec::with_capacity((self.starts.len() - 1) * longest);
        for (row, text) in self.texts().enumerate() {
            padded.extend_from_slice(&values[text]);
            padded.resize((row + 1) * longest, 0);
        }
        padded
    }

    /// Where each token is in what [`TokenBatch::padded`] gives.
    pub(crate) fn padded_places(&self) -> Vec<u32> {
        let longest = self.longest();
        self.texts()
            .enumerate()
            .flat_map(|(row, text)| (row * longest..).take(text.len()))
            .map(|place| place as u32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_comes_after_each_text_and_every_token_is_found_again() {
        let batch = TokenBatch::new(&[&[5, 6], &[7, 8, 9], &[4]]);
        assert_eq!(batch.positions(), [0, 1, 0, 1, 2, 0]);
        let padded = batch.padded(&batch.ids);
        assert_eq!(padded, [5, 6, 0, 7, 8, 9, 4, 0, 0]);
        let found = batch.padded_places();
        let found: Vec<u32> = found.iter().map(|place| padded[*place as usize]).collect();
        assert_eq!(found, batch.ids);
    }
}

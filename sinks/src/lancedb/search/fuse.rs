//! Lists of hits: in order, and two of them made one.

use std::collections::HashMap;

use super::Hit;

/// The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009).
const RANK_CONSTANT: f32 = 60.0;

/// Best first; rows of one score by their key.
pub(super) fn sort(hits: &mut [Hit]) {
    hits.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| a.key().cmp(&b.key()))
    });
}

/// Reciprocal rank fusion: ranks can be added, the scores behind them cannot.
pub(super) fn fuse(lists: &[Vec<Hit>]) -> Vec<Hit> {
    let mut fused: HashMap<(String, Option<u32>, Option<u32>), Hit> = HashMap::new();
    for list in lists {
        for (rank, hit) in list.iter().enumerate() {
            let key = (hit.document_id.clone(), hit.page, hit.part);
            let score = 1.0 / (RANK_CONSTANT + 1.0 + rank as f32);
            fused
                .entry(key)
                .and_modify(|known| known.score += score)
                .or_insert_with(|| Hit {
                    score,
                    ..hit.clone()
                });
        }
    }
    // Equal sums are common (first and second, second and first). The list that
    // is named first decides: a row with the question's own words comes before
    // one that is only about the same.
    let first: HashMap<_, usize> = lists.first().map_or_else(HashMap::new, |list| {
        list.iter()
            .enumerate()
            .map(|(rank, hit)| (hit.key(), rank))
            .collect()
    });
    let mut hits: Vec<Hit> = fused.into_values().collect();
    let rank = |hit: &Hit| first.get(&hit.key()).copied().unwrap_or(usize::MAX);
    hits.sort_by(|a, b| {
        let by_score = b.score.total_cmp(&a.score);
        by_score
            .then_with(|| rank(a).cmp(&rank(b)))
            .then_with(|| a.key().cmp(&b.key()))
    });
    hits
}

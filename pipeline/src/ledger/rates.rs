//! Keeps the times of the last run that made pages, for the estimates of the next one.

use std::collections::BTreeMap;

use rusqlite::params;

use super::Progress;
use super::store::Store;
use crate::error::StageError;

/// The work of the last run that made pages.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rates {
    /// Pages that the run made.
    pub(crate) n_pages: u64,
    /// Seconds that it took for them.
    pub(crate) seconds: f64,
    /// The work of each node, by [`Node::key`](crate::graph::Node).
    pub(crate) nodes: BTreeMap<String, NodeRate>,
}

/// The work of one node in that run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct NodeRate {
    pub(crate) n_items: u64,
    /// Busy time, added up over its workers.
    pub(crate) busy_s: f64,
}

impl Rates {
    /// Pages per second; none where no run has made pages.
    pub(crate) fn pages_per_s(&self) -> Option<f64> {
        let is_known = self.n_pages > 0 && self.seconds > 0.0;
        is_known.then(|| self.n_pages as f64 / self.seconds)
    }

    /// Items that the node had for each page, and its busy seconds for each.
    pub(crate) fn per_page(&self, key: &str) -> Option<(f64, f64)> {
        let node = self.nodes.get(key).filter(|_| self.n_pages > 0)?;
        let n_pages = self.n_pages as f64;
        Some((node.n_items as f64 / n_pages, node.busy_s / n_pages))
    }
}

/// The key of the whole run among those of nodes, which are hashes.
const RUN: &str = "run";

impl Store {
    pub(super) fn set_rates(&self, rates: &Rates) -> Result<(), StageError> {
        let run = NodeRate {
            n_items: rates.n_pages,
            busy_s: rates.seconds,
        };
        let nodes = rates.nodes.iter().map(|(key, node)| (key.as_str(), *node));
        self.change(|to| {
            let to = to.transaction();
            to.execute("DELETE FROM rates", [])?;
            let mut insert =
                to.prepare("INSERT INTO rates (key, n_items, seconds) VALUES (?1, ?2, ?3)")?;
            for (key, rate) in nodes.chain([(RUN, run)]) {
                insert.execute(params![key, rate.n_items.cast_signed(), rate.busy_s])?;
            }
            Ok(())
        })
    }

    pub(super) fn rates(&self) -> Result<Rates, StageError> {
        let mut nodes: BTreeMap<String, NodeRate> = self.read(|connection| {
            let mut query = connection.prepare("SELECT key, n_items, seconds FROM rates")?;
            let rows = query.query_map([], |row| {
                let rate = NodeRate {
                    n_items: row.get::<_, i64>(1)?.cast_unsigned(),
                    busy_s: row.get(2)?,
                };
                Ok((row.get(0)?, rate))
            })?;
            rows.collect()
        })?;
        let run = nodes.remove(RUN).unwrap_or_default();
        Ok(Rates {
            n_pages: run.n_items,
            seconds: run.busy_s,
            nodes,
        })
    }
}

impl Progress {
    /// Keeps the rates of this run in the place of earlier ones.
    pub(crate) fn note_rates(&self, rates: &Rates) -> Result<(), StageError> {
        self.ledger()
            .map_or(Ok(()), |ledger| ledger.store.set_rates(rates))
    }

    /// The rates of the last run that made pages.
    pub(crate) fn rates(&self) -> Result<Rates, StageError> {
        self.ledger()
            .map_or(Ok(Rates::default()), |ledger| ledger.store.rates())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_of_the_last_run_take_the_place_of_earlier_ones() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("a.db")).expect("opens");
        assert_eq!(store.rates().expect("read"), Rates::default());
        assert_eq!(Rates::default().pages_per_s(), None);
        for (key, n_items) in [("k1", 30), ("k2", 20)] {
            let node = NodeRate {
                n_items,
                busy_s: 5.0,
            };
            let rates = Rates {
                n_pages: 10,
                seconds: 4.0,
                nodes: BTreeMap::from([(key.to_owned(), node)]),
            };
            store.set_rates(&rates).expect("kept");
            assert_eq!(store.rates().expect("read"), rates);
        }
        let rates = store.rates().expect("read");
        assert_eq!(rates.pages_per_s(), Some(2.5));
        assert_eq!(rates.per_page("k2"), Some((2.0, 0.5)));
        assert_eq!(rates.per_page("k1"), None);
    }
}

//! Presents the result of a dry run, for people and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::survey::Counted;
use crate::ledger::Rates;
use crate::printable::printable_line;

/// What the next run of a pipeline would do; see
/// [`Pipeline::dry_run`](crate::Pipeline::dry_run).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// The pipeline.
    pub pipeline: String,
    /// Documents by what would become of them.
    pub documents: DocumentForecast,
    /// Of the documents that would be made again, how many each sink lacks.
    pub made_again_for: BTreeMap<String, u64>,
    /// Bytes of the documents that would be made, from their source or from stored rows.
    pub bytes: u64,
    /// Pages that would be made from the source. A document without pages counts as
    /// one page.
    pub pages: u64,
    /// Pages that would be read from stored rows.
    pub pages_from_rows: u64,
    /// The stages, in the order of the graph.
    pub nodes: Vec<NodeForecast>,
    /// Pages per second of the last run that made any; none where no run did.
    pub pages_per_s: Option<f64>,
    /// Seconds that the pages from the source would take at that rate. No run tells how
    /// long stored rows take: none where there are only those.
    pub seconds: Option<f64>,
}

/// Documents by what would become of them. Each counts once, but for `from_rows` and
/// `removed`, which count some of them again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DocumentForecast {
    /// The ledger does not know them.
    pub new: u64,
    /// Their content differs from that in the sinks.
    pub changed: u64,
    /// Their content is the same, and a sink lacks them or has rows of other settings.
    pub made_again: u64,
    /// Of those that are made again: rows that a sink has stored take the place of the
    /// results of the first stages, which do nothing for them.
    pub from_rows: u64,
    /// Every sink holds them.
    pub unchanged: u64,
    /// Their source does not have them any more.
    pub gone: u64,
    /// Of those that are gone: their rows would be removed.
    pub removed: u64,
    /// They cannot be read or opened, and would become dead letters.
    pub unreadable: u64,
}

/// The work of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeForecast {
    /// Name in the pipeline.
    pub name: String,
    /// Pages that it would make of documents; none where it makes no pages.
    pub pages: Option<u64>,
    /// Items that it would get, if a page gives as many as in the last run; none
    /// where that had other settings.
    pub items: Option<u64>,
    /// Busy seconds, if a page takes as long as in the last run, divided by its workers.
    pub seconds: Option<f64>,
}

/// A stage, as the ledger knows its rate.
pub(super) struct NodeKey {
    pub(super) name: Arc<str>,
    pub(super) key: Arc<str>,
    pub(super) n_workers: usize,
    /// The names of all nodes before it.
    pub(super) upstream: BTreeSet<Arc<str>>,
}

impl Forecast {
    pub(super) fn new(
        pipeline: String,
        counted: Counted,
        stages: &[NodeKey],
        rates: &Rates,
    ) -> Self {
        let from_rows = counted.pages_from_rows.iter();
        let pages_from_rows = from_rows.clone().map(|(_, n_pages)| n_pages).sum();
        let node = |stage: &NodeKey| {
            let reach_it = from_rows.clone();
            let reach_it = reach_it.filter(|(from, _)| stage.upstream.contains(*from));
            let n_read: u64 = reach_it.map(|(_, n_pages)| n_pages).sum();
            let n_pages = (counted.n_pages + n_read) as f64;
            let rate = rates.per_page(&stage.key);
            NodeForecast {
                name: stage.name.to_string(),
                pages: counted.pages_by_node.get(&stage.name).copied(),
                items: rate.map(|(items, _)| (items * n_pages).round() as u64),
                seconds: rate.map(|(_, busy_s)| busy_s * n_pages / stage.n_workers.max(1) as f64),
            }
        };
        let pages_per_s = rates.pages_per_s();
        Self {
            pipeline,
            documents: counted.documents,
            made_again_for: counted.made_again_for,
            bytes: counted.n_bytes,
            pages: counted.n_pages,
            pages_from_rows,
            nodes: stages.iter().map(node).collect(),
            pages_per_s,
            seconds: pages_per_s
                .filter(|_| counted.n_pages > 0 || pages_from_rows == 0)
                .map(|rate| counted.n_pages as f64 / rate),
        }
    }

    /// The forecast as a table for people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{}: dry run, nothing was changed\n\n",
            printable_line(&self.pipeline)
        );
        for (name, value, note) in self.lines() {
            let line = format!("  {name:<12}{value:>12}  {note}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        if self.pages + self.pages_from_rows > 0 {
            text += &self.stages_to_text();
        }
        text
    }

    fn lines(&self) -> Vec<(&'static str, String, String)> {
        let documents = &self.documents;
        let lacking = self.made_again_for.iter();
        let lacking: Vec<String> = lacking
            .map(|(sink, n)| format!("{n} for `{}`", printable_line(sink)))
            .collect();
        let time = self.seconds.map(duration);
        let mut lines = vec![
            ("new", documents.new.to_string(), String::new()),
            ("changed", documents.changed.to_string(), String::new()),
            (
                "made again",
                documents.made_again.to_string(),
                lacking.join(", "),
            ),
        ];
        if documents.from_rows > 0 {
            let note = "of these, made from stored rows: their files are only compared".to_owned();
            lines.push(("from rows", documents.from_rows.to_string(), note));
        }
        lines.extend([
            ("unchanged", documents.unchanged.to_string(), String::new()),
            ("gone", documents.gone.to_string(), self.fate_of_gone()),
        ]);
        if documents.unreadable > 0 {
            let note = "they become dead letters".to_owned();
            lines.push(("unreadable", documents.unreadable.to_string(), note));
        }
        lines.push(("to read", size(self.bytes), String::new()));
        let read = match self.pages_from_rows {
            0 => String::new(),
            n => format!("and {n} from stored rows"),
        };
        lines.push(("pages", self.pages.to_string(), read));
        lines.push(match (time, self.pages_per_s) {
            (Some(time), Some(rate)) => {
                let rest = match self.pages_from_rows {
                    0 => "",
                    _ => "; stored rows come on top",
                };
                let note = format!("at {rate:.1} pages per second, as in the last run{rest}");
                ("time", time, note)
            }
            (None, Some(_)) => {
                let note = "no run tells how long stored rows take".to_owned();
                ("time", "unknown".into(), note)
            }
            _ => (
                "time",
                "unknown".into(),
                "there is no earlier run to go by".into(),
            ),
        });
        lines
    }

    fn fate_of_gone(&self) -> String {
        let DocumentForecast { gone, removed, .. } = self.documents;
        match (gone, removed) {
            (0, _) => String::new(),
            (gone, removed) if gone == removed => "their rows are removed".into(),
            (_, 0) => "their rows stay; `--prune` removes them".into(),
            (_, removed) => format!("the rows of {removed} are removed"),
        }
    }

    fn stages_to_text(&self) -> String {
        let names = self.nodes.iter().map(|node| node.name.chars().count());
        let width = names.max().unwrap_or(0).max(5);
        let mut text = format!(
            "\n  {:width$}  {:>10}  {:>10}  {:>10}\n",
            "stage", "pages", "items", "work"
        );
        for node in &self.nodes {
            let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let items = node.items.map_or_else(|| "?".into(), |n| format!("~{n}"));
            let work = node.seconds.map_or_else(|| "?".into(), duration);
            let _ = writeln!(
                text,
                "  {:width$}  {:>10}  {items:>10}  {work:>10}",
                printable_line(&node.name),
                number(node.pages),
            );
        }
        let is_unknown = |node: &NodeForecast| node.items.is_none();
        if self.pages_per_s.is_some() && self.nodes.iter().any(is_unknown) {
            text += "\n  stages with `?` had other settings in the last run, or no work\n";
        }
        text
    }
}

fn size(n_bytes: u64) -> String {
    match n_bytes {
        0..1_000 => format!("{n_bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", n_bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n_bytes as f64 / 1e6),
        _ => format!("{:.1} GB", n_bytes as f64 / 1e9),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.0} s"),
        ..3600.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::NodeRate;

    fn stages() -> Vec<NodeKey> {
        let stage = |name: &str, key: &str, n_workers| NodeKey {
            name: name.into(),
            key: key.into(),
            n_workers,
            upstream: BTreeSet::from(["files".into()]),
        };
        vec![stage("render", "k1", 2), stage("vectors", "k2", 1)]
    }

    fn counted() -> Counted {
        Counted {
            documents: DocumentForecast {
                new: 3,
                made_again: 2,
                unchanged: 1_200,
                gone: 4,
                ..DocumentForecast::default()
            },
            made_again_for: BTreeMap::from([("table".to_owned(), 2)]),
            n_bytes: 12_340_000,
            n_pages: 400,
            pages_by_node: BTreeMap::from([("render".into(), 400)]),
            pages_from_rows: BTreeMap::new(),
        }
    }

    fn rates() -> Rates {
        let render = NodeRate {
            n_items: 10,
            busy_s: 20.0,
        };
        Rates {
            n_pages: 100,
            seconds: 50.0,
            nodes: BTreeMap::from([("k1".to_owned(), render)]),
        }
    }

    #[test]
    fn the_last_run_gives_the_time_and_the_items_of_stages_that_are_the_same() {
        let forecast = Forecast::new("p".into(), counted(), &stages(), &rates());
        assert_eq!(
            (forecast.pages_per_s, forecast.seconds),
            (Some(2.0), Some(200.0))
        );
        let [render, vectors] = &forecast.nodes[..] else {
            panic!("{forecast:?}")
        };
        // A fifth of a second for each page, on two threads.
        assert_eq!((render.items, render.seconds), (Some(40), Some(40.0)));
        assert_eq!((render.pages, vectors.pages), (Some(400), None));
        assert_eq!((vectors.items, vectors.seconds), (None, None));
        let expected = "\
p: dry run, nothing was changed

  new                    3
  changed                0
  made again             2  2 for `table`
  unchanged           1200
  gone                   4  their rows stay; `--prune` removes them
  to read          12.3 MB
  pages                400
  time               3 min  at 2.0 pages per second, as in the last run

  stage         pages       items        work
  render          400         ~40        40 s
  vectors           -           ?           ?

  stages with `?` had other settings in the last run, or no work
";
        assert_eq!(forecast.to_text(), expected);
    }

    #[test]
    fn pages_from_stored_rows_are_work_for_the_stages_behind_only() {
        let mut counted = counted();
        counted.documents.from_rows = 2;
        counted.pages_from_rows = BTreeMap::from([("render".into(), 60)]);
        let mut stages = stages();
        stages[1].key = "k1".into();
        stages[1].upstream.insert("render".into());
        let forecast = Forecast::new("p".into(), counted.clone(), &stages, &rates());
        let items: Vec<_> = forecast.nodes.iter().map(|node| node.items).collect();
        assert_eq!(items, [Some(40), Some(46)]);
        assert_eq!(forecast.seconds, Some(200.0));
        let expected = "
  made again             2  2 for `table`
  from rows              2  of these, made from stored rows: their files are only compared
  unchanged           1200
  gone                   4  their rows stay; `--prune` removes them
  to read          12.3 MB
  pages                400  and 60 from stored rows
  time               3 min  at 2.0 pages per second, as in the last run; stored rows come on top
";
        let text = forecast.to_text();
        assert!(text.contains(expected), "{text}");
        counted.n_pages = 0;
        let forecast = Forecast::new("p".into(), counted, &stages, &rates());
        let text = forecast.to_text();
        assert_eq!(forecast.seconds, None);
        assert!(
            text.contains("unknown  no run tells how long stored rows take"),
            "{text}"
        );
    }

    #[test]
    fn without_an_earlier_run_no_time_is_estimated() {
        let forecast = Forecast::new("p".into(), counted(), &stages(), &Rates::default());
        assert_eq!((forecast.pages_per_s, forecast.seconds), (None, None));
        let text = forecast.to_text();
        assert!(
            text.contains("unknown  there is no earlier run to go by"),
            "{text}"
        );
    }

    #[test]
    fn sizes_and_durations_are_given_in_units_that_fit() {
        assert_eq!(
            [999, 1_500, 2_000_000_000].map(size),
            ["999 B", "1.5 kB", "2.0 GB"]
        );
        assert_eq!([0.4, 90.0, 9000.0].map(duration), ["0 s", "2 min", "2.5 h"]);
    }
}

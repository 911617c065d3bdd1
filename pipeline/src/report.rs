//! Reports on a run at its end, and while it goes on.

use std::fmt::Write as _;

use serde::Serialize;

use crate::meter::ModelReport;
use crate::metrics::Role;
use crate::printable::printable_line;

/// How far a run is.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Seconds since the run began.
    pub elapsed_s: f64,
    /// Documents that the sources expect to bring in; 0 while they do not know.
    pub documents_expected: u64,
    /// Documents whose every item is durable or set aside, and at least one is durable.
    pub documents_done: u64,
    /// Documents that needed no work.
    pub documents_skipped: u64,
    /// Documents of which nothing could be stored; each has a dead letter.
    pub documents_set_aside: u64,
    /// Documents whose rows were removed because they are gone.
    pub documents_removed: u64,
    /// Documents that a run which was asked to stop left to the next one.
    pub documents_unfinished: u64,
    /// Pages of these documents that are durable: the next run makes the others.
    pub pages_unfinished: u64,
    /// Documents that were made from rows that are stored, not from their source.
    pub documents_refilled: u64,
    /// Documents that have items in the graph now.
    pub documents_under_way: u64,
    /// Documents whose pages are counted: those that have ended, and those under
    /// way of which a stage has announced the pages.
    pub documents_counted: u64,
    /// Documents under way, each as the share of its pages that are done.
    pub documents_in_part: f64,
    /// Pages of these documents. One without pages counts as one page.
    pub pages_expected: u64,
    /// Pages of which no item moves any more: each is in its sink, dropped or
    /// set aside.
    pub pages_done: u64,
    /// Pages done per second, since every stage was ready.
    pub pages_per_s: f64,
    /// Pages that an earlier run had stored of documents that it did not finish.
    pub pages_resumed: u64,
    /// Items that reached a sink, durable or not, counted in every sink.
    pub items_received: u64,
    /// Items that are durable, counted in every sink.
    pub items_stored: u64,
    /// Items set aside.
    pub dead_letters: u64,
    /// Items set aside by earlier runs, of documents that were passed over now.
    pub dead_letters_before: u64,
    /// The nodes in the order of the file.
    pub nodes: Vec<NodeReport>,
    /// The models that are loaded and tell what they do, by name.
    pub models: Vec<ModelReport>,
}

impl Snapshot {
    /// Documents that need no more work.
    pub fn documents_settled(&self) -> u64 {
        self.documents_done + self.documents_set_aside + self.documents_skipped
    }

    /// Documents of which nobody knows yet how many pages they have.
    fn documents_uncounted(&self) -> u64 {
        self.documents_expected
            .saturating_sub(self.documents_skipped + self.documents_counted)
    }

    /// Pages of all documents that need work: counted, and estimated for those
    /// that wait from those that are known. `None` while none is known.
    pub fn pages_estimated(&self) -> Option<f64> {
        if self.documents_counted == 0 {
            return None;
        }
        let mean = self.pages_expected as f64 / self.documents_counted as f64;
        Some(self.pages_expected as f64 + mean * self.documents_uncounted() as f64)
    }

    /// Whether [`Snapshot::pages_estimated`] is the exact number.
    pub fn knows_all_pages(&self) -> bool {
        self.documents_expected > 0 && self.documents_uncounted() == 0
    }

    /// Seconds until all expected documents are done, at the pace so far. `None`
    /// while that is unknown, and when nothing is left.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.pages_estimated()? - self.pages_done as f64;
        let is_known = self.documents_expected > 0 && self.pages_per_s > 0.0;
        (is_known && left > 0.0).then(|| left / self.pages_per_s)
    }
}

/// What one node did.
#[derive(Debug, Clone, Serialize)]
pub struct NodeReport {
    /// Name in the pipeline.
    pub name: String,
    /// Source, stage or sink.
    pub role: Role,
    /// Threads (of a stage).
    pub workers: usize,
    /// Items that it took in (for a source: sent out).
    pub items: u64,
    /// Items that it sent on.
    pub items_out: u64,
    /// Items that no node took, as `else = "drop"` says.
    pub items_dropped: u64,
    /// Batches that it handled.
    pub batches: u64,
    /// Times that it tried something again.
    pub retries: u64,
    /// Items that it set aside.
    pub dead_letters: u64,
    /// Seconds of work, added up over its workers.
    pub busy_s: f64,
    /// Seconds in which its input was empty.
    pub starved_s: f64,
    /// Seconds in which its output was full.
    pub blocked_s: f64,
    /// Items that wait for it now.
    pub queue_items: usize,
    /// Bytes that they hold.
    pub queue_bytes: usize,
    /// The most items that it held at one time while they waited for others of
    /// their key, page or document: a join, or a stage that makes one item of many.
    pub most_held_items: usize,
    /// Batches by size: of 1 item, up to 2, up to 4, and so on; the last bucket has no end.
    pub batch_sizes: Vec<u64>,
    /// Tokens of its items, where batches are formed by tokens.
    pub tokens: u64,
    /// The same after padding each batch to its longest item.
    pub padded_tokens: u64,
    /// Commits of a sink by time: up to 1 ms, up to 2 ms, up to 4 ms, and so on.
    pub commit_times_ms: Vec<u64>,
    /// Seconds that all commits took together.
    pub commit_s: f64,
}

impl NodeReport {
    /// Share of the run in which a worker was busy on average, 0 to 1.
    fn busy_share(&self, elapsed_s: f64) -> f64 {
        share(self.busy_s, self.workers, elapsed_s)
    }
}

fn share(seconds: f64, workers: usize, elapsed_s: f64) -> f64 {
    let available = elapsed_s * workers.max(1) as f64;
    if available > 0.0 {
        (seconds / available).min(1.0)
    } else {
        0.0
    }
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// The sources had no more.
    Finished,
    /// It was asked to stop, and finished what was under way or left it to the next run.
    Drained,
    /// It was stopped at once.
    Cancelled,
}

/// The end-of-run report; `--json` prints it as it is.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The pipeline.
    pub pipeline: String,
    /// How the run came to its end.
    pub stopped: StopReason,
    /// Counts and nodes.
    #[serde(flatten)]
    pub totals: Snapshot,
    /// The node that limited the run.
    pub bottleneck: Option<String>,
    /// What the measurements say, and what to change.
    pub advice: String,
}

/// Below this share of busy time nothing but the machine's idleness was the limit.
const BUSY: f64 = 0.5;

/// Above this share a model can do no more.
const BUSY_MODEL: f64 = 0.9;

impl Report {
    pub(crate) fn new(pipeline: String, stopped: StopReason, totals: Snapshot) -> Self {
        let (bottleneck, advice) = advise(&totals);
        Self {
            pipeline,
            stopped,
            totals,
            bottleneck,
            advice,
        }
    }

    /// The report as a table for people.
    pub fn to_text(&self) -> String {
        let totals = &self.totals;
        let ending = match self.stopped {
            StopReason::Finished => "",
            StopReason::Drained if totals.documents_unfinished > 0 => {
                " (stopped early, everything that was made is kept)"
            }
            StopReason::Drained => " (stopped early, everything under way was stored)",
            StopReason::Cancelled => " (cancelled)",
        };
        let mut text = format!(
            "{}: {} documents done, {} items stored, {} dead letters in {}{ending}\n",
            self.pipeline,
            totals.documents_done,
            totals.items_stored,
            totals.dead_letters,
            seconds(totals.elapsed_s),
        );
        let also = [
            (
                totals.documents_skipped,
                "documents unchanged since an earlier run",
            ),
            (totals.documents_removed, "documents removed"),
            (
                totals.documents_refilled,
                "documents made from stored rows, not from their source",
            ),
            (
                totals.pages_resumed,
                "pages stored by an earlier run that was stopped",
            ),
            (
                totals.dead_letters_before,
                "dead letters of earlier runs, still there",
            ),
        ];
        for (n, what) in also.iter().filter(|(n, _)| *n > 0) {
            let _ = writeln!(text, "  {n} {what}");
        }
        if totals.documents_unfinished > 0 {
            let _ = writeln!(
                text,
                "  {} documents unfinished, {} pages of them stored: the next run makes the others",
                totals.documents_unfinished, totals.pages_unfinished
            );
        }
        let width = totals
            .nodes
            .iter()
            .map(|node| node.name.len())
            .max()
            .unwrap_or(0)
            .max(4);
        let _ = writeln!(
            text,
            "\n  {:width$}  {:>8}  {:>8}  {:>7}  {:>6}  {:>7}  {:>7}",
            "node", "items", "per s", "workers", "busy", "starved", "blocked"
        );
        for node in &totals.nodes {
            let percent = |seconds| {
                format!(
                    "{:.0} %",
                    100.0 * share(seconds, node.workers, totals.elapsed_s)
                )
            };
            let _ = writeln!(
                text,
                "  {:width$}  {:>8}  {:>8.1}  {:>7}  {:>6}  {:>7}  {:>7}",
                node.name,
                node.items,
                node.items as f64 / totals.elapsed_s.max(1e-9),
                node.workers,
                percent(node.busy_s),
                percent(node.starved_s),
                percent(node.blocked_s),
            );
        }
        text.push('\n');
        for model in totals.models.iter().filter(|model| model.busy_s > 0.0) {
            let _ = writeln!(
                text,
                "  model `{}`: busy {:.0} % since it was there ({:.0} MB, loaded in {:.1} s); {} \
                 tokens, {:.0} a second",
                printable_line(&model.name),
                100.0 * model.busy_share(),
                model.memory_bytes as f64 / 1e6,
                model.load_s,
                model.tokens,
                model.tokens as f64 / model.there_s.max(1e-9),
            );
        }
        let _ = writeln!(text, "  {}", self.advice);
        text
    }
}

/// Names the bottleneck and says what to change.
fn advise(totals: &Snapshot) -> (Option<String>, String) {
    let elapsed_s = totals.elapsed_s;
    let busy = |node: &NodeReport| node.busy_share(elapsed_s);
    let counted = totals.nodes.iter().filter(|node| node.items > 0);
    let Some(limit) = counted.max_by(|a, b| busy(a).total_cmp(&busy(b))) else {
        if totals.documents_skipped + totals.documents_removed > 0 {
            return (
                None,
                "nothing was new: all that came in is stored already".to_owned(),
            );
        }
        if totals.dead_letters > 0 {
            let advice = "nothing could be read: the dead letters name the reasons";
            return (None, advice.to_owned());
        }
        return (
            None,
            "nothing came in: is the source's `path` right?".to_owned(),
        );
    };
    let (name, percent) = (&limit.name, 100.0 * busy(limit));
    let busy_model = totals
        .models
        .iter()
        .find(|model| model.busy_share() > BUSY_MODEL);
    let advice = match (limit.role, busy_model) {
        _ if busy(limit) < BUSY => format!(
            "no node was busy more than {percent:.0} % of the time (`{name}` the most): the run was \
             too short to have a bottleneck, or starting up took most of it"
        ),
        (Role::Source, _) => format!(
            "`{name}` was busy {percent:.0} % of the time: reading the documents is the limit; a \
             faster disk or network is what would help"
        ),
        (Role::Stage, Some(model)) => format!(
            "`{name}` was busy {percent:.0} % of the time: it is the limit, and the model `{}` was \
             too: a faster device, fewer bits (`quantize`) or shorter answers are what would help",
            model.name
        ),
        (Role::Stage, None) => format!(
            "`{name}` was busy {percent:.0} % of the time: it is the limit; give it more `workers` \
             if cores are idle, or a faster device"
        ),
        (Role::Sink, _) => format!(
            "`{name}` was busy {percent:.0} % of the time: storing is the limit; write larger \
             batches (`batch.max_items`) or to a faster disk"
        ),
    };
    (Some(name.clone()), advice)
}

fn seconds(elapsed_s: f64) -> String {
    if elapsed_s < 60.0 {
        format!("{elapsed_s:.1} s")
    } else {
        format!(
            "{} min {:.0} s",
            (elapsed_s / 60.0).floor(),
            elapsed_s % 60.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role, busy_s: f64) -> NodeReport {
        NodeReport {
            name: name.into(),
            role,
            workers: 2,
            items: 10,
            items_out: 10,
            batches: 10,
            dead_letters: 0,
            busy_s,
            starved_s: 1.0,
            blocked_s: 0.0,
            items_dropped: 0,
            retries: 0,
            queue_items: 0,
            queue_bytes: 0,
            most_held_items: 0,
            batch_sizes: Vec::new(),
            tokens: 0,
            padded_tokens: 0,
            commit_times_ms: Vec::new(),
            commit_s: 0.0,
        }
    }

    fn report(nodes: Vec<NodeReport>) -> Report {
        let totals = Snapshot {
            elapsed_s: 10.0,
            documents_expected: 5,
            documents_done: 5,
            documents_skipped: 0,
            documents_set_aside: 0,
            documents_removed: 0,
            documents_unfinished: 0,
            pages_unfinished: 0,
            documents_refilled: 0,
            documents_under_way: 0,
            documents_counted: 5,
            documents_in_part: 0.0,
            pages_expected: 10,
            pages_done: 10,
            pages_per_s: 1.0,
            pages_resumed: 0,
            items_received: 10,
            items_stored: 10,
            dead_letters: 0,
            dead_letters_before: 0,
            nodes,
            models: Vec::new(),
        };
        Report::new("pages".into(), StopReason::Finished, totals)
    }

    /// A run of 12 documents of which `counted` are known to have `pages` pages together.
    fn under_way(counted: u64, pages: u64, done: u64, per_s: f64) -> Snapshot {
        Snapshot {
            documents_expected: 12,
            documents_done: 0,
            documents_skipped: 2,
            documents_counted: counted,
            pages_expected: pages,
            pages_done: done,
            pages_per_s: per_s,
            ..report(Vec::new()).totals
        }
    }

    #[test]
    fn one_long_document_has_a_time_left_from_its_first_page_on() {
        let mut now = under_way(1, 3000, 0, 0.0);
        (now.documents_expected, now.documents_skipped) = (1, 0);
        assert_eq!(now.seconds_left(), None);
        (now.pages_done, now.pages_per_s) = (1, 0.5);
        assert_eq!(now.seconds_left(), Some(5998.0));
        assert!(now.knows_all_pages());
    }

    #[test]
    fn documents_that_wait_count_as_the_mean_of_those_that_are_known() {
        // 4 documents have 100 pages, 6 more wait, 2 were skipped.
        let now = under_way(4, 100, 30, 2.0);
        assert_eq!(now.pages_estimated(), Some(250.0));
        assert_eq!(now.seconds_left(), Some(110.0));
        assert!(!now.knows_all_pages());
        assert!(under_way(10, 100, 30, 2.0).knows_all_pages());
    }

    #[test]
    fn no_time_is_left_when_all_is_done_or_nothing_is_known() {
        assert_eq!(under_way(10, 100, 100, 2.0).seconds_left(), None);
        assert_eq!(under_way(0, 0, 0, 0.0).seconds_left(), None);
        let mut endless = under_way(4, 100, 30, 2.0);
        endless.documents_expected = 0;
        assert_eq!(endless.seconds_left(), None);
    }

    #[test]
    fn the_bottleneck_is_the_node_whose_workers_were_busy_most() {
        let report = report(vec![
            node("files", Role::Source, 1.0),
            node("vectors", Role::Stage, 19.4),
            node("table", Role::Sink, 9.0),
        ]);
        assert_eq!(report.bottleneck.as_deref(), Some("vectors"));
        assert!(
            report
                .advice
                .starts_with("`vectors` was busy 97 % of the time"),
            "{}",
            report.advice
        );
    }

    #[test]
    fn a_short_run_blames_nobody_and_an_empty_one_asks_for_the_path() {
        let short = report(vec![node("vectors", Role::Stage, 2.0)]);
        assert!(short.advice.contains("too short"), "{}", short.advice);
        let mut empty = report(vec![]);
        assert_eq!(empty.bottleneck, None);
        assert!(empty.advice.contains("`path`"));
        empty.totals.dead_letters = 3;
        let (_, advice) = advise(&empty.totals);
        assert!(advice.starts_with("nothing could be read"), "{advice}");
    }

    #[test]
    fn json_has_the_fixed_names() {
        let json = serde_json::to_value(report(vec![node("vectors", Role::Stage, 19.4)]))
            .expect("plain values");
        for name in [
            "documents_done",
            "documents_skipped",
            "items_stored",
            "dead_letters",
            "elapsed_s",
            "bottleneck",
        ] {
            assert!(json.get(name).is_some(), "{name} is missing");
        }
        for name in ["name", "items", "busy_s", "starved_s", "blocked_s"] {
            assert!(json["nodes"][0].get(name).is_some(), "{name} is missing");
        }
    }

    #[test]
    fn documents_that_are_left_to_the_next_run_are_counted_with_their_pages() {
        let mut drained = report(Vec::new());
        drained.stopped = StopReason::Drained;
        assert!(
            drained
                .to_text()
                .contains("everything under way was stored")
        );
        drained.totals.documents_unfinished = 2;
        drained.totals.pages_unfinished = 1204;
        let text = drained.to_text();
        let line =
            "  2 documents unfinished, 1204 pages of them stored: the next run makes the others\n";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("under way was stored"), "{text}");
    }

    #[test]
    fn a_model_that_can_do_no_more_is_named() {
        let mut totals = report(vec![
            node("files", Role::Source, 1.0),
            node("markdown", Role::Stage, 19.8),
        ])
        .totals;
        totals.models = vec![ModelReport {
            name: "small-vl".into(),
            memory_bytes: 885_000_000,
            load_s: 2.8,
            there_s: 8.0,
            busy_s: 7.9,
            tokens: 800,
        }];
        let report = Report::new("pages".into(), StopReason::Finished, totals);
        let text = report.to_text();
        let line = "  model `small-vl`: busy 99 % since it was there (885 MB, loaded in 2.8 s); 800 \
                    tokens, 100 a second\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("and the model `small-vl` was too"), "{text}");
    }
}

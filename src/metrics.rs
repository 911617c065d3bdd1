//! `--metrics`: the runs of this process as Prometheus reads them.

use std::convert::Infallible;
use std::fmt;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pagemill::pipeline::{ModelReport, NodeReport, Role, Snapshot};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

use crate::run::{Board, Seen};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers `/metrics` and `/healthz` until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, board: Board) -> Infallible {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(async || "ok\n"))
        .with_state(board);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(%error, "metrics are no longer served");
    }
    std::future::pending().await
}

async fn scrape(State(board): State<Board>) -> Response {
    match encode(board.see()) {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        // Writing to a string does not fail.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn encode(runs: Vec<Seen>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pagemill");
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program that runs", version);
    registry.register_collector(Box::new(Runs(runs)));
    let mut written = String::new();
    text::encode(&mut written, &registry)?;
    Ok(written)
}

/// A family of metrics: its name without prefix and unit, its unit, what it
/// tells, and where the number comes from.
struct Family<S, N> {
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    of: fn(&S) -> N,
}

fn family<S, N>(name: &'static str, help: &'static str, of: fn(&S) -> N) -> Family<S, N> {
    Family {
        name,
        unit: None,
        help,
        of,
    }
}

impl<S, N> Family<S, N> {
    fn in_unit(self, unit: Unit) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }
}

/// Where a count comes from.
type Count<S> = fn(&S) -> u64;

/// Documents by what became of them: one family, told apart by a label.
const OUTCOMES: [(&str, Count<Snapshot>); 4] = [
    ("done", |now| now.documents_done),
    ("skipped", |now| now.documents_skipped),
    ("set_aside", |now| now.documents_set_aside),
    ("removed", |now| now.documents_removed),
];

fn counters_of_runs() -> [Family<Snapshot, u64>; 5] {
    [
        family(
            "items_received",
            "Items that reached a sink, durable or not, counted in every sink",
            |now: &Snapshot| now.items_received,
        ),
        family(
            "pages_done",
            "Pages of which no item moves any more; a document without pages counts as one",
            |now: &Snapshot| now.pages_done,
        ),
        family(
            "items_stored",
            "Items that a sink has made durable, counted in every sink",
            |now: &Snapshot| now.items_stored,
        ),
        family("dead_letters", "Items set aside", |now: &Snapshot| {
            now.dead_letters
        }),
        family(
            "pages_resumed",
            "Pages that an earlier run had stored of documents that it did not finish",
            |now: &Snapshot| now.pages_resumed,
        ),
    ]
}

fn gauges_of_runs() -> [Family<Seen, u64>; 5] {
    [
        family(
            "run_active",
            "1 while the pipeline runs, 0 when it has ended",
            |seen: &Seen| u64::from(seen.is_running),
        ),
        family(
            "documents_expected",
            "Documents that the sources expect to bring in; 0 while they do not know",
            |seen: &Seen| seen.now.documents_expected,
        ),
        family(
            "pages_expected",
            "Pages of the documents that have ended, and of those under way whose pages are known",
            |seen: &Seen| seen.now.pages_expected,
        ),
        family(
            "documents_under_way",
            "Documents that have items in the graph",
            |seen: &Seen| seen.now.documents_under_way,
        ),
        family(
            "dead_letters_before",
            "Items set aside by earlier runs, of documents that were passed over",
            |seen: &Seen| seen.now.dead_letters_before,
        ),
    ]
}

fn counts_of_nodes() -> [Family<NodeReport, u64>; 8] {
    [
        family(
            "node_items_in",
            "Items that the node took in",
            |node: &NodeReport| match node.role {
                Role::Source => 0,
                Role::Stage | Role::Sink => node.items,
            },
        ),
        family(
            "node_items_out",
            "Items that the node sent on",
            |node: &NodeReport| node.items_out,
        ),
        family(
            "node_items_dropped",
            "Items of the node that no other node took",
            |node: &NodeReport| node.items_dropped,
        ),
        family(
            "node_batches",
            "Batches that the node handled",
            |node: &NodeReport| node.batches,
        ),
        family(
            "node_retries",
            "Times that the node tried something again",
            |node: &NodeReport| node.retries,
        ),
        family(
            "node_dead_letters",
            "Items that the node set aside",
            |node: &NodeReport| node.dead_letters,
        ),
        family(
            "node_tokens",
            "Tokens of the node's items, where batches are formed by tokens",
            |node: &NodeReport| node.tokens,
        ),
        family(
            "node_padded_tokens",
            "The same after padding each batch to its longest item",
            |node: &NodeReport| node.padded_tokens,
        ),
    ]
}

fn seconds_of_nodes() -> [Family<NodeReport, f64>; 3] {
    let families: [Family<NodeReport, f64>; 3] = [
        family(
            "node_busy",
            "Time of work, added up over the node's workers",
            |node: &NodeReport| node.busy_s,
        ),
        family(
            "node_starved",
            "Time in which the node's input was empty, added up over its workers",
            |node: &NodeReport| node.starved_s,
        ),
        family(
            "node_blocked",
            "Time in which the node's output was full, added up over its workers",
            |node: &NodeReport| node.blocked_s,
        ),
    ];
    families.map(|family| family.in_unit(Unit::Seconds))
}

fn gauges_of_nodes() -> [Family<NodeReport, u64>; 3] {
    [
        family(
            "node_workers",
            "Threads that work on the node",
            |node: &NodeReport| node.workers as u64,
        ),
        family(
            "node_queue_items",
            "Items that wait in front of the node",
            |node: &NodeReport| node.queue_items as u64,
        ),
        family(
            "node_queue",
            "Memory that the items in front of the node hold",
            |node: &NodeReport| node.queue_bytes as u64,
        )
        .in_unit(Unit::Bytes),
    ]
}

fn counts_of_models() -> [Family<ModelReport, f64>; 2] {
    [
        family(
            "model_busy",
            "Time in which the model's device worked for it",
            |model: &ModelReport| model.busy_s,
        )
        .in_unit(Unit::Seconds),
        family(
            "model_tokens",
            "Tokens that the model wrote",
            |model: &ModelReport| model.tokens as f64,
        ),
    ]
}

fn gauges_of_models() -> [Family<ModelReport, f64>; 2] {
    [
        family(
            "model_load",
            "Time that loading the model took",
            |model: &ModelReport| model.load_s,
        )
        .in_unit(Unit::Seconds),
        family(
            "model_memory",
            "Memory of the model's weights",
            |model: &ModelReport| model.memory_bytes as f64,
        )
        .in_unit(Unit::Bytes),
    ]
}

/// A histogram of a node: its sum, and its buckets by upper bound.
struct Histogram {
    sum: f64,
    buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// `counts` are of 1, up to 2, up to 4 and so on; the last has no end.
    fn doubling(sum: f64, counts: &[u64], unit: f64) -> Option<Self> {
        let last = counts.len().checked_sub(1)?;
        let buckets = counts.iter().enumerate().map(|(number, count)| {
            let bound = if number == last {
                f64::INFINITY
            } else {
                unit * 2_f64.powi(number as i32)
            };
            (bound, *count)
        });
        Some(Self {
            sum,
            buckets: buckets.collect(),
        })
    }

    fn of_batches(node: &NodeReport) -> Option<Self> {
        if node.role == Role::Source {
            return None;
        }
        Self::doubling(node.items as f64, &node.batch_sizes, 1.0)
    }

    fn of_commits(node: &NodeReport) -> Option<Self> {
        if node.role != Role::Sink {
            return None;
        }
        Self::doubling(node.commit_s, &node.commit_times_ms, 0.001)
    }
}

/// Everything that is scraped at one time.
#[derive(Debug)]
struct Runs(Vec<Seen>);

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Writes each family for every row, with the row's labels.
fn encode_counters<'a, S: 'a, N: EncodeCounterValue, const L: usize, R>(
    encoder: &mut DescriptorEncoder<'_>,
    families: impl IntoIterator<Item = Family<S, N>>,
    rows: impl Fn() -> R,
) -> fmt::Result
where
    R: Iterator<Item = (Labels<'a, L>, &'a S)>,
{
    for family in families {
        let (unit, kind) = (family.unit.as_ref(), MetricType::Counter);
        let mut metrics = encoder.encode_descriptor(family.name, family.help, unit, kind)?;
        for (labels, row) in rows() {
            let mut metric = metrics.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&(family.of)(row), None)?;
        }
    }
    Ok(())
}

/// As [`encode_counters`], of what may fall.
fn encode_gauges<'a, S: 'a, N: EncodeGaugeValue, const L: usize, R>(
    encoder: &mut DescriptorEncoder<'_>,
    families: impl IntoIterator<Item = Family<S, N>>,
    rows: impl Fn() -> R,
) -> fmt::Result
where
    R: Iterator<Item = (Labels<'a, L>, &'a S)>,
{
    for family in families {
        let (unit, kind) = (family.unit.as_ref(), MetricType::Gauge);
        let mut metrics = encoder.encode_descriptor(family.name, family.help, unit, kind)?;
        for (labels, row) in rows() {
            let mut metric = metrics.encode_family(&labels)?;
            metric.encode_gauge(&(family.of)(row))?;
        }
    }
    Ok(())
}

impl Runs {
    fn nodes(&self) -> impl Iterator<Item = (Labels<'_, 3>, &NodeReport)> {
        self.0.iter().flat_map(|seen| {
            let nodes = seen.now.nodes.iter();
            nodes.map(|node| {
                let labels = [
                    ("pipeline", seen.pipeline.as_str()),
                    ("node", node.name.as_str()),
                    ("role", node.role.table()),
                ];
                (labels, node)
            })
        })
    }

    fn encode_runs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Documents by what became of them";
        let mut metrics =
            encoder.encode_descriptor("documents", help, None, MetricType::Counter)?;
        for seen in &self.0 {
            for (outcome, of) in OUTCOMES {
                let labels = [("pipeline", seen.pipeline.as_str()), ("outcome", outcome)];
                let mut metric = metrics.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, u64>(&of(&seen.now), None)?;
            }
        }
        let runs = || {
            let seen = self.0.iter();
            seen.map(|seen| ([("pipeline", seen.pipeline.as_str())], seen))
        };
        let totals = || runs().map(|(labels, seen)| (labels, &seen.now));
        encode_counters(encoder, counters_of_runs(), totals)?;
        encode_gauges(encoder, gauges_of_runs(), runs)?;
        let (help, unit) = ("Time since the run began", Unit::Seconds);
        let kind = MetricType::Gauge;
        let mut metrics = encoder.encode_descriptor("run_elapsed", help, Some(&unit), kind)?;
        for seen in &self.0 {
            let labels = [("pipeline", seen.pipeline.as_str())];
            metrics
                .encode_family(&labels)?
                .encode_gauge(&seen.now.elapsed_s)?;
        }
        Ok(())
    }

    fn encode_nodes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        encode_counters(encoder, counts_of_nodes(), || self.nodes())?;
        encode_counters(encoder, seconds_of_nodes(), || self.nodes())?;
        encode_gauges(encoder, gauges_of_nodes(), || self.nodes())
    }

    fn encode_models(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let models = || {
            self.0.iter().flat_map(|seen| {
                let labels = |model| [("pipeline", seen.pipeline.as_str()), ("model", model)];
                let models = seen.now.models.iter();
                models.map(move |model| (labels(&model.name), model))
            })
        };
        encode_counters(encoder, counts_of_models(), models)?;
        encode_gauges(encoder, gauges_of_models(), models)
    }

    fn encode_histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let families = [
            family(
                "node_batch_items",
                "Sizes of the batches",
                Histogram::of_batches,
            ),
            family(
                "node_commit",
                "Times that the sink's commits took",
                Histogram::of_commits,
            )
            .in_unit(Unit::Seconds),
        ];
        for family in families {
            let (unit, kind) = (family.unit.as_ref(), MetricType::Histogram);
            let mut metrics = encoder.encode_descriptor(family.name, family.help, unit, kind)?;
            for (labels, node) in self.nodes() {
                let Some(Histogram { sum, buckets }) = (family.of)(node) else {
                    continue;
                };
                let count = buckets.iter().map(|(_, count)| count).sum();
                let mut metric = metrics.encode_family(&labels)?;
                metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

impl Collector for Runs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_runs(&mut encoder)?;
        self.encode_nodes(&mut encoder)?;
        self.encode_models(&mut encoder)?;
        self.encode_histograms(&mut encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role) -> NodeReport {
        NodeReport {
            name: name.into(),
            role,
            workers: 2,
            items: 10,
            items_out: 7,
            items_dropped: 1,
            batches: 4,
            retries: 0,
            dead_letters: 2,
            busy_s: 1.5,
            starved_s: 0.25,
            blocked_s: 0.0,
            queue_items: 3,
            queue_bytes: 4096,
            most_held_items: 0,
            batch_sizes: vec![1, 0, 3],
            tokens: 100,
            padded_tokens: 120,
            commit_times_ms: vec![0, 2, 1],
            commit_s: 0.125,
        }
    }

    fn scraped() -> String {
        let now = Snapshot {
            elapsed_s: 10.0,
            documents_expected: 6,
            documents_done: 4,
            documents_skipped: 1,
            documents_set_aside: 1,
            documents_removed: 0,
            documents_unfinished: 0,
            pages_unfinished: 0,
            documents_refilled: 0,
            documents_under_way: 0,
            documents_counted: 5,
            documents_in_part: 0.0,
            pages_expected: 9,
            pages_done: 8,
            pages_per_s: 0.8,
            pages_resumed: 0,
            items_received: 8,
            items_stored: 7,
            dead_letters: 2,
            dead_letters_before: 0,
            nodes: vec![
                node("files", Role::Source),
                node("render", Role::Stage),
                node("table", Role::Sink),
            ],
            models: vec![ModelReport {
                name: "small-vl".into(),
                memory_bytes: 885,
                load_s: 2.5,
                there_s: 8.0,
                busy_s: 7.5,
                tokens: 800,
            }],
        };
        encode(vec![Seen {
            pipeline: "pages".into(),
            is_continuous: true,
            is_running: true,
            now,
        }])
        .expect("written")
    }

    #[test]
    fn names_units_and_labels_are_those_that_prometheus_expects() {
        let text = scraped();
        for line in [
            "# HELP pagemill_node_busy_seconds Time of work, added up over the node's workers",
            "# TYPE pagemill_node_busy_seconds counter",
            "pagemill_node_busy_seconds_total{pipeline=\"pages\",node=\"render\",role=\"stage\"} 1.5",
            "pagemill_node_queue_bytes{pipeline=\"pages\",node=\"table\",role=\"sink\"} 4096",
            "pagemill_documents_total{pipeline=\"pages\",outcome=\"set_aside\"} 1",
            "pagemill_items_stored_total{pipeline=\"pages\"} 7",
            "pagemill_items_received_total{pipeline=\"pages\"} 8",
            "pagemill_pages_done_total{pipeline=\"pages\"} 8",
            "pagemill_pages_expected{pipeline=\"pages\"} 9",
            "pagemill_model_busy_seconds_total{pipeline=\"pages\",model=\"small-vl\"} 7.5",
            "pagemill_model_memory_bytes{pipeline=\"pages\",model=\"small-vl\"} 885.0",
            "# TYPE pagemill_build info",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn buckets_add_up_and_only_sinks_commit() {
        let text = scraped();
        let of_table = "{le=\"0.002\",pipeline=\"pages\",node=\"table\",role=\"sink\"} 2";
        let line = format!("pagemill_node_commit_seconds_bucket{of_table}\n");
        assert!(text.contains(&line), "{text}");
        let of_render = "{le=\"+Inf\",pipeline=\"pages\",node=\"render\",role=\"stage\"} 4";
        let line = format!("pagemill_node_batch_items_bucket{of_render}\n");
        assert!(text.contains(&line), "{text}");
        let commits = text
            .lines()
            .filter(|line| line.contains("commit_seconds_count"));
        assert_eq!(commits.count(), 1);
        assert!(!text.contains("batch_items_count{pipeline=\"pages\",node=\"files\""));
    }
}

//! Finds pipelines that store the same documents in one place.

use super::Diagnostic;
use crate::graph::{Graph, GraphNode};
use crate::metrics::Role;

/// A warning at each sink that stores, in the same place, documents that a sink of
/// an earlier pipeline of the file stores too.
pub(super) fn find(graphs: &[Graph]) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for (number, graph) in graphs.iter().enumerate() {
        for sink in sinks(graph) {
            let Some(place) = sink.sink_place(graph.name()) else {
                continue;
            };
            for earlier in &graphs[..number] {
                let stores_there = |other: &GraphNode| {
                    let other = other.sink_place(earlier.name());
                    other.is_some_and(|other| other.identity == place.identity)
                };
                if !sinks(earlier).any(stores_there) {
                    continue;
                }
                let Some(documents) = shared_documents(earlier, graph) else {
                    continue;
                };
                let (this, other) = (graph.name(), earlier.name());
                let message = format!(
                    "the pipelines `{other}` and `{this}` both store documents of `{documents}` \
                     in `{}`",
                    place.identity
                );
                let hint = format!(
                    "each keeps rows of its own, so a search finds such a document twice: give \
                     one of them another `{}`, or another folder",
                    place.setting
                );
                let span = sink.place_of(place.setting);
                warnings.push(Diagnostic::new(span, message).hint(hint));
            }
        }
    }
    warnings
}

fn sinks(graph: &Graph) -> impl Iterator<Item = &GraphNode> {
    graph
        .nodes()
        .iter()
        .filter(|node| node.role() == Role::Sink)
}

/// Where documents come from that both pipelines may bring.
fn shared_documents(a: &Graph, b: &Graph) -> Option<String> {
    let places = |graph: &Graph| -> Vec<String> {
        let nodes = graph.nodes().iter();
        nodes.filter_map(GraphNode::source_place).collect()
    };
    let (of_a, of_b) = (places(a), places(b));
    let pairs = of_a.iter().flat_map(|a| of_b.iter().map(move |b| (a, b)));
    let mut shared = pairs.filter_map(|(a, b)| {
        if is_below(a, b) {
            Some(a.clone())
        } else {
            is_below(b, a).then(|| b.clone())
        }
    });
    shared.next()
}

/// Whether `inner` is `outer` or lies below it.
fn is_below(inner: &str, outer: &str) -> bool {
    let rest = inner.strip_prefix(outer.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_holds_itself_and_what_is_below_it() {
        assert!(is_below("/a/b", "/a") && is_below("/a", "/a/") && is_below("/a", "/"));
        assert!(!is_below("/ab", "/a") && !is_below("/a", "/a/b"));
    }
}

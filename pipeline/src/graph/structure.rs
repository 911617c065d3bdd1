//! Hashes each node with all that leads to it, as a Merkle tree: two nodes with
//! one hash make the same items of the same documents.
//!
//! Only what changes items counts: kinds, the settings that rows depend on, the
//! revisions of models, routes and joins. Names, sources, workers, batches and
//! limits do not.

use super::{Graph, GraphNode};
use crate::edge::Route;
use crate::metrics::Role;
use crate::resources::Resources;

/// Hash of parts, told apart by their lengths: 16 hexadecimal digits.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The hash of each node, in the order of the graph.
pub(super) fn hashes(graph: &Graph, resources: &Resources) -> Vec<String> {
    let mut hashes: Vec<String> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let inputs = inputs(graph, node, &hashes);
        let (kind, revision) = match node.role {
            // Documents are told apart by their bytes, whatever brought them.
            Role::Source => ("source", String::new()),
            Role::Stage => (node.kind.as_str(), node.settings.revision(resources)),
            Role::Sink => ("sink", String::new()),
        };
        let parts = [kind, node.row_settings.as_str(), revision.as_str()];
        let parts = parts.into_iter().chain(inputs.iter().map(String::as_str));
        hashes.push(hash(parts));
    }
    hashes
}

/// What reaches a node: each input's hash, and which of its items.
fn inputs(graph: &Graph, node: &GraphNode, hashes: &[String]) -> Vec<String> {
    let inputs = node.inputs.iter().zip(&node.routes);
    let mut inputs: Vec<String> = inputs
        .map(|(input, route)| {
            let way = match route {
                Route::Always => "all".to_owned(),
                Route::When(_) => format!("when {}", node.when.as_deref().unwrap_or_default()),
                Route::Otherwise => format!("else {}", hash(others(graph, *input))),
            };
            format!("{} {way}", hashes[*input])
        })
        .collect();
    match node.join {
        // Of a field that several inputs have, the last one's value is kept.
        Some(unmatched) => inputs.push(format!("join {unmatched:?}")),
        None => inputs.sort_unstable(),
    }
    inputs
}

/// The conditions whose items an `else` of the node at `place` does not get.
fn others(graph: &Graph, place: usize) -> Vec<&str> {
    let takes = |node: &&GraphNode| node.inputs.contains(&place);
    let nodes = graph.nodes.iter().filter(takes);
    let mut conditions: Vec<&str> = nodes.filter_map(|node| node.when.as_deref()).collect();
    conditions.sort_unstable();
    conditions
}

/// The same hashes; those that several nodes share with the nodes' names.
pub(super) fn distinct(graph: &Graph, hashes: &[String]) -> Vec<String> {
    let is_shared = |hash: &String| hashes.iter().filter(|other| *other == hash).count() > 1;
    let nodes = graph.nodes.iter().zip(hashes);
    nodes
        .map(|(node, hash)| {
            if is_shared(hash) {
                format!("{hash}/{}", node.name)
            } else {
                hash.clone()
            }
        })
        .collect()
}

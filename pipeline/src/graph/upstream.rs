//! Works out which nodes stand before a gathering node, and whose pages it waits for.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Graph, Pipeline};
use crate::gather::{Rule, Upstream};
use crate::metrics::Role;

impl Pipeline {
    /// What stands before the gathering node at `place`.
    pub(crate) fn upstream(&self, place: usize, rule: &Rule) -> Upstream {
        let links: Vec<&[usize]> = self.nodes.iter().map(|node| &node.inputs[..]).collect();
        let mut makers = page_makers(&links, place, rule);
        makers.retain(|maker| self.nodes[*maker].role() == Role::Stage);
        let places = before(&links, place);
        Upstream {
            names: self.names(&places),
            page_makers: makers
                .iter()
                .map(|place| Arc::clone(&self.nodes[*place].key))
                .collect(),
            places,
        }
    }

    fn names(&self, places: &BTreeSet<usize>) -> BTreeSet<Arc<str>> {
        let names = places.iter().map(|place| &self.nodes[*place].name);
        names.cloned().collect()
    }
}

impl Graph {
    /// Whether the node at `place` in [`Graph::nodes`] gathers, and holds items
    /// that wait for others until their document has come as a whole. Other
    /// joins hold them until nothing of their page can come.
    pub fn holds_documents(&self, place: usize) -> bool {
        let links: Vec<&[usize]> = self.nodes.iter().map(|node| &node.inputs[..]).collect();
        let is_stage = |maker: &usize| self.nodes[*maker].role == Role::Stage;
        let rule = self.nodes.get(place).and_then(|node| self.rule(node));
        rule.is_some_and(|rule| !page_makers(&links, place, &rule).iter().any(is_stage))
    }
}

/// The nodes by whose pages the gathering node at `place` waits: those through
/// which every item passes on its way from the sources. When such a node sends a
/// page, it sends all that will ever come of it, so that the page's items alone
/// show when nothing of it can come any more. A node on one branch only does not
/// qualify: the other branch may make the same page later, from something else.
fn page_makers(links: &[&[usize]], place: usize, rule: &Rule) -> BTreeSet<usize> {
    let mut makers = match rule {
        Rule::Document => BTreeSet::new(),
        Rule::Join { .. } | Rule::Page => passed_by_all(links, place),
    };
    if *rule == Rule::Page {
        // A union in front of the maker may bring a document twice, and its
        // second page 1 belongs to the same group as the first.
        makers.retain(|maker| is_chain(links, *maker));
    }
    makers
}

/// The nodes from which items come to the one at `place`. Every node stands
/// after its inputs.
fn before(links: &[&[usize]], place: usize) -> BTreeSet<usize> {
    let mut places = BTreeSet::from([place]);
    for place in (0..=place).rev() {
        if places.contains(&place) {
            places.extend(links[place]);
        }
    }
    places.remove(&place);
    places
}

/// The nodes that stand on every path from a source to the one at `place`: its
/// dominators, without itself.
fn passed_by_all(links: &[&[usize]], place: usize) -> BTreeSet<usize> {
    let mut passed: Vec<BTreeSet<usize>> = Vec::with_capacity(place + 1);
    for (place, inputs) in links[..=place].iter().enumerate() {
        let mut inputs = inputs.iter().map(|input| &passed[*input]);
        let mut by_all = inputs.next().cloned().unwrap_or_default();
        for by_other in inputs {
            by_all.retain(|place| by_other.contains(place));
        }
        by_all.insert(place);
        passed.push(by_all);
    }
    let mut passed = passed.pop().unwrap_or_default();
    passed.remove(&place);
    passed
}

/// Whether every node up to the one at `place` has one input at most.
fn is_chain(links: &[&[usize]], place: usize) -> bool {
    let mut upto = before(links, place);
    upto.insert(place);
    upto.iter().all(|place| links[*place].len() <= 1)
}

//! Finds the nodes whose items the rows of a sink are, so that rows that are stored
//! can be read back and sent on from there.
//!
//! A change of a stage leaves the items of the stages in front of it as they were.
//! Where a row is one such item, one to one and under the same key, and the table
//! has each field that the edges behind the node carry, the document need not be
//! made from its source.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Graph, GraphNode};
use crate::edge::{Carries, Route};
use crate::fields::{Field, FieldSet, FieldType};
use crate::metrics::Role;

/// Raised when the meaning of a recipe changes: older ones are not used.
const VERSION: u32 = 1;

/// Which items the rows of one fingerprint are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    version: u32,
    /// By the hash of each node of which a row is an item: the fields that a row has
    /// as they left the node.
    nodes: BTreeMap<String, BTreeSet<String>>,
}

impl Recipe {
    /// A recipe that no row can be read back by.
    pub(crate) fn unknown() -> Self {
        Self {
            version: VERSION,
            nodes: BTreeMap::new(),
        }
    }

    /// Whether this build understands the recipe.
    pub(crate) fn is_current(&self) -> bool {
        self.version == VERSION
    }

    /// What both recipes say.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let mut common = Self::unknown();
        for (hash, fields) in &self.nodes {
            if let Some(others) = other.nodes.get(hash) {
                let fields = fields.intersection(others).cloned().collect();
                common.nodes.insert(hash.clone(), fields);
            }
        }
        common
    }

    /// The recipe of the sink at `place`.
    pub(super) fn new(graph: &Graph, hashes: &[String], place: usize) -> Self {
        let mut recipe = Self::unknown();
        // Where several sources send documents, the route of a document is unknown.
        if n_sources(graph) != 1 {
            return recipe;
        }
        let sink = &graph.nodes[place];
        let stored = |(name, ty): &(&str, FieldType)| {
            ty.is_column() && sink.fields.looks_at(name, *ty) && carries(sink, name)
        };
        let stored = sink.input.iter().filter(stored);
        let mut stored: BTreeSet<String> = stored.map(|(name, _)| name.to_owned()).collect();
        let mut node = sink;
        while let Some(input) = only_input(node) {
            node = &graph.nodes[input];
            if node.role != Role::Stage {
                break;
            }
            let fields = stored.iter().filter(|name| node.output.get(name).is_some());
            recipe
                .nodes
                .insert(hashes[input].clone(), fields.cloned().collect());
            if !node.is_one_to_one() {
                break;
            }
            // What the node changes is not what left the node before it.
            for field in &node.fields.adds {
                stored.remove(&*field.name);
            }
            for name in &node.fields.drops {
                stored.remove(&**name);
            }
        }
        recipe
    }
}

fn n_sources(graph: &Graph) -> usize {
    let nodes = graph.nodes.iter();
    nodes.filter(|node| node.role == Role::Source).count()
}

fn carries(node: &GraphNode, name: &str) -> bool {
    match node.carries.as_ref() {
        Carries::All => true,
        Carries::Only(names) => names.contains(name),
    }
}

/// The one node from which all items come, if the node takes each of them.
fn only_input(node: &GraphNode) -> Option<usize> {
    match (node.inputs.as_slice(), node.routes.as_slice()) {
        ([input], [Route::Always]) if node.join.is_none() => Some(*input),
        _ => None,
    }
}

/// A stage behind which rows that are read back can be sent on.
#[derive(Debug, Clone)]
pub(crate) struct RefillPoint {
    /// Where the node stands in the graph.
    pub(crate) place: usize,
    hash: String,
    /// The sinks of which every item comes by way of the node.
    sinks: BTreeSet<usize>,
    /// For each edge behind the node, the sinks that it leads to and the fields that
    /// are carried there.
    edges: Vec<(BTreeSet<usize>, FieldSet)>,
    /// The fields that decide which edges take an item.
    routed_by: FieldSet,
    /// Fields that stages and routes further on look at.
    looked_at: BTreeSet<String>,
}

impl RefillPoint {
    /// Whether rows of this recipe are items of the node.
    pub(crate) fn is_in(&self, recipe: &Recipe) -> bool {
        recipe.nodes.contains_key(&self.hash)
    }

    /// The fields that rows of `sink` are read back with, so that the document can be
    /// sent to the sinks `wanted` from behind this node; `None` if it cannot.
    pub(crate) fn fields(
        &self,
        recipe: &Recipe,
        sink: usize,
        wanted: &BTreeSet<usize>,
    ) -> Option<FieldSet> {
        let stored = recipe.nodes.get(&self.hash)?;
        if wanted.is_empty() || !wanted.is_subset(&self.sinks) {
            return None;
        }
        let edges = self.edges.iter();
        let edges = edges.filter(|(sinks, _)| !sinks.is_disjoint(wanted));
        let carried = edges.flat_map(|(_, fields)| fields.iter());
        let needed = carried.chain(self.routed_by.iter());
        let needed = needed.map(|(name, ty)| Field {
            name: name.to_owned().into(),
            ty,
        });
        let needed: FieldSet = needed.collect();
        // A column may hold vectors in fewer bits than they were made in: they can
        // only go back to where they came from.
        let goes_back = wanted.len() == 1 && wanted.contains(&sink);
        let can_be_read = |(name, ty): (&str, FieldType)| match ty {
            FieldType::Vector | FieldType::MultiVector => {
                goes_back && !self.looked_at.contains(name)
            }
            _ => ty.is_column(),
        };
        let is_there = needed
            .iter()
            .all(|field| stored.contains(field.0) && can_be_read(field));
        is_there.then_some(needed)
    }
}

impl Graph {
    /// What the rows of each sink are, in the order of the sinks.
    pub(super) fn recipes(&self, hashes: &[String]) -> Vec<Recipe> {
        let sinks = self.nodes.iter().enumerate();
        let sinks = sinks.filter(|(_, node)| node.role == Role::Sink);
        sinks
            .map(|(place, _)| Recipe::new(self, hashes, place))
            .collect()
    }

    /// Every stage behind which rows can be sent on, the last in the order of the
    /// graph first.
    pub(super) fn refill_points(&self, hashes: &[String]) -> Vec<RefillPoint> {
        if n_sources(self) != 1 {
            return Vec::new();
        }
        let reach = self.reach();
        let passed = self.passed_by_all();
        let stages = self.nodes.iter().enumerate().rev();
        let stages = stages.filter(|(_, node)| node.role == Role::Stage);
        stages
            .map(|(place, node)| {
                let sinks = self.nodes.iter().enumerate();
                let sinks = sinks.filter(|(_, node)| node.role == Role::Sink);
                let sinks = sinks.enumerate();
                let sinks = sinks.filter(|(_, (sink, _))| passed[*sink].contains(&place));
                RefillPoint {
                    place,
                    hash: hashes[place].clone(),
                    sinks: sinks.map(|(number, _)| number).collect(),
                    edges: self.edges_behind(place, &reach),
                    routed_by: self.routed_by(place, &node.output),
                    looked_at: self.looked_at_behind(place),
                }
            })
            .collect()
    }

    /// The sinks that each node leads to, by their numbers among the sinks.
    fn reach(&self) -> Vec<BTreeSet<usize>> {
        let mut reach: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.nodes.len()];
        let sinks = self.nodes.iter().enumerate();
        let sinks = sinks.filter(|(_, node)| node.role == Role::Sink);
        for (number, (place, _)) in sinks.enumerate() {
            reach[place].insert(number);
        }
        for (place, node) in self.nodes.iter().enumerate().rev() {
            let sinks = reach[place].clone();
            for input in &node.inputs {
                reach[*input].extend(&sinks);
            }
        }
        reach
    }

    /// For each node, those that stand on every path from a source to it.
    fn passed_by_all(&self) -> Vec<BTreeSet<usize>> {
        let mut passed: Vec<BTreeSet<usize>> = Vec::with_capacity(self.nodes.len());
        for (place, node) in self.nodes.iter().enumerate() {
            let mut inputs = node.inputs.iter().map(|input| &passed[*input]);
            let mut by_all = inputs.next().cloned().unwrap_or_default();
            for by_other in inputs {
                by_all.retain(|place| by_other.contains(place));
            }
            by_all.insert(place);
            passed.push(by_all);
        }
        passed
    }

    fn takers(&self, place: usize) -> impl Iterator<Item = (usize, &GraphNode)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(move |(_, node)| node.inputs.contains(&place))
    }

    fn edges_behind(
        &self,
        place: usize,
        reach: &[BTreeSet<usize>],
    ) -> Vec<(BTreeSet<usize>, FieldSet)> {
        let output = &self.nodes[place].output;
        let edges = self.takers(place).map(|(taker, node)| {
            let fields = output.iter().filter(|(name, _)| carries(node, name));
            let fields = fields.map(|(name, ty)| Field {
                name: name.to_owned().into(),
                ty,
            });
            (reach[taker].clone(), fields.collect())
        });
        edges.collect()
    }

    fn routed_by(&self, place: usize, output: &FieldSet) -> FieldSet {
        let routes = self.takers(place).flat_map(|(_, node)| {
            let edges = node.inputs.iter().zip(&node.routes);
            edges.filter(move |(input, _)| **input == place)
        });
        let names = routes.flat_map(|(_, route)| names_in(route));
        let fields = names.filter_map(|name| {
            Some(Field {
                ty: output.get(&name)?,
                name: name.into(),
            })
        });
        fields.collect()
    }

    /// What stages and routes behind the node at `place` look at; sinks only store.
    fn looked_at_behind(&self, place: usize) -> BTreeSet<String> {
        let mut behind = BTreeSet::from([place]);
        let mut looked_at = BTreeSet::new();
        for (other, node) in self.nodes.iter().enumerate() {
            if !node.inputs.iter().any(|input| behind.contains(input)) {
                continue;
            }
            behind.insert(other);
            looked_at.extend(node.routes.iter().flat_map(names_in));
            if node.role == Role::Stage {
                let fields = node.input.iter();
                let fields = fields.filter(|(name, ty)| node.fields.looks_at(name, *ty));
                looked_at.extend(fields.map(|(name, _)| name.to_owned()));
            }
        }
        looked_at
    }
}

/// The fields that a route depends on.
fn names_in(route: &Route) -> Vec<String> {
    match route {
        Route::When(expression) => expression.fields().map(str::to_owned).collect(),
        Route::Always | Route::Otherwise => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Item, Pipeline, Resources, flat_map, from_iter, map, sink_fn};

    fn point(fields: impl IntoIterator<Item = Field>, looked_at: &str) -> RefillPoint {
        RefillPoint {
            place: 2,
            hash: "h".into(),
            sinks: BTreeSet::from([0, 1]),
            edges: vec![(BTreeSet::from([0, 1]), fields.into_iter().collect())],
            routed_by: FieldSet::default(),
            looked_at: BTreeSet::from([looked_at.to_owned()]),
        }
    }

    fn recipe(names: &[&str]) -> Recipe {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Recipe {
            nodes: BTreeMap::from([("h".to_owned(), names)]),
            ..Recipe::unknown()
        }
    }

    fn can(point: &RefillPoint, stored: &[&str], wanted: &[usize]) -> bool {
        let wanted = wanted.iter().copied().collect();
        point.fields(&recipe(stored), 0, &wanted).is_some()
    }

    #[test]
    fn vectors_only_go_back_to_the_sink_that_they_came_from() {
        for vectors in [Field::VECTOR, Field::VECTORS] {
            let name = &*vectors.name.clone();
            let unread = point([Field::TEXT, vectors.clone()], "text");
            assert!(can(&unread, &["text", name], &[0]));
            assert!(!can(&unread, &["text", name], &[1]));
            assert!(!can(&unread, &["text", name], &[0, 1]));
            assert!(!can(&point([vectors], name), &[name], &[0]));
        }
    }

    #[test]
    fn pixels_documents_and_fields_without_a_column_cannot_be_read_back() {
        for field in [Field::IMAGE, Field::DOCUMENT, Field::PATCHES] {
            let name = &*field.name.clone();
            assert!(!can(&point([field], ""), &[name], &[0]));
        }
        assert!(can(&point([Field::TEXT], "text"), &["text"], &[0, 1]));
        assert!(!can(&point([Field::TEXT], ""), &["words"], &[0]));
        // A route looks at what no edge carries.
        let routed = RefillPoint {
            routed_by: FieldSet::from_iter([Field::WORDS]),
            ..point([Field::TEXT], "")
        };
        assert!(!can(&routed, &["text"], &[0]));
        assert!(can(&routed, &["text", "words"], &[0]));
    }

    #[test]
    fn a_sink_that_the_node_does_not_lead_to_alone_cannot_be_filled() {
        assert!(!can(&point([Field::TEXT], ""), &["text"], &[0, 2]));
        assert!(!can(&point([Field::TEXT], ""), &["text"], &[]));
    }

    #[test]
    fn what_a_closure_does_with_items_is_unknown() {
        let numbers = [Item::of_text("a", "1"), Item::of_text("b", "2")];
        let pipeline = Pipeline::builder("numbers")
            .source("numbers", from_iter(numbers).provides([Field::TEXT]))
            .stage("pages", flat_map(|item| Ok([item.with_page(1)])))
            .stage("loud", map(Ok).reads([Field::TEXT]).adds([Field::WORDS]))
            .sink("rows", sink_fn(|_: Vec<Item>| async { Ok(()) }))
            .build(&Resources::default());
        let pipeline = pipeline.unwrap_or_else(|error| panic!("{error}"));
        // The rows are what left the closure, and no more is known of them.
        let recipe = &pipeline.recipes[0];
        assert_eq!(recipe.nodes.len(), 1);
        let points = pipeline.refill_points.iter();
        let points = points.filter(|point| point.is_in(recipe));
        let names: Vec<&str> = points
            .map(|point| &*pipeline.nodes[point.place].name)
            .collect();
        assert_eq!(names, ["loud"]);
    }

    #[test]
    fn of_two_recipes_of_one_fingerprint_what_both_say_is_used() {
        let (both, one) = (recipe(&["text", "words"]), recipe(&["text"]));
        assert_eq!((both.common(&one), one.common(&both)), (one.clone(), one));
        assert_eq!(both.common(&Recipe::unknown()), Recipe::unknown());
        assert_eq!(Recipe::unknown().common(&both), Recipe::unknown());
    }

    #[test]
    fn a_recipe_of_another_build_is_not_used() {
        let text = serde_json::to_string(&recipe(&["text"])).expect("plain values");
        let read: Recipe = serde_json::from_str(&text).expect("it was written");
        assert!(read.is_current() && read == recipe(&["text"]));
        let other: Recipe = serde_json::from_str(&text.replace("1,", "0,")).expect("as before");
        assert!(!other.is_current());
    }
}

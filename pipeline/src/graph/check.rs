//! Checks the graph of a draft: links, ends, circles, and the fields that travel.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::{Graph, GraphNode, routes};
use crate::config::{Diagnostic, Flow, Input, PipelineDraft, Wiring, suggest};
use crate::edge::{Carries, Route};
use crate::fields::FieldSet;
use crate::metrics::Role;
use crate::secrets::Secrets;

/// Checks a draft's graph; `None` if something is wrong, which is then reported.
pub(crate) fn check(draft: PipelineDraft, diagnostics: &mut Vec<Diagnostic>) -> Option<Graph> {
    let n_before = diagnostics.len();
    let is_whole = draft.is_whole && draft.left_out.is_empty();
    if has_twins(&draft, diagnostics) {
        return None; // Which of the two an `input` means is a guess.
    }
    let links = link(&draft, diagnostics);
    if is_whole {
        check_ends(&draft, &links, diagnostics);
    }
    let order = sort(&draft, &links, diagnostics);
    if diagnostics.len() > n_before || !is_whole {
        return None; // What travels along edges that are not there is a guess.
    }
    let mut graph = assemble(draft, &links, &order);
    check_fields(&mut graph, diagnostics);
    routes::check(&mut graph, diagnostics);
    if diagnostics.len() > n_before {
        return None;
    }
    check_places(&graph.graph, diagnostics);
    if diagnostics.len() > n_before {
        return None;
    }
    carry(&mut graph);
    Some(graph.graph)
}

/// For each node, the places of its inputs.
type Links = Vec<Vec<usize>>;

fn link(draft: &PipelineDraft, diagnostics: &mut Vec<Diagnostic>) -> Links {
    let nodes = draft.nodes.iter().enumerate();
    let by_name: BTreeMap<&str, usize> = nodes
        .map(|(index, node)| (node.name.get_ref().as_str(), index))
        .collect();
    let resolve = |taker: &str, input: &Input, diagnostics: &mut Vec<Diagnostic>| {
        let name = input.get_ref().as_str();
        let found = by_name.get(name).copied();
        match found.map(|index| draft.nodes[index].role) {
            Some(Role::Sink) => {
                let message = format!("`{name}` is a sink and sends nothing on");
                let hint = "take from the node that the sink takes from";
                diagnostics.push(Diagnostic::new(input.span(), message).hint(hint));
                None
            }
            Some(_) => found,
            None if !draft.is_whole || draft.left_out.iter().any(|left| left.name == name) => None,
            None => {
                let message = format!("there is no node `{name}`");
                let hint = suggest_sender(draft, taker, name);
                diagnostics.push(Diagnostic::new(input.span(), message).hint(hint));
                None
            }
        }
    };
    for left in &draft.left_out {
        for input in &left.inputs {
            resolve(&left.name, input, diagnostics);
        }
    }
    let nodes = draft.nodes.iter();
    nodes
        .map(|node| {
            let inputs = node.inputs.iter();
            inputs
                .filter_map(|input| resolve(node.name.get_ref(), input, diagnostics))
                .collect()
        })
        .collect()
}

/// What to do about an input `name` of the node `taker`, which no node has.
fn suggest_sender(draft: &PipelineDraft, taker: &str, name: &str) -> String {
    let nodes = draft
        .nodes
        .iter()
        .map(|node| (node.role, node.name.get_ref()));
    // A node whose settings are wrong is there nevertheless.
    let left_out = draft.left_out.iter().map(|left| (left.role, &left.name));
    let senders = nodes.chain(left_out);
    let senders = senders.filter(|(role, name)| *role != Role::Sink && *name != taker);
    let senders: Vec<&str> = senders.map(|(_, name)| name.as_str()).collect();
    if senders.is_empty() {
        let add = draft.wiring.add(&draft.name, Role::Source);
        return format!("no other node sends items: {add}");
    }
    suggest(name, senders, "nodes")
}

/// Whether two nodes have one name; each such pair is reported.
fn has_twins(draft: &PipelineDraft, diagnostics: &mut Vec<Diagnostic>) -> bool {
    let n_before = diagnostics.len();
    for (index, node) in draft.nodes.iter().enumerate() {
        let name = node.name.get_ref();
        if let Some(first) = draft.nodes[..index]
            .iter()
            .find(|n| n.name.get_ref() == name)
        {
            let (first, second) = (first.role.table(), node.role.table());
            let message = format!("`{name}` names a {first} and a {second}");
            let hint = "give one of them another name";
            diagnostics.push(Diagnostic::new(node.name.span(), message).hint(hint));
        }
    }
    diagnostics.len() > n_before
}

/// Every pipeline has a source and a sink, and nothing is made that nobody reads.
fn check_ends(draft: &PipelineDraft, links: &Links, diagnostics: &mut Vec<Diagnostic>) {
    for role in [Role::Source, Role::Sink] {
        if !draft.nodes.iter().any(|node| node.role == role) {
            let message = format!("pipeline `{}` has no {}", draft.name, role.table());
            let hint = draft.wiring.add(&draft.name, role);
            diagnostics.push(Diagnostic::new(draft.span.clone(), message).hint(hint));
        }
    }
    for (index, node) in draft.nodes.iter().enumerate() {
        let is_read = links.iter().any(|inputs| inputs.contains(&index));
        if node.role != Role::Sink && !is_read {
            let name = node.name.get_ref();
            let message = format!("no node takes from {} `{name}`", node.role.table());
            let hint = format!("name it in the `input` of another node, or remove `{name}`");
            diagnostics.push(Diagnostic::new(node.name.span(), message).hint(hint));
        }
    }
}

/// The nodes in an order in which each stands after its inputs.
fn sort(draft: &PipelineDraft, links: &Links, diagnostics: &mut Vec<Diagnostic>) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    let mut left: Vec<usize> = (0..draft.nodes.len()).collect();
    while !left.is_empty() {
        let ready = left
            .iter()
            .position(|node| links[*node].iter().all(|i| order.contains(i)));
        if let Some(place) = ready {
            order.push(left.remove(place));
        } else {
            report_cycle(draft, links, &left, diagnostics);
            return order;
        }
    }
    order
}

/// Follows inputs among the nodes that are left until one comes round again.
fn report_cycle(
    draft: &PipelineDraft,
    links: &Links,
    left: &[usize],
    diagnostics: &mut Vec<Diagnostic>,
) {
    let (mut path, mut node) = (Vec::new(), left[0]);
    while !path.contains(&node) {
        path.push(node);
        let next = links[node].iter().find(|input| left.contains(input));
        node = *next.expect("a node that is left waits for another that is left");
    }
    let start = path
        .iter()
        .position(|known| *known == node)
        .expect("it came round");
    let mut names: Vec<String> = path[start..]
        .iter()
        .map(|n| format!("`{}`", draft.nodes[*n].name.get_ref()))
        .collect();
    names.push(names[0].clone());
    names.reverse(); // Inputs were followed backwards; data flows forwards.
    let message = format!("the graph goes round in a circle: {}", names.join(" -> "));
    // The input that closes the circle: the first node's, from the last one.
    let from = path.get(start + 1).unwrap_or(&node);
    let from = draft.nodes[*from].name.get_ref();
    let closing = draft.nodes[node]
        .inputs
        .iter()
        .find(|input| input.get_ref() == from);
    let span = closing.map_or_else(|| draft.nodes[node].name.span(), Input::span);
    let hint = "a pipeline flows from sources to sinks; take one of these inputs away";
    diagnostics.push(Diagnostic::new(span, message).hint(hint));
}

/// A graph on its way, with the places of each node's inputs in the file.
pub(super) struct Assembled {
    pub(super) graph: Graph,
    pub(super) wiring: Wiring,
    input_spans: Vec<Vec<Range<usize>>>,
    /// What the file says of how items come to each node.
    pub(super) flows: Vec<Flow>,
}

fn assemble(draft: PipelineDraft, links: &Links, order: &[usize]) -> Assembled {
    let mut place_of = vec![0; order.len()];
    for (place, index) in order.iter().enumerate() {
        place_of[*index] = place;
    }
    let mut drafts: Vec<Option<_>> = draft.nodes.into_iter().map(Some).collect();
    let (mut nodes, mut input_spans, mut flows) = (Vec::new(), Vec::new(), Vec::new());
    for index in order {
        let node = drafts[*index]
            .take()
            .expect("each index stands in the order once");
        input_spans.push(node.inputs.iter().map(Input::span).collect());
        nodes.push(GraphNode {
            span: node.name.span(),
            name: node.name.into_inner(),
            role: node.role,
            kind: node.kind,
            inputs: links[*index].iter().map(|input| place_of[*input]).collect(),
            routes: vec![Route::Always; links[*index].len()],
            join: node.flow.is_join.then(|| {
                node.flow
                    .unmatched
                    .as_ref()
                    .map(|u| *u.get_ref())
                    .unwrap_or_default()
            }),
            on_error: node.on_error,
            workers: node.workers,
            batch: node.batch,
            edge: node.edge,
            fields: node.settings.fields(),
            input: FieldSet::default(),
            output: FieldSet::default(),
            carries: Arc::new(Carries::All),
            settings: node.settings,
            places: node.places,
            row_settings: node.row_settings,
            when: node.flow.when.as_ref().map(|when| when.get_ref().clone()),
            shown_when: None,
        });
        flows.push(node.flow);
    }
    let graph = Graph {
        name: draft.name,
        description: draft.description,
        dead_letters: draft.dead_letters,
        ledger: draft.ledger,
        nodes,
        secrets: Secrets::default(),
    };
    Assembled {
        graph,
        wiring: draft.wiring,
        input_spans,
        flows,
    }
}

/// Carries the field set along every edge, as a query planner carries a schema.
fn check_fields(assembled: &mut Assembled, diagnostics: &mut Vec<Diagnostic>) {
    let nodes = &mut assembled.graph.nodes;
    for place in 0..nodes.len() {
        let (before, rest) = nodes.split_at_mut(place);
        let node = &mut rest[0];
        let mut input = FieldSet::default();
        if node.join.is_some() && node.fields.cardinality.gathers() {
            let message = format!("`{}` cannot join: it makes one item of many", node.name);
            let hint = "join in a node of its own before it, or take from one `input`";
            diagnostics.push(Diagnostic::new(node.span.clone(), message).hint(hint));
        }
        for (number, from) in node.inputs.iter().enumerate() {
            let (from, span) = (&before[*from], &assembled.input_spans[place][number]);
            let others = |field: &str| {
                let mut others = node.inputs.iter().map(|other| &before[*other]);
                others.any(|other| other.output.get(field).is_some())
            };
            for wanted in &node.fields.reads {
                if node.join.is_some()
                    && from.output.get(&wanted.name).is_none()
                    && others(&wanted.name)
                {
                    continue; // Another part of the joined item brings it.
                }
                let mut instead = node.fields.instead.iter();
                if instead.any(|(field, other)| {
                    *field == wanted.name && from.output.get(&other.name) == Some(other.ty)
                }) {
                    continue;
                }
                let problem = match from.output.get(&wanted.name) {
                    Some(ty) if ty == wanted.ty => continue,
                    Some(ty) => format!("as {ty}, not as {}", wanted.ty),
                    None => String::new(),
                };
                let (role, name, field) = (node.role.table(), &node.name, &wanted.name);
                let message = if problem.is_empty() {
                    format!(
                        "{role} `{name}` reads `{field}`, which `{}` does not provide",
                        from.name
                    )
                } else {
                    format!(
                        "{role} `{name}` reads `{field}`, which `{}` provides {problem}",
                        from.name
                    )
                };
                let providers = before
                    .iter()
                    .filter(|n| n.output.get(field) == Some(wanted.ty));
                let providers: Vec<String> = providers.map(|n| format!("`{}`", n.name)).collect();
                let hint = match providers.as_slice() {
                    [] => format!("put a stage before it that adds `{field}`"),
                    [one] => format!("{one} does: take from it"),
                    many => format!("{} do: take from one of them", many.join(", ")),
                };
                diagnostics.push(Diagnostic::new(span.clone(), message).hint(hint));
            }
            for (field, ty) in from.output.iter() {
                if let Some(other) = input.get(field).filter(|other| *other != ty) {
                    let message = format!(
                        "`{field}` reaches `{}` as {other} from one input and as {ty} from `{}`",
                        node.name, from.name
                    );
                    let hint = "make both inputs provide the same type";
                    diagnostics.push(Diagnostic::new(span.clone(), message).hint(hint));
                }
                input.insert(crate::fields::Field {
                    name: Cow::Owned(field.to_owned()),
                    ty,
                });
            }
        }
        check_passing(node, &input, diagnostics);
        node.output = node.fields.output(&input);
        node.input = input;
    }
}

/// A field that a node adds has one type behind it, also in the items that pass
/// with a value of their own.
fn check_passing(node: &GraphNode, input: &FieldSet, diagnostics: &mut Vec<Diagnostic>) {
    for field in node
        .fields
        .adds
        .iter()
        .filter(|field| node.fields.keeps(field))
    {
        if let Some(ty) = input.get(&field.name).filter(|ty| *ty != field.ty) {
            let (role, name) = (node.role.table(), &node.name);
            let message = format!(
                "{role} `{name}` adds `{}` as {}, and items bring it as {ty}",
                field.name, field.ty
            );
            let hint = "give one of the two fields another name";
            diagnostics.push(Diagnostic::new(node.span.clone(), message).hint(hint));
        }
    }
}

/// Reports sinks that store rows in one place: at the end of a document each would
/// replace the rows of the other.
fn check_places(graph: &Graph, diagnostics: &mut Vec<Diagnostic>) {
    let sinks = graph.nodes.iter().filter(|node| node.role == Role::Sink);
    let mut places: BTreeMap<String, Vec<(&GraphNode, &str)>> = BTreeMap::new();
    for node in sinks {
        if let Some(place) = node.sink_place(&graph.name) {
            let same = places.entry(place.identity).or_default();
            same.push((node, place.setting));
        }
    }
    for (place, nodes) in places.into_iter().filter(|(_, nodes)| nodes.len() > 1) {
        let names: Vec<String> = nodes
            .iter()
            .map(|(node, _)| format!("`{}`", node.name))
            .collect();
        for (node, setting) in nodes {
            let message = format!(
                "the sinks {} store rows in one place, `{place}`, and would replace each other's",
                names.join(" and ")
            );
            let hint = format!(
                "give each a `{setting}` of its own, or let one sink take from all: \
                 `input = [\"a\", \"b\"]`"
            );
            let span = node.place_of(setting);
            diagnostics.push(Diagnostic::new(span, message).hint(hint));
        }
    }
}

/// Works out backwards which fields each edge must carry: those that a node
/// further on looks at. The others are let go as early as possible.
fn carry(assembled: &mut Assembled) {
    let nodes = &mut assembled.graph.nodes;
    let mut needed: Vec<BTreeSet<Cow<'static, str>>> = vec![BTreeSet::new(); nodes.len()];
    for place in (0..nodes.len()).rev() {
        let node = &nodes[place];
        let mut names = std::mem::take(&mut needed[place]);
        for field in &node.fields.adds {
            // An item that the node does not handle passes with what it brought.
            let passes = node.fields.keeps(field) && node.input.get(&field.name).is_some();
            if !passes {
                names.remove(&field.name);
            }
        }
        // What routes the items here is looked at before the edge.
        let routed_by: Vec<Cow<'static, str>> = node
            .routes
            .iter()
            .filter_map(|route| match route {
                Route::When(expression) => Some(expression),
                Route::Always | Route::Otherwise => None,
            })
            .flat_map(|expression| expression.fields())
            .map(|name| Cow::Owned(name.to_owned()))
            .collect();
        let looked_at = node
            .input
            .iter()
            .filter(|(name, ty)| node.fields.looks_at(name, *ty));
        names.extend(looked_at.map(|(name, _)| Cow::Owned(name.to_owned())));
        for input in node.inputs.clone() {
            // A field that a node replaces only sometimes must reach it too.
            needed[input].extend(names.iter().chain(&routed_by).cloned());
        }
        nodes[place].carries = Arc::new(Carries::Only(names));
    }
}

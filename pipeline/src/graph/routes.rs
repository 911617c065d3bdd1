//! Checks `when` and `else`: every expression has its fields, and every item a way.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;

use super::check::Assembled;
use crate::config::{DROP, Diagnostic, suggest};
use crate::edge::Route;
use crate::expression::Expression;

/// Compiles the expressions and finds out which edges take what no `when` takes.
pub(super) fn check(assembled: &mut Assembled, diagnostics: &mut Vec<Diagnostic>) {
    compile(assembled, diagnostics);
    let named = name_others(assembled, diagnostics);
    check_ways(assembled, &named, diagnostics);
}

fn compile(assembled: &mut Assembled, diagnostics: &mut Vec<Diagnostic>) {
    for place in 0..assembled.graph.nodes.len() {
        let Some(when) = &assembled.flows[place].when else {
            continue;
        };
        let inputs = assembled.graph.nodes[place].inputs.clone();
        for (number, input) in inputs.into_iter().enumerate() {
            let output = &assembled.graph.nodes[input].output;
            match Expression::new(when.get_ref(), output) {
                Ok(expression) => {
                    let route = Route::When(Arc::new(expression));
                    assembled.graph.nodes[place].routes[number] = route;
                }
                Err(error) => {
                    // Within the quotes, unless the string has escapes.
                    let span = when.span();
                    let is_plain = span.len() == when.get_ref().len() + 2;
                    let span = match error.at.filter(|_| is_plain) {
                        Some(at) => span.start + 1 + at.start..span.start + 1 + at.end,
                        None => span,
                    };
                    diagnostics.push(Diagnostic::new(span, error.problem).hint(error.hint));
                }
            }
        }
    }
}

/// Whether some `else` says what becomes of the rest, by the node that sends.
type Named = BTreeMap<usize, bool>;

/// Turns the edges to nodes that an `else` names.
fn name_others(assembled: &mut Assembled, diagnostics: &mut Vec<Diagnostic>) -> Named {
    let mut named = Named::new();
    for place in 0..assembled.graph.nodes.len() {
        let Some(otherwise) = assembled.flows[place].otherwise.clone() else {
            continue;
        };
        let inputs = assembled.graph.nodes[place].inputs.clone();
        if otherwise.get_ref() == DROP {
            named.extend(inputs.into_iter().map(|input| (input, true)));
            continue;
        }
        let Some(other) = find(assembled, &otherwise, diagnostics) else {
            // Reported: that the rest has no way need not be.
            named.extend(inputs.into_iter().map(|input| (input, true)));
            continue;
        };
        for input in inputs {
            named.insert(input, true);
            let from = assembled.graph.nodes[input].name.clone();
            let node = &mut assembled.graph.nodes[other];
            let Some(number) = node.inputs.iter().position(|known| *known == input) else {
                let message = format!("`{}` does not take from `{from}`", otherwise.get_ref());
                let hint = format!("add `{from}` to the `input` of `{}`", otherwise.get_ref());
                diagnostics.push(Diagnostic::new(otherwise.span(), message).hint(hint));
                continue;
            };
            if matches!(node.routes[number], Route::When(_)) || node.join.is_some() {
                let what = if node.join.is_some() {
                    "joins"
                } else {
                    "has a `when` of its own"
                };
                let message = format!("`{}` {what}", otherwise.get_ref());
                let drop = assembled.wiring.drop_the_rest();
                let hint = format!("name a node that takes what is left, or write {drop}");
                diagnostics.push(Diagnostic::new(otherwise.span(), message).hint(hint));
                continue;
            }
            node.routes[number] = Route::Otherwise;
        }
    }
    named
}

fn find(
    assembled: &Assembled,
    otherwise: &Spanned<String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<usize> {
    let names = || assembled.graph.nodes.iter().map(|node| node.name.as_str());
    let found = names().position(|name| name == otherwise.get_ref());
    if found.is_none() {
        let message = format!("there is no node `{}`", otherwise.get_ref());
        let hint = suggest(otherwise.get_ref(), names().chain([DROP]), "nodes");
        diagnostics.push(Diagnostic::new(otherwise.span(), message).hint(hint));
    }
    found
}

/// Every item that leaves a node must have somewhere to go, or be dropped knowingly.
fn check_ways(assembled: &Assembled, named: &Named, diagnostics: &mut Vec<Diagnostic>) {
    let nodes = &assembled.graph.nodes;
    for (place, node) in nodes.iter().enumerate() {
        let takers = nodes.iter().enumerate().flat_map(|(taker, other)| {
            let edges = other.inputs.iter().zip(&other.routes);
            edges
                .filter(|(input, _)| **input == place)
                .map(move |(_, route)| (taker, route))
        });
        let takers: Vec<(usize, &Route)> = takers.collect();
        let takes_all = takers
            .iter()
            .any(|(_, route)| !matches!(route, Route::When(_)));
        let choosy = takers
            .iter()
            .find(|(_, route)| matches!(route, Route::When(_)));
        let Some((taker, _)) = choosy else { continue };
        if takes_all || named.contains_key(&place) {
            continue;
        }
        let Some(when) = &assembled.flows[*taker].when else {
            continue;
        };
        let message = format!(
            "what `when` does not take from `{}` goes nowhere",
            node.name
        );
        let (drop, name) = (
            assembled.wiring.drop_the_rest(),
            assembled.wiring.name_the_rest(),
        );
        let hint = format!("add {drop}, or {name} with a node that takes the rest");
        diagnostics.push(Diagnostic::new(when.span(), message).hint(hint));
    }
}

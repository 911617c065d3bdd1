//! Reads how items come to a node: `join`, `unmatched`, `when`, `else`.

use toml::Spanned;
use toml::de::DeTable;

use super::Diagnostic;
use super::node::{Input, take, typed};
use crate::gather::Unmatched;
use crate::metrics::Role;

/// How items come to a node, beyond where from.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) is_join: bool,
    pub(crate) unmatched: Option<Spanned<Unmatched>>,
    /// The expression that routes items here.
    pub(crate) when: Option<Spanned<String>>,
    /// `drop`, or the node that gets what `when` does not take.
    pub(crate) otherwise: Option<Spanned<String>>,
}

/// The value of `else` that names no node.
pub(crate) const DROP: &str = "drop";

impl Flow {
    pub(super) fn read(table: &mut DeTable<'_>, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut text = |key| {
            let value = take(table, key)?;
            let span = value.span();
            Some(Spanned::new(span, typed(value, diagnostics)?))
        };
        let (when, otherwise) = (text("when"), text("else"));
        let unmatched = take(table, "unmatched").and_then(|value| {
            let span = value.span();
            Some(Spanned::new(span, typed(value, diagnostics)?))
        });
        Self {
            is_join: false,
            unmatched,
            when,
            otherwise,
        }
    }

    /// What can be said without the other nodes.
    pub(crate) fn check(&self, role: Role, inputs: &[Input], diagnostics: &mut Vec<Diagnostic>) {
        let mut report = |span, message: &str, hint: &str| {
            diagnostics.push(Diagnostic::new(span, message).hint(hint));
        };
        if let Some(unmatched) = self.unmatched.as_ref().filter(|_| !self.is_join) {
            let hint = "write `join` in place of `input`, or remove it";
            report(unmatched.span(), "`unmatched` is for a `join`", hint);
        }
        if let Some(otherwise) = self.otherwise.as_ref().filter(|_| self.when.is_none()) {
            let hint = "add `when = \"...\"`, or remove it";
            report(otherwise.span(), "`else` is for a node with `when`", hint);
        }
        let Some(when) = &self.when else { return };
        if role == Role::Source {
            let hint = "put `when` on the nodes that take from it";
            report(
                when.span(),
                "a source takes nothing that could be routed",
                hint,
            );
        } else if self.is_join {
            let hint = "route the items before or after the join";
            report(when.span(), "a `join` takes whatever its inputs send", hint);
        } else if inputs.is_empty() {
            report(
                when.span(),
                "`when` routes what `input` sends",
                "add `input`",
            );
        }
    }
}

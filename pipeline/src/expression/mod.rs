//! The language of `when`: which items an edge takes.
//!
//! ```toml
//! when = "text.len() < 40 && page == 1"
//! ```
//!
//! It is a typed part of the Common Expression Language (<https://cel.dev>, and
//! its specification at <https://github.com/google/cel-spec>). The crate `cel`
//! parses and evaluates it; the type check before the run is ours.
//!
//! - **Every item has** `page` and `part` (integers, from 1; 0 when it has
//!   none), `uri` and `media_type` (text), `n_bytes` (the document's size).
//! - **Fields that reach the node**: text, bool, integer and float by their
//!   value; `image.width_px` and `image.height_px`; words, vectors, bytes and
//!   documents by their length. A field named like what every item has is
//!   refused where it is used.
//! - **Literals**: `40`, `1.5`, `"text"` or `'text'`, `true`, `false`, `["a", "b"]`.
//! - **Operators**: `&&`, `||`, `!`, `a ? b : c`; `==`, `!=`, `<`, `<=`, `>`, `>=`
//!   (an integer compares with a float); `in` a list; `+ - * / %` between
//!   numbers of one type, `+` between texts.
//! - **Functions**: `x.len()`, the same as `x.size()` and `size(x)` (characters
//!   of a text, bytes of a file, number of words, vectors or elements);
//!   `text.contains("x")`, `startsWith`, `endsWith`; `double(integer)` and
//!   `int(float)`.
//! - **Absent fields**: `has(text)` says whether this item has the field. An
//!   absent one reads as `""`, `0`, `0.0` or `false`, and its length and sides
//!   are 0, so a condition does not fail because of it.
//! - **At run time** only numbers can fail: division by zero, overflow, and the
//!   order of NaN. Such an item is set aside. As everywhere in CEL, an operand
//!   of `&&` or `||` that decides the result hides the failure of the other.

mod check;
mod evaluate;
mod functions;
mod operators;
mod source;
mod types;

use std::ops::Range;
use std::sync::Arc;
use std::{fmt, iter};

use cel::{Context, Env, IdedExpr, Value as CelValue};

use self::evaluate::{Variable, Variables};
use self::source::Source;
use crate::error::ItemError;
use crate::fields::FieldSet;
use crate::item::Item;

/// An expression that shows the shape in hints.
const EXAMPLE: &str = "write a condition such as `text.len() < 40 && page == 1`";

/// A routing expression that was parsed and checked. Clones share it.
#[derive(Clone)]
pub(crate) struct Expression(Arc<Checked>);

struct Checked {
    text: String,
    /// The parsed expression; each name in it is a place in `variables`.
    expr: IdedExpr,
    variables: Vec<Variable>,
    /// The functions that it may call.
    env: Arc<Env>,
}

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpressionError {
    /// Bytes of the expression that it is about; `None` for all of it.
    pub(crate) at: Option<Range<usize>>,
    /// What is wrong.
    pub(crate) problem: String,
    /// How to mend it.
    pub(crate) hint: String,
}

impl ExpressionError {
    fn new(
        at: impl Into<Option<Range<usize>>>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            at: at.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}

impl Expression {
    /// Parses `text` and checks its types against the fields that reach the node.
    ///
    /// # Errors
    /// The first thing that is wrong with it. What passes gives true or false
    /// for every item whose fields are of the types in `fields`, numbers aside
    /// (see the module).
    pub(crate) fn new(text: &str, fields: &FieldSet) -> Result<Self, ExpressionError> {
        // Without macros: `has(text)` stays a call, which the check resolves, and
        // the loops of CEL (`all`, `map`, ...) are unknown functions.
        let env = Env::default().with_optional_support(false).with_stdlib();
        let (source, expr) = Source::parse(text, &env)?;
        let (expr, variables) = check::check(expr, &source, fields)?;
        Ok(Self(Arc::new(Checked {
            text: text.to_owned(),
            expr,
            variables,
            env: Arc::new(env),
        })))
    }

    /// The names of the fields that it looks at, each once; `page` and the like
    /// are none.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &str> {
        let variables = &self.0.variables;
        let mut place = 0;
        iter::from_fn(move || {
            while let Some(variable) = variables.get(place) {
                let name = variable.field();
                let known = variables[..place].iter().any(|old| old.field() == name);
                place += 1;
                if name.is_some() && !known {
                    return name;
                }
            }
            None
        })
    }

    /// The expression as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether the item is taken.
    ///
    /// # Errors
    /// Its numbers cannot be computed with, or a field does not hold what its
    /// type says.
    pub(crate) fn takes(&self, item: &Item) -> Result<bool, ItemError> {
        let checked = &*self.0;
        let variables = Variables::new(&checked.variables, item);
        let mut context = Context::with_env(Arc::clone(&checked.env));
        context.set_variable_resolver(&variables);
        let value = CelValue::resolve_val(&checked.expr, &context)
            .map_err(|error| evaluate::item_error(&error, &checked.text, &checked.variables))?;
        let flag: &bool = value
            .as_ref()
            .try_into()
            .expect("the check refuses what is not a bool");
        Ok(*flag)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text()).finish()
    }
}

#[cfg(test)]
mod tests;

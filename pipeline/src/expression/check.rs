//! The static types of an expression, and its names turned into variables.

use std::ops::Range;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, ListExpr, LiteralValue, operators};
use cel::common::types::CelList;

use super::ExpressionError;
use super::evaluate::Variable;
use super::source::{Source, join};
use super::types::{Term, Type, object_hint};
use crate::config::suggest;
use crate::fields::{FieldSet, FieldType};

pub(super) type Result<T> = std::result::Result<T, ExpressionError>;

/// The names that every item has beside its fields.
pub(super) const ITEM_NAMES: [&str; 5] = ["page", "part", "uri", "media_type", "n_bytes"];
pub(super) const METHODS: [&str; 5] = ["len", "size", "contains", "startsWith", "endsWith"];
pub(super) const IMAGE_PROPERTIES: [&str; 2] = ["width_px", "height_px"];

/// Checks that `expr` gives a bool, and resolves its names.
///
/// # Errors
/// The first thing that is wrong, from left to right.
pub(super) fn check(
    expr: IdedExpr,
    source: &Source<'_>,
    fields: &FieldSet,
) -> Result<(IdedExpr, Vec<Variable>)> {
    let mut checker = Checker {
        source,
        fields,
        variables: Vec::new(),
    };
    let term = checker.term(expr)?;
    if term.ty != Type::Bool {
        let problem = format!("{} is {}, not true or false", checker.quote(&term), term.ty);
        return Err(checker.error(&term.at, problem, term.bool_hint(checker.code(&term))));
    }
    Ok((term.expr, checker.variables))
}

pub(super) struct Checker<'a> {
    pub(super) source: &'a Source<'a>,
    fields: &'a FieldSet,
    pub(super) variables: Vec<Variable>,
}

impl Checker<'_> {
    pub(super) fn error(
        &self,
        at: &Range<usize>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> ExpressionError {
        ExpressionError::new(self.source.whole(at.clone()), problem, hint)
    }

    pub(super) fn quote(&self, term: &Term) -> String {
        self.source.quote(term.at.clone())
    }

    pub(super) fn code(&self, term: &Term) -> &str {
        self.source.code(term.at.clone())
    }

    /// A node that reads `variable`.
    pub(super) fn variable(&mut self, variable: Variable, ty: Type, at: Range<usize>) -> Term {
        let place = self.variables.len().to_string();
        self.variables.push(variable);
        Term::new(Expr::Ident(place), ty, at)
    }

    pub(super) fn term(&mut self, expr: IdedExpr) -> Result<Term> {
        let at = self.source.token(expr.id);
        match expr.expr {
            Expr::Literal(literal) => self.literal(literal, at),
            Expr::Ident(name) => self.name(&name, at),
            Expr::Select(select) => self.property(*select.operand, &select.field, at),
            Expr::Call(call) => self.call(call, at),
            Expr::List(list) => self.list(list, at),
            Expr::Map(_) | Expr::Struct(_) => {
                let hint = "write a list: `[\"a\", \"b\"]`";
                Err(self.error(&at, "a condition has no maps and no structures", hint))
            }
            Expr::Comprehension(_) | Expr::Unspecified => {
                Err(self.error(&at, "this cannot be read", super::EXAMPLE))
            }
        }
    }

    fn literal(&self, literal: LiteralValue, at: Range<usize>) -> Result<Term> {
        let (ty, is_negative) = match &literal {
            LiteralValue::Boolean(_) => (Type::Bool, false),
            LiteralValue::Int(number) => (Type::Integer, **number < 0),
            LiteralValue::Double(number) => (Type::Float, number.is_sign_negative()),
            LiteralValue::String(_) => (Type::Text, false),
            LiteralValue::UInt(_) => {
                let problem = format!("{} has a suffix", self.source.quote(at.clone()));
                return Err(self.error(&at, problem, "write the number without its `u`"));
            }
            LiteralValue::Bytes(_) => {
                let problem = format!("{} is bytes, not text", self.source.quote(at.clone()));
                return Err(self.error(&at, problem, "write the text without its `b`"));
            }
            LiteralValue::Null => {
                let hint = "an absent field is `\"\"`, `0` or `false`; ask for it with `has(text)`";
                return Err(self.error(&at, "no field is ever `null`", hint));
            }
        };
        let at = if is_negative {
            self.source.signed(at)
        } else {
            at
        };
        Ok(Term::new(Expr::Literal(literal), ty, at))
    }

    fn name(&mut self, name: &str, at: Range<usize>) -> Result<Term> {
        let (variable, ty) = match (item_name(name), self.field(name, &at)?) {
            (Some(of_item), _) => of_item,
            (None, ty) => {
                let value = match ty {
                    FieldType::Text => Type::Text,
                    FieldType::Bool => Type::Bool,
                    FieldType::Integer => Type::Integer,
                    FieldType::Float => Type::Float,
                    _ => {
                        // Nothing may evaluate it: each use is replaced or refused.
                        let object = Type::Object(name.to_owned(), ty);
                        return Ok(Term::new(Expr::Ident(String::new()), object, at));
                    }
                };
                (Variable::Field(name.to_owned(), ty), value)
            }
        };
        Ok(self.variable(variable, ty, at))
    }

    /// The type of the field called `name`; any type for what every item has.
    pub(super) fn field(&self, name: &str, at: &Range<usize>) -> Result<FieldType> {
        match (ITEM_NAMES.contains(&name), self.fields.get(name)) {
            (true, Some(_)) => {
                let problem = format!("`{name}` is a field, and every item has a `{name}` too");
                let hint = "rename the field in the node that adds it";
                Err(self.error(at, problem, hint))
            }
            (true, None) => Ok(FieldType::Text),
            (false, Some(ty)) => Ok(ty),
            (false, None) => {
                let problem = format!("`{name}` is no field here");
                Err(self.error(at, problem, self.name_hint(name)))
            }
        }
    }

    fn name_hint(&self, name: &str) -> String {
        let (known, unusable): (Vec<&str>, Vec<&str>) = (ITEM_NAMES.into_iter())
            .chain(self.fields.names())
            .partition(|known| is_identifier(known));
        if let Some(unusable) = unusable.iter().find(|field| field.starts_with(name)) {
            return format!(
                "rename the field `{unusable}`: a condition has names of letters, digits and `_`"
            );
        }
        suggest(name, known.iter().copied(), "fields")
    }

    fn property(&mut self, operand: IdedExpr, name: &str, dot: Range<usize>) -> Result<Term> {
        let operand = self.term(operand)?;
        // The token is the dot; the name follows it.
        let at = join(&operand.at, &(dot.start..dot.end + name.len()));
        if let Type::Object(field, FieldType::Image) = &operand.ty {
            let variable = match name {
                "width_px" => Some(Variable::WidthPx(field.clone())),
                "height_px" => Some(Variable::HeightPx(field.clone())),
                _ => None,
            };
            if let Some(variable) = variable {
                return Ok(self.variable(variable, Type::Integer, at));
            }
        }
        if METHODS.contains(&name) {
            let args = if is_length(name) { "" } else { "..." };
            let hint = format!("call it: `{}.{name}({args})`", self.code(&operand));
            return Err(self.error(&at, format!("`{name}` is a function"), hint));
        }
        let problem = format!("{} has no `{name}`", self.quote(&operand));
        let hint = match &operand.ty {
            Type::Object(_, FieldType::Image) => suggest(name, IMAGE_PROPERTIES, "properties"),
            Type::Object(field, ty) => object_hint(field, *ty),
            _ => "images alone have properties: `image.width_px`, `image.height_px`".into(),
        };
        Err(self.error(&at, problem, hint))
    }

    fn list(&mut self, list: ListExpr, at: Range<usize>) -> Result<Term> {
        let terms = self.terms(list.elements)?;
        let at = terms.iter().fold(at, |at, term| join(&at, &term.at));
        let Some(first) = terms.first() else {
            return Err(self.error(&at, "the list is empty", "write what it holds: `[1, 2]`"));
        };
        let element = first.ty.clone();
        for term in &terms {
            if matches!(term.ty, Type::List(_)) || term.ty.is_object() {
                let problem = format!("a list cannot hold {}", term.ty);
                let hint = "it holds text, numbers or bools";
                return Err(self.error(&term.at, problem, hint));
            }
            if term.ty != element {
                let problem = format!(
                    "the list holds {element} ({}) and {} ({})",
                    self.quote(first),
                    term.ty,
                    self.quote(term)
                );
                return Err(self.error(&term.at, problem, "write all its elements as one type"));
            }
        }
        let ty = Type::List(Box::new(element));
        if terms.iter().all(Term::is_literal) {
            let literals = terms.iter().filter_map(|term| match &term.expr.expr {
                Expr::Literal(literal) => Some(literal.to_val().as_ref().clone_as_boxed()),
                _ => None,
            });
            let values = CelList::from(literals.collect::<Vec<_>>());
            return Ok(self.variable(Variable::Constant(Box::new(values)), ty, at));
        }
        let elements = terms.into_iter().map(|term| term.expr).collect();
        Ok(Term::new(Expr::List(ListExpr::new(elements)), ty, at))
    }

    pub(super) fn terms(&mut self, exprs: Vec<IdedExpr>) -> Result<Vec<Term>> {
        exprs.into_iter().map(|expr| self.term(expr)).collect()
    }

    fn call(&mut self, call: CallExpr, token: Range<usize>) -> Result<Term> {
        let name = call.func_name.as_str();
        match (call.target, call.args.len()) {
            (Some(target), _) => {
                let at = self.source.function(name, &token);
                self.method(*target, name, call.args, &join(&at, &token))
            }
            (None, 1) if matches!(name, operators::LOGICAL_NOT | operators::NEGATE) => {
                let operand = self.terms(call.args)?.remove(0);
                self.unary(name, operand, &token)
            }
            (None, 2) if is_binary(name) => {
                let [left, right] = two(self.terms(call.args)?);
                self.binary(name, left, right, &token)
            }
            (None, 3) if name == operators::CONDITIONAL => self.choice(call.args),
            (None, _) if name == operators::INDEX => {
                let hint = "test whether a value is in the list: `page in [1, 2]`";
                Err(self.error(&token, "a condition cannot take single elements", hint))
            }
            (None, _) => {
                let at = self.source.function(name, &token);
                self.function(name, call.args, &join(&at, &token))
            }
        }
    }
}

fn two(terms: Vec<Term>) -> [Term; 2] {
    <[Term; 2]>::try_from(terms)
        .ok()
        .expect("the operator has two operands")
}

fn is_binary(name: &str) -> bool {
    use operators::{
        ADD, DIVIDE, EQUALS, GREATER, GREATER_EQUALS, IN, LESS, LESS_EQUALS, LOGICAL_AND,
        LOGICAL_OR, MODULO, MULTIPLY, NOT_EQUALS, SUBSTRACT,
    };
    [
        LOGICAL_OR,
        LOGICAL_AND,
        EQUALS,
        NOT_EQUALS,
        LESS,
        LESS_EQUALS,
        GREATER,
        GREATER_EQUALS,
        IN,
        ADD,
        SUBSTRACT,
        MULTIPLY,
        DIVIDE,
        MODULO,
    ]
    .contains(&name)
}

/// Whether the function is the length of something.
pub(super) fn is_length(name: &str) -> bool {
    matches!(name, "len" | "size")
}

/// What every item has, by name.
fn item_name(name: &str) -> Option<(Variable, Type)> {
    Some(match name {
        "page" => (Variable::Page, Type::Integer),
        "part" => (Variable::Part, Type::Integer),
        "uri" => (Variable::Uri, Type::Text),
        "media_type" => (Variable::MediaType, Type::Text),
        "n_bytes" => (Variable::NBytes, Type::Integer),
        _ => return None,
    })
}

/// Whether a condition can name the field.
fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

//! The types of the language, and how messages speak of them.

use std::fmt;
use std::ops::Range;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue};

use crate::fields::FieldType;

/// The type of a part of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Integer,
    Float,
    Text,
    List(Box<Type>),
    /// A field that has a length or properties, but is no value of the language.
    Object(String, FieldType),
}

impl Type {
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Integer | Self::Float)
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self, Self::Object(..))
    }

    /// Whether `==` can hold between them: numbers compare by value.
    pub(super) fn compares_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(..), _) => false,
            (Self::List(a), Self::List(b)) => a.compares_with(b),
            _ => self == other || (self.is_number() && other.is_number()),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("a bool"),
            Self::Integer => f.write_str("an integer"),
            Self::Float => f.write_str("a float"),
            Self::Text => f.write_str("text"),
            Self::List(_) => f.write_str("a list"),
            Self::Object(_, FieldType::Image) => f.write_str("an image"),
            Self::Object(_, ty @ (FieldType::Words | FieldType::Bytes)) => ty.fmt(f),
            Self::Object(_, FieldType::Custom) => {
                f.write_str("a value that only stages understand")
            }
            Self::Object(_, ty) => write!(f, "a {ty}"),
        }
    }
}

/// A checked part of an expression, its names resolved.
pub(super) struct Term {
    pub(super) expr: IdedExpr,
    pub(super) ty: Type,
    pub(super) at: Range<usize>,
}

impl Term {
    pub(super) fn new(expr: Expr, ty: Type, at: Range<usize>) -> Self {
        // The numbers of nodes say where they stand; evaluation needs none.
        let expr = IdedExpr { id: 0, expr };
        Self { expr, ty, at }
    }

    pub(super) fn is_literal(&self) -> bool {
        matches!(self.expr.expr, Expr::Literal(_))
    }

    pub(super) fn is_zero(&self) -> bool {
        matches!(&self.expr.expr, Expr::Literal(LiteralValue::Int(number)) if **number == 0)
    }

    /// Its text as an operand in a hint: in brackets if it has operators.
    pub(super) fn operand(&self, code: &str) -> String {
        match &self.expr.expr {
            Expr::Call(call) if !call.func_name.starts_with(|c: char| c.is_alphabetic()) => {
                format!("({code})")
            }
            _ => code.to_owned(),
        }
    }

    /// Whether it is a number in quotes.
    pub(super) fn is_quoted_number(&self) -> bool {
        // "inf" and "nan" parse as well.
        let is_number = |text: &str| {
            text.ends_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok()
        };
        matches!(&self.expr.expr, Expr::Literal(LiteralValue::String(text)) if is_number(text))
    }

    /// How to make a bool of it.
    pub(super) fn bool_hint(&self, code: &str) -> String {
        let given = self.operand(code);
        match &self.ty {
            Type::Text => format!("compare it: `{given} != \"\"`"),
            Type::Integer => format!("compare it: `{given} > 0`"),
            Type::Float => format!("compare it: `{given} > 0.0`"),
            Type::Object(name, ty) => object_hint(name, *ty),
            Type::Bool | Type::List(_) => "test whether a value is in it: `page in [1, 2]`".into(),
        }
    }
}

/// What can be asked of a field that is no value.
pub(super) fn object_hint(name: &str, ty: FieldType) -> String {
    match ty {
        FieldType::Image => {
            format!("ask for `{name}.width_px`, `{name}.height_px` or `has({name})`")
        }
        FieldType::Custom => format!("ask for `has({name})`"),
        _ => format!("ask for `{name}.len()` or `has({name})`"),
    }
}

/// A call of the operator or function `name`.
pub(super) fn apply(name: &str, terms: Vec<Term>, ty: Type, at: Range<usize>) -> Term {
    let call = CallExpr {
        func_name: name.to_owned(),
        target: None,
        args: terms.into_iter().map(|term| term.expr).collect(),
    };
    Term::new(Expr::Call(call), ty, at)
}

/// How to make a number of a term that is none.
pub(super) fn number_hint(term: &Term, code: &str) -> String {
    let given = term.operand(code);
    match &term.ty {
        Type::Text if term.is_quoted_number() => format!("write `{code}` without quotes"),
        Type::Text if term.is_literal() => "write a number".into(),
        Type::Text | Type::List(_) => format!("take its length: `{given}.len()`"),
        Type::Object(name, ty) => object_hint(name, *ty),
        _ => format!("choose a number by it: `({given} ? 1 : 0)`"),
    }
}

/// How to make a float of an integer.
pub(super) fn float_hint(term: &Term, code: &str) -> String {
    if term.is_literal() {
        format!("write `{code}.0`")
    } else {
        format!("write `double({code})`")
    }
}

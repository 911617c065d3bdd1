//! The operators of an expression: what they take and give.

use std::ops::Range;

use cel::IdedExpr;
use cel::common::ast::operators;

use super::ExpressionError;
use super::check::{Checker, Result};
use super::source::join;
use super::types::{Term, Type, apply, float_hint, number_hint, object_hint};

impl Checker<'_> {
    pub(super) fn unary(
        &self,
        operator: &str,
        operand: Term,
        token: &Range<usize>,
    ) -> Result<Term> {
        let at = join(token, &operand.at);
        if operator == operators::LOGICAL_NOT {
            self.expect_bool("!", &operand)?;
        } else if !operand.ty.is_number() {
            let quoted = self.quote(&operand);
            let problem = format!("`-` takes a number, and {quoted} is {}", operand.ty);
            let hint = number_hint(&operand, self.code(&operand));
            return Err(self.error(&operand.at, problem, hint));
        }
        let ty = operand.ty.clone();
        Ok(apply(operator, vec![operand], ty, at))
    }

    fn expect_bool(&self, operator: &str, term: &Term) -> Result<()> {
        if term.ty == Type::Bool {
            return Ok(());
        }
        let quoted = self.quote(term);
        let problem = format!("`{operator}` takes a bool, and {quoted} is {}", term.ty);
        Err(self.error(&term.at, problem, term.bool_hint(self.code(term))))
    }

    pub(super) fn binary(
        &self,
        operator: &str,
        left: Term,
        right: Term,
        token: &Range<usize>,
    ) -> Result<Term> {
        let at = join(token, &join(&left.at, &right.at));
        let symbol = operator.trim_matches(['_', '@']);
        let ty = match operator {
            operators::LOGICAL_AND | operators::LOGICAL_OR => {
                self.expect_bool(symbol, &left)?;
                self.expect_bool(symbol, &right)?;
                Type::Bool
            }
            operators::IN => {
                self.expect_element(&left, &right)?;
                Type::Bool
            }
            operators::EQUALS | operators::NOT_EQUALS => {
                if !left.ty.compares_with(&right.ty) {
                    return Err(self.cannot_compare(symbol, &left, &right, &at));
                }
                Type::Bool
            }
            operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS => {
                let is_list = matches!(left.ty, Type::List(_));
                if is_list || !left.ty.compares_with(&right.ty) {
                    return Err(self.cannot_compare(symbol, &left, &right, &at));
                }
                Type::Bool
            }
            _ => self.arithmetic(symbol, &left, &right, &at)?,
        };
        Ok(apply(operator, vec![left, right], ty, at))
    }

    fn expect_element(&self, element: &Term, list: &Term) -> Result<()> {
        let (code, list_code) = (self.code(element), self.code(list));
        let Type::List(ty) = &list.ty else {
            let problem = format!("`in` takes a list, and {} is {}", self.quote(list), list.ty);
            let hint = if list.ty == Type::Text && element.ty == Type::Text {
                format!("write `{}.contains({code})`", list.operand(list_code))
            } else {
                format!("write the values in brackets: `{code} in [...]`")
            };
            return Err(self.error(&list.at, problem, hint));
        };
        if element.ty.compares_with(ty) {
            return Ok(());
        }
        let quoted = self.quote(element);
        let problem = format!("{quoted} is {}, and the list holds {ty}", element.ty);
        let hint = match (&element.ty, &**ty) {
            (Type::Object(name, ty), _) => object_hint(name, *ty),
            (Type::Text, _) => "write its values in quotes".into(),
            (_, Type::Text) => "write its values without quotes".into(),
            _ => format!("write a list that can hold `{code}`"),
        };
        Err(self.error(&join(&element.at, &list.at), problem, hint))
    }

    fn cannot_compare(
        &self,
        symbol: &str,
        left: &Term,
        right: &Term,
        at: &Range<usize>,
    ) -> ExpressionError {
        let (a, b) = (self.quote(left), self.quote(right));
        let problem = format!(
            "`{symbol}` cannot compare {} ({a}) with {} ({b})",
            left.ty, right.ty
        );
        let (code_a, code_b) = (self.code(left), self.code(right));
        let is_equality = matches!(symbol, "==" | "!=");
        let hint = match (&left.ty, &right.ty) {
            (Type::Object(name, ty), _) | (_, Type::Object(name, ty)) => object_hint(name, *ty),
            (Type::List(_), _) | (_, Type::List(_)) => {
                "test whether a value is in a list: `page in [1, 2]`".into()
            }
            _ if left.is_quoted_number() => format!("write `{code_a}` without quotes"),
            _ if right.is_quoted_number() => format!("write `{code_b}` without quotes"),
            (Type::Text, _) if is_equality && right.is_literal() => {
                format!("put it in quotes: `\"{code_b}\"`")
            }
            (_, Type::Text) if is_equality && left.is_literal() => {
                format!("put it in quotes: `\"{code_a}\"`")
            }
            (Type::Text, Type::Integer) if !left.is_literal() => {
                let given = left.operand(code_a);
                format!("compare its length: `{given}.len() {symbol} {code_b}`")
            }
            (Type::Integer, Type::Text) if !right.is_literal() => {
                let given = right.operand(code_b);
                format!("compare its length: `{code_a} {symbol} {given}.len()`")
            }
            _ => "compare values of one type".into(),
        };
        self.error(at, problem, hint)
    }

    /// The type of `left symbol right` for `+ - * / %`.
    fn arithmetic(
        &self,
        symbol: &str,
        left: &Term,
        right: &Term,
        at: &Range<usize>,
    ) -> Result<Type> {
        let fits = match left.ty {
            Type::Integer => true,
            Type::Float => symbol != "%",
            Type::Text => symbol == "+",
            _ => false,
        };
        if fits && left.ty == right.ty {
            if matches!(symbol, "/" | "%") && right.is_zero() {
                return Err(self.error(at, "this divides by zero", "write another divisor"));
            }
            return Ok(left.ty.clone());
        }
        let (a, b) = (self.quote(left), self.quote(right));
        let (code_a, code_b) = (self.code(left), self.code(right));
        let problem = format!(
            "`{symbol}` cannot take {} ({a}) and {} ({b})",
            left.ty, right.ty
        );
        let hint = match (&left.ty, &right.ty) {
            (Type::Integer, Type::Float) if symbol != "%" => float_hint(left, code_a),
            (Type::Float, Type::Integer) if symbol != "%" => float_hint(right, code_b),
            (Type::Float, _) | (_, Type::Float) if symbol == "%" => {
                "`%` takes two integers; make one of a float with `int(...)`".into()
            }
            (Type::Integer | Type::Float, _) => number_hint(right, code_b),
            _ => number_hint(left, code_a),
        };
        Err(self.error(at, problem, hint))
    }

    /// `condition ? yes : no`.
    pub(super) fn choice(&mut self, args: Vec<IdedExpr>) -> Result<Term> {
        let terms = self.terms(args)?;
        let at = join(&terms[0].at, &terms[2].at);
        let (yes, no) = (&terms[1], &terms[2]);
        self.expect_bool("? :", &terms[0])?;
        if yes.ty != no.ty || yes.ty.is_object() {
            let problem = format!(
                "`? :` cannot choose between {} ({}) and {} ({})",
                yes.ty,
                self.quote(yes),
                no.ty,
                self.quote(no)
            );
            let hint = match (&yes.ty, &no.ty) {
                (Type::Object(name, ty), _) | (_, Type::Object(name, ty)) => object_hint(name, *ty),
                (Type::Integer, Type::Float) => float_hint(yes, self.code(yes)),
                (Type::Float, Type::Integer) => float_hint(no, self.code(no)),
                _ => "write two values of one type".into(),
            };
            return Err(self.error(&join(&yes.at, &no.at), problem, hint));
        }
        let ty = yes.ty.clone();
        Ok(apply(operators::CONDITIONAL, terms, ty, at))
    }
}

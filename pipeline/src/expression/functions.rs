//! The functions of an expression: what they take and give.

use std::ops::Range;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr};

use super::check::{Checker, IMAGE_PROPERTIES, ITEM_NAMES, METHODS, Result, is_length};
use super::evaluate::{Variable, find};
use super::source::join;
use super::types::{Term, Type, apply, number_hint, object_hint};
use crate::config::suggest;
use crate::fields::FieldType;

const FUNCTIONS: [&str; 4] = ["has", "size", "int", "double"];

impl Checker<'_> {
    pub(super) fn function(
        &mut self,
        name: &str,
        args: Vec<IdedExpr>,
        at: &Range<usize>,
    ) -> Result<Term> {
        if !FUNCTIONS.contains(&name) {
            let problem = format!("there is no function `{name}`");
            let hint = if METHODS.contains(&name) {
                format!("write it after the value: `text.{name}(...)`")
            } else {
                suggest(name, FUNCTIONS, "functions")
            };
            return Err(self.error(at, problem, hint));
        }
        self.expect_count(name, &args, 1, at)?;
        let arg = args.into_iter().next().expect("it was counted");
        if name == "has" {
            return self.presence(arg, at);
        }
        let arg = self.term(arg)?;
        let whole = join(at, &arg.at);
        let ty = match name {
            "size" => return self.length(arg, name, whole),
            "int" => Type::Integer,
            _ => Type::Float,
        };
        if !arg.ty.is_number() {
            let quoted = self.quote(&arg);
            let problem = format!("`{name}` takes a number, and {quoted} is {}", arg.ty);
            return Err(self.error(&arg.at, problem, number_hint(&arg, self.code(&arg))));
        }
        Ok(apply(name, vec![arg], ty, whole))
    }

    fn expect_count(
        &self,
        name: &str,
        args: &[IdedExpr],
        n: usize,
        at: &Range<usize>,
    ) -> Result<()> {
        if args.len() == n {
            return Ok(());
        }
        let problem = match n {
            0 => format!("`{name}` takes no argument, not {}", args.len()),
            _ => format!("`{name}` takes one argument, not {}", args.len()),
        };
        let hint = match name {
            "has" => "write the name of a field: `has(text)`",
            "len" => "write `text.len()`",
            "size" => "write `text.size()` or `size(text)`",
            "int" | "double" => "write one number in its brackets: `double(page)`",
            _ => "write one text in its brackets: `text.contains(\"draft\")`",
        };
        Err(self.error(at, problem, hint))
    }

    /// `has(name)`, which is no value's function: CEL has it for members alone.
    fn presence(&mut self, arg: IdedExpr, at: &Range<usize>) -> Result<Term> {
        let token = self.source.token(arg.id);
        let whole = join(at, &token);
        let Expr::Ident(name) = arg.expr else {
            let hint = "write the name of a field: `has(text)`";
            return Err(self.error(&whole, "`has` takes the name of a field", hint));
        };
        self.field(&name, &token)?;
        let variable = match name.as_str() {
            "page" => Variable::HasPage,
            "part" => Variable::HasPart,
            _ if ITEM_NAMES.contains(&name.as_str()) => {
                let hint = "leave the test out, or compare the value";
                return Err(self.error(&whole, format!("every item has a `{name}`"), hint));
            }
            _ => Variable::Has(name),
        };
        Ok(self.variable(variable, Type::Bool, whole))
    }

    pub(super) fn method(
        &mut self,
        target: IdedExpr,
        name: &str,
        args: Vec<IdedExpr>,
        at: &Range<usize>,
    ) -> Result<Term> {
        let target = self.term(target)?;
        let code = self.code(&target);
        if !METHODS.contains(&name) {
            let problem = format!("there is no function `{name}` of {}", target.ty);
            let hint = match &target.ty {
                _ if FUNCTIONS.contains(&name) => format!("write `{name}({code})`"),
                Type::Object(_, FieldType::Image) if IMAGE_PROPERTIES.contains(&name) => {
                    format!("write `{code}.{name}`")
                }
                Type::Object(name, ty) => object_hint(name, *ty),
                _ if name == "matches" => {
                    "there are no patterns here: use `contains`, `startsWith` or `endsWith`".into()
                }
                _ => suggest(name, METHODS, "functions"),
            };
            return Err(self.error(&join(&target.at, at), problem, hint));
        }
        self.expect_count(name, &args, usize::from(!is_length(name)), at)?;
        if is_length(name) {
            let whole = join(&target.at, at);
            return self.length(target, name, whole);
        }
        if target.ty != Type::Text {
            let quoted = self.quote(&target);
            let problem = format!("`{name}` looks into text, and {quoted} is {}", target.ty);
            let hint = match &target.ty {
                Type::Object(name, ty) => object_hint(name, *ty),
                Type::List(_) => "test whether a value is in a list: `page in [1, 2]`".into(),
                _ => "compare it with `==` or `<`".into(),
            };
            return Err(self.error(&target.at, problem, hint));
        }
        let arg = self.terms(args)?.remove(0);
        let whole = join(&target.at, &join(at, &arg.at));
        if arg.ty != Type::Text {
            let quoted = self.quote(&arg);
            let problem = format!("`{name}` looks for text, and {quoted} is {}", arg.ty);
            let hint = if arg.is_literal() {
                format!("put it in quotes: `\"{}\"`", self.code(&arg))
            } else {
                "write a text: `text.contains(\"draft\")`".into()
            };
            return Err(self.error(&arg.at, problem, hint));
        }
        let call = CallExpr {
            func_name: name.to_owned(),
            target: Some(Box::new(target.expr)),
            args: vec![arg.expr],
        };
        Ok(Term::new(Expr::Call(call), Type::Bool, whole))
    }

    fn length(&mut self, operand: Term, name: &str, at: Range<usize>) -> Result<Term> {
        match &operand.ty {
            Type::Text | Type::List(_) => {
                // A field's own length needs no string of CEL's made of it.
                let read = match &operand.expr.expr {
                    Expr::Ident(place) => find(&self.variables, place),
                    _ => None,
                };
                if let Some(Variable::Field(field, ty)) = read {
                    let variable = Variable::Length(field.clone(), *ty);
                    return Ok(self.variable(variable, Type::Integer, at));
                }
                Ok(apply("size", vec![operand], Type::Integer, at))
            }
            Type::Object(field, ty) if !matches!(ty, FieldType::Image | FieldType::Custom) => {
                let variable = Variable::Length(field.clone(), *ty);
                Ok(self.variable(variable, Type::Integer, at))
            }
            ty => {
                let quoted = self.quote(&operand);
                let problem = format!("{quoted} is {ty} and has no `{name}`");
                let hint = match ty {
                    Type::Object(field, ty) => object_hint(field, *ty),
                    _ => "text, lists, words, vectors and bytes have a length".into(),
                };
                Err(self.error(&at, problem, hint))
            }
        }
    }
}

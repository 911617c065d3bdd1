//! The values that an expression reads off an item.

use cel::ExecutionError;
use cel::common::types::{CelBool, CelDouble, CelInt, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;

use super::source::excerpt;
use crate::error::ItemError;
use crate::fields::FieldType;
use crate::item::Item;
use crate::value::Value;

/// Something that an expression reads; its name in the expression is its place
/// in the list of them.
#[derive(Debug)]
pub(super) enum Variable {
    Page,
    Part,
    Uri,
    MediaType,
    NBytes,
    HasPage,
    HasPart,
    /// A field by its value: text, bool, integer or float.
    Field(String, FieldType),
    /// Whether the item has the field.
    Has(String),
    /// The length of a field.
    Length(String, FieldType),
    WidthPx(String),
    HeightPx(String),
    /// A list of literals, which is not made anew for each item.
    Constant(Box<dyn Val>),
}

impl Variable {
    /// The field that it looks at.
    pub(super) fn field(&self) -> Option<&str> {
        match self {
            Self::Field(name, _)
            | Self::Has(name)
            | Self::Length(name, _)
            | Self::WidthPx(name)
            | Self::HeightPx(name) => Some(name),
            _ => None,
        }
    }

    /// Its value; `None` if the item's field is of another type than it should be.
    fn of<'a>(&'a self, item: &'a Item) -> Option<CowVal<'a, 'a>> {
        Some(match self {
            Self::Page => integer(item.key().page.map_or(0, i64::from)),
            Self::Part => integer(item.key().part.map_or(0, i64::from)),
            Self::Uri => text(&item.origin().uri),
            Self::MediaType => text(&item.origin().media_type),
            Self::NBytes => integer(i64::try_from(item.origin().n_bytes).unwrap_or(i64::MAX)),
            Self::HasPage => flag(item.key().page.is_some()),
            Self::HasPart => flag(item.key().part.is_some()),
            Self::Field(name, ty) => field(item.get(name), *ty)?,
            Self::Has(name) => flag(item.get(name).is_some()),
            Self::Length(name, ty) => integer(length(item.get(name), *ty)?),
            Self::WidthPx(name) => integer(sides(item.get(name))?.0),
            Self::HeightPx(name) => integer(sides(item.get(name))?.1),
            Self::Constant(value) => CowVal::Borrowed(&**value),
        })
    }
}

fn flag<'a>(value: bool) -> CowVal<'a, 'a> {
    CowVal::owned(CelBool::from(value))
}

fn integer<'a>(value: i64) -> CowVal<'a, 'a> {
    CowVal::owned(CelInt::from(value))
}

fn text(value: &str) -> CowVal<'_, '_> {
    CowVal::owned(CelString::from(value))
}

fn field(value: Option<&Value>, ty: FieldType) -> Option<CowVal<'_, '_>> {
    Some(match (ty, value) {
        (FieldType::Text, None) => text(""),
        (FieldType::Text, Some(Value::Text(value))) => text(value),
        (FieldType::Bool, None) => flag(false),
        (FieldType::Bool, Some(Value::Bool(value))) => flag(*value),
        (FieldType::Integer, None) => integer(0),
        (FieldType::Integer, Some(Value::Integer(value))) => integer(*value),
        (FieldType::Float, None) => CowVal::owned(CelDouble::from(0.0)),
        (FieldType::Float, Some(Value::Float(value))) => CowVal::owned(CelDouble::from(*value)),
        _ => return None,
    })
}

fn length(value: Option<&Value>, ty: FieldType) -> Option<i64> {
    let length = match (ty, value) {
        (_, None) => 0,
        (FieldType::Text, Some(Value::Text(text))) => text.chars().count(),
        (FieldType::Words, Some(Value::Words(words))) => words.len(),
        (FieldType::Vector | FieldType::MultiVector, Some(Value::Vectors(vectors))) => vectors.n(),
        (FieldType::Bytes, Some(Value::Bytes(bytes))) => bytes.len(),
        (FieldType::Document, Some(Value::Document(bytes))) => bytes.len(),
        _ => return None,
    };
    Some(length as i64)
}

fn sides(value: Option<&Value>) -> Option<(i64, i64)> {
    match value {
        None => Some((0, 0)),
        Some(Value::Image(image)) => Some((image.width_px.into(), image.height_px.into())),
        Some(_) => None,
    }
}

/// The variables of an expression with the values that one item gives them. A
/// value is read when the evaluation comes to it, and text is not copied.
pub(super) struct Variables<'a> {
    variables: &'a [Variable],
    item: &'a Item,
}

impl<'a> Variables<'a> {
    pub(super) fn new(variables: &'a [Variable], item: &'a Item) -> Self {
        Self { variables, item }
    }
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        find(self.variables, name)?.of(self.item)
    }
}

/// The variable that an expression calls `name`: its place in the list.
pub(super) fn find<'a>(variables: &'a [Variable], name: &str) -> Option<&'a Variable> {
    variables.get(name.parse::<usize>().ok()?)
}

/// Why an expression failed on an item.
pub(super) fn item_error(
    error: &ExecutionError,
    expression: &str,
    variables: &[Variable],
) -> ItemError {
    let expression = excerpt(expression);
    let (reason, hint) = match error {
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => (
            format!("{expression} divides by zero"),
            "test the divisor first: `page != 0 && n_bytes / page > 1000`",
        ),
        ExecutionError::Overflow(..) => (
            format!("a number in {expression} goes beyond 64 bits"),
            "compute with `double(...)`",
        ),
        // The types were checked: what is left without an order is NaN.
        ExecutionError::NoSuchOverload(_) | ExecutionError::ValuesNotComparable(..) => (
            format!("a number in {expression} is NaN, which has no order"),
            "test it first: a NaN is not equal to itself",
        ),
        ExecutionError::UndeclaredReference(name) => {
            let field = find(variables, name).and_then(Variable::field);
            let field = field.unwrap_or_default();
            (
                format!("its `{field}` is not of the type that {expression} was checked for"),
                "have the stage that adds the field declare the type that it sets",
            )
        }
        ExecutionError::FunctionError { message, .. } => (
            format!("{expression} cannot be computed: {message}"),
            "test the number's range first",
        ),
        error => (
            format!("{expression} cannot be computed: {error}"),
            "test the values that it computes with first",
        ),
    };
    ItemError::new("route", reason).hint(hint)
}

//! A JSON Schema and the columns that it makes.

use std::path::Path;

use pagemill_models::{Constraint, GenerateProblem, ModelError};
use pagemill_pipeline::{Field, FieldError, FieldType, Item};
use serde_json::Value as Json;

use super::ask::Grammar;

/// Most properties that may become columns.
const MAX_PROPERTIES: usize = 256;

/// The schema of an object, one column for each of its properties.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    columns: Vec<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    property: String,
    field: Field,
}

fn wrong(problem: impl std::fmt::Display, hint: &str) -> FieldError {
    FieldError::new("schema", problem, hint)
}

/// The setting `schema`: a table, or the path of a JSON file.
///
/// # Errors
/// The file cannot be read, or is no JSON.
pub(super) fn read(setting: &Json) -> Result<Json, FieldError> {
    let Json::String(path) = setting else {
        return Ok(setting.clone());
    };
    let hint = "give the path of a JSON file, or the schema itself as a table";
    let text = std::fs::read_to_string(Path::new(path))
        .map_err(|error| wrong(format_args!("cannot be read from `{path}`: {error}"), hint))?;
    serde_json::from_str(&text)
        .map_err(|error| wrong(format_args!("in `{path}` is no JSON: {error}"), hint))
}

/// What keeps an answer to a schema.
///
/// # Errors
/// The schema asks for what cannot be met.
pub(super) fn grammar(schema: Json) -> Result<Grammar, FieldError> {
    let constraint = Constraint::json_schema(&schema).map_err(|error| {
        let problem = match &error {
            ModelError::Generate(GenerateProblem::Constraint { problem }) => problem.clone(),
            other => other.to_string(),
        };
        let what = if problem.starts_with("Unimplemented") {
            "asks for what is not supported"
        } else {
            "cannot be met"
        };
        wrong(format_args!("{what}: {problem}"), &error.hint())
    })?;
    Ok(Grammar { schema, constraint })
}

impl Columns {
    /// The properties of a schema, each under its name with `prefix` before it.
    ///
    /// # Errors
    /// The schema is not that of an object with properties.
    pub(super) fn of(schema: &Json, prefix: &str) -> Result<Self, FieldError> {
        let hint = "for example `schema = { type = \"object\", properties = { total = { type = \"number\" } } }`";
        if schema.get("type").and_then(Json::as_str) != Some("object") {
            return Err(wrong("must be that of an object", hint));
        }
        let properties = schema.get("properties").and_then(Json::as_object);
        let properties = properties.filter(|properties| !properties.is_empty());
        let properties = properties.ok_or_else(|| wrong("has no `properties`", hint))?;
        if properties.len() > MAX_PROPERTIES {
            let problem = format!(
                "has {} properties; {MAX_PROPERTIES} is the most",
                properties.len()
            );
            return Err(wrong(
                problem,
                "put some of them into an object of their own",
            ));
        }
        let mut columns = Vec::with_capacity(properties.len());
        for (property, value) in properties {
            let is_name = !property.is_empty()
                && property
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                return Err(wrong(
                    format_args!("has a property that is no name of a column: `{property}`"),
                    "use letters, digits and `_`",
                ));
            }
            columns.push(Column {
                field: Field {
                    name: format!("{prefix}{property}").into(),
                    ty: type_of(value),
                },
                property: property.clone(),
            });
        }
        Ok(Self { columns })
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = Field> {
        self.columns.iter().map(|column| column.field.clone())
    }

    /// Puts the properties of an answer into their columns; one that is `null` or not there
    /// leaves its column empty.
    ///
    /// # Errors
    /// The answer is no object, or a value does not fit its column.
    pub(super) fn put(&self, item: &mut Item, answer: &str) -> Result<(), String> {
        let answer: Json = serde_json::from_str(answer)
            .map_err(|error| format!("the answer is no JSON: {error}"))?;
        let object = answer.as_object().ok_or("the answer is no object")?;
        for Column { property, field } in &self.columns {
            item.remove(&field.name);
            let Some(value) = object.get(property).filter(|value| !value.is_null()) else {
                continue;
            };
            let name = field.name.clone();
            let unfit = || format!("`{property}` is {value}, which is no {}", field.ty);
            match field.ty {
                FieldType::Integer => {
                    let whole = value.as_i64().or_else(|| {
                        let number = value.as_f64().filter(|x| x.fract() == 0.0)?;
                        (number.abs() < 9e18).then_some(number as i64)
                    });
                    item.set(name, whole.ok_or_else(unfit)?);
                }
                FieldType::Float => item.set(name, value.as_f64().ok_or_else(unfit)?),
                FieldType::Bool => item.set(name, value.as_bool().ok_or_else(unfit)?),
                _ => match value {
                    Json::String(text) => item.set(name, text.as_str()),
                    value => item.set(name, value.to_string().as_str()),
                },
            }
        }
        Ok(())
    }
}

/// The column's type: what is neither a number nor a flag is text, and what is no string
/// becomes JSON.
fn type_of(schema: &Json) -> FieldType {
    let types: Vec<&str> = match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    };
    let types: Vec<&str> = types.into_iter().filter(|name| *name != "null").collect();
    match types.as_slice() {
        ["integer"] => FieldType::Integer,
        ["number"] | ["integer", "number"] | ["number", "integer"] => FieldType::Float,
        ["boolean"] => FieldType::Bool,
        _ => FieldType::Text,
    }
}

#[cfg(test)]
mod tests {
    use pagemill_pipeline::Value;
    use serde_json::json;

    use super::*;

    fn invoice() -> Json {
        json!({ "type": "object", "properties": {
            "number": { "type": "string" },
            "total": { "type": ["number", "null"] },
            "pages": { "type": "integer" },
            "paid": { "type": "boolean" },
            "lines": { "type": "array", "items": { "type": "string" } },
        }})
    }

    #[test]
    fn columns_have_the_types_of_their_properties() {
        let columns = Columns::of(&invoice(), "x_").unwrap();
        let fields: Vec<(String, FieldType)> = columns
            .fields()
            .map(|field| (field.name.into_owned(), field.ty))
            .collect();
        let expected = [
            ("x_lines", FieldType::Text),
            ("x_number", FieldType::Text),
            ("x_pages", FieldType::Integer),
            ("x_paid", FieldType::Bool),
            ("x_total", FieldType::Float),
        ];
        let mut sorted = fields;
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(sorted, expected.map(|(name, ty)| (name.to_owned(), ty)));
    }

    #[test]
    fn an_answer_fills_its_columns() {
        let columns = Columns::of(&invoice(), "").unwrap();
        let mut item = Item::of_text("a.pdf", "").with("total", 3.0);
        let answer =
            r#"{"number": "A-1", "total": null, "pages": 2.0, "paid": true, "lines": ["a"]}"#;
        columns.put(&mut item, answer).unwrap();
        assert!(matches!(item.get("number"), Some(Value::Text(text)) if &**text == "A-1"));
        assert!(matches!(item.get("pages"), Some(Value::Integer(2))));
        assert!(matches!(item.get("paid"), Some(Value::Bool(true))));
        assert!(matches!(item.get("lines"), Some(Value::Text(text)) if &**text == r#"["a"]"#));
        assert!(item.get("total").is_none());
        let error = columns.put(&mut item, r#"{"pages": 2.5}"#).unwrap_err();
        assert_eq!(error, "`pages` is 2.5, which is no integer");
        assert!(columns.put(&mut item, "[1]").is_err() && columns.put(&mut item, "{").is_err());
    }

    #[test]
    fn a_schema_that_makes_no_columns_is_refused() {
        for schema in [
            json!({ "type": "string" }),
            json!({ "type": "object" }),
            json!({ "type": "object", "properties": {} }),
            json!({ "type": "object", "properties": { "a b": {} } }),
        ] {
            assert!(Columns::of(&schema, "").is_err(), "{schema}");
        }
        assert!(read(&json!("no/such/file.json")).is_err());
    }
}

//! Prompts with fields of the item in them: `"Summarize: {{ text }}"`.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{Environment, UndefinedBehavior, Value as Shown};
use pagemill_pipeline::{Field, FieldError, FieldType, Fields, Item, ItemError, Value};

/// What every item has besides its fields.
const OF_EVERY_ITEM: [&str; 2] = ["uri", "page"];

/// Steps that a template may take: a loop over a text of a million letters is no prompt.
const FUEL: u64 = 100_000;

/// A Jinja template over an item's fields.
#[derive(Debug)]
pub(super) struct PromptTemplate {
    environment: Environment<'static>,
    names: BTreeSet<String>,
    setting: &'static str,
}

impl PromptTemplate {
    /// Reads the template that `setting` has.
    ///
    /// # Errors
    /// It is empty, or no template.
    pub(super) fn new(setting: &'static str, template: &str) -> Result<Self, FieldError> {
        if template.trim().is_empty() {
            return Err(FieldError::new(
                setting,
                "is empty",
                "say what the model is to do, as in `\"Summarize: {{ text }}\"`",
            ));
        }
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        let wrong = |error: minijinja::Error| {
            let detail = error.detail().unwrap_or("it is no template").to_owned();
            FieldError::new(
                setting,
                format_args!("is no template: {detail}"),
                "fields stand in double braces, as in `{{ text }}`",
            )
        };
        environment
            .add_template_owned("prompt", template.to_owned())
            .map_err(wrong)?;
        let names = environment
            .get_template("prompt")
            .map_err(wrong)?
            .undeclared_variables(false);
        Ok(Self {
            environment,
            names: names.into_iter().collect(),
            setting,
        })
    }

    /// The item's fields that it names, which must be text, numbers or flags.
    fn fields(&self) -> impl Iterator<Item = Field> {
        let own = |name: &&String| !OF_EVERY_ITEM.contains(&name.as_str());
        self.names.iter().filter(own).map(|name| Field {
            name: name.clone().into(),
            ty: FieldType::Text,
        })
    }

    /// The prompt for an item.
    ///
    /// # Errors
    /// The item lacks a field that it names.
    pub(super) fn render(&self, action: &'static str, item: &Item) -> Result<String, ItemError> {
        // Pairs in a list would become a list to the template, not its fields.
        let mut values = BTreeMap::new();
        for name in &self.names {
            let value = match (name.as_str(), item.get(name)) {
                (_, Some(value)) => show(value),
                ("uri", None) => Some(Shown::from(item.origin().uri.to_string())),
                ("page", None) => Some(item.key().page.map_or(Shown::from(()), Shown::from)),
                (_, None) => return Err(ItemError::missing(action, name)),
            };
            let value = value.ok_or_else(|| {
                let reason = format!("`{name}` is nothing that a prompt can show");
                ItemError::new(action, reason).hint("name fields of text, numbers or flags")
            })?;
            values.insert(name.clone(), value);
        }
        let wrong = |error: minijinja::Error| {
            let reason = format!("`{}` cannot be filled in: {error}", self.setting);
            ItemError::new(action, reason).hint("see the template in the configuration")
        };
        let template = self.environment.get_template("prompt").map_err(wrong)?;
        template.render(values).map_err(wrong)
    }
}

fn show(value: &Value) -> Option<Shown> {
    match value {
        Value::Text(text) => Some(Shown::from(text.to_string())),
        Value::Bool(flag) => Some(Shown::from(*flag)),
        Value::Integer(number) => Some(Shown::from(*number)),
        Value::Float(number) => Some(Shown::from(*number)),
        _ => None,
    }
}

/// Adds what templates name to what a node reads: text, or a number or flag in its place.
pub(super) fn read_fields(mut fields: Fields, templates: &[&str]) -> Fields {
    let known = templates
        .iter()
        .filter_map(|text| PromptTemplate::new("prompt", text).ok());
    let mut names: Vec<Field> = known
        .flat_map(|prompt| prompt.fields().collect::<Vec<_>>())
        .collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    names.dedup();
    for field in names {
        for ty in [FieldType::Integer, FieldType::Float, FieldType::Bool] {
            let other = Field {
                name: field.name.clone(),
                ty,
            };
            fields = fields.or_instead(&field, other);
        }
        fields = fields.also_reads([field]);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, item: &Item) -> Result<String, String> {
        PromptTemplate::new("prompt", template)
            .unwrap()
            .render("generate", item)
            .map_err(|error| error.message(&"a.pdf"))
    }

    #[test]
    fn fields_are_filled_in() {
        let item = Item::of_text("a.pdf", "the mill").with_page(3);
        let item = item.with("page_count", 7_i64);
        assert_eq!(
            rendered(
                "{{ uri }}, {{ page }} of {{ page_count }}: {{ text | upper }}",
                &item
            )
            .unwrap(),
            "a.pdf, 3 of 7: THE MILL"
        );
        assert_eq!(rendered("no field", &item).unwrap(), "no field");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let item = Item::of_text("a.pdf", "x");
        assert_eq!(
            rendered("{{ title }}", &item).unwrap_err(),
            "cannot generate `a.pdf`: it has no `title`"
        );
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for template in ["", " ", "{{ text", "{% for %}"] {
            assert!(
                PromptTemplate::new("prompt", template).is_err(),
                "{template}"
            );
        }
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let item = Item::of_text("a.pdf", "x");
        let endless =
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(
            rendered(endless, &item)
                .unwrap_err()
                .contains("cannot be filled in")
        );
    }

    #[test]
    fn the_check_knows_what_a_prompt_reads() {
        let fields = read_fields(
            Fields::default(),
            &["{{ a }} {{ page }}", "{% if b %}{{ a }}{% endif %}"],
        );
        assert!(fields.looks_at("a", FieldType::Text) && fields.looks_at("b", FieldType::Integer));
        assert!(!fields.looks_at("page", FieldType::Text));
    }
}

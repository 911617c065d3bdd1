//! `kind = "extract"`: fields of a JSON Schema, read off each item, one column each.

use std::sync::Arc;

use pagemill_pipeline::{FieldError, Fields, Item, ItemError, Resources, Stage, StageConfig};
use serde_json::Value as Json;

use super::ask::{Answer, Ask, Finish, Grammar, Wanted};
use super::prompt::{PromptTemplate, read_fields};
use super::schema::{self, Columns};
use super::settings::with_speaker;
use super::task::{Task, TaskStage, check_tokens, greedy, text_of, up_to};

with_speaker! {
    /// Settings of `kind = "extract"`.
    pub struct ExtractConfig {
        /// A JSON Schema of an object, as a table, or the path of a JSON file with one. Each of
        /// its properties becomes a column: text, integer, float or bool; what is none of these
        /// becomes JSON text.
        pub schema: Json,
        /// What the model is told before the schema; a template over the item's fields.
        #[serde(default = "usual_prompt")]
        pub prompt: String,
        /// Whether the model sees the item's picture.
        #[serde(default = "yes")]
        pub image: bool,
        /// Stands before each column's name.
        #[serde(default)]
        pub prefix: String,
        /// The most tokens that the JSON may have.
        #[serde(default = "usual_tokens")]
        pub max_new_tokens: usize,
    }
}

fn usual_prompt() -> String {
    "Read this page and fill in the fields. Give null for what it does not say, where that is \
     allowed."
        .into()
}

fn yes() -> bool {
    true
}

fn usual_tokens() -> usize {
    1024
}

impl ExtractConfig {
    fn columns(&self) -> Result<(Json, Columns), FieldError> {
        let schema = schema::read(&self.schema)?;
        let columns = Columns::of(&schema, &self.prefix)?;
        Ok((schema, columns))
    }
}

impl StageConfig for ExtractConfig {
    const KIND: &'static str = "extract";
    const ABOUT: &'static str = "fields of a JSON Schema, read off each item, one column each";
    const EXAMPLE: &'static str = "model = \"Qwen/Qwen2.5-VL-3B-Instruct\"\nschema = { type = \"object\", properties = { signed = { type = \"boolean\" } }, required = [\"signed\"], additionalProperties = false }\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let reads = if self.image {
            self.speaker().picture_fields([])
        } else {
            Fields::default()
        };
        let fields = read_fields(reads, &[&self.prompt]);
        match self.columns() {
            Ok((_, columns)) => fields.adds(columns.fields()),
            Err(_) => fields, // `build` says what is wrong.
        }
    }

    fn workers(&self) -> usize {
        self.speaker().workers()
    }

    fn row_settings(&self) -> String {
        format!("{:?}", self.of_rows())
    }

    fn revision(&self, resources: &Resources) -> String {
        // A schema in a file is not a part of the settings' text.
        let schema = schema::read(&self.schema).unwrap_or_default();
        format!("{} {schema}", self.speaker().revision(resources))
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        check_tokens(self.max_new_tokens)?;
        let (schema, columns) = self.columns()?;
        let task = Extract {
            prompt: PromptTemplate::new("prompt", &self.prompt)?,
            shown: schema.to_string(),
            grammar: Arc::new(schema::grammar(schema)?),
            columns,
            image: self.image,
            max_new_tokens: self.max_new_tokens,
        };
        Ok(Box::new(TaskStage::new(task, &self.speaker(), resources)?))
    }
}

/// Asks for an object that keeps to a schema.
struct Extract {
    prompt: PromptTemplate,
    shown: String,
    grammar: Arc<Grammar>,
    columns: Columns,
    image: bool,
    max_new_tokens: usize,
}

impl Task for Extract {
    const ACTION: &'static str = "extract";

    fn ask(&self, item: &Item) -> Result<Ask, ItemError> {
        let told = self.prompt.render(Self::ACTION, item)?;
        Ok(Ask {
            system: None,
            prompt: format!(
                "{told}\nAnswer with JSON that keeps to this schema:\n{}",
                self.shown
            ),
            hint: None,
            picture: None,
            wanted: Wanted::Text {
                sampling: greedy(),
                limits: up_to(self.max_new_tokens),
                grammar: Some(Arc::clone(&self.grammar)),
            },
        })
    }

    fn shows_picture(&self) -> bool {
        self.image
    }

    fn put(&self, item: &mut Item, answer: Answer) -> Result<(), ItemError> {
        let said = text_of(Self::ACTION, answer)?;
        if said.finish != Finish::Stop {
            let reason = format!(
                "the answer was cut off ({}) before its JSON ended",
                said.finish.name()
            );
            return Err(ItemError::new(Self::ACTION, reason)
                .hint("raise `max_new_tokens`, or bound the schema's strings and arrays"));
        }
        self.columns
            .put(item, said.text.trim())
            .map_err(|reason| ItemError::new(Self::ACTION, reason))
    }
}

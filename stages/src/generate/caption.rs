//! `kind = "caption"`: a sentence about each picture.

use pagemill_pipeline::{FieldError, Fields, Item, ItemError, Resources, Stage, StageConfig};

use super::ask::{Answer, Ask, Wanted};
use super::prompt::{PromptTemplate, read_fields};
use super::settings::with_speaker;
use super::task::{Task, TaskStage, TextFields, check_tokens, greedy, text_of, up_to};

const PROMPT: &str = "Describe this picture in one sentence.";

with_speaker! {
    /// Settings of `kind = "caption"`.
    pub struct CaptionConfig {
        /// What the model is told; a template over the item's fields.
        #[serde(default = "usual_prompt")]
        pub prompt: String,
        /// The field that the sentence goes to; `_finish` and `_note` behind its name say how it ended.
        #[serde(default = "usual_field")]
        pub into: String,
        /// The most tokens that the sentence may have.
        #[serde(default = "usual_tokens")]
        pub max_new_tokens: usize,
    }
}

fn usual_prompt() -> String {
    PROMPT.into()
}

fn usual_field() -> String {
    "caption".into()
}

fn usual_tokens() -> usize {
    128
}

impl StageConfig for CaptionConfig {
    const KIND: &'static str = "caption";
    const ABOUT: &'static str = "a sentence about each picture, by a vision-language model";
    const EXAMPLE: &'static str = "model = \"Qwen/Qwen2.5-VL-3B-Instruct\"\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let fields = self.speaker().picture_fields([]);
        read_fields(fields, &[&self.prompt]).adds(TextFields::of(&self.into).all())
    }

    fn workers(&self) -> usize {
        self.speaker().workers()
    }

    fn row_settings(&self) -> String {
        format!("{:?}", self.of_rows())
    }

    fn revision(&self, resources: &Resources) -> String {
        self.speaker().revision(resources)
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        check_tokens(self.max_new_tokens)?;
        let task = Caption {
            prompt: PromptTemplate::new("prompt", &self.prompt)?,
            fields: TextFields::new(&self.into)?,
            max_new_tokens: self.max_new_tokens,
        };
        Ok(Box::new(TaskStage::new(task, &self.speaker(), resources)?))
    }
}

/// Asks for a sentence about a picture.
#[derive(Debug)]
struct Caption {
    prompt: PromptTemplate,
    fields: TextFields,
    max_new_tokens: usize,
}

impl Task for Caption {
    const ACTION: &'static str = "caption";

    fn ask(&self, item: &Item) -> Result<Ask, ItemError> {
        Ok(Ask {
            system: None,
            prompt: self.prompt.render(Self::ACTION, item)?,
            hint: None,
            picture: None,
            wanted: Wanted::Text {
                sampling: greedy(),
                limits: up_to(self.max_new_tokens),
                grammar: None,
            },
        })
    }

    fn put(&self, item: &mut Item, answer: Answer) -> Result<(), ItemError> {
        self.fields.put(item, text_of(Self::ACTION, answer)?);
        Ok(())
    }
}

//! `kind = "generate"`: whatever a prompt over the item's fields asks for.

use pagemill_models::{Limits, Sampling};
use pagemill_pipeline::{FieldError, Fields, Item, ItemError, Resources, Stage, StageConfig};

use super::ask::{Answer, Ask, Wanted};
use super::prompt::{PromptTemplate, read_fields};
use super::settings::with_speaker;
use super::task::{Task, TaskStage, TextFields, check_tokens, text_of};

with_speaker! {
    /// Settings of `kind = "generate"`.
    pub struct GenerateConfig {
        /// What the model is asked: a template over the item's fields, as in
        /// `"Summarize: {{ text }}"`; `{{ uri }}` and `{{ page }}` are there too.
        pub prompt: String,
        /// What the model is, said before; a template too.
        #[serde(default)]
        pub system: Option<String>,
        /// Whether the model sees the item's picture.
        #[serde(default = "yes")]
        pub image: bool,
        /// The field that the answer goes to; `_finish` and `_note` behind its name say how it ended.
        #[serde(default = "usual_field")]
        pub into: String,
        /// The most tokens of an answer.
        #[serde(default = "usual_tokens")]
        pub max_new_tokens: usize,
        /// The answer ends before any of these.
        #[serde(default)]
        pub stop: Vec<String>,
        /// 0 takes the likeliest token each time; more makes others likelier.
        #[serde(default)]
        pub temperature: f32,
        /// Only tokens that together have so much of the likelihood.
        #[serde(default = "one")]
        pub top_p: f32,
        /// Only so many of the likeliest tokens; 0: all.
        #[serde(default)]
        pub top_k: usize,
        /// More than 1 makes tokens that were there already less likely.
        #[serde(default = "one")]
        pub repetition_penalty: f32,
        /// The same seed gives the same answer.
        #[serde(default)]
        pub seed: u64,
    }
}

fn yes() -> bool {
    true
}

fn usual_field() -> String {
    "answer".into()
}

fn usual_tokens() -> usize {
    512
}

fn one() -> f32 {
    1.0
}

impl GenerateConfig {
    fn templates(&self) -> Vec<&str> {
        let system = self.system.as_deref();
        std::iter::once(self.prompt.as_str())
            .chain(system)
            .collect()
    }

    fn check_sampling(&self) -> Result<(), FieldError> {
        let wrong = |field, problem: &str, hint: &str| Err(FieldError::new(field, problem, hint));
        if !(0.0..=10.0).contains(&self.temperature) {
            return wrong(
                "temperature",
                "must be from 0 to 10",
                "0 is greedy, 1 as trained",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(
                "top_p",
                "must be above 0 and at most 1",
                "leave it out for 1",
            );
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 10.0) {
            let hint = "leave it out for 1, which is none";
            return wrong("repetition_penalty", "must be above 0 and at most 10", hint);
        }
        if self.stop.iter().any(String::is_empty) {
            return wrong("stop", "has a text without a letter", "remove it");
        }
        Ok(())
    }
}

impl StageConfig for GenerateConfig {
    const KIND: &'static str = "generate";
    const ABOUT: &'static str = "an answer to a prompt over the item's fields and picture";
    const EXAMPLE: &'static str = "model = \"Qwen/Qwen2.5-VL-3B-Instruct\"\nprompt = \"Who signed this page of {{ uri }}?\"\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let fields = if self.image {
            self.speaker().picture_fields([])
        } else {
            Fields::default()
        };
        read_fields(fields, &self.templates()).adds(TextFields::of(&self.into).all())
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
        self.check_sampling()?;
        let system = self.system.as_deref();
        let task = Generate {
            prompt: PromptTemplate::new("prompt", &self.prompt)?,
            system: system
                .map(|text| PromptTemplate::new("system", text))
                .transpose()?,
            fields: TextFields::new(&self.into)?,
            image: self.image,
            sampling: Sampling {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            limits: Limits {
                max_new_tokens: self.max_new_tokens,
                stop: self.stop.clone(),
                ..Limits::default()
            },
        };
        Ok(Box::new(TaskStage::new(task, &self.speaker(), resources)?))
    }
}

/// Asks what a prompt says.
#[derive(Debug)]
struct Generate {
    prompt: PromptTemplate,
    system: Option<PromptTemplate>,
    fields: TextFields,
    image: bool,
    sampling: Sampling,
    limits: Limits,
}

impl Task for Generate {
    const ACTION: &'static str = "generate";

    fn ask(&self, item: &Item) -> Result<Ask, ItemError> {
        let system = self.system.as_ref();
        Ok(Ask {
            system: system
                .map(|system| system.render(Self::ACTION, item))
                .transpose()?,
            prompt: self.prompt.render(Self::ACTION, item)?,
            hint: None,
            picture: None,
            wanted: Wanted::Text {
                sampling: self.sampling.clone(),
                limits: self.limits.clone(),
                grammar: None,
            },
        })
    }

    fn shows_picture(&self) -> bool {
        self.image
    }

    fn put(&self, item: &mut Item, answer: Answer) -> Result<(), ItemError> {
        self.fields.put(item, text_of(Self::ACTION, answer)?);
        Ok(())
    }
}

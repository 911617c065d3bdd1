//! `kind = "transcribe"`: page images to Markdown.

use pagemill_pipeline::{
    Field, FieldError, Fields, Item, ItemError, Resources, Stage, StageConfig,
};

use super::ask::{Answer, Ask, Wanted};
use super::prompt::{PromptTemplate, read_fields};
use super::settings::with_speaker;
use super::task::{Task, TaskStage, TextFields, check_tokens, greedy, text_of, up_to};

const PROMPT: &str = "Transcribe this page to Markdown in its reading order. Keep headings, lists \
and tables, and write formulas in LaTeX. Give nothing but the transcription.";

/// Stands between the prompt and the words of the page.
const HINT: &str = "These are the words that the file itself gives for the page, in no \
particular order and perhaps wrong:\n";

with_speaker! {
    /// Settings of `kind = "transcribe"`.
    pub struct TranscribeConfig {
        /// What the model is told; a template over the item's fields.
        #[serde(default = "usual_prompt")]
        pub prompt: String,
        /// Whether the model also gets the page's own text, as far as its context has room.
        #[serde(default)]
        pub words_hint: bool,
        /// The field that the Markdown goes to; `_finish` and `_note` behind its name say how it
        /// ended.
        #[serde(default = "usual_field")]
        pub into: String,
        /// The most tokens that a page may become.
        #[serde(default = "usual_tokens")]
        pub max_new_tokens: usize,
    }
}

fn usual_prompt() -> String {
    PROMPT.into()
}

fn usual_field() -> String {
    "markdown".into()
}

fn usual_tokens() -> usize {
    2048
}

impl StageConfig for TranscribeConfig {
    const KIND: &'static str = "transcribe";
    const ABOUT: &'static str = "page images to Markdown, by a vision-language model";
    const EXAMPLE: &'static str = "model = \"Qwen/Qwen2.5-VL-3B-Instruct\"\nquantize = \"q8_0\"\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let hint = self.words_hint.then_some(Field::TEXT);
        let fields = self.speaker().picture_fields(hint);
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
        let task = Transcribe {
            prompt: PromptTemplate::new("prompt", &self.prompt)?,
            words_hint: self.words_hint,
            fields: TextFields::new(&self.into)?,
            max_new_tokens: self.max_new_tokens,
        };
        Ok(Box::new(TaskStage::new(task, &self.speaker(), resources)?))
    }
}

/// Asks for a page's Markdown.
#[derive(Debug)]
struct Transcribe {
    prompt: PromptTemplate,
    words_hint: bool,
    fields: TextFields,
    max_new_tokens: usize,
}

impl Task for Transcribe {
    const ACTION: &'static str = "transcribe";

    fn ask(&self, item: &Item) -> Result<Ask, ItemError> {
        let text = item
            .text()
            .filter(|text| self.words_hint && !text.trim().is_empty());
        Ok(Ask {
            system: None,
            prompt: self.prompt.render(Self::ACTION, item)?,
            hint: text.map(|text| format!("{HINT}{text}")),
            picture: None,
            wanted: Wanted::Text {
                sampling: greedy(),
                limits: up_to(self.max_new_tokens),
                grammar: None,
            },
        })
    }

    fn put(&self, item: &mut Item, answer: Answer) -> Result<(), ItemError> {
        let mut said = text_of(Self::ACTION, answer)?;
        let inner = without_fence(&said.text).to_owned();
        said.text = inner;
        self.fields.put(item, said);
        Ok(())
    }
}

/// What models like to put around Markdown.
fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let inner = text
        .strip_prefix("```markdown\n")
        .or_else(|| text.strip_prefix("```md\n"));
    match inner {
        Some(inner) => inner.strip_suffix("```").unwrap_or(inner).trim_end(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_around_the_whole_is_taken_away() {
        assert_eq!(without_fence("```markdown\n# A\nb\n```"), "# A\nb");
        assert_eq!(without_fence("```markdown\n# cut off"), "# cut off");
        assert_eq!(without_fence(" ```rust\ncode\n```"), "```rust\ncode\n```");
    }
}

//! Runs the stages that generate: ask about each item, and put what is said into it.

use pagemill_models::{Limits, Sampling};
use pagemill_pipeline::{
    Field, FieldError, FieldType, Item, ItemError, Outlet, Resources, Stage, StageError,
};

use super::ask::{Answer, Ask, Finish, Outcome, Said};
use super::settings::{Speaker, SpeakerSettings};

/// What one kind asks, and where the answer goes.
pub(super) trait Task: Send {
    /// What it does, for messages: "transcribe".
    const ACTION: &'static str;

    /// The question, still without its picture.
    ///
    /// # Errors
    /// The item lacks something.
    fn ask(&self, item: &Item) -> Result<Ask, ItemError>;

    /// Whether the question comes with the item's picture.
    fn shows_picture(&self) -> bool {
        true
    }

    /// Puts the answer into the item.
    ///
    /// # Errors
    /// It is of no use.
    fn put(&self, item: &mut Item, answer: Answer) -> Result<(), ItemError>;
}

/// A stage around a task.
pub(super) struct TaskStage<T> {
    task: T,
    speaker: Speaker,
    keep_image: bool,
}

impl<T: Task> TaskStage<T> {
    /// Finds the model.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(super) fn new(
        task: T,
        settings: &SpeakerSettings<'_>,
        resources: &Resources,
    ) -> Result<Self, FieldError> {
        Ok(Self {
            speaker: settings.build(task.shows_picture(), resources)?,
            keep_image: settings.keep_image,
            task,
        })
    }

    fn work_on(
        &self,
        item: &mut Item,
        outlet: &Outlet<'_>,
    ) -> Result<Option<ItemError>, StageError> {
        let asked = self.task.ask(item).and_then(|mut ask| {
            if self.task.shows_picture() {
                ask.picture = Some(self.speaker.picture(T::ACTION, item)?);
            }
            Ok(ask)
        });
        let ask = match asked {
            Ok(ask) => ask,
            Err(error) => return Ok(Some(error)),
        };
        match self.speaker.answer(T::ACTION, ask, outlet)? {
            Outcome::Answer(answer) => Ok(self.task.put(item, answer).err()),
            Outcome::Failed(error) => Ok(Some(error)),
        }
    }
}

impl<T: Task> Stage for TaskStage<T> {
    fn start(&mut self) -> Result<(), StageError> {
        self.speaker.start()
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        for mut item in batch {
            if let Some(error) = self.work_on(&mut item, outlet)? {
                outlet.dead_letter(item, error);
                continue;
            }
            if self.task.shows_picture() && !self.keep_image {
                item.remove(&Field::IMAGE.name);
                item.remove(&Field::PATCHES.name);
            }
            outlet.send(item)?;
        }
        Ok(())
    }
}

/// Where a text goes, and what is said of it: `markdown`, `markdown_finish`, `markdown_note`.
#[derive(Debug, Clone)]
pub(super) struct TextFields {
    text: String,
    finish: String,
    note: String,
}

impl TextFields {
    /// # Errors
    /// `into` is no name of a field.
    pub(super) fn new(into: &str) -> Result<Self, FieldError> {
        let is_name = !into.is_empty()
            && into.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !into.starts_with(|c: char| c.is_ascii_digit());
        if !is_name {
            return Err(FieldError::new(
                "into",
                format_args!("is no name of a field: `{into}`"),
                "use letters, digits and `_`, as in `summary`",
            ));
        }
        Ok(Self::of(into))
    }

    /// As [`TextFields::new`], unchecked.
    pub(super) fn of(into: &str) -> Self {
        Self {
            text: into.to_owned(),
            finish: format!("{into}_finish"),
            note: format!("{into}_note"),
        }
    }

    /// The fields themselves.
    pub(super) fn all(&self) -> [Field; 3] {
        [&self.text, &self.finish, &self.note].map(|name| Field {
            name: name.clone().into(),
            ty: FieldType::Text,
        })
    }

    /// Puts a text into an item; an answer of no letter is one.
    pub(super) fn put(&self, item: &mut Item, said: Said) {
        item.set(self.text.clone(), said.text.trim());
        item.set(self.finish.clone(), said.finish.name());
        let note = match (said.note, said.finish) {
            (Some(note), _) => note,
            (None, Finish::Repetition) => "it repeated itself without end and was stopped".into(),
            (None, _) => String::new(),
        };
        item.set(self.note.clone(), note.as_str());
    }
}

/// Only text is an answer here.
///
/// # Errors
/// Something else came, which is a bug.
pub(super) fn text_of(action: &'static str, answer: Answer) -> Result<Said, ItemError> {
    match answer {
        Answer::Text(said) => Ok(said),
        Answer::Scores(_) | Answer::Label(_) => {
            Err(ItemError::new(action, "the model scored instead of speaking").hint("report this"))
        }
    }
}

/// The most likely token, each time.
pub(super) fn greedy() -> Sampling {
    Sampling::default()
}

/// So many tokens at most.
pub(super) fn up_to(max_new_tokens: usize) -> Limits {
    Limits {
        max_new_tokens,
        ..Limits::default()
    }
}

/// Checks `max_new_tokens`.
///
/// # Errors
/// It is 0.
pub(super) fn check_tokens(max_new_tokens: usize) -> Result<(), FieldError> {
    if max_new_tokens > 0 {
        return Ok(());
    }
    Err(FieldError::new(
        "max_new_tokens",
        "must be at least 1",
        "leave it out for what is usual",
    ))
}

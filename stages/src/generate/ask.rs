//! Defines a stage's requests to a model, and the answers.

use std::sync::Arc;

use pagemill_models::{Constraint, FinishReason, Limits, ModelError, Patches, Sampling};
use pagemill_pipeline::{Image, Item, ItemError, Outlet, StageError};
use serde_json::Value as Json;

use super::host::{Host, Unanswered};
use super::settings::{LocalSpeaker, Speaker};
use crate::patches::{self, PreparedImage};

/// One question about one item.
pub(super) struct Ask {
    pub(super) system: Option<String>,
    pub(super) prompt: String,
    /// Follows the prompt, as much of it as there is room for.
    pub(super) hint: Option<String>,
    pub(super) picture: Option<Picture>,
    pub(super) wanted: Wanted,
}

pub(super) enum Picture {
    /// For a model of this process.
    Patches(Arc<Patches>),
    /// For a server.
    Pixels(Arc<Image>),
}

/// What kind of answer.
pub(super) enum Wanted {
    Text {
        sampling: Sampling,
        limits: Limits,
        grammar: Option<Arc<Grammar>>,
    },
    /// How likely the model finds each of these.
    Scores(Arc<[String]>),
}

/// What an answer must look like.
pub(super) struct Grammar {
    /// For a server.
    pub(super) schema: Json,
    /// For a model of this process, and to check what a server says.
    pub(super) constraint: Constraint,
}

pub(super) enum Answer {
    Text(Said),
    /// The logarithms of the labels' likelihoods.
    Scores(Vec<f64>),
    /// Which label, of a server that tells no likelihoods.
    Label(usize),
}

pub(super) struct Said {
    pub(super) text: String,
    pub(super) finish: Finish,
    /// What else is to be said of it.
    pub(super) note: Option<String>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
    Repetition,
    Context,
}

impl Finish {
    /// As the row says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Repetition => "repetition",
            Self::Context => "context",
        }
    }
}

impl From<FinishReason> for Finish {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Repetition => Self::Repetition,
            FinishReason::Context => Self::Context,
        }
    }
}

impl Ask {
    /// The prompt with its hint.
    pub(super) fn text(&self) -> String {
        match self.hint.as_deref() {
            Some(hint) if !hint.is_empty() => format!("{}\n\n{hint}", self.prompt),
            _ => self.prompt.clone(),
        }
    }
}

/// What one item comes to.
pub(super) enum Outcome {
    Answer(Answer),
    /// It is set aside.
    Failed(ItemError),
}

impl Speaker {
    /// Loads a model of this process.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub(super) fn start(&mut self) -> Result<(), StageError> {
        if let Self::Local(local) = self {
            let (folder, options) = (&local.folder, &local.options);
            let load = || Host::start(folder.clone(), options.clone(), local.meter.clone());
            local.host = Some(local.loaded.get_or_load(load)?);
        }
        Ok(())
    }

    /// The item's picture, as the model takes it.
    ///
    /// # Errors
    /// It has none, or one that cannot be prepared.
    pub(super) fn picture(&self, action: &'static str, item: &Item) -> Result<Picture, ItemError> {
        match self {
            Self::Local(local) => local.picture(action, item).map(Picture::Patches),
            Self::Remote(_) => {
                let image = item.image();
                let image = image.ok_or_else(|| ItemError::missing(action, "image"))?;
                Ok(Picture::Pixels(Arc::clone(image)))
            }
        }
    }

    /// Asks, and waits.
    ///
    /// # Errors
    /// What no item would fare better with.
    pub(super) fn answer(
        &self,
        action: &'static str,
        ask: Ask,
        outlet: &Outlet<'_>,
    ) -> Result<Outcome, StageError> {
        match self {
            Self::Remote(remote) => remote.answer(action, &ask, &|| outlet.is_cancelled()),
            Self::Local(local) => {
                let host = local.host.as_ref().ok_or_else(not_started)?;
                match host.answer(ask, || outlet.is_cancelled()) {
                    Ok(answer) => Ok(Outcome::Answer(answer)),
                    Err(Unanswered::Item(error)) => {
                        // Its own words: the item's error begins as the model's does.
                        let reason = match &*error {
                            ModelError::Generate(problem) => problem.to_string(),
                            other => other.to_string(),
                        };
                        let failed = ItemError::new(action, reason).hint(error.hint());
                        Ok(Outcome::Failed(failed))
                    }
                    Err(Unanswered::Broken(why)) => Err(StageError::fatal(
                        format_args!("the model failed: {why}"),
                        "lower `max_batch` or `cache_mb` if the device is full, or report this",
                    )),
                    Err(Unanswered::Cancelled) => Err(StageError::Cancelled),
                }
            }
        }
    }
}

impl LocalSpeaker {
    fn picture(&self, action: &'static str, item: &Item) -> Result<Arc<Patches>, ItemError> {
        let (processor, key) = self.processor.as_ref().ok_or_else(|| {
            ItemError::new(action, "the model was opened without pictures").hint("report this")
        })?;
        if let Some(prepared) = PreparedImage::of(item) {
            if prepared.key == *key {
                return Ok(Arc::clone(&prepared.patches));
            }
            if item.image().is_none() {
                let reason = "its patches were made for another model";
                let hint = "give `prepare_image` the same `model` and `max_visual_tokens`";
                return Err(ItemError::new(action, reason).hint(hint));
            }
        }
        let prepared = patches::prepare(action, item, processor, key, &self.cache)?;
        Ok(prepared.patches)
    }
}

fn not_started() -> StageError {
    StageError::fatal("the stage has not been started", "call `start` first")
}

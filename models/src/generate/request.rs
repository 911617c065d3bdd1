//! Defines the requests to a generator, and its answers.

use std::sync::Arc;
use std::time::Duration;

use super::constraint::Constraint;
use super::problem::GenerateProblem;
use crate::error::ModelError;
use crate::preprocess::Patches;

/// Something to answer.
#[derive(Clone)]
pub struct GenerateRequest {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// What the messages' image parts show, in their order.
    pub images: Vec<Arc<Patches>>,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// When to end.
    pub limits: Limits,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
}

impl GenerateRequest {
    /// A user's question about images, answered by the likeliest tokens.
    pub fn ask(text: impl Into<String>, images: Vec<Arc<Patches>>) -> Self {
        let mut parts: Vec<Part> = images.iter().map(|_| Part::Image).collect();
        parts.push(Part::Text(text.into()));
        Self {
            messages: vec![Message {
                role: "user".into(),
                parts,
            }],
            images,
            sampling: Sampling::default(),
            limits: Limits::default(),
            constraint: None,
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said, in order.
    pub parts: Vec<Part>,
}

/// A part of a [`Message`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words. What looks like one of the model's special tokens stays words.
    Text(String),
    /// The next of the request's images.
    Image,
}

/// How each token is chosen. The default takes the likeliest.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Above 1 evens the chances out, below 1 sharpens them; 0 takes the likeliest token.
    pub temperature: f32,
    /// Chooses among the likeliest tokens whose chances add up to this; 1: among all.
    pub top_p: f32,
    /// Chooses among so many of the likeliest tokens; 0: among all.
    pub top_k: usize,
    /// Divides the scores of tokens that were there before; 1: none.
    pub repetition_penalty: f32,
    /// Where chance begins: the same seed gives the same answer, whoever is beside it.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    pub(super) fn check(&self) -> Result<(), GenerateProblem> {
        let invalid = |field, problem: String| GenerateProblem::InvalidRequest { field, problem };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let problem = format!("is {}, and must be 0 or more", self.temperature);
            return Err(invalid("temperature", problem));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let problem = format!("is {}, and must be above 0 and at most 1", self.top_p);
            return Err(invalid("top_p", problem));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let problem = format!("is {}, and must be above 0", self.repetition_penalty);
            return Err(invalid("repetition_penalty", problem));
        }
        Ok(())
    }
}

/// When an answer ends, other than by the model's own end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Tokens, at most.
    pub max_new_tokens: usize,
    /// Tokens before which the model cannot end.
    pub min_new_tokens: usize,
    /// Ends before the first of these, which the answer then does not hold.
    pub stop: Vec<String>,
    /// Ends when the same tokens come over and over, as small models do on tables and noise.
    pub repetition_guard: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_new_tokens: 512,
            min_new_tokens: 0,
            stop: Vec::new(),
            repetition_guard: true,
        }
    }
}

/// The number of a submitted request, of one generator never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// What happened in a step.
#[derive(Debug)]
pub enum Event {
    /// An answer goes on.
    Text {
        /// Whose.
        id: RequestId,
        /// What follows the text so far: whole characters, and nothing that a stop string
        /// may take back.
        delta: String,
    },
    /// An answer has ended; all its text has been told.
    Done {
        /// Whose.
        id: RequestId,
        /// The whole of it.
        generated: Generated,
    },
    /// A request cannot be answered. The others go on.
    Failed {
        /// Whose.
        id: RequestId,
        /// Why.
        error: ModelError,
    },
}

impl Event {
    /// The request that it is about.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Text { id, .. } | Self::Done { id, .. } | Self::Failed { id, .. } => *id,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// All tokens chosen, the one that ends included.
    pub token_ids: Vec<u32>,
    /// What they say, without special tokens, and up to a stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt, those of images included.
    pub prompt_tokens: usize,
    /// From the request to the first token, waiting included.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it, or a stop string did, or its constraint is met in full.
    Stop,
    /// It has `max_new_tokens`.
    Length,
    /// It said the same over and over.
    Repetition,
    /// The context is full.
    Context,
}

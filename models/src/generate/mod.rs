//! Text from a model that speaks: pages to Markdown, captions, answers, labels.
//!
//! A [`Generator`] answers many requests at once. In the order of their way through it:
//! [`request`] is what callers give and get; [`template`] and [`prompt`] turn a conversation
//! into tokens; [`schedule`] lets requests join and leave between steps, of which [`prefix`]
//! saves those that begin alike from being computed again; [`sequence`] is one answer as it
//! grows, by a [`sampler`], a [`constraint`], its [`text`] and a guard against [`repetition`];
//! [`score`] weighs given answers instead of making one.
//!
//! No answer depends on those beside it, beyond rounding.

mod problem;

mod constraint;

mod request;

mod calendar;

mod template;

mod prompt;

mod sampler;

mod repetition;

mod text;

mod sequence;

mod prefix;

mod options;

mod generator;

mod schedule;

mod score;

pub(crate) mod card;

#[cfg(test)]
mod tests;

pub use card::GeneratorCard;
pub use constraint::Constraint;
pub use generator::Generator;
pub use options::GeneratorOptions;
pub use problem::GenerateProblem;
pub use request::{
    Event, FinishReason, GenerateRequest, Generated, Limits, Message, Part, RequestId, Sampling,
};

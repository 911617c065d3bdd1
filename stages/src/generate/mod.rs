//! The stages that write: `generate`, `transcribe`, `caption`, `classify` and `extract`.
//!
//! Each asks a model about each item and waits; the model is one of this process, on a thread
//! of its own that runs the questions of all stages in one batch (`host`), or one behind a
//! server (`remote`). A stage has as many workers as there may be questions at once.

mod ask;

mod caption;

mod classify;

mod extract;

mod free;

mod host;

mod prompt;

mod remote;

mod schema;

#[cfg(test)]
mod server;

mod settings;

mod task;

mod transcribe;

#[cfg(test)]
mod tests;

pub use caption::CaptionConfig;
pub use classify::ClassifyConfig;
pub use extract::ExtractConfig;
pub use free::GenerateConfig;
pub use remote::{Remote, RemoteModel, Secret};
pub use settings::ModelSetting;
pub use transcribe::TranscribeConfig;

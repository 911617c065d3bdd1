//! `kind = "stdin"`: documents that another program names, one a line.

pub(crate) mod fuzzing;
mod lines;
mod records;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use pagemill_pipeline::{
    ContentHash, FeedAgain, Field, FieldError, FieldType, Fields, Item, ItemError, Origin,
    Provenance, Resources, Source, SourceConfig, SourceOutlet, StageError,
};
use serde::Deserialize;

use crate::read_files::read_ahead::ReadAhead;
use crate::read_files::reading::Reader;
use crate::read_files::state::{COARSE_TICK, FileState};
use crate::read_files::{READ_AHEAD, blocking, default_max_file_bytes};
use lines::{Line, Lines};
use records::{Attributes, Content, Record, Records};

/// A longer line is not kept in dead letters.
const MAX_KEPT_BYTES: usize = 1 << 20;

/// Settings of `kind = "stdin"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdinConfig {
    /// What a line is.
    #[serde(default)]
    pub format: LineFormat,
    /// Further keys that an object may have, and the types of their values:
    /// the items have them as fields.
    #[serde(default)]
    pub fields: BTreeMap<String, AttributeType>,
    /// A longer line is set aside.
    #[serde(default = "default_max_line_bytes")]
    pub max_line_bytes: usize,
    /// A larger file is set aside without being read.
    #[serde(default = "default_max_file_bytes")]
    pub max_file_bytes: u64,
    /// Whether lines may bring the text itself.
    #[serde(default)]
    pub text: bool,
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineFormat {
    /// An object where it begins with `{`, a path otherwise.
    #[default]
    Auto,
    /// Always a path.
    Paths,
    /// Always an object.
    Json,
}

/// The type of a further key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributeType {
    /// A string.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
}

impl From<AttributeType> for FieldType {
    fn from(ty: AttributeType) -> Self {
        match ty {
            AttributeType::Text => Self::Text,
            AttributeType::Integer => Self::Integer,
            AttributeType::Float => Self::Float,
            AttributeType::Bool => Self::Bool,
        }
    }
}

fn default_max_line_bytes() -> usize {
    64 << 20
}

impl SourceConfig for StdinConfig {
    const KIND: &'static str = "stdin";
    const ABOUT: &'static str = "Files, texts or bytes named by the lines of standard input";
    const EXAMPLE: &'static str = "text = true\nfields = { lang = \"text\", year = \"integer\" }\n";

    fn fields(&self) -> Fields {
        let attributes = self.fields.iter().map(|(name, ty)| Field {
            name: name.clone().into(),
            ty: (*ty).into(),
        });
        Fields::provides([Field::DOCUMENT])
            .adds(self.text.then_some(Field::TEXT))
            .adds(attributes)
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(Stdin::new(self)?))
    }
}

/// Reads the documents that the lines of standard input name or bring.
pub struct Stdin {
    feed: Feed,
    max_line_bytes: usize, // Invariant: at least 1.
    input: Box<dyn Read + Send>,
    is_typed: bool,
}

/// Makes documents of lines.
#[derive(Debug)]
struct Feed {
    records: Records,
    reader: Reader,
}

impl Stdin {
    /// Checks the settings.
    ///
    /// # Errors
    /// A name in `fields` that is taken, a limit of nothing, or `text` where
    /// lines are paths.
    pub fn new(config: &StdinConfig) -> Result<Self, FieldError> {
        let input = std::io::stdin();
        let is_typed = input.is_terminal();
        Self::of(config, Box::new(input), is_typed)
    }

    fn of(
        config: &StdinConfig,
        input: Box<dyn Read + Send>,
        is_typed: bool,
    ) -> Result<Self, FieldError> {
        let at_least_one = |field, hint| FieldError::new(field, "must be at least 1", hint);
        if config.max_line_bytes == 0 {
            return Err(at_least_one("max_line_bytes", "leave it out for 64 MiB"));
        }
        if config.max_file_bytes == 0 {
            return Err(at_least_one("max_file_bytes", "leave it out for 2 GiB"));
        }
        if config.format == LineFormat::Paths && (config.text || !config.fields.is_empty()) {
            let field = if config.text { "text" } else { "fields" };
            let hint = "leave it out, or set `format = \"auto\"`";
            let problem = "cannot be had of lines that are paths";
            return Err(FieldError::new(field, problem, hint));
        }
        Ok(Self {
            feed: Feed {
                records: Records::new(config)?,
                reader: Reader {
                    max_bytes: config.max_file_bytes,
                    clock: SystemTime::now,
                    leave_out: "leave it out of the input",
                },
            },
            max_line_bytes: config.max_line_bytes,
            input,
            is_typed,
        })
    }

    async fn send_all(self, outlet: SourceOutlet) -> Result<(), StageError> {
        let lines = if let Some(letters) = outlet.retries() {
            self.feed.kept_lines(letters)
        } else {
            if self.is_typed {
                let hint = "type paths, one a line; Ctrl-D ends the input";
                tracing::info!(hint, "reading from the terminal");
            }
            lines::on_a_thread(Lines::new(self.input, self.max_line_bytes))?
        };
        let feed = Arc::new(self.feed);
        let looked = lines.map(|line| Arc::clone(&feed).look(line, outlet.clone()));
        let read_ahead = ReadAhead::new();
        // One after the other, in the order in which they are sent.
        let reserved = looked.buffered(READ_AHEAD).then(|looked| {
            let (read_ahead, outlet) = (read_ahead.clone(), outlet.clone());
            async move {
                let looked = looked?;
                let reserved = read_ahead.reserve(looked.n_bytes(), outlet.room()).await?;
                Ok::<_, StageError>((looked, reserved))
            }
        });
        let outcomes = reserved.map(|reserved| {
            let feed = Arc::clone(&feed);
            async move {
                let (looked, reserved) = reserved?;
                Ok::<_, StageError>((feed.read(looked).await?, reserved))
            }
        });
        let mut outcomes = pin!(outcomes.buffered(READ_AHEAD));
        loop {
            let idle = outlet.idle();
            let outcome = tokio::select! {
                biased;
                () = outlet.draining() => return Ok(()),
                outcome = outcomes.next() => outcome,
            };
            drop(idle);
            let Some((outcome, _reserved)) = outcome.transpose()? else {
                return Ok(());
            };
            match outcome {
                Outcome::Done => {}
                Outcome::Read(item, provenance) => outlet.send_from(item, provenance).await?,
                Outcome::Bad(uri, error, input) => {
                    outlet.dead_letter_from(&uri, &error, input.as_deref())?;
                }
            }
        }
    }
}

impl Source for Stdin {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(self.send_all(outlet))
    }
}

/// What is known of a line before a file is read.
enum Looked {
    Outcome(Outcome),
    File(NamedFile),
}

/// A file that a line names and that is to be read.
struct NamedFile {
    uri: String,
    path: PathBuf,
    /// When it was looked at; 0 where that failed.
    n_bytes: u64,
    attributes: Attributes,
    /// The line, if it is kept.
    input: Option<String>,
}

impl Looked {
    fn n_bytes(&self) -> u64 {
        match self {
            Self::Outcome(_) => 0,
            Self::File(file) => file.n_bytes,
        }
    }
}

/// What became of a line.
enum Outcome {
    /// What it names is stored already.
    Done,
    Read(Item, Provenance),
    /// Its URI, what is wrong, and the line if it is kept.
    Bad(String, ItemError, Option<String>),
}

impl Feed {
    /// The lines that dead letters were made from.
    fn kept_lines(&self, letters: &[FeedAgain]) -> BoxStream<'static, Result<Line, StageError>> {
        let mut lines = Vec::new();
        for FeedAgain { uri, input } in letters {
            let line = match input {
                Some(input) => input.clone(),
                None if self.records.can_name(uri) => self.records.line_of(uri),
                None => {
                    let hint = "run the pipeline again with the input that it came from";
                    tracing::warn!(
                        uri,
                        hint,
                        "its line was not kept, so it is not fed in again"
                    );
                    continue;
                }
            };
            lines.push(Ok(Line {
                uri: uri.clone(),
                line: Ok(line),
            }));
        }
        stream::iter(lines).boxed()
    }

    /// Parses a line and looks at the file that it names, if it does.
    async fn look(
        self: Arc<Self>,
        line: Result<Line, StageError>,
        outlet: SourceOutlet,
    ) -> Result<Looked, StageError> {
        let Line { uri, line } = line?;
        outlet.expect(1);
        match line {
            // Long lines take a while, and paths are asked of the file system.
            Ok(line) => blocking(move || self.look_at(uri, line, &outlet)).await?,
            Err(error) => Ok(Looked::Outcome(Outcome::Bad(uri, error, None))),
        }
    }

    fn look_at(
        &self,
        uri: String,
        line: String,
        outlet: &SourceOutlet,
    ) -> Result<Looked, StageError> {
        let parsed = self.records.parse(&line);
        let input = (line.len() <= MAX_KEPT_BYTES).then_some(line);
        let Record {
            uri,
            content,
            attributes,
        } = match parsed {
            Ok(record) => record,
            Err(error) => return Ok(Looked::Outcome(Outcome::Bad(uri, error, input))),
        };
        let made = match content {
            Content::Text(text) => Ok(text_item(&uri, &text, &attributes)),
            Content::Bytes(bytes) => {
                let hash = attributes.hash_with(ContentHash::of(&bytes));
                self.reader.document(&uri, bytes, hash)
            }
            Content::File(path) => {
                // Reading it says why it cannot be looked at.
                let state = std::fs::metadata(&path).ok().map(|it| FileState::of(&it));
                if let Some(state) = state
                    && !state.is_fresh((self.reader.clock)(), COARSE_TICK)
                    && outlet.is_done(&uri, &attributes.mark(state))?
                {
                    return Ok(Looked::Outcome(Outcome::Done));
                }
                return Ok(Looked::File(NamedFile {
                    uri,
                    path,
                    n_bytes: state.map_or(0, |state| state.n_bytes()),
                    attributes,
                    input,
                }));
            }
        };
        Ok(Looked::Outcome(outcome(uri, made, attributes, None, input)))
    }

    /// Reads the file, if the line names one.
    async fn read(&self, looked: Looked) -> Result<Outcome, StageError> {
        let NamedFile {
            uri,
            path,
            attributes,
            input,
            ..
        } = match looked {
            Looked::Outcome(outcome) => return Ok(outcome),
            Looked::File(file) => file,
        };
        let mut state = None;
        let made = self.reader.read(path).await?.and_then(|file| {
            let lasting = file.lasting_state(COARSE_TICK);
            state = lasting.map(|state| attributes.mark(state));
            let hash = attributes.hash_with(file.hash);
            self.reader.document(&uri, file.bytes, hash)
        });
        Ok(outcome(uri, made, attributes, state, input))
    }
}

fn outcome(
    uri: String,
    made: Result<Item, ItemError>,
    attributes: Attributes,
    state: Option<String>,
    input: Option<String>,
) -> Outcome {
    match made {
        Ok(mut item) => {
            for (name, value) in attributes.into_values() {
                item.set(name, value);
            }
            Outcome::Read(item, Provenance { state, input })
        }
        Err(error) => Outcome::Bad(uri, error, input),
    }
}

fn text_item(uri: &str, text: &str, attributes: &Attributes) -> Item {
    let hash = attributes.hash_with(ContentHash::of(text.as_bytes()));
    let origin = Origin::hashed(uri, "text/plain", hash, text.len() as u64);
    Item::new(Arc::new(origin)).with(Field::TEXT.name, text)
}

#[cfg(test)]
mod tests;

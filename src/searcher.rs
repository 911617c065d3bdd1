//! Questions to the table that a pipeline fills.

use std::ops::Range;

use pagemill_models::{
    Device, Encoder, EncoderOptions, ModelError, ModelPlaces, Precision, TextRole, resolve,
};
use pagemill_pipeline::Graph;
use pagemill_sinks::lancedb::{
    Hit, LanceDbConfig, MultiVector, PageDetail, Question, SearchMode, SearchQuery, TableError,
    TableReader,
};
use pagemill_stages::generate::{ModelSetting, Remote};
use pagemill_stages::{EmbedImageConfig, EmbedTextConfig};

/// Answers questions from the table of one pipeline.
///
/// A question is embedded by the model that made the table's vectors; the
/// pipeline says which one.
pub struct Searcher {
    table: TableReader,
    encoder: Option<QuestionEncoder>,
}

/// The model that made the table's vectors.
enum QuestionEncoder {
    Local(Box<Encoder>),
    Remote(Box<Remote>),
}

/// A question as a model reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddedQuestion {
    /// Its vectors.
    pub question: Question,
    /// Its words, each with those of the vectors that stand for it; none where one vector
    /// stands for all.
    pub words: Vec<(String, Range<usize>)>,
}

/// Why a question cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The pipeline stores nothing that can be searched.
    #[error("pipeline `{pipeline}` has no sink of kind `lancedb`")]
    NoTable {
        /// The pipeline.
        pipeline: String,
    },
    /// The pipeline makes no vectors.
    #[error("pipeline `{pipeline}` makes no vectors")]
    NoVectors {
        /// The pipeline.
        pipeline: String,
    },
    /// The model that made the vectors cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The server that made the vectors does not answer.
    #[error("the question cannot be embedded: {reason}")]
    Server {
        /// What is wrong with it.
        reason: String,
    },
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl AskError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoTable { .. } => "name another pipeline with `--pipeline`".into(),
            Self::NoVectors { .. } => "search with `--mode text`".into(),
            Self::Model(error) => error.hint(),
            Self::Server { .. } => {
                "see whether the server runs, or search with `--mode text`".into()
            }
            Self::Table(error) => error.hint(),
        }
    }
}

impl Searcher {
    /// Opens the table that `graph` fills. `mode` decides whether the model is
    /// loaded; without one, it is if the pipeline has one and it is here.
    ///
    /// # Errors
    /// When there is no such table, or no model where `mode` needs one.
    pub async fn open(
        graph: &Graph,
        places: &ModelPlaces,
        mode: Option<SearchMode>,
    ) -> Result<Self, AskError> {
        let sink = graph
            .nodes()
            .iter()
            .find_map(|node| node.settings::<LanceDbConfig>());
        let sink = sink.ok_or_else(|| AskError::NoTable {
            pipeline: graph.name().into(),
        })?;
        let name = sink.table.as_deref().unwrap_or(graph.name());
        let table = TableReader::open(&sink.uri, name).await?;
        let stage = Embedding::of(graph);
        let encoder = match (mode, stage) {
            (Some(SearchMode::Text), _) | (None, None) => None,
            (Some(_), None) => {
                return Err(AskError::NoVectors {
                    pipeline: graph.name().into(),
                });
            }
            (Some(_), Some(stage)) => Some(stage.load(places)?),
            (None, Some(stage)) => match stage.load(places) {
                Ok(encoder) => Some(encoder),
                Err(error) => {
                    tracing::warn!("searching words only: {error}; {}", error.hint());
                    None
                }
            },
        };
        Ok(Self { table, encoder })
    }

    /// How a question is answered where the caller does not say: by words if there is no model,
    /// by meaning if there is no text, otherwise by both.
    pub fn default_mode(&self) -> SearchMode {
        match (&self.encoder, self.table.has_text()) {
            (None, _) => SearchMode::Text,
            (Some(_), true) => SearchMode::Hybrid,
            (Some(_), false) => SearchMode::Vector,
        }
    }

    /// The `top` passages or pages that answer `question` best, best first.
    ///
    /// # Errors
    /// When the table cannot be read, or lacks what `mode` needs.
    pub async fn search(
        &self,
        question: &str,
        mode: Option<SearchMode>,
        top: usize,
    ) -> Result<Vec<Hit>, AskError> {
        let mode = mode.unwrap_or_else(|| self.default_mode());
        let embedded = match mode {
            SearchMode::Text => None,
            SearchMode::Vector | SearchMode::Hybrid => self.embed(question)?,
        };
        let query = SearchQuery {
            question: embedded.map(|embedded| embedded.question),
            ..SearchQuery::new(mode, question, top)
        };
        Ok(self.table.search(&query).await?)
    }

    /// The question as the pipeline's model reads it; `None` where there is no model.
    ///
    /// # Errors
    /// When the model cannot read it.
    pub fn embed(&self, question: &str) -> Result<Option<EmbeddedQuestion>, AskError> {
        let encoder = match &self.encoder {
            None => return Ok(None),
            Some(QuestionEncoder::Local(encoder)) => encoder,
            Some(QuestionEncoder::Remote(remote)) => return embed_remotely(remote, question),
        };
        let embedded = encoder.embed_texts(&[question], TextRole::Query, Precision::F32)?;
        let Some(embedding) = embedded.into_iter().next().transpose()? else {
            return Ok(None);
        };
        let values = embedding.to_f32();
        if !encoder.kind().is_multi_vector() {
            return Ok(Some(EmbeddedQuestion {
                question: Question::Single(values),
                words: Vec::new(),
            }));
        }
        Ok(Some(EmbeddedQuestion {
            question: Question::Multi(MultiVector {
                values,
                dim: embedding.dim,
            }),
            words: encoder.words(question)?,
        }))
    }

    /// What explains why a page was found.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn page(&self, hit: &Hit) -> Result<Option<PageDetail>, AskError> {
        Ok(self.table.page(hit).await?)
    }
}

/// The stage of a pipeline that makes its vectors.
#[derive(Debug, Clone, Copy)]
enum Embedding<'a> {
    Text(&'a EmbedTextConfig),
    Image(&'a EmbedImageConfig),
}

impl<'a> Embedding<'a> {
    /// Of several, the one for pictures: what text there is can be searched by its words.
    fn of(graph: &'a Graph) -> Option<Self> {
        let nodes = || graph.nodes().iter();
        let image = nodes().find_map(|node| node.settings().map(Self::Image));
        image.or_else(|| nodes().find_map(|node| node.settings().map(Self::Text)))
    }

    fn load(self, places: &ModelPlaces) -> Result<QuestionEncoder, ModelError> {
        let (model, max_tokens) = match self {
            Self::Text(stage) => match &stage.model {
                ModelSetting::Local(name) => (name, stage.max_tokens),
                ModelSetting::Remote(remote) => {
                    return Ok(QuestionEncoder::Remote(Box::new(Remote::new(remote))));
                }
            },
            Self::Image(stage) => (&stage.model, None),
        };
        let folder = resolve(model, places)?;
        // A question is one short text: the processor answers before a device is ready.
        let options = EncoderOptions {
            device: Device::Cpu,
            max_tokens,
            ..EncoderOptions::default()
        };
        let encoder = Encoder::load(&folder, &options)?;
        Ok(QuestionEncoder::Local(Box::new(encoder)))
    }
}

fn embed_remotely(remote: &Remote, question: &str) -> Result<Option<EmbeddedQuestion>, AskError> {
    let server = |reason: String| AskError::Server { reason };
    let vectors = remote
        .embed(&[question], &|| false)
        .map_err(|error| server(error.to_string()))?
        .map_err(|error| server(error.message(&question)))?;
    Ok(vectors.into_iter().next().map(|vector| EmbeddedQuestion {
        question: Question::Single(vector),
        words: Vec::new(),
    }))
}

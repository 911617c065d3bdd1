//! Questions to the table that a pipeline fills.

use pagemill_models::{Device, LoadOptions, ModelError, ModelPlaces, TextEncoder, resolve};
use pagemill_pipeline::Graph;
use pagemill_sinks::lancedb::{
    Hit, LanceDbConfig, SearchMode, SearchQuery, TableError, TableReader,
};
use pagemill_stages::EmbedTextConfig;

/// Answers questions from the table of one pipeline.
///
/// A question is embedded by the model that made the table's vectors; the
/// pipeline says which one.
pub struct Searcher {
    table: TableReader,
    encoder: Option<TextEncoder>,
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
    #[error("pipeline `{pipeline}` makes no vectors of text")]
    NoVectors {
        /// The pipeline.
        pipeline: String,
    },
    /// The model that made the vectors cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
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
        let stage = graph
            .nodes()
            .iter()
            .find_map(|node| node.settings::<EmbedTextConfig>());
        let encoder = match (mode, stage) {
            (Some(SearchMode::Text), _) | (None, None) => None,
            (Some(_), None) => {
                return Err(AskError::NoVectors {
                    pipeline: graph.name().into(),
                });
            }
            (Some(_), Some(stage)) => Some(load(stage, places)?),
            (None, Some(stage)) => match load(stage, places) {
                Ok(encoder) => Some(encoder),
                Err(error) => {
                    tracing::warn!("searching words only: {error}; {}", error.hint());
                    None
                }
            },
        };
        Ok(Self { table, encoder })
    }

    /// How a question is answered where the caller does not say: by words and
    /// meaning if there is a model, by words otherwise.
    pub fn default_mode(&self) -> SearchMode {
        if self.encoder.is_some() {
            SearchMode::Hybrid
        } else {
            SearchMode::Text
        }
    }

    /// The `top` passages that answer `question` best, best first.
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
        let vector = match (&self.encoder, mode) {
            (_, SearchMode::Text) | (None, _) => None,
            (Some(encoder), _) => encoder.encode(&[question])?.pop(),
        };
        let query = SearchQuery {
            mode,
            text: question.to_owned(),
            vector,
            top,
        };
        Ok(self.table.search(&query).await?)
    }
}

fn load(stage: &EmbedTextConfig, places: &ModelPlaces) -> Result<TextEncoder, ModelError> {
    let folder = resolve(&stage.model, places)?;
    // A question is one short text: the processor answers before a device is ready.
    let options = LoadOptions {
        device: Device::Cpu,
        max_tokens: stage.max_tokens,
        ..LoadOptions::default()
    };
    TextEncoder::load(&folder, &options)
}

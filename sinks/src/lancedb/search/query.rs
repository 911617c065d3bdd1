//! Defines the questions to a table, and its answers.

/// What a search goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchMode {
    /// Words: BM25 over the column `text`.
    Text,
    /// Meaning: cosine similarity to the column `vector`, or `MaxSim` over the column `vectors`.
    Vector,
    /// Both, by the rank that a row has in each.
    Hybrid,
}

/// A question as a model understood it.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// One vector, compared with the column `vector` by cosine.
    Single(Vec<f32>),
    /// One vector a token, of unit length, compared with the column `vectors` by `MaxSim`.
    Multi(MultiVector),
}

/// Vectors of unit length: one a token of a question, or one a patch of a page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MultiVector {
    /// `[n, dim]`, row by row.
    pub values: Vec<f32>,
    /// Length of each vector.
    pub dim: usize,
}

impl MultiVector {
    /// Number of vectors.
    pub fn n(&self) -> usize {
        self.values.len().checked_div(self.dim).unwrap_or(0)
    }
}

/// What a search over the column `vectors` looks at before it scores exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstStep {
    /// The index if the table has one, every page otherwise.
    #[default]
    Auto,
    /// Every page: the result is exact.
    None,
    /// The index over `vectors`: some pages are missed. Pages that the index does not
    /// cover yet are all looked at, and so is every page while there is no index.
    Index,
    /// The pages whose `vector`, the mean of their vectors, is closest to the mean of the
    /// question's. This needs no index and little reading, and misses many pages.
    Pooled,
}

/// A question to a table.
#[derive(Debug, Clone)]
pub struct SearchQuery {
    /// What the search goes by.
    pub mode: SearchMode,
    /// The words, as the user typed them; no character has a meaning of its own.
    pub text: String,
    /// The question as vectors, made by the model that made the table's.
    pub question: Option<Question>,
    /// How many hits are wanted.
    pub top: usize,
    /// What is looked at before pages are scored exactly.
    pub first_step: FirstStep,
    /// How many candidates for each hit the first step finds; by default
    /// [`IndexConfig::REFINE`](super::super::IndexConfig::REFINE).
    pub refine: Option<usize>,
}

impl SearchQuery {
    /// A search for the `top` best rows.
    pub fn new(mode: SearchMode, text: impl Into<String>, top: usize) -> Self {
        Self {
            mode,
            text: text.into(),
            question: None,
            top,
            first_step: FirstStep::Auto,
            refine: None,
        }
    }

    /// Adds the question as vectors.
    #[must_use]
    pub fn with_question(mut self, question: Question) -> Self {
        self.question = Some(question);
        self
    }
}

/// A row that a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Higher is better: BM25, cosine similarity, `MaxSim`, or reciprocal rank fusion.
    pub score: f32,
    /// Path or URL of the document.
    pub document: String,
    /// The document's id: 32 hexadecimal digits.
    pub document_id: String,
    /// Page of the document, from 1.
    pub page: Option<u32>,
    /// Part of the page, from 1.
    pub part: Option<u32>,
    /// The row's text; empty if it has none.
    pub text: String,
    /// The row's id in the version of the table that was searched.
    pub row: u64,
}

impl Hit {
    /// The row's key: what tells rows of one score apart.
    pub(super) fn key(&self) -> (&str, Option<u32>, Option<u32>) {
        (&self.document, self.page, self.part)
    }

    /// Whether `other` is the same row.
    pub(super) fn is_same_row(&self, other: &Self) -> bool {
        (&self.document_id, self.page, self.part) == (&other.document_id, other.page, other.part)
    }
}

/// What explains why a page was found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PageDetail {
    /// The page's vectors.
    pub vectors: Option<MultiVector>,
    /// A small picture of the page, encoded as in the column `thumbnail`.
    pub thumbnail: Option<Vec<u8>>,
    /// Rows of patches, top to bottom.
    pub patch_rows: Option<u32>,
    /// Patches in each row, left to right.
    pub patch_cols: Option<u32>,
    /// How many vectors come before that of the first patch.
    pub patch_start: Option<u32>,
}

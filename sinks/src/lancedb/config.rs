//! Reads and checks the settings of `kind = "lancedb"`.

use std::path::Path;

use pagemill_pipeline::{FieldError, Resources, Secrets, Sink, SinkConfig, SinkPlace, resolved};
use serde::Deserialize;

use super::{IndexConfig, LanceDb, commit};

/// Settings of `kind = "lancedb"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanceDbConfig {
    /// Folder of the database; it is made if there is none.
    pub uri: String,
    /// Name of the table; without it, that of the pipeline.
    #[serde(default)]
    pub table: Option<String>,
    /// Whether the column `text` gets a full-text index.
    #[serde(default = "yes")]
    pub text_index: bool,
    /// Whether, and how, the column `vectors` gets an index.
    #[serde(default)]
    pub index: IndexConfig,
    /// What a stored row survives.
    #[serde(default)]
    pub durability: Durability,
    /// When complete documents are committed.
    #[serde(default)]
    pub commit: CommitConfig,
}

impl LanceDbConfig {
    /// A table of the database in this folder.
    pub fn new(uri: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            table: Some(table.into()),
            text_index: yes(),
            index: IndexConfig::default(),
            durability: Durability::default(),
            commit: CommitConfig::default(),
        }
    }
}

fn yes() -> bool {
    true
}

/// What a stored row survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The end of the process, and of the machine's power: files are synced
    /// before a document counts as done.
    #[default]
    Power,
    /// The end of the process, in whatever way. A local table is written a
    /// little faster; after a power cut it may need to be made anew.
    Process,
}

/// When complete documents are committed: as soon as one of these is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommitConfig {
    /// So many rows wait.
    pub max_rows: usize,
    /// So many bytes wait.
    pub max_bytes: usize,
    /// A document has waited for so long.
    pub max_wait_ms: u64,
}

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            max_rows: 4096,
            max_bytes: 64 << 20,
            max_wait_ms: 5000,
        }
    }
}

impl SinkConfig for LanceDbConfig {
    const KIND: &'static str = "lancedb";
    const ABOUT: &'static str = "stores rows in a LanceDB table, each document's as a whole";
    const EXAMPLE: &'static str = "uri = \"data/lancedb\"\ntable = \"pages\"";
    const PATHS: &'static [&'static str] = &["uri"];

    fn place(&self, pipeline: &str) -> Option<SinkPlace> {
        let table = self.table.as_deref().unwrap_or(pipeline);
        let identity = if let Some(path) = commit::local_path(&self.uri) {
            let folder = resolved(Path::new(&*path)).ok();
            let folder = folder.unwrap_or_else(|| self.uri.clone().into());
            format!("lancedb:{}/{table}", folder.display())
        } else {
            // The ledger keeps it, which is no place for a password in a URL.
            let uri = commit::remote_uri(&self.uri, table);
            format!("lancedb:{}", Secrets::default().redact(&uri))
        };
        Some(SinkPlace {
            identity,
            setting: "table",
        })
    }

    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(LanceDb::new(self.clone())?))
    }
}

impl LanceDbConfig {
    /// Checks what can be checked without the table.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.uri.is_empty() {
            return Err(FieldError::new(
                "uri",
                "must not be empty",
                "write the folder of the database, such as \"data/lancedb\"",
            ));
        }
        if let Some(table) = self.table.as_deref().filter(|name| !is_table_name(name)) {
            return Err(FieldError::new(
                "table",
                format_args!("`{table}` is no name for a table"),
                NAME_HINT,
            ));
        }
        if self.commit.max_rows == 0 || self.commit.max_bytes == 0 {
            return Err(FieldError::new(
                "commit",
                "must let at least one row and one byte wait",
                "leave `max_rows` and `max_bytes` out, or raise them",
            ));
        }
        self.index.check()
    }
}

pub(super) const NAME_HINT: &str = "use letters, digits, `_`, `-` and `.`, such as \"pages\"";

/// What LanceDB takes for a name.
pub(super) fn is_table_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

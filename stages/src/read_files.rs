//! `kind = "read_files"`: the documents of a folder.
//!
//! Nothing is lost silently: what the patterns choose and cannot be read
//! becomes a dead letter.

mod listing;
mod reading;

use std::path::PathBuf;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use pagemill_pipeline::{
    Field, FieldError, Fields, Item, ItemError, Resources, Source, SourceConfig, SourceOutlet,
    StageError,
};
use serde::Deserialize;

use listing::{Found, Listing};

/// Files read before they are asked for, so that the disk works while the
/// edge is full. Each is held in memory.
const READ_AHEAD: usize = 2;

/// Settings of `kind = "read_files"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadFilesConfig {
    /// A file, or a folder whose files are read, in folders below it as well.
    pub path: PathBuf,
    /// Patterns of the files to read, relative to `path`: `*` stays within a
    /// folder, `**` does not.
    #[serde(default = "default_include")]
    pub include: Vec<String>,
    /// Patterns of files and folders to pass over.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// A larger file is set aside without being read.
    #[serde(default = "default_max_file_bytes")]
    pub max_file_bytes: u64,
    /// Whether to read what symbolic links lead to.
    #[serde(default)]
    pub follow_links: bool,
}

fn default_include() -> Vec<String> {
    vec!["**/*".into()]
}

fn default_max_file_bytes() -> u64 {
    2 << 30
}

impl SourceConfig for ReadFilesConfig {
    const KIND: &'static str = "read_files";
    const ABOUT: &'static str = "PDF and image files of a folder";
    const EXAMPLE: &'static str = "path = \".\"\ninclude = [\"**/*.pdf\", \"**/*.png\"]\n";

    fn fields(&self) -> Fields {
        Fields::provides([Field::DOCUMENT])
    }

    fn build(&self, _resources: &Resources) -> Result<Box<dyn Source>, FieldError> {
        Ok(Box::new(ReadFiles::new(self)?))
    }
}

/// Reads the documents of a folder, in order of name.
#[derive(Debug)]
pub struct ReadFiles {
    listing: Listing,
    max_file_bytes: u64,
}

impl ReadFiles {
    /// Checks the settings.
    ///
    /// # Errors
    /// When `path` does not exist, or a pattern cannot be read.
    pub fn new(config: &ReadFilesConfig) -> Result<Self, FieldError> {
        let path = &config.path;
        if path.as_os_str().is_empty() {
            let hint = "name a folder or a file, such as `examples/documents`";
            return Err(FieldError::new("path", "is empty", hint));
        }
        if let Err(error) = std::fs::metadata(path) {
            let problem = match error.kind() {
                std::io::ErrorKind::NotFound => "does not exist".to_owned(),
                _ => format!("cannot be read ({error})"),
            };
            return Err(FieldError::new(
                "path",
                format_args!("{problem}: `{}`", path.display()),
                "name a folder or a file; a relative path begins in the working folder",
            ));
        }
        if config.include.is_empty() {
            let hint = "leave it out to read all files";
            return Err(FieldError::new("include", "chooses no file", hint));
        }
        if config.max_file_bytes == 0 {
            let hint = "leave it out for 2 GiB";
            return Err(FieldError::new(
                "max_file_bytes",
                "must be at least 1",
                hint,
            ));
        }
        Ok(Self {
            listing: Listing {
                root: path.clone(),
                include: patterns("include", &config.include)?,
                exclude: patterns("exclude", &config.exclude)?,
                follow_links: config.follow_links,
            },
            max_file_bytes: config.max_file_bytes,
        })
    }

    async fn send_all(self, outlet: SourceOutlet) -> Result<(), StageError> {
        let Self {
            listing,
            max_file_bytes,
        } = self;
        let root = listing.root.display().to_string();
        let found = blocking(move || listing.list()).await?;
        outlet.expect(found.len());
        if found.is_empty() {
            tracing::warn!(path = root, "no file is chosen by `include` and `exclude`");
        }
        let documents = stream::iter(found).map(|found| read(found, max_file_bytes));
        let mut documents = documents.buffered(READ_AHEAD);
        while let Some(read) = documents.next().await {
            if outlet.is_draining() {
                break;
            }
            match read? {
                (_, Ok(item)) => outlet.send(item).await?,
                (uri, Err(error)) => outlet.dead_letter(&uri, &error)?,
            }
        }
        Ok(())
    }
}

impl Source for ReadFiles {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(self.send_all(outlet))
    }
}

/// Compiles the patterns of one setting.
fn patterns(field: &'static str, patterns: &[String]) -> Result<GlobSet, FieldError> {
    let hint = "patterns are such as `**/*.pdf`, `reports/*.png` or `{a,b}/**`";
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        // `drafts/` means the folder.
        let plain = pattern.strip_suffix('/').unwrap_or(pattern);
        let glob = GlobBuilder::new(plain).literal_separator(true).build();
        let glob = glob.map_err(|error| {
            let problem = format!(
                "has a pattern that cannot be read: `{pattern}`: {}",
                error.kind()
            );
            FieldError::new(field, problem, hint)
        })?;
        set.add(glob);
    }
    set.build()
        .map_err(|error| FieldError::new(field, format_args!("cannot be used: {error}"), hint))
}

/// What became of one file: its URI, and the document or why there is none.
type Outcome = (String, Result<Item, ItemError>);

async fn read(found: Found, max_file_bytes: u64) -> Result<Outcome, StageError> {
    let Found { uri, file } = found;
    let path = match file {
        Ok(path) => path,
        Err(error) => return Ok((uri, Err(error))),
    };
    let item = reading::read_document(path, &uri, max_file_bytes).await?;
    Ok((uri, item))
}

/// Runs what waits for the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let hint = "report this: reading files never panics";
        StageError::caused("the files cannot be read", hint, error)
    })
}

#[cfg(test)]
mod tests;

//! `kind = "read_files"`: the documents of a folder.
//!
//! Nothing is lost silently: what the patterns choose and cannot be read
//! becomes a dead letter. Nothing is read twice: what the ledger knows by its
//! size and times is skipped. With `watch = true` the folder is followed.
//!
//! The URI of a document is its absolute path without `.` and `..`, so that it does
//! not depend on how `path` is spelled. With `root = "papers"` it is `papers/` and
//! the path below `path`, so that it does not depend on where the folder is either.

mod content;
pub(crate) mod identity;
pub(crate) mod listing;
pub(crate) mod read_ahead;
pub(crate) mod reading;
pub(crate) mod state;

// Reading the folder once.
mod pass;

// Following it.
mod notice;
mod rest;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use pagemill_pipeline::{
    Field, FieldError, Fields, Resources, Source, SourceConfig, SourceOutlet, StageError,
};
use serde::Deserialize;

use listing::Listing;
use pass::Pass;
use read_ahead::ReadAhead;
use reading::Reader;
use state::Clock;
use watch::Watch;

/// Files read before they are asked for, so that the disk works while the
/// edge is full. Each is held in memory.
pub(crate) const READ_AHEAD: usize = 2;

/// Settings of `kind = "read_files"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadFilesConfig {
    /// A file, or a folder whose files are read, in folders below it as well.
    pub path: PathBuf,
    /// What URIs begin with in the place of the absolute form of `path`, so that
    /// the folder can be moved.
    #[serde(default)]
    pub root: Option<String>,
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
    /// Whether to keep running and to follow changes and deletions.
    #[serde(default)]
    pub watch: bool,
    /// How long a watched file must have stayed as it is before it is read, and
    /// must have been gone before its rows are removed.
    #[serde(default = "default_rest_ms")]
    pub rest_ms: u64,
    /// How often a watched folder is listed anew, for what the system did not tell.
    #[serde(default = "default_rescan_s")]
    pub rescan_s: u64,
}

impl ReadFilesConfig {
    /// All files of a folder, once.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            root: None,
            include: default_include(),
            exclude: Vec::new(),
            max_file_bytes: default_max_file_bytes(),
            follow_links: false,
            watch: false,
            rest_ms: default_rest_ms(),
            rescan_s: default_rescan_s(),
        }
    }

    /// What the URIs of the documents begin with; `path` is the absolute form of `self.path`.
    fn uri_of(&self, path: &Path) -> String {
        let own = self.root.clone();
        own.unwrap_or_else(|| listing::text_of(path))
    }
}

fn default_include() -> Vec<String> {
    vec!["**/*".into()]
}

pub(crate) fn default_max_file_bytes() -> u64 {
    2 << 30
}

fn default_rest_ms() -> u64 {
    1000
}

fn default_rescan_s() -> u64 {
    60
}

impl SourceConfig for ReadFilesConfig {
    const KIND: &'static str = "read_files";
    const ABOUT: &'static str = "PDF and image files of a folder";
    const EXAMPLE: &'static str = "path = \".\"\ninclude = [\"**/*.pdf\", \"**/*.png\"]\n";
    const PATHS: &'static [&'static str] = &["path"];

    fn fields(&self) -> Fields {
        Fields::provides([Field::DOCUMENT])
    }

    fn is_continuous(&self) -> bool {
        self.watch
    }

    fn place(&self) -> Option<String> {
        let path = identity::absolute(&self.path).ok()?;
        Some(self.uri_of(&path))
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
    watch: Option<Watching>,
}

/// When a watched folder is looked at.
#[derive(Debug, Clone, Copy)]
struct Watching {
    rest: Duration,   // Invariant: at least 10 ms.
    rescan: Duration, // Invariant: at least 1 s.
}

impl ReadFiles {
    /// Checks the settings.
    ///
    /// # Errors
    /// When `path` does not exist, `root` is no plain name, or a pattern cannot be read.
    pub fn new(config: &ReadFilesConfig) -> Result<Self, FieldError> {
        let path = &config.path;
        if path.as_os_str().is_empty() {
            let hint = "name a folder or a file, such as `examples/documents`";
            return Err(FieldError::new("path", "is empty", hint));
        }
        let root = identity::absolute(path)
            .map_err(|error| FieldError::new("path", &error, error.hint()))?;
        if let Err(error) = std::fs::metadata(&root) {
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
        if let Some(root) = &config.root {
            identity::check_root(root)?;
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
                uri: config.uri_of(&root),
                root,
                include: patterns("include", &config.include)?,
                exclude: patterns("exclude", &config.exclude)?,
                follow_links: config.follow_links,
                clock: SystemTime::now,
            },
            max_file_bytes: config.max_file_bytes,
            watch: watching(config)?,
        })
    }

    /// The same with another clock, for tests.
    #[cfg(test)]
    fn with_clock(mut self, clock: Clock) -> Self {
        self.listing.clock = clock;
        self
    }

    async fn read(self, outlet: SourceOutlet) -> Result<(), StageError> {
        let clock: Clock = self.listing.clock;
        let pass = Pass {
            listing: Arc::new(self.listing),
            reader: Reader {
                max_bytes: self.max_file_bytes,
                clock,
                leave_out: "narrow `include`, or name it in `exclude`",
            },
            read_ahead: ReadAhead::new(),
            outlet,
            is_watched: self.watch.is_some(),
        };
        if let Some(retries) = pass.outlet.retries() {
            let retries = retries.to_vec();
            return pass.feed_again(retries).await;
        }
        match self.watch {
            // A dry run looks at what is there now.
            Some(watching) if !pass.outlet.is_dry_run() => Watch::new(pass, watching).run().await,
            _ => pass.run().await,
        }
    }
}

impl Source for ReadFiles {
    fn run(self: Box<Self>, outlet: SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> {
        Box::pin(self.read(outlet))
    }

    fn sends_again(&self) -> bool {
        true
    }
}

fn watching(config: &ReadFilesConfig) -> Result<Option<Watching>, FieldError> {
    const REST_MS: std::ops::RangeInclusive<u64> = 10..=3_600_000;
    if !REST_MS.contains(&config.rest_ms) {
        let problem = format_args!("must be from {} to {}", REST_MS.start(), REST_MS.end());
        let hint = "leave it out for a second; take more where files are written slowly";
        return Err(FieldError::new("rest_ms", problem, hint));
    }
    if config.rescan_s == 0 {
        let hint = "leave it out for a minute";
        return Err(FieldError::new("rescan_s", "must be at least 1", hint));
    }
    Ok(config.watch.then(|| Watching {
        rest: Duration::from_millis(config.rest_ms),
        rescan: Duration::from_secs(config.rescan_s),
    }))
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

/// Runs what waits for the disk on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let hint = "report this: reading files never panics";
        StageError::caused("the files cannot be read", hint, error)
    })
}

#[cfg(test)]
mod tests;

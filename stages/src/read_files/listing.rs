//! Finding files, in the same order on every machine.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use globset::GlobSet;
use pagemill_pipeline::ItemError;
use walkdir::{DirEntry, WalkDir};

/// Where files are looked for, and which.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) root: PathBuf,
    pub(super) include: GlobSet,
    pub(super) exclude: GlobSet,
    pub(super) follow_links: bool,
}

/// A file, or a place where one cannot be read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) uri: String,
    pub(super) file: Result<PathBuf, ItemError>,
}

impl Listing {
    /// All files that the patterns choose, and all that stands in the way.
    pub(super) fn list(&self) -> Vec<Found> {
        let walk = WalkDir::new(&self.root)
            .follow_links(self.follow_links)
            .sort_by_file_name();
        let entries = walk.into_iter().filter_entry(|entry| self.enters(entry));
        let mut found: Vec<Found> = entries.filter_map(|entry| self.look_at(entry)).collect();
        set_aside_ambiguous(&mut found);
        found
    }

    /// Whether to look at an entry or, if it is a folder, below it.
    fn enters(&self, entry: &DirEntry) -> bool {
        // What `path` itself names is meant, hidden or not.
        if entry.depth() == 0 {
            return true;
        }
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        !is_hidden && !self.exclude.is_match(self.relative(entry.path()))
    }

    fn look_at(&self, entry: walkdir::Result<DirEntry>) -> Option<Found> {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return self.report(&error),
        };
        let kind = entry.file_type();
        if kind.is_dir() || !self.chooses(entry.path()) {
            return None;
        }
        let (reason, hint) = if kind.is_file() {
            return Some(Found {
                uri: self.uri(entry.path()),
                file: Ok(entry.into_path()),
            });
        } else if kind.is_symlink() {
            (
                "it is a symbolic link",
                "set `follow_links = true`, or name it in `exclude`",
            )
        } else {
            // A pipe would be waited on for ever.
            (
                "it is a pipe, a socket or a device",
                "name it in `exclude`, or copy what it holds into a file",
            )
        };
        Some(Found {
            uri: self.uri(entry.path()),
            file: Err(ItemError::new("read", reason).hint(hint)),
        })
    }

    /// Whether the patterns choose a file.
    fn chooses(&self, path: &Path) -> bool {
        let relative = self.relative(path);
        self.include.is_match(relative) && !self.exclude.is_match(relative)
    }

    /// An entry that cannot be looked at.
    fn report(&self, error: &walkdir::Error) -> Option<Found> {
        let path = error.path().unwrap_or(&self.root);
        let is_excluded = path != self.root && self.exclude.is_match(self.relative(path));
        if is_excluded {
            return None;
        }
        let error_of = |reason: String, hint| ItemError::new("read", reason).hint(hint);
        let problem = if error.loop_ancestor().is_some() {
            error_of(
                "it is a symbolic link to a folder above it".into(),
                "name it in `exclude`",
            )
        } else if path.is_symlink() {
            if !self.chooses(path) {
                return None;
            }
            error_of(
                "it is a symbolic link to nothing".into(),
                "remove the link, or name it in `exclude`",
            )
        } else {
            let reason = error
                .io_error()
                .map_or_else(|| error.to_string(), super::reading::describe);
            error_of(reason, super::reading::PERMISSION_HINT)
        };
        Some(Found {
            uri: self.uri(path),
            file: Err(problem),
        })
    }

    /// The path below `root`; of `root` itself, its name.
    fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        if below.as_os_str().is_empty() {
            path.file_name().map_or(path, Path::new)
        } else {
            below
        }
    }

    /// The root as it was given, then the path below it, with `/` between names.
    fn uri(&self, path: &Path) -> String {
        let mut uri = text_of(&self.root);
        let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
        for name in below {
            if !uri.ends_with('/') {
                uri.push('/');
            }
            uri.push_str(&text_of(Path::new(name)));
        }
        uri
    }
}

/// A name as text. In one that is not UTF-8, the bytes that are none, and `%`,
/// are written as `%FF`.
fn text_of(name: &Path) -> String {
    if let Some(text) = name.to_str() {
        return text.to_owned();
    }
    let mut text = String::new();
    for chunk in name.as_os_str().as_encoded_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            let _infallible = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// A name that is not UTF-8 may be written like another one that is. Both
/// would be one document, and replace each other's rows.
fn set_aside_ambiguous(found: &mut [Found]) {
    let mut uris: HashSet<String> = HashSet::new();
    let plain = |found: &Found| match &found.file {
        Ok(path) => path.to_str().is_some(),
        Err(_) => true,
    };
    uris.extend(
        found
            .iter()
            .filter(|f| plain(f))
            .map(|found| found.uri.clone()),
    );
    for odd in found.iter_mut() {
        if plain(odd) || uris.insert(odd.uri.clone()) {
            continue;
        }
        let reason = format!(
            "its name is not UTF-8, and written as `{}` it is another's",
            odd.uri
        );
        if let Ok(path) = &odd.file {
            odd.uri = path.to_string_lossy().into_owned();
        }
        odd.file = Err(ItemError::new("read", reason).hint("rename the file"));
    }
}

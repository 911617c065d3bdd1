//! Finding files, in the same order on every machine.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use globset::GlobSet;
use pagemill_pipeline::ItemError;
use walkdir::{DirEntry, WalkDir};

use super::reading::{self, PERMISSION_HINT};
use super::state::{Clock, FileState};

/// Where files are looked for, and which.
#[derive(Debug)]
pub(super) struct Listing {
    /// Absolute, without `.` and `..`. It may be a symbolic link, which is followed.
    pub(super) root: PathBuf,
    /// The URI of `root`.
    pub(super) uri: String,
    pub(super) include: GlobSet,
    pub(super) exclude: GlobSet,
    pub(super) follow_links: bool,
    pub(super) clock: Clock,
}

/// A file, or a place where one cannot be read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) uri: String,
    pub(super) path: PathBuf,
    pub(super) file: Result<Seen, ItemError>,
}

/// A file as it was when it was listed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) state: FileState,
    pub(super) at: SystemTime,
}

/// What was found at a place and below it.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) found: Vec<Found>,
    /// URIs of places that could not be looked into: what lies below them may
    /// still be there.
    pub(super) unseen: Vec<String>,
    /// The root itself cannot be listed.
    pub(super) is_without_root: bool,
}

/// What is at one path.
#[derive(Debug)]
pub(super) enum Observed {
    /// Nothing, or nothing that the patterns could choose.
    Nothing,
    /// A file, or a folder with these below it.
    There(Listed),
    /// Only a listing of everything can tell.
    Unclear,
}

impl Listed {
    /// Whether a file was found that can be read, as far as listing can tell.
    pub(super) fn has_files(&self) -> bool {
        self.found.iter().any(|found| found.file.is_ok())
    }

    /// Those of `known` URIs at `place` or below it that are gone for sure.
    pub(super) fn missing(
        &self,
        place: &str,
        known: impl IntoIterator<Item = String>,
    ) -> Vec<String> {
        if self.is_without_root {
            return Vec::new();
        }
        let found: HashSet<&str> = self.found.iter().map(|found| &*found.uri).collect();
        let is_unseen = |uri: &str| self.unseen.iter().any(|place| is_at_or_below(uri, place));
        let is_gone =
            |uri: &String| is_at_or_below(uri, place) && !found.contains(&**uri) && !is_unseen(uri);
        known.into_iter().filter(is_gone).collect()
    }
}

/// Whether a URI is that of `place` or of something below it.
pub(super) fn is_at_or_below(uri: &str, place: &str) -> bool {
    let below = uri.strip_prefix(place.trim_end_matches('/'));
    below.is_some_and(|below| below.is_empty() || below.starts_with('/')) || uri == place
}

impl Listing {
    /// All files that the patterns choose, and all that stands in the way.
    pub(super) fn list(&self) -> Listed {
        self.walk(&self.root)
    }

    /// What is at `path`, which may be a folder.
    pub(super) fn look(&self, path: &Path) -> Observed {
        if !self.concerns(path) {
            return Observed::Nothing;
        }
        let is_gone = |error: &io::Error| {
            use io::ErrorKind::{NotADirectory, NotFound};
            matches!(error.kind(), NotFound | NotADirectory)
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if is_gone(&error) => Observed::Nothing,
            Err(_) => Observed::Unclear,
            // Whether a link goes round in a circle is seen from above it only.
            Ok(metadata) if metadata.is_symlink() && self.follow_links && path.is_dir() => {
                Observed::Unclear
            }
            Ok(_) => Observed::There(self.walk(path)),
        }
    }

    /// Whether there may be something to read at `path` or below it.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else {
            return false;
        };
        let mut place = self.root.clone();
        below.iter().all(|name| {
            place.push(name);
            !is_hidden(name) && !self.exclude.is_match(self.relative(&place))
        })
    }

    fn walk(&self, from: &Path) -> Listed {
        let walk = WalkDir::new(from)
            .follow_links(self.follow_links)
            .follow_root_links(self.follow_links || from == self.root)
            .sort_by_file_name();
        let mut listed = Listed::default();
        for entry in walk.into_iter().filter_entry(|entry| self.enters(entry)) {
            match entry {
                Ok(entry) => self.look_at(entry, &mut listed),
                Err(error) => self.report(&error, &mut listed),
            }
        }
        set_aside_ambiguous(&mut listed.found);
        listed
    }

    /// Whether to look at an entry or, if it is a folder, below it.
    fn enters(&self, entry: &DirEntry) -> bool {
        // What the walk begins with is meant, hidden or not.
        entry.depth() == 0
            || (!is_hidden(entry.file_name())
                && !self.exclude.is_match(self.relative(entry.path())))
    }

    fn look_at(&self, entry: DirEntry, listed: &mut Listed) {
        // The root is read even where it is a symbolic link.
        let is_root_link = entry.path_is_symlink() && entry.path() == self.root;
        let root = is_root_link.then(|| std::fs::metadata(&self.root));
        let kind = match &root {
            None => entry.file_type(),
            Some(Ok(root)) => root.file_type(),
            Some(Err(_)) => {
                listed.is_without_root = true; // It went since the walk began.
                return;
            }
        };
        if kind.is_dir() || !self.chooses(entry.path()) {
            return;
        }
        let problem = |reason, hint| Err(ItemError::new("read", reason).hint(hint));
        let file = if kind.is_file() {
            let metadata = match root {
                Some(Ok(root)) => Ok(root),
                _ => entry.metadata(),
            };
            match metadata {
                Ok(metadata) => Ok(Seen {
                    state: FileState::of(&metadata),
                    at: (self.clock)(),
                }),
                Err(error) => return self.report(&error, listed),
            }
        } else if kind.is_symlink() {
            problem(
                "it is a symbolic link",
                "set `follow_links = true`, or name it in `exclude`",
            )
        } else {
            // A pipe would be waited on for ever.
            problem(
                "it is a pipe, a socket or a device",
                "name it in `exclude`, or copy what it holds into a file",
            )
        };
        listed.found.push(Found {
            uri: self.uri_of(entry.path()),
            path: entry.into_path(),
            file,
        });
    }

    /// Whether the patterns choose a file.
    fn chooses(&self, path: &Path) -> bool {
        let relative = self.relative(path);
        self.include.is_match(relative) && !self.exclude.is_match(relative)
    }

    /// An entry that cannot be looked at.
    fn report(&self, error: &walkdir::Error, listed: &mut Listed) {
        let path = error.path().unwrap_or(&self.root);
        let is_root = path == self.root;
        if !is_root && self.exclude.is_match(self.relative(path)) {
            return;
        }
        let is_gone = error
            .io_error()
            .is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
        let uri = self.uri_of(path);
        listed.is_without_root |= is_root;
        let (reason, hint) = if error.loop_ancestor().is_some() {
            (
                "it is a symbolic link to a folder above it".to_owned(),
                "name it in `exclude`",
            )
        } else if path.is_symlink() {
            // What it should lead to may be on a disk that is not mounted.
            listed.unseen.push(uri.clone());
            if !self.chooses(path) {
                return;
            }
            (
                "it is a symbolic link to nothing".to_owned(),
                "remove the link, or name it in `exclude`",
            )
        } else if is_gone && !is_root {
            return; // It was removed since its folder was read.
        } else {
            listed.unseen.push(uri.clone());
            let reason = error
                .io_error()
                .map_or_else(|| error.to_string(), reading::describe);
            (reason, PERMISSION_HINT)
        };
        listed.found.push(Found {
            uri,
            path: path.to_owned(),
            file: Err(ItemError::new("read", reason).hint(hint)),
        });
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

    /// The URI of `root`, then the path below it, with `/` between names.
    pub(super) fn uri_of(&self, path: &Path) -> String {
        let mut uri = self.uri.clone();
        let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
        for name in below {
            if !uri.ends_with('/') {
                uri.push('/');
            }
            uri.push_str(&text_of(Path::new(name)));
        }
        uri
    }

    /// The path that has this URI, unless its name is not UTF-8: such a URI
    /// can only be found by listing. `None` where it is not below the root.
    pub(super) fn path_of(&self, uri: &str) -> Option<PathBuf> {
        if uri == self.uri {
            return Some(self.root.clone());
        }
        let below = uri.strip_prefix(self.uri.trim_end_matches('/'))?;
        let below = Path::new(below.strip_prefix('/')?);
        let is_plain = |part| matches!(part, Component::Normal(_));
        (!below.as_os_str().is_empty() && below.components().all(is_plain))
            .then(|| self.root.join(below))
    }
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// A name as text. In one that is not UTF-8, the bytes that are none, and `%`,
/// are written as `%FF`.
pub(crate) fn text_of(name: &Path) -> String {
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
    let is_odd = |found: &Found| found.file.is_ok() && found.path.to_str().is_none();
    if !found.iter().any(is_odd) {
        return;
    }
    let plain = found.iter().filter(|found| !is_odd(found));
    let mut uris: HashSet<String> = plain.map(|found| found.uri.clone()).collect();
    for odd in found.iter_mut().filter(|found| is_odd(found)) {
        if uris.insert(odd.uri.clone()) {
            continue;
        }
        let reason = format!(
            "its name is not UTF-8, and written as `{}` it is another's",
            odd.uri
        );
        odd.uri = odd.path.to_string_lossy().into_owned();
        odd.file = Err(ItemError::new("read", reason).hint("rename the file"));
    }
}

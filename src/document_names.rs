//! Prints document URIs for people, and finds the documents that a user names.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pagemill::pipeline::clean_absolute;

/// The working directory: paths below it are printed relative to it.
pub(crate) struct WorkingDirectory(Option<PathBuf>);

impl WorkingDirectory {
    pub(crate) fn current() -> Self {
        Self(std::env::current_dir().ok())
    }

    /// The URI, or the path relative to the working directory if it lies below it.
    pub(crate) fn shown<'a>(&self, uri: &'a str) -> Cow<'a, str> {
        let below = self.0.as_ref();
        let below = below.and_then(|folder| Path::new(uri).strip_prefix(folder).ok());
        let below = below.filter(|below| !below.as_os_str().is_empty());
        below.map_or(Cow::Borrowed(uri), Path::to_string_lossy)
    }
}

/// A document, or a folder of documents, as a user writes it: the URI itself, or any
/// path that leads to the same place.
pub(crate) struct Named<'a> {
    text: &'a str,
    /// The text without `.` and doubled `/`, for URIs that are no absolute paths.
    plain: PathBuf,
    absolute: Option<PathBuf>,
}

impl<'a> Named<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            plain: components(text.trim_start_matches("./")),
            absolute: clean_absolute(Path::new(text)).ok(),
        }
    }

    /// The components of every URI that is named.
    pub(crate) fn paths(&self) -> BTreeSet<PathBuf> {
        let written = [components(self.text), self.plain.clone()];
        written.into_iter().chain(self.absolute.clone()).collect()
    }

    /// Whether the document at `uri` is named, or lies in the folder that is.
    pub(crate) fn holds(&self, uri: &str) -> bool {
        let path = components(uri);
        let is_in = |folder: &PathBuf| !folder.as_os_str().is_empty() && path.starts_with(folder);
        uri == self.text || is_in(&self.plain) || self.absolute.as_ref().is_some_and(is_in)
    }
}

/// The path without doubled `/` and `.`, so that it can be compared.
pub(crate) fn components(path: &str) -> PathBuf {
    Path::new(path).components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The URI of a file in the working directory.
    fn here(path: &str) -> String {
        let path = std::env::current_dir().expect("there is one").join(path);
        path.to_str().expect("it is UTF-8").to_owned()
    }

    #[test]
    fn paths_below_the_working_directory_are_shown_relative_to_it() {
        let folder = WorkingDirectory(Some("/srv/papers".into()));
        assert_eq!(folder.shown("/srv/papers/a/b.pdf"), "a/b.pdf");
        for other in [
            "/srv/papers",
            "/srv/papers2/a.pdf",
            "note:1",
            "papers/a.pdf",
        ] {
            assert_eq!(folder.shown(other), other);
        }
        assert_eq!(WorkingDirectory(None).shown("/a.pdf"), "/a.pdf");
    }

    #[test]
    fn a_document_is_named_by_its_uri_or_by_any_path_to_it() {
        let names = |name: &str, uri: &str| Named::new(name).paths().contains(&components(uri));
        let uri = here("input/a.pdf");
        for name in [&*uri, "input/a.pdf", "./input//a.pdf", "x/../input/a.pdf"] {
            assert!(names(name, &uri), "{name}");
        }
        assert!(
            names("papers/a.pdf", "papers/a.pdf"),
            "below a root with a name"
        );
        assert!(names("https://a.org/b?c=d", "https://a.org/b?c=d"));
        for other in ["a.pdf", "input", "", "input/b.pdf"] {
            assert!(!names(other, &uri), "{other}");
        }
        assert!(!names("", "stdin:0"));
    }

    #[test]
    fn a_folder_names_all_that_is_below_it() {
        let uri = here("papers/a.pdf");
        for name in [&*uri, "papers", "./papers/", ".", "..", "x/../papers", "/"] {
            assert!(Named::new(name).holds(&uri), "{name}");
        }
        assert!(
            Named::new("papers").holds("papers/a.pdf"),
            "below a root with a name"
        );
        assert!(Named::new("https://a.org/b?c=d").holds("https://a.org/b?c=d"));
        for other in ["paper", "papers/b.pdf", ""] {
            assert!(!Named::new(other).holds(&uri), "{other}");
        }
    }
}

//! Gives each file one absolute path, however its path is spelled.

use std::io;
use std::path::{Component, Path, PathBuf};

/// The absolute form of `path`, without `.` and `..`.
///
/// The path is only rewritten as text: a symbolic link keeps its own name, and a
/// path that names nothing yet, or no longer, has an absolute form too.
///
/// # Errors
/// When `path` is empty, or the working directory cannot be found.
pub fn clean_absolute(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::CurDir => {}
            // The parent of `/` is `/`.
            Component::ParentDir => _ = clean.pop(),
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// The place that `path` leads to: its absolute form with symbolic links followed, as
/// far as it exists. Two spellings of one folder have the same.
///
/// # Errors
/// As [`clean_absolute`].
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    if let Ok(real) = std::fs::canonicalize(path) {
        return Ok(real);
    }
    let clean = clean_absolute(path)?;
    let existing = clean.ancestors().find_map(|ancestor| {
        let real = std::fs::canonicalize(ancestor).ok()?;
        let rest = clean.strip_prefix(ancestor).ok()?;
        // One by one: to join nothing would add a `/`.
        Some(real.components().chain(rest.components()).collect())
    });
    Ok(existing.unwrap_or(clean))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn clean(path: &str) -> PathBuf {
        clean_absolute(Path::new(path)).expect("there is a working directory")
    }

    #[test]
    fn every_spelling_of_a_path_gives_the_same_absolute_path() {
        let here = std::env::current_dir().expect("there is a working directory");
        let expected = here.join("input/a.pdf");
        for spelling in [
            "input/a.pdf",
            "./input//a.pdf",
            "x/../input/./a.pdf",
            "x/y/../../input/a.pdf/",
            expected.to_str().expect("the path is UTF-8"),
        ] {
            assert_eq!(clean(spelling), expected, "{spelling}");
        }
        assert_eq!(clean("//a/b"), Path::new("/a/b"));
        assert_eq!(clean("/../../a/.."), Path::new("/"));
        assert!(clean_absolute(Path::new("")).is_err());
    }

    #[test]
    fn a_place_is_found_behind_links_whether_it_exists_or_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = std::fs::canonicalize(folder.path()).expect("it is there");
        std::fs::create_dir(root.join("real")).expect("made");
        std::os::unix::fs::symlink("real", root.join("link")).expect("made");
        for (spelling, expected) in [
            ("link", "real"),
            ("link/new/./x", "real/new/x"),
            ("real/../link/new", "real/new"),
            ("nothing/../link", "real"),
            ("nothing/x", "nothing/x"),
        ] {
            let found = resolved(&folder.path().join(spelling)).expect("has a place");
            // As text: the identity of a sink is one.
            let expected = root.join(expected);
            assert_eq!(found.as_os_str(), expected.as_os_str(), "{spelling}");
        }
        assert!(resolved(Path::new("")).is_err());
    }
}

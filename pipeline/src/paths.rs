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
}

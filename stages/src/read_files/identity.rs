//! Checks what names documents: the path of a file or folder, and `root`.

use std::path::{Component, Path, PathBuf};

use pagemill_pipeline::{FieldError, clean_absolute};

/// Why a path cannot name a document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// The lexical form would name another file.
    #[error("leads through a symbolic link and back with `..`: `{}`", .0.display())]
    ThroughLink(PathBuf),
    /// A relative path, and there is no working directory.
    #[error("is relative, and the working directory cannot be found ({0})")]
    NoWorkingDirectory(#[from] std::io::Error),
}

impl PathError {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::ThroughLink(_) => "write the path without `..`",
            Self::NoWorkingDirectory(_) => "write an absolute path",
        }
    }
}

/// The absolute path of a file or folder, without `.` and `..`, for its URI.
///
/// # Errors
/// The path without `..` would lead elsewhere, or there is no working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, PathError> {
    let clean = clean_absolute(path)?;
    let goes_back = path.components().any(|part| part == Component::ParentDir);
    if goes_back
        && let Ok(actual) = path.canonicalize()
        && clean.canonicalize().ok() != Some(actual)
    {
        return Err(PathError::ThroughLink(path.to_owned()));
    }
    Ok(clean)
}

/// Checks the setting `root`: plain names with `/` between them.
///
/// # Errors
/// It could be taken for a path of the disk, or has characters that need quoting.
pub(super) fn check_root(root: &str) -> Result<(), FieldError> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_name =
        |name: &str| !name.is_empty() && name != "." && name != ".." && name.chars().all(is_plain);
    if root.split('/').all(is_name) {
        return Ok(());
    }
    Err(FieldError::new(
        "root",
        format_args!("is no plain name: `{root}`"),
        "use letters, digits, `_`, `-` and `.`, with `/` between names, such as `papers/2026`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_plain_name() {
        for root in ["papers", "papers/2026", "a.b-c_d", "Überblick"] {
            assert_eq!(check_root(root), Ok(()), "{root}");
        }
        for root in [
            "", "/papers", "papers/", "a//b", "..", "a/../b", "./a", "a b", "C:", "~",
        ] {
            let error = check_root(root).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`root` is no plain name: `{root}`")
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_leaves_a_link_by_two_dots_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        for name in ["a/b", "c", "a/x"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(folder.join("a/b"), folder.join("link")).unwrap();
        // The system opens `a/x`, and the text would become `x`.
        let error = absolute(&folder.join("link/../x")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("leads through a symbolic link")
        );
        assert_eq!(
            absolute(&folder.join("link/../c")).unwrap(),
            folder.join("c")
        );
        assert_eq!(absolute(&folder.join("c/../a")).unwrap(), folder.join("a"));
        assert_eq!(absolute(&folder.join("link")).unwrap(), folder.join("link"));
        assert_eq!(
            absolute(&folder.join("gone/../x")).unwrap(),
            folder.join("x")
        );
    }
}

//! Removes places in source code from the texts of errors.
//!
//! Some libraries end their messages with the file and line that made the
//! error: `Not found: data/a.lance, /root/.cargo/registry/src/…/error.rs:12:3`.
//! A user can do nothing with them, and they name folders of the machine that
//! compiled the program.

use std::borrow::Cow;

/// What a place in source code looks like: `PATH.rs:LINE:COLUMN`.
const MARK: &str = ".rs:";

/// Folders of the compiler and of its crates, as paths that may hold spaces.
const FOLDERS: [&str; 3] = ["/.cargo/", "/rustc/", "/rustlib/"];

/// What stands between a message and its place, the longest first.
const JOINTS: [&str; 6] = [", location: ", " (at ", ", at ", " at ", ", ", " "];

/// The text without places in source code.
pub fn without_code_places(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    let mut searched = 0;
    while let Some(found) = rest[searched..].find(MARK) {
        let dot = searched + found;
        let after_mark = dot + MARK.len();
        let Some(n_bytes) = line_and_column(&rest[after_mark..]) else {
            searched = after_mark;
            continue;
        };
        let (before, joint) = split_joint(&rest[..start_of_path(&rest[..dot])]);
        kept.push_str(before);
        rest = &rest[after_mark + n_bytes..];
        // The bracket that the joint opened is closed behind the place.
        if joint.contains('(') {
            rest = rest.strip_prefix(')').unwrap_or(rest);
        }
        searched = 0;
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}

/// The length of `12:3` at the start of a text; of `12` alone too.
fn line_and_column(text: &str) -> Option<usize> {
    let n_digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let line = Some(n_digits(text)).filter(|n| *n > 0)?;
    let column = text[line..].strip_prefix(':').map_or(0, n_digits);
    Some(if column > 0 { line + 1 + column } else { line })
}

/// Where the path begins that a text ends with.
fn start_of_path(text: &str) -> usize {
    // The home of a user may have a space in its name.
    let comma = text.rfind(", ").map_or(0, |comma| comma + 2);
    let last = text[comma..].trim_start_matches("location: ");
    if last.starts_with('/') && FOLDERS.iter().any(|folder| last.contains(folder)) {
        return text.len() - last.len();
    }
    let is_end = |c: char| c.is_whitespace() || "([`'\"".contains(c);
    text.rfind(is_end).map_or(0, |end| {
        end + text[end..].chars().next().map_or(0, char::len_utf8)
    })
}

/// What stands before the place, and what joined the two.
fn split_joint(text: &str) -> (&str, &str) {
    let joint = JOINTS.iter().find(|joint| text.ends_with(**joint));
    joint.map_or((text, ""), |joint| text.split_at(text.len() - joint.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_lance_lose_the_place_in_the_code_and_nothing_else() {
        for (text, expected) in [
            (
                "Not found: data/pages.lance/data/0a.lance, /root/.cargo/registry/src/\
                 index.crates.io-1949cf8c6b5b557f/lance-io-14.0.2/src/local.rs:137:31",
                "Not found: data/pages.lance/data/0a.lance",
            ),
            (
                "LanceError(IO): Generic LocalFileSystem error: No space left on device \
                 (os error 28), /rustc/ed61e7d7e242494fb7057f2657300d9e77bb4fcb/library/core/src/\
                 convert/mod.rs:716:9",
                "LanceError(IO): Generic LocalFileSystem error: No space left on device \
                 (os error 28)",
            ),
            (
                "Append with different schema: fields did not match, location: \
                 /home/Jane Doe/.cargo/registry/src/x/lance-14.0.2/src/dataset.rs:9:1",
                "Append with different schema: fields did not match",
            ),
            (
                "Wrapped error: Dataset at path a.lance was not found: Not found: a.lance, \
                 rust/lance/src/dataset/builder.rs:5:6, rust/lance/src/dataset.rs:123:45",
                "Wrapped error: Dataset at path a.lance was not found: Not found: a.lance",
            ),
            (
                "lance error: Invalid user input: no column `x`, src/a.rs:1:2: try another",
                "lance error: Invalid user input: no column `x`: try another",
            ),
        ] {
            assert_eq!(without_code_places(text), expected);
        }
    }

    #[test]
    fn other_places_and_numbers_stay() {
        for text in [
            "cannot read `notes.rs`: permission denied",
            "pipelines.toml:4:16: must be at least 1",
            "see main.rs: it is long",
            "connection to 127.0.0.1:8080 refused",
            "",
        ] {
            assert_eq!(without_code_places(text), text);
        }
    }

    #[test]
    fn a_place_in_brackets_goes_with_its_brackets() {
        let text = "task failed (at src/lib.rs:10:5) and was dropped";
        assert_eq!(without_code_places(text), "task failed and was dropped");
        assert_eq!(without_code_places("src/lib.rs:10:5"), "");
        assert_eq!(without_code_places("ü at ü.rs:1"), "ü");
    }
}

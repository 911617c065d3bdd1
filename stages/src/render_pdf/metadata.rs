//! What a document says about itself, by `lopdf`.

use super::protocol::Metadata;

/// Longest title, author or reason that is passed on.
const MAX_CHARS: usize = 1000;

/// Reads title and author of a document that a renderer could open.
///
/// It never fails: a document without metadata is a document all the same.
pub fn read_metadata(bytes: &[u8], password: Option<&str>) -> Metadata {
    // `get_pages()` on a hostile page tree asks for 12 GB; these calls read
    // the document information and nothing else.
    let found = match password {
        None => lopdf::Document::load_metadata_mem(bytes),
        Some(password) => lopdf::Document::load_metadata_mem_with_password(bytes, password),
    };
    let Ok(found) = found else {
        return Metadata::default();
    };
    Metadata {
        title: found.title,
        author: found.author,
    }
}

/// A text that a worker sent, as one line that is safe to store and to print:
/// no control characters, and not longer than anyone would read.
pub fn tidy(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_a_worker_becomes_one_tidy_line() {
        assert_eq!(tidy(" The\u{0}  Mill\n"), "The Mill");
        assert_eq!(tidy("\u{1b}[31mred"), "[31mred");
        assert_eq!(tidy(&"x".repeat(2000)).len(), MAX_CHARS);
    }

    #[test]
    fn what_has_no_metadata_has_none() {
        assert_eq!(read_metadata(b"no PDF", None), Metadata::default());
    }
}

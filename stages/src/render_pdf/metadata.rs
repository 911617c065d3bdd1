//! Reads the title and the author of a document, by `lopdf`.

use crate::cage::protocol::Metadata;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_metadata_has_none() {
        assert_eq!(read_metadata(b"no PDF", None), Metadata::default());
    }
}

//! Stable names of what moves through the graph.

use std::fmt;
use std::sync::Arc;

/// Names a document for good: the first 16 bytes of the BLAKE3 hash of its URI.
///
/// The same URI gives the same id on every machine and in every run, which is
/// what lets a rerun replace a document's rows instead of adding to them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentId([u8; 16]);

impl DocumentId {
    /// The id of the document at `uri`.
    pub fn of(uri: &str) -> Self {
        let hash = blake3::hash(uri.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        Self(id)
    }

    /// The id with these bytes, as [`DocumentId::as_bytes`] gave them.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id that is written as these 32 hexadecimal digits.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let mut id = [0; 16];
        if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, place) in id.iter_mut().zip((0..32).step_by(2)) {
            *byte = u8::from_str_radix(&digits[place..place + 2], 16).ok()?;
        }
        Some(Self(id))
    }

    /// The 16 bytes themselves.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DocumentId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The BLAKE3 hash of a document's bytes: unchanged content, unchanged hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// Hashes a document's bytes as they are read.
///
/// ```
/// use pagemill_pipeline::{ContentHash, ContentHasher};
///
/// let mut hasher = ContentHasher::default();
/// hasher.update(b"%PDF");
/// hasher.update(b"-1.7");
/// assert_eq!(hasher.finish(), ContentHash::of(b"%PDF-1.7"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    /// Hashes the bytes that follow those before.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes.
    pub fn finish(&self) -> ContentHash {
        self.0.finalize().into()
    }
}

impl From<blake3::Hash> for ContentHash {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for ContentHash {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hierarchical key of an item: a document, a page of it, a part of that page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The document that the item was made from.
    pub document: DocumentId,
    /// Page number, counted from 1.
    pub page: Option<u32>,
    /// Part of the page (a chunk of text, a figure), counted from 1.
    pub part: Option<u32>,
}

impl Key {
    /// The key of a whole document.
    pub fn document(document: DocumentId) -> Self {
        Self {
            document,
            page: None,
            part: None,
        }
    }

    /// The key of one page of the same document; `page` counts from 1.
    #[must_use]
    pub fn with_page(self, page: u32) -> Self {
        Self {
            page: Some(page),
            part: None,
            ..self
        }
    }

    /// The key of one part of the same page; `part` counts from 1.
    #[must_use]
    pub fn with_part(self, part: u32) -> Self {
        Self {
            part: Some(part),
            ..self
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.document)?;
        fmt_place(f, self.page, self.part)
    }
}

/// Where an item comes from: what every row made from a document repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The document's id, derived from `uri`.
    pub id: DocumentId,
    /// Path or URL of the document, as the source found it.
    pub uri: Arc<str>,
    /// Hash of the document's bytes.
    pub content_hash: ContentHash,
    /// Media type found by looking at the bytes, such as `application/pdf`.
    pub media_type: Arc<str>,
    /// Size of the document.
    pub n_bytes: u64,
    /// Name of the source that sent the document; empty before it is sent.
    pub source: Arc<str>,
}

impl Origin {
    /// Describes the document at `uri` with these bytes.
    pub fn new(uri: impl Into<Arc<str>>, media_type: impl Into<Arc<str>>, bytes: &[u8]) -> Self {
        Self::hashed(uri, media_type, ContentHash::of(bytes), bytes.len() as u64)
    }

    /// The same, for a caller who hashed the bytes while reading them.
    pub fn hashed(
        uri: impl Into<Arc<str>>,
        media_type: impl Into<Arc<str>>,
        content_hash: ContentHash,
        n_bytes: u64,
    ) -> Self {
        let uri = uri.into();
        Self {
            id: DocumentId::of(&uri),
            uri,
            content_hash,
            media_type: media_type.into(),
            n_bytes,
            source: Arc::default(),
        }
    }

    /// The same document, as the source of this name sent it.
    #[must_use]
    pub(crate) fn sent_by(&self, source: &Arc<str>) -> Self {
        Self {
            source: Arc::clone(source),
            ..self.clone()
        }
    }

    /// How messages name an item of this document: `report.pdf#7` for page 7.
    pub fn label(&self, key: Key) -> Label<'_> {
        Label { origin: self, key }
    }
}

/// Displays as `report.pdf#7` (page 7) or `report.pdf#7.2` (its second part).
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    origin: &'a Origin,
    key: Key,
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.origin.uri.trim_end_matches('/');
        f.write_str(uri.rsplit(['/', '\\']).next().unwrap_or(uri))?;
        fmt_place(f, self.key.page, self.key.part)
    }
}

fn fmt_place(f: &mut fmt::Formatter<'_>, page: Option<u32>, part: Option<u32>) -> fmt::Result {
    if let Some(page) = page {
        write!(f, "#{page}")?;
    }
    if let Some(part) = part {
        write!(f, ".{part}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_uri_has_the_same_id_and_another_uri_another() {
        assert_eq!(DocumentId::of("a.pdf"), DocumentId::of("a.pdf"));
        assert_ne!(DocumentId::of("a.pdf"), DocumentId::of("b.pdf"));
        assert_eq!(DocumentId::of("a.pdf").to_string().len(), 32);
    }

    #[test]
    fn a_label_names_file_page_and_part() {
        let origin = Origin::new("folder/a.pdf", "application/pdf", b"x");
        let key = Key::document(origin.id);
        assert_eq!(origin.label(key).to_string(), "a.pdf");
        assert_eq!(origin.label(key.with_page(3)).to_string(), "a.pdf#3");
        assert_eq!(
            origin.label(key.with_page(3).with_part(2)).to_string(),
            "a.pdf#3.2"
        );
    }

    #[test]
    fn a_page_key_forgets_the_part_of_another_page() {
        let key = Key::document(DocumentId::of("a"))
            .with_page(1)
            .with_part(4)
            .with_page(2);
        assert_eq!(key.part, None);
    }
}

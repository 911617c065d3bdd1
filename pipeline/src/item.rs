//! The record that moves through the graph.

use std::borrow::Cow;
use std::sync::Arc;

use crate::document::Token;
use crate::document_bytes::DocumentBytes;
use crate::fields::Field;
use crate::key::{Key, Label, Origin};
use crate::value::{Image, Value, Vectors, Word};

/// A keyed record with typed fields.
///
/// Cloning an item copies pointers: pixels, text and vectors are shared.
///
/// ```
/// use pagemill_pipeline::{Field, Item};
///
/// let mut page = Item::of_text("notes.txt", "the mill turns").with_page(1);
/// page.set("language", "en");
/// assert_eq!(page.label().to_string(), "notes.txt#1");
/// assert_eq!(page.text(), Some("the mill turns"));
/// assert!(page.image().is_none());
/// ```
#[derive(Debug, Clone)]
pub struct Item {
    key: Key,
    origin: Arc<Origin>,
    fields: Vec<(Cow<'static, str>, Value)>,
    pub(crate) token: Option<Token>,
}

impl Item {
    /// A whole document, without fields.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self {
            key: Key::document(origin.id),
            origin,
            fields: Vec::new(),
            token: None,
        }
    }

    /// An item of this key, without fields.
    pub(crate) fn with_key(origin: Arc<Origin>, key: Key) -> Self {
        Self {
            key,
            ..Self::new(origin)
        }
    }

    /// A document whose bytes are in memory.
    pub fn of_document(
        uri: impl Into<Arc<str>>,
        media_type: impl Into<Arc<str>>,
        bytes: impl Into<DocumentBytes>,
    ) -> Self {
        let bytes = bytes.into();
        let mut item = Self::new(Arc::new(Origin::new(uri, media_type, &bytes)));
        item.set(Field::DOCUMENT.name, Value::Document(bytes));
        item
    }

    /// A document that is plain text.
    pub fn of_text(uri: impl Into<Arc<str>>, text: &str) -> Self {
        let mut item = Self::new(Arc::new(Origin::new(uri, "text/plain", text.as_bytes())));
        item.set(Field::TEXT.name, text);
        item
    }

    /// An item of the same document and with the same key, but without fields.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            key: self.key,
            origin: Arc::clone(&self.origin),
            fields: Vec::new(),
            token: self.token.clone(),
        }
    }

    /// The same item as page `page` (from 1) of its document.
    #[must_use]
    pub fn with_page(mut self, page: u32) -> Self {
        self.key = self.key.with_page(page);
        self
    }

    /// The same item as part `part` (from 1) of its page.
    #[must_use]
    pub fn with_part(mut self, part: u32) -> Self {
        self.key = self.key.with_part(part);
        self
    }

    /// The item's key.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The document that the item was made from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Names the source that sent the item's document.
    pub(crate) fn set_source(&mut self, source: &Arc<str>) {
        self.origin = Arc::new(self.origin.sent_by(source));
    }

    /// How messages name the item: `report.pdf#7`.
    pub fn label(&self) -> Label<'_> {
        self.origin.label(self.key)
    }

    /// Sets a field, replacing its value if it has one.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) {
        let (name, value) = (name.into(), value.into());
        match self.fields.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.fields.push((name, value)),
        }
    }

    /// The same item with a field set.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }

    /// Takes a field off the item.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let place = self.fields.iter().position(|(known, _)| known == name)?;
        Some(self.fields.swap_remove(place).1)
    }

    /// Keeps only the fields for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.fields.retain(|(name, _)| keep(name));
    }

    /// The fields, in the order in which they were first set.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_ref(), value))
    }

    /// The field `document`: the document's own bytes.
    pub fn document(&self) -> Option<&DocumentBytes> {
        match self.get(&Field::DOCUMENT.name)? {
            Value::Document(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The field `image`: pixels of the page or picture.
    pub fn image(&self) -> Option<&Arc<Image>> {
        match self.get(&Field::IMAGE.name)? {
            Value::Image(image) => Some(image),
            _ => None,
        }
    }

    /// The field `words`: words with their boxes.
    pub fn words(&self) -> Option<&Arc<[Word]>> {
        match self.get(&Field::WORDS.name)? {
            Value::Words(words) => Some(words),
            _ => None,
        }
    }

    /// The field `text`.
    pub fn text(&self) -> Option<&str> {
        match self.get(&Field::TEXT.name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The field `vector`: one vector of the whole item.
    pub fn vector(&self) -> Option<&Arc<Vectors>> {
        match self.get(&Field::VECTOR.name)? {
            Value::Vectors(vectors) => Some(vectors),
            _ => None,
        }
    }

    /// The field `vectors`: several vectors of the item, one a patch or token.
    pub fn vectors(&self) -> Option<&Arc<Vectors>> {
        match self.get(&Field::VECTORS.name)? {
            Value::Vectors(vectors) => Some(vectors),
            _ => None,
        }
    }

    /// Memory that the item's values hold: what an edge's budget counts.
    pub fn n_bytes(&self) -> usize {
        // The record itself: key, origin pointer, and a slot a field.
        const RECORD_BYTES: usize = 128;
        RECORD_BYTES
            + self
                .fields
                .iter()
                .map(|(_, value)| value.n_bytes())
                .sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_field_again_replaces_its_value() {
        let mut item = Item::of_text("a.txt", "one");
        item.set("text", "two");
        assert_eq!(item.text(), Some("two"));
        assert_eq!(item.fields().count(), 1);
    }

    #[test]
    fn one_vector_and_several_are_two_fields() {
        let vectors = Vectors::single(vec![1.0, 2.0]).expect("two numbers");
        let item = Item::of_text("a.txt", "").with(Field::VECTORS.name, vectors);
        assert!(item.vectors().is_some() && item.vector().is_none());
    }

    #[test]
    fn a_child_keeps_document_and_key_but_no_fields() {
        let page = Item::of_text("a.txt", "one").with_page(4);
        let part = page.child().with_part(2);
        assert_eq!(part.key(), page.key().with_part(2));
        assert_eq!(part.origin(), page.origin());
        assert_eq!(part.fields().count(), 0);
    }

    #[test]
    fn the_bytes_of_an_item_are_those_of_its_values() {
        let small = Item::of_text("a.txt", "");
        let large = Item::of_text("a.txt", &"x".repeat(1000));
        assert_eq!(large.n_bytes() - small.n_bytes(), 1000);
    }

    #[test]
    fn cloning_shares_the_values() {
        let image = Image::new(vec![0; 3], 1, 1, None).expect("one pixel");
        let item = Item::of_text("a.txt", "").with("image", image);
        let copy = item.clone();
        let (a, b) = (item.image().expect("set"), copy.image().expect("set"));
        assert!(Arc::ptr_eq(a, b));
    }
}

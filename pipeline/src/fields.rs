//! Declares what a node reads, adds and drops: the schema of the graph.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FieldType {
    /// A document's own bytes.
    Document,
    /// RGB8 pixels.
    Image,
    /// Words with boxes.
    Words,
    /// A string.
    Text,
    /// One vector an item.
    Vector,
    /// Several vectors an item.
    MultiVector,
    /// Encoded bytes, such as a JPEG.
    Bytes,
    /// A flag.
    Bool,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// A value of a type that only some stages understand, such as pixels laid
    /// out for a model; no sink of ours can store it.
    Custom,
}

impl FieldType {
    /// Whether a sink can store the field in a column.
    pub fn is_column(self) -> bool {
        !matches!(self, Self::Document | Self::Image | Self::Custom)
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Document => "document",
            Self::Image => "image",
            Self::Words => "words",
            Self::Text => "text",
            Self::Vector => "vector",
            Self::MultiVector => "multi-vector",
            Self::Bytes => "bytes",
            Self::Bool => "bool",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Custom => "custom",
        })
    }
}

/// A named and typed field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    /// The name under which items carry it and sinks store it.
    pub name: Cow<'static, str>,
    /// The type of its values.
    pub ty: FieldType,
}

impl Field {
    /// The document's bytes.
    pub const DOCUMENT: Self = Self::new("document", FieldType::Document);
    /// Pixels of the page or picture.
    pub const IMAGE: Self = Self::new("image", FieldType::Image);
    /// Words of the page with their boxes.
    pub const WORDS: Self = Self::new("words", FieldType::Words);
    /// Text of the page or chunk.
    pub const TEXT: Self = Self::new("text", FieldType::Text);
    /// Pixels cut into patches as a model takes them. What a value is, the
    /// stages that make and read it agree on.
    pub const PATCHES: Self = Self::new("patches", FieldType::Custom);
    /// One vector an item (a sentence encoder).
    pub const VECTOR: Self = Self::new("vector", FieldType::Vector);
    /// Several vectors an item (a late-interaction encoder).
    pub const VECTORS: Self = Self::new("vectors", FieldType::MultiVector);
    /// A small encoded picture of the page.
    pub const THUMBNAIL: Self = Self::new("thumbnail", FieldType::Bytes);

    /// A field of this name and type.
    pub const fn new(name: &'static str, ty: FieldType) -> Self {
        Self {
            name: Cow::Borrowed(name),
            ty,
        }
    }
}

/// How many items come out for how many that go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cardinality {
    /// One for one (or a dead letter).
    #[default]
    OneToOne,
    /// Any number for one: pages of a document, chunks of a page.
    OneToMany,
    /// One for all of a document.
    ManyToOne,
    /// One for all of a page.
    ManyToOnePage,
}

impl Cardinality {
    /// Whether items are held until all of them have come.
    pub(crate) fn gathers(self) -> bool {
        matches!(self, Self::ManyToOne | Self::ManyToOnePage)
    }
}

impl fmt::Display for Cardinality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneToOne => "1:1",
            Self::OneToMany => "1:n",
            Self::ManyToOne | Self::ManyToOnePage => "n:1",
        })
    }
}

/// What a node does to the fields of the items that pass through it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    pub(crate) reads: Vec<Field>,
    pub(crate) uses: Vec<Field>,
    /// What a node reads in place of another field.
    pub(crate) instead: Vec<(Cow<'static, str>, Field)>,
    pub(crate) stores_all: bool,
    pub(crate) takes_all: bool,
    pub(crate) adds: Vec<Field>,
    /// Whether no item keeps what it brought under the names in `adds`.
    pub(crate) adds_to_all: bool,
    pub(crate) drops: Vec<Cow<'static, str>>,
    pub(crate) cardinality: Cardinality,
}

impl Fields {
    /// Reads these; an input without one of them is an error at check time.
    pub fn reads(fields: impl IntoIterator<Item = Field>) -> Self {
        Self {
            reads: fields.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Stores every field that reaches it and that can be a column (most sinks):
    /// all but pixels and the document's own bytes.
    pub fn stores_all() -> Self {
        Self {
            stores_all: true,
            ..Self::default()
        }
    }

    /// Takes every field that reaches it, pixels too: a closure that does not
    /// say what it reads.
    pub fn takes_all() -> Self {
        Self {
            takes_all: true,
            ..Self::default()
        }
    }

    /// Reads nothing: a source that adds these.
    pub fn provides(fields: impl IntoIterator<Item = Field>) -> Self {
        Self::default().adds(fields)
    }

    /// Reads these besides.
    #[must_use]
    pub fn also_reads(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.reads.extend(fields);
        self
    }

    /// Reads these where they are present.
    #[must_use]
    pub fn uses(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.uses.extend(fields);
        self
    }

    /// Reads `other` where it is present, and then does without `field`, which it reads.
    #[must_use]
    pub fn or_instead(mut self, field: &Field, other: Field) -> Self {
        self.instead.push((field.name.clone(), other));
        self
    }

    /// Adds these, or gives them new values. Items that the node does not handle
    /// may pass with the values that they brought under these names.
    #[must_use]
    pub fn adds(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.adds.extend(fields);
        self
    }

    /// Gives fields that it reads new values; the same as [`Fields::adds`], said more clearly.
    #[must_use]
    pub fn replaces(self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.adds(fields)
    }

    /// Adds its fields to every item, or takes them away: no item passes with a
    /// value that it brought under one of their names, so that such values need
    /// not be carried to the node.
    #[must_use]
    pub fn to_every_item(mut self) -> Self {
        self.adds_to_all = true;
        self
    }

    /// Takes these away.
    #[must_use]
    pub fn drops(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.drops
            .extend(fields.into_iter().map(|field| field.name));
        self
    }

    /// Sends any number of items for one.
    #[must_use]
    pub fn one_to_many(mut self) -> Self {
        self.cardinality = Cardinality::OneToMany;
        self
    }

    /// Sends one item for all those of a document, which come as one batch, in
    /// order of key. They are held in memory until the last has come.
    #[must_use]
    pub fn many_to_one(mut self) -> Self {
        self.cardinality = Cardinality::ManyToOne;
        self
    }

    /// Sends one item for all those of a page, which come as one batch.
    #[must_use]
    pub fn many_to_one_page(mut self) -> Self {
        self.cardinality = Cardinality::ManyToOnePage;
        self
    }

    /// The fields that leave the node when `input` reaches it.
    pub fn output(&self, input: &FieldSet) -> FieldSet {
        let mut output = input.clone();
        for name in &self.drops {
            output.remove(name);
        }
        for field in &self.adds {
            output.insert(field.clone());
        }
        output
    }

    /// Whether the node looks at the field called `name`.
    pub fn looks_at(&self, name: &str, ty: FieldType) -> bool {
        self.takes_all
            || (self.stores_all && ty.is_column())
            || self
                .reads
                .iter()
                .chain(&self.uses)
                .chain(self.instead.iter().map(|(_, other)| other))
                .any(|field| field.name == name)
    }

    /// Whether an item may pass with the value of this field that it brought.
    pub(crate) fn keeps(&self, field: &Field) -> bool {
        let is_read = |known: &Field| known.name == field.name;
        !(self.adds_to_all
            || self.drops.contains(&field.name)
            || self.reads.iter().chain(&self.uses).any(is_read))
    }

    /// The cardinality.
    pub fn cardinality(&self) -> Cardinality {
        self.cardinality
    }
}

/// The fields that travel along one edge, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeMap<Cow<'static, str>, FieldType>);

impl FieldSet {
    /// Adds a field, or changes its type.
    pub fn insert(&mut self, field: Field) {
        self.0.insert(field.name, field.ty);
    }

    /// Takes a field away.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The type of the field called `name`, if it is there.
    pub fn get(&self, name: &str) -> Option<FieldType> {
        self.0.get(name).copied()
    }

    /// The fields in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, FieldType)> {
        self.0.iter().map(|(name, ty)| (name.as_ref(), *ty))
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(AsRef::as_ref)
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        Self(
            fields
                .into_iter()
                .map(|field| (field.name, field.ty))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_in_no_form_are_a_column() {
        assert!(!Field::IMAGE.ty.is_column() && !Field::PATCHES.ty.is_column());
        assert!(Field::VECTORS.ty.is_column() && Field::THUMBNAIL.ty.is_column());
    }

    #[test]
    fn a_node_drops_before_it_adds() {
        let fields = Fields::reads([Field::TEXT])
            .drops([Field::TEXT, Field::IMAGE])
            .adds([Field::TEXT, Field::VECTOR]);
        let input = FieldSet::from_iter([Field::TEXT, Field::IMAGE, Field::WORDS]);
        let output = fields.output(&input);
        assert_eq!(
            output.names().collect::<Vec<_>>(),
            ["text", "vector", "words"]
        );
    }
}

//! Parses a line: which document, and what more is known of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pagemill_pipeline::{ContentHash, FieldError, ItemError, Value};
use serde_json::{Map, Value as Json, json};

use super::{AttributeType, LineFormat, StdinConfig};
use crate::names;
use crate::read_files::identity;
use crate::read_files::listing::text_of;
use crate::read_files::state::FileState;

/// What URIs of lines themselves begin with; their numbers follow.
pub(super) const LINE: &str = "stdin:";

const PATH: &str = "path";
const URI: &str = "uri";
const TEXT: &str = "text";
const BYTES: &str = "bytes";

/// Names that mean something else in a line.
const TAKEN: [&str; 4] = [PATH, URI, TEXT, BYTES];

/// A document that a line names.
#[derive(Debug, PartialEq)]
pub(super) struct Record {
    pub(super) uri: String,
    pub(super) content: Content,
    pub(super) attributes: Attributes,
}

/// Where its content is.
#[derive(Debug, PartialEq)]
pub(super) enum Content {
    File(PathBuf),
    Text(String),
    Bytes(Vec<u8>),
}

/// Values of further keys, all of them declared.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Attributes(BTreeMap<String, Json>);

impl Attributes {
    /// A hash that changes with the content and with the values.
    pub(super) fn hash_with(&self, content: ContentHash) -> ContentHash {
        match self.hash() {
            None => content,
            Some(values) => ContentHash::of(format!("{content}{values}").as_bytes()),
        }
    }

    /// What tells a version of a file, and of what is said about it, from others.
    pub(super) fn mark(&self, state: FileState) -> String {
        match self.hash() {
            None => state.to_string(),
            Some(values) => format!("{state}:{values}"),
        }
    }

    fn hash(&self) -> Option<ContentHash> {
        // Sorted by name, so that the order in the line makes no difference.
        (!self.0.is_empty()).then(|| ContentHash::of(json!(self.0).to_string().as_bytes()))
    }

    pub(super) fn into_values(self) -> impl Iterator<Item = (String, Value)> {
        self.0.into_iter().filter_map(|(name, value)| {
            let value = match value {
                Json::String(text) => text.into(),
                Json::Bool(flag) => flag.into(),
                Json::Number(number) => match number.as_i64() {
                    Some(whole) if !number.is_f64() => whole.into(),
                    _ => number.as_f64()?.into(),
                },
                Json::Null | Json::Array(_) | Json::Object(_) => return None,
            };
            Some((name, value))
        })
    }
}

/// Reads lines.
#[derive(Debug)]
pub(super) struct Records {
    format: LineFormat,
    declared: BTreeMap<String, AttributeType>,
    has_text: bool,
}

impl Records {
    pub(super) fn new(config: &StdinConfig) -> Result<Self, FieldError> {
        for name in config.fields.keys() {
            if !names::is_name(name) {
                let hint = "use letters, digits and `_`";
                let problem = format_args!("has a name that is none: `{name}`");
                return Err(FieldError::new("fields", problem, hint));
            }
            if TAKEN.contains(&name.as_str()) || names::is_taken(name) {
                let problem = format_args!("has a name that means something else: `{name}`");
                let hint = format_args!("call it `own_{name}`, in the lines as well");
                return Err(FieldError::new("fields", problem, hint));
            }
        }
        Ok(Self {
            format: config.format,
            declared: config.fields.clone(),
            has_text: config.text,
        })
    }

    /// Whether a line that is just this path can have named the document.
    pub(super) fn can_name(&self, uri: &str) -> bool {
        self.declared.is_empty() && Path::new(uri).exists()
    }

    /// The line that names a file.
    pub(super) fn line_of(&self, path: &str) -> String {
        match self.format {
            LineFormat::Paths => path.to_owned(),
            LineFormat::Auto | LineFormat::Json => json!({ PATH: path }).to_string(),
        }
    }

    /// Reads a line; the error is its dead letter.
    pub(super) fn parse(&self, line: &str) -> Result<Record, ItemError> {
        let is_object = match self.format {
            LineFormat::Auto => line.starts_with('{'),
            LineFormat::Paths => false,
            LineFormat::Json => true,
        };
        if !is_object {
            let (uri, content) = file(line)?;
            return Ok(Record {
                uri,
                content,
                attributes: Attributes::default(),
            });
        }
        let object: Map<String, Json> = serde_json::from_str(line).map_err(|error| {
            let hint = "write one object a line, such as `{\"path\": \"a.pdf\"}`";
            bad(format!("it is no JSON object: {error}"), hint)
        })?;
        self.read_object(object)
    }

    fn read_object(&self, mut object: Map<String, Json>) -> Result<Record, ItemError> {
        let uri = string(&mut object, URI)?;
        let contents = [
            string(&mut object, PATH)?.map(|path| (PATH, path)),
            string(&mut object, TEXT)?.map(|text| (TEXT, text)),
            string(&mut object, BYTES)?.map(|bytes| (BYTES, bytes)),
        ];
        let attributes = self.attributes(object)?;
        let mut contents = contents.into_iter().flatten();
        let Some((kind, content)) = contents.next() else {
            let hint = "give the place of a file as `path`, or `uri` with one of the others";
            return Err(bad("it has no `path`, `text` or `bytes`", hint));
        };
        if let Some((other, _)) = contents.next() {
            let reason = format!("it has both `{kind}` and `{other}`");
            return Err(bad(reason, "leave one of them out"));
        }
        let (uri, content) = match (kind, uri) {
            (PATH, None) => file(&content)?,
            (PATH, Some(_)) => {
                let hint = "leave `uri` out: the path is the URI";
                return Err(bad("it has both `path` and `uri`", hint));
            }
            (_, None) => {
                let hint = "give it one: it names the document, in later runs as well";
                return Err(bad("it has no `uri`", hint));
            }
            (TEXT, Some(uri)) => (uri, self.text(content)?),
            (_, Some(uri)) => (uri, decode(&content)?),
        };
        if uri.is_empty() {
            return Err(bad("its URI is empty", "name the document"));
        }
        Ok(Record {
            uri,
            content,
            attributes,
        })
    }

    fn text(&self, text: String) -> Result<Content, ItemError> {
        if !self.has_text {
            let hint = "set `text = true`, so that the pipeline is checked with it";
            return Err(bad("it brings a text", hint));
        }
        if text.is_empty() {
            return Err(bad("its `text` is empty", "leave it out of the input"));
        }
        Ok(Content::Text(text))
    }

    fn attributes(&self, object: Map<String, Json>) -> Result<Attributes, ItemError> {
        let mut attributes = BTreeMap::new();
        for (name, value) in object {
            let Some(ty) = self.declared.get(&name) else {
                let hint = format!("declare it: `fields = {{ {name} = \"{}\" }}`", like(&value));
                return Err(bad(format!("its `{name}` is not declared"), hint));
            };
            let (fits, expected) = match ty {
                AttributeType::Text => (value.is_string(), "a string"),
                AttributeType::Integer => (value.is_i64(), "a whole number of 64 bits"),
                AttributeType::Float => (value.is_number(), "a number"),
                AttributeType::Bool => (value.is_boolean(), "`true` or `false`"),
            };
            let value = match value {
                Json::Null => continue,
                _ if !fits => {
                    let hint = "change the line, or the type in `fields`";
                    return Err(bad(format!("its `{name}` is not {expected}"), hint));
                }
                Json::Number(number) if *ty == AttributeType::Float => json!(number.as_f64()),
                value => value,
            };
            attributes.insert(name, value);
        }
        Ok(Attributes(attributes))
    }
}

/// The file at `path`, and its URI: the absolute path without `.` and `..`.
fn file(path: &str) -> Result<(String, Content), ItemError> {
    if path.is_empty() {
        return Err(bad("its path is empty", "name the document"));
    }
    let path = identity::absolute(Path::new(path))
        .map_err(|error| bad(format_args!("its path {error}"), error.hint()))?;
    Ok((text_of(&path), Content::File(path)))
}

fn bad(reason: impl std::fmt::Display, hint: impl std::fmt::Display) -> ItemError {
    ItemError::new("read", reason).hint(hint)
}

/// Takes a key off the object whose value must be a string.
fn string(object: &mut Map<String, Json>, name: &str) -> Result<Option<String>, ItemError> {
    match object.remove(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(
            format!("its `{name}` is not a string"),
            "put it in quotes",
        )),
    }
}

fn decode(base64: &str) -> Result<Content, ItemError> {
    let bytes = BASE64_STANDARD.decode(base64).map_err(|error| {
        let hint = "use the standard alphabet, with padding and without line ends";
        bad(format!("its `bytes` are not base64: {error}"), hint)
    })?;
    Ok(Content::Bytes(bytes))
}

/// The type that would take a value.
fn like(value: &Json) -> &'static str {
    match value {
        Json::Number(number) if number.is_f64() => "float",
        Json::Number(_) => "integer",
        Json::Bool(_) => "bool",
        _ => "text",
    }
}

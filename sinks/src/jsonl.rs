//! `kind = "jsonl"`: one JSON object an item, a line each, in part files.
//!
//! `path` is a folder with files `part-00000001.jsonl` and so on. A part holds
//! whole documents and appears at once. A document that comes again is replaced
//! in the part that holds it, one that is gone is taken out of it; new ones go
//! to a new part. Small parts are merged.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pagemill_pipeline::{
    DocumentId, FieldError, FieldType, Item, Resources, Sink, SinkConfig, SinkInput, SinkPlace,
    StageError, StoredDocument, Value, VectorData, Vectors, Word,
};
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, json};

use crate::lancedb::Durability;
use crate::parts::{self, Format, PartConfig, PartError, PartSink, RowHead, Rows, Settings, Tally};
use crate::row::{self, MadeBy};

/// Settings of `kind = "jsonl"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlConfig {
    /// The folder of the parts; it is made if there is none.
    pub path: PathBuf,
    /// What becomes of encoded bytes, such as thumbnails.
    #[serde(default)]
    pub bytes: BytesAs,
    /// What a stored row survives.
    #[serde(default)]
    pub durability: Durability,
    /// When complete documents become a part.
    #[serde(default)]
    pub part: PartConfig,
}

impl JsonlConfig {
    /// Parts in this folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            bytes: BytesAs::default(),
            durability: Durability::default(),
            part: PartConfig::default(),
        }
    }
}

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BytesAs {
    /// As a string in Base64.
    #[default]
    Base64,
    /// Not at all.
    Skip,
}

impl SinkConfig for JsonlConfig {
    const KIND: &'static str = "jsonl";
    const ABOUT: &'static str = "writes one JSON object an item to part files in a folder";
    const EXAMPLE: &'static str = "path = \"data/pages.jsonl\"";
    const PATHS: &'static [&'static str] = &["path"];

    fn place(&self, _: &str) -> Option<SinkPlace> {
        Some(parts::place(&self.path))
    }

    fn row_settings(&self) -> String {
        format!("{:?}", self.bytes)
    }

    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        let settings = Settings {
            folder: self.path.clone(),
            limits: self.part,
            durability: self.durability,
        };
        Ok(Box::new(PartSink::new(settings, Jsonl::new(self.bytes))?))
    }
}

/// Rows as lines of JSON.
pub(crate) struct Jsonl {
    bytes: BytesAs,
    /// Set by `open`.
    fields: Vec<(String, FieldType)>,
    made_by: MadeBy,
}

impl Jsonl {
    pub(crate) fn new(bytes: BytesAs) -> Self {
        Self {
            bytes,
            fields: Vec::new(),
            made_by: MadeBy::default(),
        }
    }
}

impl Format for Jsonl {
    const EXTENSION: &'static str = "jsonl";

    fn open(&mut self, input: &SinkInput, _: Option<&Path>) -> Result<(), StageError> {
        self.fields = row::stored_fields(&input.fields)?;
        self.made_by = MadeBy::of(input);
        Ok(())
    }

    fn documents(&self, part: &Path) -> Result<Vec<StoredDocument>, PartError> {
        let mut tally = Tally::default();
        for_each_line(part, |_, head| Ok(tally.count(head)))?;
        Ok(tally.into_documents())
    }

    fn write(
        &mut self,
        file: &File,
        rows: &[Rows<'_>],
        _: &[StoredDocument],
    ) -> Result<(), PartError> {
        let mut file = BufWriter::new(file);
        for rows in rows {
            match rows {
                Rows::Items(items) => {
                    for item in *items {
                        let row = to_json(item, &self.fields, &self.made_by, self.bytes);
                        serde_json::to_writer(&mut file, &row).map_err(io::Error::from)?;
                        file.write_all(b"\n")?;
                    }
                }
                Rows::Part { path, without } if without.is_empty() => {
                    copy_all(path, &mut file)?;
                }
                Rows::Part { path, without } => copy_lines(path, without, &mut file)?,
            }
        }
        file.flush()?;
        Ok(())
    }
}

/// Copies a part as it is, and ends its last line where somebody left it open.
fn copy_all(path: &Path, to: &mut impl Write) -> io::Result<()> {
    let mut from = File::open(path)?;
    io::copy(&mut from, to)?;
    let mut last = [b'\n'];
    if from.stream_position()? > 0 {
        from.seek(io::SeekFrom::End(-1))?;
        from.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        to.write_all(b"\n")?;
    }
    Ok(())
}

fn copy_lines(
    path: &Path,
    without: &HashSet<DocumentId>,
    to: &mut impl Write,
) -> Result<(), PartError> {
    for_each_line(path, |line, head| {
        let Some(id) = DocumentId::from_hex(&head.document_id) else {
            return Ok(false);
        };
        if !without.contains(&id) {
            to.write_all(line)?;
            to.write_all(b"\n")?;
        }
        Ok(true)
    })
}

/// Calls `take` with each line, which is false when the document's id is none.
fn for_each_line(
    part: &Path,
    mut take: impl FnMut(&[u8], &RowHead<'_>) -> io::Result<bool>,
) -> Result<(), PartError> {
    let mut file = BufReader::new(File::open(part)?);
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if file.read_until(b'\n', &mut text)? == 0 {
            break;
        }
        let text = text.trim_ascii_end();
        let no_row = |source| PartError::Line { line, source };
        let head: RowHead<'_> = serde_json::from_slice(text).map_err(no_row)?;
        if !take(text, &head)? {
            let problem = format!("`{}` is no `{}`", head.document_id, row::DOCUMENT_ID);
            return Err(no_row(serde_json::Error::custom(problem)));
        }
    }
    Ok(())
}

/// One row, with the names that the columns of a table have.
fn to_json(
    item: &Item,
    fields: &[(String, FieldType)],
    made_by: &MadeBy,
    bytes: BytesAs,
) -> serde_json::Value {
    let (origin, key) = (item.origin(), item.key());
    let mut row = Map::new();
    let mut set = |name: &str, value| row.insert(name.to_owned(), value);
    set(row::DOCUMENT_ID, json!(origin.id.to_string()));
    set(row::DOCUMENT, json!(origin.uri));
    set(row::CONTENT_HASH, json!(origin.content_hash.to_string()));
    set(row::MEDIA_TYPE, json!(origin.media_type));
    set(row::FINGERPRINT, json!(made_by.fingerprint));
    set(row::PIPELINE, json!(made_by.pipeline));
    set(row::SOURCE, json!(origin.source));
    set(row::PAGE, json!(key.page));
    set(row::PART, json!(key.part));
    for (name, ty) in fields {
        if bytes == BytesAs::Skip && *ty == FieldType::Bytes {
            continue;
        }
        let value = match item.get(name) {
            Some(Value::Text(text)) => json!(text),
            Some(Value::Bool(flag)) => json!(flag),
            Some(Value::Integer(number)) => json!(number),
            Some(Value::Float(number)) => json!(number),
            Some(Value::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
            Some(Value::Words(words)) => words.iter().map(word).collect(),
            Some(Value::Vectors(vectors)) => vectors_as(*ty, vectors),
            Some(Value::Document(_) | Value::Image(_) | Value::Custom(_)) | None => json!(null),
        };
        set(name, value);
    }
    serde_json::Value::Object(row)
}

fn word(word: &Word) -> serde_json::Value {
    json!({"text": word.text, "x0": word.x0, "y0": word.y0, "x1": word.x1, "y1": word.y1})
}

/// One array for a vector, an array of arrays for several.
fn vectors_as(ty: FieldType, vectors: &Vectors) -> serde_json::Value {
    let vectors: Vec<Vec<f32>> = match vectors.data() {
        VectorData::F32(numbers) => numbers.chunks(vectors.dim()).map(<[f32]>::to_vec).collect(),
        VectorData::F16(numbers) => numbers
            .chunks(vectors.dim())
            .map(|vector| vector.iter().map(|number| number.to_f32()).collect())
            .collect(),
    };
    match (ty, vectors.as_slice()) {
        (FieldType::Vector, [vector]) => json!(vector),
        _ => json!(vectors),
    }
}

#[cfg(test)]
mod tests {
    use pagemill_pipeline::testing::{deliver, ended, sink_input};
    use pagemill_pipeline::{Field, FieldSet};

    use super::*;

    async fn store(settings: &str, items: Vec<Item>) {
        let config: JsonlConfig = serde_json::from_str(settings).expect("the settings are good");
        let mut sink = config.build(&Resources::default()).expect("a sink");
        let fields = [
            Field::IMAGE,
            Field::TEXT,
            Field::THUMBNAIL,
            Field::VECTOR,
            Field::VECTORS,
        ];
        let input = sink_input(FieldSet::from_iter(fields));
        sink.open(&input).await.expect("opens");
        let (deliveries, document) = deliver(items);
        sink.store(deliveries).await.expect("stored");
        let document = document.expect("there are items");
        sink.end_document(ended(&document)).await.expect("ended");
        sink.finish().await.expect("finishes");
    }

    fn lines(folder: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join("part-00000001.jsonl"));
        let parse = |line| serde_json::from_str(line).expect("a line is JSON");
        text.expect("the part is there")
            .lines()
            .map(parse)
            .collect()
    }

    #[tokio::test]
    async fn a_row_has_the_names_of_a_table() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        let vectors = Vectors::new(VectorData::F32(vec![1.0, 2.0, 3.0, 4.0]), 2);
        let item = Item::of_text("a.txt", "mill")
            .with_page(3)
            .with("vector", Vectors::single(vec![0.5, 0.25]).expect("two"))
            .with("vectors", vectors.expect("two by two"))
            .with(
                "thumbnail",
                Value::Bytes(bytes::Bytes::from_static(b"jpeg")),
            );
        let id = item.origin().id.to_string();
        let settings = json!({"path": path});
        store(&settings.to_string(), vec![item.clone()]).await;
        let line = &lines(&path)[0];
        assert_eq!(line["document"], "a.txt");
        assert_eq!(line["document_id"], id);
        assert_eq!(line["media_type"], "text/plain");
        assert_eq!(line["fingerprint"], "0123456789abcdef");
        assert_eq!((&line["page"], &line["part"]), (&json!(3), &json!(null)));
        assert_eq!(line["vector"], json!([0.5, 0.25]));
        assert_eq!(line["vectors"], json!([[1.0, 2.0], [3.0, 4.0]]));
        assert_eq!(line["thumbnail"], "anBlZw==");
        assert!(line.get("image").is_none());

        let settings = json!({"path": path, "bytes": "skip", "durability": "process"});
        store(&settings.to_string(), vec![item]).await;
        assert_eq!(lines(&path).len(), 1);
        assert!(lines(&path)[0].get("thumbnail").is_none());
    }

    #[tokio::test]
    async fn a_last_line_without_its_end_is_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let part = folder.path().join("part-00000001.jsonl");
        let settings = json!({"path": folder.path()}).to_string();
        store(&settings, vec![Item::of_text("a.txt", "mill")]).await;
        let a = std::fs::read_to_string(&part).expect("the part is there");
        store(&settings, vec![Item::of_text("b.txt", "mill")]).await;
        let b = std::fs::read_to_string(folder.path().join("part-00000002.jsonl"));
        let both = format!("{a}{}", b.expect("the part is there").trim_end());
        std::fs::write(&part, both).unwrap();
        // The second part holds the later one, and so the first part loses it.
        store(&settings, vec![Item::of_text("c.txt", "mill")]).await;
        assert_eq!(std::fs::read_to_string(&part).unwrap(), a);
    }

    #[test]
    fn parts_that_are_copied_whole_stay_apart_where_the_last_line_was_left_open() {
        let folder = tempfile::tempdir().expect("a folder");
        for (text, expected) in [("", ""), ("{}", "{}\n"), ("{}\n{}\n", "{}\n{}\n")] {
            let part = folder.path().join("part");
            std::fs::write(&part, text).unwrap();
            let mut copied = Vec::new();
            copy_all(&part, &mut copied).expect("it can be read");
            assert_eq!(copied, expected.as_bytes());
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        let refused = |settings: serde_json::Value| {
            let config = serde_json::from_value::<JsonlConfig>(settings);
            config.expect_err("refused").to_string()
        };
        let error = refused(json!({"path": "a", "bytes": "hex"}));
        assert!(error.contains("expected `base64` or `skip`"), "{error}");
        let error = refused(json!({"path": "a", "durability": "none"}));
        assert!(error.contains("expected `power` or `process`"), "{error}");
        let error = refused(json!({"path": "a", "part": {"rows": 1}}));
        assert!(error.contains("unknown field `rows`"), "{error}");
    }
}

//! `kind = "jsonl"`: one JSON object an item, in one file.
//!
//! The file holds the rows of one run: it is written beside its place, under
//! the name with `.partial` at the end, and takes its place when the run ends.
//! So a rerun replaces it, and a run that is stopped leaves the old one. A
//! document's rows are written together when the document ends; a document
//! that failed is left out.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use pagemill_pipeline::{
    Ack, Delivery, Document, FieldError, FieldType, Item, Resources, Sink, SinkConfig, SinkInput,
    StageError, Value, VectorData, Vectors, Word,
};
use serde::Deserialize;
use serde_json::{Map, json};

use crate::row;

/// Settings of `kind = "jsonl"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlConfig {
    /// The file; its folder is made if there is none.
    pub path: PathBuf,
    /// What becomes of encoded bytes, such as thumbnails.
    #[serde(default)]
    pub bytes: BytesAs,
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
    const ABOUT: &'static str = "writes one JSON object an item to a file, anew in each run";
    const EXAMPLE: &'static str = "path = \"data/pages.jsonl\"";

    fn build(&self, _: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(Jsonl::new(self.clone())?))
    }
}

/// Writes one JSON object an item to a file.
pub struct Jsonl {
    config: JsonlConfig,
    /// Set by `open`.
    output: Option<Output>,
    /// Documents that are still coming, by the address of their [`Document`].
    coming: HashMap<usize, (Vec<Item>, Vec<Ack>)>,
    /// Of documents that are written; the file is not in its place yet.
    written: Vec<Ack>,
}

struct Output {
    file: BufWriter<File>,
    partial: PathBuf,
    fields: Vec<(String, FieldType)>,
    fingerprint: String,
}

impl Jsonl {
    /// Checks the settings; nothing is opened yet.
    ///
    /// # Errors
    /// A path that names no file.
    pub fn new(config: JsonlConfig) -> Result<Self, FieldError> {
        if config.path.file_name().is_none() {
            return Err(FieldError::new(
                "path",
                format_args!("`{}` names no file", config.path.display()),
                "write a file's path, such as \"data/pages.jsonl\"",
            ));
        }
        Ok(Self {
            config,
            output: None,
            coming: HashMap::new(),
            written: Vec::new(),
        })
    }

    fn cannot_write(&self, error: io::Error) -> StageError {
        StageError::caused(
            format_args!("cannot write `{}`", self.config.path.display()),
            "set `path` to a file that this user may write, on a disk with room",
            error,
        )
    }

    fn start(&mut self, input: &SinkInput) -> Result<(), StageError> {
        let fields = row::stored_fields(&input.fields)?;
        let path = &self.config.path;
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let open = || {
            if path.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            if let Some(folder) = folder_of(path) {
                std::fs::create_dir_all(folder)?;
            }
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&partial)
        };
        let file = open().map_err(|error| self.cannot_write(error))?;
        self.output = Some(Output {
            file: BufWriter::new(file),
            partial,
            fields,
            fingerprint: input.fingerprint.clone(),
        });
        Ok(())
    }

    fn write(&mut self, items: &[Item]) -> Result<(), StageError> {
        let bytes = self.config.bytes;
        let output = self
            .output
            .as_mut()
            .expect("the runner opens a sink before it hands anything over");
        let written = items.iter().try_for_each(|item| {
            let row = to_json(item, &output.fields, &output.fingerprint, bytes);
            serde_json::to_writer(&mut output.file, &row)?;
            output.file.write_all(b"\n")
        });
        written.map_err(|error| self.cannot_write(error))
    }

    /// Puts the file in its place, whole and synced.
    fn publish(&mut self) -> Result<(), StageError> {
        let Some(output) = self.output.take() else {
            return Ok(());
        };
        let published = (|| {
            let file = output
                .file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            std::fs::rename(&output.partial, &self.config.path)?;
            let folder = folder_of(&self.config.path).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()
        })();
        published.map_err(|error| self.cannot_write(error))?;
        for ack in self.written.drain(..) {
            ack.durable();
        }
        Ok(())
    }
}

impl Sink for Jsonl {
    fn open<'a>(&'a mut self, input: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async move { self.start(input) })
    }

    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        for Delivery { item, ack } in batch {
            let key = std::ptr::from_ref(&**ack.document()).addr();
            let (items, acks) = self.coming.entry(key).or_default();
            items.push(item);
            acks.push(ack);
        }
        Box::pin(async { Ok(()) })
    }

    fn end_document(&mut self, document: &Document) -> BoxFuture<'_, Result<(), StageError>> {
        let rows = self.coming.remove(&std::ptr::from_ref(document).addr());
        let rows = rows.filter(|_| !document.has_failed());
        Box::pin(async move {
            if let Some((items, acks)) = rows {
                self.write(&items)?;
                self.written.extend(acks);
            }
            Ok(())
        })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move { self.publish() })
    }
}

/// The folder that a file is in; `None` for the current one.
fn folder_of(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
}

/// One row, with the names that the columns of a table have.
fn to_json(
    item: &Item,
    fields: &[(String, FieldType)],
    fingerprint: &str,
    bytes: BytesAs,
) -> serde_json::Value {
    let (origin, key) = (item.origin(), item.key());
    let mut row = Map::new();
    let mut set = |name: &str, value| row.insert(name.to_owned(), value);
    set(row::DOCUMENT_ID, json!(origin.id.to_string()));
    set(row::DOCUMENT, json!(origin.uri));
    set(row::CONTENT_HASH, json!(origin.content_hash.to_string()));
    set(row::MEDIA_TYPE, json!(origin.media_type));
    set(row::FINGERPRINT, json!(fingerprint));
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
    use std::sync::Arc;

    use pagemill_pipeline::testing::deliver;
    use pagemill_pipeline::{Field, FieldSet};

    use super::*;

    async fn run(path: &Path, bytes: BytesAs, documents: Vec<Vec<Item>>) -> Vec<Arc<Document>> {
        let path = path.to_owned();
        let mut sink = Jsonl::new(JsonlConfig { path, bytes }).expect("the settings are good");
        let fields = [
            Field::IMAGE,
            Field::TEXT,
            Field::THUMBNAIL,
            Field::VECTOR,
            Field::VECTORS,
        ];
        let input = SinkInput {
            fields: FieldSet::from_iter(fields),
            pipeline: "pages".into(),
            fingerprint: "f1".into(),
        };
        sink.open(&input).await.expect("opens");
        let mut ended = Vec::new();
        for items in documents {
            let (deliveries, document) = deliver(items);
            let document = document.expect("there are items");
            sink.store(deliveries).await.expect("stored");
            sink.end_document(&document).await.expect("ended");
            assert_eq!(document.n_stored(), 0);
            ended.push(document);
        }
        sink.finish().await.expect("finishes");
        ended
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).expect("the file is there");
        let parse = |line| serde_json::from_str(line).expect("a line is JSON");
        text.lines().map(parse).collect()
    }

    #[tokio::test]
    async fn a_rerun_replaces_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/rows.jsonl");
        for word in ["first", "second"] {
            let one = Item::of_text("a.txt", word).with_page(1);
            let two = Item::of_text("b.txt", word).with_page(1);
            let documents = vec![vec![one.clone(), one.with_page(2)], vec![two]];
            let ended = run(&path, BytesAs::Base64, documents).await;
            assert_eq!((ended[0].n_stored(), ended[1].n_stored()), (2, 1));
            let lines = lines(&path);
            assert_eq!(lines.len(), 3);
            assert!(lines.iter().all(|line| line["text"] == word));
        }
        let files = std::fs::read_dir(folder.path().join("new")).expect("the folder is there");
        assert_eq!(files.count(), 1);
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
        run(&path, BytesAs::Base64, vec![vec![item.clone()]]).await;
        let line = &lines(&path)[0];
        assert_eq!(line["document"], "a.txt");
        assert_eq!(line["document_id"], id);
        assert_eq!(line["media_type"], "text/plain");
        assert_eq!(line["fingerprint"], "f1");
        assert_eq!((&line["page"], &line["part"]), (&json!(3), &json!(null)));
        assert_eq!(line["vector"], json!([0.5, 0.25]));
        assert_eq!(line["vectors"], json!([[1.0, 2.0], [3.0, 4.0]]));
        assert_eq!(line["thumbnail"], "anBlZw==");
        assert!(line.get("image").is_none());

        run(&path, BytesAs::Skip, vec![vec![item]]).await;
        assert!(lines(&path)[0].get("thumbnail").is_none());
    }

    #[tokio::test]
    async fn a_document_that_failed_is_left_out_and_a_stopped_run_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        run(
            &path,
            BytesAs::Base64,
            vec![vec![Item::of_text("a.txt", "old")]],
        )
        .await;

        let config = JsonlConfig {
            path: path.clone(),
            bytes: BytesAs::Base64,
        };
        let mut sink = Jsonl::new(config).expect("the settings are good");
        let input = SinkInput {
            fields: FieldSet::from_iter([Field::TEXT]),
            pipeline: "pages".into(),
            fingerprint: "f1".into(),
        };
        sink.open(&input).await.expect("opens");
        let page = Item::of_text("a.txt", "new").with_page(1);
        let (mut deliveries, document) = deliver([page.clone(), page.with_page(2)]);
        drop(deliveries.pop());
        sink.store(deliveries).await.expect("stored");
        let document = document.expect("there are items");
        sink.end_document(&document).await.expect("ended");
        assert_eq!(lines(&path)[0]["text"], "old");
        sink.finish().await.expect("finishes");
        assert!(lines(&path).is_empty());
        assert_eq!(document.n_stored(), 0);
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_written_is_found_before_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let config = JsonlConfig {
            path: path.clone(),
            bytes: BytesAs::Base64,
        };
        let mut sink = Jsonl::new(config).expect("the settings are good");
        let input = SinkInput {
            fields: FieldSet::default(),
            pipeline: "pages".into(),
            fingerprint: "f1".into(),
        };
        let error = sink.open(&input).await.expect_err("a folder is in the way");
        assert_eq!(
            error.to_string(),
            format!("cannot write `{}`", path.display())
        );
    }
}

//! Shares what the tests need: the binary, temporary folders, small documents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The root of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary, in `folder`, with the project's pipelines and an empty standard input.
pub fn binary(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pagemill"));
    command
        .current_dir(folder)
        .args(arguments)
        .stdin(Stdio::null());
    command.env("PAGEMILL_DOCUMENTS", project().join("examples/documents"));
    command.env_remove("PAGEMILL_DATA");
    command
}

/// Runs the binary in `folder`.
pub fn pagemill(folder: &Path, arguments: &[&str]) -> Output {
    binary(folder, arguments)
        .output()
        .expect("the binary starts")
}

/// Sends a signal, such as `TERM`.
pub fn signal(child: &Child, name: &str) {
    let command = format!("kill -{name} {}", child.id());
    let status = Command::new("sh").args(["-c", &command]).status();
    assert!(status.expect("a shell").success());
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", stdout(output), stderr(output)))
}

/// A temporary folder with a pipeline from `input/` to `rows.jsonl`.
pub struct Mill {
    pub folder: TempDir,
}

const FROM_FOLDER: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
"#;

/// Renders what `files` reads; rows go to JSON lines.
const TO_JSON_LINES: &str = r#"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 200
[p.stage.images]
kind = "decode_image"
input = "pages"
[p.stage.chunks]
kind = "chunk_text"
input = "images"
[p.sink.rows]
kind = "jsonl"
input = "chunks"
path = "rows.jsonl"
"#;

impl Mill {
    pub fn new() -> Self {
        Self::with_source(FROM_FOLDER)
    }

    /// The same with another source, `files`.
    pub fn with_source(toml: &str) -> Self {
        Self::with(&format!("{toml}{TO_JSON_LINES}"))
    }

    pub fn with(toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("input")).unwrap();
        std::fs::write(folder.path().join("pipelines.toml"), toml).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The URI of a document in `input/`.
    pub fn uri(&self, name: &str) -> String {
        // The working directory of a process has no links in its path.
        let folder = self.folder.path().canonicalize().unwrap();
        folder.join("input").join(name).display().to_string()
    }

    /// Puts a document into `input/`.
    pub fn add(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path("input").join(name), bytes).unwrap();
        self
    }

    /// The binary, to be started as a test needs it.
    pub fn binary(&self, arguments: &[&str]) -> Command {
        binary(self.folder.path(), arguments)
    }

    pub fn command(&self, arguments: &[&str]) -> Output {
        pagemill(self.folder.path(), arguments)
    }

    /// Runs the pipeline; its exit code and report.
    pub fn run(&self) -> (i32, Value) {
        let output = self.command(&["run", "--json"]);
        let code = output.status.code().expect("it was not killed");
        (code, json(&output))
    }

    /// The messages of the dead letters, with their hints.
    pub fn dead_letters(&self) -> Vec<(String, String)> {
        let letters =
            pagemill::pipeline::read_dead_letters(&self.path("data/dead-letters")).unwrap();
        letters
            .into_iter()
            .map(|l| (l.error, l.hint.unwrap_or_default()))
            .collect()
    }

    /// The rows that were stored.
    pub fn rows(&self) -> Vec<Value> {
        part_rows(&self.path("rows.jsonl"))
    }
}

/// The rows of all part files of a folder, in order.
pub fn part_rows(folder: &Path) -> Vec<Value> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut parts: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    parts.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "jsonl")
    });
    parts.sort();
    // A run that goes on may take an old part away at any moment.
    let texts = parts
        .iter()
        .filter_map(|part| std::fs::read_to_string(part).ok());
    let rows = |text: String| -> Vec<Value> {
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    texts.flat_map(rows).collect()
}

/// A PDF of these objects (numbered from 1; the first is the catalog), with a
/// correct cross-reference table.
pub fn pdf_of(objects: &[impl AsRef<str>]) -> Vec<u8> {
    let mut pdf = b"%PDF-1.7\n".to_vec();
    let mut places = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        places.push(pdf.len());
        let object = object.as_ref();
        pdf.extend(format!("{} 0 obj\n{object}\nendobj\n", index + 1).bytes());
    }
    let start = pdf.len();
    pdf.extend(format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).bytes());
    for place in places {
        pdf.extend(format!("{place:010} 00000 n \n").bytes());
    }
    let n = objects.len() + 1;
    pdf.extend(
        format!("trailer\n<< /Size {n} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n").bytes(),
    );
    pdf
}

/// A PDF of one page that says `text`.
pub fn page_of(text: &str) -> Vec<u8> {
    let content = format!("BT /F1 24 Tf 20 100 Td ({text}) Tj ET");
    let stream = format!(
        "<< /Length {} >>\nstream\n{content}\nendstream",
        content.len()
    );
    pdf_of(&[
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents 4 0 R \
         /Resources << /Font << /F1 5 0 R >> >> >>",
        &stream,
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ])
}

/// A PDF with a page for each of `texts`.
pub fn pdf_of_pages(texts: &[impl AsRef<str>]) -> Vec<u8> {
    // The catalog, the page tree and the font, then a page and its content each.
    let kids: Vec<String> = (0..texts.len())
        .map(|n| format!("{} 0 R", 4 + 2 * n))
        .collect();
    let tree = format!(
        "<< /Type /Pages /Kids [{}] /Count {} >>",
        kids.join(" "),
        texts.len()
    );
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        tree,
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    for (number, text) in texts.iter().enumerate() {
        let content = format!("BT /F1 12 Tf 20 100 Td ({}) Tj ET", text.as_ref());
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents {} 0 R \
             /Resources << /Font << /F1 3 0 R >> >> >>",
            5 + 2 * number
        ));
        let n_bytes = content.len();
        objects.push(format!(
            "<< /Length {n_bytes} >>\nstream\n{content}\nendstream"
        ));
    }
    pdf_of(&objects)
}

/// A small generator of numbers: other moments in each round of a test, the same in
/// each run of the tests.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}

/// How often the tests that kill shall kill: `PAGEMILL_KILLS`, if that is set.
pub fn n_kills(default: usize) -> usize {
    let n_kills = std::env::var("PAGEMILL_KILLS").ok();
    n_kills.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The name of a document without its folder: each mill is elsewhere.
pub fn file_name(uri: &str) -> &str {
    uri.rsplit('/').next().unwrap_or(uri)
}

/// The text of every row of a table, by document, page and part. A key that
/// has two rows is a failure.
pub fn table_rows(folder: &Path, table: &str) -> BTreeMap<(String, u32, u32), String> {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let rows = runtime.block_on(async {
        let uri = folder.to_str().expect("UTF-8");
        let reader = pagemill::sinks::lancedb::TableReader::open(uri, table).await;
        reader.expect("it opens").rows().await.expect("it is read")
    });
    let n_rows = rows.len();
    let rows: BTreeMap<_, _> = rows
        .into_iter()
        .map(|row| {
            let key = (row.document, row.page.unwrap_or(0), row.part.unwrap_or(0));
            (key, row.text)
        })
        .collect();
    assert_eq!(rows.len(), n_rows, "a key has two rows");
    rows
}

/// The sample documents, indexed once for all tests that ask of them.
/// `None`, with a printed line, where the encoder's weights are not installed.
pub fn indexed() -> Option<&'static TempDir> {
    static INDEXED: OnceLock<Option<TempDir>> = OnceLock::new();
    let index = || {
        let places = pagemill::models::ModelPlaces::from_environment();
        let model = "sentence-transformers/all-MiniLM-L6-v2";
        if pagemill::models::resolve(model, &places).is_err() {
            eprintln!("skipped: {model} is not installed (`make setup` installs it)");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::copy(
            project().join("pipelines.toml"),
            folder.path().join("pipelines.toml"),
        )
        .unwrap();
        let output = pagemill(folder.path(), &["run", "documents", "--json"]);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        std::fs::write(folder.path().join("report.json"), &output.stdout).unwrap();
        Some(folder)
    };
    INDEXED.get_or_init(index).as_ref()
}

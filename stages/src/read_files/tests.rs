use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pagemill_pipeline::{
    ConfigFile, DeadLetter, Delivery, Registry, Report, RunControl, Sink, SinkConfig, SinkInput,
    read_dead_letters,
};

use super::reading::{Attempt, read_once};
use super::*;

const PDF: &[u8] = b"%PDF-1.7\n";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn config(path: &Path) -> ReadFilesConfig {
    ReadFilesConfig {
        path: path.to_owned(),
        include: default_include(),
        exclude: Vec::new(),
        max_file_bytes: default_max_file_bytes(),
        follow_links: false,
    }
}

/// The URIs below `root` of what is found, with why what cannot be read cannot.
fn list(config: &ReadFilesConfig) -> Vec<(String, Option<String>)> {
    let root = format!("{}/", config.path.display());
    let found = ReadFiles::new(config).unwrap().listing.list();
    let describe = |found: Found| {
        let below = found.uri.strip_prefix(&root).unwrap_or(&found.uri);
        (below.to_owned(), found.file.err().map(|error| error.reason))
    };
    found.into_iter().map(describe).collect()
}

fn names(config: &ReadFilesConfig) -> Vec<String> {
    list(config).into_iter().map(|(uri, _)| uri).collect()
}

#[test]
fn files_come_in_order_of_name_and_hidden_ones_do_not_come() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        "b.pdf",
        "a.pdf",
        "c/z.pdf",
        "c/a.pdf",
        ".hidden.pdf",
        ".git/x.pdf",
    ] {
        put(root.path(), name, PDF);
    }
    let expected = ["a.pdf", "b.pdf", "c/a.pdf", "c/z.pdf"];
    assert_eq!(names(&config(root.path())), expected);
}

#[test]
fn patterns_choose_files_below_the_path() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        "a.pdf",
        "b.png",
        "c/d.pdf",
        "drafts/e.pdf",
        "c/drafts/f.pdf",
    ] {
        put(root.path(), name, PDF);
    }
    let with = |include: &[&str], exclude: &[&str]| {
        let own = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect();
        names(&ReadFilesConfig {
            include: own(include),
            exclude: own(exclude),
            ..config(root.path())
        })
    };
    assert_eq!(with(&["*.pdf"], &[]), ["a.pdf"]);
    assert_eq!(with(&["*.{pdf,png}"], &[]), ["a.pdf", "b.png"]);
    assert_eq!(with(&["**/*.pdf"], &["**/drafts"]), ["a.pdf", "c/d.pdf"]);
    assert_eq!(
        with(&["**/*.pdf"], &["drafts/"]),
        ["a.pdf", "c/d.pdf", "c/drafts/f.pdf"]
    );
}

#[test]
fn a_path_may_be_a_file_even_a_hidden_one() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), ".a.pdf", PDF);
    let path = root.path().join(".a.pdf");
    assert_eq!(names(&config(&path)), [path.to_str().unwrap()]);
    let only_pdf = ReadFilesConfig {
        include: vec!["*.pdf".into()],
        ..config(&path)
    };
    assert_eq!(names(&only_pdf).len(), 1);
}

#[test]
fn names_that_are_not_utf8_are_written_without_loss() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        &b"m\xfchle.pdf"[..],
        b"100%.pdf",
        b"5%\xff.pdf",
        "\u{fc}.pdf".as_bytes(),
    ] {
        fs::write(root.path().join(std::ffi::OsStr::from_bytes(name)), PDF).unwrap();
    }
    assert_eq!(
        names(&config(root.path())),
        ["100%.pdf", "5%25%FF.pdf", "m%FChle.pdf", "\u{fc}.pdf"]
    );
    // A file may have that very name.
    put(root.path(), "m%FChle.pdf", PDF);
    let found = list(&config(root.path()));
    let problems: Vec<_> = found
        .iter()
        .filter(|(_, problem)| problem.is_some())
        .collect();
    assert_eq!(problems.len(), 1);
    let problem = problems[0].1.as_deref().unwrap();
    assert!(
        problem.starts_with("its name is not UTF-8, and written as"),
        "{problem}"
    );
}

#[test]
fn links_are_set_aside_unless_they_are_followed() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a.pdf", PDF);
    put(root.path(), "folder/b.pdf", PDF);
    symlink("a.pdf", root.path().join("link.pdf")).unwrap();
    symlink("nowhere.pdf", root.path().join("broken.pdf")).unwrap();
    symlink("..", root.path().join("folder/up")).unwrap();
    let not_followed = list(&config(root.path()));
    let link = Some("it is a symbolic link".to_owned());
    let expected = [
        ("a.pdf", None),
        ("broken.pdf", link.clone()),
        ("folder/b.pdf", None),
        ("folder/up", link.clone()),
        ("link.pdf", link),
    ];
    assert_eq!(
        not_followed,
        expected.map(|(uri, why)| (uri.to_owned(), why))
    );
    let followed = list(&ReadFilesConfig {
        follow_links: true,
        ..config(root.path())
    });
    let expected = [
        ("a.pdf", None),
        ("broken.pdf", Some("it is a symbolic link to nothing")),
        ("folder/b.pdf", None),
        (
            "folder/up",
            Some("it is a symbolic link to a folder above it"),
        ),
        ("link.pdf", None),
    ];
    let expected = expected.map(|(uri, why)| (uri.to_owned(), why.map(str::to_owned)));
    assert_eq!(followed, expected);
}

#[test]
fn a_pipe_is_set_aside_and_never_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pipe.pdf");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    assert_eq!(
        list(&config(root.path())),
        [(
            "pipe.pdf".to_owned(),
            Some("it is a pipe, a socket or a device".to_owned())
        )]
    );
    // One that took a file's place since the folder was listed.
    assert_eq!(failure(&path), "it is no regular file");
}

fn failure(path: &Path) -> String {
    match read_once(path, 100) {
        Attempt::Failed(error) => error.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_that_may_not_be_read_is_set_aside() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        println!("root may read everything: nothing is tested");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "locked/a.pdf", PDF);
    put(root.path(), "b.pdf", PDF);
    let locked = root.path().join("locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let found = list(&config(root.path()));
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    let problem = "reading it is not permitted".to_owned();
    assert_eq!(
        found,
        [("b.pdf".into(), None), ("locked".into(), Some(problem))]
    );
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "large.pdf", &[b'x'; 101]);
    assert_eq!(
        failure(&root.path().join("large.pdf")),
        "it has 101 bytes, and `max_file_bytes` is 100"
    );
    assert_eq!(failure(&root.path().join("gone.pdf")), "it is gone");
    assert_eq!(failure(root.path()), "it is no regular file");
}

#[test]
fn a_file_that_grows_while_it_is_read_is_found_out() {
    // The kernel says that this file has no bytes, and then gives some.
    let attempt = read_once(Path::new("/proc/version"), 100);
    assert!(matches!(attempt, Attempt::Changed), "{attempt:?}");
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let complaint = |config: &ReadFilesConfig| ReadFiles::new(config).unwrap_err().to_string();
    assert_eq!(
        complaint(&config(Path::new("/no/such/folder"))),
        "`path` does not exist: `/no/such/folder`"
    );
    assert_eq!(complaint(&config(Path::new(""))), "`path` is empty");
    let with = |include: &[&str]| ReadFilesConfig {
        include: include.iter().map(|p| (*p).to_owned()).collect(),
        ..config(root.path())
    };
    assert_eq!(complaint(&with(&[])), "`include` chooses no file");
    assert_eq!(
        complaint(&with(&["a", "[b"])),
        "`include` has a pattern that cannot be read: `[b`: unclosed character class; missing ']'"
    );
    let exclude = ReadFilesConfig {
        exclude: vec!["{a".into()],
        ..config(root.path())
    };
    assert!(complaint(&exclude).starts_with("`exclude` has a pattern that cannot be read: `{a`"));
    let nothing = ReadFilesConfig {
        max_file_bytes: 0,
        ..config(root.path())
    };
    assert_eq!(complaint(&nothing), "`max_file_bytes` must be at least 1");
}

/// A sink that keeps what it is given.
#[derive(Deserialize)]
struct KeepConfig {}

type Kept = Mutex<Vec<Item>>;

struct Keep(Arc<Kept>);

impl SinkConfig for KeepConfig {
    const KIND: &'static str = "keep";
    const ABOUT: &'static str = "keeps items";
    const EXAMPLE: &'static str = "";
    fn fields(&self) -> Fields {
        Fields::reads([Field::DOCUMENT])
    }
    fn build(&self, resources: &Resources) -> Result<Box<dyn Sink>, FieldError> {
        Ok(Box::new(Keep(resources.get_or_insert("", Kept::default))))
    }
}

impl Sink for Keep {
    fn open<'a>(&'a mut self, _: &'a SinkInput) -> BoxFuture<'a, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
    fn store(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async {
            for Delivery { item, ack } in batch {
                self.0.lock().unwrap().push(item);
                ack.durable();
            }
            Ok(())
        })
    }
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Runs the source alone; gives what it sent, its dead letters and the report.
async fn run(root: &Path, control: &RunControl) -> (Vec<Item>, Vec<DeadLetter>, Report) {
    let (documents, letters) = (root.join("documents"), root.join("letters"));
    let toml = format!(
        "[p]\ndead_letters = {letters:?}\n[p.source.files]\nkind = \"read_files\"\n\
         path = {documents:?}\n[p.sink.keep]\nkind = \"keep\"\ninput = \"files\"\n"
    );
    let registry = Registry::new()
        .source::<ReadFilesConfig>()
        .sink::<KeepConfig>();
    let file = ConfigFile::parse(Path::new("t.toml"), &toml, &[], &registry, &|_| None).unwrap();
    let (graph, resources) = (file.pipeline(None).unwrap(), Resources::default());
    let pipeline = file.build(graph, &resources).unwrap();
    let report = pipeline.run(control).await.unwrap();
    let kept = resources.get::<Kept>("").unwrap();
    let items = std::mem::take(&mut *kept.lock().unwrap());
    let letters = read_dead_letters(&letters).unwrap();
    (items, letters, report)
}

#[tokio::test]
async fn every_file_is_a_document_or_a_dead_letter() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "documents/a.bin", PDF);
    put(root.path(), "documents/b/c.pdf", PNG);
    put(root.path(), "documents/empty.pdf", b"");
    put(root.path(), "documents/notes.pdf", b"only text\n");
    put(root.path(), "documents/odd.pdf", &[0, 1, 2, 3]);
    let (items, mut letters, report) = run(root.path(), &RunControl::default()).await;

    let root = root.path().display();
    let described: Vec<_> = items
        .iter()
        .map(|item| {
            (
                item.origin().uri.to_string(),
                item.origin().media_type.to_string(),
            )
        })
        .collect();
    let expected = [
        (
            format!("{root}/documents/a.bin"),
            "application/pdf".to_owned(),
        ),
        (format!("{root}/documents/b/c.pdf"), "image/png".to_owned()),
    ];
    assert_eq!(described, expected);
    assert_eq!(items[0].document().unwrap(), PDF);
    assert_eq!(
        items[0].origin().content_hash,
        pagemill_pipeline::ContentHash::of(PDF)
    );
    assert_eq!(items[0].origin().n_bytes, PDF.len() as u64);

    letters.sort_by(|a, b| a.document.cmp(&b.document));
    let sentences: Vec<_> = letters.iter().map(|letter| letter.error.as_str()).collect();
    assert_eq!(
        sentences,
        [
            "cannot read `empty.pdf`: it is empty",
            "cannot read `notes.pdf`: its content is `text/plain`, not a PDF, PNG, JPEG, TIFF or WebP",
            "cannot read `odd.pdf`: its content is of no known kind, not a PDF, PNG, JPEG, TIFF or WebP",
        ]
    );
    assert!(letters.iter().all(|letter| letter.hint.is_some()));
    assert_eq!(report.totals.documents_set_aside, 3);
}

#[tokio::test]
async fn a_drained_source_sends_no_more() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "documents/a.pdf", PDF);
    let control = RunControl::default();
    control.drain();
    let (items, letters, _) = run(root.path(), &control).await;
    assert!(items.is_empty() && letters.is_empty());
}

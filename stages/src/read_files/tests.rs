use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use pagemill_pipeline::{FeedAgain, StopReason};

use super::listing::{Found, Listed, Observed, is_at_or_below};
use super::reading::Attempt;
use super::*;

mod runs;

const PDF: &[u8] = b"%PDF-1.7\n";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub(super) fn config(path: &Path) -> ReadFilesConfig {
    ReadFilesConfig::new(path)
}

fn listing(config: &ReadFilesConfig) -> Listing {
    ReadFiles::new(config).unwrap().listing
}

/// The URIs below `root` of what is found, with why what cannot be read cannot.
fn list(config: &ReadFilesConfig) -> Vec<(String, Option<String>)> {
    let root = format!("{}/", config.path.display());
    let found = listing(config).list().found;
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
    let link = root.path().join("link.pdf");
    symlink(".a.pdf", &link).unwrap();
    let expected = [(link.to_str().unwrap().to_owned(), None)];
    assert_eq!(list(&config(&link)), expected);
    let only_pdf = ReadFilesConfig {
        include: vec!["*.pdf".into()],
        ..config(&path)
    };
    assert_eq!(names(&only_pdf).len(), 1);
}

#[test]
fn a_document_has_one_uri_however_its_folder_is_spelled() {
    // Relative paths begin in the folder of this crate.
    let here = std::env::current_dir().unwrap().join("src/stdin");
    let uris = |path: &Path| -> Vec<String> {
        let found = listing(&config(path)).list().found;
        found.into_iter().map(|found| found.uri).collect()
    };
    let expected = uris(&here);
    let place = config(Path::new("./src/stdin/")).place();
    assert_eq!(place, Some(here.display().to_string()));
    assert!(expected.contains(&format!("{}/lines.rs", here.display())));
    for spelling in ["src/stdin", "./src//stdin/", "src/stdin/../stdin"] {
        assert_eq!(uris(Path::new(spelling)), expected, "{spelling}");
    }
}

#[test]
fn a_root_takes_the_place_of_the_path_in_uris() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "b/c.pdf", PDF);
    let named = |path: PathBuf| ReadFilesConfig {
        root: Some("papers/new".into()),
        ..config(&path)
    };
    let folder = listing(&named(root.path().into()));
    let place = named(root.path().into()).place();
    assert_eq!(place.as_deref(), Some("papers/new"));
    let found = folder.list().found;
    assert_eq!(found[0].uri, "papers/new/b/c.pdf");
    assert_eq!(folder.path_of(&found[0].uri), Some(found[0].path.clone()));
    assert_eq!(folder.path_of(&found[0].path.display().to_string()), None);
    assert_eq!(folder.path_of("papers/new/../x.pdf"), None);
    let file = listing(&named(root.path().join("b/c.pdf")));
    assert_eq!(file.list().found[0].uri, "papers/new");
    let odd = ReadFilesConfig {
        root: Some("../papers".into()),
        ..config(root.path())
    };
    let error = ReadFiles::new(&odd).unwrap_err();
    assert_eq!(error.to_string(), "`root` is no plain name: `../papers`");
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

fn attempt(path: &Path, expected: Option<state::FileState>) -> Attempt {
    let reader = Reader {
        max_bytes: 100,
        clock: SystemTime::now,
        leave_out: "leave it out",
    };
    reader.attempt(path, expected)
}

fn failure(path: &Path) -> String {
    match attempt(path, None) {
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
    let gone = attempt(&root.path().join("gone.pdf"), None);
    assert!(matches!(gone, Attempt::Gone));
    assert_eq!(failure(root.path()), "it is no regular file");
}

#[test]
fn a_file_that_grows_while_it_is_read_is_found_out() {
    // The kernel says that this file has no bytes, and then gives some.
    let attempt = attempt(Path::new("/proc/version"), None);
    assert!(matches!(attempt, Attempt::Changed), "{attempt:?}");
}

#[test]
fn a_file_that_is_no_longer_as_it_was_seen_is_not_read() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a.pdf", PDF);
    let path = root.path().join("a.pdf");
    let seen = state::FileState::of(&fs::metadata(&path).unwrap());
    assert!(matches!(attempt(&path, Some(seen)), Attempt::Read(_)));
    // Another file of the same size takes its place.
    put(root.path(), "b.pdf", PDF);
    fs::rename(root.path().join("b.pdf"), &path).unwrap();
    assert!(matches!(attempt(&path, Some(seen)), Attempt::Changed));
}

#[test]
fn a_uri_leads_back_to_its_path_and_no_further() {
    let root = tempfile::tempdir().unwrap();
    for path in [root.path().to_owned(), root.path().join("")] {
        let listing = listing(&config(&path));
        for name in ["a.pdf", "b/c.pdf", "100%.pdf"] {
            let path = path.join(name);
            assert_eq!(listing.path_of(&listing.uri_of(&path)), Some(path));
        }
        let root = root.path().display();
        assert_eq!(listing.path_of(&format!("{root}/../x.pdf")), None);
        assert_eq!(listing.path_of(&format!("{root}2/x.pdf")), None);
        assert_eq!(listing.path_of("x.pdf"), None);
        assert_eq!(listing.path_of(&listing.uri), Some(path));
    }
    assert!(is_at_or_below("/a.pdf", "/") && is_at_or_below("docs/a", "docs/"));
    assert!(is_at_or_below("docs", "docs") && !is_at_or_below("docs2", "docs"));
}

/// Why `known` is not missing, or that it is.
fn missing(listed: &Listed, root: &str, known: &[&str]) -> Vec<String> {
    let known = known.iter().map(|name| format!("{root}/{name}"));
    listed.missing(root, known)
}

#[test]
fn only_what_is_gone_for_sure_is_missing() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a.pdf", PDF);
    put(root.path(), "drafts/b.pdf", PDF);
    // A link to a disk that is not mounted.
    symlink("/no/such/disk", root.path().join("disk")).unwrap();
    let config = ReadFilesConfig {
        exclude: vec!["drafts".into()],
        include: vec!["**/*.pdf".into()],
        follow_links: true,
        ..config(root.path())
    };
    let mut listed = listing(&config).list();
    let root = root.path().display().to_string();
    let known = [
        "a.pdf",
        "drafts/b.pdf",
        "gone.pdf",
        "disk/c.pdf",
        "diskette.pdf",
    ];
    let expected = ["drafts/b.pdf", "gone.pdf", "diskette.pdf"];
    assert_eq!(
        missing(&listed, &root, &known),
        expected.map(|name| format!("{root}/{name}"))
    );
    assert_eq!(
        listed.missing(&root, ["/elsewhere/a.pdf".to_owned()]),
        [""; 0]
    );
    listed.is_without_root = true;
    assert_eq!(missing(&listed, &root, &known), [""; 0]);
}

#[test]
fn a_root_that_cannot_be_listed_is_told_from_an_empty_one() {
    let root = tempfile::tempdir().unwrap();
    let listing = listing(&config(root.path()));
    assert!(!listing.list().is_without_root);
    drop(root);
    assert!(listing.list().is_without_root);
}

#[test]
fn looking_at_a_path_tells_what_listing_would() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a/b.pdf", PDF);
    put(root.path(), "a/.hidden/c.pdf", PDF);
    put(root.path(), "a/c.txt", PDF);
    symlink("b.pdf", root.path().join("a/link.pdf")).unwrap();
    symlink(".", root.path().join("a/circle")).unwrap();
    let listing = listing(&ReadFilesConfig {
        include: vec!["**/*.pdf".into()],
        ..config(root.path())
    });
    let look = |name: &str| match listing.look(&root.path().join(name)) {
        Observed::There(listed) => listed.found.len(),
        Observed::Nothing => 0,
        Observed::Unclear => panic!("{name}"),
    };
    assert_eq!((look("a"), look("a/b.pdf"), look("a/link.pdf")), (2, 1, 1));
    for nothing in [
        "a/c.txt",
        "a/.hidden",
        "a/.hidden/c.pdf",
        "gone",
        "a/b.pdf/c",
        "a/circle",
    ] {
        assert_eq!(look(nothing), 0, "{nothing}");
    }
    let followed = Listing {
        follow_links: true,
        ..listing
    };
    let circle = followed.look(&root.path().join("a/circle"));
    assert!(matches!(circle, Observed::Unclear));
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
    for rest_ms in [9, 3_600_001] {
        let restless = ReadFilesConfig {
            rest_ms,
            ..config(root.path())
        };
        let expected = "`rest_ms` must be from 10 to 3600000";
        assert_eq!(complaint(&restless), expected);
    }
    let never = ReadFilesConfig {
        rescan_s: 0,
        ..config(root.path())
    };
    assert_eq!(complaint(&never), "`rescan_s` must be at least 1");
}

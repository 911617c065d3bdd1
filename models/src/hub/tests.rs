//! Fetching from a hub that the tests run themselves.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::server::{Answer, COMMIT, FakeModel, Request, Server, etag};
use super::*;
use crate::resolve::list;

const NAME: &str = "owner/tiny";
const WEIGHTS: &str = "these are the weights of a tiny model, forty-five";

fn tiny() -> FakeModel {
    FakeModel::new(
        NAME,
        &[
            (".gitattributes", "x"),
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_mean_tokens": true}"#,
            ),
            ("README.md", "hello"),
            ("config.json", r#"{"architectures": ["BertModel"]}"#),
            ("model.safetensors", WEIGHTS),
            ("pytorch_model.bin", "pickle"),
            ("tokenizer.json", "{}"),
        ],
    )
}

fn places(root: &Path, server: &Server) -> ModelPlaces {
    ModelPlaces {
        pagemill_cache: root.join("pagemill"),
        hugging_face: root.join("hub"),
        hub: Hub {
            endpoint: server.endpoint.clone(),
            ..Hub::default()
        },
    }
}

fn quiet(_: &FetchProgress) {}

fn fetch_quietly(name: &str, places: &ModelPlaces) -> Result<PathBuf, ModelError> {
    fetch(name, None, places, &mut quiet)
}

fn problem(result: Result<PathBuf, ModelError>) -> FetchProblem {
    match result.unwrap_err() {
        ModelError::Fetch { problem, .. } => problem,
        other => panic!("another error: {other}"),
    }
}

#[test]
fn a_model_comes_into_the_shared_cache_and_is_found_there() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![tiny()]);
    let mut places = places(root.path(), &server);
    places.hub.token = Some("hf_mine".into());
    let mut seen = Vec::new();
    let mut progress = |now: &FetchProgress| seen.push(now.clone());
    let folder = fetch(NAME, None, &places, &mut progress).unwrap();

    let model = root.path().join("hub/models--owner--tiny");
    assert_eq!(folder, model.join("snapshots").join(COMMIT));
    assert_eq!(resolve(NAME, &places).unwrap(), folder);
    assert_eq!(fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    assert_eq!(read("model.safetensors"), WEIGHTS);
    assert_eq!(
        read("1_Pooling/config.json"),
        r#"{"pooling_mode_mean_tokens": true}"#
    );
    assert!(!folder.join("pytorch_model.bin").exists());
    assert!(!folder.join("README.md").exists());
    let link = fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(
        link,
        Path::new("../../blobs").join(etag(WEIGHTS.as_bytes()))
    );

    // The token goes to the hub.
    let requests = server.requests();
    assert!(
        requests
            .iter()
            .all(|request| request.token.as_deref() == Some("hf_mine"))
    );

    let files: Vec<&str> = seen
        .iter()
        .filter(|now| now.file_bytes == 0)
        .map(|now| now.file.as_str())
        .collect();
    let order = [
        "1_Pooling/config.json",
        "tokenizer.json",
        "model.safetensors",
        "config.json",
    ];
    for (index, file) in order.iter().enumerate() {
        let mut of_file = seen.iter().filter(|now| now.file == *file);
        let last = of_file.next_back().unwrap();
        assert_eq!((last.index, last.n_files), (index, order.len()));
        assert_eq!(Some(last.file_bytes), last.file_total_bytes);
    }
    assert_eq!(files.first(), Some(&order[0]));
    let last = seen.last().unwrap();
    assert_eq!(Some(last.model_bytes), last.model_total_bytes);
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].model_bytes <= pair[1].model_bytes)
    );

    // What is here is not fetched again.
    assert_eq!(fetch_quietly(NAME, &places).unwrap(), folder);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(resolve_or_fetch(NAME, &places, &mut quiet).unwrap(), folder);
    assert_eq!(server.requests().len(), 0);
}

/// Cuts the weights after `cuts[i]` bytes at the i-th time that they are given, then is out of
/// order, then well again.
fn flaky(cuts: &[usize]) -> Server {
    let mut cuts = cuts.to_vec();
    cuts.reverse();
    let model = tiny();
    let mut is_broken = !cuts.is_empty();
    Server::start(move |request| {
        let answer = model.answer(request).unwrap();
        let is_weights = request.path.starts_with("/storage") && request.range != Some((0, true));
        match cuts.pop() {
            Some(cut) if is_weights => answer.cut(cut),
            Some(cut) => {
                cuts.push(cut);
                answer
            }
            None if is_weights && is_broken => {
                is_broken = false;
                Answer::new(503, "")
            }
            None => answer,
        }
    })
}

#[test]
fn a_file_that_was_cut_off_goes_on_from_there() {
    let root = tempfile::tempdir().unwrap();
    let server = flaky(&[20, 10]);
    let places = places(root.path(), &server);
    // Twice it goes on at once; when nothing comes any more, it ends.
    let error = fetch_quietly(NAME, &places).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with("cannot fetch `owner/tiny`: no answer from http://"),
        "{message}"
    );
    assert!(message.ends_with("(http status: 503)"), "{message}");
    assert!(resolve(NAME, &places).is_err());
    let weights = |from: usize| ("model.safetensors".to_owned(), from);
    let downloads = server.downloads();
    assert_eq!(downloads[2..], [weights(0), weights(20), weights(30)]);

    // A later run goes on as well, and counts what was here.
    let mut first = None;
    let mut progress = |now: &FetchProgress| {
        if now.file == "model.safetensors" && now.file_bytes > 0 {
            first.get_or_insert(now.file_bytes);
        }
    };
    let folder = fetch(NAME, None, &places, &mut progress).unwrap();
    assert_eq!(first, Some(30));
    let downloads = server.downloads();
    assert_eq!(downloads[0], weights(30));
    assert_eq!(
        fs::read_to_string(folder.join("model.safetensors")).unwrap(),
        WEIGHTS
    );
    assert_eq!(resolve(NAME, &places).unwrap(), folder);
}

#[test]
fn a_connection_that_brings_nothing_ends_the_download() {
    let root = tempfile::tempdir().unwrap();
    let server = flaky(&[7, 0, 0]);
    let error = fetch_quietly(NAME, &places(root.path(), &server)).unwrap_err();
    let total = WEIGHTS.len();
    let expected = format!(
        "cannot fetch `owner/tiny`: `model.safetensors` was cut off after 7 of {total} bytes"
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().contains("goes on where it stopped"));
}

#[test]
fn what_a_killed_run_left_is_used_or_thrown_away() {
    for (left, starts) in [
        (WEIGHTS.to_owned(), vec![]),
        (format!("{WEIGHTS} and more"), vec![0]),
        (WEIGHTS[..5].to_owned(), vec![5]),
        (String::new(), vec![0]),
    ] {
        let root = tempfile::tempdir().unwrap();
        let server = Server::of(vec![tiny()]);
        let places = places(root.path(), &server);
        let blobs = places.hugging_face_folder(NAME).join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join(etag(WEIGHTS.as_bytes()) + ".part");
        fs::write(&part, left).unwrap();
        let folder = fetch_quietly(NAME, &places).unwrap();
        assert_eq!(
            fs::read_to_string(folder.join("model.safetensors")).unwrap(),
            WEIGHTS
        );
        assert!(!part.exists());
        let downloads = server.downloads().into_iter();
        let of_weights = downloads.filter(|(file, _)| file == "model.safetensors");
        assert_eq!(
            of_weights.map(|(_, start)| start).collect::<Vec<_>>(),
            starts
        );
    }
}

#[test]
fn a_server_that_gives_everything_instead_of_the_rest_does_no_harm() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny();
    let server = Server::start(move |request| {
        let mut request = request.clone();
        if request.path.starts_with("/storage") && request.range != Some((0, true)) {
            request.range = None;
        }
        model.answer(&request).unwrap()
    });
    let places = places(root.path(), &server);
    let blobs = places.hugging_face_folder(NAME).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(etag(WEIGHTS.as_bytes()) + ".part"), "these").unwrap();
    let folder = fetch_quietly(NAME, &places).unwrap();
    assert_eq!(
        fs::read_to_string(folder.join("model.safetensors")).unwrap(),
        WEIGHTS
    );
}

#[test]
fn a_file_of_another_size_than_listed_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny();
    let server = Server::start(move |request| {
        let mut answer = model.answer(request).unwrap();
        if request.path.starts_with("/storage") && request.range == Some((0, false)) {
            answer.body.extend_from_slice(b" and more");
        }
        answer
    });
    let places = places(root.path(), &server);
    let error = fetch_quietly(NAME, &places).unwrap_err().to_string();
    let total = WEIGHTS.len();
    let expected = format!("gave nonsense ({} bytes instead of {total})", total + 9);
    assert!(error.ends_with(&expected), "{error}");
    assert!(resolve(NAME, &places).is_err());
    let blob = places.hugging_face_folder(NAME).join("blobs");
    assert!(!blob.join(etag(WEIGHTS.as_bytes())).exists());
}

#[test]
fn an_old_version_stays_until_the_new_one_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let new_commit = "f".repeat(40);
    let mut new = tiny();
    new.commit.clone_from(&new_commit);
    new.files[6].1 = b"{\"new\": true}".to_vec();
    let old = Server::of(vec![tiny()]);
    let old_folder = fetch_quietly(NAME, &places(root.path(), &old)).unwrap();

    // Killed before its configuration, so to speak.
    let (half, mut is_half) = (new.clone(), true);
    let server = Server::start(move |request| {
        let answer = half.answer(request).unwrap();
        let is_config = request.path.ends_with("/config.json") && !request.path.contains("Pooling");
        if is_half && is_config {
            is_half = false;
            return Answer::new(500, "");
        }
        answer
    });
    let places = places(root.path(), &server);
    let error = problem(fetch_quietly(NAME, &places));
    assert!(
        matches!(error, FetchProblem::Status { status: 500, .. }),
        "{error}"
    );
    assert_eq!(resolve(NAME, &places).unwrap(), old_folder);
    // Even if another tool has said before that this commit is the one to use.
    let refs = places.hugging_face_folder(NAME).join("refs");
    fs::write(refs.join("main"), &new_commit).unwrap();
    assert!(resolve(NAME, &places).is_err());

    let folder = fetch_quietly(NAME, &places).unwrap();
    assert!(folder.ends_with(&new_commit));
    assert_eq!(resolve(NAME, &places).unwrap(), folder);
    // Both versions have the same weights and configuration, which came but once.
    let names: Vec<String> = server
        .downloads()
        .into_iter()
        .map(|(file, _)| file)
        .collect();
    assert_eq!(names, ["tokenizer.json"]);
}

#[test]
fn another_revision_is_found_by_its_name() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![tiny()]);
    let places = places(root.path(), &server);
    let folder = fetch(NAME, Some("refs/pr/1"), &places, &mut quiet).unwrap();
    assert_eq!(resolve("owner/tiny@refs/pr/1", &places).unwrap(), folder);
    assert_eq!(
        resolve(&format!("{NAME}@{COMMIT}"), &places).unwrap(),
        folder
    );
    assert!(resolve(NAME, &places).is_err());
    assert_eq!(list(&places)[0].name, format!("{NAME}@{COMMIT}"));

    let wrong = fetch("owner/tiny@v9", None, &places, &mut quiet).unwrap_err();
    let page = format!("{}/owner/tiny", server.endpoint);
    assert_eq!(
        wrong.to_string(),
        format!("cannot fetch `owner/tiny`: it has no revision `v9`: {page}")
    );
    let contrary = fetch("owner/tiny@v9", Some("v8"), &places, &mut quiet).unwrap_err();
    assert!(
        contrary.to_string().contains("another revision"),
        "{contrary}"
    );
}

#[test]
fn an_adapter_brings_its_base() {
    let root = tempfile::tempdir().unwrap();
    let adapter = |name, base: &str, revision: &str| {
        let config = format!(
            r#"{{"base_model_name_or_path": "{base}", "revision": {revision}, "lora_alpha": 8}}"#
        );
        let files = [
            ("adapter_config.json", config.as_str()),
            ("adapter_model.safetensors", "a"),
        ];
        FakeModel::new(name, &files)
    };
    let models = vec![
        tiny(),
        adapter("owner/lora", NAME, "null"),
        adapter("owner/pinned", NAME, "\"refs/pr/1\""),
        adapter("owner/local", "/home/somebody/base", "null"),
        adapter("owner/twice", "owner/twice", "null"),
        adapter("owner/orphan", "owner/gone", "null"),
    ];
    let server = Server::of(models);
    let places = places(root.path(), &server);
    let mut models = Vec::new();
    let mut progress = |now: &FetchProgress| models.push(now.model.clone());
    let folder = fetch("owner/lora", None, &places, &mut progress).unwrap();
    models.dedup();
    assert_eq!(models, ["owner/lora", NAME]);
    assert_eq!(resolve("owner/lora", &places).unwrap(), folder);
    let base = resolve(NAME, &places).unwrap();

    // Somebody else fetched the adapter alone.
    fs::remove_dir_all(&base).unwrap();
    assert_eq!(
        resolve_or_fetch("owner/lora", &places, &mut quiet).unwrap(),
        folder
    );
    assert_eq!(resolve(NAME, &places).unwrap(), base);

    // The version that is in use will do for one that was trained on another.
    server.requests();
    let pinned = fetch_quietly("owner/pinned", &places).unwrap();
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.path.contains("owner/pinned"))
    );
    // Without any, that other is fetched.
    fs::remove_dir_all(&base).unwrap();
    assert_eq!(
        resolve_or_fetch("owner/pinned", &places, &mut quiet).unwrap(),
        pinned
    );
    let refs = places.hugging_face_folder(NAME).join("refs");
    assert!(refs.join("refs/pr/1").is_file());

    // A base that is a path is not the hub's, and one that is itself an adapter is enough.
    fetch_quietly("owner/local", &places).unwrap();
    fetch_quietly("owner/twice", &places).unwrap();
    let error = fetch_quietly("owner/orphan", &places).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot fetch `owner/gone`"),
        "{error}"
    );
    assert!(resolve("owner/orphan", &places).is_err());
}

mod gguf;

mod refusals;

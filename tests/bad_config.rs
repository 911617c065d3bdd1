//! Every class of mistake in a configuration, beside its exact message.
//!
//! `PAGEMILL_BLESS=1 cargo test bad_config` writes the messages anew; read the
//! difference before it is committed.

use std::fs;
use std::path::{Path, PathBuf};

use pagemill::ConfigFile;
use pagemill::models::ModelPlaces;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_config")
}

/// What reading, checking and building say of a file.
fn message_of(name: &str, text: &str, overrides: &[String]) -> Option<String> {
    let nothing = |_: &str| None;
    let path = Path::new(name);
    let resources = pagemill::resources();
    let nowhere = PathBuf::from("cache");
    resources.insert(
        "",
        ModelPlaces {
            pagemill_cache: nowhere.clone(),
            hugging_face: nowhere.join("hub"),
            hub: pagemill::models::Hub::default(),
        },
    );
    let built = ConfigFile::parse(path, text, overrides, &pagemill::registry(), &nothing)
        .and_then(|file| file.build(&file.pipelines()[0], &resources).map(drop));
    built.err().map(|error| format!("{error}\n"))
}

#[test]
fn every_mistake_has_its_message_with_place_and_remedy() {
    let bless = std::env::var_os("PAGEMILL_BLESS").is_some();
    let mut files: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    assert!(
        files.len() >= 30,
        "the folder holds a file for each class of mistake"
    );
    let mut different = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let message = message_of(&name, &text, &[]).unwrap_or_default();
        let expected = path.with_extension("txt");
        if bless {
            fs::write(&expected, &message).unwrap();
        }
        if message.is_empty() || fs::read_to_string(&expected).ok().as_ref() != Some(&message) {
            different.push(format!("{name}:\n{message}"));
        }
    }
    assert!(
        different.is_empty(),
        "messages differ:\n{}",
        different.join("\n")
    );
}

#[test]
fn all_mistakes_of_a_file_are_reported_in_one_run() {
    let text = fs::read_to_string(folder().join("several_mistakes.toml")).unwrap();
    let message = message_of("several_mistakes.toml", &text, &[]).unwrap();
    assert_eq!(message.matches("error: ").count(), 6, "{message}");
}

const SOUND: &str = "[p.source.files]\nkind = \"read_files\"\npath = \".\"\n[p.stage.pages]\n\
                     kind = \"render_pdf\"\ninput = \"files\"\n[p.sink.out]\nkind = \"jsonl\"\n\
                     input = \"pages\"\npath = \"out.jsonl\"\n";

#[test]
fn an_override_takes_its_place_and_is_quoted_where_it_is_wrong() {
    let set = |text: &str| message_of("p.toml", SOUND, &[text.to_owned()]);
    assert_eq!(set("p.stage.pages.long_side_px=768"), None);
    assert_eq!(set("p.sink.out.path=some/other.jsonl"), None);
    let wrong = set("p.stage.pages.long_side_px=wide").unwrap();
    assert!(
        wrong.contains("--> --set:1:28") && wrong.contains("^^^^"),
        "{wrong}"
    );
    let unknown = set("p.stage.page.long_side_px=768").unwrap();
    assert!(unknown.contains("`page` is not in the file"), "{unknown}");
    assert!(unknown.contains("did you mean `pages`?"), "{unknown}");
    let no_value = set("p.stage.pages").unwrap();
    assert!(no_value.contains("an override needs a `=`"), "{no_value}");
}

#[test]
fn a_secret_from_the_environment_is_never_quoted() {
    let text = SOUND.replace("path = \"out.jsonl\"", "path = \"${SECRET}\"\nbatch = 1");
    let variable = |name: &str| (name == "SECRET").then(|| "hunter2".to_owned());
    let registry = pagemill::registry();
    let error = ConfigFile::parse(Path::new("p.toml"), &text, &[], &registry, &variable);
    let message = error.err().expect("`batch` is no table").to_string();
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn the_shipped_pipelines_are_sound() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines.toml");
    let file = ConfigFile::read(&path, &[], &pagemill::registry(), &|_| None).unwrap();
    assert_eq!(file.pipelines()[0].name(), "documents");
}

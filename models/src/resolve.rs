//! From a model's name to its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::card;
use crate::error::ModelError;
use crate::files;
use crate::gguf;
use crate::hub::{Hub, names};
use crate::settings;

/// The revision that a name without one means.
pub(crate) const MAIN: &str = "main";

/// The folders in which models are looked for, and the hub that they are fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPlaces {
    /// pagemill's own cache; models lie in its `models/` as `<owner>--<model>/`.
    pub pagemill_cache: PathBuf,
    /// The Hugging Face hub cache, which holds `models--<owner>--<model>/`.
    pub hugging_face: PathBuf,
    /// Where [`fetch`](crate::fetch) finds what is not here.
    pub hub: Hub,
}

impl ModelPlaces {
    /// The usual places of this user. This is the crate's only look at the environment:
    ///
    /// | place | first of these that is set and not empty |
    /// |---|---|
    /// | `pagemill_cache` | `PAGEMILL_CACHE`, `$XDG_CACHE_HOME/pagemill`, `$HOME/.cache/pagemill` |
    /// | `hugging_face` | `HF_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub`, `$HOME/.cache/huggingface/hub` |
    /// | `hub.endpoint` | `HF_ENDPOINT`, `https://huggingface.co` |
    /// | `hub.token` | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, `$HF_HOME/token`, `$XDG_CACHE_HOME/huggingface/token`, `$HOME/.cache/huggingface/token` |
    /// | `hub.is_offline` | `HF_HUB_OFFLINE` |
    pub fn from_environment() -> Self {
        Self::from_variables(|name| env::var_os(name).map(PathBuf::from))
    }

    fn from_variables(read: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let read = |name: &str| read(name).filter(|value| !value.as_os_str().is_empty());
        let cache = read("XDG_CACHE_HOME")
            .or_else(|| read("HOME").map(|home| home.join(".cache")))
            // A user without a home still gets a place, below the working folder.
            .unwrap_or_else(|| PathBuf::from(".cache"));
        Self {
            pagemill_cache: read("PAGEMILL_CACHE").unwrap_or_else(|| cache.join("pagemill")),
            hugging_face: read("HF_HUB_CACHE")
                .or_else(|| read("HF_HOME").map(|home| home.join("hub")))
                .unwrap_or_else(|| cache.join("huggingface").join("hub")),
            hub: Hub::from_variables(read, &cache),
        }
    }

    /// The places of which `folder` is in one, if it is a model of a cache.
    pub(crate) fn around(folder: &Path) -> Option<Self> {
        let parent = folder.parent()?;
        let is_snapshot = parent.file_name().is_some_and(|name| name == "snapshots");
        let (pagemill_cache, hugging_face) = if is_snapshot {
            (PathBuf::new(), parent.parent()?.parent()?.to_owned())
        } else if parent.file_name().is_some_and(|name| name == "models") {
            (parent.parent()?.to_owned(), PathBuf::new())
        } else {
            return None;
        };
        Some(Self {
            pagemill_cache,
            hugging_face,
            hub: Hub::default(),
        })
    }

    /// Where pagemill keeps the model of this name, whether or not it is there yet.
    pub fn own_folder(&self, name: &str) -> PathBuf {
        self.pagemill_cache
            .join("models")
            .join(name.replace('/', "--"))
    }

    /// Where the hub's cache keeps the model of this name, without a revision.
    pub(crate) fn hugging_face_folder(&self, name: &str) -> PathBuf {
        self.hugging_face
            .join(format!("models--{}", name.replace('/', "--")))
    }
}

/// Finds the folder of a model by its name, which is, in this order,
///
/// 1. the path of a folder, relative or absolute, or of a GGUF file, which counts with its other
///    parts and the `mmproj` file beside it;
/// 2. a model in pagemill's own cache, `<pagemill_cache>/models/<owner>--<model>`;
/// 3. a model in the Hugging Face cache, at the commit that its `refs/main` names. For
///    `<owner>/<model>@<revision>` it is the commit of that branch, tag or commit instead, and
///    the other places are left out.
///
/// `<owner>/<model>/<file>.gguf` is one of several such files of a model in either cache.
///
/// In the caches a folder without `config.json` or, of adapters, `adapter_config.json` counts as
/// absent: it is half downloaded, unless it has GGUF files, which say as much. In the Hugging
/// Face cache, where other tools fetch some of a model's files, so does one that lacks
/// safetensors, or one of their shards.
///
/// # Errors
/// [`ModelError::NotFound`], which lists the places and hints how to get the model.
pub fn resolve(name: &str, places: &ModelPlaces) -> Result<PathBuf, ModelError> {
    let path = PathBuf::from(name);
    if !name.is_empty() && (path.is_dir() || gguf::is_one(&path)) {
        return Ok(path);
    }
    let mut looked_in = vec![path];
    // An absolute or dotted path is no name of a cached model.
    if !name.is_empty() && !name.starts_with(['/', '.']) {
        let (model, revision) = names::split_revision(name);
        let (model, file) = names::split_file(model);
        if revision.is_none() {
            let own = places.own_folder(model);
            match file.map(|file| own.join(file)) {
                None if has_config(&own) => return Ok(own),
                Some(path) if gguf::is_one(&path) => return Ok(path),
                _ => looked_in.push(own),
            }
        }
        let hub = places.hugging_face_folder(model);
        let revision = revision.unwrap_or(MAIN);
        match file {
            None => {
                if let Some(snapshot) = snapshot(&hub, revision).filter(|path| is_whole(path)) {
                    return Ok(snapshot);
                }
            }
            Some(file) => {
                let path = snapshot(&hub, revision).map(|folder| folder.join(file));
                if let Some(path) = path.filter(|path| gguf::is_one(path)) {
                    return Ok(path);
                }
            }
        }
        looked_in.push(hub);
    }
    Err(ModelError::NotFound {
        name: name.to_owned(),
        looked_in,
    })
}

/// Where a revision's snapshot is in one model's folder of the hub cache, whole or not.
fn snapshot(hub_folder: &Path, revision: &str) -> Option<PathBuf> {
    if !names::is_revision(revision) {
        return None;
    }
    let commit = fs::read_to_string(hub_folder.join("refs").join(revision));
    // What no file names may be a commit itself.
    let commit = commit.unwrap_or_else(|_| revision.to_owned());
    Some(hub_folder.join("snapshots").join(commit.trim()))
}

fn has_config(folder: &Path) -> bool {
    let is_file = |file| folder.join(file).is_file();
    is_file("config.json") || is_file("adapter_config.json") || gguf::is_in(folder)
}

/// Whether all of a model is in a snapshot, to which files come one by one.
fn is_whole(snapshot: &Path) -> bool {
    let names = folder_names(snapshot);
    let mut weights = names
        .iter()
        .filter(|name| {
            [".safetensors", ".gguf"]
                .iter()
                .any(|end| name.ends_with(end))
        })
        .filter(|name| snapshot.join(name).is_file());
    let mut indices = names.iter().filter(|name| {
        let whole = name.strip_suffix(".index.json");
        whole
            .is_some_and(|whole| whole.ends_with(".safetensors") && !snapshot.join(whole).is_file())
    });
    has_config(snapshot)
        && weights.next().is_some()
        && indices.all(|index| has_shards(snapshot, index))
}

/// Whether everything is there that `index`, a file in `folder`, names.
fn has_shards(folder: &Path, index: &str) -> bool {
    let index: Option<Value> = files::read_optional_json(&folder.join(index)).unwrap_or_default();
    let shards = index
        .as_ref()
        .and_then(|index| index.get("weight_map")?.as_object());
    shards.is_some_and(|shards| {
        let shards: BTreeSet<&str> = shards.values().filter_map(Value::as_str).collect();
        shards.iter().all(|shard| folder.join(shard).is_file())
    })
}

/// A model that [`resolve`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledModel {
    /// The name to give to [`resolve`].
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The first of `architectures` in its `config.json`, such as `BertModel`.
    pub architecture: Option<String>,
    /// Size of all its files.
    pub n_bytes: u64,
    /// Length of its vectors, where this crate knows the architecture.
    pub dim: Option<usize>,
}

/// Lists the models in both caches, by name; pagemill's own copy hides the hub's. Revisions
/// other than `main` are called `<owner>/<model>@<revision>`.
/// A place that does not exist or cannot be read holds no models.
pub fn list(places: &ModelPlaces) -> Vec<InstalledModel> {
    // Only the first `--` was a slash: owners have no such run in their names.
    let name_of = |folder: &str| folder.replacen("--", "/", 1);
    let mut models = BTreeMap::new();
    for folder in folder_names(&places.hugging_face) {
        let Some(name) = folder.strip_prefix("models--").map(name_of) else {
            continue;
        };
        for (revision, snapshot) in revisions(&places.hugging_face.join(&folder)) {
            let name = match revision.as_str() {
                MAIN => name.clone(),
                revision => format!("{name}@{revision}"),
            };
            models.insert(name, snapshot);
        }
    }
    let own = places.pagemill_cache.join("models");
    for folder in folder_names(&own) {
        let name = name_of(&folder);
        let folder = own.join(folder);
        if has_config(&folder) {
            models.insert(name, folder);
        }
    }
    let installed = |(name, folder): (String, PathBuf)| InstalledModel {
        architecture: settings::architecture(&folder),
        n_bytes: n_bytes_below(&folder),
        dim: card::describe(&folder).ok().map(|card| card.dim),
        folder,
        name,
    };
    models.into_iter().map(installed).collect()
}

/// The complete snapshots in one model's folder of the hub cache, each once: by `main`, another
/// name, or else its commit.
fn revisions(hub_folder: &Path) -> Vec<(String, PathBuf)> {
    let mut names = vec![MAIN.to_owned()];
    names.extend(folder_names(&hub_folder.join("refs")));
    names.extend(folder_names(&hub_folder.join("snapshots")));
    // Names before commits, which hf-hub writes among them.
    let commits = folder_names(&hub_folder.join("snapshots"));
    names.sort_by_key(|name| (name != MAIN, commits.contains(name), name.clone()));
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for name in names {
        if let Some(snapshot) = snapshot(hub_folder, &name).filter(|path| is_whole(path))
            && found.iter().all(|(_, other)| *other != snapshot)
        {
            found.push((name, snapshot));
        }
    }
    found
}

fn folder_names(place: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(place) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Sums file sizes through links, since the hub's snapshots link to blobs. Links to
/// folders are not followed, so a loop cannot trap us.
fn n_bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => n_bytes_below(&entry.path()),
        _ => {
            fs::metadata(entry.path()).map_or(0, |data| if data.is_file() { data.len() } else { 0 })
        }
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "owner/tiny-model";

    fn places(root: &Path) -> ModelPlaces {
        ModelPlaces {
            pagemill_cache: root.join("pagemill"),
            hugging_face: root.join("hub"),
            hub: Hub::default(),
        }
    }

    fn put(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(
            folder.join("config.json"),
            r#"{"architectures": ["OtherModel"]}"#,
        )
        .unwrap();
    }

    fn put_in_hub(places: &ModelPlaces) -> PathBuf {
        let model = places.hugging_face.join("models--owner--tiny-model");
        put(&model.join("snapshots/abc"));
        fs::write(model.join("snapshots/abc/model.safetensors"), "").unwrap();
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), "abc\n").unwrap();
        model.join("snapshots/abc")
    }

    #[test]
    fn a_folder_comes_before_our_cache_and_our_cache_before_the_hub() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let hub = put_in_hub(&places);
        assert_eq!(resolve(NAME, &places).unwrap(), hub);

        let own = root.path().join("pagemill/models/owner--tiny-model");
        put(&own);
        assert_eq!(resolve(NAME, &places).unwrap(), own);

        let folder = root.path().join("elsewhere");
        put(&folder);
        assert_eq!(resolve(folder.to_str().unwrap(), &places).unwrap(), folder);
    }

    #[test]
    fn a_half_downloaded_model_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        fs::create_dir_all(places.own_folder(NAME)).unwrap();
        let hub = put_in_hub(&places);
        assert_eq!(resolve(NAME, &places).unwrap(), hub);
    }

    #[test]
    fn a_missing_model_lists_every_place_and_how_to_get_it() {
        let places = places(Path::new("/nowhere"));
        let error = resolve(NAME, &places).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no model `owner/tiny-model` in owner/tiny-model, \
             /nowhere/pagemill/models/owner--tiny-model, \
             /nowhere/hub/models--owner--tiny-model"
        );
        assert!(
            error
                .hint()
                .starts_with("run `pagemill models fetch owner/tiny-model`")
        );
        let error = resolve("./absent", &places).unwrap_err();
        assert_eq!(error.to_string(), "no model `./absent` in ./absent");
        assert!(error.hint().starts_with("give the path of a folder"));
    }

    #[test]
    fn a_snapshot_counts_when_its_last_file_is_there() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let snapshot = put_in_hub(&places);
        let write = |name: &str, text: &str| fs::write(snapshot.join(name), text).unwrap();
        fs::remove_file(snapshot.join("model.safetensors")).unwrap();
        assert!(resolve(NAME, &places).is_err());
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        write("model.safetensors.index.json", index);
        write("model-1.safetensors", "");
        assert!(resolve(NAME, &places).is_err());
        write("model-2.safetensors", "");
        assert_eq!(resolve(NAME, &places).unwrap(), snapshot);
        write("model.safetensors.index.json", "{");
        assert!(resolve(NAME, &places).is_err());
        // The index is not asked where the weights are in one file.
        write("model.safetensors", "");
        assert_eq!(resolve(NAME, &places).unwrap(), snapshot);
        fs::rename(
            snapshot.join("config.json"),
            snapshot.join("adapter_config.json"),
        )
        .unwrap();
        assert_eq!(resolve(NAME, &places).unwrap(), snapshot);
    }

    #[test]
    fn a_revision_is_found_by_its_name_or_its_commit() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        put(&places.own_folder(NAME));
        let abc = put_in_hub(&places);
        let model = places.hugging_face.join("models--owner--tiny-model");
        let def = model.join("snapshots/def");
        put(&def);
        fs::write(def.join("model.safetensors"), "").unwrap();
        let at = |revision: &str| resolve(&format!("{NAME}@{revision}"), &places).ok();
        assert_eq!(at("def"), Some(def.clone()));
        assert_eq!(at("v1.0"), None);
        assert_eq!(at("../snapshots/def"), None);
        fs::write(model.join("refs/v1.0"), "def").unwrap();
        assert_eq!(at("v1.0"), Some(def.clone()));
        assert_eq!(at("main"), Some(abc));
        let names: Vec<String> = list(&places).into_iter().map(|model| model.name).collect();
        assert_eq!(names, [NAME, &format!("{NAME}@v1.0")]);
    }

    #[test]
    fn places_follow_the_environment() {
        let read = |variables: &'static [(&str, &str)]| {
            let places = ModelPlaces::from_variables(|name| {
                variables
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.into())
            });
            let text = |path: PathBuf| path.to_str().unwrap().to_owned();
            (text(places.pagemill_cache), text(places.hugging_face))
        };
        let pair = |own: &str, hub: &str| (own.to_owned(), hub.to_owned());
        assert_eq!(
            read(&[("HOME", "/u"), ("XDG_CACHE_HOME", "")]),
            pair("/u/.cache/pagemill", "/u/.cache/huggingface/hub")
        );
        assert_eq!(
            read(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")]),
            pair("/c/pagemill", "/h/hub")
        );
        assert_eq!(
            read(&[
                ("PAGEMILL_CACHE", "/p"),
                ("HF_HUB_CACHE", "/b"),
                ("HF_HOME", "/h")
            ]),
            pair("/p", "/b")
        );
    }

    #[test]
    fn lists_each_model_once_with_its_size() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        put_in_hub(&places);
        let own = places.own_folder(NAME);
        put(&own);
        fs::write(own.join("extra"), [0; 10]).unwrap();
        put(&places.own_folder("owner/another--model"));
        let models = list(&places);
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["owner/another--model", NAME]);
        assert_eq!(models[1].folder, own);
        assert_eq!(models[1].architecture.as_deref(), Some("OtherModel"));
        assert_eq!(models[1].n_bytes, 33 + 10);
        assert_eq!(models[1].dim, None);
        assert!(list(&self::places(Path::new("/nowhere"))).is_empty());
    }
}

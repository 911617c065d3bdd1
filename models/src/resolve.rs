//! From a model's name to its folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::card;
use crate::error::ModelError;
use crate::settings;

/// The folders in which models are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPlaces {
    /// pagemill's own cache; models lie in its `models/` as `<owner>--<model>/`.
    pub pagemill_cache: PathBuf,
    /// The Hugging Face hub cache, which holds `models--<owner>--<model>/`.
    pub hugging_face: PathBuf,
}

impl ModelPlaces {
    /// The usual places of this user. This is the crate's only look at the environment:
    ///
    /// | place | first of these that is set and not empty |
    /// |---|---|
    /// | `pagemill_cache` | `PAGEMILL_CACHE`, `$XDG_CACHE_HOME/pagemill`, `$HOME/.cache/pagemill` |
    /// | `hugging_face` | `HF_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub`, `$HOME/.cache/huggingface/hub` |
    pub fn from_environment() -> Self {
        Self::from_variables(|name| env::var_os(name).map(PathBuf::from))
    }

    fn from_variables(read: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let read = |name| read(name).filter(|value| !value.as_os_str().is_empty());
        let cache = read("XDG_CACHE_HOME")
            .or_else(|| read("HOME").map(|home| home.join(".cache")))
            // A user without a home still gets a place, below the working folder.
            .unwrap_or_else(|| PathBuf::from(".cache"));
        Self {
            pagemill_cache: read("PAGEMILL_CACHE").unwrap_or_else(|| cache.join("pagemill")),
            hugging_face: read("HF_HUB_CACHE")
                .or_else(|| read("HF_HOME").map(|home| home.join("hub")))
                .unwrap_or_else(|| cache.join("huggingface").join("hub")),
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
        })
    }

    /// Where pagemill keeps the model of this name, whether or not it is there yet.
    pub fn own_folder(&self, name: &str) -> PathBuf {
        self.pagemill_cache
            .join("models")
            .join(name.replace('/', "--"))
    }

    fn hugging_face_folder(&self, name: &str) -> PathBuf {
        self.hugging_face
            .join(format!("models--{}", name.replace('/', "--")))
    }
}

/// Finds the folder of a model by its name, which is, in this order,
///
/// 1. the path of a folder, relative or absolute;
/// 2. a model in pagemill's own cache, `<pagemill_cache>/models/<owner>--<model>`;
/// 3. a model in the Hugging Face cache, at the revision that its `refs/main` names.
///
/// In the caches a folder without `config.json` or, of an adapter, `adapter_config.json`
/// counts as absent: it is half downloaded.
///
/// # Errors
/// [`ModelError::NotFound`], which lists the places and hints how to get the model.
pub fn resolve(name: &str, places: &ModelPlaces) -> Result<PathBuf, ModelError> {
    let path = PathBuf::from(name);
    if !name.is_empty() && path.is_dir() {
        return Ok(path);
    }
    let mut looked_in = vec![path];
    // An absolute or dotted path is no name of a cached model.
    if !name.is_empty() && !name.starts_with(['/', '.']) {
        let own = places.own_folder(name);
        if is_model(&own) {
            return Ok(own);
        }
        looked_in.push(own);
        let hub = places.hugging_face_folder(name);
        if let Some(snapshot) = main_snapshot(&hub) {
            return Ok(snapshot);
        }
        looked_in.push(hub);
    }
    Err(ModelError::NotFound {
        name: name.to_owned(),
        looked_in,
    })
}

/// The complete snapshot of `refs/main` in one model's folder of the hub cache.
fn main_snapshot(hub_folder: &Path) -> Option<PathBuf> {
    let revision = fs::read_to_string(hub_folder.join("refs").join("main")).ok()?;
    let snapshot = hub_folder.join("snapshots").join(revision.trim());
    is_model(&snapshot).then_some(snapshot)
}

fn is_model(folder: &Path) -> bool {
    ["config.json", "adapter_config.json"]
        .iter()
        .any(|file| folder.join(file).is_file())
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

/// Lists the models in both caches, by name; pagemill's own copy hides the hub's.
/// A place that does not exist or cannot be read holds no models.
pub fn list(places: &ModelPlaces) -> Vec<InstalledModel> {
    let own = folder_names(&places.pagemill_cache.join("models"));
    let hub = folder_names(&places.hugging_face);
    let hub = hub
        .iter()
        .filter_map(|folder| folder.strip_prefix("models--"));
    let mut names: Vec<String> = own
        .iter()
        .map(String::as_str)
        .chain(hub)
        // Only the first `--` was a slash: owners have no such run in their names.
        .map(|folder| folder.replacen("--", "/", 1))
        .collect();
    names.sort();
    names.dedup();
    let cached = |name: &str| {
        let own = places.own_folder(name);
        if is_model(&own) {
            return Some(own);
        }
        main_snapshot(&places.hugging_face_folder(name))
    };
    let installed = |name: String| {
        let folder = cached(&name)?;
        Some(InstalledModel {
            architecture: settings::architecture(&folder),
            n_bytes: n_bytes_below(&folder),
            dim: card::describe(&folder).ok().map(|card| card.dim),
            folder,
            name,
        })
    };
    names.into_iter().filter_map(installed).collect()
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

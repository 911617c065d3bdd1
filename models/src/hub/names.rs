//! Parses the names of models on the hub, and chooses the files of a model that are worth
//! fetching.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::gguf;

/// Splits `model@revision`. Without an `@` there is no revision.
pub(crate) fn split_revision(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((model, revision)) => (model, Some(revision)),
        None => (name, None),
    }
}

/// Splits `owner/model/file.gguf`, one of several files of a model.
pub(crate) fn split_file(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('/') {
        Some((model, file)) if model.contains('/') && is_gguf(file) => (model, Some(file)),
        _ => (name, None),
    }
}

pub(super) fn is_gguf(name: &str) -> bool {
    is_plain(name)
        && Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "gguf")
}

/// Whether the hub may have a model of this name, with or without a revision and a file.
pub(crate) fn is_hub_name(name: &str) -> bool {
    let (model, revision) = split_revision(name);
    is_model(split_file(model).0) && revision.is_none_or(is_revision)
}

/// `owner/model`, or `model` alone, as a few old ones are called. The hub allows no two
/// hyphens in a row, which in the cache's folders stand for the slash.
pub(crate) fn is_model(name: &str) -> bool {
    let is_part = |part: &str| {
        let edges = ['-', '.'];
        is_plain(part) && !part.starts_with(edges) && !part.ends_with(edges)
    };
    let odd = ["--", "..", "+"].iter().any(|run| name.contains(run));
    name.len() <= 96 && !odd && name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// A branch, a tag, a commit, or `refs/pr/<number>`. It becomes a path in the cache.
pub(crate) fn is_revision(revision: &str) -> bool {
    let is_part = |part: &str| is_plain(part) && !part.starts_with('.');
    revision.len() <= 200 && revision.split('/').all(is_part)
}

/// Whether a text can be a file's name, and needs no escape in an address.
fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    !name.is_empty() && name.bytes().all(is_plain)
}

/// One file in the hub's list of a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RemoteFile {
    /// Relative to the model's folder.
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    /// In bytes; some mirrors of the hub do not tell.
    #[serde(default)]
    pub(super) size: Option<u64>,
}

/// Takes what matters of a model's files, in the order in which they are fetched: small ones
/// first, since they show soonest what is wrong; an index after what it names; and last those
/// by which a folder is known to hold a model.
///
/// Of GGUF files, which often come in several precisions, it takes `file` with its other parts
/// and the vision part, or the only model that there is; they need no other files.
///
/// # Errors
/// The files in formats that are not read, or that are several, if there is nothing else.
pub(super) fn choose(
    files: Vec<RemoteFile>,
    file: Option<&str>,
) -> Result<Vec<RemoteFile>, Vec<String>> {
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let has_safetensors = names
        .iter()
        .any(|name| is_plain(name) && name.ends_with(".safetensors"));
    if file.is_some() || !has_safetensors {
        return choose_gguf(files, file);
    }
    let mut weights: Vec<&str> = names.iter().map(String::as_str).collect();
    weights.retain(|name| is_plain(name) && is_weights(name));
    // Many models come again under a second name, for another program.
    let stems = ["model", "adapter_model"];
    if weights.iter().any(|name| stems.contains(&stem(name))) {
        weights.retain(|name| stems.contains(&stem(name)));
    }
    for stem in stems {
        // Shards are read only where there is no single file.
        let whole = format!("{stem}.safetensors");
        if weights.contains(&whole.as_str()) {
            weights.retain(|name| self::stem(name) != stem || *name == whole);
        }
    }
    // Nothing can be asked of an empty file, and nothing is missed without it.
    let is_wanted = |file: &RemoteFile| {
        file.size != Some(0) && (weights.contains(&file.name.as_str()) || is_small(&file.name))
    };
    let mut chosen: Vec<RemoteFile> = files.into_iter().filter(is_wanted).collect();
    chosen
        .sort_by(|one, other| (rank(&one.name), &one.name).cmp(&(rank(&other.name), &other.name)));
    chosen.dedup_by(|one, other| one.name == other.name);
    Ok(chosen)
}

fn choose_gguf(files: Vec<RemoteFile>, file: Option<&str>) -> Result<Vec<RemoteFile>, Vec<String>> {
    let stem_of = |name: &str| gguf::stem(Path::new(name));
    let models = |name: &str| is_gguf(name) && !gguf::is_mmproj(name);
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let stems: BTreeSet<String> = names
        .iter()
        .filter(|name| models(name))
        .map(|name| stem_of(name))
        .collect();
    let wanted = match (file, stems.len()) {
        (Some(file), _) if names.contains(&file) => Some(stem_of(file)),
        (None, 1) => stems.into_iter().next(),
        _ => None,
    };
    let vision = gguf::best_mmproj(names.iter().copied().filter(|name| is_gguf(name)));
    let vision = vision.map(str::to_owned);
    let Some(wanted) = wanted else {
        let all = files.into_iter().map(|file| file.name);
        return Err(all.filter(|name| is_other(name)).collect());
    };
    let mut chosen: Vec<RemoteFile> = files
        .into_iter()
        .filter(|file| {
            is_gguf(&file.name)
                && (stem_of(&file.name) == wanted || Some(&file.name) == vision.as_ref())
        })
        .collect();
    // The one that is asked for comes last, and says that the others are here.
    let rank = |name: &str| (Some(name) == file, models(name));
    chosen
        .sort_by(|one, other| (rank(&one.name), &one.name).cmp(&(rank(&other.name), &other.name)));
    Ok(chosen)
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

/// Weights that this crate does not read, or not without being told which.
fn is_other(name: &str) -> bool {
    let extensions = ["gguf", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx"];
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| extensions.contains(&extension))
}

/// `model` of `model.safetensors`, its index and `model-00001-of-00002.safetensors`.
fn stem(name: &str) -> &str {
    let stem = name.split(".safetensors").next().unwrap_or_default();
    match stem
        .rsplit_once("-of-")
        .and_then(|(stem, _)| stem.rsplit_once('-'))
    {
        Some((stem, shard)) if shard.bytes().all(|byte| byte.is_ascii_digit()) => stem,
        _ => stem,
    }
}

/// Configuration, vocabulary and what pictures and prompts go through.
fn is_small(name: &str) -> bool {
    if let Some((folder, file)) = name.split_once('/') {
        // How sentence-transformers makes one vector of many, such as `1_Pooling`.
        return is_plain(folder) && folder.ends_with("_Pooling") && file == "config.json";
    }
    let has = |start: &str, ends: &[&str]| {
        name.starts_with(start) && ends.iter().any(|end| name.ends_with(end))
    };
    let exact = [
        "adapter_config.json",
        "added_tokens.json",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "vocab.txt",
    ];
    is_plain(name)
        && (exact.contains(&name)
            || has("config", &[".json"])
            || has("tokenizer", &[".json", ".model", ".txt"])
            || has("chat_template", &[".json", ".jinja"])
            || (name.contains("processor") && name.ends_with("config.json")))
}

fn rank(name: &str) -> u8 {
    match name {
        "config.json" => 4,
        "adapter_config.json" => 3,
        _ if name.ends_with(".safetensors.index.json") => 2,
        _ if name.ends_with(".safetensors") => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Vec<String>, Vec<String>> {
        chosen_for(names, None)
    }

    fn chosen_for(names: &[&str], wanted: Option<&str>) -> Result<Vec<String>, Vec<String>> {
        let file = |name: &&str| RemoteFile {
            name: (*name).to_owned(),
            size: None,
        };
        let chosen = choose(names.iter().map(file).collect(), wanted)?;
        Ok(chosen.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn names_that_are_paths_or_prose_are_no_names() {
        for name in [
            "bert-base-uncased",
            "a/b",
            "vidore/colqwen2.5-v0.2",
            "a_b/c@refs/pr/5",
        ] {
            assert!(is_hub_name(name), "{name}");
        }
        let wrong = [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "../a",
            "a/..",
            "a/.b",
            "a b",
            "a/b\n",
            "~/a",
            "a--b",
            "a\\b",
            "a/b@",
            "a/b@../c",
            "a/b@/c",
            "a/b@c d",
            "https://a/b",
            "ä/b",
            "a/-b",
        ];
        for name in wrong {
            assert!(!is_hub_name(name), "{name}");
        }
    }

    #[test]
    fn what_matters_is_chosen_and_the_configuration_comes_last() {
        let all = [
            ".gitattributes",
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "tokenizer.json",
            "tokenizer_config.json",
            "preprocessor_config.json",
            "video_preprocessor_config.json",
            "chat_template.jinja",
            "1_Pooling/config.json",
            "modules.json",
            "config_sentence_transformers.json",
            "open_clip_model.safetensors",
            "text_encoder/model.safetensors",
            "../config.json",
            "/etc/config.json",
            "config.py",
            "vocab.json",
            "merges.txt",
            "../1_Pooling/config.json",
        ];
        let expected = [
            "1_Pooling/config.json",
            "chat_template.jinja",
            "config_sentence_transformers.json",
            "merges.txt",
            "modules.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "video_preprocessor_config.json",
            "vocab.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
        ];
        assert_eq!(chosen(&all).unwrap(), expected);
    }

    #[test]
    fn weights_are_fetched_once() {
        let both = [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "adapter_model.safetensors",
            "model.fp16.safetensors",
        ];
        let expected = ["adapter_model.safetensors", "model.safetensors"];
        assert_eq!(chosen(&both).unwrap(), expected);
        assert_eq!(
            chosen(&["other.safetensors"]).unwrap(),
            ["other.safetensors"]
        );
    }

    #[test]
    fn other_formats_are_named() {
        let files = [
            "config.json",
            "a.gguf",
            "b.gguf",
            "pytorch_model.bin",
            "sub/model.safetensors",
        ];
        let others = ["a.gguf", "b.gguf", "pytorch_model.bin"];
        assert_eq!(chosen(&files).unwrap_err(), others);
        assert_eq!(chosen_for(&files, Some("c.gguf")).unwrap_err(), others);
    }

    #[test]
    fn of_gguf_files_the_one_that_is_named_or_the_only_one_comes_with_its_vision_part() {
        let files = [
            "config.json",
            "m-Q4_K_M.gguf",
            "m-F16-00001-of-00002.gguf",
            "m-F16-00002-of-00002.gguf",
            "mmproj-m-BF16.gguf",
            "mmproj-m-F16.gguf",
            "sub/m-Q4_K_M.gguf",
        ];
        assert_eq!(
            chosen_for(&files, Some("m-Q4_K_M.gguf")).unwrap(),
            ["mmproj-m-F16.gguf", "m-Q4_K_M.gguf"]
        );
        assert_eq!(
            chosen_for(&files, Some("m-F16-00001-of-00002.gguf")).unwrap(),
            [
                "mmproj-m-F16.gguf",
                "m-F16-00002-of-00002.gguf",
                "m-F16-00001-of-00002.gguf"
            ]
        );
        assert_eq!(chosen(&["README.md", "m.gguf"]).unwrap(), ["m.gguf"]);
        assert_eq!(split_file("a/b/m.gguf"), ("a/b", Some("m.gguf")));
        for name in ["a/b/m.gguf", "a/b/m.gguf@main"] {
            assert!(is_hub_name(name), "{name}");
        }
        for name in ["a/b/c/m.gguf", "a/b/m.bin", "a/b/../m.gguf"] {
            assert!(!is_hub_name(name), "{name}");
        }
    }
}

//! Defines the reasons for which a model could not be fetched.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::names;
use crate::error::{Cause, join_names};

/// Why [`fetch`](crate::fetch) failed. What had come is kept, and the next try goes on from
/// there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchProblem {
    /// The user wants no network.
    #[error("`HF_HUB_OFFLINE` is set")]
    Offline,

    /// No connection, or one that broke before there was an answer.
    #[error("no answer from {endpoint} ({source})")]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What the connection said.
        source: Cause,
    },

    /// The hub does not know the model.
    #[error("{endpoint} has no such model")]
    UnknownModel {
        /// The hub's address.
        endpoint: String,
    },

    /// The hub knows the model, but not this version of it.
    #[error("it has no revision `{revision}`: {page}")]
    UnknownRevision {
        /// The branch, tag or commit.
        revision: String,
        /// The model's page.
        page: String,
    },

    /// The model is there only for some, or it is not said whether it is there.
    #[error("{} ({status}): {page}", Self::denial(*is_gated, *has_token))]
    Denied {
        /// The model's page.
        page: String,
        /// Whether anybody may ask its owner for access.
        is_gated: bool,
        /// Whether we came with a token.
        has_token: bool,
        /// 401 or 403.
        status: u16,
    },

    /// Another answer than the one asked for.
    #[error("asked for {what}, {endpoint} answered {status}")]
    Status {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The hub's address.
        endpoint: String,
    },

    /// Something answers, but not as a hub does.
    #[error("asked for {what}, {endpoint} gave nonsense ({problem})")]
    Nonsense {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        problem: String,
        /// The hub's address.
        endpoint: String,
    },

    /// A file stopped in the middle.
    #[error("`{file}` was cut off after {}", of_total(*n_bytes, *total_bytes))]
    CutOff {
        /// The file.
        file: String,
        /// How much of it is here.
        n_bytes: u64,
        /// How much there is.
        total_bytes: Option<u64>,
    },

    /// Another program is fetching the same.
    #[error("another program is fetching `{file}`")]
    Busy {
        /// The file.
        file: String,
    },

    /// The weights come only in formats that are not read here.
    #[error("it has no safetensors{}", but_others(others))]
    NoSafetensors {
        /// Weights in other formats.
        others: Vec<String>,
    },

    /// The model has other files than the one that was named.
    #[error("it has no `{file}`{}", but_others(others))]
    NoSuchFile {
        /// The name of a GGUF file.
        file: String,
        /// Weights that there are.
        others: Vec<String>,
    },

    /// No room.
    #[error("the disk is full: {}", folder.display())]
    DiskFull {
        /// The model's folder in the cache.
        folder: PathBuf,
    },

    /// The cache cannot be written.
    #[error("cannot write ({source}): {}", folder.display())]
    Write {
        /// The model's folder in the cache.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FetchProblem {
    /// Writing below `folder` failed.
    pub(super) fn write(folder: &Path, source: io::Error) -> Self {
        let folder = folder.to_owned();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { folder },
            _ => Self::Write { folder, source },
        }
    }

    fn denial(is_gated: bool, has_token: bool) -> &'static str {
        match (is_gated, has_token) {
            (true, _) => "its owner must grant access",
            (false, false) => "it is private, or does not exist",
            (false, true) => "the token does not open it",
        }
    }

    /// What to do about it, as one sentence without a full stop.
    pub fn hint(&self) -> String {
        match self {
            Self::Offline => "unset `HF_HUB_OFFLINE`, or give the path of a folder".into(),
            Self::Unreachable { .. } => {
                "check the network, the proxy and `HF_ENDPOINT`, then run the same again: it goes \
                 on where it stopped"
                    .into()
            }
            Self::UnknownModel { .. } => {
                "check the spelling: a name is `owner/model`, as in the model's address on the hub"
                    .into()
            }
            Self::UnknownRevision { .. } => {
                "give a branch, a tag or a commit of the model, or leave it out for `main`".into()
            }
            Self::Denied {
                page,
                is_gated,
                has_token,
                ..
            } => match (is_gated, has_token) {
                (true, false) => format!(
                    "ask for access at {page}, then set `HF_TOKEN` or log in with `hf auth login`"
                ),
                (true, true) => {
                    format!("ask for access at {page}, with the account that the token is of")
                }
                (false, false) => "check the spelling; if the model is private, set `HF_TOKEN` or \
                                   log in with `hf auth login`"
                    .into(),
                (false, true) => {
                    "check the spelling, and that the token's account may read the model".into()
                }
            },
            Self::Status { status: 429, .. } => {
                "the hub asks to wait: run the same again later; with a token in `HF_TOKEN` it \
                 allows more"
                    .into()
            }
            Self::Status { .. } => "run the same again later: it goes on where it stopped".into(),
            Self::Nonsense { .. } => {
                "check `HF_ENDPOINT`, and whether the network asks to log in first".into()
            }
            Self::CutOff { .. } => "run the same again: it goes on where it stopped".into(),
            Self::Busy { .. } => "wait for it, then run the same again".into(),
            Self::NoSafetensors { others } | Self::NoSuchFile { others, .. }
                if others.iter().any(|name| names::is_gguf(name)) =>
            {
                "name one of its GGUF files: `owner/model/file.gguf`".into()
            }
            Self::NoSuchFile { .. } => "check the name on the hub".into(),
            Self::NoSafetensors { .. } => {
                "use a model that has safetensors, or convert this one and give the path of the \
                 folder"
                    .into()
            }
            Self::DiskFull { .. } => {
                "make room, or move the cache with `HF_HUB_CACHE`, then run the same again".into()
            }
            Self::Write { .. } => {
                "check the folder's permissions, or move the cache with `HF_HUB_CACHE`".into()
            }
        }
    }
}

fn of_total(n_bytes: u64, total_bytes: Option<u64>) -> String {
    total_bytes.map_or_else(
        || format!("{n_bytes} bytes"),
        |total| format!("{n_bytes} of {total} bytes"),
    )
}

fn but_others(others: &[String]) -> String {
    if others.is_empty() {
        return String::new();
    }
    format!(", only {}", join_names(others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_forbidden_one() {
        let of = |kind: ErrorKind| FetchProblem::write(Path::new("/m"), kind.into());
        let full = of(ErrorKind::StorageFull);
        assert_eq!(full.to_string(), "the disk is full: /m");
        assert!(full.hint().starts_with("make room"));
        let forbidden = of(ErrorKind::PermissionDenied);
        assert_eq!(
            forbidden.to_string(),
            "cannot write (permission denied): /m"
        );
    }
}

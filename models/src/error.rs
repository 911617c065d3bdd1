//! Defines the errors between a model's name and its vectors.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;

use crate::generate::GenerateProblem;
use crate::hub::{FetchProblem, names};
use crate::preprocess::ImageProblem;

/// A cause from a library below, kept whole but without its type.
pub type Cause = Box<dyn Error + Send + Sync>;

/// How many names a message spells out before it only counts the rest.
const N_NAMES_SHOWN: usize = 4;

/// Why a model could not be found, loaded or run.
///
/// The message says what is wrong and where; [`ModelError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No place holds a model of this name.
    #[error("no model `{name}` in {}", join_paths(looked_in))]
    NotFound {
        /// The name as the caller gave it.
        name: String,
        /// The places looked at, in order.
        looked_in: Vec<PathBuf>,
    },

    /// Nothing on the hub can be called so.
    #[error("`{name}` {problem}")]
    InvalidName {
        /// The name of a model or of a revision.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// A model did not come from the hub.
    #[error("cannot fetch `{name}`: {problem}")]
    Fetch {
        /// The model's name on the hub.
        name: String,
        /// What happened.
        #[source]
        problem: FetchProblem,
    },

    /// A model that writes is named where vectors are wanted.
    #[error("`{architecture}` writes text and makes no vectors: {}", folder.display())]
    MakesNoVectors {
        /// The class name in `config.json`.
        architecture: String,
        /// The model's folder.
        folder: PathBuf,
    },

    /// The model's folder lacks a file that it needs.
    #[error("the model has no `{file}`: {}", folder.display())]
    MissingFile {
        /// The file, relative to the folder.
        file: String,
        /// The model's folder.
        folder: PathBuf,
    },

    /// A file is there but the system does not let us read it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A JSON file is malformed, or lacks a field.
    #[error("malformed JSON ({source}): {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's complaint, with line and column.
        source: serde_json::Error,
    },

    /// A setting of the model names something this crate does not compute.
    #[error("`{field}` is `{found}`, supported: {}: {}", join_names(supported), path.display())]
    Unsupported {
        /// The field of the configuration.
        field: String,
        /// Its value.
        found: String,
        /// The values that work.
        supported: &'static [&'static str],
        /// The configuration file.
        path: PathBuf,
    },

    /// A setting contradicts another, or the caller's wish contradicts the model.
    #[error("`{field}` {problem}: {}", path.display())]
    InvalidSetting {
        /// The field.
        field: &'static str,
        /// What is wrong with its value.
        problem: String,
        /// The file (or folder) it belongs to.
        path: PathBuf,
    },

    /// The weight file is not what its header says, or has no valid header.
    #[error("damaged weights ({source}): {}", path.display())]
    Weights {
        /// The `.safetensors` file.
        path: PathBuf,
        /// What the reader said.
        source: Cause,
    },

    /// The weights lack tensors that the configuration calls for.
    #[error("the weights lack {}: {}", join_names(names), path.display())]
    MissingTensors {
        /// Every absent tensor.
        names: Vec<String>,
        /// The weight file or folder.
        path: PathBuf,
    },

    /// Tensors have another shape than the configuration calls for.
    #[error("{}: {}", join_mismatches(mismatches), path.display())]
    MisshapenTensors {
        /// Every tensor of the wrong shape.
        mismatches: Vec<ShapeMismatch>,
        /// The weight file or folder.
        path: PathBuf,
    },

    /// Tensors are absent, and others have another shape.
    #[error(
        "the weights lack {}, and {}: {}",
        join_names(missing), join_mismatches(mismatches), path.display()
    )]
    UnfitTensors {
        /// Every absent tensor.
        missing: Vec<String>,
        /// Every tensor of the wrong shape.
        mismatches: Vec<ShapeMismatch>,
        /// The weight file or folder.
        path: PathBuf,
    },

    /// A file holds one tensor under two names.
    #[error("{} are the same tensor, `{name}`: {}", join_names(names), path.display())]
    TwinTensors {
        /// Both names, as in the file.
        names: Vec<String>,
        /// What both mean.
        name: String,
        /// The weight file.
        path: PathBuf,
    },

    /// An adapter changes what its base does not have, or has in another shape.
    #[error("{}: {}, base {}", foreign(unused, mismatches), path.display(), base.display())]
    ForeignAdapter {
        /// What the adapter changes and the base lacks.
        unused: Vec<String>,
        /// What has another shape: the base's, and the adapter's.
        mismatches: Vec<ShapeMismatch>,
        /// The adapter's folder.
        path: PathBuf,
        /// The base's folder.
        base: PathBuf,
    },

    /// The tokenizer file cannot be used, or a text cannot be tokenized.
    #[error("{action} ({source})")]
    Tokenizer {
        /// What was tried, with the path where there is one.
        action: String,
        /// What the library said.
        source: Cause,
    },

    /// A device name that nobody knows.
    #[error("unknown device `{found}`, supported: `auto`, `cpu`, `cuda`, `cuda:<number>`, `metal`")]
    UnknownDevice {
        /// The name as given.
        found: String,
    },

    /// A float type that nobody knows.
    #[error("unknown dtype `{found}`, supported: `f32`, `f16`, `bf16`")]
    UnknownDtype {
        /// The name as given.
        found: String,
    },

    /// A format of quantized weights that nobody knows.
    #[error("unknown quantization `{found}`, supported: `q8_0`, `q6_k`, `q4_k`")]
    UnknownQuantization {
        /// The name as given.
        found: String,
    },

    /// The device is known, but this build or this machine does not have it.
    #[error("device `{device}` is not available: {problem}")]
    DeviceUnavailable {
        /// The device.
        device: String,
        /// Whether the build or the machine lacks it.
        problem: String,
        /// The crate feature that brings it, if this build lacks it.
        feature: Option<&'static str>,
    },

    /// An image cannot be turned into a model's patches.
    #[error("cannot prepare an image of {width_px} x {height_px} pixels: {problem}")]
    UnfitImage {
        /// Its width.
        width_px: u32,
        /// Its height.
        height_px: u32,
        /// What is wrong with it.
        problem: ImageProblem,
    },

    /// A tensor operation failed: the device is out of memory, or we have a bug.
    #[error("{action} failed ({source})")]
    Compute {
        /// What was being computed.
        action: &'static str,
        /// What candle said.
        source: Cause,
    },

    /// The model does not read this.
    #[error("the model reads no {what}")]
    NotRead {
        /// Pictures or text.
        what: &'static str,
    },

    /// A request cannot be answered.
    #[error("cannot generate: {0}")]
    Generate(#[from] GenerateProblem),

    /// The network gave NaN or an infinity for one text. The other rows are sound.
    #[error("the model gave a vector that is not finite for text {row}")]
    NotFinite {
        /// Position of the text in the call, from 0.
        row: usize,
    },
}

/// One tensor whose shape differs from what the configuration calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor's name in the file.
    pub name: String,
    /// The shape the configuration calls for.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            expected,
            found,
        } = self;
        write!(
            formatter,
            "`{name}` has shape {found:?} instead of {expected:?}"
        )
    }
}

impl ModelError {
    /// What to do about it, as one sentence without a full stop.
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { name, .. } if !names::is_hub_name(name) => {
                "give the path of a folder that holds `config.json`, `tokenizer.json` and \
                 `model.safetensors`, or a name such as `sentence-transformers/all-MiniLM-L6-v2`"
                    .into()
            }
            Self::NotFound { name, .. } => format!(
                "run `pagemill models fetch {name}`, or give the path of a folder that holds \
                 `config.json`, `tokenizer.json` and `model.safetensors`"
            ),
            Self::InvalidName { .. } => {
                "give `owner/model` or `owner/model@revision`, as on the hub, such as \
                 `sentence-transformers/all-MiniLM-L6-v2`"
                    .into()
            }
            Self::Fetch { problem, .. } => problem.hint(),
            Self::MissingFile { file, .. } if file.ends_with(".safetensors") => {
                "fetch the model again; if it only has `pytorch_model.bin`, convert it to \
                 safetensors first"
                    .into()
            }
            Self::MissingFile { .. } => {
                "fetch the model again, or point to the folder that holds all its files".into()
            }
            Self::Read { .. } => "check the file's permissions and the disk".into(),
            Self::Json { .. } | Self::Weights { .. } => {
                "the file is damaged or half downloaded: remove the model's folder and fetch it \
                 again"
                    .into()
            }
            Self::MakesNoVectors { .. } => "name it in `generate`, `transcribe` or one of their \
                kin; for vectors use a model such as `vidore/colqwen2.5-v0.2`"
                .into(),
            Self::Unsupported { supported, .. } => {
                format!("use a model with one of {}", join_names(supported))
            }
            Self::InvalidSetting {
                field: "*.gguf", ..
            } => "name one of the files instead of the folder, or keep one".into(),
            Self::InvalidSetting {
                field: "split.count",
                ..
            } => "fetch all parts of the model into one folder".into(),
            Self::InvalidSetting { field, .. } => format!("change `{field}`"),
            Self::MissingTensors { .. }
            | Self::MisshapenTensors { .. }
            | Self::UnfitTensors { .. } => {
                "`config.json` and the weights belong to different models: fetch both from one \
                 revision"
                    .into()
            }
            Self::ForeignAdapter { .. } => {
                "the adapter was trained on another base: set `base_model_name_or_path` in its \
                 `adapter_config.json` to that one"
                    .into()
            }
            Self::TwinTensors { .. } => {
                "the file was put together of two models: fetch it again from one".into()
            }
            Self::Tokenizer { .. } => {
                "fetch `tokenizer.json` again from the model's own repository".into()
            }
            Self::UnknownDevice { .. } => "use `cpu`, `cuda:0` or `metal`".into(),
            Self::UnknownDtype { .. } => {
                "use `f32` on the processor, and `bf16` on a device that computes in it".into()
            }
            Self::UnknownQuantization { .. } => {
                "use `q8_0`, which loses next to nothing, or `q6_k` or `q4_k` where memory is short"
                    .into()
            }
            Self::DeviceUnavailable {
                feature: Some(feature),
                ..
            } => {
                format!("build with `--features {feature}`, or use `cpu`")
            }
            Self::DeviceUnavailable { feature: None, .. } => {
                "check the driver and the device's number, or use `auto` or `cpu`".into()
            }
            Self::UnfitImage { problem, .. } => problem.hint(),
            Self::Compute { .. } => {
                "if the device ran out of memory, lower the batch's tokens; otherwise report this"
                    .into()
            }
            Self::Generate(problem) => problem.hint(),
            Self::NotRead { what } => format!("use a model that reads {what}"),
            Self::NotFinite { .. } => {
                "set the text aside; if every text fails, the weights are damaged".into()
            }
        }
    }

    /// Makes an error of a failed tensor operation.
    pub(crate) fn compute(action: &'static str) -> impl FnOnce(candle_core::Error) -> Self {
        move |source| Self::Compute {
            action,
            source: Box::new(source),
        }
    }
}

/// How an adapter differs from its base, all in one sentence.
fn foreign(unused: &[String], mismatches: &[ShapeMismatch]) -> String {
    let mut problems = Vec::new();
    if !unused.is_empty() {
        problems.push(format!(
            "the adapter changes {}, which its base lacks",
            join_names(unused)
        ));
    }
    if !mismatches.is_empty() {
        let shapes = mismatches.iter().map(
            |ShapeMismatch {
                 name,
                 expected,
                 found,
             }| {
                format!("the adapter changes `{name}` as {found:?}, its base has {expected:?}")
            },
        );
        problems.push(join(shapes, mismatches.len()));
    }
    problems.join("; ")
}

/// Joins names as "`a`, `b`"; past a few it says how many more there are.
pub(crate) fn join_names(names: &[impl AsRef<str>]) -> String {
    join(
        names.iter().map(|name| format!("`{}`", name.as_ref())),
        names.len(),
    )
}

fn join_mismatches(mismatches: &[ShapeMismatch]) -> String {
    join(mismatches.iter().map(ToString::to_string), mismatches.len())
}

/// Paths are never cut: the reader may need each of them.
fn join_paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn join(parts: impl Iterator<Item = String>, n_parts: usize) -> String {
    let mut joined = parts.take(N_NAMES_SHOWN).collect::<Vec<_>>().join(", ");
    if n_parts > N_NAMES_SHOWN {
        write!(joined, " and {} more", n_parts - N_NAMES_SHOWN)
            .expect("writing to a string cannot fail");
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_names_is_cut_and_counted() {
        let names: Vec<String> = (0..6).map(|index| format!("t{index}")).collect();
        let error = ModelError::MissingTensors {
            names,
            path: "/m/model.safetensors".into(),
        };
        assert_eq!(
            error.to_string(),
            "the weights lack `t0`, `t1`, `t2`, `t3` and 2 more: /m/model.safetensors"
        );
    }

    #[test]
    fn messages_are_lower_case_without_full_stop() {
        let errors = [
            ModelError::NotFound {
                name: "a/b".into(),
                looked_in: vec!["a/b".into()],
            },
            ModelError::MissingFile {
                file: "config.json".into(),
                folder: "/m".into(),
            },
            ModelError::UnknownDevice {
                found: "gpu".into(),
            },
            ModelError::NotFinite { row: 3 },
            ModelError::InvalidName {
                name: "a b".into(),
                problem: "is no name of a model on the hub",
            },
            ModelError::Fetch {
                name: "a/b".into(),
                problem: FetchProblem::Offline,
            },
        ];
        for error in errors {
            for text in [error.to_string(), error.hint()] {
                assert!(!text.ends_with('.'), "{text}");
                assert!(!text.starts_with(char::is_uppercase), "{text}");
            }
        }
    }
}

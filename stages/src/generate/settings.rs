//! Defines the settings that all stages that generate share: the model, local or behind a server.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use pagemill_models::{GeneratorOptions, ImageProcessor};
use pagemill_pipeline::{Field, FieldError, Fields, ModelMeter, Resources};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::host::Host;
use super::remote::{Remote, RemoteModel};
use crate::models::{self, Compute, Loaded};
use crate::patches::PatchCache;

/// A model on this machine, by its name or folder, or one behind a server.
#[derive(Debug, Clone)]
pub enum ModelSetting {
    /// A name, such as `Qwen/Qwen2.5-VL-3B-Instruct`, or the path of a folder.
    Local(String),
    /// A server that speaks `OpenAI`'s protocol.
    Remote(RemoteModel),
}

impl<'de> Deserialize<'de> for ModelSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice;

        impl<'de> Visitor<'de> for Choice {
            type Value = ModelSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a model's name, or `{ url = \"...\", name = \"...\" }`")
            }

            fn visit_str<E>(self, name: &str) -> Result<ModelSetting, E> {
                Ok(ModelSetting::Local(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelSetting, A::Error> {
                RemoteModel::deserialize(MapAccessDeserializer::new(map)).map(ModelSetting::Remote)
            }
        }

        deserializer.deserialize_any(Choice)
    }
}

impl ModelSetting {
    /// The name of a model of this machine.
    pub fn local(&self) -> Option<&str> {
        match self {
            Self::Local(name) => Some(name),
            Self::Remote(_) => None,
        }
    }

    /// What answers depend on: of a server its address and the model's name, without
    /// keys and limits.
    pub(crate) fn of_rows(&self) -> Self {
        match self {
            Self::Local(_) => self.clone(),
            Self::Remote(remote) => Self::Remote(RemoteModel::new(&remote.url, &remote.name)),
        }
    }
}

impl From<&str> for ModelSetting {
    fn from(name: &str) -> Self {
        Self::Local(name.to_owned())
    }
}

/// Declares the settings of a kind that generates: its own, and those of every such kind.
/// (`#[serde(flatten)]` would do it, but loses the place of a mistake and the check for
/// misspelt settings.)
macro_rules! with_speaker {
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// Name of the model, such as `Qwen/Qwen2.5-VL-3B-Instruct`, the path of its folder,
            /// or `{ url = "http://127.0.0.1:8000/v1", name = "..." }`.
            pub model: $crate::generate::settings::ModelSetting,
            /// Where to compute: `cpu`, `cuda:0`, `metal`, or `auto`.
            #[serde(default = "crate::models::default_device")]
            pub device: String,
            /// What to compute in: `f32`, `f16` or `bf16`.
            #[serde(default)]
            pub dtype: Option<String>,
            /// Weights in fewer bits: `q8_0`, `q6_k` or `q4_k`; those of the language model only.
            #[serde(default)]
            pub quantize: Option<String>,
            /// Whether `quantize` is for the vision tower's weights too.
            #[serde(default)]
            pub quantize_vision: bool,
            /// The most tokens that a page may become.
            #[serde(default)]
            pub max_visual_tokens: Option<usize>,
            /// The most tokens of a sequence, page and answer together; the model's own limit
            /// if it is not given.
            #[serde(default)]
            pub max_context: Option<usize>,
            /// The most sequences at once, over all stages that share the model.
            #[serde(default = "crate::generate::settings::default_batch")]
            pub max_batch: usize,
            /// The most memory of the sequences' keys and values, in MB.
            #[serde(default)]
            pub cache_mb: Option<u32>,
            /// Whether pixels and patches go on to the next stage.
            #[serde(default)]
            pub keep_image: bool,
            $($own)*
        }

        impl $name {
            /// The settings that answers depend on; the others at a fixed value.
            fn of_rows(&self) -> Self {
                Self {
                    model: self.model.of_rows(),
                    device: String::new(),
                    max_batch: 0,
                    cache_mb: None,
                    keep_image: false,
                    ..self.clone()
                }
            }

            fn speaker(&self) -> $crate::generate::settings::SpeakerSettings<'_> {
                $crate::generate::settings::SpeakerSettings {
                    model: &self.model,
                    compute: $crate::models::Compute {
                        device: &self.device,
                        dtype: self.dtype.as_deref(),
                        quantize: self.quantize.as_deref(),
                    },
                    quantize_vision: self.quantize_vision,
                    max_visual_tokens: self.max_visual_tokens,
                    max_context: self.max_context,
                    max_batch: self.max_batch,
                    cache_mb: self.cache_mb,
                    keep_image: self.keep_image,
                }
            }
        }
    };
}
pub(super) use with_speaker;

/// The setting `max_batch` where it is not given.
pub(crate) fn default_batch() -> usize {
    8
}

/// The settings that every kind has.
pub(crate) struct SpeakerSettings<'a> {
    pub(crate) model: &'a ModelSetting,
    pub(crate) compute: Compute<'a>,
    pub(crate) quantize_vision: bool,
    pub(crate) max_visual_tokens: Option<usize>,
    pub(crate) max_context: Option<usize>,
    pub(crate) max_batch: usize,
    pub(crate) cache_mb: Option<u32>,
    pub(crate) keep_image: bool,
}

/// Who answers.
pub(super) enum Speaker {
    Local(LocalSpeaker),
    Remote(Arc<Remote>),
}

/// A model of this process.
pub(super) struct LocalSpeaker {
    pub(super) folder: PathBuf,
    pub(super) options: GeneratorOptions,
    /// Shared by all stages of the run that name the same model.
    pub(super) loaded: Arc<Loaded<Host>>,
    pub(super) meter: ModelMeter,
    /// Set by `start`.
    pub(super) host: Option<Arc<Host>>,
    /// What lays pictures out; none for a model that reads only text.
    pub(super) processor: Option<(Arc<ImageProcessor>, Arc<str>)>,
    pub(super) cache: Arc<PatchCache>,
}

impl SpeakerSettings<'_> {
    /// What the node reads to show the model a picture, and what it takes away.
    pub(super) fn picture_fields(&self, reads: impl IntoIterator<Item = Field>) -> Fields {
        let mut fields = Fields::reads(reads.into_iter().chain([Field::IMAGE]));
        if matches!(self.model, ModelSetting::Local(_)) {
            fields = fields.or_instead(&Field::IMAGE, Field::PATCHES);
        }
        if !self.keep_image {
            fields = fields.drops([Field::IMAGE, Field::PATCHES]);
        }
        fields
    }

    /// As many as the model takes sequences, or the server requests, at once.
    pub(super) fn workers(&self) -> usize {
        match self.model {
            ModelSetting::Local(_) => self.max_batch.clamp(1, 256),
            ModelSetting::Remote(remote) => remote.concurrency.clamp(1, 256),
        }
    }

    pub(super) fn revision(&self, resources: &Resources) -> String {
        match self.model {
            ModelSetting::Local(name) => models::revision(name, resources),
            ModelSetting::Remote(_) => String::new(),
        }
    }

    /// Checks the settings and finds the model.
    ///
    /// # Errors
    /// A setting names nothing that there is, or the model is not found, or does not speak, or
    /// reads no pictures although `pictures` are to be shown.
    pub(super) fn build(
        &self,
        pictures: bool,
        resources: &Resources,
    ) -> Result<Speaker, FieldError> {
        let name = match self.model {
            ModelSetting::Remote(remote) => return self.build_remote(remote, resources),
            ModelSetting::Local(name) => name,
        };
        let options = self.options()?;
        let folder = models::find_folder(name, resources)?;
        models::check_speaks(&folder, name)?;
        let processor = if pictures {
            let processor = models::processor(&folder, self.max_visual_tokens)?;
            let key = processor.key().into();
            Some((Arc::new(processor), key))
        } else {
            None
        };
        let place = format!("{} {options:?}", folder.display());
        Ok(Speaker::Local(LocalSpeaker {
            loaded: resources.get_or_insert(&place, Loaded::default),
            meter: resources.model_meter(&place, name.rsplit('/').next().unwrap_or(name)),
            folder,
            options,
            host: None,
            processor,
            cache: resources.get_or_insert("patches", PatchCache::default),
        }))
    }

    fn build_remote(
        &self,
        remote: &RemoteModel,
        resources: &Resources,
    ) -> Result<Speaker, FieldError> {
        for (field, is_given) in [
            ("quantize", self.compute.quantize.is_some()),
            ("dtype", self.compute.dtype.is_some()),
            ("cache_mb", self.cache_mb.is_some()),
            ("max_context", self.max_context.is_some()),
            ("max_visual_tokens", self.max_visual_tokens.is_some()),
        ] {
            if is_given {
                return Err(FieldError::new(
                    field,
                    "is for models of this machine, and `model` names a server",
                    format_args!("leave `{field}` out, and set it where the server is started"),
                ));
            }
        }
        remote.shared(resources).map(Speaker::Remote)
    }

    fn options(&self) -> Result<GeneratorOptions, FieldError> {
        let encoder = self.compute.options()?;
        if self.quantize_vision && encoder.quantize.is_none() {
            return Err(FieldError::new(
                "quantize_vision",
                "needs `quantize`, which says to what",
                "set `quantize = \"q8_0\"`, or leave `quantize_vision` out",
            ));
        }
        for (field, value) in [
            ("max_batch", Some(self.max_batch)),
            ("max_context", self.max_context),
            ("cache_mb", self.cache_mb.map(|mb| mb as usize)),
        ] {
            if value == Some(0) {
                let hint = format!("leave `{field}` out for what is usual");
                return Err(FieldError::new(field, "must be at least 1", hint));
            }
        }
        Ok(GeneratorOptions {
            device: encoder.device,
            dtype: encoder.dtype,
            quantize: encoder.quantize,
            quantize_vision: self.quantize_vision,
            max_visual_tokens: self.max_visual_tokens,
            max_context: self.max_context,
            max_batch: self.max_batch,
            cache_mb: self.cache_mb,
        })
    }
}

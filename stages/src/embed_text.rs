//! `kind = "embed_text"`: text to vectors, with any encoder that reads text.

use std::path::PathBuf;
use std::sync::Arc;

use pagemill_models::{Encoder, EncoderOptions, Precision, TextRole};
use pagemill_pipeline::{
    BatchPolicy, Field, FieldError, Fields, Item, ItemError, Outlet, Resources, Stage, StageConfig,
    StageError, Vectors,
};
use serde::Deserialize;

use crate::generate::{ModelSetting, Remote, RemoteModel};
use crate::models::{self, Compute, Loaded, Output};

/// No tokenizer makes a token of more bytes than this on average, so a longer
/// text needs no counting to be known to fill the model.
const MAX_BYTES_PER_TOKEN: usize = 64;

/// Settings of `kind = "embed_text"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedTextConfig {
    /// Name of the model, such as `sentence-transformers/all-MiniLM-L6-v2`, the path of its
    /// folder, or `{ url = "http://127.0.0.1:8000/v1", name = "..." }`.
    pub model: ModelSetting,
    /// Where to compute: `cpu`, `cuda:0`, `metal`, or `auto`, a GPU if the build and the machine
    /// have one.
    #[serde(default = "models::default_device")]
    pub device: String,
    /// What to compute in: `f32`, `f16` or `bf16`; by default `f32` on the processor and
    /// `bf16` elsewhere. Sentence encoders compute in `f32`.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Weights in fewer bits: `q8_0`, `q6_k` or `q4_k`; those of the language model only.
    #[serde(default)]
    pub quantize: Option<String>,
    /// Cuts texts at this many tokens; the model's own limit if it is not given.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// The field that the model fills: `vector`, one for the text, as sentence encoders, CLIP
    /// and SigLIP have, or `vectors`, one for each token, as `ColQwen` has.
    #[serde(default = "Output::one")]
    pub output: Output,
    /// What the text is: a `passage`, which is searched, or a `query`. It matters to models
    /// that mark their questions, as `ColQwen` does.
    #[serde(default)]
    pub role: Role,
}

/// What a text is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Text that is itself searched.
    #[default]
    Passage,
    /// A question.
    Query,
}

impl EmbedTextConfig {
    /// This model, on the best device, with one vector a text.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: ModelSetting::Local(model.into()),
            device: models::default_device(),
            dtype: None,
            quantize: None,
            max_tokens: None,
            output: Output::Vector,
            role: Role::Passage,
        }
    }

    fn compute(&self) -> Compute<'_> {
        Compute {
            device: &self.device,
            dtype: self.dtype.as_deref(),
            quantize: self.quantize.as_deref(),
        }
    }
}

impl StageConfig for EmbedTextConfig {
    const KIND: &'static str = "embed_text";
    const ABOUT: &'static str =
        "text to vectors, with a sentence encoder or a visual one's text side";
    const EXAMPLE: &'static str = "model = \"sentence-transformers/all-MiniLM-L6-v2\"\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        Fields::reads([Field::TEXT])
            .adds([self.output.field()])
            .to_every_item()
    }

    fn batch(&self) -> BatchPolicy {
        BatchPolicy::of_items(32, 20).with_max_tokens(8192)
    }

    fn workers(&self) -> usize {
        match &self.model {
            ModelSetting::Local(_) => 1,
            ModelSetting::Remote(remote) => remote.concurrency.clamp(1, 256),
        }
    }

    fn row_settings(&self) -> String {
        let of_rows = Self {
            model: self.model.of_rows(),
            device: String::new(),
            ..self.clone()
        };
        format!("{of_rows:?}")
    }

    fn revision(&self, resources: &Resources) -> String {
        let name = self.model.local();
        name.map_or_else(String::new, |name| models::revision(name, resources))
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        match &self.model {
            ModelSetting::Local(name) => Ok(Box::new(EmbedText::new(self, name, resources)?)),
            ModelSetting::Remote(remote) => {
                Ok(Box::new(EmbedTextRemotely::new(self, remote, resources)?))
            }
        }
    }
}

/// Adds vectors to each item that has text. An item whose text is empty or
/// white space passes without any.
struct EmbedText {
    folder: PathBuf,
    options: EncoderOptions,
    output: Output,
    role: TextRole,
    /// Shared by all stages of the run that name the same model.
    loaded: Arc<Loaded<Encoder>>,
    /// Set by [`Stage::start`].
    encoder: Option<Arc<Encoder>>,
}

impl EmbedText {
    /// Checks the settings and finds the model.
    ///
    /// # Errors
    /// When a setting names nothing that there is, or the model is not found, makes another
    /// kind of output, or reads fewer tokens than `max_tokens`.
    fn new(
        config: &EmbedTextConfig,
        name: &str,
        resources: &Resources,
    ) -> Result<Self, FieldError> {
        let mut options = config.compute().options()?;
        let (folder, card) = models::find(name, resources)?;
        config.output.check(card.kind)?;
        if let Some(max_tokens) = config.max_tokens {
            let n = card.max_tokens;
            if !(3..=n).contains(&max_tokens) {
                return Err(FieldError::new(
                    "max_tokens",
                    format_args!("must be from 3 to {n}, which is what the model reads"),
                    format_args!("leave it out for {n}"),
                ));
            }
        }
        options.max_tokens = config.max_tokens;
        Ok(Self {
            loaded: models::shared(&folder, &options, resources),
            folder,
            options,
            output: config.output,
            role: match config.role {
                Role::Passage => TextRole::Passage,
                Role::Query => TextRole::Query,
            },
            encoder: None,
        })
    }
}

impl Stage for EmbedText {
    fn start(&mut self) -> Result<(), StageError> {
        let load = || Encoder::load(&self.folder, &self.options);
        self.encoder = Some(self.loaded.get_or_load(load).map_err(models::fatal)?);
        Ok(())
    }

    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let encoder = self.encoder.as_ref().ok_or_else(|| {
            StageError::fatal("`embed_text` has not been started", "call `start` first")
        })?;
        let texts: Vec<&str> = batch.iter().filter_map(text_to_encode).collect();
        // Results are in main memory when this returns: a blocked stage holds
        // nothing on the device.
        let vectors = encoder.embed_texts(&texts, self.role, Precision::F16);
        let mut vectors = vectors.map_err(models::fatal)?.into_iter();
        for mut item in batch {
            item.remove(&self.output.field().name);
            if item.text().is_none() {
                outlet.dead_letter(item, ItemError::missing("embed", &Field::TEXT.name));
                continue;
            }
            if text_to_encode(&item).is_some() {
                let embedding = vectors.next().ok_or_else(too_few)?;
                let set = embedding
                    .map_err(models::item_error)
                    .and_then(|embedding| self.output.set(&mut item, embedding));
                if let Err(error) = set {
                    outlet.dead_letter(item, error);
                    continue;
                }
            }
            outlet.send(item)?;
        }
        Ok(())
    }

    fn n_tokens(&self, item: &Item) -> usize {
        let text = item.text().unwrap_or_default();
        let Some(encoder) = &self.encoder else {
            return text.len().div_ceil(4).max(1);
        };
        let max_tokens = encoder.max_tokens();
        if text.trim().is_empty() {
            return 1; // It never reaches the model.
        }
        if text.len() > max_tokens.saturating_mul(MAX_BYTES_PER_TOKEN) {
            return max_tokens;
        }
        encoder.n_text_tokens(text)
    }
}

/// The same by a server.
struct EmbedTextRemotely {
    remote: Arc<Remote>,
}

impl EmbedTextRemotely {
    fn new(
        config: &EmbedTextConfig,
        remote: &RemoteModel,
        resources: &Resources,
    ) -> Result<Self, FieldError> {
        let own = [
            ("dtype", config.dtype.is_some()),
            ("quantize", config.quantize.is_some()),
            ("max_tokens", config.max_tokens.is_some()),
            ("output", config.output != Output::Vector),
        ];
        if let Some((field, _)) = own.into_iter().find(|(_, is_given)| *is_given) {
            return Err(FieldError::new(
                field,
                "is for models of this machine, and `model` names a server",
                format_args!("leave `{field}` out"),
            ));
        }
        Ok(Self {
            remote: remote.shared(resources)?,
        })
    }
}

impl Stage for EmbedTextRemotely {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        let texts: Vec<&str> = batch.iter().filter_map(text_to_encode).collect();
        let vectors = if texts.is_empty() {
            Ok(Vec::new())
        } else {
            self.remote.embed(&texts, &|| outlet.is_cancelled())?
        };
        let mut vectors = vectors.map(Vec::into_iter);
        for mut item in batch {
            item.remove(&Field::VECTOR.name);
            if item.text().is_none() {
                outlet.dead_letter(item, ItemError::missing("embed", &Field::TEXT.name));
                continue;
            }
            if text_to_encode(&item).is_some() {
                match &mut vectors {
                    Ok(vectors) => {
                        let vector = vectors.next().and_then(Vectors::single);
                        item.set(Field::VECTOR.name, vector.ok_or_else(too_few)?);
                    }
                    Err(error) => {
                        let error = error.clone();
                        outlet.dead_letter(item, error);
                        continue;
                    }
                }
            }
            outlet.send(item)?;
        }
        Ok(())
    }
}

/// The item's text, unless there is nothing in it to encode.
fn text_to_encode(item: &Item) -> Option<&str> {
    item.text().filter(|text| !text.trim().is_empty())
}

fn too_few() -> StageError {
    StageError::fatal(
        "the model gave fewer vectors than it was given texts",
        "report this",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use pagemill_pipeline::VectorData;
    use pagemill_pipeline::testing::run_stage;

    use super::*;
    use crate::testing::{BAD_WORD, TINY_DIM, TINY_MAX_TOKENS, TINY_MODEL, with_tiny_model};

    fn tiny() -> EmbedTextConfig {
        EmbedTextConfig::new(TINY_MODEL)
    }

    fn embed(root: &Path) -> EmbedText {
        EmbedText::new(&tiny(), TINY_MODEL, &with_tiny_model(root)).unwrap()
    }

    fn page(text: &str, page: u32) -> Item {
        Item::of_text("a.pdf", text).with_page(page)
    }

    fn numbers(item: &Item) -> &[f32] {
        match item.vector().unwrap().data() {
            VectorData::F32(numbers) => numbers,
            VectorData::F16(_) => panic!("the encoder gives 32 bits"),
        }
    }

    #[test]
    fn each_item_with_text_gets_a_vector_of_length_one_in_its_order() {
        let root = tempfile::tempdir().unwrap();
        let pages = [page("the mill", 1), page("turns", 2), page("the mill", 3)];
        let out = run_stage(&mut embed(root.path()), pages);
        assert!(out.dead.is_empty() && out.error.is_none());
        let places: Vec<_> = out.sent.iter().map(|item| item.key().page).collect();
        assert_eq!(places, [Some(1), Some(2), Some(3)]);
        for item in &out.sent {
            let vector = item.vector().unwrap();
            assert_eq!((vector.n(), vector.dim()), (1, TINY_DIM));
            let length: f32 = numbers(item).iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
        let (first, third) = (numbers(&out.sent[0]), numbers(&out.sent[2]));
        let difference = first.iter().zip(third).map(|(a, b)| (a - b).abs());
        assert!(difference.fold(0.0, f32::max) < 1e-6);
        assert_ne!(first, numbers(&out.sent[1]));
    }

    #[test]
    fn an_item_without_a_letter_passes_without_a_vector() {
        let root = tempfile::tempdir().unwrap();
        let stale = page(" \n", 2).with("vector", Vectors::single(vec![1.0]).unwrap());
        let pages = [page("", 1), stale, page("mill", 3)];
        let out = run_stage(&mut embed(root.path()), pages);
        let has_vector: Vec<_> = out
            .sent
            .iter()
            .map(|item| item.vector().is_some())
            .collect();
        assert_eq!(has_vector, [false, false, true]);
        let out = run_stage(&mut embed(root.path()), [page("", 1)]);
        assert_eq!(out.sent.len(), 1);
    }

    #[test]
    fn a_vector_that_is_not_a_number_costs_its_item_alone() {
        let root = tempfile::tempdir().unwrap();
        let pages = [
            page("mill", 1),
            page(BAD_WORD, 2),
            page("", 3).child(),
            page("turns", 4),
        ];
        let out = run_stage(&mut embed(root.path()), pages);
        assert_eq!(out.sent.len(), 2);
        assert!(out.sent.iter().all(|item| item.vector().is_some()));
        let reasons: Vec<&str> = out.dead.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "cannot embed `a.pdf#2`: the model gave a vector that is not finite",
                "cannot embed `a.pdf#3`: it has no `text`",
            ]
        );
    }

    #[test]
    fn tokens_are_counted_as_the_model_does_and_cut_where_it_cuts() {
        let root = tempfile::tempdir().unwrap();
        let mut stage = embed(root.path());
        run_stage(&mut stage, []);
        assert_eq!(stage.n_tokens(&page("the mill", 1)), 4);
        assert_eq!(stage.n_tokens(&page("", 1)), 1);
        let long = "mill ".repeat(1000);
        assert_eq!(stage.n_tokens(&page(&long[..100], 1)), TINY_MAX_TOKENS);
        assert_eq!(stage.n_tokens(&page(&long, 1)), TINY_MAX_TOKENS);
    }

    #[test]
    fn stages_of_a_run_that_name_the_same_model_share_it() {
        let root = tempfile::tempdir().unwrap();
        let resources = with_tiny_model(root.path());
        let mut stages = [0, 1].map(|_| EmbedText::new(&tiny(), TINY_MODEL, &resources).unwrap());
        for stage in &mut stages {
            stage.start().unwrap();
        }
        let [a, b] = stages.map(|stage| stage.encoder.unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        let shorter = EmbedTextConfig {
            max_tokens: Some(5),
            ..tiny()
        };
        let mut stage = EmbedText::new(&shorter, TINY_MODEL, &resources).unwrap();
        stage.start().unwrap();
        assert!(!Arc::ptr_eq(&a, &stage.encoder.unwrap()));
    }

    #[test]
    fn a_model_that_breaks_after_the_check_stops_the_run() {
        let root = tempfile::tempdir().unwrap();
        let mut stage = embed(root.path());
        fs::write(stage.folder.join("tokenizer.json"), "{").unwrap();
        let error = run_stage(&mut stage, [page("mill", 1)]).error.unwrap();
        assert!(error.to_string().contains("tokenizer"), "{error}");
        assert!(error.hint().is_some());
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let resources = with_tiny_model(root.path());
        let refused = |config: &EmbedTextConfig| config.build(&resources).err().unwrap();
        let error = refused(&EmbedTextConfig {
            device: "gpu".into(),
            ..tiny()
        });
        assert_eq!(error.to_string(), "`device` names no device: `gpu`");
        assert_eq!(error.hint, "use `cpu`, `cuda:0` or `metal`");
        let error = refused(&EmbedTextConfig {
            max_tokens: Some(17),
            ..tiny()
        });
        assert_eq!(
            error.to_string(),
            "`max_tokens` must be from 3 to 16, which is what the model reads"
        );
        let error = refused(&EmbedTextConfig {
            model: "owner/absent".into(),
            ..tiny()
        });
        let root = root.path().display();
        assert_eq!(
            error.to_string(),
            format!(
                "`model` names no model: `owner/absent` is not in `owner/absent`, \
                 `{root}/pagemill/models/owner--absent`, `{root}/hub/models--owner--absent`"
            )
        );
        assert!(error.hint.starts_with("run `make setup`"));
    }

    #[test]
    fn a_folder_that_holds_no_text_encoder_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let resources = with_tiny_model(root.path());
        fs::write(root.path().join("config.json"), "{}").unwrap();
        let config = EmbedTextConfig {
            model: root.path().to_str().unwrap().into(),
            ..tiny()
        };
        let error = config.build(&resources).err().unwrap();
        assert!(
            error
                .to_string()
                .starts_with("`model` names a model that cannot be used: ")
        );
    }
}

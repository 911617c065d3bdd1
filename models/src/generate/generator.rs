//! A loaded model that speaks, and what waits for it.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::constraint::Grammars;
use super::options::GeneratorOptions;
use super::prefix::Prefixes;
use super::problem::GenerateProblem;
use super::request::{Event, GenerateRequest, Generated, RequestId, Sampling};
use super::schedule::Waiting;
use super::sequence::{Plan, Sequence, Tokens};
use super::template::{self, ChatTemplate};
use crate::error::ModelError;
use crate::files;
use crate::loader::{Loader, Quantization, canonical_qwen_name};
use crate::open::{self, open_model};
use crate::preprocess::ImageProcessor;
use crate::qwen::Qwen;
use crate::qwen::cache::CacheShape;
use crate::qwen::config::{self, Generation, QwenConfig};
use crate::qwen::decoder::Output;
use crate::vocabulary::{Piece, Vocabulary};

/// A loaded model that answers requests.
///
/// ```no_run
/// use std::sync::Arc;
/// use pagemill_models::{GenerateRequest, Generator, GeneratorOptions, RgbView};
///
/// # fn main() -> Result<(), pagemill_models::ModelError> {
/// # let (folder, pixels) = (std::path::Path::new("qwen3-vl-2b"), vec![0; 600 * 800 * 3]);
/// let mut generator = Generator::load(folder, &GeneratorOptions::default())?;
/// let processor = generator.processor().expect("it reads pages");
/// let page = RgbView { pixels: &pixels, width_px: 600, height_px: 800 };
/// let page = Arc::new(processor.prepare(page)?);
/// let request = GenerateRequest::ask("Write the page as Markdown.", vec![page]);
/// for answer in generator.generate(vec![request])? {
///     let _text = answer?.text;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Generator {
    pub(super) network: Qwen,
    processor: Option<ImageProcessor>,
    /// Side of the tower's patches in pixels, and how many of them make one side of a token.
    pub(super) patches: Option<(usize, usize)>,
    pub(super) vocabulary: Vocabulary,
    pub(super) vocab_size: usize,
    /// Stands for an image in what the template writes.
    pub(super) image_token: Option<String>,
    pub(super) template: ChatTemplate,
    pub(super) tokens: Tokens,
    pub(super) grammars: Option<Grammars>,
    sampling: Sampling,
    pub(super) shape: CacheShape,
    pub(super) max_cache_bytes: usize,
    pub(super) max_batch: usize,
    max_context: usize,
    pub(super) pass_tokens: usize,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) running: Vec<Sequence>,
    pub(super) prefixes: Prefixes,
    /// What the next step tells first.
    pub(super) events: Vec<Event>,
    next_id: u64,
    memory_bytes: usize,
    load_time: Duration,
}

impl fmt::Debug for Generator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Generator")
            .field("n_waiting", &self.waiting.len())
            .field("n_running", &self.running.len())
            .field("max_context", &self.max_context)
            .finish_non_exhaustive()
    }
}

/// `generation_config.json`, as far as it concerns us.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    eos_token_id: Option<Value>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    fn sampling(&self) -> Sampling {
        let greedy = Sampling::default();
        let repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        if self.do_sample != Some(true) {
            return Sampling {
                repetition_penalty,
                ..greedy
            };
        }
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            // The library's own default, on which such files rely.
            top_k: self.top_k.unwrap_or(50),
            repetition_penalty,
            ..greedy
        }
    }
}

impl Generator {
    /// Loads the model in `folder`, which may hold an adapter whose base is elsewhere.
    ///
    /// # Errors
    /// A file is missing or damaged, the parts do not fit together, the model does not speak or
    /// needs what this crate does not compute, or the device is not available.
    pub fn load(folder: &Path, options: &GeneratorOptions) -> Result<Self, ModelError> {
        let started = Instant::now();
        let model = open_model(folder)?;
        let folders = [folder, model.base.as_path()];
        let config = QwenConfig::read(&model.base)?;
        if !Self::is_generator(folder)? {
            return Err(Self::does_not_speak(config.architecture, &model.base));
        }
        let processor = config.vision.as_ref();
        let processor =
            processor.map(|_| crate::col::open_processor(&folders, options.max_visual_tokens));
        let processor = processor.transpose()?;
        let vocabulary = Vocabulary::read_first(&folders)?;
        let vocab_size = config.text.vocab_size;
        vocabulary.check_size(vocab_size, &model.base)?;
        let Some(pieces) = vocabulary.pieces(vocab_size) else {
            return Err(ModelError::Unsupported {
                field: "decoder".into(),
                found: "not of bytes".into(),
                supported: &["ByteLevel"],
                path: model.base.join("tokenizer.json"),
            });
        };
        let special = pieces.iter().filter_map(|piece| match piece {
            Piece::Special(name) => Some(name.clone()),
            Piece::Text(_) | Piece::Nothing => None,
        });
        let older = config.vision.is_some() && config.generation == Generation::Qwen2_5;
        let template = ChatTemplate::read_first(&folders, older, special.collect())?;
        let settings: Option<GenerationConfig> =
            files::read_optional_json(&model.base.join("generation_config.json"))?;
        let settings = settings.unwrap_or_default();
        let end_ids = end_ids(&settings, &config, &folders, &pieces);
        let image_token = image_token(&config, &pieces, &model.base)?;

        // The output layer is read whole at each step, so it is quantized too, in the format
        // that loses next to nothing.
        let output = options
            .quantize
            .map_or(Output::Kept, |_| Output::Quantized(Quantization::Q8_0));
        let loader_options = options.loader();
        let loader = Loader::new(&model, canonical_qwen_name, &loader_options)?;
        let network = Qwen::load(&config, output, &loader);
        let in_memory = loader.finish()?;
        let mut shape = network.decoder.cache_shape();
        shape.dtype = GeneratorOptions::cache_dtype(shape.dtype, network.decoder.is_quantized());
        let patches = config.vision.as_ref();
        Ok(Self {
            patches: patches.map(|vision| (vision.patch, vision.merge)),
            memory_bytes: in_memory.n_bytes,
            max_context: options
                .max_context
                .unwrap_or(usize::MAX)
                .clamp(1, config.text.max_tokens),
            sampling: settings.sampling(),
            tokens: Tokens { pieces, end_ids },
            max_cache_bytes: options.cache_bytes(),
            max_batch: options.max_batch.max(1),
            pass_tokens: options.pass_tokens(),
            network,
            processor,
            vocabulary,
            vocab_size,
            image_token,
            template,
            grammars: None,
            shape,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::default(),
            events: Vec::new(),
            next_id: 0,
            load_time: started.elapsed(),
        })
    }

    pub(super) fn does_not_speak(architecture: String, base: &Path) -> ModelError {
        ModelError::Unsupported {
            field: "architectures".into(),
            found: architecture,
            supported: &[
                "Qwen2_5_VLForConditionalGeneration",
                "Qwen3VLForConditionalGeneration",
                "Qwen2ForCausalLM",
                "Qwen3ForCausalLM",
            ],
            path: base.join("config.json"),
        }
    }

    /// Whether the model in `folder` speaks, by its configuration; of an adapter, its base's.
    ///
    /// # Errors
    /// The configuration is missing or damaged.
    pub fn is_generator(folder: &Path) -> Result<bool, ModelError> {
        let (_, config) = open::read_config(folder)?;
        Ok(config::speaks(&config))
    }

    /// What makes patches of pixels for this model; `None` if it reads only text.
    pub fn processor(&self) -> Option<&ImageProcessor> {
        self.processor.as_ref()
    }

    /// The most tokens of a prompt and its answer together.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// Tokens of a text, without those of the template around it.
    pub fn count(&self, text: &str) -> usize {
        self.vocabulary.count(text)
    }

    /// Tokens of a request's prompt, template and images included.
    ///
    /// # Errors
    /// Those of [`Generator::submit`] that concern messages and images.
    pub fn count_prompt(&self, request: &GenerateRequest) -> Result<usize, ModelError> {
        Ok(self.prompt(request)?.n_tokens())
    }

    /// How the model's makers have it choose tokens.
    pub fn default_sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Memory of the weights, by their number and formats.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Memory that keys and values take now, or may take: the room of all answers that grow,
    /// and what is kept of a beginning that requests have in common.
    pub fn cache_bytes(&self) -> usize {
        let running = self.running.iter().map(|sequence| sequence.cache.n_bytes());
        running.sum::<usize>() + self.prefixes.n_bytes()
    }

    /// Whether nothing waits, grows or is to be told.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.events.is_empty()
    }

    /// Puts a request behind those that wait. Its answer comes by [`Generator::step`].
    ///
    /// # Errors
    /// It can never be answered: its messages and images do not fit together, a setting makes
    /// no sense, or it needs more context or cache than there is.
    pub fn submit(&mut self, request: GenerateRequest) -> Result<RequestId, ModelError> {
        request.sampling.check()?;
        if request.limits.max_new_tokens == 0 {
            return Err(GenerateProblem::InvalidRequest {
                field: "max_new_tokens",
                problem: "is 0, and must be at least 1".into(),
            }
            .into());
        }
        let prompt = self.prompt(&request)?;
        let n_prompt = prompt.n_tokens();
        if n_prompt >= self.max_context {
            return Err(GenerateProblem::TooLong {
                n_tokens: n_prompt,
                max_context: self.max_context,
            }
            .into());
        }
        let room = n_prompt
            .saturating_add(request.limits.max_new_tokens)
            .min(self.max_context);
        self.check_room(room)?;
        let guide = match &request.constraint {
            Some(constraint) => Some(self.grammars()?.guide(constraint)?),
            None => None,
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Waiting {
            plan: Plan {
                id,
                sampling: request.sampling,
                limits: request.limits,
                max_context: self.max_context,
                n_prompt,
                position: prompt.positions().next,
                submitted: Instant::now(),
            },
            room,
            prompt,
            images: request.images,
            guide,
        });
        Ok(id)
    }

    /// Whether so many tokens fit into the cache when nothing else is there.
    pub(super) fn check_room(&self, n_tokens: usize) -> Result<(), GenerateProblem> {
        let needed_bytes = n_tokens.saturating_mul(self.shape.token_bytes());
        if needed_bytes <= self.max_cache_bytes {
            return Ok(());
        }
        Err(GenerateProblem::TooLarge {
            n_tokens,
            needed_bytes,
            available_bytes: self.max_cache_bytes,
        })
    }

    /// What constraints are held to; made when the first one comes.
    fn grammars(&mut self) -> Result<&mut Grammars, GenerateProblem> {
        let grammars = match self.grammars.take() {
            Some(grammars) => grammars,
            None => Grammars::new(&self.tokens.pieces, &self.tokens.end_ids)?,
        };
        Ok(self.grammars.insert(grammars))
    }

    /// Forgets a request, wherever it is; nothing more is told of it.
    pub fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|waiting| waiting.plan.id != id);
        self.running.retain(|sequence| sequence.id() != id);
        self.events.retain(|event| event.id() != id);
    }

    /// Answers all these requests, and those that were there before; one result for each, in
    /// their order. What happens to others is told by the next [`Generator::step`].
    ///
    /// # Errors
    /// Only what concerns all of them.
    pub fn generate(
        &mut self,
        requests: Vec<GenerateRequest>,
    ) -> Result<Vec<Result<Generated, ModelError>>, ModelError> {
        let mut results: Vec<Option<Result<Generated, ModelError>>> = Vec::new();
        let mut ids = Vec::new();
        for request in requests {
            let submitted = self.submit(request);
            ids.push(submitted.as_ref().ok().copied());
            results.push(submitted.err().map(Err));
        }
        let mut others = Vec::new();
        while results.iter().any(Option::is_none) {
            for event in self.step()? {
                let own = ids.iter().position(|id| *id == Some(event.id()));
                match (own, event) {
                    (Some(place), Event::Done { generated, .. }) => {
                        results[place] = Some(Ok(generated));
                    }
                    (Some(place), Event::Failed { error, .. }) => results[place] = Some(Err(error)),
                    (Some(_), Event::Text { .. }) => {}
                    (None, event) => others.push(event),
                }
            }
        }
        self.events = others;
        Ok(results.into_iter().flatten().collect())
    }
}

/// Tokens that end an answer: as `generation_config.json` has them, or else `config.json`, or
/// else the vocabulary.
fn end_ids(
    settings: &GenerationConfig,
    config: &QwenConfig,
    folders: &[&Path],
    pieces: &[Piece],
) -> Vec<u32> {
    let mut ids = config::token_ids(settings.eos_token_id.as_ref());
    if ids.is_empty() {
        ids.clone_from(&config.end_token_ids);
    }
    if ids.is_empty() {
        let token = folders
            .iter()
            .find_map(|folder| template::end_token(folder));
        let token = token.map(Piece::Special);
        let id = pieces
            .iter()
            .position(|piece| Some(piece) == token.as_ref());
        ids.extend(id.map(|id| id as u32));
    }
    ids.retain(|id| (*id as usize) < pieces.len());
    ids
}

/// The text of the token that stands for images.
fn image_token(
    config: &QwenConfig,
    pieces: &[Piece],
    folder: &Path,
) -> Result<Option<String>, ModelError> {
    if config.vision.is_none() {
        return Ok(None);
    }
    match pieces.get(config.image_token_id as usize) {
        Some(Piece::Special(token)) => Ok(Some(token.clone())),
        _ => Err(ModelError::InvalidSetting {
            field: "image_token_id",
            problem: format!(
                "is {}, which is no special token of `tokenizer.json`",
                config.image_token_id
            ),
            path: folder.join("config.json"),
        }),
    }
}

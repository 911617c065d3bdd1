//! ColQwen2.5 and ColQwen3: a page or a question to one vector for each token
//! ("`ColPali`: Efficient Document Retrieval with Vision Language Models", Faysse et al., 2024).

use std::path::Path;

use candle_core::{D, DType, Tensor};

use crate::embedding::{Embedding, PatchPlaces, Precision};
use crate::error::ModelError;
use crate::linear::Linear;
use crate::loader::{Loader, LoaderOptions, canonical_qwen_name};
use crate::open::open_model;
use crate::preprocess::{Family, Grid, ImageProcessor, Patches, ProcessorOptions};
use crate::qwen::config::QwenConfig;
use crate::qwen::decoder::Output;
use crate::qwen::{Prompt, Qwen};
use crate::vocabulary::Vocabulary;

/// What stands before and after a page's image: `ColQwen2_5_Processor.visual_prompt_prefix`.
pub(crate) const PAGE_PROMPT: [&str; 2] = [
    "<|im_start|>user\n<|vision_start|>",
    "<|vision_end|>Describe the image.<|im_end|><|endoftext|>",
];

/// So many padding tokens follow a question: room in which the model puts what it makes of it.
pub(crate) const N_QUERY_SUFFIX: usize = 10;

/// The head's name in the canonical form of [`canonical_qwen_name`].
const HEAD: &str = "custom_text_proj";

/// What a text is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextRole {
    /// A question, which pages answer.
    #[default]
    Query,
    /// Text that is itself searched.
    Passage,
}

/// A page and question encoder of the `ColPali` family.
pub(crate) struct ColEncoder {
    network: Qwen,
    head: Linear,
    dim: usize,
    processor: ImageProcessor,
    vocabulary: Vocabulary,
    before: Vec<u32>,
    after: Vec<u32>,
    suffix: Vec<u32>,
    /// Longest text, its suffix included.
    max_tokens: usize,
    max_pass_tokens: usize,
}

/// How to load one, beyond its weights.
#[allow(clippy::struct_field_names, reason = "they are limits")]
pub(crate) struct ColOptions {
    pub(crate) max_visual_tokens: Option<usize>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) max_pass_tokens: usize,
}

impl ColEncoder {
    pub(crate) fn load(
        folder: &Path,
        loader_options: &LoaderOptions,
        options: &ColOptions,
    ) -> Result<Self, ModelError> {
        let model = open_model(folder)?;
        let config = QwenConfig::read(&model.base)?;
        // An adapter's folder may bring its own vocabulary and processor; the base has the rest.
        let processor = open_processor(&[folder, &model.base], options.max_visual_tokens)?;
        let vocabulary = Vocabulary::read_first(&[folder, &model.base])?;
        vocabulary.check_size(config.text.vocab_size, &model.base)?;
        let loader = Loader::new(&model, canonical_qwen_name, loader_options)?;
        let dim = config
            .head_dim
            .or_else(|| loader.shape(&format!("{HEAD}.weight"))?.first().copied())
            .unwrap_or(128);
        let bias = loader.contains(&format!("{HEAD}.bias"));
        let network = Qwen::load(&config, Output::Absent, &loader);
        let head = loader.linear(HEAD, config.text.hidden, dim, bias);
        loader.finish()?;
        let [before, after] = PAGE_PROMPT;
        let pad = vocabulary.pad_token().to_owned();
        Ok(Self {
            before: vocabulary.encode(before)?,
            after: vocabulary.encode(after)?,
            suffix: vocabulary.encode(&pad.repeat(N_QUERY_SUFFIX))?,
            max_tokens: options.max_tokens.unwrap_or(usize::MAX).clamp(
                N_QUERY_SUFFIX + 1,
                config.text.max_tokens.max(N_QUERY_SUFFIX + 1),
            ),
            max_pass_tokens: options.max_pass_tokens,
            network,
            head,
            dim,
            processor,
            vocabulary,
        })
    }

    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(crate) fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// Tokens of a page whose image has this grid, those of the prompt included.
    pub(crate) fn n_page_tokens(&self, grid: Grid) -> usize {
        self.before.len() + grid.n_tokens() + self.after.len()
    }

    /// Tokens of a text, those of its suffix included.
    pub(crate) fn n_text_tokens(&self, text: &str) -> usize {
        let n = self.vocabulary.encode(text).map_or(1, |ids| ids.len());
        (n + N_QUERY_SUFFIX).min(self.max_tokens)
    }

    /// The words of a question, each with its tokens.
    pub(crate) fn words(
        &self,
        question: &str,
    ) -> Result<Vec<(String, std::ops::Range<usize>)>, ModelError> {
        self.vocabulary.words(question)
    }

    /// One embedding for each page, in their order. A page's vectors do not depend on the
    /// others: nothing is padded, and no step mixes rows of two pages.
    pub(crate) fn embed_images(
        &self,
        pages: &[&Patches],
        precision: Precision,
    ) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        let sizes = pages.iter().map(|page| self.n_page_tokens(page.grid));
        let mut embeddings = Vec::with_capacity(pages.len());
        for pass in passes(sizes, self.max_pass_tokens) {
            let pages = &pages[pass];
            let prompt = |page: &&Patches| {
                Prompt::default()
                    .text(&self.before)
                    .image(page.grid)
                    .text(&self.after)
            };
            let prompts: Vec<Prompt> = pages.iter().map(prompt).collect();
            let vectors = self.embed_pass(&prompts, pages, precision);
            let vectors = vectors.map_err(ModelError::compute("embedding pages"))?;
            embeddings.extend(vectors.into_iter().zip(pages).map(|(embedding, page)| {
                embedding.with_patches(PatchPlaces {
                    start: self.before.len(),
                    rows: page.grid.rows / page.grid.merge,
                    cols: page.grid.cols / page.grid.merge,
                })
            }));
        }
        Ok(Embedding::check_all(embeddings))
    }

    /// One embedding for each text, in their order; a text that cannot be tokenized fails alone.
    pub(crate) fn embed_texts(
        &self,
        texts: &[&str],
        role: TextRole,
        precision: Precision,
    ) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        let suffix: &[u32] = if role == TextRole::Query {
            &self.suffix
        } else {
            &[]
        };
        let mut results = Vec::with_capacity(texts.len());
        let mut prompts = Vec::with_capacity(texts.len());
        for text in texts {
            let ids = self.vocabulary.encode(text).map(|mut ids| {
                ids.truncate(self.max_tokens - suffix.len());
                ids.extend_from_slice(suffix);
                // An empty passage still is something to the model: its end.
                if ids.is_empty() {
                    ids.extend_from_slice(&self.suffix[..1]);
                }
                prompts.push(Prompt::default().text(&ids));
            });
            results.push(ids);
        }
        let mut embeddings = Vec::with_capacity(prompts.len());
        for pass in passes(prompts.iter().map(Prompt::n_tokens), self.max_pass_tokens) {
            let vectors = self.embed_pass(&prompts[pass], &[], precision);
            embeddings.extend(vectors.map_err(ModelError::compute("embedding texts"))?);
        }
        let mut embeddings = embeddings.into_iter();
        let results = results.into_iter().enumerate().map(|(row, ids)| {
            ids?;
            let embedding = embeddings.next().expect("each prompt has an embedding");
            embedding.checked(row)
        });
        Ok(results.collect())
    }

    fn embed_pass(
        &self,
        prompts: &[Prompt],
        pages: &[&Patches],
        precision: Precision,
    ) -> candle_core::Result<Vec<Embedding>> {
        let laid_out = self.network.lay_out(prompts, pages)?;
        let hidden = self.network.decoder.forward(laid_out.pass())?;
        let vectors = self.head.forward(&hidden)?.to_dtype(DType::F32)?; // [tokens, dim]
        let vectors = unit(&vectors)?;
        Embedding::split(&vectors, &laid_out.rows(), precision)
    }
}

/// What lays pages out: of an adapter's folder and its base's, the first that has its settings.
pub(crate) fn open_processor(
    folders: &[&Path],
    max_visual_tokens: Option<usize>,
) -> Result<ImageProcessor, ModelError> {
    let options = ProcessorOptions {
        max_visual_tokens,
        ..ProcessorOptions::default()
    };
    ImageProcessor::read_first(folders, Family::Qwen, &options)
}

/// Rows brought to length 1.
pub(crate) fn unit(vectors: &Tensor) -> candle_core::Result<Tensor> {
    let lengths = vectors.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    vectors.broadcast_div(&lengths)
}

/// Cuts rows into runs of at most `max_tokens`; a larger row gets a run of its own.
pub(crate) fn passes(
    sizes: impl Iterator<Item = usize>,
    max_tokens: usize,
) -> Vec<std::ops::Range<usize>> {
    let mut passes: Vec<std::ops::Range<usize>> = Vec::new();
    let mut n_tokens = 0;
    for (row, size) in sizes.enumerate() {
        match passes.last_mut() {
            Some(pass) if n_tokens + size <= max_tokens => {
                pass.end = row + 1;
                n_tokens += size;
            }
            _ => {
                passes.push(row..row + 1);
                n_tokens = size;
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests;

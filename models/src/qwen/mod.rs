//! Qwen2.5-VL and Qwen3-VL, and their kin without a tower: pages and text to hidden states.
//!
//! [`config`] reads what a checkpoint says, [`layout`] turns images and prompts into orders and
//! positions, [`vision`] with its two towers turns patches into tokens, and [`decoder`] runs the
//! language model over them, with a [`cache`] where tokens come one after the other.

pub(crate) mod config;

pub(crate) mod layout;

pub(crate) mod vision;

mod vision_2_5;

mod vision_3;

pub(crate) mod cache;

pub(crate) mod decoder;

pub(crate) mod table;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use self::config::QwenConfig;
use self::decoder::{Decoder, Output, Pass};
use self::layout::{Positions, Stretch};
use self::vision::Tower;
use crate::loader::Loader;
use crate::preprocess::{Grid, Patches};

/// Both halves of a network.
pub(crate) struct Qwen {
    /// Absent where the network only reads text.
    tower: Option<Box<dyn Tower>>,
    pub(crate) decoder: Decoder,
    dtype: DType,
    device: Device,
}

/// The tokens of one sequence: stretches of text and of images.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prompt {
    parts: Vec<Part>,
    /// The first token's position: what a cache has comes before.
    start: u32,
}

#[derive(Debug, Clone)]
enum Part {
    Text(Vec<u32>),
    Image(Grid),
}

impl Prompt {
    /// Adds token ids.
    pub(crate) fn text(mut self, ids: &[u32]) -> Self {
        self.parts.push(Part::Text(ids.to_vec()));
        self
    }

    /// Adds an image, whose patches come in the same place of the call's list.
    pub(crate) fn image(mut self, grid: Grid) -> Self {
        self.parts.push(Part::Image(grid));
        self
    }

    /// The text before the first image.
    pub(crate) fn lead(&self) -> &[u32] {
        match self.parts.first() {
            Some(Part::Text(ids)) => ids,
            _ => &[],
        }
    }

    /// Its text, images left out.
    pub(crate) fn text_ids(&self) -> impl Iterator<Item = u32> {
        let ids = self.parts.iter().filter_map(|part| match part {
            Part::Text(ids) => Some(ids.iter().copied()),
            Part::Image(_) => None,
        });
        ids.flatten()
    }

    /// What follows its first `n` tokens, all of them of the lead.
    pub(crate) fn after(&self, n: usize) -> Self {
        let mut rest = self.clone();
        if let Some(Part::Text(ids)) = rest.parts.first_mut() {
            ids.drain(..n);
            rest.start += n as u32;
        }
        rest
    }

    /// Tokens in all.
    pub(crate) fn n_tokens(&self) -> usize {
        let size = |part: &Part| match part {
            Part::Text(ids) => ids.len(),
            Part::Image(grid) => grid.n_tokens(),
        };
        self.parts.iter().map(size).sum()
    }

    /// Where M-RoPE sees the tokens.
    pub(crate) fn positions(&self) -> Positions {
        let stretch = |part: &Part| match part {
            Part::Text(ids) => Stretch::Text(ids.len()),
            Part::Image(grid) => Stretch::Image(*grid),
        };
        Positions::of(
            self.start,
            &self.parts.iter().map(stretch).collect::<Vec<_>>(),
        )
    }
}

/// What [`Qwen::lay_out`] makes of prompts, ready for the decoder.
pub(crate) struct LaidOut {
    hidden: Tensor, // [tokens, hidden]
    positions: Vec<[u32; 3]>,
    n_tokens: Vec<usize>,
    deepstack: Vec<Tensor>,
    /// Rows of `hidden` that the deepstack tensors' rows belong to, ascending.
    image_tokens: Option<Tensor>,
    image_rows: Vec<u32>,
}

/// A stretch of what [`LaidOut`] has of a single sequence.
pub(crate) struct Stretched<'a> {
    hidden: Tensor,
    positions: &'a [[u32; 3]],
    n_tokens: [usize; 1],
    deepstack: Vec<Tensor>,
    image_tokens: Option<Tensor>,
}

impl Stretched<'_> {
    pub(crate) fn pass(&self) -> Pass<'_> {
        Pass {
            hidden: self.hidden.clone(),
            positions: self.positions,
            n_tokens: &self.n_tokens,
            deepstack: &self.deepstack,
            image_tokens: self.image_tokens.as_ref(),
        }
    }
}

impl LaidOut {
    /// Some tokens of a single sequence.
    pub(crate) fn stretch(&self, tokens: Range<usize>) -> Result<Stretched<'_>> {
        let bounds = tokens.start as u32..tokens.end as u32;
        let first = self.image_rows.partition_point(|row| *row < bounds.start);
        let last = self.image_rows.partition_point(|row| *row < bounds.end);
        let own: Vec<u32> = self.image_rows[first..last]
            .iter()
            .map(|row| row - bounds.start)
            .collect();
        let n = own.len();
        let deepstack = if n == 0 { &[][..] } else { &self.deepstack };
        let deepstack = deepstack.iter().map(|extra| extra.narrow(0, first, n));
        Ok(Stretched {
            hidden: self.hidden.narrow(0, tokens.start, tokens.len())?,
            positions: &self.positions[tokens.clone()],
            n_tokens: [tokens.len()],
            deepstack: deepstack.collect::<Result<_>>()?,
            image_tokens: if n == 0 {
                None
            } else {
                Some(Tensor::from_vec(own, n, self.hidden.device())?)
            },
        })
    }

    pub(crate) fn pass(&self) -> Pass<'_> {
        Pass {
            hidden: self.hidden.clone(),
            positions: &self.positions,
            n_tokens: &self.n_tokens,
            deepstack: &self.deepstack,
            image_tokens: self.image_tokens.as_ref(),
        }
    }

    /// The rows of each sequence.
    pub(crate) fn rows(&self) -> Vec<Range<usize>> {
        layout::ranges(self.n_tokens.iter().copied())
    }
}

impl Qwen {
    /// Takes the tensors of both halves.
    pub(crate) fn load(config: &QwenConfig, output: Output, loader: &Loader<'_>) -> Self {
        Self {
            tower: vision::load(config, loader),
            decoder: Decoder::load(config, output, loader),
            dtype: loader.dtype(),
            device: loader.device().clone(),
        }
    }

    /// Runs the images through the tower and puts their tokens into the prompts' places.
    /// `images`: in the order in which the prompts name them.
    pub(crate) fn lay_out(&self, prompts: &[Prompt], images: &[&Patches]) -> Result<LaidOut> {
        let grids: Vec<Grid> = images.iter().map(|patches| patches.grid).collect();
        let (seen, deepstack) = match &self.tower {
            _ if images.is_empty() => (None, Vec::new()),
            None => candle_core::bail!("the network has no vision tower"),
            Some(tower) => {
                let pixels = vision::pack(&**tower, images, self.dtype, &self.device)?;
                let (seen, deepstack) = tower.forward(&pixels, &grids)?;
                (Some(seen), deepstack)
            }
        };
        // Both kinds of tokens in one table, and each token's place in it.
        let text = prompts.iter().flat_map(|prompt| &prompt.parts);
        let text = text.filter_map(|part| match part {
            Part::Text(ids) => Some(ids.as_slice()),
            Part::Image(_) => None,
        });
        let ids = text.collect::<Vec<_>>().concat();
        let mut places = Vec::new();
        let mut image_tokens = Vec::new();
        let (mut next_text, mut next_seen) = (0, ids.len());
        for part in prompts.iter().flat_map(|prompt| &prompt.parts) {
            let (next, n) = match part {
                Part::Text(ids) => (&mut next_text, ids.len()),
                Part::Image(grid) => {
                    let first = places.len() as u32;
                    image_tokens.extend(first..first + grid.n_tokens() as u32);
                    (&mut next_seen, grid.n_tokens())
                }
            };
            places.extend((*next..*next + n).map(|place| place as u32));
            *next += n;
        }
        let table = match (seen, ids.is_empty()) {
            (Some(seen), true) => seen,
            (Some(seen), false) => Tensor::cat(&[self.decoder.embed(&ids)?, seen], 0)?,
            (None, _) => self.decoder.embed(&ids)?,
        };
        let n = places.len();
        let places = Tensor::from_vec(places, n, &self.device)?;
        let image_rows = image_tokens;
        let image_tokens = if deepstack.is_empty() {
            None
        } else {
            Some(Tensor::new(image_rows.as_slice(), &self.device)?)
        };
        Ok(LaidOut {
            hidden: table.index_select(&places, 0)?,
            positions: prompts
                .iter()
                .flat_map(|prompt| prompt.positions().of_tokens)
                .collect(),
            n_tokens: prompts.iter().map(Prompt::n_tokens).collect(),
            deepstack,
            image_tokens,
            image_rows,
        })
    }
}

#[cfg(test)]
mod tests;

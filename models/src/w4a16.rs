//! Checkpoints of 4-bit weights that meet 16-bit activations: GPTQ, AWQ and what AutoRound
//! exports in either's layout.
//!
//! A matrix `x` is four tensors here: `x.qweight`, eight weights a word, `x.qzeros`, eight
//! zero points a word, `x.scales`, and with GPTQ perhaps `x.g_idx`, the group of each input.
//! Which layout it is shows in the shapes; which matrices are packed, in that they have a
//! `qweight` ("GPTQ", Frantar et al., 2022; "AWQ", Lin et al., 2023).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use half::f16;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{ModelError, ShapeMismatch};
use crate::files;
use crate::quantized::QuantizedMatrix;
use crate::quantized::stored::Groups;
use crate::weights::Weights;

const QWEIGHT: &str = ".qweight";

/// Weights in a word.
const N_WORD: usize = 8;

/// The output of each of a word's numbers, from the low bits up, in AWQ's layout.
const AWQ_ORDER: [usize; N_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Places of the settings, beside `config.json`.
const SETTINGS: [&str; 2] = ["quantization_config.json", "quantize_config.json"];

/// What changes the weights' meaning.
#[derive(Debug, Default, Deserialize)]
struct Settings {
    bits: Option<u64>,
    group_size: Option<i64>,
    /// `gptq_v2` stores zero points as they are.
    checkpoint_format: Option<String>,
}

/// One packed matrix.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    /// Its name without `weight`, with the dot.
    stem: String,
    /// `[n_out, n_in]`.
    pub(crate) shape: [usize; 2],
    group_size: usize,
    layout: Layout,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Weights `[n_in / 8, n_out]`; a zero point is one more than what is stored, or that.
    Gptq { one_less: bool },
    /// Weights `[n_in, n_out / 8]`.
    Awq,
}

/// The packed matrices among `weights`, by the name that the whole one would have.
///
/// # Errors
/// Numbers of other than 4 bits, groups that are no multiple of 32, or shapes that do not fit
/// together.
pub(crate) fn find(
    weights: &Weights,
    folder: &Path,
) -> Result<HashMap<String, PackedMatrix>, ModelError> {
    let mut stems = weights
        .names()
        .filter_map(|name| name.strip_suffix(QWEIGHT));
    let mut matrices = HashMap::new();
    let Some(first) = stems.next() else {
        return Ok(matrices);
    };
    let (settings, path) = settings(folder)?;
    let bits = settings.bits.unwrap_or(4);
    if bits != 4 {
        return Err(ModelError::Unsupported {
            field: "bits".into(),
            found: bits.to_string(),
            supported: &["4"],
            path,
        });
    }
    for stem in std::iter::once(first).chain(stems) {
        let matrix = PackedMatrix::of(weights, stem, &settings, &path)?;
        matrices.insert(format!("{stem}.weight"), matrix);
    }
    Ok(matrices)
}

fn settings(folder: &Path) -> Result<(Settings, PathBuf), ModelError> {
    let path = folder.join("config.json");
    let config: Option<Value> = files::read_optional_json(&path)?;
    if let Some(own) = config
        .as_ref()
        .and_then(|config| config.get("quantization_config"))
    {
        let own = serde_json::from_value(own.clone());
        let own = own.map_err(|source| ModelError::Json {
            path: path.clone(),
            source,
        })?;
        return Ok((own, path));
    }
    for name in SETTINGS {
        let beside = folder.join(name);
        if let Some(own) = files::read_optional_json(&beside)? {
            return Ok((own, beside));
        }
    }
    Ok((Settings::default(), path))
}

impl PackedMatrix {
    fn of(
        weights: &Weights,
        stem: &str,
        settings: &Settings,
        path: &Path,
    ) -> Result<Self, ModelError> {
        let stem = format!("{stem}.");
        let name = |part: &str| format!("{stem}{part}");
        let shape = |part: &str| weights.shape(&name(part)).map(<[usize]>::to_vec);
        let misshapen = |part: &str, expected: Vec<usize>| ModelError::MisshapenTensors {
            mismatches: vec![ShapeMismatch {
                name: name(part),
                expected,
                found: shape(part).unwrap_or_default(),
            }],
            path: weights.path().to_owned(),
        };
        let Some(scales) = shape("scales") else {
            return Err(ModelError::MissingTensors {
                names: vec![name("scales")],
                path: weights.path().to_owned(),
            });
        };
        let (&[n_groups, n_out], Some(&[height, width])) =
            (scales.as_slice(), shape("qweight").as_deref())
        else {
            return Err(misshapen("scales", vec![0, 0]));
        };
        let one_less = settings.checkpoint_format.as_deref() != Some("gptq_v2");
        let (n_in, layout) = if width == n_out {
            (height * N_WORD, Layout::Gptq { one_less })
        } else if n_out.is_multiple_of(N_WORD) && width == n_out / N_WORD {
            (height, Layout::Awq)
        } else {
            return Err(misshapen("qweight", vec![height, n_out]));
        };
        let group_size = match settings.group_size {
            Some(size) if size > 0 => usize::try_from(size).unwrap_or(n_in),
            Some(_) => n_in,
            None => n_in / n_groups.max(1),
        };
        if group_size < n_in && (group_size == 0 || !group_size.is_multiple_of(32)) {
            return Err(ModelError::Unsupported {
                field: "group_size".into(),
                found: group_size.to_string(),
                supported: &["32", "64", "128", "-1"],
                path: path.to_owned(),
            });
        }
        let n_expected = n_in.div_ceil(group_size.max(1));
        if n_in == 0 || n_groups != n_expected {
            return Err(misshapen("scales", vec![n_expected, n_out]));
        }
        let n_zero_words = n_out.div_ceil(N_WORD);
        if shape("qzeros").is_some_and(|shape| shape != [n_groups, n_zero_words]) {
            return Err(misshapen("qzeros", vec![n_groups, n_zero_words]));
        }
        if shape("g_idx").is_some_and(|shape| shape != [n_in]) {
            return Err(misshapen("g_idx", vec![n_in]));
        }
        Ok(Self {
            shape: [n_out, n_in],
            group_size,
            layout,
            path: weights.path().to_owned(),
            stem,
        })
    }

    /// The matrix in 4 bits, for `device`. `None` where that would lose something: scales
    /// that are no f16, or groups of unlike sizes; it is dequantized then.
    ///
    /// # Errors
    /// Its tensors are of other types than they should, or the device has no room.
    pub(crate) fn load(
        &self,
        weights: &Weights,
        device: &Device,
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        let numbers = self.read(weights)?;
        let [n_out, n_in] = self.shape;
        let mut scales = Vec::with_capacity(numbers.scales.len());
        for scale in &numbers.scales {
            let half = f16::from_f32(*scale);
            if half.to_f32().to_bits() != scale.to_bits() {
                return Ok(None);
            }
            scales.push(half.to_bits());
        }
        let order = match &numbers.groups {
            None => None,
            Some(groups) => {
                let mut order: Vec<u32> = (0..n_in as u32).collect();
                order.sort_by_key(|input| groups[*input as usize]);
                let mut sorted = order.iter().enumerate();
                if sorted.any(|(place, input)| groups[*input as usize] != place / self.group_size) {
                    return Ok(None);
                }
                Some(order)
            }
        };
        let quants = |output: usize, block: usize, quants: &mut [u8; 32]| {
            let inputs = block * 32..n_in.min(block * 32 + 32);
            for (input, quant) in inputs.zip(quants) {
                let input = match &order {
                    Some(order) => order[input] as usize,
                    None => input,
                };
                *quant = numbers.quant(input, output);
            }
        };
        let straight = |output: usize, block: usize, quants: &mut [u8; 32]| {
            // Eight inputs of an output are a word; the last may lack some.
            for (word, eight) in quants.as_chunks_mut::<N_WORD>().0.iter_mut().enumerate() {
                let row = block * (32 / N_WORD) + word;
                if row * N_WORD < n_in {
                    *eight = numbers.words.eight(row * n_out + output);
                }
            }
        };
        let columns = |output: usize, block: usize, quants: &mut [u8; 32]| {
            let (wide, place) = (n_out / N_WORD, place_in_awq(output));
            let first = block * 32 * wide + output / N_WORD;
            let n = (n_in - block * 32).min(32);
            for (input, quant) in quants[..n].iter_mut().enumerate() {
                *quant = numbers.words.number(first + input * wide, place);
            }
        };
        let groups = Groups {
            n_in,
            n_out,
            group_size: self.group_size,
            quants: match self.layout {
                _ if order.is_some() => &quants,
                Layout::Gptq { .. } => &straight,
                Layout::Awq => &columns,
            },
            scale: &|output, group| (scales[group * n_out + output], numbers.zero(output, group)),
            order: order.clone(),
        };
        let matrix = QuantizedMatrix::of_groups(groups, device);
        let matrix = matrix.map_err(ModelError::compute("repacking a weight"))?;
        self.forget(weights);
        Ok(Some(matrix))
    }

    /// The matrix as floats, `[n_out, n_in]` f32 on the processor.
    ///
    /// # Errors
    /// Its tensors are of other types than they should.
    pub(crate) fn dequantize(&self, weights: &Weights) -> Result<Tensor, ModelError> {
        let numbers = self.read(weights)?;
        let [n_out, n_in] = self.shape;
        let mut values = vec![0.0; n_out * n_in];
        let rows = values.par_chunks_mut(n_in).enumerate();
        rows.for_each(|(output, row)| {
            for (input, value) in row.iter_mut().enumerate() {
                let group = match &numbers.groups {
                    Some(groups) => groups[input],
                    None => input / self.group_size,
                };
                let quant = i16::from(numbers.quant(input, output));
                let zero = i16::from(numbers.zero(output, group));
                *value = f32::from(quant - zero) * numbers.scales[group * n_out + output];
            }
        });
        self.forget(weights);
        Tensor::from_vec(values, (n_out, n_in), &Device::Cpu)
            .map_err(ModelError::compute("dequantizing a weight"))
    }

    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.stem)
    }

    fn forget(&self, weights: &Weights) {
        weights.forget(&self.name("qweight"));
    }

    fn read<'a>(&self, weights: &'a Weights) -> Result<Numbers<'a>, ModelError> {
        let [n_out, n_in] = self.shape;
        let n_groups = n_in.div_ceil(self.group_size);
        let scales = weights.f32_values(&self.name("scales"))?;
        let words = Words(weights.words(&self.name("qweight"))?);
        let zeros = self.name("qzeros");
        let zeros = weights.contains(&zeros).then(|| weights.words(&zeros));
        let zeros = zeros.transpose()?.map(Words);
        let mut groups = None;
        let name = self.name("g_idx");
        if weights.contains(&name) && matches!(self.layout, Layout::Gptq { .. }) {
            let own: Vec<usize> = weights
                .words(&name)?
                .iter()
                .map(|word| u32::from_le_bytes(*word) as usize)
                .collect();
            if let Some(group) = own.iter().find(|group| **group >= n_groups) {
                return Err(ModelError::InvalidSetting {
                    field: "g_idx",
                    problem: format!("of `{name}` names group {group} of {n_groups}"),
                    path: self.path.clone(),
                });
            }
            let usual = own
                .iter()
                .enumerate()
                .all(|(input, group)| *group == input / self.group_size);
            groups = (!usual).then_some(own);
        }
        Ok(Numbers {
            layout: self.layout,
            n_out,
            words,
            zeros,
            scales,
            groups,
        })
    }
}

/// What a file has of one matrix.
struct Numbers<'a> {
    layout: Layout,
    n_out: usize,
    words: Words<'a>,
    /// `[groups, ceil(n_out / 8)]`; absent of symmetric weights, whose zero point is 8.
    zeros: Option<Words<'a>>,
    /// `[groups, n_out]`.
    scales: Vec<f32>,
    /// The group of each input, where groups do not just follow each other.
    groups: Option<Vec<usize>>,
}

impl Numbers<'_> {
    fn quant(&self, input: usize, output: usize) -> u8 {
        match self.layout {
            Layout::Gptq { .. } => {
                let word = input / N_WORD * self.n_out + output;
                self.words.number(word, input % N_WORD)
            }
            Layout::Awq => {
                let word = input * (self.n_out / N_WORD) + output / N_WORD;
                self.words.number(word, place_in_awq(output))
            }
        }
    }

    fn zero(&self, output: usize, group: usize) -> u8 {
        let Some(zeros) = &self.zeros else {
            return 8;
        };
        let word = group * self.n_out.div_ceil(N_WORD) + output / N_WORD;
        match self.layout {
            Layout::Gptq { one_less } => zeros.number(word, output % N_WORD) + u8::from(one_less),
            Layout::Awq => zeros.number(word, place_in_awq(output)),
        }
    }
}

/// Which of a word's numbers an output's is.
fn place_in_awq(output: usize) -> usize {
    let own = output % N_WORD;
    // The inverse of the order: 0 4 1 5 2 6 3 7.
    own / 2 + own % 2 * (N_WORD / 2)
}

const _: () = assert!(AWQ_ORDER[1] == 2 && AWQ_ORDER[4] == 1);

/// Words of eight numbers.
struct Words<'a>(&'a [[u8; 4]]);

impl Words<'_> {
    fn number(&self, word: usize, place: usize) -> u8 {
        let byte = self.0[word][place / 2];
        if place.is_multiple_of(2) {
            byte & 15
        } else {
            byte >> 4
        }
    }

    fn eight(&self, word: usize) -> [u8; N_WORD] {
        let [a, b, c, d] = self.0[word];
        [
            a & 15,
            a >> 4,
            b & 15,
            b >> 4,
            c & 15,
            c >> 4,
            d & 15,
            d >> 4,
        ]
    }
}

#[cfg(test)]
mod tests;

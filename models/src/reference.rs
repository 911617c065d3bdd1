//! For tests: what the reference implementations gave, as files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};

use crate::preprocess::{ImageProcessor, Patches, RgbView};

/// A folder of this crate's own fixtures.
pub(crate) fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// A folder of the larger set that lies beside the project, if it is there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PAGEMILL_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let folder = root.join("reference").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: there is no shared/reference/{name}");
    None
}

/// The tensors of one file.
pub(crate) struct Expected {
    floats: HashMap<String, (Vec<usize>, Vec<f32>)>,
    integers: HashMap<String, (Vec<usize>, Vec<i64>)>,
    metadata: HashMap<String, String>,
}

impl Expected {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut integers) = (HashMap::new(), HashMap::new());
        for (name, view) in tensors.tensors() {
            let shape = view.shape().to_vec();
            let data = view.data();
            match view.dtype() {
                Dtype::F32 => {
                    let numbers = data.as_chunks::<4>().0.iter();
                    let numbers = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
                    floats.insert(name, (shape, numbers));
                }
                Dtype::I64 => {
                    let numbers = data.as_chunks::<8>().0.iter();
                    let numbers = numbers.map(|bytes| i64::from_le_bytes(*bytes)).collect();
                    integers.insert(name, (shape, numbers));
                }
                Dtype::I32 => {
                    let numbers = data.as_chunks::<4>().0.iter();
                    let numbers = numbers.map(|bytes| i32::from_le_bytes(*bytes).into());
                    integers.insert(name, (shape, numbers.collect()));
                }
                Dtype::U8 => {
                    let numbers = data.iter().map(|byte| (*byte).into()).collect();
                    integers.insert(name, (shape, numbers));
                }
                other => panic!("{name} is {other:?}"),
            }
        }
        Self {
            floats,
            integers,
            metadata: header.metadata().clone().unwrap_or_default(),
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.integers.contains_key(name)
    }

    /// Shape and numbers.
    pub(crate) fn floats(&self, name: &str) -> (&[usize], &[f32]) {
        let (shape, numbers) = &self.floats[name];
        (shape, numbers)
    }

    pub(crate) fn integers(&self, name: &str) -> (&[usize], &[i64]) {
        let (shape, numbers) = &self.integers[name];
        (shape, numbers)
    }

    /// Takes over the attention mask of another file.
    pub(crate) fn take_mask(&mut self, other: &Self) {
        let mask = other.integers["attention_mask"].clone();
        self.integers.insert("attention_mask".into(), mask);
    }

    /// What the file's metadata has as JSON.
    pub(crate) fn json(&self, key: &str) -> serde_json::Value {
        serde_json::from_str(&self.metadata[key]).unwrap()
    }

    /// A list of strings in the file's metadata.
    pub(crate) fn strings(&self, key: &str) -> Vec<String> {
        serde_json::from_str(&self.metadata[key]).unwrap()
    }

    /// The rows of sequence `row` of `[batch, tokens, dim]` that `mask` `[batch, tokens]` keeps.
    pub(crate) fn unpadded(&self, name: &str, mask: &str, row: usize) -> Vec<f32> {
        let (shape, numbers) = self.floats(name);
        let (_, mask) = self.integers(mask);
        let (n_tokens, dim) = (shape[1], shape[2]);
        let kept = (row * n_tokens..(row + 1) * n_tokens).filter(|token| mask[*token] != 0);
        kept.flat_map(|token| &numbers[token * dim..(token + 1) * dim])
            .copied()
            .collect()
    }
}

/// A picture as the processor makes it.
pub(crate) fn patches(processor: &ImageProcessor, path: &Path) -> Patches {
    let image = image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let image = image.to_rgb8();
    let view = RgbView {
        pixels: image.as_raw(),
        width_px: image.width(),
        height_px: image.height(),
    };
    processor.prepare(view).unwrap()
}

/// The largest difference; infinite where the lengths differ or a number is none.
pub(crate) fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    if ours.len() != theirs.len() {
        return f32::INFINITY;
    }
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, next| {
        if next >= 0.0 {
            worst.max(next)
        } else {
            f32::INFINITY
        }
    })
}

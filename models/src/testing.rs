//! For tests: a tiny seeded BERT on disk, and BERT once more in plain f64 loops.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

/// The tokens of the tiny vocabulary, by id.
const TOKENS: [&str; 12] = [
    "[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", "f", "##a", "##b",
];

/// Writes a `WordPiece` tokenizer with the truncation and padding that MiniLM ships.
pub(crate) fn write_tokenizer(folder: &Path) {
    let vocabulary: HashMap<&str, usize> = TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| (*token, id))
        .collect();
    let special = |id: usize| {
        serde_json::json!({"id": id, "content": TOKENS[id], "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "lowercase": true,
            "handle_chinese_chars": true, "strip_accents": null},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())
        .expect("the test's own folder can be written");
}

/// Tensors by name: shape and values.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A tiny BERT, kept in memory for the reference and changed by tests before it is written.
#[derive(Clone)]
pub(crate) struct TinyBert {
    pub(crate) hidden: usize,
    pub(crate) wide: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_positions: usize,
    pub(crate) tensors: Tensors,
}

impl TinyBert {
    /// The same weights for the same seed. A head's width is no multiple of any register's.
    pub(crate) fn seeded(seed: u64) -> Self {
        let (hidden, wide, n_layers, n_heads, n_positions) = (40, 56, 2, 2, 160);
        let mut random = Random(seed);
        let mut tensors = Tensors::new();
        let mut put = |name: String, shape: &[usize], center: f32, spread: f32| {
            let n = shape.iter().product();
            let values = (0..n).map(|_| center + spread * random.next()).collect();
            tensors.insert(name, (shape.to_vec(), values));
        };
        let norm = [("weight", 1.0), ("bias", 0.0)];
        put(
            "embeddings.word_embeddings.weight".into(),
            &[TOKENS.len(), hidden],
            0.0,
            1.0,
        );
        put(
            "embeddings.position_embeddings.weight".into(),
            &[n_positions, hidden],
            0.0,
            1.0,
        );
        put(
            "embeddings.token_type_embeddings.weight".into(),
            &[2, hidden],
            0.0,
            1.0,
        );
        for (part, center) in norm {
            put(
                format!("embeddings.LayerNorm.{part}"),
                &[hidden],
                center,
                0.3,
            );
        }
        for layer in 0..n_layers {
            let at = |rest: &str| format!("encoder.layer.{layer}.{rest}");
            for (name, n_out, n_in) in [
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("intermediate.dense", wide, hidden),
                ("output.dense", hidden, wide),
            ] {
                put(at(&format!("{name}.weight")), &[n_out, n_in], 0.0, 0.4);
                put(at(&format!("{name}.bias")), &[n_out], 0.0, 0.4);
            }
            for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
                for (part, center) in norm {
                    put(at(&format!("{name}.{part}")), &[hidden], center, 0.3);
                }
            }
        }
        Self {
            hidden,
            wide,
            n_layers,
            n_heads,
            n_positions,
            tensors,
        }
    }

    /// Writes `config.json`, `tokenizer.json` and `model.safetensors`.
    pub(crate) fn write(&self, folder: &Path) {
        let config = serde_json::json!({
            "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
            "vocab_size": TOKENS.len(), "hidden_size": self.hidden, "type_vocab_size": 2,
            "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads,
            "intermediate_size": self.wide, "max_position_embeddings": self.n_positions,
            "layer_norm_eps": 1e-12
        });
        fs::write(folder.join("config.json"), config.to_string())
            .expect("the test's own folder can be written");
        write_tokenizer(folder);
        write_tensors(&folder.join("model.safetensors"), &self.tensors);
    }

    fn get(&self, name: &str) -> Vec<f64> {
        self.tensors[name]
            .1
            .iter()
            .map(|value| f64::from(*value))
            .collect()
    }

    /// `x W' + b` for `x` of one row.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.get(&format!("{name}.weight"));
        let bias = self.get(&format!("{name}.bias"));
        let row = |(weights, bias): (&[f64], &f64)| dot(weights, x) + bias;
        weight.chunks_exact(x.len()).zip(&bias).map(row).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.get(&format!("{name}.weight"));
        let bias = self.get(&format!("{name}.bias"));
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (variance + 1e-12).sqrt();
        (0..x.len())
            .map(|i| (x[i] - mean) * scale * weight[i] + bias[i])
            .collect()
    }

    /// The unit-length mean of the last hidden states, straight from the paper.
    pub(crate) fn reference(&self, ids: &[u32]) -> Vec<f64> {
        let words = self.get("embeddings.word_embeddings.weight");
        let positions = self.get("embeddings.position_embeddings.weight");
        let types = self.get("embeddings.token_type_embeddings.weight");
        let embed = |(position, id): (usize, &u32)| {
            let sum: Vec<f64> = (0..self.hidden)
                .map(|i| {
                    words[*id as usize * self.hidden + i]
                        + positions[position * self.hidden + i]
                        + types[i]
                })
                .collect();
            self.norm("embeddings.LayerNorm", &sum)
        };
        let mut x: Vec<Vec<f64>> = ids.iter().enumerate().map(embed).collect();
        for layer in 0..self.n_layers {
            x = self.reference_layer(&format!("encoder.layer.{layer}"), &x);
        }
        let mean: Vec<f64> = (0..self.hidden)
            .map(|i| x.iter().map(|x| x[i]).sum::<f64>() / x.len() as f64)
            .collect();
        let length = dot(&mean, &mean).sqrt();
        mean.iter().map(|value| value / length).collect()
    }

    fn reference_layer(&self, at: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let project = |part: &str| -> Vec<Vec<f64>> {
            let name = format!("{at}.attention.self.{part}");
            x.iter().map(|x| self.linear(&name, x)).collect()
        };
        let (query, key, value) = (project("query"), project("key"), project("value"));
        let dim = self.hidden / self.n_heads;
        let attend = |(x, query): (&Vec<f64>, &Vec<f64>)| {
            let mut attended = vec![0.0; self.hidden];
            for head in 0..self.n_heads {
                let own = head * dim..(head + 1) * dim;
                let score = |key: &Vec<f64>| {
                    (dot(&query[own.clone()], &key[own.clone()]) / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = key.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(&value) {
                    for i in own.clone() {
                        attended[i] += score / sum * value[i];
                    }
                }
            }
            let out = self.linear(&format!("{at}.attention.output.dense"), &attended);
            let x = self.norm(&format!("{at}.attention.output.LayerNorm"), &add(&out, x));
            let mut wide = self.linear(&format!("{at}.intermediate.dense"), &x);
            for value in &mut wide {
                let erf = candle_core::cpu::erf::erf_f64(*value / 2.0_f64.sqrt());
                *value *= 0.5 * (1.0 + erf);
            }
            let out = self.linear(&format!("{at}.output.dense"), &wide);
            self.norm(&format!("{at}.output.LayerNorm"), &add(&out, &x))
        };
        x.iter().zip(&query).map(attend).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Writes f32 tensors to one `.safetensors` file.
pub(crate) fn write_tensors(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name])
            .expect("as many bytes as the shape says");
        (name.clone(), view)
    });
    let views: BTreeMap<String, TensorView> = views.collect();
    safetensors::serialize_to_file(views, None, path)
        .expect("the test's own folder can be written");
}

/// Numbers from -1 to 1, by splitmix64: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}

/// The folder of outputs made by the Hugging Face implementations, if this machine has it.
pub(crate) fn reference_folder(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("../../shared/reference").join(name);
    folder.is_dir().then_some(folder)
}

/// The largest absolute difference; panics when the lengths differ.
pub(crate) fn largest_difference(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    ours.iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

//! Small checkpoints of every layout, written here, against plain loops.

use std::fs;

use candle_core::DType;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::loader::canonical_qwen_name;
use crate::quantized::stored::tests::Numbers;

const N_IN: usize = 128;
const N_OUT: usize = 40;
const NAME: &str = "language_model.layers.0.self_attn.q_proj.weight";
const STEM: &str = "model.layers.0.self_attn.q_proj";

fn quant(input: usize, output: usize) -> u8 {
    ((input * 11 + output * 5 + input / 7) % 16) as u8
}

/// From 1 to 16 in GPTQ's layout, as stored 0 to 15 stand for; from 0 to 15 in AWQ's.
fn zero(group: usize, output: usize, awq: bool) -> u8 {
    ((group * 3 + output) % 16) as u8 + u8::from(!awq)
}

fn scale(group: usize, output: usize) -> f16 {
    f16::from_f32(0.01 * (1 + (group + output) % 13) as f32)
}

/// Numbers of 4 bits in words.
fn words(n: usize, number: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let word = |word| (0..N_WORD).fold(0_u32, |sum, k| sum | u32::from(number(word, k)) << (4 * k));
    (0..n).flat_map(|index| word(index).to_le_bytes()).collect()
}

struct Case {
    awq: bool,
    group_size: usize,
    /// `g_idx`, if the file has one.
    groups: Option<Vec<i32>>,
    settings: &'static str,
}

fn case(awq: bool, group_size: usize, settings: &'static str) -> Case {
    Case {
        awq,
        group_size,
        groups: None,
        settings,
    }
}

impl Case {
    fn group(&self, input: usize) -> usize {
        match &self.groups {
            Some(groups) => groups[input] as usize,
            None => input / self.group_size,
        }
    }

    fn weight(&self, input: usize, output: usize) -> f32 {
        let group = self.group(input);
        let quant = i16::from(quant(input, output)) - i16::from(zero(group, output, self.awq));
        f32::from(quant) * scale(group, output).to_f32()
    }

    fn write(&self, scales: (Dtype, &[u8])) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let n_groups = N_IN.div_ceil(self.group_size);
        let wide = N_OUT / N_WORD;
        let (qweight, shape) = if self.awq {
            let number =
                |word: usize, k: usize| quant(word / wide, word % wide * N_WORD + AWQ_ORDER[k]);
            (words(N_IN * wide, number), vec![N_IN, wide])
        } else {
            let number = |word: usize, k: usize| quant(word / N_OUT * N_WORD + k, word % N_OUT);
            (
                words(N_IN / N_WORD * N_OUT, number),
                vec![N_IN / N_WORD, N_OUT],
            )
        };
        let qzeros = words(n_groups * wide, |word, k| {
            let k = if self.awq { AWQ_ORDER[k] } else { k };
            let output = word % wide * N_WORD + k;
            zero(word / wide, output, self.awq) - u8::from(!self.awq)
        });
        let g_idx: Option<Vec<u8>> = self.groups.as_ref().map(|groups| {
            groups
                .iter()
                .flat_map(|group| group.to_le_bytes())
                .collect()
        });
        let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).unwrap();
        let mut tensors = vec![
            (format!("{STEM}.qweight"), view(Dtype::I32, shape, &qweight)),
            (
                format!("{STEM}.qzeros"),
                view(Dtype::I32, vec![n_groups, wide], &qzeros),
            ),
            (
                format!("{STEM}.scales"),
                view(scales.0, vec![n_groups, N_OUT], scales.1),
            ),
        ];
        if let Some(g_idx) = &g_idx {
            let view = view(Dtype::I32, vec![N_IN], g_idx);
            tensors.push((format!("{STEM}.g_idx"), view));
        }
        let file = safetensors::serialize(tensors, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let config = format!(r#"{{"quantization_config": {}}}"#, self.settings);
        fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    fn usual_scales(&self) -> Vec<u8> {
        let n_groups = N_IN.div_ceil(self.group_size);
        let all = (0..n_groups * N_OUT).map(|index| scale(index / N_OUT, index % N_OUT));
        all.flat_map(f16::to_le_bytes).collect()
    }

    /// Opens it, compares the floats to the bit and the product with rows.
    fn check(&self, what: &str, stays: bool) {
        let folder = self.write((Dtype::F16, &self.usual_scales()));
        let checkpoint = Checkpoint::open(folder.path(), canonical_qwen_name).unwrap();
        assert_eq!(checkpoint.shape(NAME), Some(&[N_OUT, N_IN][..]), "{what}");
        let floats = checkpoint.tensor(NAME, DType::F32, &Device::Cpu).unwrap();
        let rows: Vec<Vec<f32>> = floats.to_vec2().unwrap();
        for (output, row) in rows.iter().enumerate() {
            for (input, weight) in row.iter().enumerate() {
                let exact = self.weight(input, output);
                assert_eq!(weight.to_bits(), exact.to_bits(), "{what} {input} {output}");
            }
        }
        let matrix = checkpoint.matrix(NAME, &Device::Cpu).unwrap();
        assert_eq!(matrix.is_some(), stays, "{what}");
        let Some(matrix) = matrix else { return };
        let x = Tensor::randn(0_f32, 1.0, (5, N_IN), &Device::Cpu).unwrap();
        let exact = x.matmul(&floats.t().unwrap()).unwrap();
        let difference = (matrix.forward(&x, None).unwrap() - &exact).unwrap();
        let size = |tensor: &Tensor| {
            let sum = tensor.sqr().unwrap().sum_all().unwrap();
            sum.to_scalar::<f32>().unwrap().sqrt()
        };
        assert!(size(&difference) < 0.015 * size(&exact), "{what}");
        assert!(matrix.n_bytes() <= (N_OUT + 24) * N_IN * 5 / 8, "{what}");
    }

    fn refusal(&self) -> String {
        let folder = self.write((Dtype::F16, &self.usual_scales()));
        let opened = Checkpoint::open(folder.path(), canonical_qwen_name);
        opened.map(|_| ()).unwrap_err().to_string()
    }
}

#[test]
fn every_layout_and_group_size_is_read() {
    case(
        false,
        32,
        r#"{"bits": 4, "group_size": 32, "quant_method": "gptq"}"#,
    )
    .check("gptq", true);
    case(false, 64, r#"{"bits": 4, "group_size": 64, "sym": false}"#).check("gptq 64", true);
    case(false, 128, r#"{"bits": 4, "group_size": -1}"#).check("gptq whole", true);
    case(false, 64, "{}").check("gptq without settings", true);
    case(
        true,
        32,
        r#"{"bits": 4, "group_size": 32, "quant_method": "awq"}"#,
    )
    .check("awq", true);
    case(true, 128, r#"{"bits": 4, "group_size": 128}"#).check("awq whole", true);
}

#[test]
fn groups_of_inputs_in_any_order_are_read() {
    let settings = r#"{"bits": 4, "group_size": 32, "desc_act": true}"#;
    let mut shuffled = case(false, 32, settings);
    // Each group has 32 inputs, all over the row.
    shuffled.groups = Some(
        (0..N_IN as i32)
            .map(|input| input * 37 % 128 / 32)
            .collect(),
    );
    shuffled.check("shuffled", true);
    let mut usual = case(false, 32, settings);
    usual.groups = Some((0..N_IN as i32).map(|input| input / 32).collect());
    usual.check("in order", true);
    let mut uneven = case(false, 32, settings);
    uneven.groups = Some((0..N_IN as i32).map(|input| input * input % 4).collect());
    uneven.check("uneven", false);
    let mut beyond = case(false, 32, settings);
    beyond.groups = Some(vec![4; N_IN]);
    let folder = beyond.write((Dtype::F16, &beyond.usual_scales()));
    let checkpoint = Checkpoint::open(folder.path(), canonical_qwen_name).unwrap();
    let error = checkpoint
        .matrix(NAME, &Device::Cpu)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("names group 4 of 4"), "{error}");
}

#[test]
fn scales_that_are_no_f16_are_not_rounded() {
    let case = case(true, 128, "{}");
    let scales: Vec<u8> = (0..N_OUT)
        .flat_map(|output| bf16::from_f32(1e-7 * (output + 1) as f32).to_le_bytes())
        .collect();
    let folder = case.write((Dtype::BF16, &scales));
    let checkpoint = Checkpoint::open(folder.path(), canonical_qwen_name).unwrap();
    assert!(checkpoint.matrix(NAME, &Device::Cpu).unwrap().is_none());
    let floats = checkpoint.tensor(NAME, DType::F32, &Device::Cpu).unwrap();
    let largest = floats.abs().unwrap().max_all().unwrap();
    assert!(largest.to_scalar::<f32>().unwrap() > 1e-7);
}

#[test]
fn what_is_not_computed_is_refused_by_the_name_of_its_field() {
    let error = case(false, 32, r#"{"bits": 3, "group_size": 32}"#).refusal();
    assert!(
        error.starts_with("`bits` is `3`, supported: `4`: "),
        "{error}"
    );
    assert!(error.ends_with("config.json"), "{error}");
    let error = case(false, 32, r#"{"bits": 4, "group_size": 16}"#).refusal();
    assert!(error.starts_with("`group_size` is `16`"), "{error}");
    let error = case(false, 32, r#"{"bits": 4, "group_size": 64}"#).refusal();
    assert!(
        error.contains("scales` has shape [4, 40] instead of [2, 40]"),
        "{error}"
    );
    let error = case(false, 32, r#"{"bits": "four"}"#).refusal();
    assert!(error.starts_with("malformed JSON"), "{error}");
}

#[test]
fn no_damage_to_a_header_is_worse_than_an_error() {
    let mut case = case(false, 32, "{}");
    case.groups = Some(
        (0..N_IN as i32)
            .map(|input| input * 37 % 128 / 32)
            .collect(),
    );
    let folder = case.write((Dtype::F16, &case.usual_scales()));
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let n_header = 8 + usize::from(whole[0]) + 256 * usize::from(whole[1]);
    let mut numbers = Numbers(5);
    let mut n_opened = 0;
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        // Digits of shapes, types and names; and of `g_idx`, which lies somewhere after.
        for _ in 0..=numbers.below(3) {
            let end = if numbers.below(4) == 0 {
                bytes.len()
            } else {
                n_header
            };
            let place = numbers.below(end as u32) as usize;
            bytes[place] = match numbers.below(3) {
                0 => b'0' + numbers.below(10) as u8,
                1 => bytes[place] ^ 1 << numbers.below(8),
                _ => numbers.next() as u8,
            };
        }
        fs::write(&path, bytes).unwrap();
        let Ok(checkpoint) = Checkpoint::open(folder.path(), canonical_qwen_name) else {
            continue;
        };
        n_opened += 1;
        let _ = checkpoint.matrix(NAME, &Device::Cpu);
        let _ = checkpoint.tensor(NAME, DType::F32, &Device::Cpu);
    }
    assert!(n_opened > 100, "{n_opened}");
}

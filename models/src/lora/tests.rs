//! Merged matrices against plain loops, and adapters that do not fit.

use std::collections::HashMap;
use std::fs;

use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::loader::{Loader, LoaderOptions, canonical_qwen_name};
use crate::open::open_model;
use crate::reference::shared;

#[test]
fn names_tell_the_module_and_the_part() {
    let cases = [
        ("base_model.model.a.b.lora_A.weight", "a.b", "down"),
        ("base_model.model.a.b.lora_B.default.weight", "a.b", "up"),
        ("a.b.lora_magnitude_vector", "a.b", "magnitude"),
        ("base_model.model.head.weight", "head.weight", "replacement"),
    ];
    for (name, module, part) in cases {
        let (found, role) = parse(name);
        let role = match role {
            Role::Down => "down",
            Role::Up => "up",
            Role::Magnitude => "magnitude",
            Role::Replacement => "replacement",
        };
        assert_eq!((found, role), (module, part), "{name}");
    }
}

#[test]
fn a_pattern_matches_the_end_of_a_name() {
    let config: AdapterConfig = serde_json::from_str(
        r#"{"base_model_name_or_path": "b", "lora_alpha": 8, "r": 4,
            "alpha_pattern": {"q_proj": 24, "layers\\.1\\.mlp\\..*": 2, "mlp.up_proj": 9}}"#,
    )
    .unwrap();
    let scale = |name: &str| config.scale(&[name], 4, Path::new("a")).unwrap();
    assert!((scale("layers.0.self_attn.q_proj") - 6.0).abs() < 1e-12);
    assert!((scale("layers.1.mlp.up_proj") - 0.5).abs() < 1e-12);
    assert!((scale("layers.0.self_attn.xq_proj") - 2.0).abs() < 1e-12);
    let stabilized = AdapterConfig {
        use_rslora: true,
        ..config
    };
    let scale = stabilized
        .scale(&["layers.0.mlp.down_proj"], 4, Path::new("a"))
        .unwrap();
    assert!((scale - 4.0).abs() < 1e-12);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |field: &str, value: &str| {
        let text =
            format!(r#"{{"base_model_name_or_path": "b", "lora_alpha": 8, "{field}": {value}}}"#);
        fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        AdapterConfig::read(folder.path()).unwrap_err().to_string()
    };
    assert!(refused("peft_type", "\"IA3\"").starts_with("`peft_type` is `IA3`"));
    assert!(refused("lora_bias", "true").starts_with("`lora_bias` is `true`"));
    assert!(refused("alora_invocation_tokens", "[5]").starts_with("`alora_invocation_tokens`"));
    assert!(refused("target_parameters", "[1]").starts_with("`target_parameters`"));
    fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
    assert!(AdapterConfig::read(folder.path()).unwrap().is_none());
}

/// Shape and numbers by name.
type Tensors = Vec<(&'static str, Vec<usize>, Vec<f32>)>;

fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// An adapter beside its base of two matrices, `a` `[3, 2]` and `head` `[2, 2]`.
struct Pair {
    root: tempfile::TempDir,
}

impl Pair {
    fn new(settings: &str, tensors: &Tensors) -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["base", "adapter"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("base/config.json"), "{}").unwrap();
        let base = vec![
            (
                "model.layers.0.a.weight",
                vec![3, 2],
                vec![1., 2., 3., 4., 5., 6.],
            ),
            ("model.layers.0.a.bias", vec![3], vec![0.; 3]),
            ("custom_text_proj.weight", vec![2, 2], vec![1., 0., 0., 1.]),
        ];
        write(&root.path().join("base/model.safetensors"), &base);
        let config = format!(r#"{{"base_model_name_or_path": "../base", "r": 1, {settings}}}"#);
        fs::write(root.path().join("adapter").join(CONFIG_FILE), config).unwrap();
        write(
            &root.path().join("adapter/adapter_model.safetensors"),
            tensors,
        );
        Self { root }
    }

    /// `a` and the head as they come out of the loader.
    fn load(&self) -> Result<[Vec<f32>; 2], ModelError> {
        let model = open_model(&self.root.path().join("adapter"))?;
        let loader = Loader::new(&model, canonical_qwen_name, &LoaderOptions::default())?;
        let a = loader.tensor("language_model.layers.0.a.weight", &[3, 2]);
        loader.tensor("language_model.layers.0.a.bias", &[3]);
        let head = loader.tensor("custom_text_proj.weight", &[2, 2]);
        loader.finish()?;
        Ok([a, head].map(|tensor| tensor.flatten_all().unwrap().to_vec1().unwrap()))
    }
}

const A: &str = "base_model.model.layers.0.a.lora_A.weight";
const B: &str = "base_model.model.layers.0.a.lora_B.weight";

fn rank_one() -> Tensors {
    vec![
        (A, vec![1, 2], vec![1., 10.]),
        (B, vec![3, 1], vec![1., 2., 3.]),
    ]
}

#[test]
fn a_matrix_becomes_the_sum_and_whole_tensors_take_the_place_of_others() {
    let mut tensors = rank_one();
    tensors.push((
        "base_model.model.custom_text_proj.weight",
        vec![2, 2],
        vec![5., 6., 7., 8.],
    ));
    let pair = Pair::new(r#""lora_alpha": 2"#, &tensors);
    let [a, head] = pair.load().unwrap();
    assert_eq!(a, [3., 22., 7., 44., 11., 66.]);
    assert_eq!(head, [5., 6., 7., 8.]);
}

#[test]
fn a_base_that_keeps_its_matrices_turned_gets_the_change_turned() {
    let tensors = vec![
        (A, vec![1, 3], vec![1., 2., 3.]),
        (B, vec![2, 1], vec![1., 10.]),
    ];
    let pair = Pair::new(r#""lora_alpha": 2, "fan_in_fan_out": true"#, &tensors);
    assert_eq!(pair.load().unwrap()[0], [3., 22., 7., 44., 11., 66.]);
    let pair = Pair::new(r#""lora_alpha": 2, "fan_in_fan_out": false"#, &tensors);
    assert!(matches!(
        pair.load(),
        Err(ModelError::ForeignAdapter { .. })
    ));
}

#[test]
fn rows_get_the_lengths_that_dora_gives_them() {
    let mut tensors = rank_one();
    let pair = Pair::new(r#""lora_alpha": 1, "use_dora": true"#, &tensors);
    let error = pair.load().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the weights lack `language_model.layers.0.a.lora_magnitude_vector`: {}",
            pair.root.path().join("adapter").display()
        )
    );
    tensors.push((
        "base_model.model.layers.0.a.lora_magnitude_vector",
        vec![3],
        vec![2., 3., 4.],
    ));
    let pair = Pair::new(r#""lora_alpha": 1, "use_dora": true"#, &tensors);
    let [a, _] = pair.load().unwrap();
    // Rows of W + BA are (2, 12), (5, 24) and (8, 36).
    for (row, (magnitude, slope)) in a.chunks(2).zip([(2., 6.), (3., 4.8), (4., 4.5)]) {
        assert!((row[0].hypot(row[1]) - magnitude).abs() < 1e-5);
        assert!((row[1] / row[0] - slope).abs() < 1e-4);
    }
}

#[test]
fn an_adapter_for_another_base_is_told_with_what_does_not_fit() {
    let tensors = vec![
        (A, vec![1, 4], vec![0.; 4]),
        (B, vec![3, 1], vec![0.; 3]),
        (
            "base_model.model.layers.9.b.lora_A.weight",
            vec![1, 2],
            vec![0.; 2],
        ),
        (
            "base_model.model.layers.9.b.lora_B.weight",
            vec![2, 1],
            vec![0.; 2],
        ),
    ];
    let pair = Pair::new(r#""lora_alpha": 1"#, &tensors);
    let error = pair.load().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("language_model.layers.9.b"), "{text}");
    assert!(text.contains("[3, 4]") && text.contains("[3, 2]"), "{text}");
    assert!(error.hint().contains("another base"), "{}", error.hint());
}

#[test]
fn a_half_of_a_pair_is_missing() {
    let pair = Pair::new(r#""lora_alpha": 1"#, &vec![(A, vec![1, 2], vec![0.; 2])]);
    let text = pair.load().unwrap_err().to_string();
    assert!(text.contains("lora_B"), "{text}");
}

#[test]
fn a_base_that_is_not_here_is_named() {
    let pair = Pair::new(r#""lora_alpha": 1"#, &rank_one());
    fs::remove_dir_all(pair.root.path().join("base")).unwrap();
    let error = pair.load().unwrap_err();
    assert!(
        error.to_string().starts_with("no model `../base`"),
        "{error}"
    );
}

/// The tensors of a file, as f64.
fn read_all(folder: &Path, stem: &str) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let weights = Weights::open_renamed(folder, stem, str::to_owned).unwrap();
    let read = |name: &str| {
        let tensor = weights.tensor(name, DType::F64, &Device::Cpu).unwrap();
        let values = tensor.flatten_all().unwrap().to_vec1().unwrap();
        (name.to_owned(), (tensor.dims().to_vec(), values))
    };
    weights.names().map(read).collect()
}

#[test]
fn the_reference_adapters_merge_as_plain_loops_do() {
    let Some(folder) = shared("lora") else { return };
    for name in ["plain", "plain_oldnames", "rslora", "pattern", "dora"] {
        let folder = folder.join(name);
        let mut model = open_model(&folder.with_file_name("plain")).unwrap();
        let config = AdapterConfig::read(&folder).unwrap().unwrap();
        let settings: Value =
            serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap();
        model.adapter = Some((folder.clone(), config));
        let loader = Loader::new(&model, canonical_qwen_name, &LoaderOptions::default()).unwrap();
        let adapter = read_all(&folder, "adapter_model");
        let mut n_changed = 0;
        for (tensor, (shape, mut matrix)) in read_all(&model.base, "model") {
            let ours = loader.tensor(&canonical_qwen_name(&tensor), &shape);
            let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
            let module = tensor.strip_suffix(".weight").unwrap_or(&tensor);
            let old = module.replace("language_model.", "model.");
            let part = |part: &str| {
                let name = |module: &str| format!("base_model.model.{module}.{part}");
                adapter
                    .get(&name(module))
                    .or_else(|| adapter.get(&name(&old)))
            };
            if let (Some((_, down)), Some((up_shape, up))) =
                (part("lora_A.weight"), part("lora_B.weight"))
            {
                n_changed += 1;
                let rank = up_shape[1];
                let mut alpha = settings["lora_alpha"].as_f64().unwrap();
                if name == "pattern" && module.ends_with("q_proj") {
                    alpha = 24.0;
                }
                let root = (rank as f64).sqrt();
                let scale = alpha / if name == "rslora" { root } else { rank as f64 };
                let n_in = shape[1];
                for (row, values) in matrix.chunks_mut(n_in).enumerate() {
                    for (column, value) in values.iter_mut().enumerate() {
                        for r in 0..rank {
                            *value += scale * up[row * rank + r] * down[r * n_in + column];
                        }
                    }
                    if let Some((_, magnitude)) = part("lora_magnitude_vector") {
                        let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
                        for value in values.iter_mut() {
                            *value *= magnitude[row] / length;
                        }
                    }
                }
            }
            for (ours, plain) in ours.iter().zip(&matrix) {
                assert!((f64::from(*ours) - plain).abs() < 1e-5, "{name} {tensor}");
            }
        }
        assert_eq!(n_changed, 22, "{name}");
        loader.finish().unwrap();
    }
}

//! Low-rank adapters, merged into the weights they change as those are loaded.
//!
//! LoRA (Hu et al., 2021) adds `alpha / r * B A` to a matrix, its rank-stabilized form divides
//! by the root of `r`; `DoRA` (Liu et al., 2024) then gives each row a length of its own. Files
//! and settings are those of Hugging Face's PEFT.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{ModelError, ShapeMismatch};
use crate::files;
use crate::weights::{Rename, Weights};

#[cfg(test)]
mod tests;

const CONFIG_FILE: &str = "adapter_config.json";

/// What PEFT puts before the names of the network.
const PREFIX: &str = "base_model.model.";

/// The fields of `adapter_config.json` that change what is computed.
#[derive(Debug, Clone, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the file's own switches")]
pub(crate) struct AdapterConfig {
    pub(crate) base_model_name_or_path: String,
    /// The base's.
    pub(crate) revision: Option<String>,
    peft_type: Option<String>,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    /// Of models that keep their weights `[in, out]`. PEFT sets it so for those alone, whatever
    /// the file says; so do we, by the shapes.
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    alpha_pattern: Option<Patterns>,
    use_qalora: Option<bool>,
    use_bdlora: Option<Value>,
    alora_invocation_tokens: Option<Value>,
    layer_replication: Option<Value>,
    target_parameters: Option<Value>,
    trainable_token_indices: Option<Value>,
}

/// Values by pattern, in the file's order: the first that matches counts.
#[derive(Debug, Clone)]
struct Patterns(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Patterns;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("numbers by pattern")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns, A::Error> {
                let mut patterns = Vec::new();
                while let Some(pattern) = map.next_entry()? {
                    patterns.push(pattern);
                }
                Ok(Patterns(patterns))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl AdapterConfig {
    /// Reads the configuration of the adapter in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// It is damaged, or asks for what this crate does not compute.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, ModelError> {
        let path = folder.join(CONFIG_FILE);
        let Some(config) = files::read_optional_json::<Self>(&path)? else {
            return Ok(None);
        };
        let given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let is_lora = config
            .peft_type
            .as_deref()
            .is_none_or(|kind| kind == "LORA");
        let refused = [
            (!is_lora, "peft_type", &["LORA"][..]),
            (config.lora_bias, "lora_bias", &["false"]),
            (config.use_qalora == Some(true), "use_qalora", &["false"]),
            (given(&config.use_bdlora), "use_bdlora", &["null"]),
            (
                given(&config.alora_invocation_tokens),
                "alora_invocation_tokens",
                &["null"],
            ),
            (
                given(&config.layer_replication),
                "layer_replication",
                &["null"],
            ),
            (
                given(&config.target_parameters),
                "target_parameters",
                &["null"],
            ),
            (
                given(&config.trainable_token_indices),
                "trainable_token_indices",
                &["null"],
            ),
        ];
        let wrong = refused.into_iter().find(|(wrong, ..)| *wrong);
        if let Some((_, field, supported)) = wrong {
            let found = match field {
                "peft_type" => config.peft_type.unwrap_or_default(),
                "lora_bias" | "use_qalora" => "true".into(),
                _ => "set".into(),
            };
            return Err(ModelError::Unsupported {
                field: field.into(),
                found,
                supported,
                path,
            });
        }
        if !config.lora_alpha.is_finite() {
            return Err(ModelError::InvalidSetting {
                field: "lora_alpha",
                problem: "is not a number".into(),
                path,
            });
        }
        Ok(Some(config))
    }

    /// What `B A` is multiplied by, for a module by its name and rank.
    fn scale(&self, names: &[&str], rank: usize, path: &Path) -> Result<f64, ModelError> {
        let mut alpha = self.lora_alpha;
        let patterns = self.alpha_pattern.as_ref().map(|patterns| &patterns.0);
        for (pattern, own) in patterns.into_iter().flatten() {
            // PEFT's rule: a pattern matches the end of the module's name.
            let rule = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|error| {
                ModelError::InvalidSetting {
                    field: "alpha_pattern",
                    problem: format!("has the pattern `{pattern}`, which is none ({error})"),
                    path: path.to_owned(),
                }
            })?;
            if names.iter().any(|name| rule.is_match(name)) {
                alpha = *own;
                break;
            }
        }
        let rank = rank as f64;
        Ok(alpha / if self.use_rslora { rank.sqrt() } else { rank })
    }
}

/// An adapter's tensors, by the canonical names of the modules that they change.
pub(crate) struct Adapter {
    config: AdapterConfig,
    folder: PathBuf,
    weights: Weights,
    modules: BTreeMap<String, Module>,
    /// Canonical name of a tensor, and its name here: it takes the base's place.
    replacements: BTreeMap<String, String>,
    /// The modules and replacements that the network has asked for.
    used: RefCell<BTreeSet<String>>,
    mismatches: RefCell<Vec<ShapeMismatch>>,
}

/// Names in the file of what changes one module.
#[derive(Default)]
struct Module {
    /// As the file has it, without PEFT's prefix: patterns are about this name too.
    own_name: String,
    down: Option<String>,
    up: Option<String>,
    magnitude: Option<String>,
}

enum Role {
    Down,
    Up,
    Magnitude,
    Replacement,
}

/// A file's name as the module that it changes and what it is to it.
fn parse(name: &str) -> (&str, Role) {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    for (part, role) in [
        (".lora_A", Role::Down),
        (".lora_B", Role::Up),
        (".lora_magnitude_vector", Role::Magnitude),
    ] {
        // What follows is `.weight`, `.default.weight` or nothing.
        if let Some((module, _)) = name.split_once(part) {
            return (module, role);
        }
    }
    (name, Role::Replacement)
}

/// What changes one matrix.
struct Change {
    /// `[r, in]`.
    down: Tensor,
    /// `[out, r]`.
    up: Tensor,
    /// `[out]`: the length that each row gets.
    magnitude: Option<Tensor>,
}

/// How a change lies on a matrix.
enum Fit {
    /// On `[out, in]`.
    Straight,
    /// On `[in, out]`.
    Turned,
}

impl Change {
    /// Of the matrix that it is for.
    fn shape(&self) -> Vec<usize> {
        let [up, down] = [&self.up, &self.down].map(Tensor::dims);
        up.iter()
            .take(1)
            .chain(down.iter().skip(1))
            .copied()
            .collect()
    }

    fn fit(&self, base: &[usize], may_turn: bool) -> Option<Fit> {
        let (&[n_out, rank], &[same_rank, n_in]) = (self.up.dims(), self.down.dims()) else {
            return None;
        };
        let magnitude = self.magnitude.as_ref();
        let is_sound = rank == same_rank
            && rank > 0
            && magnitude.is_none_or(|magnitude| magnitude.elem_count() == n_out);
        if !is_sound {
            None
        } else if base == [n_out, n_in] {
            Some(Fit::Straight)
        } else if may_turn && base == [n_in, n_out] {
            Some(Fit::Turned)
        } else {
            None
        }
    }

    /// `base` is `[out, in]`.
    fn apply(&self, base: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
        let merged = (base + (self.up.matmul(&self.down)? * scale)?)?;
        let Some(magnitude) = &self.magnitude else {
            return Ok(merged);
        };
        let lengths = merged.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?; // [out, 1]
        let factors = (magnitude.reshape(lengths.shape())? / lengths)?;
        merged.broadcast_mul(&factors)
    }
}

impl Adapter {
    /// Opens the adapter in `folder` for a network whose tensors `rename` names.
    ///
    /// # Errors
    /// A file is missing or damaged, or adapts what this crate does not.
    pub(crate) fn open(
        folder: &Path,
        config: AdapterConfig,
        rename: Rename,
    ) -> Result<Self, ModelError> {
        let weights = Weights::open_renamed(folder, "adapter_model", str::to_owned)?;
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut replacements = BTreeMap::new();
        for name in weights.names() {
            if name.contains(".lora_embedding_") {
                return Err(ModelError::Unsupported {
                    field: name.to_owned(),
                    found: "an adapted embedding table".into(),
                    supported: &["linear layers", "modules_to_save"],
                    path: folder.to_owned(),
                });
            }
            let (module, role) = parse(name);
            if matches!(role, Role::Replacement) {
                let plain = module.replace(".modules_to_save.default", "");
                let plain = plain
                    .replace(".modules_to_save", "")
                    .replace(".base_layer", "");
                replacements.insert(rename(&plain), name.to_owned());
                continue;
            }
            let canonical = rename(&format!("{module}.weight"));
            let canonical = canonical
                .strip_suffix(".weight")
                .unwrap_or(&canonical)
                .to_owned();
            let entry = modules.entry(canonical).or_default();
            module.clone_into(&mut entry.own_name);
            let place = match role {
                Role::Down => &mut entry.down,
                Role::Up => &mut entry.up,
                Role::Magnitude | Role::Replacement => &mut entry.magnitude,
            };
            *place = Some(name.to_owned());
        }
        Ok(Self {
            config,
            folder: folder.to_owned(),
            weights,
            modules,
            replacements,
            used: RefCell::default(),
            mismatches: RefCell::default(),
        })
    }

    /// The shape of a tensor that takes the base's place.
    pub(crate) fn replaced_shape(&self, name: &str) -> Option<&[usize]> {
        self.weights.shape(self.replacements.get(name)?)
    }

    /// Whether it changes the tensor.
    pub(crate) fn changes(&self, name: &str) -> bool {
        self.replacements.contains_key(name)
            || name
                .strip_suffix(".weight")
                .is_some_and(|module| self.modules.contains_key(module))
    }

    /// The tensor of this name as the adapter makes it, f32 on the processor. `base` reads the
    /// base's.
    ///
    /// # Errors
    /// Reading or computing failed. Shapes that do not fit are noted for [`Adapter::check`],
    /// and the base's tensor comes back.
    pub(crate) fn merge(
        &self,
        name: &str,
        base: impl FnOnce() -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let read = |own: &String| self.weights.tensor(own, DType::F32, &Device::Cpu);
        if let Some(own) = self.replacements.get(name) {
            self.used.borrow_mut().insert(name.to_owned());
            return read(own);
        }
        let base = base()?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let Some(parts) = self.modules.get(module) else {
            return Ok(base);
        };
        self.used.borrow_mut().insert(module.to_owned());
        let (Some(down), Some(up)) = (&parts.down, &parts.up) else {
            return Err(ModelError::MissingTensors {
                names: vec![format!("{module}.lora_A"), format!("{module}.lora_B")],
                path: self.folder.clone(),
            });
        };
        let magnitude = match (&parts.magnitude, self.config.use_dora) {
            (Some(magnitude), true) => Some(read(magnitude)?),
            (None, true) => {
                return Err(ModelError::MissingTensors {
                    names: vec![format!("{module}.lora_magnitude_vector")],
                    path: self.folder.clone(),
                });
            }
            (_, false) => None,
        };
        let change = Change {
            down: read(down)?,
            up: read(up)?,
            magnitude,
        };
        let Some(fit) = change.fit(base.dims(), self.config.fan_in_fan_out) else {
            self.mismatches.borrow_mut().push(ShapeMismatch {
                name: module.to_owned(),
                expected: base.dims().to_vec(),
                found: change.shape(),
            });
            return Ok(base);
        };
        let names = [parts.own_name.as_str(), module];
        let path = self.folder.join(CONFIG_FILE);
        let scale = self.config.scale(&names, change.down.dims()[0], &path)?;
        let merged = match fit {
            Fit::Straight => change.apply(&base, scale),
            Fit::Turned => base.t().and_then(|base| change.apply(&base, scale)?.t()),
        };
        merged.map_err(ModelError::compute("merging an adapter"))
    }

    /// Ends the loading.
    ///
    /// # Errors
    /// The adapter is for another base: it changes what the network does not have, or has
    /// other shapes.
    pub(crate) fn check(&self, base: &Path) -> Result<(), ModelError> {
        let used = self.used.borrow();
        let all = self.modules.keys().chain(self.replacements.keys());
        let unused: Vec<String> = all.filter(|name| !used.contains(*name)).cloned().collect();
        let mismatches = self.mismatches.borrow().clone();
        if unused.is_empty() && mismatches.is_empty() {
            return Ok(());
        }
        Err(ModelError::ForeignAdapter {
            unused,
            mismatches,
            path: self.folder.clone(),
            base: base.to_owned(),
        })
    }
}

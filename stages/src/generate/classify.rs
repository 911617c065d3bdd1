//! `kind = "classify"`: which of some labels fits, and how likely each is.

use std::collections::BTreeSet;
use std::sync::Arc;

use pagemill_pipeline::{
    Field, FieldError, FieldType, Fields, Item, ItemError, Resources, Stage, StageConfig,
};
use serde_json::json;

use super::ask::{Answer, Ask, Wanted};
use super::prompt::{PromptTemplate, read_fields};
use super::settings::with_speaker;
use super::task::{Task, TaskStage, TextFields};

with_speaker! {
    /// Settings of `kind = "classify"`.
    pub struct ClassifyConfig {
        /// The labels, of which the likeliest is chosen.
        pub labels: Vec<String>,
        /// What the model is asked before the labels are named; a template over the item's fields.
        #[serde(default = "usual_prompt")]
        pub prompt: String,
        /// Whether the model sees the item's picture.
        #[serde(default = "yes")]
        pub image: bool,
        /// The field that the label goes to. Its likelihood goes to the one with
        /// `_probability` behind the name, and all of them, as JSON, to `_probabilities`.
        #[serde(default = "usual_field")]
        pub into: String,
    }
}

fn usual_prompt() -> String {
    "Which of these labels fits this page best?".into()
}

fn yes() -> bool {
    true
}

fn usual_field() -> String {
    "label".into()
}

impl ClassifyConfig {
    fn check_labels(&self) -> Result<(), FieldError> {
        let wrong = |problem: String, hint: &str| Err(FieldError::new("labels", problem, hint));
        if self.labels.len() < 2 {
            let n = self.labels.len();
            return wrong(
                format!("must be at least two, not {n}"),
                "for example `labels = [\"invoice\", \"letter\", \"other\"]`",
            );
        }
        let mut known = BTreeSet::new();
        for label in &self.labels {
            if label.trim().is_empty() {
                return wrong("has one without a letter".into(), "remove it");
            }
            if !known.insert(label.trim()) {
                return wrong(format!("has `{label}` twice"), "remove one of the two");
            }
        }
        Ok(())
    }
}

/// The fields that are filled.
fn fields(into: &str) -> [Field; 3] {
    let field = |suffix: &str, ty| Field {
        name: format!("{into}{suffix}").into(),
        ty,
    };
    [
        field("", FieldType::Text),
        field("_probability", FieldType::Float),
        field("_probabilities", FieldType::Text),
    ]
}

impl StageConfig for ClassifyConfig {
    const KIND: &'static str = "classify";
    const ABOUT: &'static str = "one of several labels for each item, with probabilities";
    const EXAMPLE: &'static str =
        "model = \"Qwen/Qwen2.5-VL-3B-Instruct\"\nlabels = [\"invoice\", \"letter\", \"other\"]\n";
    const PATHS: &'static [&'static str] = &["model"];

    fn fields(&self) -> Fields {
        let reads = if self.image {
            self.speaker().picture_fields([])
        } else {
            Fields::default()
        };
        read_fields(reads, &[&self.prompt]).adds(fields(&self.into))
    }

    fn workers(&self) -> usize {
        self.speaker().workers()
    }

    fn row_settings(&self) -> String {
        format!("{:?}", self.of_rows())
    }

    fn revision(&self, resources: &Resources) -> String {
        self.speaker().revision(resources)
    }

    fn build(&self, resources: &Resources) -> Result<Box<dyn Stage>, FieldError> {
        self.check_labels()?;
        TextFields::new(&self.into)?;
        let task = Classify {
            prompt: PromptTemplate::new("prompt", &self.prompt)?,
            labels: self
                .labels
                .iter()
                .map(|label| label.trim().to_owned())
                .collect(),
            fields: fields(&self.into),
            image: self.image,
        };
        Ok(Box::new(TaskStage::new(task, &self.speaker(), resources)?))
    }
}

/// Asks how likely labels are.
#[derive(Debug)]
struct Classify {
    prompt: PromptTemplate,
    labels: Arc<[String]>,
    fields: [Field; 3],
    image: bool,
}

impl Task for Classify {
    const ACTION: &'static str = "classify";

    fn ask(&self, item: &Item) -> Result<Ask, ItemError> {
        let question = self.prompt.render(Self::ACTION, item)?;
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|label| format!("- {label}"))
            .collect();
        let labels = labels.join("\n");
        Ok(Ask {
            system: None,
            prompt: format!("{question}\n{labels}\nAnswer with the label alone."),
            hint: None,
            picture: None,
            wanted: Wanted::Scores(Arc::clone(&self.labels)),
        })
    }

    fn shows_picture(&self) -> bool {
        self.image
    }

    fn put(&self, item: &mut Item, answer: Answer) -> Result<(), ItemError> {
        let [label, probability, every] = &self.fields;
        let scores = match answer {
            Answer::Scores(scores) => scores,
            Answer::Label(chosen) => {
                item.set(label.name.clone(), self.labels[chosen].as_str());
                return Ok(());
            }
            Answer::Text(_) => {
                let why = "the model spoke instead of scoring";
                return Err(ItemError::new(Self::ACTION, why).hint("report this"));
            }
        };
        let probabilities = softmax(&scores).ok_or_else(|| {
            ItemError::new(
                Self::ACTION,
                "the model gave a likelihood that is no number",
            )
        })?;
        let best =
            (0..probabilities.len()).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
        let best =
            best.ok_or_else(|| ItemError::new(Self::ACTION, "the model gave no likelihood"))?;
        let all: serde_json::Map<_, _> = self
            .labels
            .iter()
            .zip(&probabilities)
            .map(|(label, p)| (label.clone(), json!(p)))
            .collect();
        item.set(label.name.clone(), self.labels[best].as_str());
        item.set(probability.name.clone(), probabilities[best]);
        item.set(
            every.name.clone(),
            serde_json::Value::Object(all).to_string().as_str(),
        );
        Ok(())
    }
}

/// Logarithms of likelihoods to probabilities; none if one is no number, or all are nothing.
fn softmax(scores: &[f64]) -> Option<Vec<f64>> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() || scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let parts: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = parts.iter().sum();
    Some(parts.into_iter().map(|part| part / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_become_probabilities() {
        let p = softmax(&[-1000.0, -1000.0 - 2_f64.ln(), f64::NEG_INFINITY]).unwrap();
        assert!(
            (p[0] - 2.0 / 3.0).abs() < 1e-12 && (p[1] - 1.0 / 3.0).abs() < 1e-12 && p[2] == 0.0
        );
        assert!(softmax(&[f64::NAN, 0.0]).is_none());
        assert!(softmax(&[f64::NEG_INFINITY; 2]).is_none());
    }
}

//! Reads a server's reply.

use serde_json::Value as Json;

use crate::generate::ask::{Answer, Finish, Said, Wanted};

/// Why a reply is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The same request may get a better one.
    Garbage(String),
    /// The model said what it was not asked for.
    Misfit { said: String, why: String },
    /// The server answers every such request so.
    Useless(&'static str),
}

impl From<&str> for Unread {
    fn from(why: &str) -> Self {
        Self::Garbage(why.to_owned())
    }
}

/// What a chat completion says.
///
/// # Errors
/// It is none, or not what was wanted.
pub(super) fn read_answer(reply: &Json, wanted: &Wanted) -> Result<Answer, Unread> {
    let choice = reply
        .pointer("/choices/0")
        .ok_or("answered without a choice")?;
    let text = choice.pointer("/message/content").and_then(Json::as_str);
    let text = text.ok_or("answered without text")?;
    let finish = match choice.get("finish_reason").and_then(Json::as_str) {
        Some("length") => Finish::Length,
        Some(_) => Finish::Stop,
        None => return Err("broke off its answer".into()),
    };
    let misfit = |why: String| Unread::Misfit {
        said: text.to_owned(),
        why,
    };
    match wanted {
        Wanted::Text { grammar, .. } => {
            if let (Some(grammar), Finish::Stop) = (grammar, finish) {
                grammar.constraint.accepts(text.trim()).map_err(misfit)?;
            }
            Ok(Answer::Text(Said {
                text: text.to_owned(),
                finish,
                note: None,
            }))
        }
        Wanted::Scores(labels) => {
            let said = serde_json::from_str::<String>(text.trim());
            let said = said.unwrap_or_else(|_| text.trim().to_owned());
            let chosen = labels.iter().position(|label| label.trim() == said.trim());
            let chosen = chosen.ok_or_else(|| misfit("it is none of the labels".into()))?;
            let tokens = choice.pointer("/logprobs/content").and_then(Json::as_array);
            let told = tokens.and_then(|tokens| likelihoods(labels, chosen, text.trim(), tokens));
            Ok(told.map_or(Answer::Label(chosen), |told| {
                Answer::Scores(told.into_iter().map(f64::ln).collect())
            }))
        }
    }
}

/// How likely each label is, by what a server tells of the tokens of its answer.
///
/// The answer is followed token by token. Where labels part from it, each gets what the tokens
/// that lead to it have of the likelihood of all tokens that lead to any label still possible:
/// a token that leads to several counts for each by its part. What comes after the last parting
/// is forced and counts nothing, so that a long label is not less likely for its length.
///
/// None if the server tells nothing of it, or of another text.
fn likelihoods(
    labels: &[String],
    chosen: usize,
    answer: &str,
    tokens: &[Json],
) -> Option<Vec<f64>> {
    let forms: Vec<String> = labels
        .iter()
        .enumerate()
        .map(|(place, label)| match answer.starts_with('"') {
            _ if place == chosen => answer.to_owned(),
            true => Json::from(label.as_str()).to_string(),
            false => label.clone(),
        })
        .collect();
    let mut found = vec![0.0; labels.len()];
    let mut possible: Vec<usize> = (0..labels.len()).collect();
    let (mut before, mut left) = (String::new(), 1.0);
    for token in tokens {
        if possible.len() == 1 {
            break;
        }
        let (own, own_p) = token_and_likelihood(token)?;
        let leads = |text: &str, label: usize| {
            let text = format!("{before}{text}");
            let (text, form) = (text.trim_start(), forms[label].as_str());
            form.starts_with(text) || text.trim_end() == form
        };
        if !leads(own, chosen) {
            return None;
        }
        let told = token.get("top_logprobs").and_then(Json::as_array);
        let told = told.map(|told| told.iter().filter_map(token_and_likelihood));
        let mut told: Vec<(&str, f64)> = told.into_iter().flatten().collect();
        let alone = told.is_empty();
        if told.iter().all(|(text, _)| *text != own) {
            told.push((own, own_p));
        }
        let mut parts = vec![0.0; labels.len()];
        for (text, p) in told {
            let to: Vec<usize> = possible
                .iter()
                .copied()
                .filter(|label| leads(text, *label))
                .collect();
            for label in &to {
                parts[*label] += p / to.len() as f64;
            }
        }
        let sum: f64 = parts.iter().sum();
        let (stay, part): (Vec<_>, Vec<_>) = possible.iter().partition(|label| leads(own, **label));
        let mut gone = 0.0;
        for label in &part {
            let share = if alone {
                // Of the others nothing is told: they have the rest together.
                (1.0 - own_p).max(0.0) / part.len() as f64
            } else {
                parts[*label] / sum
            };
            found[*label] = left * share;
            gone += share;
        }
        left *= 1.0 - gone;
        possible = stay;
        before.push_str(own);
    }
    // Of labels that begin with the answer nothing more is told.
    found[chosen] = left;
    found.iter().all(|p| p.is_finite()).then_some(found)
}

fn token_and_likelihood(token: &Json) -> Option<(&str, f64)> {
    let text = token.get("token")?.as_str()?;
    let p = token.get("logprob")?.as_f64()?.min(0.0).exp();
    Some((text, p))
}

/// The vectors of an embeddings answer, in the order of the texts.
pub(super) fn read_vectors(reply: &Json, n: usize) -> Result<Vec<Vec<f32>>, Unread> {
    let data = reply.get("data").and_then(Json::as_array);
    let data = data.ok_or("answered without vectors")?;
    let mut vectors = vec![Vec::new(); n];
    for (place, entry) in data.iter().enumerate() {
        let index = entry
            .get("index")
            .and_then(Json::as_u64)
            .unwrap_or(place as u64) as usize;
        let numbers = entry.get("embedding").and_then(Json::as_array);
        let numbers = numbers.ok_or("answered a vector that is none")?;
        if numbers.iter().any(Json::is_array) {
            let why = "answered a vector for each token; it must be told to pool them";
            return Err(Unread::Useless(why));
        }
        let number = |number: &Json| number.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        let vector: Option<Vec<f32>> = numbers.iter().map(number).collect();
        let vector = vector.ok_or("answered a vector that is not finite")?;
        *vectors
            .get_mut(index)
            .ok_or("answered more vectors than texts")? = vector;
    }
    let dim = vectors.first().map_or(0, Vec::len);
    if vectors
        .iter()
        .any(|vector| vector.is_empty() || vector.len() != dim)
    {
        return Err("answered fewer vectors than texts, or of several lengths".into());
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn token(text: &str, p: f64, others: &[(&str, f64)]) -> Json {
        let one = |text: &str, p: f64| json!({ "token": text, "logprob": p.ln() });
        let mut token = one(text, p);
        let mut top = vec![one(text, p)];
        top.extend(others.iter().map(|(text, p)| one(text, *p)));
        if !others.is_empty() {
            token["top_logprobs"] = Json::from(top);
        }
        token
    }

    fn close(found: Option<Vec<f64>>, expected: &[f64]) {
        let found = found.unwrap();
        let near = found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(
            near && found.len() == expected.len(),
            "{found:?} {expected:?}"
        );
    }

    #[test]
    fn each_label_has_what_leads_to_it_where_it_parts() {
        let names = labels(&["invoice", "letter", "list", "other"]);
        // The answer parts from two labels at its second token, from `list` at its third. Of
        // the second, half is for what is no label, and `l` leads to two.
        let tokens = [
            token("\"", 0.9, &[("Let", 0.1)]),
            token("l", 0.3, &[("invoice", 0.1), ("o", 0.1), ("banana", 0.5)]),
            token("etter", 0.25, &[("ist", 0.75)]),
            token("\"", 0.1, &[("s", 0.9)]),
        ];
        let found = likelihoods(&names, 1, "\"letter\"", &tokens);
        close(found, &[0.2, 0.6 * 0.25, 0.6 * 0.75, 0.2]);
    }

    #[test]
    fn another_way_to_write_the_same_label_counts_for_it() {
        let names = labels(&["invoice", "letter"]);
        let tokens = [token("letter", 0.4, &[("l", 0.2), ("in", 0.2)])];
        close(likelihoods(&names, 1, "letter", &tokens), &[0.25, 0.75]);
        let tokens = [token(" letter\n", 0.4, &[(" in", 0.1)])];
        close(likelihoods(&names, 1, "letter", &tokens), &[0.2, 0.8]);
    }

    #[test]
    fn without_alternatives_the_others_share_the_rest() {
        let names = labels(&["invoice", "letter", "other"]);
        let tokens = [token("letter", 0.8, &[]), token("", 0.5, &[])];
        close(likelihoods(&names, 1, "letter", &tokens), &[0.1, 0.8, 0.1]);
    }

    #[test]
    fn a_label_that_begins_another_keeps_what_is_left() {
        let names = labels(&["form", "formula"]);
        let tokens = [token("form", 0.5, &[("other", 0.5)])];
        close(likelihoods(&names, 0, "form", &tokens), &[1.0, 0.0]);
    }

    #[test]
    fn likelihoods_of_another_text_are_none() {
        let names = labels(&["invoice", "letter"]);
        assert!(likelihoods(&names, 1, "letter", &[token("x", 0.5, &[])]).is_none());
        assert!(likelihoods(&names, 1, "letter", &[json!({ "logprob": -1 })]).is_none());
    }
}

//! Answers that must look a certain way: of a JSON Schema, or one of some options.
//!
//! A grammar says before each token which ones may follow, and only those are chosen from. It
//! is llguidance's; options need none.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::problem::GenerateProblem;
use crate::error::ModelError;
use crate::vocabulary::Piece;

/// Characters of an answer that an error repeats.
const N_SHOWN: usize = 40;

/// What an answer must look like. Cheap to clone.
#[derive(Clone)]
pub struct Constraint {
    form: Arc<Form>,
}

enum Form {
    Json {
        schema: Value,
        /// Reads answers from elsewhere, byte by byte.
        reader: Box<Mutex<Matcher>>,
    },
    OneOf(Vec<String>),
}

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.form {
            Form::Json { schema, .. } => formatter.debug_tuple("Json").field(schema).finish(),
            Form::OneOf(options) => formatter.debug_tuple("OneOf").field(options).finish(),
        }
    }
}

impl Constraint {
    /// Answers that are JSON of this schema, in one line, keys in the schema's order.
    ///
    /// An answer that meets its limit of tokens first is cut off, and no whole JSON: give
    /// strings a `maxLength` and arrays a `maxItems`.
    ///
    /// # Errors
    /// The schema is malformed, or asks for what cannot be held to while text is made; the
    /// error names it.
    pub fn json_schema(schema: &Value) -> Result<Self, ModelError> {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env());
        let reader = factory
            .map_err(|error| problem(&error))
            .and_then(|mut factory| {
                // Others write JSON in more than one line.
                matcher(&mut factory, schema.clone(), true)
            })?;
        let form = Form::Json {
            schema: schema.clone(),
            reader: Box::new(Mutex::new(reader)),
        };
        Ok(Self {
            form: Arc::new(form),
        })
    }

    /// Answers that are one of these, to the letter.
    ///
    /// # Errors
    /// There is none, or one is empty.
    pub fn one_of(options: &[String]) -> Result<Self, ModelError> {
        let refuse = |problem: &str| GenerateProblem::Constraint {
            problem: problem.to_owned(),
        };
        if options.is_empty() {
            return Err(refuse("there are no options").into());
        }
        if options.iter().any(String::is_empty) {
            return Err(refuse("an option is empty").into());
        }
        Ok(Self {
            form: Arc::new(Form::OneOf(options.to_vec())),
        })
    }

    /// Whether a text is such an answer, white space around it aside.
    ///
    /// # Errors
    /// It is not; the message says where it departs.
    pub fn accepts(&self, text: &str) -> Result<(), String> {
        let text = text.trim();
        match &*self.form {
            Form::OneOf(options) if options.iter().any(|option| option.trim() == text) => Ok(()),
            Form::OneOf(options) => {
                let options = crate::error::join_names(options);
                Err(format!("`{}` is none of {options}", beginning(text)))
            }
            Form::Json { reader, .. } => {
                let mut reader = reader
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                for (place, byte) in text.bytes().enumerate() {
                    if !matches!(reader.try_consume_tokens(&[u32::from(byte)]), Ok(1)) {
                        let rest = String::from_utf8_lossy(&text.as_bytes()[place..]);
                        let rest = beginning(&rest).to_owned();
                        return Err(format!(
                            "it departs from the schema at byte {place}: `{rest}`"
                        ));
                    }
                }
                let ended = reader.is_stopped() || reader.is_accepting().unwrap_or(false);
                if ended {
                    Ok(())
                } else {
                    Err(format!(
                        "it ends before the schema does, after {} bytes",
                        text.len()
                    ))
                }
            }
        }
    }
}

impl Constraint {
    /// Of each option that begins so, what follows.
    fn rests(&self, done: &[u8]) -> impl Iterator<Item = &[u8]> {
        let options = match &*self.form {
            Form::OneOf(options) => options.as_slice(),
            Form::Json { .. } => &[],
        };
        options
            .iter()
            .filter_map(move |option| option.as_bytes().strip_prefix(done))
    }
}

/// The first characters of a text.
fn beginning(text: &str) -> &str {
    let end = text
        .char_indices()
        .nth(N_SHOWN)
        .map_or(text.len(), |(place, _)| place);
    &text[..end]
}

fn problem(error: &dyn fmt::Display) -> GenerateProblem {
    // The library's messages go on with the state of its parser.
    let message = error.to_string();
    let problem = message
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    GenerateProblem::Constraint {
        problem: problem.to_owned(),
    }
}

/// A grammar at its beginning. `any_space`: with white space wherever JSON allows it, which a
/// model could go on with for ever.
fn matcher(
    factory: &mut ParserFactory,
    mut schema: Value,
    any_space: bool,
) -> Result<Matcher, GenerateProblem> {
    if let Some(fields) = schema.as_object_mut() {
        let settings = if any_space {
            json!({"whitespace_flexible": true})
        } else {
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
        };
        fields.insert("x-guidance".into(), settings);
    }
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
    let matcher = Matcher::new(parser);
    match matcher.get_error() {
        Some(error) => Err(problem(&error)),
        None => Ok(matcher),
    }
}

/// Grammars over one model's vocabulary.
pub(super) struct Grammars {
    env: TokEnv,
    factory: ParserFactory,
    end_ids: Vec<u32>,
    /// The constraint of the last request, as many share one, at its beginning.
    latest: Option<(Constraint, Matcher)>,
}

impl Grammars {
    /// # Errors
    /// The library refuses the vocabulary.
    pub(super) fn new(pieces: &[Piece], end_ids: &[u32]) -> Result<Self, GenerateProblem> {
        let words = pieces.iter().map(|piece| match piece {
            Piece::Text(bytes) => bytes.clone(),
            Piece::Special(name) => {
                let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                word.extend_from_slice(name.as_bytes());
                word
            }
            Piece::Nothing => Vec::new(),
        });
        let words: Vec<Vec<u8>> = words.collect();
        let first_end = end_ids.first().copied().unwrap_or(0);
        let info = TokRxInfo::new(words.len() as u32, first_end);
        let mut trie = TokTrie::from(&info, &words);
        if !end_ids.is_empty() {
            trie = trie.with_eos_tokens(end_ids);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&env).map_err(|error| problem(&error))?;
        Ok(Self {
            env,
            factory,
            end_ids: end_ids.to_vec(),
            latest: None,
        })
    }

    /// What leads one answer.
    ///
    /// # Errors
    /// The schema is too much for this vocabulary.
    pub(super) fn guide(&mut self, constraint: &Constraint) -> Result<Guide, GenerateProblem> {
        let way = match &*constraint.form {
            Form::OneOf(_) => Way::OneOf {
                constraint: constraint.clone(),
                done: Vec::new(),
                env: self.env.clone(),
            },
            Form::Json { schema, .. } => {
                let known = self.latest.as_ref();
                let known = known.filter(|(known, _)| Arc::ptr_eq(&known.form, &constraint.form));
                let matcher = if let Some((_, matcher)) = known {
                    matcher.clone()
                } else {
                    let matcher = matcher(&mut self.factory, schema.clone(), false)?;
                    self.latest = Some((constraint.clone(), matcher.clone()));
                    matcher
                };
                Way::Json(Box::new(matcher))
            }
        };
        Ok(Guide {
            way,
            end_ids: self.end_ids.clone(),
        })
    }
}

/// Leads one answer.
pub(super) struct Guide {
    way: Way,
    end_ids: Vec<u32>,
}

enum Way {
    Json(Box<Matcher>),
    OneOf {
        constraint: Constraint,
        /// Bytes, as tokens need not be whole characters.
        done: Vec<u8>,
        env: TokEnv,
    },
}

impl Guide {
    /// Leaves only the scores of tokens that may follow.
    pub(super) fn mask(&mut self, scores: &mut [f32]) -> Result<(), GenerateProblem> {
        match &mut self.way {
            Way::Json(matcher) => {
                let allowed = matcher.compute_mask().map_err(|error| problem(&error))?;
                for (score, id) in scores.iter_mut().zip(0..) {
                    if !allowed.is_allowed(id) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            Way::OneOf {
                constraint,
                done,
                env,
            } => {
                let mut allowed: Vec<u32> = Vec::new();
                for rest in constraint.rests(done) {
                    if rest.is_empty() {
                        allowed.extend(&self.end_ids);
                    }
                    allowed.extend(env.tok_trie().all_prefixes(rest));
                }
                let kept = allowed.into_iter().filter_map(|id| {
                    let score = *scores.get(id as usize)?;
                    Some((id as usize, score))
                });
                let kept: Vec<(usize, f32)> = kept.collect();
                scores.fill(f32::NEG_INFINITY);
                for (id, score) in kept {
                    scores[id] = score;
                }
            }
        }
        Ok(())
    }

    /// Learns which token follows, not one that ends; `true` if nothing can follow it.
    pub(super) fn advance(&mut self, id: u32) -> Result<bool, GenerateProblem> {
        match &mut self.way {
            Way::Json(matcher) => {
                matcher.consume_token(id).map_err(|error| problem(&error))?;
                Ok(matcher.is_stopped())
            }
            Way::OneOf {
                constraint,
                done,
                env,
            } => {
                done.extend_from_slice(env.tok_trie().token(id));
                Ok(constraint.rests(done).all(<[u8]>::is_empty))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    fn invoice() -> Constraint {
        let schema = json!({
            "type": "object",
            "properties": {
                "total": {"type": "number"},
                "lines": {"type": "array", "items": {"type": "string"}, "maxItems": 2}
            },
            "required": ["total"],
            "additionalProperties": false
        });
        Constraint::json_schema(&schema).unwrap()
    }

    #[test]
    fn json_of_others_is_read_with_any_white_space() {
        let invoice = invoice();
        for text in [
            r#"{"total": 12.5}"#,
            "{\n  \"total\": 12.5,\n  \"lines\": [\"é\", \"b\"]\n}\n",
            r#"{"total":1,"lines":[]}"#,
        ] {
            assert_eq!(invoice.accepts(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_departure_from_the_schema_is_shown_where_it_is() {
        let invoice = invoice();
        assert_eq!(
            invoice.accepts(r#"{"total": "x"}"#).unwrap_err(),
            r#"it departs from the schema at byte 10: `"x"}`"#
        );
        let error = invoice.accepts(r#"{"total": 1"#).unwrap_err();
        assert_eq!(error, "it ends before the schema does, after 11 bytes");
        let error = invoice.accepts(r#"{"total": 1} and so on"#).unwrap_err();
        assert!(error.contains("at byte 12"), "{error}");
        let three = r#"{"total": 1, "lines": ["a", "b", "c"]}"#;
        assert!(invoice.accepts(three).is_err());
        assert!(invoice.accepts("").is_err());
    }

    #[test]
    fn what_a_schema_asks_in_vain_is_named() {
        let schema = json!({"type": "array", "uniqueItems": true, "items": {"type": "string"}});
        let error = Constraint::json_schema(&schema).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("uniqueItems"), "{message}");
        assert!(!message.contains('\n'), "{message}");
        assert!(error.hint().contains("simplify the schema"));
        let error = Constraint::json_schema(&json!({"type": "thing"})).unwrap_err();
        assert!(error.to_string().contains("thing"), "{error}");
    }

    #[test]
    fn options_are_taken_to_the_letter() {
        let labels = Constraint::one_of(&options(&["invoice", "letter"])).unwrap();
        assert_eq!(labels.accepts(" letter\n"), Ok(()));
        assert_eq!(
            labels.accepts("Letter").unwrap_err(),
            "`Letter` is none of `invoice`, `letter`"
        );
        assert!(Constraint::one_of(&[]).is_err());
        let error = Constraint::one_of(&options(&["a", ""])).unwrap_err();
        assert!(error.to_string().contains("an option is empty"));
    }

    #[test]
    fn tokens_lead_to_an_option_and_end_where_it_does() {
        let text = |text: &str| Piece::Text(text.as_bytes().to_vec());
        let mut pieces = vec![text("a"), text("ab"), text("b"), text("c"), text("abc")];
        pieces.extend([Piece::Special("<end>".into()), Piece::Nothing]);
        let mut grammars = Grammars::new(&pieces, &[5]).unwrap();
        let constraint = Constraint::one_of(&options(&["ab", "abcb", "b"])).unwrap();
        let allowed = |guide: &mut Guide| {
            let mut scores = vec![1.0; 7];
            guide.mask(&mut scores).unwrap();
            (0..7).filter(|id| scores[*id] > 0.0).collect::<Vec<_>>()
        };
        let mut guide = grammars.guide(&constraint).unwrap();
        assert_eq!(allowed(&mut guide), [0, 1, 2, 4]);
        assert!(!guide.advance(1).unwrap());
        assert_eq!(allowed(&mut guide), [3, 5], "to the end or on");
        assert!(!guide.advance(3).unwrap());
        assert_eq!(allowed(&mut guide), [2]);
        assert!(guide.advance(2).unwrap());
        let mut guide = grammars.guide(&constraint).unwrap();
        assert!(guide.advance(2).unwrap());
    }
}

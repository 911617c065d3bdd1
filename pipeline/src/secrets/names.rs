//! Recognizes the names of secrets.

use std::ops::Range;

use super::{Found, HIDDEN};

/// What the words of such names end with.
const ENDS: [&str; 9] = [
    "token",
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "credential",
    "credentials",
];

/// Words that say so by themselves.
const WORDS: [&str; 6] = ["key", "keys", "apikey", "pwd", "sig", "signature"];

/// What makes a secret of a setting's `key`, which may also be that of a table.
const KINDS_OF_KEY: [&str; 5] = ["api", "access", "account", "private", "secret"];

/// Whether an environment variable, or a part of a URL, is called like a secret.
pub(crate) fn is_secret_variable(name: &str) -> bool {
    let mut words = words(name).into_iter();
    words.any(|word| is_end(&word) || WORDS.contains(&word.as_str()))
}

/// Whether a setting is called like a secret.
pub(crate) fn is_secret_setting(name: &str) -> bool {
    let words = words(name);
    let is_key = |pair: &[String]| {
        KINDS_OF_KEY.contains(&pair[0].as_str()) && WORDS[..2].contains(&pair[1].as_str())
    };
    words
        .iter()
        .any(|word| is_end(word) || *word == "apikey" || *word == "authorization")
        || words.windows(2).any(is_key)
}

fn is_end(word: &str) -> bool {
    ENDS.iter().any(|end| word.ends_with(end))
}

/// `apiKey`, `api-key` and `API_KEY` are two words each.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || (was_lower && c.is_ascii_uppercase()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
        was_lower = c.is_ascii_lowercase();
    }
    words
}

/// The values in lines such as `passwords = ["..."]`, by their looks: the text
/// may be no TOML. One with a variable in it is shown.
pub(super) fn find_values(text: &str) -> Vec<Found<'static>> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if let Some(value) = value_in(line) {
            found.push((start + value.start..start + value.end, HIDDEN));
        }
        start += line.len();
    }
    found
}

fn value_in(line: &str) -> Option<Range<usize>> {
    let (path, value) = line.split_once('=')?;
    let name = path.rsplit('.').next().unwrap_or(path);
    let after = value.trim_start_matches([' ', '\t', '[', '"', '\'']);
    let hidden = after.trim_end().trim_end_matches([']', '"', '\'']);
    let start = line.len() - after.len();
    (is_secret_setting(name) && !hidden.is_empty() && !value.contains("${"))
        .then(|| start..start + hidden.len())
}

//! Rewrites the errors of serde in the user's words.

use super::{Diagnostic, of_toml, suggest};

/// Turns serde's words into a message and a remedy.
pub(super) fn explain(error: &toml::de::Error) -> Diagnostic {
    let mut diagnostic = of_toml(error);
    let message = diagnostic.message.clone();
    for (begins, what) in [("unknown field ", "key"), ("unknown variant ", "value")] {
        let Some(unknown) = quoted_after(&message, begins) else {
            continue;
        };
        let known = quoted(&message[begins.len() + unknown.len() + 2..]);
        diagnostic.message = format!("unknown {what} `{unknown}`");
        let choices = if what == "key" {
            "known keys"
        } else {
            "choose from"
        };
        diagnostic.hint = Some(suggest(unknown, known, choices));
        return diagnostic;
    }
    for (begins, problem) in [
        ("invalid type: ", "is not"),
        ("invalid value: ", "is out of range for"),
    ] {
        let rest = message.strip_prefix(begins);
        if let Some((found, expected)) = rest.and_then(|rest| rest.split_once(", expected ")) {
            let expected = in_words(expected);
            diagnostic.message = format!("{} {problem} {expected}", quote(found));
            diagnostic.hint = Some(format!("write {expected}"));
        }
    }
    diagnostic
}

/// The value alone, of what serde found: `big` of `string "big"`.
fn quote(found: &str) -> String {
    let value = found.split_once(' ').map_or(found, |(_, value)| value);
    format!("`{}`", value.trim_matches(['`', '"']))
}

/// What serde expects, in the user's words.
fn in_words(expected: &str) -> String {
    let whole_number_to = |max: u64| format!("a whole number from 0 to {max}");
    match expected {
        "u8" => whole_number_to(u8::MAX.into()),
        "u16" => whole_number_to(u16::MAX.into()),
        "u32" => whole_number_to(u32::MAX.into()),
        "u64" | "usize" => "a whole number from 0".into(),
        "i64" | "i32" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a string" => "text in quotes".into(),
        "path string" => "a path in quotes".into(),
        "a sequence" => "a list in `[` and `]`".into(),
        other if other.starts_with("struct ") => "a table in `{` and `}`".into(),
        other => other.to_owned(),
    }
}

/// The text between backticks that follows `begin`.
pub(super) fn quoted_after<'a>(message: &'a str, begin: &str) -> Option<&'a str> {
    message
        .strip_prefix(begin)?
        .strip_prefix('`')?
        .split('`')
        .next()
}

/// Everything between backticks.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

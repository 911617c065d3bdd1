//! `${VAR}` and `${VAR:-default}` in strings.

use std::borrow::Cow;

/// What a string with variables becomes, or what is wrong with it.
///
/// `$$` stands for one `$`. The value is put in after the file has been parsed,
/// so a variable can never change the file's structure, and errors quote the
/// file, not the value, which may be a secret.
pub(crate) fn interpolate<'a>(
    text: &'a str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'a, str>, InterpolationError> {
    if !text.contains('$') {
        return Ok(Cow::Borrowed(text));
    }
    let (mut result, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let end = after.find('}').ok_or(InterpolationError::Open)?;
            result.push_str(&value_of(&after[..end], variable)?);
            rest = &after[end + 1..];
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    Ok(Cow::Owned(result))
}

fn value_of(
    inside: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, InterpolationError> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(is_word) {
        return Err(InterpolationError::Name(name.to_owned()));
    }
    // As in a shell, `:-` also replaces an empty value.
    let value = variable(name).filter(|value| !value.is_empty() || default.is_none());
    value
        .or_else(|| default.map(str::to_owned))
        .ok_or_else(|| InterpolationError::Unset(name.to_owned()))
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InterpolationError {
    #[error("`${{` is not closed")]
    Open,
    #[error("`{0}` is not the name of an environment variable")]
    Name(String),
    #[error("the environment variable `{0}` is not set")]
    Unset(String),
}

impl InterpolationError {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Open => "write `${NAME}`, or `$$` for a dollar sign".into(),
            Self::Name(_) => "use letters, digits and `_`, as in `${DATA_DIR}`".into(),
            Self::Unset(name) => format!("set it, or give a default: `${{{name}:-...}}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, InterpolationError> {
        let variable = |name: &str| match name {
            "HOST" => Some("box".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        interpolate(text, &variable).map(Cow::into_owned)
    }

    #[test]
    fn variables_defaults_and_dollars() {
        assert_eq!(with("plain"), Ok("plain".into()));
        assert_eq!(with("a/${HOST}/b"), Ok("a/box/b".into()));
        assert_eq!(with("${NONE:-x/y}"), Ok("x/y".into()));
        assert_eq!(with("${EMPTY:-x}${EMPTY}"), Ok("x".into()));
        assert_eq!(with("5 $$ and $5"), Ok("5 $ and $5".into()));
    }

    #[test]
    fn mistakes_say_which_variable() {
        assert_eq!(
            with("${NONE}"),
            Err(InterpolationError::Unset("NONE".into()))
        );
        assert_eq!(with("${HOST"), Err(InterpolationError::Open));
        assert_eq!(with("${a b}"), Err(InterpolationError::Name("a b".into())));
    }
}

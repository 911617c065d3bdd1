//! The text of an expression: parsing it, and the places that errors name.

use std::ops::Range;

use cel::common::ast::SourceInfo;
use cel::{Env, IdedExpr, ParseError};

use super::{EXAMPLE, ExpressionError};

/// Longer ones are refused: they were made to harm, or want to be a stage.
const MAX_BYTES: usize = 4096;
/// Each bracket takes some 16 KiB of the parser's stack, in a build without optimization.
const MAX_DEPTH: usize = 24;
/// A chain of operators (`1 + 1 + ...`) is as deep a tree as it is long.
const MAX_OPERATORS: usize = 128;
const MAX_QUOTED_CHARS: usize = 48;

/// The text of an expression, and where its parts stand.
pub(super) struct Source<'a> {
    text: &'a str,
    /// Each pair of brackets, from the opening one to the closing one.
    brackets: Vec<Range<usize>>,
    info: SourceInfo,
}

impl<'a> Source<'a> {
    /// Parses `text`.
    pub(super) fn parse(text: &'a str, env: &Env) -> Result<(Self, IdedExpr), ExpressionError> {
        if text.len() > MAX_BYTES {
            let problem = format!("the expression is longer than {MAX_BYTES} bytes");
            let hint = "set a field of the item in a stage of your own, and test that";
            return Err(ExpressionError::new(None, problem, hint));
        }
        // Before the parser, which recurses: this walks over the text once.
        let brackets = scan(text)?;
        let (expr, info) = env
            .parser()
            .parse_with_source_info(text)
            .map_err(|errors| parse_error(text, &errors.errors))?;
        let source = Self {
            text,
            brackets,
            info,
        };
        Ok((source, expr))
    }

    /// The bytes of the token that the node `id` was made from.
    pub(super) fn token(&self, id: u64) -> Range<usize> {
        let Some((start, last)) = self.info.offset_for(id) else {
            return 0..self.text.len();
        };
        let (start, end) = (start as usize, last as usize + 1);
        if self.text.get(start..end).is_some() {
            start..end
        } else {
            0..self.text.len()
        }
    }

    /// The name of a function, whose call begins with the bracket at `open`.
    pub(super) fn function(&self, name: &str, open: &Range<usize>) -> Range<usize> {
        let before = self.text[..open.start].trim_end();
        if before.ends_with(name) {
            before.len() - name.len()..before.len()
        } else {
            open.clone()
        }
    }

    /// A number with the minus before it, which is a token of its own.
    pub(super) fn signed(&self, number: Range<usize>) -> Range<usize> {
        let before = self.text[..number.start].trim_end();
        if before.ends_with('-') {
            before.len() - 1..number.end
        } else {
            number
        }
    }

    /// Widens a range until each bracket in it has its other half.
    pub(super) fn whole(&self, mut range: Range<usize>) -> Range<usize> {
        loop {
            let cut = self.brackets.iter().find(|pair| {
                let (open, close) = (pair.start, pair.end - 1);
                range.contains(&open) != range.contains(&close)
            });
            match cut {
                Some(pair) => range = join(&range, pair),
                None => return range,
            }
        }
    }

    /// A part of the text as messages quote it.
    pub(super) fn quote(&self, range: Range<usize>) -> String {
        excerpt(&self.text[self.whole(range)])
    }

    /// A part of the text as hints repeat it: never a cut one.
    pub(super) fn code(&self, range: Range<usize>) -> &'a str {
        let code = &self.text[self.whole(range)];
        if code.chars().count() > MAX_QUOTED_CHARS || code.contains('\n') {
            "..."
        } else {
            code
        }
    }
}

/// The range that covers both.
pub(super) fn join(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.min(b.start)..a.end.max(b.end)
}

/// A text on one line, in backticks, cut when it is long.
pub(super) fn excerpt(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(MAX_QUOTED_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MAX_QUOTED_CHARS).is_some() {
        line.push('…');
    }
    format!("`{line}`")
}

/// Finds the pairs of brackets and refuses what the parser has no good words
/// for, or not enough stack.
fn scan(text: &str) -> Result<Vec<Range<usize>>, ExpressionError> {
    let bytes = text.as_bytes();
    let (mut open, mut pairs) = (Vec::new(), Vec::new());
    let mut n_operators = 0;
    let mut place = 0;
    while let Some(&byte) = bytes.get(place) {
        let start = place;
        place += 1;
        match byte {
            b'"' | b'\'' => place = string_end(text, start, start)?,
            b'/' if bytes.get(place) == Some(&b'/') => {
                place = word_end(bytes, start, |b| b != b'\n');
            }
            b'0'..=b'9' => place = word_end(bytes, start, |b| is_word(b) || b == b'.'),
            _ if is_word(byte) => {
                place = word_end(bytes, start, is_word);
                let prefix = &text[start..place];
                if matches!(bytes.get(place), Some(b'"' | b'\''))
                    && ["r", "b", "br"].contains(&prefix.to_ascii_lowercase().as_str())
                {
                    place = string_end(text, start, place)?;
                }
                n_operators += usize::from(prefix == "in");
            }
            b'(' | b'[' | b'{' => {
                open.push(start);
                n_operators += usize::from(byte == b'[');
                if open.len() > MAX_DEPTH {
                    return Err(too_deep(start..place));
                }
            }
            b')' | b']' | b'}' => {
                let other = open.pop().filter(|open| closing(bytes[*open]) == byte);
                let Some(other) = other else {
                    let problem = format!("nothing is open that `{}` closes", char::from(byte));
                    let hint = "take it away, or put the bracket that it closes before it";
                    return Err(ExpressionError::new(start..place, problem, hint));
                };
                pairs.push(other..place);
            }
            b'.' => n_operators += 1,
            _ if is_operator(byte) => {
                place = word_end(bytes, start, is_operator);
                n_operators += 1;
            }
            _ => {}
        }
        if n_operators > MAX_OPERATORS {
            let problem = format!("the expression has more than {MAX_OPERATORS} operators");
            let hint = "write many alternatives as a list: `uri in [\"a.pdf\", \"b.pdf\"]`";
            return Err(ExpressionError::new(start..place, problem, hint));
        }
    }
    if let Some(start) = open.pop() {
        let problem = format!("`{}` is never closed", char::from(bytes[start]));
        let hint = format!("add a `{}`", char::from(closing(bytes[start])));
        return Err(ExpressionError::new(start..start + 1, problem, hint));
    }
    Ok(pairs)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_operator(byte: u8) -> bool {
    b"+-*/%<>=!&|?:".contains(&byte)
}

fn closing(open: u8) -> u8 {
    match open {
        b'(' => b')',
        b'[' => b']',
        _ => b'}',
    }
}

/// The end of the bytes from `start` of which all but the first are `part`s.
fn word_end(bytes: &[u8], start: usize, part: impl Fn(u8) -> bool) -> usize {
    let rest = &bytes[start + 1..];
    let n = rest.iter().take_while(|byte| part(**byte)).count();
    start + 1 + n
}

/// The end of a string: `start` is its prefix (`r` or none), `quote` its first quote.
fn string_end(text: &str, start: usize, quote: usize) -> Result<usize, ExpressionError> {
    let mark = &text[quote..=quote];
    let triple = mark.repeat(3);
    let raw = text[start..quote].contains(['r', 'R']);
    let is_triple = text[quote..].starts_with(&triple);
    let mark = if is_triple { triple.as_str() } else { mark };
    let mut place = quote + mark.len();
    while let Some(&byte) = text.as_bytes().get(place) {
        if text.as_bytes()[place..].starts_with(mark.as_bytes()) {
            return Ok(place + mark.len());
        }
        if byte == b'\n' && !is_triple {
            break;
        }
        place += if byte == b'\\' && !raw { 2 } else { 1 };
    }
    let problem = format!("the text after {} never ends", excerpt(mark));
    let hint = format!("close it with {}", excerpt(mark));
    Err(ExpressionError::new(
        start..quote + mark.len(),
        problem,
        hint,
    ))
}

fn too_deep(at: Range<usize>) -> ExpressionError {
    let problem = format!("the expression is nested more than {MAX_DEPTH} deep");
    let hint =
        "take brackets away, or set a field of the item in a stage of your own and test that";
    ExpressionError::new(at, problem, hint)
}

/// Puts the parser's first error into our words: it lists the forty tokens that
/// it would have liked better.
fn parse_error(text: &str, errors: &[ParseError]) -> ExpressionError {
    // What it says of the tree it could not finish comes on top of the cause.
    let is_syntax = |error: &&ParseError| error.msg.starts_with("Syntax error");
    let Some(error) = errors.iter().find(is_syntax).or(errors.first()) else {
        return ExpressionError::new(None, "the expression cannot be read", EXAMPLE);
    };
    if error.msg.contains("Recursion limit") {
        return too_deep(0..text.len());
    }
    let at = token_at(text, error.pos);
    if text.trim().is_empty() {
        return ExpressionError::new(None, "the expression is empty", EXAMPLE);
    }
    if at.is_empty() {
        let hint = "write what it goes on with, or take the last operator away";
        return ExpressionError::new(at, "the expression ends too early", hint);
    }
    let token = &text[at.clone()];
    let quoted = excerpt(token);
    if let Some(word) = error.msg.strip_prefix("reserved identifier: ") {
        let problem = format!("`{word}` is a reserved word");
        let hint = "give the field another name in the node that adds it";
        return ExpressionError::new(at, problem, hint);
    }
    if error.msg == "invalid int literal" {
        let hint = format!("write one from {} to {}", i64::MIN, i64::MAX);
        return ExpressionError::new(at, format!("{quoted} is no integer of 64 bits"), hint);
    }
    if error.msg == "invalid double literal" {
        let hint = "write a number below 1.8e308";
        return ExpressionError::new(at, format!("{quoted} is no float of 64 bits"), hint);
    }
    if error.msg.contains("token recognition error") && token.starts_with(['"', '\'']) {
        let hint = r#"escapes are `\\`, `\"`, `\'`, `\n` and `\t`; `r"..."` has none"#;
        return ExpressionError::new(at, "this text cannot be read", hint);
    }
    if token == "`" {
        let hint = "write the bare name of a field";
        return ExpressionError::new(at, "a backtick cannot stand here", hint);
    }
    let (at, hint) = syntax_hint(text, at);
    let quoted = excerpt(&text[at.clone()]);
    ExpressionError::new(at, format!("{quoted} cannot stand here"), hint)
}

/// What was likely meant by a token that cannot stand where it does. Widens the
/// token where the parser took the first half of it for something else.
fn syntax_hint(text: &str, at: Range<usize>) -> (Range<usize>, &'static str) {
    let token = &text[at.clone()];
    let before = text[..at.start].trim_end();
    let last_word = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next();
    if last_word.is_some_and(|word| word.eq_ignore_ascii_case("not")) {
        return (before.len() - 3..before.len(), "write `!`");
    }
    let hint = match token.to_ascii_lowercase().as_str() {
        ">" if text[..at.start].ends_with('<') => return (at.start - 1..at.end, "write `!=`"),
        "=" => "compare with `==`",
        "&" | "and" => "write `&&`",
        "|" | "or" => "write `||`",
        "not" => "write `!`",
        _ => EXAMPLE,
    };
    (at, hint)
}

/// The token at a line and column (both from 1, in characters) of the parser's.
fn token_at(text: &str, (line, column): (isize, isize)) -> Range<usize> {
    let (line, column) = (line.max(1) as usize, column.max(1) as usize);
    let before: usize = text
        .split_inclusive('\n')
        .take(line - 1)
        .map(str::len)
        .sum();
    let rest = &text[before..];
    let within = rest.char_indices().nth(column - 1).map(|(place, _)| place);
    let start = within.map_or(text.len(), |place| before + place);
    let Some(first) = text[start..].chars().next() else {
        return start..start;
    };
    let end = match first {
        '"' | '\'' => string_end(text, start, start).unwrap_or(start + 1),
        _ if first.is_ascii() && is_word(first as u8) => word_end(text.as_bytes(), start, is_word),
        _ => start + first.len_utf8(),
    };
    start..end
}

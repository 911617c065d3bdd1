//! Makes text from outside safe to print on a terminal.
//!
//! Whoever named a file or wrote a document may have put control characters
//! into it. A terminal obeys them: it would recolour, move the cursor, retitle
//! its window or hide a line.

use std::borrow::Cow;

/// The text in one line. Control characters, line breaks among them, are
/// written as in a string of Rust: `\n`, `\u{1b}`.
///
/// ```
/// let name = "report\u{1b}[2J\n.pdf";
/// assert_eq!(pagemill_pipeline::printable_line(name), r"report\u{1b}[2J\n.pdf");
/// ```
pub fn printable_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed)
}

/// The same with its line breaks and tabs, for text of several lines.
pub fn printable_text(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_obeyed(c) && c != '\n' && c != '\t')
}

/// Whether a terminal does something else than to show the character. The
/// characters that reverse the direction of text make a name look like another.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => shown.push(c),
            '\n' | '\r' | '\t' => shown.extend(c.escape_default()),
            c => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_the_rest_stays() {
        for (text, expected) in [
            ("Übersicht 3 \\ 4 — é🙂.pdf", "Übersicht 3 \\ 4 — é🙂.pdf"),
            ("a\u{1b}]0;owned\u{7}.pdf", r"a\u{1b}]0;owned\u{7}.pdf"),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("a\u{9b}31m\u{7f}", r"a\u{9b}31m\u{7f}"),
            ("exe.\u{202e}fdp", r"exe.\u{202e}fdp"),
            ("", ""),
        ] {
            assert_eq!(printable_line(text), expected);
        }
    }

    #[test]
    fn text_of_several_lines_keeps_its_lines_and_tabs_only() {
        let text = "one\r\n\ttwo\u{1b}[1A\u{2028}";
        assert_eq!(printable_text(text), "one\\r\n\ttwo\\u{1b}[1A\\u{2028}");
    }
}

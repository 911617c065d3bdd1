//! Errors with a place: file, line, a caret under the value, and a remedy.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::metrics::Role;
use crate::printable::{printable_line, printable_text};
use crate::secrets::Secrets;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Bytes of the text that it is about; see [`Sources`].
    pub(crate) span: Range<usize>,
}

impl Diagnostic {
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            span,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The most errors that are shown: each repeats a part of the text.
const MAX_SHOWN: usize = 50;

/// Longer names are like no other.
const MAX_NAME_BYTES: usize = 128;

/// What a pipeline was wired in: hints speak its language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    Toml,
    Rust,
}

impl Wiring {
    /// How a node of this role is added.
    pub(crate) fn add(self, pipeline: &str, role: Role) -> String {
        let role = role.table();
        match self {
            Self::Toml => format!("add a `[{pipeline}.{role}.NAME]` table"),
            Self::Rust => format!("add `.{role}(\"NAME\", ..)`"),
        }
    }

    /// How what no `when` takes is dropped.
    pub(crate) fn drop_the_rest(self) -> &'static str {
        match self {
            Self::Toml => "`else = \"drop\"`",
            Self::Rust => "`.or_else_drop()`",
        }
    }

    /// How what no `when` takes goes to another node.
    pub(crate) fn name_the_rest(self) -> &'static str {
        match self {
            Self::Toml => "`else = \"NODE\"`",
            Self::Rust => "`.or_else(\"NODE\")`",
        }
    }
}

/// The texts that a configuration is made of: a file and `--set` overrides.
///
/// A span counts on through all of them, so that a value's place says which
/// text it stands in. A pipeline that was built in Rust has no text: a place is
/// then the name of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    texts: Vec<Source>,
    n_bytes: usize,
    /// What errors do not show.
    pub(crate) secrets: Secrets,
}

#[derive(Debug, Clone)]
struct Source {
    name: PathBuf,
    /// None where the name is all there is.
    text: Option<String>,
    start: usize,
}

impl Sources {
    /// Adds a text and returns where its spans begin.
    pub(crate) fn add(&mut self, name: &Path, text: &str) -> usize {
        let start = self.n_bytes;
        self.texts.push(Source {
            name: name.to_owned(),
            text: Some(text.to_owned()),
            start,
        });
        // One more than the text, so that the place just after its end is its own.
        self.n_bytes += text.len() + 1;
        start
    }

    /// Adds a place that has a name and no text.
    pub(crate) fn add_place(&mut self, name: String) -> Range<usize> {
        let start = self.n_bytes;
        self.texts.push(Source {
            name: name.into(),
            text: None,
            start,
        });
        self.n_bytes += 1;
        start..start
    }

    /// The same texts, as they may be shown.
    fn masked(&self) -> Self {
        let mut masked = self.clone();
        for source in &mut masked.texts {
            source.text = source.text.take().map(|text| self.secrets.mask(&text));
        }
        masked
    }

    /// The text that a span stands in.
    fn find(&self, span: &Range<usize>) -> Option<&Source> {
        let mut texts = self.texts.iter().rev();
        texts.find(|source| source.start <= span.start)
    }
}

impl Source {
    /// A span within the text.
    fn within(&self, text: &str, span: &Range<usize>) -> Range<usize> {
        let within = |offset: usize| {
            let mut offset = offset.saturating_sub(self.start).min(text.len());
            while !text.is_char_boundary(offset) {
                offset -= 1;
            }
            offset
        };
        within(span.start)..within(span.end)
    }
}

/// Everything that is wrong with a configuration, ready to print.
#[derive(Debug, Clone)]
pub struct ConfigError {
    pub(crate) sources: Sources,
    /// In the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    pub(crate) fn new(sources: &Sources, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
        diagnostics.dedup();
        for Diagnostic { message, hint, .. } in &mut diagnostics {
            *message = sources.secrets.redact(message).into_owned();
            *hint = hint
                .take()
                .map(|hint| sources.secrets.redact(&hint).into_owned());
        }
        Self {
            sources: sources.masked(),
            diagnostics,
        }
    }

    /// An error about a file as a whole: it cannot be read.
    pub(crate) fn of_file(message: String, hint: &str) -> Self {
        let diagnostic = Diagnostic::new(0..0, message).hint(hint);
        Self {
            sources: Sources::default(),
            diagnostics: vec![diagnostic],
        }
    }

    /// The errors of both; of the same configuration.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let diagnostics = self
            .diagnostics
            .into_iter()
            .chain(other.diagnostics)
            .collect();
        Self::new(&self.sources, diagnostics)
    }

    /// The errors as text, with colours for a terminal if `styled`.
    pub fn render(&self, styled: bool) -> String {
        self.render_as(&Level::ERROR, "errors", styled)
    }

    /// The same as warnings.
    pub fn render_warnings(&self, styled: bool) -> String {
        self.render_as(&Level::WARNING, "warnings", styled)
    }

    fn render_as(&self, level: &Level<'_>, what: &str, styled: bool) -> String {
        let painter = if styled {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let painter = painter.decor_style(DecorStyle::Ascii);
        let shown = self.diagnostics.iter().take(MAX_SHOWN);
        let n_more = self.diagnostics.len() - shown.len();
        let rendered = shown.map(|diagnostic| {
            let title = level
                .clone()
                .primary_title(printable_line(&diagnostic.message));
            let error = match self.sources.find(&diagnostic.span) {
                None => Group::with_title(title),
                Some(source) => {
                    let path = source.name.display().to_string();
                    let path = printable_line(&path).into_owned();
                    match &source.text {
                        None => title.element(Origin::path(path)),
                        Some(text) => {
                            let span = source.within(text, &diagnostic.span);
                            let annotation = AnnotationKind::Primary.span(span);
                            title.element(
                                Snippet::source(without_c1(text))
                                    .path(path)
                                    .annotation(annotation),
                            )
                        }
                    }
                }
            };
            let hint = diagnostic.hint.as_ref().map(|hint| {
                let level = Level::HELP.with_name("hint");
                Group::with_title(level.secondary_title(printable_text(hint)))
            });
            let report: Vec<Group<'_>> = std::iter::once(error).chain(hint).collect();
            painter.render(&report)
        });
        let mut rendered: Vec<String> = rendered.collect();
        if n_more > 0 {
            rendered.push(format!("and {n_more} more {what}"));
        }
        rendered.join("\n\n")
    }
}

/// The text without the control characters that the renderer lets pass. What
/// stands for one is as long, so that no place in the text moves.
fn without_c1(text: &str) -> String {
    text.replace(|c| matches!(c, '\u{80}'..='\u{9f}'), "·")
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// The known name most like `name`, if one is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKE: f64 = 0.7;
    const MAX_KNOWN: usize = 1000;
    let is_short = |name: &str| name.len() <= MAX_NAME_BYTES;
    let like = known
        .into_iter()
        .take(MAX_KNOWN)
        .filter(|known| is_short(known) && is_short(name))
        .map(|known| (known, strsim::jaro_winkler(name, known)));
    like.filter(|(_, like)| *like >= LIKE)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(known, _)| known)
}

/// "did you mean `x`?", or else the list of what there is.
pub(crate) fn suggest<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
    what: &str,
) -> String {
    if let Some(like) = nearest(name, known.clone()) {
        return format!("did you mean `{like}`?");
    }
    let known: Vec<String> = known
        .into_iter()
        .map(|known| format!("`{known}`"))
        .collect();
    if known.is_empty() {
        format!("there are no {what} here")
    } else {
        format!("{what}: {}", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_of_a_file_has_what_a_terminal_obeys() {
        let text = "[\"a\u{1b}[2J\u{9b}31m\"]\nkind = 1";
        let mut sources = Sources::default();
        sources.add(Path::new("p\u{1b}[31m\n.toml"), text);
        let diagnostic = Diagnostic::new(1..5, "no `a\u{1b}[2J\n`").hint("write\u{1b}c\nit");
        let shown = ConfigError::new(&sources, vec![diagnostic]).to_string();
        let is_obeyed = |c: char| c.is_control() && c != '\n';
        assert!(!shown.contains(is_obeyed), "{shown:?}");
        assert!(shown.starts_with("error: no `a\\u{1b}[2J\\n`\n"), "{shown}");
    }
}

//! Errors with a place: file, line, a caret under the value, and a remedy.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

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

/// The texts that a configuration is made of: a file and `--set` overrides.
///
/// A span counts on through all of them, so that a value's place says which
/// text it stands in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    texts: Vec<(PathBuf, String, usize)>,
    n_bytes: usize,
}

impl Sources {
    /// Adds a text and returns where its spans begin.
    pub(crate) fn add(&mut self, name: &Path, text: &str) -> usize {
        let start = self.n_bytes;
        self.texts.push((name.to_owned(), text.to_owned(), start));
        // One more than the text, so that the place just after its end is its own.
        self.n_bytes += text.len() + 1;
        start
    }

    /// The text that a span stands in, and the span within it.
    fn find(&self, span: &Range<usize>) -> Option<(&Path, &str, Range<usize>)> {
        let (name, text, start) = self
            .texts
            .iter()
            .rev()
            .find(|(_, _, start)| *start <= span.start)?;
        let within = |offset: usize| {
            let mut offset = offset.saturating_sub(*start).min(text.len());
            while !text.is_char_boundary(offset) {
                offset -= 1;
            }
            offset
        };
        Some((name, text, within(span.start)..within(span.end)))
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
        Self {
            sources: sources.clone(),
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
        let painter = if styled {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let painter = painter.decor_style(DecorStyle::Ascii);
        let rendered = self.diagnostics.iter().map(|diagnostic| {
            let title = Level::ERROR.primary_title(&diagnostic.message);
            let place = self.sources.find(&diagnostic.span);
            let path = place
                .as_ref()
                .map(|(name, _, _)| name.display().to_string());
            let error = match (&place, &path) {
                (Some((_, text, span)), Some(path)) => title.element(
                    Snippet::source(*text)
                        .path(path.as_str())
                        .annotation(AnnotationKind::Primary.span(span.clone())),
                ),
                _ => Group::with_title(title),
            };
            let hint = diagnostic
                .hint
                .as_ref()
                .map(|hint| Group::with_title(Level::HELP.with_name("hint").secondary_title(hint)));
            let report: Vec<Group<'_>> = std::iter::once(error).chain(hint).collect();
            painter.render(&report)
        });
        rendered.collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// The known name most like `name`, if one is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKE: f64 = 0.7;
    let like = known
        .into_iter()
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

//! Replaces a leading `~` in path settings by the home folder.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Diagnostic;
use crate::registry::Registry;

/// Settings of a pipeline itself that hold a path.
const OF_PIPELINE: [&str; 2] = ["dead_letters", "ledger"];

/// Replaces `~` in the path settings of all pipelines and of their nodes. The
/// kind of a node names its path settings.
pub(super) fn expand(
    root: &mut DeTable<'_>,
    registry: &Registry,
    variable: &dyn Fn(&str) -> Option<String>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut expand_in = |table: &mut DeTable<'_>, names: &[&str]| {
        for name in names {
            if let Some(value) = table.get_mut(*name) {
                expand_value(value, variable, diagnostics);
            }
        }
    };
    for pipeline in tables(root) {
        expand_in(pipeline, &OF_PIPELINE);
        for role in ["source", "stage", "sink"] {
            let nodes = pipeline.get_mut(role).map(Spanned::get_mut);
            let Some(DeValue::Table(nodes)) = nodes else {
                continue;
            };
            for node in tables(nodes) {
                let kind = node.get("kind").map(Spanned::get_ref);
                let kind = kind.and_then(DeValue::as_str);
                if let Some(kind) = kind.and_then(|kind| registry.get(kind)) {
                    expand_in(node, kind.paths);
                }
            }
        }
    }
}

/// The tables among the values of a table.
fn tables<'t, 'a>(table: &'t mut DeTable<'a>) -> impl Iterator<Item = &'t mut DeTable<'a>> {
    table
        .iter_mut()
        .filter_map(|(_, value)| match value.get_mut() {
            DeValue::Table(table) => Some(table),
            _ => None,
        })
}

fn expand_value(
    value: &mut Spanned<DeValue<'_>>,
    variable: &dyn Fn(&str) -> Option<String>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let span = value.span();
    let DeValue::String(text) = value.get_mut() else {
        return; // Another type is reported when the setting is read.
    };
    match expanded(text, variable) {
        Ok(Some(path)) => *text = path.into(),
        Ok(None) => {}
        Err(error) => {
            let diagnostic = Diagnostic::new(span, error.to_string());
            diagnostics.push(diagnostic.hint(error.hint()));
        }
    }
}

/// The path with the home folder in the place of a leading `~`; `None` if it has none.
fn expanded(
    path: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>, HomeError> {
    let Some(below) = path.strip_prefix('~') else {
        return Ok(None);
    };
    if !below.is_empty() && !below.starts_with('/') {
        return Err(HomeError::OfUser(path.to_owned()));
    }
    let home = variable("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or(HomeError::Unset)?;
    Ok(Some(format!("{}{below}", home.trim_end_matches('/'))))
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum HomeError {
    #[error("`~` is the home folder, and the environment variable `HOME` is not set")]
    Unset,
    #[error("`{0}` begins with the name of a user's home folder, which is not looked up")]
    OfUser(String),
}

impl HomeError {
    fn hint(&self) -> String {
        match self {
            Self::Unset => "set `HOME`, or write the path in full".into(),
            Self::OfUser(path) => format!(
                "write the path in full, `~/...` for your own home folder, or `./{path}` for a \
                 file of this name"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_home(path: &str) -> Result<Option<String>, HomeError> {
        expanded(path, &|name| (name == "HOME").then(|| "/home/ann".into()))
    }

    #[test]
    fn a_leading_tilde_is_the_home_folder() {
        assert_eq!(of_home("~"), Ok(Some("/home/ann".into())));
        assert_eq!(of_home("~/a b/~c"), Ok(Some("/home/ann/a b/~c".into())));
        for other in ["", "a~", "./~", "a/~/b"] {
            assert_eq!(of_home(other), Ok(None), "{other}");
        }
    }

    #[test]
    fn folders_of_a_pipeline_may_lie_in_the_home_folder() {
        let text = "[p]\ndead_letters = '~/letters'\nledger = '~ben/ledger'\ndescription = '~/x'";
        let (root, _) = DeTable::parse_recoverable(text);
        let (mut root, mut diagnostics) = (root.into_inner(), Vec::new());
        let home = |_: &str| Some("/home/ann/".to_owned());
        expand(&mut root, &Registry::new(), &home, &mut diagnostics);
        let pipeline = tables(&mut root).next().unwrap();
        let text_of = |name: &str| pipeline.get(name).unwrap().get_ref().as_str().unwrap();
        assert_eq!(text_of("dead_letters"), "/home/ann/letters");
        assert_eq!(text_of("description"), "~/x", "it holds no path");
        let [diagnostic] = &diagnostics[..] else {
            panic!("{diagnostics:?}");
        };
        assert_eq!(&text[diagnostic.span.clone()], "'~ben/ledger'");
    }

    #[test]
    fn a_home_folder_that_is_not_known_is_refused_with_a_hint() {
        let error = of_home("~ben/a").unwrap_err();
        assert_eq!(error, HomeError::OfUser("~ben/a".into()));
        assert!(error.hint().contains("`./~ben/a`"));
        for home in [None, Some(String::new())] {
            let error = expanded("~/a", &|_| home.clone()).unwrap_err();
            assert_eq!(error, HomeError::Unset);
        }
    }
}

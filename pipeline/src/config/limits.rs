//! Limits the size and the depth of a configuration: one that is more was made by mistake, or to
//! harm.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{ConfigError, Diagnostic};

/// Longer files are refused.
const MAX_BYTES: u64 = 1 << 20;

/// Tables and arrays within each other. What walks over them takes stack for
/// each, and the parser alone lets thousands pass.
const MAX_DEPTH: usize = 64;

/// Reads a file that may be a configuration.
///
/// # Errors
/// It cannot be read, or is too long.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        // A device may have no end.
        let file = File::open(path)?.take(MAX_BYTES + 1);
        io::BufReader::new(file).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error| {
        let hint = "name another file with `--config`, or run in the folder that holds it";
        ConfigError::of_file(format!("cannot read `{}`: {error}", path.display()), hint)
    })
}

/// # Errors
/// The text is too long.
pub(super) fn check_length(path: &Path, text: &str) -> Result<(), ConfigError> {
    if text.len() as u64 <= MAX_BYTES {
        return Ok(());
    }
    let message = format!("`{}` is longer than {MAX_BYTES} bytes", path.display());
    let hint = "split it: a file needs only the pipelines that are run together";
    Err(ConfigError::of_file(message, hint))
}

/// What is wrong with a value that is nested too deep, and where.
pub(super) fn check_depth(value: &DeValue<'_>) -> Option<Diagnostic> {
    // By hand: the check must not take the stack that it saves.
    let mut rest = vec![(value, 0, 0..0)];
    while let Some((value, depth, span)) = rest.pop() {
        if depth > MAX_DEPTH {
            let message = format!("this is nested more than {MAX_DEPTH} deep");
            let hint = "a pipeline's tables are four deep; take brackets or dots away";
            return Some(Diagnostic::new(span, message).hint(hint));
        }
        match value {
            DeValue::Array(values) => {
                rest.extend(values.iter().map(|v| (v.get_ref(), depth + 1, v.span())));
            }
            DeValue::Table(table) => {
                let values = table.iter();
                rest.extend(values.map(|(_, v)| (v.get_ref(), depth + 1, v.span())));
            }
            _ => {}
        }
    }
    None
}

/// Lets go of a value however deep it is; dropping it takes stack for each table.
pub(super) fn take_apart(value: DeValue<'_>) {
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        match value {
            DeValue::Array(values) => {
                rest.extend(values.into_iter().map(toml::Spanned::into_inner));
            }
            DeValue::Table(table) => {
                rest.extend(table.into_iter().map(|(_, value)| value.into_inner()));
            }
            _ => {}
        }
    }
}

/// # Errors
/// The table is too deep; it is gone then.
pub(super) fn of_sound_depth(table: DeTable<'_>) -> Result<DeTable<'_>, Diagnostic> {
    let value = DeValue::Table(table);
    match (check_depth(&value), value) {
        (None, DeValue::Table(table)) => Ok(table),
        (problem, value) => {
            take_apart(value);
            Err(problem.unwrap_or_else(|| Diagnostic::new(0..0, "the file is no table")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;
    use super::*;
    use crate::registry::Registry;

    fn refused(text: &str, overrides: &[String]) -> String {
        let registry = Registry::new();
        let file = ConfigFile::parse(Path::new("p.toml"), text, overrides, &registry, &|_| None);
        file.err().expect("it is refused").to_string()
    }

    /// Tables within tables, as deep as the parser lets them be.
    fn bomb() -> String {
        let dots = ["a"; 79].join(".");
        let opens = format!("{{{dots}=").repeat(70);
        format!("{dots}={opens}1{}\n", "}".repeat(70))
    }

    #[test]
    fn a_file_that_is_too_deep_is_refused_where_it_is() {
        let told = refused(&bomb(), &[]);
        assert!(told.contains("nested more than 64 deep"), "{told}");
        // Also where something else is wrong with it.
        refused(&format!("{}b = \n", bomb()), &[]);
        let deep = format!("a = {}1{}", "[".repeat(1000), "]".repeat(1000));
        refused(&deep, &[]);
    }

    #[test]
    fn an_argument_that_is_too_deep_is_refused() {
        let file = "[p.stage.a]\nkind = 'b'\n";
        let deep = format!("p.stage.a.{}=1", vec!["b"; 50_000].join("."));
        let told = refused(file, &[deep]);
        assert!(told.contains("names more than"), "{told}");
        let bomb = bomb();
        let value = bomb.split_once('=').expect("it has one").1;
        let told = refused(file, &[format!("p.stage.a.b={value}")]);
        assert!(told.contains("nested more than 64 deep"), "{told}");
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_without_being_read_whole() {
        let long = "# as long as a line\n".repeat(60_000);
        let told = refused(&long, &[]);
        assert!(
            told.contains("`p.toml` is longer than 1048576 bytes"),
            "{told}"
        );
        let endless = read(Path::new("/dev/zero")).expect("zeros are text");
        assert!(check_length(Path::new("zero"), &endless).is_err());
    }

    #[test]
    fn many_mistakes_are_told_in_a_moment() {
        let lines: Vec<String> = (0..20_000).map(|n| format!("wrong{n} = 1")).collect();
        let text = lines.join("\n");
        let began = std::time::Instant::now();
        let told = refused(&text, &[]);
        assert!(
            told.ends_with("and 19950 more errors"),
            "{}",
            &told[told.len() - 200..]
        );
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}

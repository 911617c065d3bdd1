//! Puts the values of variables into the settings, and notes what is secret.

use std::cell::RefCell;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Diagnostic;
use super::interpolate::interpolate;
use crate::secrets::{Secrets, is_secret_setting, is_secret_variable};

/// Settings of a node: `pipeline.role.node.setting`.
const DEPTH_OF_SETTINGS: usize = 3;

/// Interpolates every string. Returns the secrets: values of variables that are
/// called like one, and strings of settings that are. Below the settings there
/// are names of fields, which may be called anything; only a server's are looked at.
pub(super) fn put_in(
    root: &mut DeTable<'_>,
    variable: &dyn Fn(&str) -> Option<String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Secrets {
    let secrets = RefCell::new(Secrets::default());
    let noted = |name: &str| {
        let value = variable(name)?;
        if is_secret_variable(name) {
            secrets.borrow_mut().add(&value, &format!("${{{name}}}"));
        }
        Some(value)
    };
    let mut walk = Walk {
        variable: &noted,
        secrets: &secrets,
        diagnostics,
    };
    walk.table(root, 0);
    secrets.into_inner()
}

struct Walk<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    secrets: &'a RefCell<Secrets>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Walk<'_> {
    fn table(&mut self, table: &mut DeTable<'_>, depth: usize) {
        // `model = { url = "...", key = "..." }`
        let is_server = depth > DEPTH_OF_SETTINGS && table.contains_key("url");
        for (key, value) in table.iter_mut() {
            let name: &str = key.get_ref();
            let is_secret = match depth {
                ..DEPTH_OF_SETTINGS => false,
                DEPTH_OF_SETTINGS => is_secret_setting(name),
                _ => is_server && (name == "key" || is_secret_setting(name)),
            };
            self.value(value, depth + 1, is_secret);
        }
    }

    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, depth: usize, is_secret: bool) {
        let span = value.span();
        match value.get_mut() {
            DeValue::String(text) => match interpolate(text, self.variable) {
                Ok(new) => {
                    let new = new.into_owned();
                    if is_secret {
                        let shown = if **text == *new { "***" } else { &**text };
                        self.secrets.borrow_mut().add(&new, shown);
                    }
                    *text = new.into();
                }
                Err(error) => {
                    let diagnostic = Diagnostic::new(span, error.to_string());
                    self.diagnostics.push(diagnostic.hint(error.hint()));
                }
            },
            DeValue::Array(values) => {
                for value in values.iter_mut() {
                    self.value(value, depth, is_secret);
                }
            }
            DeValue::Table(table) => self.table(table, depth),
            _ => {}
        }
    }
}

//! Finds the address of the hub and the token for it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Where models are fetched from, and as whom. The default is the public hub, without a name.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// What opens models that are not open to all.
    pub token: Option<String>,
    /// The file with the token of somebody who logged in, read if `token` is not set.
    pub token_file: Option<PathBuf>,
    /// Forbids to fetch anything.
    pub is_offline: bool,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".into(),
            token: None,
            token_file: None,
            is_offline: false,
        }
    }
}

impl Hub {
    /// The variables that the hub's own tools read. `cache` is the user's cache folder.
    pub(crate) fn from_variables(read: impl Fn(&str) -> Option<PathBuf>, cache: &Path) -> Self {
        let text = |name| {
            let value = read(name)?.to_str()?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let home = read("HF_HOME").unwrap_or_else(|| cache.join("huggingface"));
        let usual = Self::default();
        let offline = text("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Self {
            endpoint: text("HF_ENDPOINT").map_or(usual.endpoint, |endpoint| {
                endpoint.trim_end_matches('/').to_owned()
            }),
            token: text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")),
            token_file: Some(read("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))),
            is_offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
        }
    }

    /// The token, from wherever it is.
    pub(super) fn find_token(&self) -> Option<String> {
        let from_file = || fs::read_to_string(self.token_file.as_ref()?).ok();
        let token = self.token.clone().or_else(from_file)?.trim().to_owned();
        (!token.is_empty()).then_some(token)
    }
}

/// Without the token, which no log should hold.
impl fmt::Debug for Hub {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "...");
        formatter
            .debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("token_file", &self.token_file)
            .field("is_offline", &self.is_offline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let read = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| PathBuf::from(value))
        };
        Hub::from_variables(read, Path::new("/c"))
    }

    #[test]
    fn the_environment_says_where_the_hub_is_and_who_asks() {
        let usual = hub(&[("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", " ")]);
        let expected = Hub {
            token_file: Some("/c/huggingface/token".into()),
            ..Hub::default()
        };
        assert_eq!(usual, expected);
        let other = hub(&[
            ("HF_ENDPOINT", "http://mirror:8080/"),
            ("HF_TOKEN", "hf_secret\n"),
            ("HF_HOME", "/h"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(other.endpoint, "http://mirror:8080");
        assert_eq!(other.find_token().as_deref(), Some("hf_secret"));
        assert_eq!(other.token_file, Some("/h/token".into()));
        assert!(other.is_offline);
        assert!(!format!("{other:?}").contains("secret"));
    }

    #[test]
    fn the_token_of_a_login_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let hub = hub(&[("HF_TOKEN_PATH", file.to_str().unwrap())]);
        assert_eq!(hub.find_token(), None);
        fs::write(file, "hf_login\n").unwrap();
        assert_eq!(hub.find_token().as_deref(), Some("hf_login"));
    }
}

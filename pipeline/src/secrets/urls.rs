//! Secrets in URLs, by their place.

use std::fmt::Write as _;
use std::ops::Range;

use super::names::is_secret_variable;
use super::{Found, HIDDEN};

/// What ends a URL in a text.
const AFTER: [char; 5] = ['"', '\'', '`', '<', '>'];

/// What stands before the `@`, and the values of `token=` and the like.
pub(super) fn find(text: &str) -> Vec<Found<'static>> {
    let mut found = Vec::new();
    for (place, mark) in text.match_indices("://") {
        let start = place + mark.len();
        let rest = &text[start..];
        let end = rest.find(|c: char| c.is_whitespace() || AFTER.contains(&c));
        let url = &rest[..end.unwrap_or(rest.len())];
        let mut hide = |within: Range<usize>| {
            if !url[within.clone()].is_empty() && !is_variable(&url[within.clone()]) {
                found.push((start + within.start..start + within.end, HIDDEN));
            }
        };
        if let Some(end) = user_end(url) {
            hide(0..end);
        }
        let mut place = url.find('?').map_or(url.len(), |mark| mark + 1);
        for pair in url[place..].split_inclusive(['&', ';', '#']) {
            let value = pair.trim_end_matches(['&', ';', '#']).split_once('=');
            if let Some((name, value)) = value.filter(|(name, _)| is_secret_variable(name)) {
                let from = place + name.len() + 1;
                hide(from..from + value.len());
            }
            place += pair.len();
        }
    }
    found
}

/// Where the user and password before the `@` end.
fn user_end(url: &str) -> Option<usize> {
    let host = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
    if let Some(at) = host.rfind('@') {
        return Some(at);
    }
    // A password that is not encoded may have a `/` in it; a number is a port.
    let (_, password) = host.split_once(':').filter(|_| !host.starts_with('['))?;
    let is_port = password.bytes().all(|byte| byte.is_ascii_digit());
    url.rfind('@').filter(|_| !is_port)
}

/// Whether a part shows a variable's name in place of the value.
fn is_variable(part: &str) -> bool {
    let secret = part.split_once(':').map_or(part, |(_, password)| password);
    secret == HIDDEN || (secret.starts_with("${") && secret.ends_with('}'))
}

/// The text as a part of a URL.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

//! Removes the configuration's secrets from errors and logs that the commands print.

use std::sync::{Mutex, PoisonError};

use pagemill::pipeline::Secrets;

/// Of every configuration that this process has read: the log has no other way
/// to know of them.
static KEPT: Mutex<Option<Secrets>> = Mutex::new(None);

/// Shows these values no more.
pub(crate) fn keep(secrets: &Secrets) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.get_or_insert_default().extend(secrets);
}

/// The text as it may be shown.
pub(crate) fn without(text: &str) -> String {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.clone().unwrap_or_default();
    kept.redact(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_last_does_not_undo_what_was_read_before() {
        for (value, shown) in [
            ("first-value", "${A_TOKEN}"),
            ("second-value", "${B_TOKEN}"),
        ] {
            let mut secrets = Secrets::default();
            secrets.add(value, shown);
            keep(&secrets);
        }
        assert_eq!(without("first-value second-value"), "${A_TOKEN} ${B_TOKEN}");
    }
}

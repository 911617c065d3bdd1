//! Whether an error is that of a full disk, whoever wraps it.

use std::error::Error;
use std::io;

/// "No space left on device", "disk quota exceeded" and "file too large", on Linux.
const NO_ROOM: [i32; 3] = [28, 122, 27];

/// Whether `error`, or what caused it, says that the disk has no room.
pub(crate) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let says_so = error
                .raw_os_error()
                .is_some_and(|code| NO_ROOM.contains(&code));
            if says_so || error.get_ref().is_some_and(|inner| is_full(inner)) {
                return true;
            }
        }
        // Some wrappers keep the text alone.
        let text = error.to_string();
        if NO_ROOM
            .iter()
            .any(|code| text.contains(&format!("(os error {code})")))
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_through_its_wrappers() {
        let full = || io::Error::from_raw_os_error(28);
        assert!(is_full(&full()));
        assert!(is_full(&io::Error::other(full())));
        assert!(is_full(&io::Error::other(full().to_string())));
        assert!(!is_full(&io::Error::from(io::ErrorKind::NotFound)));
    }
}

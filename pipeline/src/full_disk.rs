//! Recognizes the error of a full disk, whichever library wraps it.

use std::error::Error;
use std::io;

use rusqlite::ErrorCode;

/// "No space left on device", "disk quota exceeded" and "file too large", on Linux.
const NO_ROOM: [i32; 3] = [28, 122, 27];

/// Whether `error`, or one of its causes, is that of a disk without room.
pub fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let is_full = error
                .raw_os_error()
                .is_some_and(|code| NO_ROOM.contains(&code));
            if is_full || error.get_ref().is_some_and(|inner| is_disk_full(inner)) {
                return true;
            }
        }
        // SQLite has no error of the system below its own.
        if error.downcast_ref().is_some_and(is_database_full) {
            return true;
        }
        // Some wrappers keep the text alone.
        let text = error.to_string();
        let has_code = |code: &i32| text.contains(&format!("(os error {code})"));
        if NO_ROOM.iter().any(has_code) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether `SQLite` has no room for the database, or for the index of its log.
fn is_database_full(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognized_through_its_wrappers() {
        let full = || io::Error::from_raw_os_error(28);
        assert!(is_disk_full(&full()));
        assert!(is_disk_full(&io::Error::other(full())));
        assert!(is_disk_full(&io::Error::other(full().to_string())));
        assert!(!is_disk_full(&io::Error::from(io::ErrorKind::NotFound)));
    }

    #[test]
    fn a_full_disk_is_recognized_in_the_error_of_the_ledger() {
        let error = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        assert!(is_disk_full(&error(rusqlite::ffi::SQLITE_FULL)));
        assert!(is_disk_full(&error(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)));
        assert!(!is_disk_full(&error(rusqlite::ffi::SQLITE_READONLY)));
    }
}

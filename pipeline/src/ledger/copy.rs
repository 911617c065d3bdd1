//! Copies a ledger into memory, for a run that changes nothing on disk.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::file::{TABLES, check_texts};

/// The tables of `path` in a database in memory; empty ones where there is no file.
///
/// A file that a process has open is read with the locks of `SQLite`. Another one
/// is read as immutable, since `SQLite` would make its `-wal` and `-shm` files.
pub(super) fn copy_into_memory(path: &Path, version: i64) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(TABLES)?;
    if !path.exists() {
        return Ok(connection);
    }
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.execute("ATTACH DATABASE ?1 AS disk", [uri_of(path)])?;
    let found: i64 = connection.query_row("PRAGMA disk.user_version", [], |row| row.get(0))?;
    if found != version {
        // A run puts such a file aside and starts with an empty ledger.
        connection.execute_batch("DETACH DATABASE disk")?;
        return Ok(connection);
    }
    // One transaction, so that all tables are of one moment.
    connection.execute_batch("BEGIN")?;
    for table in tables_of_both(&connection)? {
        connection.execute_batch(&format!(
            "INSERT INTO main.{table} SELECT * FROM disk.{table}"
        ))?;
    }
    connection.execute_batch("COMMIT; DETACH DATABASE disk")?;
    check_texts(&connection)?;
    Ok(connection)
}

/// Our tables; an older file may lack some.
fn tables_of_both(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare(
        "SELECT name FROM main.sqlite_master JOIN disk.sqlite_master USING (type, name) \
         WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    )?;
    let names = query.query_map([], |row| row.get(0))?;
    names.collect()
}

fn uri_of(path: &Path) -> String {
    let mut wal: OsString = path.as_os_str().to_owned();
    wal.push("-wal");
    let is_open = Path::new(&wal).exists();
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri += &format!("%{byte:02X}");
        }
    }
    uri + if is_open {
        "?mode=ro"
    } else {
        "?mode=ro&immutable=1"
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::super::store::Store;
    use super::super::{LedgerDocument, StoredIn};
    use crate::key::DocumentId;

    fn document() -> LedgerDocument {
        LedgerDocument {
            id: DocumentId::of("a.pdf"),
            uri: "a.pdf".into(),
            source: "files".into(),
            state: None,
            content_hash: "abc".into(),
            is_undone: false,
            stored: BTreeMap::from([(
                "table".to_owned(),
                StoredIn {
                    content_hash: "abc".into(),
                    fingerprint: "f".into(),
                    n_rows: 3,
                    is_whole: true,
                },
            )]),
            n_dead: 0,
        }
    }

    fn files(folder: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(folder).expect("readable");
        let read = |entry: fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("readable"))
        };
        entries
            .map(|entry| read(entry.expect("readable")))
            .collect()
    }

    #[test]
    fn a_copy_holds_what_the_file_holds_and_leaves_the_folder_as_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Characters that mean something in the URI of a database.
        let path = folder.path().join("a?b#c%20.db");
        let store = Store::open(&path).expect("opens");
        store.use_sinks(["table"]).expect("made known");
        store.change(|to| to.put(&document())).expect("put");
        drop(store);
        let before = files(folder.path());
        assert_eq!(before.len(), 1, "the file is closed");
        let copy = Store::copy(&path).expect("copied");
        assert_eq!(copy.documents().expect("read"), [document()]);
        copy.change(|to| to.remove(document().id)).expect("changed");
        drop(copy);
        assert_eq!(files(folder.path()), before);
    }

    #[test]
    fn a_ledger_that_another_process_writes_is_copied_with_its_last_changes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.db");
        let store = Store::open(&path).expect("opens");
        store.use_sinks(["table"]).expect("made known");
        store.change(|to| to.put(&document())).expect("put");
        let copy = Store::copy(&path).expect("copied");
        assert_eq!(copy.documents().expect("read"), [document()]);
    }

    #[test]
    fn a_ledger_that_is_absent_or_damaged_is_copied_as_an_empty_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/a.db");
        let copy = Store::copy(&path).expect("empty");
        assert!(copy.documents().expect("read").is_empty());
        assert!(!folder.path().join("deep").exists());
        let path = folder.path().join("b.db");
        fs::write(&path, vec![7; 10_000]).expect("written");
        let copy = Store::copy(&path).expect("empty");
        assert!(copy.documents().expect("read").is_empty());
        assert_eq!(files(folder.path()).len(), 1);
    }
}

//! Opens the ledger's file: one `SQLite` database a pipeline.
//!
//! `SQLite`, because several processes may open it at once and a crash at any
//! moment leaves it whole. A power cut may take its last transactions with it:
//! the documents that they tell of are found in the table again.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use crate::error::StageError;

/// Raised when the tables change: an older file is put aside and rebuilt.
pub(super) const VERSION: i64 = 2;

pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS documents (
        id BLOB PRIMARY KEY, uri TEXT NOT NULL, source TEXT NOT NULL, state TEXT,
        content_hash TEXT NOT NULL, is_undone INTEGER NOT NULL,
        stored TEXT NOT NULL, n_dead INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS sinks (
        key TEXT PRIMARY KEY, identity TEXT NOT NULL, mark TEXT);
    CREATE TABLE IF NOT EXISTS staged (
        seq INTEGER PRIMARY KEY, id BLOB NOT NULL, uri TEXT NOT NULL,
        source TEXT NOT NULL, content_hash TEXT NOT NULL, fingerprint TEXT NOT NULL,
        sink TEXT NOT NULL, pages TEXT NOT NULL, rows INTEGER NOT NULL, payload BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS staged_by_id ON staged (id);
    CREATE TABLE IF NOT EXISTS pages (
        id BLOB NOT NULL, node TEXT NOT NULL, page INTEGER NOT NULL,
        PRIMARY KEY (id, node, page)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS recipes (
        fingerprint TEXT PRIMARY KEY, recipe TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS rates (
        key TEXT PRIMARY KEY, n_items INTEGER NOT NULL, seconds REAL NOT NULL);
";

/// Opens `path`, making it where it is absent. A file that is damaged or of
/// another version is put aside: what it knew is in the tables.
pub(super) fn open(path: &Path) -> Result<Connection, StageError> {
    let cannot = |error: rusqlite::Error| cannot(path, error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| cannot_make(folder, error))?;
    }
    match connect(path) {
        Err(error) if is_damage(&error) => {
            let aside = path.with_extension("damaged");
            tracing::warn!(
                aside = %aside.display(),
                "the ledger is damaged or of another version; it is made anew from the tables"
            );
            std::fs::rename(path, &aside).map_err(|error| cannot_make(path, error))?;
            for suffix in ["-wal", "-shm"] {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                let _absent = std::fs::remove_file(name);
            }
            connect(path).map_err(cannot)
        }
        connected => connected.map_err(cannot),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Written through at each checkpoint, not at each transaction.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != 0 && version != VERSION {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB),
            None,
        ));
    }
    connection.execute_batch(TABLES)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    // A page that was garbled would otherwise fail a run in its middle.
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(found),
        ));
    }
    check_texts(&connection)?;
    Ok(connection)
}

/// Finds bytes that were garbled inside a text or a name, which leave the pages in
/// order: whoever reads them later would fail.
///
/// # Errors
/// One that [`is_damage`] tells.
pub(super) fn check_texts(connection: &Connection) -> rusqlite::Result<()> {
    read_texts(connection).map_err(|error| {
        rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(error.to_string()),
        )
    })
}

/// Reads every text of the tables.
fn read_texts(connection: &Connection) -> rusqlite::Result<()> {
    for query in [
        "SELECT uri, source, content_hash, stored, state FROM documents",
        "SELECT key, identity, mark FROM sinks",
        "SELECT uri, source, content_hash, fingerprint, sink, pages FROM staged",
        "SELECT node FROM pages",
        "SELECT key FROM rates",
        "SELECT fingerprint, recipe FROM recipes",
    ] {
        let mut query = connection.prepare(query)?;
        let n_columns = query.column_count();
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..n_columns {
                let _text: Option<&str> = row.get_ref(column)?.as_str_or_null()?;
            }
        }
    }
    Ok(())
}

/// Whether the file is none of `SQLite`, is damaged, or is of another version.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    )
}

pub(super) fn cannot(path: &Path, error: rusqlite::Error) -> StageError {
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure) => {
            "the disk may be full or damaged: repair it and run again; what was stored stays"
        }
        _ => MAKE_WRITABLE,
    };
    cannot_use(path, hint, error)
}

fn cannot_make(path: &Path, error: std::io::Error) -> StageError {
    cannot_use(path, MAKE_WRITABLE, error)
}

const MAKE_WRITABLE: &str =
    "make the folder writable, or name another one with `ledger` in the pipeline's table";

fn cannot_use(
    path: &Path,
    hint: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> StageError {
    let problem = format_args!("cannot use the ledger `{}`", path.display());
    StageError::cannot_store(problem, hint, error)
}

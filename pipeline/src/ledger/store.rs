//! Reads and changes the ledger's tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::copy::copy_into_memory;
use super::document::{LedgerDocument, short_key, stored_from_json, stored_to_json};
use super::file::{self, TABLES, VERSION, cannot, is_damage};
use crate::error::StageError;
use crate::graph::Recipe;
use crate::key::DocumentId;

/// Rows of an unfinished document, as a sink staged them.
#[derive(Debug, Clone)]
pub(super) struct StagedPart {
    pub(super) id: DocumentId,
    pub(super) uri: String,
    /// The source that brought it.
    pub(super) source: String,
    pub(super) content_hash: String,
    pub(super) fingerprint: String,
    /// Its identity.
    pub(super) sink: String,
    /// By the keys of the nodes that made them.
    pub(super) pages: BTreeSet<(String, u32)>,
    pub(super) n_rows: u64,
    pub(super) payload: Vec<u8>,
}

/// The open database.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// The identities of sinks, by the short keys that documents name them with.
    identities: Mutex<BTreeMap<String, String>>,
}

impl Store {
    /// Opens `path`, making it where it is absent. A file that is damaged or of
    /// another version is put aside: what it knew is in the tables.
    pub(super) fn open(path: &Path) -> Result<Self, StageError> {
        let cannot = |error: rusqlite::Error| cannot(path, error);
        Self::new(path, file::open(path)?).map_err(cannot)
    }

    /// A copy of `path` in memory, which changes nothing on disk. It is empty
    /// where a run would put the file aside.
    pub(super) fn copy(path: &Path) -> Result<Self, StageError> {
        let copied = copy_into_memory(path, VERSION).or_else(|error| {
            if !is_damage(&error) {
                return Err(error);
            }
            tracing::warn!(path = %path.display(), "the ledger is damaged: it counts as empty");
            let connection = Connection::open_in_memory()?;
            connection.execute_batch(TABLES).map(|()| connection)
        });
        let store = copied.and_then(|connection| Self::new(path, connection));
        store.map_err(|error| cannot(path, error))
    }

    fn new(path: &Path, connection: Connection) -> rusqlite::Result<Self> {
        let identities = read_identities(&connection)?;
        Ok(Self {
            path: path.to_owned(),
            connection: Mutex::new(connection),
            identities: Mutex::new(identities),
        })
    }

    fn identities(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.identities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes these sinks known, and forgets the marks of all others: a sink that
    /// was away from the pipeline has missed removals, so it is asked what it holds.
    pub(super) fn use_sinks<'a>(
        &self,
        sinks: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), StageError> {
        let used: BTreeMap<String, String> = sinks
            .into_iter()
            .map(|identity| (short_key(identity), identity.to_owned()))
            .collect();
        self.change(|to| {
            for (key, identity) in &used {
                to.add_sink(key, identity)?;
            }
            to.forget_marks_but(&used)
        })?;
        self.identities().extend(used);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn cannot(&self, error: rusqlite::Error) -> StageError {
        cannot(&self.path, error)
    }

    pub(super) fn document(&self, id: DocumentId) -> Result<Option<LedgerDocument>, StageError> {
        let found = self.read(|connection| {
            let mut query = connection.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
            let document = |row: &rusqlite::Row<'_>| document_of(row, &self.identities());
            query.query_row([&id.as_bytes()[..]], document).optional()
        });
        found.map(Option::flatten)
    }

    pub(super) fn documents(&self) -> Result<Vec<LedgerDocument>, StageError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(&format!("{SELECT} ORDER BY uri"))?;
            let identities = self.identities();
            let rows = query.query_map([], |row| document_of(row, &identities))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Runs `changes` in one transaction.
    pub(super) fn change<T>(
        &self,
        changes: impl FnOnce(&Changes<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StageError> {
        let mut connection = self.lock();
        let done = (|| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let value = changes(&Changes(&transaction))?;
            transaction.commit()?;
            Ok(value)
        })();
        done.map_err(|error| self.cannot(error))
    }

    /// Reads with `query`.
    pub(super) fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StageError> {
        query(&self.lock()).map_err(|error| self.cannot(error))
    }

    pub(super) fn mark(&self, sink: &str) -> Result<Option<String>, StageError> {
        let mark = self.read(|connection| {
            let query = "SELECT mark FROM sinks WHERE key = ?1";
            let mark = connection.query_row(query, [short_key(sink)], |row| row.get(0));
            mark.optional()
        });
        mark.map(Option::flatten)
    }

    /// What the rows of each fingerprint are.
    pub(super) fn recipes(&self) -> Result<HashMap<String, Recipe>, StageError> {
        let found: Vec<(String, String)> = self.read(|connection| {
            let mut query = connection.prepare("SELECT fingerprint, recipe FROM recipes")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })?;
        // One of another build may have been forgotten for a reason: it stays unknown.
        let recipes = found.into_iter().map(|(fingerprint, text)| {
            let recipe = serde_json::from_str(&text).ok().filter(Recipe::is_current);
            (fingerprint, recipe.unwrap_or_else(Recipe::unknown))
        });
        Ok(recipes.collect())
    }

    /// What is staged, in the order of staging.
    pub(super) fn staged(&self) -> Result<Vec<StagedPart>, StageError> {
        self.read(|connection| {
            let mut query = connection.prepare(
                "SELECT id, content_hash, fingerprint, sink, pages, rows, payload, uri, source
                 FROM staged ORDER BY seq",
            )?;
            let rows = query.query_map([], |row| {
                let pages: String = row.get(4)?;
                Ok(id_of(&row.get::<_, Vec<u8>>(0)?).map(|id| StagedPart {
                    id,
                    content_hash: row.get(1).unwrap_or_default(),
                    fingerprint: row.get(2).unwrap_or_default(),
                    sink: row.get(3).unwrap_or_default(),
                    pages: serde_json::from_str(&pages).unwrap_or_default(),
                    n_rows: row.get::<_, i64>(5).unwrap_or_default().cast_unsigned(),
                    payload: row.get(6).unwrap_or_default(),
                    uri: row.get(7).unwrap_or_default(),
                    source: row.get(8).unwrap_or_default(),
                }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// URIs and sources of documents of which rows are staged and that are in no table.
    pub(super) fn only_staged(&self) -> Result<Vec<(String, String)>, StageError> {
        self.read(|connection| {
            let mut query = connection.prepare(
                "SELECT DISTINCT uri, source FROM staged
                 WHERE id NOT IN (SELECT id FROM documents) ORDER BY uri",
            )?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    /// Pages that were done of a document that is not.
    pub(super) fn pages(&self, id: DocumentId) -> Result<BTreeSet<(String, u32)>, StageError> {
        self.read(|connection| {
            let query = "SELECT node, page FROM pages WHERE id = ?1";
            let mut query = connection.prepare_cached(query)?;
            let rows =
                query.query_map([&id.as_bytes()[..]], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }
}

const SELECT: &str =
    "SELECT id, uri, source, state, content_hash, is_undone, stored, n_dead FROM documents";

/// What one transaction changes.
pub(super) struct Changes<'a>(&'a Transaction<'a>);

impl Changes<'_> {
    pub(super) fn transaction(&self) -> &Transaction<'_> {
        self.0
    }

    /// The document is done: what was staged of it is a part of the table now.
    pub(super) fn put(&self, document: &LedgerDocument) -> rusqlite::Result<()> {
        self.update(document)?;
        self.forget_staged(document.id)
    }

    /// What is known of the document changes; what is staged of it stays.
    pub(super) fn update(&self, document: &LedgerDocument) -> rusqlite::Result<()> {
        self.0
            .prepare_cached(
                "INSERT OR REPLACE INTO documents
                 (id, uri, source, state, content_hash, is_undone, stored, n_dead)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                &document.id.as_bytes()[..],
                document.uri,
                document.source,
                document.state,
                document.content_hash,
                document.is_undone,
                stored_to_json(document),
                document.n_dead.cast_signed(),
            ])?;
        Ok(())
    }

    pub(super) fn set_dead(&self, id: DocumentId, n_dead: u64) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("UPDATE documents SET n_dead = ?2 WHERE id = ?1")?
            .execute(params![&id.as_bytes()[..], n_dead.cast_signed()])?;
        Ok(())
    }

    /// The document must be done again, but is still known.
    pub(super) fn undo(&self, id: DocumentId) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("UPDATE documents SET is_undone = 1, state = NULL WHERE id = ?1")?
            .execute([&id.as_bytes()[..]])?;
        Ok(())
    }

    pub(super) fn remove(&self, id: DocumentId) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("DELETE FROM documents WHERE id = ?1")?
            .execute([&id.as_bytes()[..]])?;
        self.forget_staged(id)
    }

    /// Forgets every document, what is staged, and what the sinks held.
    pub(super) fn remove_all(&self) -> rusqlite::Result<()> {
        self.0.execute_batch(
            "DELETE FROM documents; DELETE FROM staged; DELETE FROM pages;
             UPDATE sinks SET mark = NULL",
        )
    }

    fn add_sink(&self, key: &str, identity: &str) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("INSERT OR IGNORE INTO sinks (key, identity) VALUES (?1, ?2)")?
            .execute([key, identity])?;
        Ok(())
    }

    fn forget_marks_but(&self, used: &BTreeMap<String, String>) -> rusqlite::Result<()> {
        let mut query = self
            .0
            .prepare("SELECT key FROM sinks WHERE mark IS NOT NULL")?;
        let marked = query.query_map([], |row| row.get::<_, String>(0))?;
        let marked = marked.collect::<Result<Vec<_>, _>>()?;
        for key in marked.iter().filter(|key| !used.contains_key(*key)) {
            self.0
                .execute("UPDATE sinks SET mark = NULL WHERE key = ?1", [key])?;
        }
        Ok(())
    }

    pub(super) fn forget_staged(&self, id: DocumentId) -> rusqlite::Result<()> {
        for table in ["staged", "pages"] {
            self.0
                .prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?
                .execute([&id.as_bytes()[..]])?;
        }
        Ok(())
    }

    pub(super) fn set_recipe(&self, fingerprint: &str, recipe: &Recipe) -> rusqlite::Result<()> {
        let text = serde_json::to_string(recipe).unwrap_or_default();
        self.0
            .prepare_cached("INSERT OR REPLACE INTO recipes (fingerprint, recipe) VALUES (?1, ?2)")?
            .execute([fingerprint, &text])?;
        Ok(())
    }

    pub(super) fn set_mark(&self, sink: &str, mark: Option<&str>) -> rusqlite::Result<()> {
        self.0
            .prepare_cached(
                "INSERT OR REPLACE INTO sinks (key, identity, mark) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![short_key(sink), sink, mark])?;
        Ok(())
    }

    pub(super) fn stage(&self, part: &StagedPart) -> rusqlite::Result<()> {
        let pages = serde_json::to_string(&part.pages).unwrap_or_default();
        self.0
            .prepare_cached(
                "INSERT INTO staged
                 (id, content_hash, fingerprint, sink, pages, rows, payload, uri, source)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                &part.id.as_bytes()[..],
                part.content_hash,
                part.fingerprint,
                part.sink,
                pages,
                part.n_rows.cast_signed(),
                part.payload,
                part.uri,
                part.source
            ])?;
        Ok(())
    }

    pub(super) fn page_done(&self, id: DocumentId, node: &str, page: u32) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("INSERT OR IGNORE INTO pages (id, node, page) VALUES (?1, ?2, ?3)")?
            .execute(params![&id.as_bytes()[..], node, page])?;
        Ok(())
    }
}

/// A row of `documents`; `None` if its id is none.
fn document_of(
    row: &rusqlite::Row<'_>,
    identities: &BTreeMap<String, String>,
) -> rusqlite::Result<Option<LedgerDocument>> {
    let Some(id) = id_of(&row.get::<_, Vec<u8>>(0)?) else {
        return Ok(None);
    };
    let content_hash: String = row.get(4)?;
    let stored: String = row.get(6)?;
    Ok(Some(LedgerDocument {
        id,
        uri: row.get(1)?,
        source: row.get(2)?,
        state: row.get(3)?,
        is_undone: row.get(5)?,
        stored: stored_from_json(&stored, &content_hash, identities),
        content_hash,
        n_dead: row.get::<_, i64>(7)?.cast_unsigned(),
    }))
}

fn read_identities(connection: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    let mut query = connection.prepare("SELECT key, identity FROM sinks")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn id_of(bytes: &[u8]) -> Option<DocumentId> {
    Some(DocumentId::from_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::StoredIn;

    fn document(uri: &str) -> LedgerDocument {
        LedgerDocument {
            id: DocumentId::of(uri),
            uri: uri.to_owned(),
            source: "files".into(),
            state: Some("1:2".into()),
            content_hash: "abc".into(),
            is_undone: false,
            stored: BTreeMap::from([
                ("table".to_owned(), stored("abc", 3)),
                ("other".to_owned(), stored("before", 0)),
            ]),
            n_dead: 1,
        }
    }

    fn stored(content_hash: &str, n_rows: u64) -> StoredIn {
        StoredIn {
            content_hash: content_hash.into(),
            fingerprint: "f".into(),
            n_rows,
            is_whole: n_rows > 0,
        }
    }

    fn open(path: &Path) -> Store {
        let store = Store::open(path).expect("opens");
        store.use_sinks(["table", "other"]).expect("made known");
        store
    }

    #[test]
    fn what_is_put_in_is_read_back_after_opening_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/er/pages.db");
        let store = open(&path);
        store.change(|to| to.put(&document("a.pdf"))).expect("put");
        drop(store);
        let store = Store::open(&path).expect("opens again");
        let read = store.document(DocumentId::of("a.pdf")).expect("read");
        assert_eq!(read, Some(document("a.pdf")));
        assert_eq!(store.document(DocumentId::of("b")).expect("read"), None);
    }

    #[test]
    fn what_an_older_build_noted_of_a_sink_is_not_known_to_be_whole() {
        let identities = BTreeMap::from([(short_key("table"), "table".to_owned())]);
        let text = format!(r#"{{"{}":["f",3,null]}}"#, short_key("table"));
        let read = stored_from_json(&text, "abc", &identities);
        let expected = StoredIn {
            is_whole: false,
            ..stored("abc", 3)
        };
        assert_eq!(read, BTreeMap::from([("table".to_owned(), expected)]));
    }

    #[test]
    fn a_document_that_is_done_takes_what_was_staged_of_it_away() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = open(&folder.path().join("a.db"));
        let id = DocumentId::of("a.pdf");
        let part = StagedPart {
            id,
            uri: "a.pdf".into(),
            source: "files".into(),
            content_hash: "abc".into(),
            fingerprint: "f".into(),
            sink: "table".into(),
            pages: BTreeSet::from([("render".to_owned(), 1)]),
            n_rows: 1,
            payload: vec![1, 2],
        };
        store
            .change(|to| to.stage(&part).and_then(|()| to.page_done(id, "render", 1)))
            .expect("staged");
        assert_eq!(store.staged().expect("read").len(), 1);
        assert_eq!(store.pages(id).expect("read").len(), 1);
        store.change(|to| to.put(&document("a.pdf"))).expect("put");
        assert!(store.staged().expect("read").is_empty());
        assert!(store.pages(id).expect("read").is_empty());
    }

    #[test]
    fn a_sink_that_left_the_pipeline_loses_its_mark() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = open(&folder.path().join("a.db"));
        let mark = |store: &Store, sink: &str| store.mark(sink).expect("read");
        let set = store.change(|to| to.set_mark("table", Some("1")));
        set.and_then(|()| store.change(|to| to.set_mark("other", Some("2"))))
            .expect("set");
        store.use_sinks(["other"]).expect("changed");
        assert_eq!(mark(&store, "table"), None);
        assert_eq!(mark(&store, "other"), Some("2".to_owned()));
    }

    #[test]
    fn a_text_that_is_garbled_puts_the_file_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.db");
        let store = open(&path);
        store
            .change(|to| to.put(&document("name.pdf")))
            .expect("put");
        drop(store);
        let mut bytes = std::fs::read(&path).expect("readable");
        let at = bytes.windows(8).position(|it| it == b"name.pdf");
        bytes[at.expect("it is stored as it is")] = 0xff;
        std::fs::write(&path, bytes).expect("writable");
        let copy = Store::copy(&path).expect("counts as empty");
        assert!(copy.documents().expect("read").is_empty());
        let store = Store::open(&path).expect("put aside");
        assert!(store.documents().expect("read").is_empty());
        assert!(path.with_extension("damaged").exists());
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_made_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.db");
        std::fs::write(&path, vec![7; 10_000]).expect("written");
        let store = Store::open(&path).expect("made anew");
        assert!(store.documents().expect("empty").is_empty());
        assert!(path.with_extension("damaged").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_with_a_remedy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let error = Store::open(&file.join("a.db")).expect_err("a file is in the way");
        assert!(error.hint().is_some_and(|hint| hint.contains("`ledger`")));
    }
}

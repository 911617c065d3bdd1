//! Kinds in memory that a test can disturb at every step, and a table that
//! outlives the run that writes to it.

mod faults;
mod stages;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;

pub(super) use self::faults::{Faults, Strike};
pub(super) use self::stages::{Act, expected_rows, n_pages, uri};
pub(super) use self::table::{Table, Tables};
use super::{RunControl, RunError, RunOptions};
use crate::graph::Pipeline;
use crate::{
    ConfigFile, DeadLetter, Forecast, Ledger, LedgerDocument, Registry, Report, Resources,
};

/// A run that takes longer hangs: they take some milliseconds.
const WATCHDOG: Duration = Duration::from_secs(30);

pub(super) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads"));

pub(super) fn lock<T>(values: &Mutex<T>) -> MutexGuard<'_, T> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hash of two numbers.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut hash = a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

/// What a stage does with an item, by the stage's tag and the item's label.
pub(super) type Hook = Box<dyn Fn(&str, &str) -> Act + Send + Sync>;

/// What the kinds of one run share.
pub(super) struct World {
    pub(super) tables: Tables,
    pub(super) faults: Faults,
    pub(super) hook: Hook,
    /// Pages that were made, as often as they were.
    pub(super) made: Mutex<Vec<(String, u32)>>,
    /// Sinks that came to the end of their `finish`.
    pub(super) n_finished: AtomicU64,
    /// What the sources found of earlier runs.
    pub(super) known: Mutex<Vec<String>>,
}

impl World {
    pub(super) fn new(tables: &Tables) -> Self {
        Self {
            tables: tables.clone(),
            faults: Faults::default(),
            hook: Box::new(|_, _| Act::Pass),
            made: Mutex::default(),
            n_finished: AtomicU64::new(0),
            known: Mutex::default(),
        }
    }

    pub(super) fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    pub(super) fn with_hook(
        self,
        hook: impl Fn(&str, &str) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self {
            hook: Box::new(hook),
            ..self
        }
    }

    pub(super) fn made(&self) -> BTreeSet<(String, u32)> {
        lock(&self.made).iter().cloned().collect()
    }
}

pub(super) fn registry() -> Registry {
    Registry::new()
        .source::<stages::PapersConfig>()
        .stage::<stages::PagesConfig>()
        .stage::<stages::MarkConfig>()
        .stage::<stages::BookConfig>()
        .stage::<stages::SplitConfig>()
        .stage::<stages::AttachConfig>()
        .stage::<stages::EditConfig>()
        .sink::<table::TableConfig>()
}

/// A folder with a ledger and dead letters, and tables, for any number of runs.
pub(super) struct Place {
    pub(super) folder: tempfile::TempDir,
    /// The ledger's folder in it.
    pub(super) ledger: String,
    pub(super) tables: Tables,
    pub(super) options: RunOptions,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            ledger: "ledger".into(),
            tables: Tables::default(),
            options: RunOptions::default(),
        }
    }
}

/// What a run came to.
pub(super) struct Ran {
    pub(super) ended: Result<Report, RunError>,
    pub(super) world: Arc<World>,
}

impl Ran {
    #[track_caller]
    pub(super) fn report(&self) -> &Report {
        self.ended.as_ref().expect("the run ended well")
    }

    /// Items in, items dropped, retries and dead letters of a node.
    #[track_caller]
    pub(super) fn counts(&self, node: &str) -> [u64; 4] {
        let mut nodes = self.report().totals.nodes.iter();
        let node = nodes.find(|known| known.name == node).expect("it ran");
        [
            node.items,
            node.items_dropped,
            node.retries,
            node.dead_letters,
        ]
    }
}

impl Place {
    /// The pipeline that `nodes` describes, which is TOML without its head.
    pub(super) fn pipeline(&self, nodes: &str, world: &Arc<World>) -> Pipeline {
        let (folder, ledger) = (self.folder.path().display(), &self.ledger);
        let toml = format!(
            "[p]\ndead_letters = '{folder}/letters'\nledger = '{folder}/{ledger}'\n{nodes}"
        );
        self.build(&toml, world)
    }

    pub(super) fn build(&self, toml: &str, world: &Arc<World>) -> Pipeline {
        let file = ConfigFile::parse(Path::new("p.toml"), toml, &[], &registry(), &|_| None);
        let file = file.unwrap_or_else(|error| panic!("{toml}\n{error}"));
        let resources = Resources::default();
        resources.insert("", Arc::clone(world));
        let pipeline = file.build(&file.pipelines()[0], &resources);
        let pipeline = pipeline.unwrap_or_else(|error| panic!("{toml}\n{error}"));
        pipeline.with_options(self.options.clone())
    }

    /// Runs a pipeline to its end.
    pub(super) fn run(&self, nodes: &str, world: World) -> Ran {
        let world = Arc::new(world);
        let pipeline = self.pipeline(nodes, &world);
        let control = RunControl::default();
        let ended = RUNTIME.block_on(async {
            let ended = tokio::time::timeout(WATCHDOG, pipeline.run(&control)).await;
            ended.unwrap_or_else(|_| panic!("the run hangs: {:#?}", control.snapshot()))
        });
        Ran { ended, world }
    }

    /// Returns what a run would do, after a check that nothing was changed.
    #[track_caller]
    pub(super) fn dry_run(&self, nodes: &str, world: World) -> Result<Forecast, RunError> {
        let world = Arc::new(world);
        let pipeline = self.pipeline(nodes, &world);
        let before = self.files();
        let ended = RUNTIME.block_on(async {
            let ended = tokio::time::timeout(WATCHDOG, pipeline.dry_run()).await;
            ended.expect("the dry run hangs")
        });
        assert!(world.made().is_empty(), "a page was made");
        assert_eq!(self.files(), before);
        ended
    }

    /// Every file of the folder.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![self.folder.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                files.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
            }
        }
        files
    }

    /// Rebuilds the ledger; how many documents it then knows.
    pub(super) fn rebuild(&self, nodes: &str) -> usize {
        let pipeline = self.pipeline(nodes, &Arc::new(World::new(&self.tables)));
        RUNTIME
            .block_on(pipeline.rebuild_ledger())
            .expect("it is rebuilt")
    }

    pub(super) fn letters(&self) -> Vec<DeadLetter> {
        let folder = self.folder.path().join("letters");
        crate::read_dead_letters(&folder).expect("readable")
    }

    /// What the ledger says is done, by URI.
    pub(super) fn documents(&self) -> BTreeMap<String, LedgerDocument> {
        let folder = self.folder.path().join(&self.ledger);
        let ledger = Ledger::open(&folder, "p").expect("it can be opened");
        let documents = ledger.documents().expect("readable").into_iter();
        let n_sinks = self
            .ledger()
            .query_row("SELECT count(*) FROM sinks", [], |row| {
                row.get::<_, isize>(0)
            });
        let n_sinks = n_sinks.expect("readable");
        let done = documents.filter(|document| {
            let mut stored = document.stored.values();
            !document.is_undone
                && stored.len() as isize == n_sinks
                && stored.all(|stored| !stored.fingerprint.is_empty())
        });
        done.map(|document| (document.uri.clone(), document))
            .collect()
    }

    fn ledger(&self) -> rusqlite::Connection {
        let path = self.folder.path().join(&self.ledger).join("p.db");
        rusqlite::Connection::open(path).expect("it is there")
    }

    /// Staged rows of which the ledger knows.
    pub(super) fn n_staged(&self) -> i64 {
        let ledger = self.ledger();
        let n_staged = ledger.query_row("SELECT count(*) FROM staged", [], |row| row.get(0));
        n_staged.expect("readable")
    }

    /// Pages that must not be made again where `table` is the only one: those of
    /// documents that are in it, and those that the ledger says are staged.
    pub(super) fn durable_pages(&self, n_documents: u32, table: &str) -> BTreeSet<(String, u32)> {
        let ledger = self.ledger();
        let mut query = ledger
            .prepare(
                "SELECT id, page FROM pages
                 UNION SELECT staged.id, noted.value ->> 1 FROM staged, json_each(staged.pages) AS noted",
            )
            .expect("the table is there");
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?));
        let staged = query.query_map([], row).expect("readable");
        let staged: Vec<(Vec<u8>, u32)> = staged.map(|row| row.expect("readable")).collect();
        let mut durable = BTreeSet::new();
        for number in 0..n_documents {
            let uri = uri(number);
            let id = crate::DocumentId::of(&uri);
            let is_stored = self.tables.holds(table, id);
            for page in 1..=n_pages(number) {
                let is_staged = staged
                    .iter()
                    .any(|(known, p)| known == id.as_bytes() && *p == page);
                if is_stored || is_staged {
                    durable.insert((uri.clone(), page));
                }
            }
        }
        durable
    }
}

//! Makes documents from rows that a sink has stored, instead of from their source.
//!
//! Where only later stages have changed, the rows of a document are the items of an
//! earlier one. They are read back a few at a time and sent on along the edges behind
//! that stage, as if it had just made them; the stages in front of it do nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Shared;
use super::port::page_counts;
use crate::document::{PageCounts, Token};
use crate::edge::EdgeSender;
use crate::error::StageError;
use crate::fields::FieldSet;
use crate::graph::{Recipe, RefillPoint};
use crate::item::Item;
use crate::key::Origin;
use crate::ledger::{Progress, Wanted};
use crate::metrics::NodeMetrics;
use crate::retry::OnError;
use crate::sink::{FoundRow, RowReader, RowValues};
use crate::source_outlet::SourceOutlet;

/// So many rows are read at a time: vectors of a page are some 256 KiB.
const ROWS_AT_ONCE: usize = 16;

/// Where rows are sent on: the edges that leave a stage. Those of a dry run have no
/// edges.
pub(super) struct Tap {
    pub(super) node: Arc<str>,
    /// What the pages that the node makes are counted under.
    pub(super) key: Arc<str>,
    pub(super) on_error: OnError,
    pub(super) edges: Vec<EdgeSender>,
    pub(super) metrics: Arc<NodeMetrics>,
}

/// Makes documents of stored rows.
pub(crate) struct Refill {
    /// By fingerprint of the rows.
    recipes: HashMap<String, Recipe>,
    /// The last stage first.
    points: Vec<(RefillPoint, Tap)>,
    /// In the order of the sinks.
    readers: Vec<Option<Arc<dyn RowReader>>>,
    n_sinks: usize,
    sinks: Vec<Arc<str>>,
}

/// The rows of one document, in order of key.
pub(crate) struct StoredRows {
    sink: usize,
    reader: Arc<dyn RowReader>,
    /// Which of the points they are sent on from.
    point: usize,
    fields: FieldSet,
    rows: Vec<FoundRow>,
}

impl StoredRows {
    /// The pages that the rows are of.
    fn pages(&self) -> BTreeSet<u32> {
        self.rows.iter().filter_map(|row| row.key.page).collect()
    }
}

impl Refill {
    /// `None` where no rows can be of use.
    pub(super) fn new(
        shared: &Shared,
        own: &[Recipe],
        points: Vec<RefillPoint>,
        tap: impl Fn(usize) -> Tap,
    ) -> Option<Self> {
        let recipes = match shared.progress.recipes(own) {
            Ok(recipes) => recipes,
            Err(error) => {
                shared.fail("ledger", error);
                return None;
            }
        };
        let sinks = shared.progress.sinks();
        let present: HashSet<&str> = sinks.iter().map(|sink| &*sink.fingerprint).collect();
        // Present rows are of use to another sink only.
        let is_of_use = |fingerprint: &String| sinks.len() > 1 || !present.contains(&**fingerprint);
        let recipes: HashMap<String, Recipe> = recipes
            .into_iter()
            .filter(|(fingerprint, _)| is_of_use(fingerprint))
            .collect();
        let points = points.into_iter();
        let points = points.filter(|point| recipes.values().any(|recipe| point.is_in(recipe)));
        let points: Vec<_> = points
            .map(|point| {
                let tap = tap(point.place);
                (point, tap)
            })
            .collect();
        (!points.is_empty()).then(|| Self {
            recipes,
            points,
            readers: Vec::new(),
            n_sinks: sinks.len(),
            sinks: sinks.iter().map(|sink| Arc::clone(&sink.node)).collect(),
        })
    }

    /// The same with what reads the rows of each sink; `None` if nothing does.
    pub(super) fn with_readers(
        self,
        readers: Vec<Option<Arc<dyn RowReader>>>,
    ) -> Option<Arc<Self>> {
        let is_of_use = readers.iter().any(Option::is_some);
        is_of_use.then(|| Arc::new(Self { readers, ..self }))
    }

    /// The rows that the document can be made from for the sinks that want it.
    /// `None` if it has to be made from its source.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(crate) async fn find(
        &self,
        progress: &Progress,
        origin: &Origin,
        wanted: &Wanted,
    ) -> Result<Option<StoredRows>, StageError> {
        let wanted: BTreeSet<usize> = match wanted.partial() {
            Some(partial) => partial.wanted.clone(),
            None => (0..self.n_sinks).collect(),
        };
        let mut best: Option<StoredRows> = None;
        for (sink, stored) in progress.whole(origin)? {
            let recipe = self.recipes.get(&stored.fingerprint);
            let (Some(recipe), Some(reader)) = (recipe, &self.readers[sink]) else {
                continue;
            };
            let n_points = best.as_ref().map_or(self.points.len(), |best| best.point);
            let mut points = self.points[..n_points].iter().enumerate();
            let found = points.find_map(|(point, (known, _))| {
                Some((point, known.fields(recipe, sink, &wanted)?))
            });
            let Some((point, fields)) = found else {
                continue;
            };
            let rows = match reader.find(origin.id, &fields).await {
                Ok(rows) => rows.unwrap_or_default(),
                Err(error) => {
                    let sink = &*self.sinks[sink];
                    tracing::warn!(sink, %error, "rows cannot be read back: the document is made again");
                    continue;
                }
            };
            let Some(rows) = checked(rows, origin, &stored.fingerprint, stored.n_rows) else {
                continue;
            };
            best = Some(StoredRows {
                sink,
                reader: Arc::clone(reader),
                point,
                fields,
                rows,
            });
        }
        Ok(best)
    }

    /// The name of the stage that the rows are sent on from, and the number of their
    /// pages: what a dry run counts. One without pages counts as one page.
    pub(crate) fn outlook(&self, stored: &StoredRows) -> (Arc<str>, u64) {
        let n_pages = stored.pages().len().max(1) as u64;
        (Arc::clone(&self.points[stored.point].1.node), n_pages)
    }

    /// Sends the rows on.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] when the run stops; rows that cannot be read, which
    /// the next run does not try again.
    pub(crate) async fn send(
        &self,
        outlet: &SourceOutlet,
        stored: StoredRows,
        origin: &Arc<Origin>,
        token: Token,
    ) -> Result<(), StageError> {
        let (shared, tap) = (&outlet.shared, &self.points[stored.point].1);
        token.document().stage_no_pages();
        let pages = stored.pages();
        if !pages.is_empty() {
            shared.pages.expect(origin.id, pages.len() as u64, 0);
        }
        let counts = page_counts(shared, &tap.key).map(|counts| PageCounts {
            for_resuming: false,
            ..counts
        });
        let mut tokens = Tokens {
            document: token,
            last_page: None,
            counts,
        };
        for rows in stored.rows.chunks(ROWS_AT_ONCE) {
            let values = match read(&stored, rows, origin).await {
                Ok(values) => values,
                Err(error) => {
                    shared.progress.doubt_rows(origin.id)?;
                    return Err(error);
                }
            };
            for (row, values) in rows.iter().zip(values) {
                let mut item = Item::with_key(Arc::clone(origin), row.key);
                for (name, value) in values {
                    item.set(name, value);
                }
                item.token = Some(tokens.next(row.key.page, tap, shared));
                tap.send(outlet, item).await?;
            }
        }
        let sink = Arc::clone(&self.sinks[stored.sink]);
        shared.refilled.count(sink, Arc::clone(&tap.node));
        Ok(())
    }
}

/// The values of some of the rows.
async fn read(
    stored: &StoredRows,
    rows: &[FoundRow],
    origin: &Origin,
) -> Result<Vec<RowValues>, StageError> {
    let values = stored.reader.read(rows, &stored.fields).await?;
    if values.len() == rows.len() {
        return Ok(values);
    }
    Err(StageError::fatal(
        format_args!("rows of `{}` are gone while they are read", origin.uri),
        "let nobody else change the table during the run, and run again: the document is then \
         made from its source",
    ))
}

/// Gives out the tokens of a document's items, which come page by page.
struct Tokens {
    document: Token,
    /// Keeps the page that is sent from being taken for done while more of it comes.
    last_page: Option<(u32, Token)>,
    /// What pages are counted for; none where nobody counts them.
    counts: Option<PageCounts>,
}

impl Tokens {
    /// A token for the next item, which is of this page.
    fn next(&mut self, page: Option<u32>, tap: &Tap, shared: &Shared) -> Token {
        let Some(page) = page else {
            return self.document.clone();
        };
        if let Some((last, token)) = &self.last_page
            && *last == page
        {
            return token.clone();
        }
        let mut token = self.document.clone();
        if let Some(counts) = self.counts {
            token.join_page(&tap.key, page, counts);
        }
        let document = token.document().origin().id;
        token.follow_page(|| shared.pages.follow(document, page));
        self.last_page = Some((page, token.clone()));
        token
    }
}

/// The rows in order of key, if they are exactly those that the ledger knows.
fn checked(
    mut rows: Vec<FoundRow>,
    origin: &Origin,
    fingerprint: &str,
    n_rows: u64,
) -> Option<Vec<FoundRow>> {
    let content_hash = origin.content_hash.to_string();
    rows.sort_unstable_by_key(|row| row.key);
    let fits = |row: &FoundRow| {
        row.fingerprint == fingerprint
            && row.content_hash == content_hash
            && row.key.document == origin.id
    };
    let is_whole = rows.len() as u64 == n_rows
        && rows.iter().all(fits)
        && rows.windows(2).all(|pair| pair[0].key != pair[1].key);
    is_whole.then_some(rows)
}

impl Tap {
    /// Sends an item along the edges that take it.
    async fn send(&self, outlet: &SourceOutlet, item: Item) -> Result<(), StageError> {
        let takers = match EdgeSender::takers(&self.edges, &item) {
            Ok(takers) => takers,
            Err(error) => {
                let shared = &outlet.shared;
                return shared.set_aside(&self.node, &self.metrics, self.on_error, &item, &error);
            }
        };
        let Some(last) = takers.last(self.edges.len()) else {
            if !takers.is_spared() {
                NodeMetrics::count(&self.metrics.dropped, 1);
            }
            return Ok(());
        };
        for (number, edge) in self.edges[..last].iter().enumerate() {
            if takers.takes(number) {
                outlet.waited(edge.send_async(item.clone()).await?);
            }
        }
        outlet.waited(self.edges[last].send_async(item).await?);
        Ok(())
    }
}

/// A sink and a stage.
type SinkAndStage = (Arc<str>, Arc<str>);

/// How many documents a run has made from stored rows, by sink and stage.
#[derive(Debug, Default)]
pub(super) struct Refilled(Mutex<BTreeMap<SinkAndStage, u64>>);

impl Refilled {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SinkAndStage, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, sink: Arc<str>, stage: Arc<str>) {
        *self.lock().entry((sink, stage)).or_default() += 1;
    }

    pub(super) fn n_documents(&self) -> u64 {
        self.lock().values().sum()
    }

    pub(super) fn log(&self) {
        for ((sink, stage), n) in self.lock().iter() {
            tracing::info!(
                "{n} documents filled in from `{sink}` at `{stage}`: nothing in front of it was \
                 made again"
            );
        }
    }
}

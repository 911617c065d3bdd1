//! Keeps a table quick to search: indexes of text and vectors, and few, large files.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::InvertedIndexParams;
use pagemill_pipeline::StageError;
use tokio::task::JoinHandle;

use super::commit::Table;
use super::index::{self, IndexConfig};

/// So many small fragments are put together when a run ends.
const MAX_SMALL_FRAGMENTS: usize = 16;
/// A fragment of so many rows is left alone: rewriting it would cost more than it saves.
const ROWS_PER_FRAGMENT: usize = 16 * 1024;
/// So many parts of an index are merged when a run ends.
const MAX_INDEX_PARTS: usize = 8;
/// Versions of the table that are older are removed: a reader that opened the
/// table before the run goes on reading its own for so long.
const KEEP_VERSIONS_HOURS: i64 = 1;

const TEXT_INDEX: &str = "text_idx";

impl Table {
    /// Makes the full-text index if there is none, so that search works while
    /// the run goes on. Rows that come later are searched without it.
    pub(super) async fn make_text_index(&mut self, column: &str) -> Result<(), StageError> {
        if self.has_text_index || self.dataset.is_none() {
            return Ok(());
        }
        self.has_text_index = true;
        if self.is_indexed(column).await? {
            return Ok(());
        }
        let mut dataset = Dataset::clone(self.latest()?);
        let made = dataset
            .create_index(
                &[column],
                IndexType::Inverted,
                Some(TEXT_INDEX.to_owned()),
                &text_analysis(),
                false,
            )
            .await;
        match made {
            Ok(_) => {
                self.dataset = Some(Arc::new(dataset));
                Ok(())
            }
            Err(error) => {
                self.reload().await?;
                // Another writer made it meanwhile.
                if self.is_indexed(column).await? {
                    return Ok(());
                }
                Err(self.cannot("index", error))
            }
        }
    }

    async fn is_indexed(&self, column: &str) -> Result<bool, StageError> {
        let dataset = self.latest()?;
        let Some(field) = dataset.schema().field(column) else {
            return Ok(true);
        };
        let indices = dataset
            .load_indices()
            .await
            .map_err(|error| self.cannot("read", error))?;
        Ok(indices.iter().any(|index| index.fields.contains(&field.id)))
    }
}

/// So many commits are made before the table is tidied up beside the run.
const COMMITS_BETWEEN: usize = 32;
/// And so much time passes at least.
const TIME_BETWEEN: Duration = Duration::from_mins(1);

/// Puts small fragments together, indexes new rows and removes old versions,
/// now and then beside the run and at its end. The rows are durable without
/// it, so what goes wrong is only logged.
///
/// Beside the run it works on a version of its own. A commit that touches the
/// same fragments at that time meets a conflict, and is made again on top.
pub(super) struct Upkeep {
    index: IndexConfig,
    n_commits: usize,
    last: Option<Instant>,
    under_way: Option<JoinHandle<()>>,
}

impl Upkeep {
    pub(super) fn new(index: IndexConfig) -> Self {
        Self {
            index,
            n_commits: 0,
            last: None,
            under_way: None,
        }
    }

    pub(super) fn committed(&mut self) {
        self.n_commits += 1;
    }

    /// Begins to tidy up if enough has changed; less is enough when there is
    /// nothing else to do. The version that it makes is found by the next commit.
    pub(super) fn go_on(&mut self, table: &Table, is_idle: bool) {
        let enough = if is_idle { 1 } else { COMMITS_BETWEEN };
        let rested = self.last.is_none_or(|last| last.elapsed() >= TIME_BETWEEN);
        if self.n_commits < enough || !rested || self.is_under_way() {
            return;
        }
        let Some(dataset) = &table.dataset else {
            return;
        };
        (self.n_commits, self.last) = (0, Some(Instant::now()));
        let (dataset, name) = (Dataset::clone(dataset), table.name.clone());
        self.under_way = Some(tokio::spawn(tidy_up(dataset, name, self.index)));
    }

    /// Whether it works on the table beside the run.
    pub(super) fn is_under_way(&self) -> bool {
        let task = self.under_way.as_ref();
        task.is_some_and(|task| !task.is_finished())
    }

    /// Tidies up, and waits for it.
    pub(super) async fn finish(&mut self, table: &mut Table) {
        if let Some(task) = self.under_way.take() {
            let _logged = task.await;
        }
        if table.reload().await.is_err() {
            return; // Its rows are durable, and the next run will say what is wrong.
        }
        if let Some(dataset) = &table.dataset {
            tidy_up(Dataset::clone(dataset), table.name.clone(), self.index).await;
        }
        let _reported_then = table.reload().await;
        table.note_version(&HashSet::new()).await;
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        if let Some(task) = &self.under_way {
            task.abort();
        }
    }
}

async fn tidy_up(mut dataset: Dataset, table: String, index: IndexConfig) {
    if let Err(error) = tidy(&mut dataset, index).await {
        tracing::warn!(table, %error, "the table is not tidied up: a later time will do it");
    }
}

async fn tidy(dataset: &mut Dataset, index: IndexConfig) -> lance::Result<()> {
    let is_small = |rows: Option<usize>| rows.is_some_and(|rows| rows < ROWS_PER_FRAGMENT);
    let fragments = dataset.get_fragments();
    let n_small = fragments
        .iter()
        .filter(|fragment| is_small(fragment.metadata().num_rows()))
        .count();
    if n_small > MAX_SMALL_FRAGMENTS {
        let options = CompactionOptions {
            target_rows_per_fragment: ROWS_PER_FRAGMENT,
            ..CompactionOptions::default()
        };
        compact_files(dataset, options, None).await?;
    }
    extend(dataset, TEXT_INDEX).await?;
    if let IndexConfig::Auto(config) = index
        && !index::make(dataset, &config).await?
    {
        extend(dataset, index::VECTOR_INDEX).await?;
    }
    let age = lancedb::table::Duration::hours(KEEP_VERSIONS_HOURS);
    dataset.cleanup_old_versions(age, None, Some(false)).await?;
    Ok(())
}

/// Takes new rows into an index, if there is one.
async fn extend(dataset: &mut Dataset, index: &str) -> lance::Result<()> {
    let n_parts = dataset.load_indices_by_name(index).await?.len();
    if n_parts == 0 {
        return Ok(());
    }
    let options = if n_parts < MAX_INDEX_PARTS {
        OptimizeOptions::append()
    } else {
        OptimizeOptions::merge(n_parts)
    };
    let options = options.index_names(vec![index.to_owned()]);
    dataset.optimize_indices(&options).await
}

/// How text is cut into words, for documents and queries alike: by the rules of
/// Unicode, with dictionaries for the scripts that are written without spaces;
/// case and accents do not count.
fn text_analysis() -> InvertedIndexParams {
    InvertedIndexParams::default()
        .base_tokenizer("icu/split".to_owned())
        .lower_case(true)
        .ascii_folding(true)
        .stem(true)
        .remove_stop_words(true)
}

//! Follows a document through the graph to the stages that make pages of it,
//! and asks them for the number of pages.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::Surveyed;
use crate::edge::Route;
use crate::error::{ItemError, StageError};
use crate::graph::Rebuild;
use crate::item::Item;
use crate::run::worker::panic_message;
use crate::stage::{PageCount, Stage};

/// A node of the graph, as a document reaches it.
pub(super) struct CountingNode {
    pub(super) name: Arc<str>,
    pub(super) key: Arc<str>,
    /// Where its items go, and which of them.
    pub(super) edges: Vec<(usize, Route)>,
    /// The sinks that it leads to.
    pub(super) sinks: Arc<BTreeSet<usize>>,
    pub(super) stage: Option<(Box<dyn Stage>, Arc<Rebuild>)>,
}

/// The pages that would be made of one document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DocumentPages {
    /// By the name of the node that makes them.
    pub(super) by_node: Vec<(Arc<str>, u64)>,
    /// Why a node would set the document aside.
    pub(super) unreadable: Vec<(Arc<str>, ItemError)>,
}

/// The node that cannot go on, and why.
pub(crate) type Broken = (Arc<str>, StageError);

type Question = (Surveyed, oneshot::Sender<Result<DocumentPages, Broken>>);

/// The thread that the stages count on: a worker process ends with the thread
/// that started it.
pub(super) struct PageCounter {
    questions: mpsc::Sender<Question>,
}

impl PageCounter {
    pub(super) fn start(nodes: Vec<CountingNode>) -> Result<Self, Broken> {
        let (questions, received) = mpsc::channel(1);
        let thread = thread::Builder::new().name("dry-run".into());
        // It ends when the counter is dropped.
        let started = thread.spawn(move || answer(nodes, received));
        started.map_err(|error| {
            let hint = "raise the limit on threads";
            let error = StageError::caused("cannot start a thread", hint, error);
            ("stages".into(), error)
        })?;
        Ok(Self { questions })
    }

    pub(super) async fn count(&self, document: Surveyed) -> Result<DocumentPages, Broken> {
        let source = Arc::clone(&document.source);
        let (answer, answered) = oneshot::channel();
        // A thread that is gone gives no answer.
        let _ = self.questions.send((document, answer)).await;
        answered
            .await
            .unwrap_or(Err((source, StageError::Cancelled)))
    }
}

fn answer(mut nodes: Vec<CountingNode>, mut questions: mpsc::Receiver<Question>) {
    while let Some((document, answer)) = questions.blocking_recv() {
        let counted = count(&mut nodes, &document);
        // The source that asked may have been cancelled.
        let _ = answer.send(counted);
    }
}

/// Counts the pages that nodes make of a document and that no sink has staged.
fn count(nodes: &mut [CountingNode], document: &Surveyed) -> Result<DocumentPages, Broken> {
    let mut counted = DocumentPages::default();
    let source = nodes.iter().position(|node| node.name == document.source);
    let (mut waiting, mut seen) = (Vec::from_iter(source), BTreeSet::from_iter(source));
    while let Some(place) = waiting.pop() {
        let node = &mut nodes[place];
        let pages = node.count(&document.item);
        match pages.map_err(|error| (Arc::clone(&node.name), error))? {
            PageCount::Unknown => {}
            PageCount::Pages(n_pages) => {
                let resumed = document.resumed.as_ref();
                let stored = resumed.and_then(|resumed| resumed.pages.get(&*node.key));
                let stored = stored.map_or(0, |pages| pages.range(..=n_pages).count());
                let n_pages = u64::from(n_pages).saturating_sub(stored as u64);
                counted.by_node.push((Arc::clone(&node.name), n_pages));
                continue;
            }
            PageCount::Unreadable(error) => {
                counted.unreadable.push((Arc::clone(&node.name), error));
                continue;
            }
        }
        for next in takers(&nodes[place].edges, &document.item) {
            let is_wanted = document
                .partial
                .as_ref()
                .is_none_or(|partial| partial.is_wanted_by_any(&nodes[next].sinks));
            if is_wanted && seen.insert(next) {
                waiting.push(next);
            }
        }
    }
    Ok(counted)
}

impl CountingNode {
    fn count(&mut self, document: &Item) -> Result<PageCount, StageError> {
        let Some((stage, rebuild)) = &mut self.stage else {
            return Ok(PageCount::Unknown);
        };
        let counted = catch_unwind(AssertUnwindSafe(|| stage.count_pages(document)));
        counted.unwrap_or_else(|panic| {
            *stage = rebuild().map_err(|error| {
                let hint = "this is a bug in the stage: please report it";
                StageError::caused("cannot be built again after a panic", hint, error)
            })?;
            let reason = format!("the stage panicked: {}", panic_message(panic.as_ref()));
            let hint = "this is a bug in the stage: please report it with the document";
            Ok(PageCount::Unreadable(
                ItemError::new("count the pages of", reason).hint(hint),
            ))
        })
    }
}

/// The nodes that take a document. One whose condition is about fields that the
/// document does not have yet is taken to take it.
fn takers(edges: &[(usize, Route)], document: &Item) -> Vec<usize> {
    let takes = |route: &Route| match route {
        Route::Always => Some(true),
        Route::When(expression) => expression.takes(document).ok(),
        Route::Otherwise => Some(false),
    };
    let is_chosen = edges
        .iter()
        .any(|(_, route)| matches!(route, Route::When(_)) && takes(route) == Some(true));
    let chosen = edges.iter().filter(|(_, route)| match route {
        Route::Otherwise => !is_chosen,
        _ => takes(route) != Some(false),
    });
    chosen.map(|(place, _)| *place).collect()
}

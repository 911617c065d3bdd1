//! Sends the items of a source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cancellation::Stop;
use crate::document::{Arrival, Partial, Resumed, Token};
use crate::edge::EdgeSender;
use crate::error::{ItemError, StageError};
use crate::item::Item;
use crate::key::{DocumentId, Key, Origin};
use crate::ledger::Wanted;
use crate::metrics::{NodeMetrics, Spent, add_one};
use crate::prune::Prune;
use crate::retry::OnError;
use crate::run::{Refill, Shared, Survey, Surveyed};
use crate::trace::Lane;

/// Where a source puts the documents that it found. Clones send to the same place.
#[derive(Clone)]
pub struct SourceOutlet {
    pub(crate) node: Arc<str>,
    pub(crate) edges: Arc<Vec<EdgeSender>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<NodeMetrics>,
    pub(crate) lane: Lane,
    /// What a dry run counts in the place of sending.
    pub(crate) survey: Option<Arc<Survey>>,
    /// Makes documents from rows that are stored, where there are such rows.
    pub(crate) refill: Option<Arc<Refill>>,
}

/// A document on its way into the edges. One whose sending fails, or is given
/// up by dropping its future, has lost items and must not pass for done.
struct Sending {
    /// Dropped after the document is marked, so that it cannot end before.
    token: Token,
    is_sent: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_sent {
            self.token.document().fail();
        }
    }
}

/// A source waits for input; see [`SourceOutlet::idle`].
#[derive(Debug)]
pub struct Idle {
    metrics: Arc<NodeMetrics>,
    lane: Lane,
    since: Instant,
}

impl Drop for Idle {
    fn drop(&mut self) {
        let time = self.since.elapsed();
        self.metrics.spend(Spent::Starved, time);
        self.lane.wait("starved", time);
    }
}

/// A document that an earlier run has stored, as its source knew it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDocument {
    /// Path or URL.
    pub uri: String,
    /// What its source told its version by; see [`SourceOutlet::is_done`].
    pub state: Option<String>,
}

/// A document that is to be fed in again, from its dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedAgain {
    /// Path or URL.
    pub uri: String,
    /// What the source said it can make the document from.
    pub input: Option<String>,
}

/// What a source knows of a document beside its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Tells this version of the document from others without reading it, such
    /// as a file's size and time of change.
    pub state: Option<String>,
    /// What the source can make the document from again, where the URI is not
    /// enough: it is kept in dead letters.
    pub input: Option<String>,
}

impl SourceOutlet {
    /// Sends a document on. Waits while the edge is full, and while an earlier
    /// version of the document is under way. One that is stored already, with
    /// the same content and by the same configuration, is counted and not sent. So the
    /// content hash of its [`Origin`] covers every field that the source gives it.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] when the run stops; pass it on with `?`.
    pub async fn send(&self, item: Item) -> Result<(), StageError> {
        self.send_from(item, Provenance::default()).await
    }

    /// The same, with what the source knows of it.
    ///
    /// # Errors
    /// As [`SourceOutlet::send`].
    pub async fn send_from(
        &self,
        mut item: Item,
        provenance: Provenance,
    ) -> Result<(), StageError> {
        let origin = Arc::clone(item.origin());
        if !self.wants(origin.id) {
            return Ok(());
        }
        let tracker = &self.shared.tracker;
        let claim = tracker.claim(origin.id).await?;
        let progress = &self.shared.progress;
        let wanted = progress.wanted(&self.node, &origin, provenance.state.as_deref())?;
        if wanted == Wanted::Nothing {
            self.skip();
            return Ok(());
        }
        let resumed = progress.resume(&origin, &wanted)?;
        let rows = match &self.refill {
            Some(refill) if resumed.is_none() => {
                Box::pin(refill.find(progress, &origin, &wanted)).await?
            }
            _ => None,
        };
        let partial = wanted.partial().cloned();
        if let Some(survey) = &self.survey {
            let standing = progress.standing(&origin)?;
            let from_rows = rows.zip(self.refill.as_ref());
            let from_rows = from_rows.map(|(rows, refill)| refill.outlook(&rows));
            let document = Surveyed {
                item,
                source: Arc::clone(&self.node),
                partial,
                resumed,
                from_rows,
            };
            let counted = survey.count(standing, document).await;
            return counted.map_err(|(node, error)| {
                self.shared.fail(&node, error);
                StageError::Cancelled
            });
        }
        let n_dead_kept = self.forget_letters(&origin, resumed.as_deref(), partial.as_deref())?;
        item.set_source(&self.node);
        let token = tracker.begin_arrival(
            item.origin(),
            Arrival {
                source: Arc::clone(&self.node),
                state: provenance.state.map(Into::into),
                input: provenance.input.map(Into::into),
                is_removal: false,
                resumed,
                partial,
                n_dead_kept,
            },
        );
        drop(claim);
        let mut sending = Sending {
            token: token.clone(),
            is_sent: false,
        };
        if let (Some(rows), Some(refill)) = (rows, &self.refill) {
            let origin = Arc::clone(item.origin());
            drop(item);
            NodeMetrics::count(&self.metrics.items_out, 1);
            Box::pin(refill.send(self, rows, &origin, token)).await?;
        } else {
            item.token = Some(token);
            self.route(item).await?;
        }
        sending.is_sent = true;
        Ok(())
    }

    /// Removes the letters about what is now made again. Returns how many stay:
    /// those of pages that are not made again, and of nodes that lead only to
    /// sinks which hold the document already.
    fn forget_letters(
        &self,
        origin: &Origin,
        resumed: Option<&Resumed>,
        partial: Option<&Partial>,
    ) -> Result<u64, StageError> {
        let is_kept = |page: Option<u32>, node: &str| {
            let is_resumed = resumed
                .zip(page)
                .is_some_and(|(resumed, page)| resumed.has_page(page));
            let is_spared = partial.is_some_and(|partial| {
                let reach = self.shared.reach.get(node);
                reach.is_some_and(|reach| !partial.is_wanted_by_any(reach))
            });
            is_resumed || is_spared
        };
        let letters = &self.shared.dead_letters;
        letters.forget(&origin.id.to_string(), is_kept)
    }

    /// Sends an item to the edges that take it.
    async fn route(&self, item: Item) -> Result<(), StageError> {
        NodeMetrics::count(&self.metrics.items_out, 1);
        let takers = match EdgeSender::takers(&self.edges, &item) {
            Ok(takers) => takers,
            Err(error) => return self.set_aside(&item, &error),
        };
        let Some(last) = takers.last(self.edges.len()) else {
            if !takers.is_spared() {
                NodeMetrics::count(&self.metrics.dropped, 1);
            }
            return Ok(());
        };
        for (number, edge) in self.edges[..last].iter().enumerate() {
            if takers.takes(number) {
                let waited = edge.send_async(item.clone()).await?;
                self.waited(waited);
            }
        }
        let waited = self.edges[last].send_async(item).await?;
        self.waited(waited);
        Ok(())
    }

    /// Waits until every edge has room for something, so that a source need not
    /// make what it could not send.
    ///
    /// # Errors
    /// As [`SourceOutlet::send`].
    pub async fn room(&self) -> Result<(), StageError> {
        for edge in self.edges.iter() {
            let waited = edge.room_async().await?;
            self.waited(waited);
        }
        Ok(())
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.metrics.spend(Spent::Blocked, time);
        self.lane.wait("blocked", time);
    }

    /// A document that was read, and cannot be routed.
    fn set_aside(&self, item: &Item, error: &ItemError) -> Result<(), StageError> {
        let (shared, metrics) = (&self.shared, &self.metrics);
        shared.set_aside(&self.node, metrics, OnError::DeadLetter, item, error)
    }

    /// Whether the document at `uri` is stored as it is: by the same
    /// configuration, from the version that `state` names. It is then counted,
    /// and need not be read.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn is_done(&self, uri: &str, state: &str) -> Result<bool, StageError> {
        let id = DocumentId::of(uri);
        if !self.wants(id) {
            return Ok(true);
        }
        let is_done = self.shared.progress.is_current(id, state)?;
        if is_done {
            self.skip();
        }
        Ok(is_done)
    }

    /// Removes what is stored of the document at `uri`, which is gone.
    ///
    /// # Errors
    /// As [`SourceOutlet::send`].
    pub async fn remove(&self, uri: &str) -> Result<(), StageError> {
        if let Some(survey) = &self.survey {
            survey.count_removed();
            return Ok(());
        }
        let origin = Arc::new(Origin::new(uri, "", &[]));
        let _claim = self.shared.tracker.claim(origin.id).await?;
        self.forget_letters(&origin, None, None)?;
        let arrival = Arrival {
            source: Arc::clone(&self.node),
            is_removal: true,
            ..Arrival::default()
        };
        // It has no items, so it ends here and now.
        drop(self.shared.tracker.begin_arrival(&origin, arrival));
        Ok(())
    }

    /// Whether the source is asked for a dry run: it lists its documents once, as
    /// it would to send them, and does not wait for others. What it sends and
    /// removes is counted and nothing else.
    pub fn is_dry_run(&self) -> bool {
        self.survey.is_some()
    }

    /// Counts documents that are gone and whose rows stay, for a dry run.
    pub fn count_gone(&self, n_documents: usize) {
        if let Some(survey) = &self.survey {
            survey.count_gone(n_documents as u64);
        }
    }

    /// The documents of this source that earlier runs have stored or set aside.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn known(&self) -> Result<Vec<KnownDocument>, StageError> {
        self.shared.progress.known(&self.node)
    }

    /// Which documents that are gone a run that ends by itself removes.
    pub fn prune(&self) -> Prune {
        self.shared.options.prune
    }

    /// Reports an error that does not stop the run: every node finishes its
    /// work, and then the run fails with the error.
    pub fn fail_at_end(&self, error: StageError) {
        self.shared.fail_at_end(&self.node, error);
    }

    /// The only documents that this run is to send, where it is one that
    /// feeds dead letters in again.
    pub fn retries(&self) -> Option<&[FeedAgain]> {
        self.shared.options.retries.as_deref()
    }

    fn wants(&self, id: DocumentId) -> bool {
        let only = self.shared.only.as_ref();
        only.is_none_or(|only| only.contains(&id))
    }

    /// Sets a document aside that could not even be read.
    ///
    /// # Errors
    /// When the dead letter cannot be written.
    pub fn dead_letter(&self, uri: &str, error: &ItemError) -> Result<(), StageError> {
        self.dead_letter_from(uri, error, None)
    }

    /// The same, with what the document can be made from again.
    ///
    /// # Errors
    /// As [`SourceOutlet::dead_letter`].
    pub fn dead_letter_from(
        &self,
        uri: &str,
        error: &ItemError,
        input: Option<&str>,
    ) -> Result<(), StageError> {
        let origin = Origin::new(uri, "", &[]);
        if !self.wants(origin.id) {
            return Ok(());
        }
        let error = &self.shared.secrets.redact_item(error);
        if let Some(survey) = &self.survey {
            survey.count_unreadable(&self.node, &origin, error);
            return Ok(());
        }
        let letters = &self.shared.dead_letters;
        self.forget_letters(&origin, None, None)?;
        let key = Key::document(origin.id);
        letters.write_unread(&self.node, &origin, error, input)?;
        tracing::warn!(
            node = &*self.node,
            hint = error.hint.as_deref(),
            "{}",
            error.message(&origin.label(key))
        );
        NodeMetrics::count(&self.metrics.dead_letters, 1);
        add_one(&self.shared.metrics.dead_letters);
        add_one(&self.shared.metrics.documents_set_aside);
        self.shared.pages.end(origin.id, true);
        Ok(())
    }

    /// Says how many documents will come, for the progress bar. Adds up over calls.
    pub fn expect(&self, n_documents: usize) {
        let expected = &self.shared.metrics.documents_expected;
        expected.fetch_add(n_documents as u64, std::sync::atomic::Ordering::AcqRel);
    }

    /// Counts a document that need not be read again.
    pub fn skip(&self) {
        add_one(&self.shared.metrics.documents_skipped);
    }

    /// Counts the time until the guard is dropped as starved: the source has
    /// nothing to do but wait for what may come. A source that is asked to stop
    /// meanwhile, or is cancelled, drops the guard too.
    #[must_use = "the time until the guard is dropped is counted"]
    pub fn idle(&self) -> Idle {
        Idle {
            metrics: Arc::clone(&self.metrics),
            lane: self.lane.clone(),
            since: Instant::now(),
        }
    }

    /// Whether the source is asked to stop: send no more and return.
    pub fn is_draining(&self) -> bool {
        self.stop().is_draining()
    }

    /// Waits until the source is asked to stop; for `tokio::select!`.
    pub async fn draining(&self) {
        self.stop().draining().await;
    }

    fn stop(&self) -> &Stop {
        &self.shared.stop
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;
    use crate::{
        Field, Pipeline, Report, Resources, RunControl, RunError, Source, StopReason, from_source,
        sink_fn,
    };

    /// A source that is a function of its outlet.
    struct Calls<F>(F);

    impl<F> Source for Calls<F>
    where
        F: FnOnce(SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> + Send,
    {
        fn run(
            self: Box<Self>,
            outlet: SourceOutlet,
        ) -> BoxFuture<'static, Result<(), StageError>> {
            (self.0)(outlet)
        }
    }

    async fn run<F>(control: &RunControl, source: F) -> Result<Report, RunError>
    where
        F: FnOnce(SourceOutlet) -> BoxFuture<'static, Result<(), StageError>> + Send + 'static,
    {
        let pipeline = Pipeline::builder("p")
            .source("texts", from_source(Calls(source)).provides([Field::TEXT]))
            .sink("rows", sink_fn(async |_: Vec<Item>| Ok(())))
            .build(&Resources::default());
        pipeline.expect("it is sound").run(control).await
    }

    #[tokio::test]
    async fn a_failure_at_the_end_lets_the_run_finish_its_work() {
        let control = RunControl::default();
        let ended = run(&control, |outlet| {
            Box::pin(async move {
                outlet.fail_at_end(StageError::fatal("a folder is empty", "fill it"));
                for name in ["a", "b", "c"] {
                    outlet.send(Item::of_text(name, "text")).await?;
                }
                Ok(())
            })
        });
        let error = ended.await.expect_err("it fails at its end");
        let report = error.report.as_ref().expect("it has run");
        assert_eq!(report.stopped, StopReason::Finished);
        assert_eq!(report.totals.items_stored, 3);
        let expected = "pipeline `p` stopped at `texts`: a folder is empty";
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn a_source_that_waits_until_it_is_drained_or_cancelled_is_starved() {
        for end in [RunControl::drain, RunControl::cancel] {
            let control = RunControl::default();
            let running = run(&control, |outlet| {
                Box::pin(async move {
                    let _idle = outlet.idle();
                    outlet.draining().await;
                    Ok(())
                })
            });
            let ending = async {
                control.started().await;
                while control.snapshot().is_none_or(|now| now.elapsed_s < 0.05) {
                    tokio::task::yield_now().await;
                }
                end(&control);
            };
            let (ended, ()) = tokio::join!(running, ending);
            let node = &ended.expect("nothing fails").totals.nodes[0];
            assert!(node.starved_s > 0.03, "{node:?}");
            assert!(node.busy_s < node.starved_s / 2.0, "{node:?}");
        }
    }
}

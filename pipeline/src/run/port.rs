//! What is behind a worker's [`Outlet`](crate::Outlet): the edges that leave its node.

use std::sync::Arc;
use std::time::Duration;

use crate::edge::EdgeSender;
use crate::error::{ItemError, StageError};
use crate::item::Item;
use crate::key::Key;
use crate::metrics::{NodeMetrics, add_one};
use crate::run::Shared;
use crate::stage::OutletPort;

pub(super) struct Port {
    pub(super) node: Arc<str>,
    pub(super) edges: Arc<Vec<EdgeSender>>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<NodeMetrics>,
    /// How long the sends of this batch waited for room.
    pub(super) blocked: Duration,
    /// Keys that left the node in this batch, sent or set aside.
    pub(super) left: Vec<Key>,
}

impl Port {
    /// Blocks until every edge has room for something.
    pub(super) fn wait_for_room(&self) -> Result<Duration, StageError> {
        self.edges
            .iter()
            .try_fold(Duration::ZERO, |sum, edge| Ok(sum + edge.wait_for_room()?))
    }
}

impl OutletPort for Port {
    fn send(&mut self, mut item: Item) -> Result<(), StageError> {
        let tracker = &self.shared.tracker;
        if item.token.is_none() {
            // Made from scratch: it belongs to its document while that is under
            // way, and begins one otherwise.
            let token = tracker.token_for(item.key().document);
            item.token = Some(token.unwrap_or_else(|| tracker.begin(item.origin())));
        }
        self.left.push(item.key());
        NodeMetrics::count(&self.metrics.items_out, 1);
        let Some((last, others)) = self.edges.split_last() else {
            return Ok(());
        };
        for edge in others {
            self.blocked += edge.send(item.clone())?;
        }
        self.blocked += last.send(item)?;
        Ok(())
    }

    fn dead_letter(&mut self, item: Item, error: ItemError) {
        self.left.push(item.key());
        let (node, hint) = (&*self.node, error.hint.as_deref());
        tracing::warn!(node, hint, "{}", error.message(&item.label()));
        let letters = &self.shared.dead_letters;
        let written = letters.write(node, item.origin(), item.key(), &error, true);
        NodeMetrics::count(&self.metrics.dead_letters, 1);
        add_one(&self.shared.metrics.dead_letters);
        if let Some(token) = &item.token {
            token.document().count_dead();
        }
        if let Err(error) = written {
            // Without its letter the item would be lost: the document stays undone.
            if let Some(token) = &item.token {
                token.document().fail();
            }
            self.shared.fail(node, error);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.shared.stop.is_cancelled()
    }
}

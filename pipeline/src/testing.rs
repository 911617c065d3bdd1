//! For tests of stages and sinks: run one without a runner.

use crate::error::{ItemError, StageError};
use crate::item::Item;
use crate::stage::{Delivery, Outlet, OutletPort, Stage};

/// What a stage sent and set aside.
#[derive(Debug, Default)]
pub struct StageOutput {
    /// Items sent on, in order.
    pub sent: Vec<Item>,
    /// Items set aside, with the whole sentence of their dead letters.
    pub dead: Vec<(Item, String)>,
    /// What stopped the stage, if something did.
    pub error: Option<StageError>,
}

impl OutletPort for StageOutput {
    fn send(&mut self, item: Item) -> Result<(), StageError> {
        self.sent.push(item);
        Ok(())
    }

    fn dead_letter(&mut self, item: Item, error: ItemError) {
        let message = error.message(&item.label());
        self.dead.push((item, message));
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Starts a stage, gives it all items as one batch, and finishes it.
pub fn run_stage(stage: &mut dyn Stage, items: impl IntoIterator<Item = Item>) -> StageOutput {
    let mut output = StageOutput::default();
    let batch = items.into_iter().collect();
    let run = || {
        stage.start()?;
        stage.process(batch, &mut Outlet::new(&mut output))?;
        stage.finish(&mut Outlet::new(&mut output))
    };
    let ended = run();
    output.error = ended.err();
    output
}

/// Wraps items as deliveries to a sink, and the documents that they belong to.
/// All items must be of one document.
pub fn deliver(
    items: impl IntoIterator<Item = Item>,
) -> (
    Vec<Delivery>,
    Option<std::sync::Arc<crate::document::Document>>,
) {
    let tracker = crate::document::Tracker::default();
    let mut token = None;
    let deliveries = items.into_iter().map(|item| {
        let token = token.get_or_insert_with(|| tracker.begin(item.origin()));
        Delivery {
            item,
            ack: token.clone().arrive(),
        }
    });
    let deliveries: Vec<Delivery> = deliveries.collect();
    let document = token.map(|token| std::sync::Arc::clone(token.document()));
    (deliveries, document)
}

//! For tests of stages and sinks: run one without a runner.

use std::sync::Arc;

use crate::document::{Arrival, Document, Tracker};
use crate::error::{ItemError, StageError};
use crate::fields::FieldSet;
use crate::item::Item;
use crate::key::Origin;
use crate::metrics::SinkMeter;
use crate::sink::{Delivery, Ended, SinkInput};
use crate::stage::{Outlet, OutletPort, Stage};

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
pub fn deliver(items: impl IntoIterator<Item = Item>) -> (Vec<Delivery>, Option<Arc<Document>>) {
    let tracker = Tracker::default();
    let mut token = None;
    let deliveries = items.into_iter().map(|item| {
        let token = token.get_or_insert_with(|| tracker.begin(item.origin()));
        Delivery {
            item,
            ack: token.clone().arrive(0),
        }
    });
    let deliveries: Vec<Delivery> = deliveries.collect();
    let document = token.map(|token| Arc::clone(token.document()));
    (deliveries, document)
}

/// The message that a sink gets when it has seen all of `document`.
pub fn ended(document: &Arc<Document>) -> Ended {
    Ended {
        document: Arc::clone(document),
        has_lost_items: document.n_dead() > 0,
        ack: document.end_ack(),
    }
}

/// The message that a sink gets when the document at `uri` is gone.
pub fn removed(uri: &str) -> Ended {
    let origin = Arc::new(Origin::new(uri, "", &[]));
    let arrival = Arrival {
        is_removal: true,
        ..Arrival::default()
    };
    let token = Tracker::default().begin_arrival(&origin, arrival);
    ended(token.document())
}

/// What a sink of a pipeline `pages` learns, with these fields.
pub fn sink_input(fields: FieldSet) -> SinkInput {
    SinkInput {
        fields,
        pipeline: "pages".into(),
        node: "table".into(),
        fingerprint: "0123456789abcdef".into(),
        writer: "fedcba9876543210".into(),
        stager: None,
        meter: SinkMeter::default(),
    }
}

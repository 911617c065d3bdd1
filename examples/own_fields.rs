//! Adds values of your own to items.
//!
//! A scalar, text or vector field is a name and a type, and sinks make a column
//! of it. A value that only your stages understand is a `CustomValue`. Run it
//! with `cargo run --example own_fields`.

#![allow(clippy::print_stdout)]

use std::any::Any;
use std::sync::Arc;

use futures::StreamExt as _;
use pagemill::pipeline::{CustomValue, Value};
use pagemill::{Field, FieldType, Item, ItemError, Pipeline, Resources, from_iter, map};

/// A column of whole numbers.
const N_SENTENCES: Field = Field::new("n_sentences", FieldType::Integer);
/// What the second stage needs of the first: no sink can store it.
const OUTLINE: Field = Field::new("outline", FieldType::Custom);

/// Where each sentence begins.
#[derive(Debug)]
struct Outline {
    starts: Vec<usize>,
}

impl CustomValue for Outline {
    // The budgets of the edges count it.
    fn n_bytes(&self) -> usize {
        self.starts.len() * size_of::<usize>()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn outline_of(item: &Item) -> Result<&Outline, ItemError> {
    let outline = match item.get(&OUTLINE.name) {
        Some(Value::Custom(value)) => value.as_any().downcast_ref(),
        _ => None,
    };
    outline.ok_or_else(|| ItemError::missing("count sentences of", &OUTLINE.name))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let outline = map(|item: Item| {
        let text = item.text().unwrap_or_default();
        let ends = text.match_indices(". ").map(|(end, stop)| end + stop.len());
        let starts = std::iter::once(0).chain(ends).collect();
        Ok(item.with(OUTLINE.name, Value::Custom(Arc::new(Outline { starts }))))
    });
    let outline = outline.reads([Field::TEXT]).adds([OUTLINE]);
    let count = map(|item: Item| {
        let n = i64::try_from(outline_of(&item)?.starts.len()).unwrap_or(i64::MAX);
        Ok(item.with(N_SENTENCES.name, n))
    });
    let count = count.reads([OUTLINE]).adds([N_SENTENCES]).drops([OUTLINE]);
    let notes = || {
        let note = Item::of_text("note.txt", "The mill turns. The river falls.");
        from_iter([note]).provides([Field::TEXT])
    };

    // A field that nobody adds is found before anything runs.
    let wrong = Pipeline::builder("sentences")
        .source("notes", notes())
        .stage("count", count.clone())
        .into_stream(&Resources::default());
    let complaint = wrong.err().expect("nobody adds the outline").to_string();
    assert!(complaint.contains("stage `count` reads `outline`, which `notes` does not provide"));
    println!("{complaint}\n");

    let mut items = Pipeline::builder("sentences")
        .source("notes", notes())
        .stage("outline", outline)
        .stage("count", count)
        .into_stream(&Resources::default())?;
    let item = items.next().await.expect("one note went in")?;
    assert!(matches!(
        item.get(&N_SENTENCES.name),
        Some(Value::Integer(2))
    ));
    assert!(item.get(&OUTLINE.name).is_none());
    println!("{}: {:?}", item.label(), item.get(&N_SENTENCES.name));
    Ok(())
}

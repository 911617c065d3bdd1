//! Writes steps as closures, without types of their own.
//!
//! As a closure: one to one, one to many, many to one, or a batch at a time.
//! Run it with `cargo run --example closures`.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pagemill::pipeline::Value;
use pagemill::{
    BatchPolicy, Field, FieldType, Item, ItemError, Pipeline, Resources, RunControl, batch_map,
    filter, flat_map, from_iter, gather, map, sink_fn, stage,
};

const LENGTH: Field = Field::new("length", FieldType::Integer);
const LONGEST: Field = Field::new("longest", FieldType::Integer);

/// What every closure here can fail with: the item is then set aside.
fn text(item: &Item) -> Result<&str, ItemError> {
    item.text()
        .ok_or_else(|| ItemError::missing("read", "text"))
}

fn length(item: &Item) -> i64 {
    let length = item.text().unwrap_or_default().chars().count();
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let notes = [
        ("mill.txt", "The mill turns in the river"),
        ("bird.txt", "A kingfisher dives"),
        ("void.txt", ""),
    ];
    let notes = notes.map(|(uri, text)| Item::of_text(uri, text));

    // One to one.
    let plain = map(|item: Item| match text(&item)?.to_lowercase() {
        plain if plain.is_empty() => Err(ItemError::new("read", "there is nothing in it")),
        plain => Ok(item.with("text", plain)),
    });
    // One to many: each word is a part of its document.
    let words = flat_map(|item: Item| {
        let words: Vec<String> = text(&item)?.split(' ').map(str::to_owned).collect();
        let parts = (1..).zip(words);
        Ok(parts.map(move |(part, word)| item.clone().with_part(part).with("text", word)))
    });
    // One or none.
    let long = filter(|item| length(item) > 2);
    // A batch at a time, as a model works. Items may come back in any order.
    let measured = batch_map(|words: Vec<Item>| {
        let measured = words.into_iter().map(|word| {
            let n = length(&word);
            word.with(LENGTH.name, n)
        });
        Ok(measured.rev().collect())
    });
    // All of a document to one.
    let longest = gather(|words: Vec<Item>| {
        let longest = words.iter().map(length).max().unwrap_or(0);
        let document = Item::new(Arc::clone(words[0].origin()));
        Ok(document.with(LONGEST.name, longest))
    });

    let found: Arc<Mutex<BTreeMap<String, i64>>> = Arc::default();
    let letters: Arc<Mutex<Vec<String>>> = Arc::default();
    let (rows, told) = (Arc::clone(&found), Arc::clone(&letters));
    let pipeline = Pipeline::builder("longest_words")
        .source("notes", from_iter(notes).provides([Field::TEXT]))
        // What a closure declares is checked before anything runs.
        .stage("plain", plain.reads([Field::TEXT]).replaces([Field::TEXT]))
        .stage("words", words.reads([Field::TEXT]).replaces([Field::TEXT]))
        .stage("long", long.reads([Field::TEXT]))
        .node(
            stage("measured", measured.reads([Field::TEXT]).adds([LENGTH]))
                .input("long")
                .workers(2)
                .batch(BatchPolicy::of_items(4, 5)),
        )
        .stage(
            "longest",
            longest.reads([Field::TEXT, LENGTH]).adds([LONGEST]),
        )
        .sink(
            "rows",
            sink_fn(move |batch: Vec<Item>| {
                let mut rows = rows.lock().expect("no closure panicked");
                for item in batch {
                    if let Some(Value::Integer(longest)) = item.get(&LONGEST.name) {
                        rows.insert(item.origin().uri.to_string(), *longest);
                    }
                }
                async { Ok(()) }
            }),
        )
        .on_dead_letter(move |letter| {
            told.lock()
                .expect("no closure panicked")
                .push(letter.error.clone());
        })
        .build(&Resources::default())?;
    let report = pipeline.run(&RunControl::default()).await?;

    let found = found.lock().expect("no closure panicked");
    assert_eq!((found["mill.txt"], found["bird.txt"]), (5, 10));
    let letters = letters.lock().expect("no closure panicked");
    assert_eq!(*letters, ["cannot read `void.txt`: there is nothing in it"]);
    println!(
        "{}\n  the longest words have {found:?} letters",
        report.to_text()
    );
    Ok(())
}

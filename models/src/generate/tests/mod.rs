//! Whole answers: beside the reference's, and beside each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::error::ModelError;
use crate::reference::{Expected, own, patches, shared};

mod batching;

mod limits;

mod reference;

/// A model of this crate's fixtures.
fn fixture(name: &str) -> Generator {
    load(&own(name), &GeneratorOptions::default())
}

fn load(folder: &Path, options: &GeneratorOptions) -> Generator {
    Generator::load(folder, options).unwrap_or_else(|error| panic!("{error}"))
}

/// A conversation as the fixtures have it, about these pictures.
fn conversation(generator: &Generator, messages: &Value, images: &[PathBuf]) -> GenerateRequest {
    let messages = messages.as_array().unwrap().iter().map(|message| {
        let parts = match &message["content"] {
            Value::String(text) => vec![Part::Text(text.clone())],
            Value::Array(parts) => parts
                .iter()
                .map(|part| match part["text"].as_str() {
                    Some(text) => Part::Text(text.into()),
                    None => Part::Image,
                })
                .collect(),
            other => panic!("{other}"),
        };
        Message {
            role: message["role"].as_str().unwrap().into(),
            parts,
        }
    });
    let prepared = images.iter().map(|path| {
        let processor = generator.processor().unwrap();
        Arc::new(patches(processor, path))
    });
    GenerateRequest {
        messages: messages.collect(),
        images: prepared.collect(),
        sampling: Sampling::default(),
        limits: limits(24, 24),
        constraint: None,
    }
}

/// So many tokens, without a guard.
fn limits(max_new_tokens: usize, min_new_tokens: usize) -> Limits {
    Limits {
        max_new_tokens,
        min_new_tokens,
        repetition_guard: false,
        ..Limits::default()
    }
}

/// A question in words.
fn question(text: &str, max_new_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        limits: limits(max_new_tokens, max_new_tokens),
        ..GenerateRequest::ask(text, Vec::new())
    }
}

/// The conversations of one of this crate's fixtures.
fn conversations(name: &str, generator: &Generator) -> (Vec<GenerateRequest>, Expected) {
    let folder = own(name);
    let expected = Expected::read(&folder.join("expected.safetensors"));
    let all = expected.json("conversations");
    let requests = all.as_array().unwrap().iter().map(|entry| {
        let images = entry["images"].as_array().unwrap().iter();
        let images = images.map(|image| folder.join(image.as_str().unwrap()));
        conversation(generator, &entry["messages"], &images.collect::<Vec<_>>())
    });
    (requests.collect(), expected)
}

/// The answer of a request that has the generator to itself.
fn alone(generator: &mut Generator, request: &GenerateRequest) -> Generated {
    let mut results = generator.generate(vec![request.clone()]).unwrap();
    results.remove(0).unwrap()
}

/// Steps until all is told.
fn run(generator: &mut Generator) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..10_000 {
        if generator.is_idle() {
            return events;
        }
        events.extend(generator.step().unwrap());
    }
    panic!("it never ends");
}

#[test]
fn a_generator_goes_to_another_thread() {
    fn check<T: Send>() {}
    check::<Generator>();
    check::<GenerateRequest>();
    check::<Event>();
}

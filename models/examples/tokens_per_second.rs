//! Measures the speed of a text encoder on this machine.
//!
//! ```text
//! cargo run --release -p pagemill-models --example tokens_per_second -- \
//!     sentence-transformers/all-MiniLM-L6-v2 4096
//! ```
#![allow(clippy::print_stdout, reason = "its answer is what it prints")]

use std::env;
use std::error::Error;
use std::time::Instant;

use pagemill_models::{LoadOptions, ModelPlaces, TextEncoder, resolve};

const WORDS: [&str; 8] = [
    "revenue",
    "grew",
    "by",
    "the",
    "quarter",
    "sits",
    "outside",
    "naturally",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let name = arguments
        .next()
        .unwrap_or("sentence-transformers/all-MiniLM-L6-v2".into());
    let mut options = LoadOptions::default();
    if let Some(max_pass_tokens) = arguments.next() {
        options.max_pass_tokens = max_pass_tokens.parse()?;
    }
    let folder = resolve(&name, &ModelPlaces::from_environment())?;
    let started = Instant::now();
    let encoder = TextEncoder::load(&folder, &options)?;
    println!("loaded in {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    println!("words  texts  tokens/s  count tokens/s");
    for n_words in [8, 32, 120, 250] {
        let n_texts = 8000 / n_words;
        // Lengths vary by half, as chunks of real text do.
        let texts: Vec<String> = (0..n_texts)
            .map(|text| {
                let n_words = n_words / 2 + (text * 7919) % (n_words / 2 + 1);
                let words = (0..n_words).map(|word| WORDS[(word * 5 + text) % WORDS.len()]);
                words.collect::<Vec<_>>().join(" ")
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let started = Instant::now();
        let n_tokens: usize = texts
            .iter()
            .map(|text| encoder.tokenizer().count(text))
            .sum();
        let n_counted_per_s = n_tokens as f64 / started.elapsed().as_secs_f64();
        let mut best = f64::MAX;
        for _ in 0..4 {
            let started = Instant::now();
            encoder.encode(&texts)?;
            best = best.min(started.elapsed().as_secs_f64());
        }
        println!(
            "{n_words:5}  {n_texts:5}  {:8.0}  {n_counted_per_s:14.0}",
            n_tokens as f64 / best
        );
    }
    Ok(())
}

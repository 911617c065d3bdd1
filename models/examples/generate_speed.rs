//! How fast does a model speak on this machine?
//!
//! ```text
//! cargo run --release -p pagemill-models --example generate_speed -- \
//!     Qwen/Qwen3-0.6B q8_0 512 64
//! ```
//!
//! The model, then the format of its weights (`float`: as the device has them), the tokens of
//! a prompt and those of an answer.
#![allow(clippy::print_stdout, reason = "its answer is what it prints")]

use std::env;
use std::error::Error;
use std::time::Instant;

use pagemill_models::{
    Device, GenerateRequest, Generator, GeneratorOptions, Limits, ModelPlaces, resolve,
};

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
    let name = arguments.next().unwrap_or("Qwen/Qwen3-0.6B".into());
    let quantize = arguments.next().filter(|format| format != "float");
    let quantize = quantize.map(|format| format.parse()).transpose()?;
    let mut number = |usual: usize| arguments.next().map_or(Ok(usual), |number| number.parse());
    let (n_prompt, n_answer) = (number(512)?, number(64)?);
    let folder = resolve(&name, &ModelPlaces::from_environment())?;
    let options = GeneratorOptions {
        device: Device::best(),
        quantize,
        cache_mb: Some(8192),
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::load(&folder, &options)?;
    println!(
        "loaded in {:.1} s, {} MB of weights",
        generator.load_time().as_secs_f64(),
        generator.memory_bytes() / 1_000_000
    );
    println!("batch  prompt tokens/s  answer tokens/s  ms a step");
    for batch in [1, 8] {
        let (mut prompt, mut answer) = (0.0_f64, 0.0_f64);
        for round in 0..3 {
            let numbers = (0..batch).map(|row| batch * 100 + round * 10 + row);
            let requests = numbers.map(|number| request(&generator, number, n_prompt, n_answer));
            let requests = requests.collect();
            let (prompt_per_s, answer_per_s) = measure(&mut generator, requests)?;
            prompt = prompt.max(prompt_per_s);
            answer = answer.max(answer_per_s);
        }
        let step_ms = batch as f64 / answer * 1e3;
        println!("{batch:5}  {prompt:15.1}  {answer:15.1}  {step_ms:9.2}");
    }
    Ok(())
}

/// A question of so many tokens, unlike those of other numbers from its first word on.
fn request(
    generator: &Generator,
    number: usize,
    n_prompt: usize,
    n_answer: usize,
) -> GenerateRequest {
    let mut text = number.to_string();
    let mut words = WORDS.iter().cycle().skip(number);
    while generator.count(&text) < n_prompt {
        for word in words.by_ref().take(8) {
            text.push(' ');
            text.push_str(word);
        }
    }
    GenerateRequest {
        limits: Limits {
            max_new_tokens: n_answer,
            min_new_tokens: n_answer,
            repetition_guard: false,
            ..Limits::default()
        },
        ..GenerateRequest::ask(text, Vec::new())
    }
}

/// Tokens a second of prompts and of answers. The first step computes all prompts and two
/// tokens of each answer.
fn measure(
    generator: &mut Generator,
    requests: Vec<GenerateRequest>,
) -> Result<(f64, f64), Box<dyn Error>> {
    let (mut n_prompt, mut n_answer) = (0, 0);
    for request in requests {
        n_prompt += generator.count_prompt(&request)?;
        n_answer += request.limits.max_new_tokens - 2;
        generator.submit(request)?;
    }
    let started = Instant::now();
    generator.step()?;
    let prompts_s = started.elapsed().as_secs_f64();
    let mut n_steps = 0;
    let started = Instant::now();
    while !generator.is_idle() {
        generator.step()?;
        n_steps += 1;
    }
    let answers_s = started.elapsed().as_secs_f64();
    let step_s = answers_s / f64::from(n_steps);
    Ok((
        n_prompt as f64 / (prompts_s - step_s),
        n_answer as f64 / answers_s,
    ))
}

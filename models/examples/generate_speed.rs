//! Measures the speed of a generating model on this machine.
//!
//! ```text
//! cargo run --release -p pagemill-models --example generate_speed -- \
//!     Qwen/Qwen3-0.6B q8_0 512 64
//! ```
//!
//! The model or a folder of it, such as one with a GGUF file; then the format of its weights
//! (`float`: as the files or the device have them), the tokens of a prompt and those of an
//! answer. Of several rounds the fastest counts. Options, anywhere:
//!
//! - `--batches 1,8`: answers that grow at once.
//! - `--rounds 3`: repetitions.
//! - `--image 756`: before each prompt an image of random pixels, of so many a side.
//! - `--json`: one object a batch instead of a table.
#![allow(clippy::print_stdout, reason = "its answer is what it prints")]

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use pagemill_models::{
    Device, GenerateRequest, Generator, GeneratorOptions, Limits, ModelPlaces, RgbView, resolve,
};
use serde_json::json;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

struct Arguments {
    model: String,
    format: Option<String>,
    n_prompt: usize,
    n_answer: usize,
    batches: Vec<usize>,
    n_rounds: usize,
    image_px: Option<usize>,
    json: bool,
}

impl Arguments {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut places = Vec::new();
        let (mut batches, mut n_rounds) = (vec![1, 8], 3);
        let (mut image_px, mut json) = (None, false);
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--batches" => {
                    let numbers = value()?;
                    let numbers: Result<_, _> = numbers.split(',').map(str::parse).collect();
                    batches = numbers?;
                }
                "--rounds" => n_rounds = value()?.parse()?,
                "--image" => image_px = Some(value()?.parse()?),
                "--json" => json = true,
                _ => places.push(argument),
            }
        }
        let place = |index: usize| places.get(index).cloned();
        let number =
            |index: usize, usual| place(index).map_or(Ok(usual), |number| number.parse::<usize>());
        Ok(Self {
            model: place(0).unwrap_or("Qwen/Qwen3-0.6B".into()),
            format: place(1).filter(|format| format != "float"),
            n_prompt: number(2, 512)?,
            n_answer: number(3, 64)?,
            batches,
            n_rounds,
            image_px,
            json,
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let folder = resolve(&arguments.model, &ModelPlaces::from_environment())?;
    let format = arguments.format.as_deref();
    let options = GeneratorOptions {
        device: Device::best(),
        quantize: format.map(str::parse).transpose()?,
        cache_mb: Some(8192),
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::load(&folder, &options)?;
    if !arguments.json {
        println!(
            "loaded in {:.1} s, {} MB of weights",
            generator.load_time().as_secs_f64(),
            generator.memory_bytes() / 1_000_000
        );
        println!("batch  prompt tokens/s  answer tokens/s  ms a step  s in all");
    }
    for &batch in &arguments.batches {
        let mut best = Speed::default();
        for round in 0..arguments.n_rounds {
            let numbers = (0..batch).map(|row| batch * 100 + round * 10 + row);
            let requests: Result<Vec<_>, _> = numbers
                .map(|number| request(&generator, number, &arguments))
                .collect();
            best = best.or(measure(&mut generator, requests?)?);
        }
        let Speed {
            prompt,
            answer,
            total_s,
        } = best;
        if arguments.json {
            let line = json!({
                "batch": batch, "prompt_tokens_per_s": prompt, "answer_tokens_per_s": answer,
                "total_s": total_s,
            });
            println!("{line}");
        } else {
            let step_ms = batch as f64 / answer * 1e3;
            println!("{batch:5}  {prompt:15.1}  {answer:15.1}  {step_ms:9.2}  {total_s:8.2}");
        }
    }
    Ok(())
}

/// A question of so many tokens, unlike those of other numbers from its first word on.
fn request(
    generator: &Generator,
    number: usize,
    arguments: &Arguments,
) -> Result<GenerateRequest, Box<dyn Error>> {
    let mut text = number.to_string();
    let mut words = WORDS.iter().cycle().skip(number);
    while generator.count(&text) < arguments.n_prompt {
        text.push(' ');
        text.extend(words.next().copied());
    }
    let mut images = Vec::new();
    if let Some(side) = arguments.image_px {
        let processor = generator.processor().ok_or("the model reads only text")?;
        let pixels = noise(number, side * side * 3);
        images.push(Arc::new(processor.prepare(RgbView {
            pixels: &pixels,
            width_px: side as u32,
            height_px: side as u32,
        })?));
    }
    Ok(GenerateRequest {
        limits: Limits {
            max_new_tokens: arguments.n_answer,
            min_new_tokens: arguments.n_answer,
            repetition_guard: false,
            ..Limits::default()
        },
        ..GenerateRequest::ask(text, images)
    })
}

/// Bytes that no other number has.
fn noise(number: usize, n: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

#[derive(Default)]
struct Speed {
    /// Tokens a second.
    prompt: f64,
    answer: f64,
    /// From the first request to the last answer.
    total_s: f64,
}

impl Speed {
    /// The better of each.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "it takes the place of the other"
    )]
    fn or(self, other: Self) -> Self {
        let first = self.total_s == 0.0;
        Self {
            prompt: self.prompt.max(other.prompt),
            answer: self.answer.max(other.answer),
            total_s: if first {
                other.total_s
            } else {
                self.total_s.min(other.total_s)
            },
        }
    }
}

/// The first step computes all prompts and two tokens of each answer.
fn measure(
    generator: &mut Generator,
    requests: Vec<GenerateRequest>,
) -> Result<Speed, Box<dyn Error>> {
    let (mut n_prompt, mut n_answer) = (0, 0);
    let started = Instant::now();
    for request in requests {
        n_prompt += generator.count_prompt(&request)?;
        n_answer += request.limits.max_new_tokens - 2;
        generator.submit(request)?;
    }
    let submitted = Instant::now();
    generator.step()?;
    let prompts_s = submitted.elapsed().as_secs_f64();
    let mut n_steps = 0;
    let grown = Instant::now();
    while !generator.is_idle() {
        generator.step()?;
        n_steps += 1;
    }
    let answers_s = grown.elapsed().as_secs_f64();
    let step_s = answers_s / f64::from(n_steps);
    Ok(Speed {
        prompt: n_prompt as f64 / (prompts_s - step_s),
        answer: n_answer as f64 / answers_s,
        total_s: started.elapsed().as_secs_f64(),
    })
}

//! `pagemill generate`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use pagemill::models::{
    Device, Dtype, Event, FinishReason, GenerateRequest, Generated, Generator, GeneratorOptions,
    ImageProcessor, Limits, Message, ModelError, ModelPlaces, Part, Patches, Quantization, RgbView,
    Sampling, resolve,
};
use pagemill::pipeline::printable_text;
use serde_json::json;

use crate::embed::{failed, of, parse};
use crate::{DONE, Hinted, picture};

/// Ask a model about pictures, without a pipeline.
#[derive(Args)]
#[command(
    after_help = "The answer is printed as it comes; with --json, it comes at its end, with its \
                        token ids and times.\n\nExample:\n  pagemill generate --model \
                        Qwen/Qwen2.5-VL-3B-Instruct --image page.png --prompt \"Transcribe this \
                        page to Markdown.\" --greedy --quantize q8_0"
)]
pub(crate) struct GenerateArgs {
    /// Folder or name of the model
    #[arg(long, value_name = "DIR_OR_NAME")]
    model: String,
    /// A picture, shown before the prompt; may be given many times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// What the model is asked
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// What the model is told to be
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Tokens before which the answer cannot end
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_new_tokens: u32,
    /// Take the likeliest token each time, whatever the model's settings say
    #[arg(long)]
    greedy: bool,
    /// Where chance begins: the same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given many times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Where to compute: cpu, cuda:0, metal, or auto for a GPU if there is one
    #[arg(long, default_value = "auto", value_parser = parse::<Device>)]
    device: Device,
    /// What to compute in: f32, f16 or bf16 [default: f32 on cpu, bf16 elsewhere]
    #[arg(long, value_parser = parse::<Dtype>)]
    dtype: Option<Dtype>,
    /// Weights of the language model in fewer bits: `q8_0`, `q6_k` or `q4_k`
    #[arg(long, value_parser = parse::<Quantization>)]
    quantize: Option<Quantization>,
    /// Quantize the vision tower as well
    #[arg(long, requires = "quantize")]
    quantize_vision: bool,
    /// The most tokens that a picture may become [default: what the model's processor says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_visual_tokens: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<u8> {
    let folder = resolve(&args.model, &ModelPlaces::from_environment()).map_err(failed)?;
    let options = GeneratorOptions {
        device: args.device,
        dtype: args.dtype,
        quantize: args.quantize,
        quantize_vision: args.quantize_vision,
        max_visual_tokens: args.max_visual_tokens.map(|n| n as usize),
        max_batch: 1,
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::load(&folder, &options).map_err(failed)?;
    let request = request(args, &generator)?;
    let generated = answer(&mut generator, request, args.json)?;
    if args.json {
        println_json(&generated, &generator)?;
    }
    Ok(DONE)
}

fn request(args: &GenerateArgs, generator: &Generator) -> Result<GenerateRequest, Hinted> {
    let mut images = Vec::with_capacity(args.images.len());
    if !args.images.is_empty() {
        let processor = generator
            .processor()
            .ok_or_else(|| failed(ModelError::NotRead { what: "pictures" }))?;
        for path in &args.images {
            images.push(Arc::new(prepare(processor, path)?));
        }
    }
    let mut parts: Vec<Part> = images.iter().map(|_| Part::Image).collect();
    parts.push(Part::Text(args.prompt.clone()));
    let system = args.system.iter().map(|text| Message {
        role: "system".into(),
        parts: vec![Part::Text(text.clone())],
    });
    let user = Message {
        role: "user".into(),
        parts,
    };
    let sampling = if args.greedy {
        Sampling::default()
    } else {
        Sampling {
            seed: args.seed,
            ..generator.default_sampling().clone()
        }
    };
    Ok(GenerateRequest {
        messages: system.chain([user]).collect(),
        images,
        sampling,
        limits: Limits {
            max_new_tokens: args.max_new_tokens as usize,
            min_new_tokens: args.min_new_tokens as usize,
            stop: args.stop.clone(),
            ..Limits::default()
        },
        constraint: None,
    })
}

fn prepare(processor: &ImageProcessor, path: &Path) -> Result<Patches, Hinted> {
    let pixels = picture::read(path)?.to_rgb8();
    let view = RgbView {
        pixels: pixels.as_raw(),
        width_px: pixels.width(),
        height_px: pixels.height(),
    };
    let name = path.display().to_string();
    processor.prepare(view).map_err(|error| of(&name, &error))
}

/// Steps to the end; prints the text as it comes, unless it is wanted whole.
fn answer(
    generator: &mut Generator,
    request: GenerateRequest,
    quiet: bool,
) -> anyhow::Result<Generated> {
    generator.submit(request).map_err(failed)?;
    let mut stdout = std::io::stdout().lock();
    while !generator.is_idle() {
        for event in generator.step().map_err(failed)? {
            match event {
                Event::Text { delta, .. } if !quiet => {
                    write!(stdout, "{}", printable_text(&delta))?;
                    stdout.flush()?;
                }
                Event::Text { .. } => {}
                Event::Failed { error, .. } => return Err(failed(error).into()),
                Event::Done { generated, .. } => {
                    if !quiet {
                        writeln!(stdout)?;
                    }
                    return Ok(generated);
                }
            }
        }
    }
    Err(Hinted::failed("the model ended without an answer", "report this").into())
}

fn println_json(generated: &Generated, generator: &Generator) -> anyhow::Result<()> {
    let n_later = generated.token_ids.len().saturating_sub(1);
    let decode_s = generated.decode_time.as_secs_f64();
    let finish_reason = match generated.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Repetition => "repetition",
        FinishReason::Context => "context",
    };
    let answer = json!({
        "token_ids": generated.token_ids,
        "text": generated.text,
        "finish_reason": finish_reason,
        "prompt_tokens": generated.prompt_tokens,
        "tokens_per_s": if decode_s > 0.0 { n_later as f64 / decode_s } else { 0.0 },
        "time_to_first_token_s": generated.time_to_first_token.as_secs_f64(),
        "load_time_s": generator.load_time().as_secs_f64(),
        "memory_bytes": generator.memory_bytes(),
    });
    writeln!(std::io::stdout().lock(), "{answer}")?;
    Ok(())
}

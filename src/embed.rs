//! `pagemill embed`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use pagemill::models::{
    Device, Dtype, Embedding, Encoder, EncoderKind, EncoderOptions, ModelError, ModelPlaces,
    Precision, Quantization, RgbView, TextRole, resolve,
};
use safetensors::tensor::{Dtype as TensorType, TensorView};

use crate::{DONE, Hinted, picture, why};

/// Turn pictures and questions into vectors, without a pipeline.
#[derive(Args)]
#[command(
    after_help = "The file holds f32 tensors `image.0`, `image.1`, ..., `text.0`, ..., each \
                        [n, dim] without padding.\n\nExample:\n  pagemill embed --model \
                        vidore/colqwen2.5-v0.2 --image page.png --text \"who signed?\" --out \
                        vectors.safetensors"
)]
pub(crate) struct EmbedArgs {
    /// Folder or name of the model
    #[arg(long, value_name = "DIR_OR_NAME")]
    model: String,
    /// A picture; may be given many times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// A question; may be given many times
    #[arg(long = "text", value_name = "QUERY")]
    texts: Vec<String>,
    /// Where the vectors go
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
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
}

pub(crate) fn parse<T: std::str::FromStr<Err = ModelError>>(name: &str) -> Result<T, String> {
    name.parse()
        .map_err(|error: ModelError| format!("{error}; {}", error.hint()))
}

pub(crate) fn run(args: &EmbedArgs) -> anyhow::Result<u8> {
    if args.images.is_empty() && args.texts.is_empty() {
        let problem = "there is nothing to embed";
        return Err(Hinted::usage(problem, "give `--image FILE` or `--text QUERY`").into());
    }
    let folder = resolve(&args.model, &ModelPlaces::from_environment()).map_err(failed)?;
    let options = EncoderOptions {
        device: args.device,
        dtype: args.dtype,
        quantize: args.quantize,
        quantize_vision: args.quantize_vision,
        max_visual_tokens: args.max_visual_tokens.map(|n| n as usize),
        ..EncoderOptions::default()
    };
    let encoder = Encoder::load(&folder, &options).map_err(failed)?;
    let mut vectors = BTreeMap::new();
    let bar = bar(args.images.len());
    for (index, path) in args.images.iter().enumerate() {
        let embedding = embed_image(&encoder, path)?;
        vectors.insert(format!("image.{index}"), embedding);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let texts: Vec<&str> = args.texts.iter().map(String::as_str).collect();
    if !texts.is_empty() {
        let embedded = encoder.embed_texts(&texts, TextRole::Query, Precision::F32);
        for (index, embedding) in embedded.map_err(failed)?.into_iter().enumerate() {
            let embedding = embedding.map_err(|error| of(&args.texts[index], &error))?;
            vectors.insert(format!("text.{index}"), embedding);
        }
    }
    write(&args.out, &vectors)?;
    Ok(DONE)
}

fn embed_image(encoder: &Encoder, path: &Path) -> Result<Embedding, Hinted> {
    let name = path.display().to_string();
    let picture = picture::read(path)?;
    let picture = match encoder.kind() {
        // As the reference implementations do it: ColQwen's drops what is transparent, the
        // others' lay it over white.
        EncoderKind::LateInteraction | EncoderKind::Sentence => picture.to_rgb8(),
        EncoderKind::Dual => over_white(&picture),
    };
    let processor = encoder
        .processor()
        .ok_or_else(|| failed(ModelError::NotRead { what: "pictures" }))?;
    let view = RgbView {
        pixels: picture.as_raw(),
        width_px: picture.width(),
        height_px: picture.height(),
    };
    let patches = processor.prepare(view).map_err(|error| of(&name, &error))?;
    let embedded = encoder
        .embed_images(&[&patches], Precision::F32)
        .map_err(failed)?;
    let embedding = embedded
        .into_iter()
        .next()
        .ok_or_else(|| Hinted::failed("the model gave nothing for a picture", "report this"))?;
    embedding.map_err(|error| of(&name, &error))
}

fn over_white(picture: &image::DynamicImage) -> image::RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let pixels = picture.to_rgba8();
    image::RgbImage::from_fn(pixels.width(), pixels.height(), |x, y| {
        let [r, g, b, alpha] = pixels.get_pixel(x, y).0;
        let over = |channel: u8| {
            let (channel, alpha) = (u32::from(channel), u32::from(alpha));
            // Pillow's rounding of `a * b / 255`.
            let blended = channel * alpha + 255 * (255 - alpha) + 128;
            (((blended >> 8) + blended) >> 8) as u8
        };
        image::Rgb([over(r), over(g), over(b)])
    })
}

/// Writes the file beside its place and moves it there: it is whole or absent.
fn write(path: &Path, vectors: &BTreeMap<String, Embedding>) -> Result<(), Hinted> {
    let bytes: BTreeMap<&String, Vec<u8>> = vectors
        .iter()
        .map(|(name, embedding)| {
            let numbers = embedding.to_f32();
            (
                name,
                numbers
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect(),
            )
        })
        .collect();
    let unwritable = |error: &(dyn std::error::Error + 'static)| {
        let problem = format!(
            "cannot write the vectors ({}): {}",
            why(error),
            path.display()
        );
        Hinted::failed(problem, "check the folder, its permissions and the disk")
    };
    let mut tensors = Vec::with_capacity(bytes.len());
    for (name, bytes) in &bytes {
        let embedding = &vectors[*name];
        let shape = vec![embedding.n(), embedding.dim];
        let view = TensorView::new(TensorType::F32, shape, bytes);
        tensors.push((name.as_str(), view.map_err(|error| unwritable(&error))?));
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    safetensors::serialize_to_file(tensors, None, &partial).map_err(|error| unwritable(&error))?;
    std::fs::rename(&partial, path).map_err(|error| unwritable(&error))
}

/// A bar on a terminal; nothing in a pipe.
fn bar(n: usize) -> ProgressBar {
    if !crate::progress::is_terminal() || n < 2 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, {eta} left");
    let bar = ProgressBar::new(n as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
pub(crate) fn failed(error: ModelError) -> Hinted {
    Hinted::failed(error.to_string(), error.hint())
}

pub(crate) fn of(what: &str, error: &ModelError) -> Hinted {
    Hinted::failed(format!("{error}: {what}"), error.hint())
}

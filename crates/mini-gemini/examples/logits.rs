//! `cargo run --release -p mini-gemini --example logits -- MODEL INPUTS OUT [OPTION…]`: visual tokens and logits of given prompts,
//! for comparing checkpoints, formats and other implementations.
//!
//! `INPUTS` is a safetensors file of prompts: `text.ids`, `image.ids`, `pair.ids` (i64; each may be absent; −200 stands for the next
//! picture), and of pictures, normalised: `high_res [n,3,S,S]` and `low_res [n,views,3,s,s]`. `OUT` gets `tokens`, the visual tokens of
//! all pictures one after another, `text.logits`, `text.steps` (the last 8 rows again, fed one by one through the cache), and the last 16
//! rows of the others' logits. Seconds to load and the peak of resident memory go to standard error.
//!
//! Options: `--dtype f32|bf16|f16|int8|auto`, `--model-zoo DIR`, `--model-base DIR`, `--adapter DIR`, `--mmproj FILE`, `--gemma-numerics 4.38|4.39`,
//! `--greedy N` (tokens that follow the text prompt, as `text.greedy`), `--pictures N` (looks at no more pictures, and leaves out the
//! prompts that need them).

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use mgm_image::PreparedImage;
use mgm_text::IMAGE_TOKEN;
use mini_gemini::decoder::Context;
use mini_gemini::{GemmaNumerics, LoadOptions, MiniGemini, ModelSource, Precision};

/// Prompts with pictures, and how many rows of their logits are kept.
const IMAGE_PROMPTS: [&str; 2] = ["image", "pair"];
const IMAGE_ROWS: usize = 16;
/// Rows of the text prompt that are fed one by one too.
const STEPS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut positional = Vec::new();
    let mut options = LoadOptions::default();
    let mut greedy = 0;
    let mut most_pictures = usize::MAX;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if !argument.starts_with("--") {
            positional.push(argument);
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--dtype" => {
                options.precision = match value.as_str() {
                    "f32" => Precision::F32,
                    "bf16" => Precision::Bf16,
                    "f16" => Precision::F16,
                    "int8" => Precision::Int8,
                    "auto" => Precision::Auto,
                    _ => {
                        return Err(format!(
                            "--dtype {value}: expected f32, bf16, f16, int8 or auto"
                        )
                        .into());
                    }
                }
            }
            "--gemma-numerics" => {
                options.gemma_numerics = Some(match value.as_str() {
                    "4.38" => GemmaNumerics::Erf,
                    "4.39" => GemmaNumerics::Tanh,
                    _ => {
                        return Err(
                            format!("--gemma-numerics {value}: expected 4.38 or 4.39").into()
                        );
                    }
                })
            }
            "--model-zoo" => options.model_zoo = Some(PathBuf::from(value)),
            "--model-base" => options.base = Some(PathBuf::from(value)),
            "--adapter" => options.adapter = Some(PathBuf::from(value)),
            "--mmproj" => options.mmproj = Some(PathBuf::from(value)),
            "--greedy" => greedy = value.parse()?,
            "--pictures" => most_pictures = value.parse()?,
            _ => return Err(format!("unknown option {argument}").into()),
        }
    }
    let [model, inputs, out] = positional.as_slice() else {
        return Err("usage: logits MODEL INPUTS OUT [OPTION…]".into());
    };

    let start = Instant::now();
    let model = MiniGemini::load(&ModelSource::parse(model), &options)?;
    eprintln!(
        "loaded in {:.2} s, {}",
        start.elapsed().as_secs_f64(),
        resident()
    );
    let inputs = candle_core::safetensors::load(inputs, &Device::Cpu)?;
    let mut results = HashMap::new();
    if let Some(ids) = inputs.get("text.ids") {
        let rows = model.splice(&ids.to_vec1::<i64>()?, &[])?;
        results.insert(
            "text.logits".to_string(),
            last_logits(&model, &rows, rows.dim(0)?)?,
        );
        if rows.dim(0)? > STEPS {
            results.insert("text.steps".to_string(), step_logits(&model, &rows)?);
        }
        if greedy > 0 {
            results.insert(
                "text.greedy".to_string(),
                continue_greedily(&model, rows, greedy)?,
            );
        }
    }
    if model.vision().is_some() && inputs.contains_key("high_res") {
        let tokens = pictures(&inputs)?
            .iter()
            .take(most_pictures)
            .map(|picture| model.visual_tokens(&model.tower_features(picture)?))
            .collect::<Result<Vec<_>, _>>()?;
        for prompt in IMAGE_PROMPTS {
            let Some(ids) = inputs.get(&format!("{prompt}.ids")) else {
                continue;
            };
            let ids = ids.to_vec1::<i64>()?;
            let wanted = ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
            let Some(tokens) = tokens.get(..wanted) else {
                continue;
            };
            let rows = model.splice(&ids, tokens)?;
            results.insert(
                format!("{prompt}.logits"),
                last_logits(&model, &rows, IMAGE_ROWS)?,
            );
        }
        results.insert("tokens".to_string(), Tensor::cat(&tokens, 0)?);
    }
    candle_core::safetensors::save(&results, Path::new(out))?;
    eprintln!(
        "done in {:.2} s, {}",
        start.elapsed().as_secs_f64(),
        resident()
    );
    Ok(())
}

/// Logits of the last `count` rows.
fn last_logits(model: &MiniGemini, rows: &Tensor, count: usize) -> Result<Tensor, Box<dyn Error>> {
    let length = rows.dim(0)?;
    let hidden = model
        .decoder()
        .hidden(rows, &mut Context::Sequences(&[length]))?;
    let count = count.min(length);
    Ok(model
        .decoder()
        .logits(&hidden.narrow(0, length - count, count)?)?)
}

/// Logits of the last [`STEPS`] rows, each fed alone after a cache of what comes before it.
fn step_logits(model: &MiniGemini, rows: &Tensor) -> Result<Tensor, Box<dyn Error>> {
    let decoder = model.decoder();
    let mut cache = decoder.new_cache();
    let first = rows.dim(0)? - STEPS;
    decoder.hidden(
        &rows.narrow(0, 0, first)?,
        &mut Context::Cached(&mut [(&mut cache, first)]),
    )?;
    let steps = (first..first + STEPS)
        .map(|row| {
            let row = rows.narrow(0, row, 1)?;
            let hidden = decoder.hidden(&row, &mut Context::Cached(&mut [(&mut cache, 1)]))?;
            decoder.logits(&hidden)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&steps, 0)?)
}

/// The most likely tokens, one after another.
fn continue_greedily(
    model: &MiniGemini,
    prompt: Tensor,
    count: usize,
) -> Result<Tensor, Box<dyn Error>> {
    let decoder = model.decoder();
    let mut cache = decoder.new_cache();
    let mut rows = prompt;
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        let length = rows.dim(0)?;
        let hidden = decoder.hidden(&rows, &mut Context::Cached(&mut [(&mut cache, length)]))?;
        let logits = decoder.logits(&hidden.narrow(0, length - 1, 1)?)?;
        let token = logits.argmax(1)?.to_vec1::<u32>()?[0];
        tokens.push(i64::from(token));
        rows = decoder.embed(&[token])?;
    }
    Ok(Tensor::new(tokens, &Device::Cpu)?)
}

fn pictures(inputs: &HashMap<String, Tensor>) -> Result<Vec<PreparedImage>, Box<dyn Error>> {
    let get = |name: &str| {
        inputs
            .get(name)
            .ok_or_else(|| format!("the inputs lack `{name}`"))
    };
    let (high_res, low_res) = (get("high_res")?, get("low_res")?);
    let (count, _, side, _) = high_res.dims4()?;
    let (_, views, _, small, _) = low_res.dims5()?;
    let values = |tensor: &Tensor, index: usize| {
        let picture = tensor.get(index)?.to_dtype(DType::F32)?;
        picture.flatten_all()?.to_vec1::<f32>()
    };
    (0..count)
        .map(|index| {
            Ok(PreparedImage {
                high_res: values(high_res, index)?,
                high_res_size: side as u32,
                low_res: values(low_res, index)?,
                low_res_size: small as u32,
                views,
            })
        })
        .collect()
}

/// Peak of resident memory, where the system tells.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map_or("unknown", str::trim)
            .to_string()
    };
    format!(
        "peak resident {}, of it files {}",
        of("VmHWM:"),
        of("RssFile:")
    )
}

//! `cargo run --release -p mini-gemini --example logits -- MODEL INPUTS OUT [OPTION…]`: visual tokens and logits of given prompts,
//! for comparing checkpoints, formats and other implementations.
//!
//! `INPUTS` is a safetensors file: `text.ids` and `image.ids` (i64, −200 stands for the picture; each may be absent), and with the
//! latter `high_res [3,S,S]` and `low_res [views,3,s,s]`, a normalised picture. `OUT` gets `text.logits`, `image.logits` (the last 16
//! rows) and `tokens`. Seconds to load and the peak of resident memory go to standard error.
//!
//! Options: `--dtype f32|bf16|auto`, `--model-zoo DIR`, `--model-base DIR`, `--adapter DIR`, `--mmproj FILE`, `--gemma-numerics 4.38|4.39`,
//! `--greedy N` (tokens that follow the text prompt, as `text.greedy`).

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use mgm_image::PreparedImage;
use mini_gemini::decoder::Context;
use mini_gemini::{GemmaNumerics, LoadOptions, MiniGemini, ModelSource, Precision};

/// Rows of the picture prompt whose logits are kept.
const IMAGE_ROWS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut positional = Vec::new();
    let mut options = LoadOptions::default();
    let mut greedy = 0;
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
                    "auto" => Precision::Auto,
                    _ => return Err(format!("--dtype {value}: expected f32, bf16 or auto").into()),
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
        if greedy > 0 {
            results.insert(
                "text.greedy".to_string(),
                continue_greedily(&model, rows, greedy)?,
            );
        }
    }
    if let (Some(ids), Some(_)) = (inputs.get("image.ids"), model.vision()) {
        let tokens = model.visual_tokens(&model.tower_features(&picture(&inputs)?)?)?;
        let rows = model.splice(&ids.to_vec1::<i64>()?, std::slice::from_ref(&tokens))?;
        results.insert(
            "image.logits".to_string(),
            last_logits(&model, &rows, IMAGE_ROWS)?,
        );
        results.insert("tokens".to_string(), tokens);
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

fn picture(inputs: &HashMap<String, Tensor>) -> Result<PreparedImage, Box<dyn Error>> {
    let get = |name: &str| {
        inputs
            .get(name)
            .ok_or_else(|| format!("the inputs lack `{name}`"))
    };
    let (high_res, low_res) = (get("high_res")?, get("low_res")?);
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (_, side, _) = high_res.dims3()?;
    let (views, _, small, _) = low_res.dims4()?;
    Ok(PreparedImage {
        high_res: values(high_res)?,
        high_res_size: side as u32,
        low_res: values(low_res)?,
        low_res_size: small as u32,
        views,
    })
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

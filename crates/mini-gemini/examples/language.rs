//! `cargo run --release -p mini-gemini --example language -- MODEL INPUTS OUT [--dtype f32|bf16|int8|auto] [--greedy N] [--at-once]`: what
//! the language model makes of given texts, for comparing it with another program (`tools/llama_cpp/compare_language.py`).
//!
//! `INPUTS` is a safetensors file. For each `text.K` (bytes of UTF-8) `OUT` gets `tokens.K`, its ids with whatever the tokeniser puts in
//! front. For each prompt `ids.K` (i64) it gets `greedy.K`, the `N` best tokens one after another, and, where there is `follow.K` (i64),
//! the logits that predict each of these tokens: `whole.K`, from one pass over prompt and continuation, and `steps.K`, from the prompt at
//! once and then token by token, as an answer is made (not with `--at-once`).

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use candle_core::{Device, Tensor};
use mini_gemini::decoder::{Context, Decoder, KvCache};
use mini_gemini::{LoadOptions, MiniGemini, ModelSource, Precision};

fn main() -> Result<(), Box<dyn Error>> {
    let mut positional = Vec::new();
    let mut options = LoadOptions::default();
    let mut greedy = 0;
    let mut only_at_once = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), argument.starts_with("--")) {
            ("--dtype", _) => {
                options.precision = match arguments.next().as_deref() {
                    Some("f32") => Precision::F32,
                    Some("bf16") => Precision::Bf16,
                    Some("int8") => Precision::Int8,
                    Some("auto") => Precision::Auto,
                    other => {
                        return Err(format!(
                            "--dtype: expected f32, bf16, int8 or auto, found {other:?}"
                        )
                        .into());
                    }
                }
            }
            ("--greedy", _) => {
                greedy = arguments.next().ok_or("--greedy needs a number")?.parse()?;
            }
            ("--at-once", _) => only_at_once = true,
            (_, true) => return Err(format!("unknown option {argument}").into()),
            (_, false) => positional.push(argument),
        }
    }
    let [model, inputs, out] = positional.as_slice() else {
        return Err(
            "usage: language MODEL INPUTS OUT [--dtype f32|bf16|int8|auto] [--greedy N]".into(),
        );
    };
    let model = MiniGemini::load(&ModelSource::parse(model), &options)?;
    let inputs = candle_core::safetensors::load(inputs, &Device::Cpu)?;
    let mut results = HashMap::new();
    for (name, input) in &inputs {
        let Some((kind, index)) = name.split_once('.') else {
            return Err(format!("{name}: expected text.K, ids.K or follow.K").into());
        };
        match kind {
            "text" => {
                let text = String::from_utf8(input.to_vec1::<u8>()?)?;
                let ids = model.tokenizer().encode(&text, true)?;
                let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
                results.insert(format!("tokens.{index}"), Tensor::new(ids, &Device::Cpu)?);
            }
            "ids" => {
                let prompt = ids(input)?;
                let decoder = model.decoder();
                if greedy > 0 {
                    let tokens = continue_greedily(decoder, &prompt, greedy)?;
                    results.insert(
                        format!("greedy.{index}"),
                        Tensor::new(tokens, &Device::Cpu)?,
                    );
                }
                if let Some(follow) = inputs.get(&format!("follow.{index}")) {
                    let follow = ids(follow)?;
                    results.insert(
                        format!("whole.{index}"),
                        at_once(decoder, &prompt, &follow)?,
                    );
                    if !only_at_once {
                        results.insert(
                            format!("steps.{index}"),
                            one_by_one(decoder, &prompt, &follow)?,
                        );
                    }
                }
            }
            _ => {}
        }
    }
    candle_core::safetensors::save(&results, Path::new(out))?;
    Ok(())
}

fn ids(tensor: &Tensor) -> Result<Vec<u32>, Box<dyn Error>> {
    let ids = tensor.to_vec1::<i64>()?;
    Ok(ids
        .into_iter()
        .map(u32::try_from)
        .collect::<Result<_, _>>()?)
}

/// Logits `[1, vocabulary]` after further tokens.
fn read(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32]) -> Result<Tensor, Box<dyn Error>> {
    let mut context = [(cache, tokens.len())];
    let hidden = decoder.hidden(&decoder.embed(tokens)?, &mut Context::Cached(&mut context))?;
    Ok(decoder.logits(&hidden.narrow(0, tokens.len() - 1, 1)?)?)
}

fn continue_greedily(
    decoder: &Decoder,
    prompt: &[u32],
    count: usize,
) -> Result<Vec<i64>, Box<dyn Error>> {
    let mut cache = decoder.new_cache();
    let mut logits = read(decoder, &mut cache, prompt)?;
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        let token = logits.argmax(1)?.to_vec1::<u32>()?[0];
        tokens.push(i64::from(token));
        logits = read(decoder, &mut cache, &[token])?;
    }
    Ok(tokens)
}

fn at_once(decoder: &Decoder, prompt: &[u32], follow: &[u32]) -> Result<Tensor, Box<dyn Error>> {
    let all = [prompt, &follow[..follow.len() - 1]].concat();
    // Through a cache, as a prompt is read.
    let mut cache = decoder.new_cache();
    let mut context = [(&mut cache, all.len())];
    let hidden = decoder.hidden(&decoder.embed(&all)?, &mut Context::Cached(&mut context))?;
    Ok(decoder.logits(&hidden.narrow(0, prompt.len() - 1, follow.len())?)?)
}

fn one_by_one(decoder: &Decoder, prompt: &[u32], follow: &[u32]) -> Result<Tensor, Box<dyn Error>> {
    let mut cache = decoder.new_cache();
    let mut rows = vec![read(decoder, &mut cache, prompt)?];
    for token in &follow[..follow.len() - 1] {
        rows.push(read(decoder, &mut cache, &[*token])?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

//! `mgm models inspect`.

use std::fmt::Write as _;
use std::path::Path;

use mgm_nn::WeightSource;
use mini_gemini::{ModelConfig, ModelSource};

use super::{files, megabytes};
use crate::failure::Failure;
use crate::stdout;

/// Describes a model directory or a weight file.
pub(super) fn run(path: &Path, tensors: bool) -> Result<(), Failure> {
    let mut text = String::new();
    if path.is_file() {
        describe_weights(&mut text, path, tensors)?;
    } else {
        describe_model(&mut text, path, tensors)?;
    }
    stdout::write(text)
}

fn describe_model(text: &mut String, path: &Path, tensors: bool) -> Result<(), Failure> {
    let directory = ModelSource::parse(&path.to_string_lossy()).directory()?;
    let config = ModelConfig::read(&directory.join("config.json"))?;
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:22} {value}");
    };
    line("directory", directory.display().to_string());
    line("family", format!("{:?}", config.family()));
    line(
        "language model",
        format!(
            "{} layers, width {}, {} heads, vocabulary {}",
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.vocab_size
        ),
    );
    line("context", format!("{} positions", config.context_limit()));
    let none = || "none".to_string();
    line(
        "low-resolution tower",
        config.mm_vision_tower.clone().unwrap_or_else(none),
    );
    line(
        "high-resolution tower",
        config.mm_vision_tower_aux.clone().unwrap_or_else(none),
    );
    if config.mm_vision_tower.is_some() {
        line("projector", config.mm_projector_type.clone());
    }
    if let Some(lora) = &config.lora {
        line(
            "low-rank adapters",
            format!("rank {}, alpha {}", lora.rank, lora.alpha),
        );
    }
    for (file, _) in files(&directory)? {
        if is_weight_file(&file) {
            text.push('\n');
            describe_weights(text, &file, tensors)?;
        }
    }
    Ok(())
}

/// Name, size, number of tensors and of parameters; on request every tensor.
fn describe_weights(text: &mut String, path: &Path, list: bool) -> Result<(), Failure> {
    let source = WeightSource::open(path).map_err(|error| Failure::from_error(&error))?;
    let size = path.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let tensors: Vec<(String, Vec<usize>)> = source
        .names()
        .into_iter()
        .map(|name| {
            let shape = source.shape(&name).unwrap_or_default();
            (name, shape)
        })
        .collect();
    let parameters: usize = tensors
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let architecture = source
        .gguf_metadata()
        .and_then(|metadata| metadata.architecture());
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}  {}, {}{} tensors, {:.1} million parameters",
        path.file_name().unwrap_or(path.as_os_str()).display(),
        megabytes(size),
        architecture
            .map(|name| format!("{name}, "))
            .unwrap_or_default(),
        tensors.len(),
        parameters as f64 / 1e6
    );
    if list {
        for (name, shape) in &tensors {
            let _ = writeln!(text, "  {name} {shape:?}");
        }
    }
    Ok(())
}

fn is_weight_file(path: &Path) -> bool {
    let kind = path
        .extension()
        .and_then(|kind| kind.to_str())
        .unwrap_or_default();
    ["safetensors", "gguf", "bin", "pth"].contains(&kind)
}

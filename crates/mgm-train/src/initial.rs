//! Fresh values for projector and miners, as PyTorch initialises them: linear weights and biases uniform in ±1/√inputs, norms one and zero.

use std::collections::BTreeMap;
use std::path::Path;

use mgm_data::RandomStream;
use serde_json::Value;

use crate::error::TrainError;
use crate::recipe::SaveType;
use crate::tensor_file::{self, NamedValues};

/// The random stream of initial values; record order uses streams 0, 1, 2, … of the same seed.
const STREAM: u64 = u64::MAX;

/// Writes initial values for a model's projector and miners to a safetensors file. Shapes come from `config.json`.
pub(crate) fn write(config_file: &Path, seed: u64, path: &Path) -> Result<(), TrainError> {
    let text = std::fs::read(config_file).map_err(TrainError::io("read", config_file))?;
    let wrong = |message: String| TrainError::Checkpoint {
        path: config_file.to_owned(),
        message,
    };
    let config: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let tensors = tensors(&config, seed).map_err(wrong)?;
    tensor_file::write(path, &tensors, SaveType::F32, BTreeMap::new())
}

fn tensors(config: &Value, seed: u64) -> Result<Vec<NamedValues>, String> {
    let size = |key: &str| {
        config
            .get(key)
            .and_then(Value::as_u64)
            .map(|size| size as usize)
            .ok_or_else(|| format!("expected a number `{key}`, found none"))
    };
    let hidden = size("hidden_size")?;
    let width = size("mm_hidden_size")?;
    let kind = config
        .get("mm_projector_type")
        .and_then(Value::as_str)
        .unwrap_or("linear");
    let mut random = RandomStream::new(seed, STREAM);
    let mut tensors = Vec::new();
    if config
        .get("mm_vision_tower_aux")
        .is_some_and(|tower| !tower.is_null())
    {
        let channels = size("mm_hidden_size_aux")?;
        for (name, inputs) in [("query", width), ("aux", channels), ("val", channels)] {
            let name = format!("model.vlm_uni_{name}_projector");
            tensors.push((format!("{name}.0.weight"), vec![inputs], vec![1.0; inputs]));
            tensors.push((format!("{name}.0.bias"), vec![inputs], vec![0.0; inputs]));
            linear(
                &mut tensors,
                &format!("{name}.1"),
                inputs,
                width,
                &mut random,
            );
        }
    }
    let depth = kind
        .strip_prefix("mlp")
        .and_then(|rest| rest.strip_suffix("x_gelu"))
        .and_then(|depth| depth.parse::<usize>().ok());
    match (kind, depth) {
        ("identity", _) => {}
        ("linear", _) => linear(
            &mut tensors,
            "model.mm_projector",
            width,
            hidden,
            &mut random,
        ),
        (_, Some(depth)) => {
            for layer in 0..depth {
                let inputs = if layer == 0 { width } else { hidden };
                linear(
                    &mut tensors,
                    &format!("model.mm_projector.{}", 2 * layer),
                    inputs,
                    hidden,
                    &mut random,
                );
            }
        }
        _ => {
            return Err(format!(
                "mm_projector_type is `{kind}`: expected `linear`, `identity` or `mlp{{N}}x_gelu`"
            ));
        }
    }
    Ok(tensors)
}

fn linear(
    tensors: &mut Vec<NamedValues>,
    name: &str,
    inputs: usize,
    outputs: usize,
    random: &mut RandomStream,
) {
    let bound = 1.0 / (inputs as f32).sqrt();
    let mut draw = |count: usize| {
        (0..count)
            .map(|_| bound * (2.0 * random.uniform() - 1.0))
            .collect::<Vec<f32>>()
    };
    tensors.push((
        format!("{name}.weight"),
        vec![outputs, inputs],
        draw(outputs * inputs),
    ));
    tensors.push((format!("{name}.bias"), vec![outputs], draw(outputs)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_shapes_and_bounds() {
        let config = serde_json::json!({
            "hidden_size": 6, "mm_hidden_size": 4, "mm_hidden_size_aux": 9, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower_aux": "x"
        });
        let made = tensors(&config, 1).unwrap();
        let shape = |wanted: &str| {
            made.iter()
                .find(|(name, _, _)| name == wanted)
                .map(|(_, shape, _)| shape.clone())
        };
        assert_eq!(
            shape("model.vlm_uni_aux_projector.1.weight"),
            Some(vec![4, 9])
        );
        assert_eq!(shape("model.vlm_uni_query_projector.0.bias"), Some(vec![4]));
        assert_eq!(shape("model.mm_projector.0.weight"), Some(vec![6, 4]));
        assert_eq!(shape("model.mm_projector.2.weight"), Some(vec![6, 6]));
        assert_eq!(made.len(), 16);
        let (_, _, values) = made
            .iter()
            .find(|(name, _, _)| name == "model.vlm_uni_val_projector.1.weight")
            .unwrap();
        assert!(values.iter().all(|value| value.abs() <= 1.0 / 3.0));
        assert!(
            values.iter().any(|value| *value > 0.2) && values.iter().any(|value| *value < -0.2)
        );
        assert_eq!(made, tensors(&config, 1).unwrap());
        assert_ne!(made, tensors(&config, 2).unwrap());
        assert!(
            tensors(&serde_json::json!({"hidden_size": 6}), 1)
                .unwrap_err()
                .contains("mm_hidden_size")
        );
    }
}

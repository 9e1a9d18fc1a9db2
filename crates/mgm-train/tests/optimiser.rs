//! AdamW, schedule and clipping against PyTorch and transformers (`tools/fixtures/train_adamw.py`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{Device, Var};
use mgm_train::{AdamW, AdamWSettings, Gradients, Schedule};
use serde_json::Value;

fn floats(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap() as f32)
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn twelve_steps_equal_pytorch() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/adamw.json")).unwrap();
    let peak = number(&fixture["peak"]);
    let schedule = Schedule::new(
        fixture["steps"].as_u64().unwrap(),
        number(&fixture["warmup_ratio"]),
    );
    let mut compared = 0;
    for run in fixture["runs"].as_array().unwrap() {
        let parameters = BTreeMap::from([
            (
                "layer.weight".to_owned(),
                Var::from_vec(floats(&run["start"]["weight"]), (3, 4), &Device::Cpu).unwrap(),
            ),
            (
                "layer.bias".to_owned(),
                Var::from_vec(floats(&run["start"]["bias"]), 4, &Device::Cpu).unwrap(),
            ),
        ]);
        let settings = AdamWSettings {
            weight_decay: number(&run["weight_decay"]),
            ..AdamWSettings::default()
        };
        let mut optimiser = AdamW::new(
            settings,
            &parameters,
            &BTreeMap::from([("bias".to_owned(), 2.0)]),
        )
        .unwrap();
        assert!(
            optimiser.groups()["layer.weight"].decays && !optimiser.groups()["layer.bias"].decays
        );
        for (done, step) in run["steps"].as_array().unwrap().iter().enumerate() {
            let mut gradients = Gradients::new(&parameters);
            for (name, buffer) in gradients.iter_mut() {
                buffer.copy_from_slice(&floats(
                    &step["gradients"][name.trim_start_matches("layer.")],
                ));
            }
            if let Some(limit) = run["clip"].as_f64() {
                let norm = gradients.norm();
                assert!(
                    (f64::from(norm) - number(&step["norm"])).abs() < 1e-5 * number(&step["norm"])
                );
                gradients.clip(norm, limit);
            }
            let rate = peak * schedule.factor(done as u64);
            assert!(
                (rate - number(&step["learning_rate"])).abs() < 1e-12,
                "step {done}: rate {rate}"
            );
            optimiser.step(&parameters, &gradients, rate).unwrap();
            for (name, variable) in &parameters {
                let expected = floats(&step[name.trim_start_matches("layer.")]);
                let found = variable.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() <= 1e-6 * expected.abs().max(0.1),
                        "step {done}, {name}: {found}, PyTorch {expected}"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 3 * 12 * 16);
}

#[test]
fn multipliers_must_match_exactly_one() {
    let variable = || Var::from_vec(vec![1.0_f32], (1, 1), &Device::Cpu).unwrap();
    let parameters = BTreeMap::from([("model.mm_projector.0.weight".to_owned(), variable())]);
    let new = |multipliers: &[(&str, f64)]| {
        let multipliers = multipliers
            .iter()
            .map(|(part, factor)| ((*part).to_owned(), *factor))
            .collect();
        AdamW::new(AdamWSettings::default(), &parameters, &multipliers)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert!(new(&[("mm_projector", 2.0)]).is_ok());
    assert!(
        new(&[("vlm_uni", 2.0)])
            .unwrap_err()
            .contains("no trained parameter's name contains `vlm_uni`")
    );
    assert!(
        new(&[("mm_projector", 2.0), ("weight", 3.0)])
            .unwrap_err()
            .contains("more than one entry matches")
    );
}

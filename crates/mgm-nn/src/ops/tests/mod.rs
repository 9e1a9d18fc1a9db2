//! Every operation against finite differences and against a composition of candle's own operations.

mod diffusion;
mod products;
mod sequence;
mod vision;

use candle_core::{Device, Result, Tensor, Var};

/// Deterministic values in ±1.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let a = a.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let b = b.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(&b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

fn assert_close(name: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let scale = expected
        .iter()
        .fold(1e-2f32, |scale, value| scale.max(value.abs()));
    for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(
            error <= tolerance,
            "{name}[{i}]: found {found}, expected {expected}, error {error:e}"
        );
    }
}

type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Value of a function and the gradients of `Σ value·projection`.
fn value_and_gradients(function: Function, inputs: &[Tensor]) -> (Tensor, Tensor, Vec<Tensor>) {
    let variables: Vec<Tensor> = inputs
        .iter()
        .map(|input| Var::from_tensor(input).unwrap().into_inner())
        .collect();
    let value = function(&variables).unwrap();
    let projection = random(value.dims(), 77);
    let gradients = (&value * &projection)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let of = |variable: &Tensor| {
        gradients
            .get(variable)
            .cloned()
            .unwrap_or_else(|| panic!("an input got no gradient"))
    };
    (
        value.detach(),
        projection,
        variables.iter().map(of).collect(),
    )
}

/// Gradients against central differences along a random direction of each input.
fn check_differences(name: &str, function: Function, inputs: &[Tensor]) {
    let (_, projection, gradients) = value_and_gradients(function, inputs);
    for (i, gradient) in gradients.iter().enumerate() {
        let direction = random(inputs[i].dims(), 1000 + i as u64);
        let step = 1e-2;
        let at = |sign: f64| {
            let mut moved = inputs.to_vec();
            moved[i] = (&inputs[i] + (&direction * (sign * step)).unwrap()).unwrap();
            dot(&function(&moved).unwrap(), &projection)
        };
        let expected = (at(1.0) - at(-1.0)) / (2.0 * step);
        let found = dot(gradient, &direction);
        let scale = expected.abs().max(0.05);
        assert!(
            (found - expected).abs() / scale < 1e-2,
            "{name}, input {i}: gradient {found}, difference {expected}"
        );
    }
}

/// Values and gradients against another way to write the same function.
fn check_equal(
    name: &str,
    function: Function,
    reference: Function,
    inputs: &[Tensor],
    tolerance: f32,
) {
    let (value, _, gradients) = value_and_gradients(function, inputs);
    let (expected_value, _, expected_gradients) = value_and_gradients(reference, inputs);
    assert_close(name, &value, &expected_value, tolerance);
    for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_close(&format!("{name}, gradient {i}"), found, expected, tolerance);
    }
}

fn check(name: &str, function: Function, reference: Function, inputs: &[Tensor]) {
    check_differences(name, function, inputs);
    check_equal(name, function, reference, inputs, 1e-5);
}

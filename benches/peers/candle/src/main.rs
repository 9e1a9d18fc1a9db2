//! candle on the stages that `mgm bench` measures, random weights. Prints one JSON object a stage: {"stage", "seconds": [...]}.
//!
//! `peer-candle TYPE RUNS STAGE...` with TYPE one of f32, f16, bf16, q4_0, q4_k, q8_0 and STAGE one of `low-res`, `high-res`, `prefill N`,
//! `decode N` (two arguments each). The quantised types measure the matrix products of Gemma-2B alone: candle has no quantised Gemma of the
//! first generation, so norms, rotary positions and attention are left out, in its favour.

use std::error::Error;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use candle_transformers::models::{clip::vision_model, convnext, gemma};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const WIDTH: usize = 2048;
const INNER: usize = 16384;
const LAYERS: usize = 18;
const KEYS: usize = 256;
const VOCABULARY: usize = 256_000;

/// Weights of any asked shape.
struct Random;

fn values(shape: &Shape) -> Vec<f32> {
    let dims = shape.dims();
    let row: usize = dims.iter().skip(1).product::<usize>().max(1);
    let bound = (3.0 / row as f32).sqrt();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut value = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * bound
    };
    (0..shape.elem_count()).map(|_| value()).collect()
}

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        // ConvNeXt takes global response normalisation, which version 1 does not have, wherever it finds its weights.
        if name.contains("grn") {
            candle_core::bail!("no tensor {name}");
        }
        Tensor::from_vec(values(&shape), shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor {name} without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !name.contains("grn")
    }
}

fn measure(stage: &str, runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    run()?;
    let mut seconds: Vec<f64> = Vec::new();
    while seconds.len() < runs || (seconds.iter().sum::<f64>() < 0.3 && seconds.len() < 50) {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    println!("{}", serde_json::json!({"stage": stage, "seconds": seconds}));
    Ok(())
}

fn gemma_config() -> gemma::Config {
    gemma::Config {
        attention_bias: false,
        head_dim: 256,
        hidden_act: Some(candle_nn::Activation::GeluPytorchTanh),
        hidden_activation: None,
        hidden_size: WIDTH,
        intermediate_size: INNER,
        num_attention_heads: 8,
        num_hidden_layers: LAYERS,
        num_key_value_heads: 1,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        vocab_size: VOCABULARY,
        max_position_embeddings: 8192,
    }
}

/// The matrices of a layer in the order in which they are used: queries, keys, values, output, gate, up, down.
struct Layer([QMatMul; 7]);

struct Products {
    layers: Vec<Layer>,
    head: QMatMul,
}

impl Products {
    fn new(t: GgmlDType, device: &Device) -> Result<Self> {
        let matrix = |rows: usize, width: usize| -> Result<QMatMul> {
            let shape = Shape::from((rows, width));
            let dense = Tensor::from_vec(values(&shape), shape, device)?;
            Ok(QMatMul::from_qtensor(QTensor::quantize(&dense, t)?)?)
        };
        let mut layers = Vec::new();
        for _ in 0..LAYERS {
            layers.push(Layer([
                matrix(WIDTH, WIDTH)?,
                matrix(KEYS, WIDTH)?,
                matrix(KEYS, WIDTH)?,
                matrix(WIDTH, WIDTH)?,
                matrix(INNER, WIDTH)?,
                matrix(INNER, WIDTH)?,
                matrix(WIDTH, INNER)?,
            ]));
        }
        Ok(Self { layers, head: matrix(VOCABULARY, WIDTH)? })
    }

    fn forward(&self, rows: &Tensor) -> Result<()> {
        let mut hidden = rows.clone();
        for Layer([query, key, value, output, gate, up, down]) in &self.layers {
            let queries = query.forward(&hidden)?;
            key.forward(&hidden)?;
            value.forward(&hidden)?;
            let attended = output.forward(&queries)?;
            hidden = down.forward(&(gate.forward(&attended)?.gelu()? * up.forward(&attended)?)?)?;
        }
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?.contiguous()?;
        self.head.forward(&last)?;
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, runs, stages @ ..] = arguments.as_slice() else {
        return Err("usage: peer-candle TYPE RUNS STAGE...".into());
    };
    let runs: usize = runs.parse()?;
    let device = Device::Cpu;
    let dtype = match kind.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => return quantised(kind, runs, stages, &device),
    };
    let weights = VarBuilder::from_backend(Box::new(Random), dtype, device.clone());
    let mut language = None;
    let mut stages = stages.iter();
    while let Some(stage) = stages.next() {
        match stage.as_str() {
            "low-res" => {
                let mut config = vision_model::ClipVisionConfig::clip_vit_large_patch14_336();
                config.num_hidden_layers = 23;
                let tower = vision_model::ClipVisionTransformer::new(weights.clone(), &config)?;
                let picture = Tensor::randn(0f32, 1.0, (1, 3, 336, 336), &device)?.to_dtype(dtype)?;
                measure(stage, runs, || {
                    tower.output_hidden_states(&picture)?;
                    Ok(())
                })?;
            }
            "high-res" => {
                let tower = convnext::convnext_no_final_layer(&convnext::Config::large(), weights.clone())?;
                let picture = Tensor::randn(0f32, 1.0, (1, 3, 768, 768), &device)?.to_dtype(dtype)?;
                measure(stage, runs, || {
                    tower.forward(&picture)?;
                    Ok(())
                })?;
            }
            "prefill" | "decode" => {
                let length: usize = stages.next().ok_or("a length is missing")?.parse()?;
                if language.is_none() {
                    language = Some(gemma::Model::new(false, &gemma_config(), weights.clone())?);
                }
                let model = language.as_mut().ok_or("no model")?;
                let ids = Tensor::arange(0u32, length as u32, &device)?.reshape((1, length))?;
                if stage == "prefill" {
                    measure(&format!("prefill {length}"), runs, || {
                        model.clear_kv_cache();
                        model.forward(&ids, 0)?;
                        Ok(())
                    })?;
                } else {
                    model.clear_kv_cache();
                    model.forward(&ids, 0)?;
                    // The cache cannot be cut, so every step stands one position later.
                    let mut position = length;
                    let token = Tensor::new(&[[7u32]], &device)?;
                    measure(&format!("decode after {length}"), runs, || {
                        model.forward(&token, position)?;
                        position += 1;
                        Ok(())
                    })?;
                }
            }
            other => return Err(format!("unknown stage {other}").into()),
        }
    }
    Ok(())
}

fn quantised(kind: &str, runs: usize, stages: &[String], device: &Device) -> Result<()> {
    let t = match kind {
        "q4_0" => GgmlDType::Q4_0,
        "q4_k" => GgmlDType::Q4K,
        "q8_0" => GgmlDType::Q8_0,
        other => return Err(format!("unknown type {other}").into()),
    };
    let products = Products::new(t, device)?;
    let (pairs, _) = stages.as_chunks::<2>();
    for [stage, length] in pairs {
        let rows = if stage == "decode" { 1 } else { length.parse()? };
        let rows = Tensor::randn(0f32, 1.0, (rows, WIDTH), device)?;
        let name = if stage == "decode" { format!("decode after {length}") } else { format!("{stage} {length}") };
        measure(&name, runs, || products.forward(&rows))?;
    }
    Ok(())
}

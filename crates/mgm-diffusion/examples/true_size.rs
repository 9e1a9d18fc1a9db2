//! Stable Diffusion XL at true shapes with random weights: seconds, peak memory, and results to compare with diffusers'
//! (`tools/diffusion/true_size.py`, which makes the weights and the inputs).
//!
//! ```sh
//! cargo run --release -p mgm-diffusion --example true_size -- DIR SIDE STORAGE [REPS] [no-vae]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use mgm_diffusion::{Condition, UNet, UNetConfig, Vae, VaeConfig, VaeParts};
use mgm_nn::{WeightPolicy, WeightSource, WeightStorage, save_safetensors};

/// The allocator of `mgm`, which keeps the pages of freed activations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn storage(name: &str) -> Outcome<WeightStorage> {
    Ok(match name {
        "f32" => WeightStorage::F32,
        "bf16" => WeightStorage::Bf16,
        "q8_0" => WeightStorage::Q8_0,
        "stored" => WeightStorage::AsStored,
        other => return Err(format!("storage {other}: expected f32, bf16, q8_0 or stored").into()),
    })
}

/// Largest resident set so far, GiB.
fn peak_gib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(f64::NAN);
    kib / 1_048_576.0
}

fn weights(directory: &Path, part: &str, storage: WeightStorage) -> Outcome<WeightSource> {
    let folder = directory.join(part);
    let source = WeightSource::from_directory(&folder)?;
    Ok(source.with_policy(WeightPolicy {
        storage,
        ..WeightPolicy::default()
    }))
}

fn config<T: serde::de::DeserializeOwned>(directory: &Path, part: &str) -> Outcome<T> {
    Ok(serde_json::from_slice(&std::fs::read(
        directory.join(part).join("config.json"),
    )?)?)
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, side, kind, rest @ ..] = arguments.as_slice() else {
        return Err("usage: true_size DIR SIDE STORAGE [REPS] [no-vae]".into());
    };
    let (directory, side, storage) = (
        PathBuf::from(directory),
        side.parse::<usize>()?,
        storage(kind)?,
    );
    let reps: usize = rest.first().map_or(Ok(1), |reps| reps.parse())?;
    let with_vae = rest.get(1).is_none_or(|word| word != "no-vae");
    let given = candle_core::safetensors::load(directory.join("inputs.safetensors"), &Device::Cpu)?;
    let input = |name: &str| {
        given
            .get(name)
            .cloned()
            .ok_or_else(|| format!("inputs.safetensors lacks {name}"))
    };
    let latents = input("latents")?;
    if latents.dims() != [2, side / 8, side / 8, 4] {
        return Err(format!(
            "the inputs are {:?}, not those of {side} pixels",
            latents.dims()
        )
        .into());
    }
    let sizes: Vec<Vec<f32>> = input("sizes")?.to_vec2()?;
    let condition = Condition {
        words: input("words")?.flatten_to(1)?,
        pooled: input("pooled")?,
        sizes: sizes
            .iter()
            .map(|row| std::array::from_fn(|i| f64::from(row[i])))
            .collect(),
    };
    let mut found: BTreeMap<String, Tensor> = BTreeMap::new();

    let unet_config: UNetConfig = config(&directory, "unet")?;
    let start = Instant::now();
    let unet = UNet::load(&weights(&directory, "unet", storage)?, &unet_config)?;
    println!(
        "UNet as {kind}: loaded in {:.1} s, peak {:.2} GiB",
        start.elapsed().as_secs_f64(),
        peak_gib()
    );
    let mut seconds = Vec::new();
    for _ in 0..reps {
        let start = Instant::now();
        let out = unet.forward(&latents, &[500.0], &condition, 5.0)?;
        seconds.push(start.elapsed().as_secs_f64());
        found.insert("unet".into(), out);
    }
    let all: Vec<String> = seconds.iter().map(|s| format!("{s:.2}")).collect();
    println!(
        "UNet step with guidance (batch 2) at {side}: {} s, peak {:.2} GiB",
        all.join(" "),
        peak_gib()
    );
    drop(unet);

    if with_vae {
        let vae_config: VaeConfig = config(&directory, "vae")?;
        let storage = if storage == WeightStorage::Q8_0 {
            WeightStorage::F32
        } else {
            storage
        };
        let vae = Vae::load(
            &weights(&directory, "vae", storage)?,
            &vae_config,
            VaeParts::Decoder,
        )?;
        let start = Instant::now();
        found.insert("vae".into(), vae.decode(&input("code")?)?);
        println!(
            "VAE decode at {side}: {:.2} s, peak {:.2} GiB",
            start.elapsed().as_secs_f64(),
            peak_gib()
        );
    }
    save_safetensors(&directory.join("found.safetensors"), &found, None)?;
    Ok(())
}

//! Every part against diffusers: `tools/fixtures/diffusion_models.py`.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::*;
use mgm_diffusion::{
    Condition, Control, NEGATIVE_PROMPT, PaintRequest, Part, Scheduler, SchedulerConfig,
    SchedulerKind, TextEncoder, Tiling, UNet, Vae, VaeParts,
};
use mgm_nn::WeightStorage;
use mgm_text::ClipTokenizer;
use serde::Deserialize;

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn windows(expected: &Named, index: usize) -> Vec<Vec<u32>> {
    let ids: Vec<Vec<i32>> = get(expected, &format!("ids.{index}")).to_vec2().unwrap();
    ids.into_iter()
        .map(|row| row.into_iter().map(|id| id as u32).collect())
        .collect()
}

#[test]
fn tokens() {
    let (expected, prompts) = (expected(), json::<Vec<String>>("prompts.json"));
    for (index, folder) in files().tokenizers.iter().enumerate() {
        let tokenizer = ClipTokenizer::from_directory(folder).unwrap();
        for (prompt, ids) in prompts.iter().zip(windows(&expected, index)) {
            let window = tokenizer.window_of(prompt).unwrap();
            assert_eq!(window.ids, ids, "{prompt:?}");
            let is_long = prompt.len() > 400;
            assert_eq!(
                !window.cut.is_empty(),
                is_long,
                "{prompt:?}: cut {:?}",
                window.cut
            );
            assert!(prompt.ends_with(&window.cut));
        }
    }
}

#[test]
fn text_encoders() {
    let (expected, files) = (expected(), files());
    for (index, part) in [Part::FirstEncoder, Part::SecondEncoder]
        .into_iter()
        .enumerate()
    {
        let config = &files.text_encoders[index];
        let encoder = TextEncoder::load(&weights(part), config, index == 1).unwrap();
        let encoded = encoder.encode(&windows(&expected, index)).unwrap();
        let reference = get(&expected, &format!("penultimate.{index}"))
            .flatten_to(1)
            .unwrap();
        assert_close(
            &format!("states of encoder {index}"),
            &encoded.penultimate,
            &reference,
            TOLERANCE,
        );
        match encoded.pooled {
            Some(pooled) => assert_close("pooled", &pooled, get(&expected, "pooled"), TOLERANCE),
            None => assert_eq!(index, 0),
        }
    }
}

fn unet_case(expected: &Named, name: &str) -> (Tensor, Condition) {
    let part = |part: &str| get(expected, &format!("unet.{name}.{part}")).clone();
    let sizes: Vec<Vec<f32>> = part("sizes").to_vec2().unwrap();
    let condition = Condition {
        words: part("words").flatten_to(1).unwrap(),
        pooled: part("pooled"),
        sizes: sizes
            .iter()
            .map(|row| std::array::from_fn(|i| f64::from(row[i])))
            .collect(),
    };
    (part("latents"), condition)
}

#[test]
fn unet_of_even_and_odd_sizes() {
    let expected = expected();
    let unet = UNet::load(&weights(Part::UNet), &files().unet).unwrap();
    for name in ["even", "odd"] {
        let (latents, condition) = unet_case(&expected, name);
        let out = unet.forward(&latents, &[701.0], &condition, 5.0).unwrap();
        assert_close(
            &format!("UNet, {name} size"),
            &out,
            get(&expected, &format!("unet.{name}.out")),
            TOLERANCE,
        );
    }
}

/// Rounded weights stay close: nothing is used in the wrong order or at the wrong scale.
#[test]
fn unet_with_other_storages() {
    let expected = expected();
    let (latents, condition) = unet_case(&expected, "even");
    for (storage, tolerance) in [
        (WeightStorage::AsStored, TOLERANCE),
        (WeightStorage::F16, TOLERANCE),
        (WeightStorage::Bf16, 0.03),
        (WeightStorage::Q8_0, 0.05),
    ] {
        let weights = stored(files().open(Part::UNet).unwrap(), storage);
        let unet = UNet::load(&weights, &files().unet).unwrap();
        let out = unet.forward(&latents, &[701.0], &condition, 5.0).unwrap();
        assert_close(
            &format!("UNet, {storage:?}"),
            &out,
            get(&expected, "unet.even.out"),
            tolerance,
        );
    }
}

#[test]
fn vae_both_ways_and_in_tiles() {
    let expected = expected();
    let vae = Vae::load(&weights(Part::Vae), &files().vae, VaeParts::Both).unwrap();
    let (mean, logvar) = vae.encode(get(&expected, "vae.picture")).unwrap();
    assert_close("mean", &mean, get(&expected, "vae.mean"), TOLERANCE);
    assert_close(
        "logarithm of the variance",
        &logvar,
        get(&expected, "vae.logvar"),
        TOLERANCE,
    );
    let decoded = vae.decode(get(&expected, "vae.latents")).unwrap();
    assert_close(
        "decoded",
        &decoded,
        get(&expected, "vae.decoded"),
        TOLERANCE,
    );

    let scaled = (get(&expected, "vae.large") * vae.config().scaling_factor).unwrap();
    let tiling = Some(Tiling::of(vae.config()));
    let mut tiles = 0;
    let tiled = vae
        .decode_scaled(&scaled, tiling, &mut || {
            tiles += 1;
            true
        })
        .unwrap();
    assert_eq!(tiles, 9);
    assert_close("in tiles", &tiled, get(&expected, "vae.tiled"), TOLERANCE);
    let whole = vae.decode_scaled(&scaled, None, &mut || true).unwrap();
    assert!(
        relative_error(&floats(&whole), &floats(&tiled)) > 1e-3,
        "tiles make a difference"
    );
    let stopped = vae.decode_scaled(&scaled, tiling, &mut || false);
    assert!(matches!(stopped, Err(mgm_diffusion::Error::Interrupted)));
}

#[derive(Deserialize)]
struct Schedule {
    config: SchedulerConfig,
    steps: usize,
}

/// Every scheduler on the same made-up outputs and noise: times, scaled inputs and every state on the way.
#[test]
fn scheduler_trajectories() {
    let expected = expected();
    let start: Vec<f32> = floats(get(&expected, "schedule.start"));
    let outputs: Vec<Vec<f32>> = get(&expected, "schedule.outputs").to_vec2().unwrap();
    let noises: Vec<Vec<f32>> = get(&expected, "schedule.noises").to_vec2().unwrap();
    for (index, case) in json::<Vec<Schedule>>("schedules.json").iter().enumerate() {
        let kind = case.config.kind().unwrap();
        let what = format!("{index}: {} in {} steps", kind.name(), case.steps);
        let mut scheduler = Scheduler::new(kind, &case.config, case.steps).unwrap();
        let times: Vec<f32> = floats(get(&expected, &format!("schedule.{index}.times")));
        assert_eq!(scheduler.timesteps().len(), times.len(), "{what}");
        for (found, reference) in scheduler.timesteps().iter().zip(&times) {
            assert!(
                (*found as f32 - reference).abs() <= 2e-3,
                "{what}: {found} {reference}"
            );
        }
        let states: Vec<Vec<f32>> = get(&expected, &format!("schedule.{index}.states"))
            .to_vec2()
            .unwrap();
        let inputs: Vec<Vec<f32>> = get(&expected, &format!("schedule.{index}.inputs"))
            .to_vec2()
            .unwrap();
        let mut sample: Vec<f32> = start
            .iter()
            .map(|v| v * scheduler.initial_noise() as f32)
            .collect();
        let mut noise = noises.iter();
        for step in 0..case.steps {
            let error = relative_error(&sample, &states[step]);
            assert!(
                error <= TOLERANCE,
                "{what}, before step {step}: relative error {error:.2e}"
            );
            let scale = scheduler.input_scale() as f32;
            let scaled: Vec<f32> = sample.iter().map(|v| v * scale).collect();
            let error = relative_error(&scaled, &inputs[step]);
            assert!(
                error <= TOLERANCE,
                "{what}, input of step {step}: relative error {error:.2e}"
            );
            let noise = scheduler
                .needs_noise()
                .then(|| noise.next().unwrap().as_slice());
            scheduler.step(&outputs[step], &mut sample, noise).unwrap();
        }
        let error = relative_error(&sample, &states[case.steps]);
        println!("{what}: relative error {error:.1e}");
        assert!(error <= TOLERANCE, "{what}: relative error {error:.2e}");
        assert!(
            scheduler
                .step(&outputs[0], &mut sample, Some(&noises[0]))
                .is_err(),
            "no step is left"
        );
    }
}

#[derive(Deserialize)]
struct Pictures {
    prompt: String,
    pictures: Vec<Picture>,
}

#[derive(Deserialize)]
struct Picture {
    name: String,
    scheduler: String,
    changes: serde_json::Value,
    height: u32,
    width: u32,
    seed: u64,
    steps: usize,
    guidance: f64,
    negative: Option<String>,
}

fn request(size: (u32, u32), steps: usize, guidance: f64, seeds: Vec<u64>) -> PaintRequest {
    PaintRequest {
        size,
        steps,
        guidance,
        scheduler: None,
        seeds,
        noise: None,
        original_size: None,
        crop: (0, 0),
        target_size: None,
        preview_every: 0,
    }
}

/// Whole pictures, from the words to the pixels, with the program's own noise: at most 2 of 255 anywhere.
#[test]
fn whole_pictures() {
    let (expected, cases) = (expected(), json::<Pictures>("pictures.json"));
    for case in &cases.pictures {
        let folder = tempfile::tempdir().unwrap();
        let path = with_scheduler_changes(folder.path(), &case.changes);
        let mut painter = mgm_diffusion::Painter::open(
            &path,
            &mgm_diffusion::FindOptions::default(),
            mgm_diffusion::PainterStorage::all(WeightStorage::F32),
        )
        .unwrap();
        let prompt = painter
            .encode(&cases.prompt, case.negative.as_deref())
            .unwrap();
        let mut request = request(
            (case.width, case.height),
            case.steps,
            case.guidance,
            vec![case.seed],
        );
        request.scheduler = SchedulerKind::from_class(&case.scheduler);
        let mut told = Vec::new();
        let latents = painter
            .denoise(&prompt, &request, &mut |progress| {
                told.push((progress.step, progress.steps));
                Control::Continue
            })
            .unwrap();
        assert_eq!(told.len(), case.steps);
        let picture = painter
            .decode(&latents, None, &mut || true)
            .unwrap()
            .remove(0);
        let reference: Vec<u8> = get(&expected, &format!("picture.{}", case.name))
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!((picture.width, picture.height), (case.width, case.height));
        let differences = picture
            .data
            .iter()
            .zip(&reference)
            .map(|(a, b)| a.abs_diff(*b));
        let largest = differences.clone().max().unwrap();
        let changed = differences.filter(|d| *d > 0).count();
        println!(
            "{}: largest difference {largest}, {changed} of {} values differ",
            case.name,
            reference.len()
        );
        assert!(largest <= 2, "{}: a difference of {largest}", case.name);
    }
}

/// The model with another scheduler configuration: links to its parts would do, copies do everywhere.
fn with_scheduler_changes(
    folder: &std::path::Path,
    changes: &serde_json::Value,
) -> std::path::PathBuf {
    copy(&model(), folder);
    let path = folder.join("scheduler/scheduler_config.json");
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.extend(changes.as_object().unwrap().clone());
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    folder.to_path_buf()
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// Pictures painted together are the pictures painted alone.
#[test]
fn batches_and_seeds() {
    let mut painter = painter(WeightStorage::F32);
    let prompt = painter
        .encode("a red apple", Some(NEGATIVE_PROMPT))
        .unwrap();
    let mut paint = |seeds: Vec<u64>| {
        let request = request((32, 24), 3, 5.0, seeds);
        let latents = painter
            .denoise(&prompt, &request, &mut |_| Control::Continue)
            .unwrap();
        painter.decode(&latents, None, &mut || true).unwrap()
    };
    let both = paint(vec![7, 8]);
    let (first, second) = (paint(vec![7]).remove(0), paint(vec![8]).remove(0));
    let far = |a: &mgm_image::RgbImage, b: &mgm_image::RgbImage| {
        a.data
            .iter()
            .zip(&b.data)
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap()
    };
    assert!(far(&both[0], &first) <= 1 && far(&both[1], &second) <= 1);
    assert!(far(&first, &second) > 20, "seeds make different pictures");
    assert_eq!(paint(vec![7])[0], first, "a seed is repeatable");
}

/// Previews come when they are due, half as large, and approach the picture; they do not change it.
#[test]
fn previews_on_the_way() {
    let mut painter = painter(WeightStorage::F32);
    let prompt = painter.encode("a red apple", None).unwrap();
    let mut request = request((32, 48), 7, 1.0, vec![1]);
    let mut paint = |every: usize| {
        request.preview_every = every;
        let mut shown = Vec::new();
        let latents = painter
            .denoise(&prompt, &request, &mut |progress| {
                if let [preview] = progress.previews {
                    assert_eq!((preview.width, preview.height), (16, 24));
                    shown.push(progress.step);
                }
                Control::Continue
            })
            .unwrap();
        (floats(&latents), shown)
    };
    let (plain, none) = paint(0);
    assert!(none.is_empty());
    assert_eq!(paint(2), (plain, vec![2, 4, 6]));
}

#[test]
fn stopping_and_impossible_requests() {
    let mut painter = painter(WeightStorage::F32);
    let long = "word ".repeat(10_000);
    let prompt = painter.encode(&long, None).unwrap();
    assert!(prompt.cut.is_some_and(|cut| cut.ends_with("word word ")));
    let prompt = painter.encode("short", Some(&long)).unwrap();
    assert!(prompt.cut.is_none() && prompt.negative_cut.is_some());
    assert!(painter.encode(&"word ".repeat(1 << 19), None).is_err());
    let mut steps = 0;
    let stopped = painter.denoise(&prompt, &request((32, 32), 5, 1.0, vec![1]), &mut |_| {
        steps += 1;
        if steps == 2 {
            Control::Stop
        } else {
            Control::Continue
        }
    });
    assert!(matches!(stopped, Err(mgm_diffusion::Error::Interrupted)));
    assert_eq!(steps, 2);
    for (wrong, says) in [
        (request((33, 32), 5, 5.0, vec![1]), "multiples of 2"),
        (request((0, 32), 5, 5.0, vec![1]), "multiples of 2"),
        (request((4, 32), 5, 5.0, vec![1]), "at least 8"),
        (request((1 << 20, 32), 5, 5.0, vec![1]), "at most 4096"),
        (request((32, 32), 0, 5.0, vec![1]), "expected 1 to 1000"),
        (request((32, 32), 5, f64::NAN, vec![1]), "guidance"),
        (request((32, 32), 5, 5.0, vec![]), "no seeds"),
    ] {
        let error = painter.check(&wrong).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} should say {says:?}");
    }
}

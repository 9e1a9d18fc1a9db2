//! Training of a tiny painter: it learns, it can be stopped and resumed, and its result paints.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mgm_diffusion::{Control, FindOptions, PaintRequest, Painter, PainterStorage, SchedulerKind};
use mgm_image::RgbImage;
use mgm_nn::WeightStorage;
use mgm_train::{Outcome, PainterRecipe, PainterTrainer, Progress, ProgressSink, Status};

const SIDE: u32 = 32;

/// Raises a flag at a step.
struct StopAt<'a>(u64, &'a AtomicBool, Cell<u64>);

impl ProgressSink for StopAt<'_> {
    fn step(&self, progress: &Progress) {
        self.2.set(progress.step);
        if progress.step == self.0 {
            self.1.store(true, Ordering::SeqCst);
        }
    }
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgm-diffusion/tests/fixtures/tiny-sdxl")
}

/// Four pictures of one colour each with their names.
fn data(folder: &Path) {
    let colours = [
        ("red", [220, 30, 40]),
        ("green", [40, 200, 60]),
        ("blue", [30, 60, 220]),
        ("white", [250, 250, 250]),
    ];
    let records: Vec<_> = colours
        .iter()
        .map(|(name, colour)| {
            let image = RgbImage::filled(SIDE, SIDE, *colour);
            let png = mgm_image::encode_png(&image, &[]).unwrap();
            std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
            serde_json::json!({"image": format!("{name}.png"), "prompts": [name, format!("a {name} square")]})
        })
        .collect();
    std::fs::write(
        folder.join("data.json"),
        serde_json::to_vec(&records).unwrap(),
    )
    .unwrap();
}

fn recipe(folder: &Path, stage: &str, output: &str, more: &str) -> PainterRecipe {
    let text = format!(
        "stage = {stage:?}\nmodel = {:?}\ndata = {:?}\nimage_folder = {:?}\noutput = {:?}\nbatch = 5\nsave_type = \"f32\"\n{more}",
        tiny(),
        folder.join("data.json"),
        folder,
        folder.join(output),
    );
    PainterRecipe::parse(&text, "recipe").unwrap()
}

/// A run until a step, from the checkpoint if there is one.
fn run(recipe: PainterRecipe, until: u64) -> Outcome {
    let stop = AtomicBool::new(false);
    let sink = StopAt(until, &stop, Cell::new(0));
    PainterTrainer::new(recipe)
        .unwrap()
        .resume()
        .unwrap()
        .run(&sink, &stop)
        .unwrap()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

#[test]
fn both_stages_learn_resume_and_paint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    data(folder);

    let settings = "steps = 40\nlearning_rate = 3e-3\ncrop = 16\nema = 0.9\n";
    let autoencoder = |output: &str| recipe(folder, "autoencoder", output, settings);
    let straight = run(autoencoder("a"), u64::MAX);
    assert_eq!(straight.status, Status::Finished);
    let losses = &straight.losses;
    assert_eq!(losses.len(), 40);
    assert!(mean(&losses[30..]) < 0.7 * mean(&losses[..5]), "{losses:?}");
    let file = |outcome: &Outcome| {
        std::fs::read(outcome.result.join("diffusion_pytorch_model.safetensors")).unwrap()
    };
    let stopped = run(autoencoder("b"), 17);
    assert_eq!((stopped.status, stopped.step), (Status::Interrupted, 17));
    assert!(file(&straight) != file(&stopped));
    let resumed = run(autoencoder("b"), u64::MAX);
    assert_eq!(resumed.losses, *losses);
    assert!(file(&straight) == file(&resumed), "weights differ");

    let settings = format!(
        "vae = {:?}\nsteps = 60\nlearning_rate = 3e-3\nema = 0.9\n",
        straight.result
    );
    let denoiser = |output: &str| recipe(folder, "denoiser", output, &settings);
    let straight = run(denoiser("c"), u64::MAX);
    let losses = &straight.losses;
    assert!(
        mean(&losses[40..]) < 0.9 * mean(&losses[..10]),
        "{losses:?}"
    );
    run(denoiser("d"), 23);
    let resumed = run(denoiser("d"), u64::MAX);
    assert_eq!(resumed.losses, *losses);

    // What a run leaves is a model that paints.
    let model = &straight.result;
    let storage = PainterStorage::all(WeightStorage::F32);
    let mut painter = Painter::open(model, &FindOptions::default(), storage).unwrap();
    let prompt = painter.encode("red", None).unwrap();
    let request = PaintRequest {
        size: (SIDE, SIDE),
        steps: 3,
        guidance: 2.0,
        scheduler: Some(SchedulerKind::Euler),
        seeds: vec![1],
        noise: None,
        original_size: None,
        crop: (0, 0),
        target_size: None,
        preview_every: 0,
    };
    let latents = painter
        .denoise(&prompt, &request, &mut |_| Control::Continue)
        .unwrap();
    let images = painter.decode(&latents, None, &mut || true).unwrap();
    assert_eq!((images[0].width, images[0].height), (SIDE, SIDE));
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let fails = |recipe: PainterRecipe, expected: &str| {
        let message = match PainterTrainer::new(recipe) {
            Ok(_) => panic!("expected: {expected}"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    };
    let settings = "steps = 3\nlearning_rate = 1e-3\n";
    let plain = || recipe(folder, "denoiser", "x", settings);
    fails(plain(), "data.json");
    std::fs::write(folder.join("data.json"), "[]").unwrap();
    fails(plain(), "no pictures");
    std::fs::write(folder.join("data.json"), "[{\"image\": \"a.png\"}]").unwrap();
    fails(plain(), "prompts");
    data(folder);
    fails(
        PainterRecipe {
            model: folder.join("nothing"),
            ..plain()
        },
        "nothing",
    );
    let odd = recipe(
        folder,
        "autoencoder",
        "x",
        "steps = 3\nlearning_rate = 1e-3\ncrop = 17\n",
    );
    fails(odd, "17");
    let other = mgm_image::encode_png(&RgbImage::filled(16, 16, [0; 3]), &[]).unwrap();
    std::fs::write(folder.join("green.png"), other).unwrap();
    fails(plain(), "green.png");

    // Another recipe does not go on where this one stopped.
    data(folder);
    run(plain(), 1);
    let changed = PainterRecipe {
        batch: 4,
        ..plain()
    };
    match PainterTrainer::new(changed).unwrap().resume() {
        Ok(_) => panic!("expected a refusal"),
        Err(error) => assert!(error.to_string().contains("another recipe"), "{error}"),
    }
}

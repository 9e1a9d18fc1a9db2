//! Whole runs on a tiny model: resuming bit by bit, learning, and what goes wrong.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mgm_train::{
    Outcome, Progress, ProgressSink, Recipe, ResumeFrom, SilentProgress, Status, TrainError,
    Trainer,
};

/// A folder with pictures, conversations and a recipe for the tiny Llama.
struct Workshop {
    folder: tempfile::TempDir,
}

/// An uncompressed 24-bit BMP of two colours.
fn picture_bytes(number: u8) -> Vec<u8> {
    let (width, height) = (40_u32, 24_u32);
    let row = width * 3;
    let mut bytes = Vec::from(*b"BM");
    bytes.extend((54 + row * height).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(54_u32.to_le_bytes());
    bytes.extend(40_u32.to_le_bytes());
    bytes.extend(width.to_le_bytes());
    bytes.extend(height.to_le_bytes());
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    for y in 0..height {
        for x in 0..width {
            let inside = (x / 8 + y / 8 + u32::from(number)) % 3 == 0;
            bytes.extend(if inside {
                [number.wrapping_mul(40), 200, 30]
            } else {
                [20, number.wrapping_mul(70), 220]
            });
        }
    }
    bytes
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let mut records = Vec::new();
        for number in 0..7_u8 {
            std::fs::write(
                workshop.path(&format!("{number}.bmp")),
                picture_bytes(number),
            )
            .unwrap();
            let answer = [
                "one",
                "two",
                "three",
                "a red one",
                "blue",
                "it is a cat",
                "no",
            ][usize::from(number)];
            records.push(format!(
                r#"{{"id":"p{number}","image":"{number}.bmp","conversations":[{{"from":"human","value":"<image>\nWhat?"}},{{"from":"gpt","value":"{answer}"}}]}}"#
            ));
        }
        std::fs::write(
            workshop.path("captions.json"),
            format!("[{}]", records.join(",\n")),
        )
        .unwrap();
        for number in 0..4 {
            records.push(format!(
                r#"{{"id":"t{number}","conversations":[{{"from":"human","value":"Say {number}"}},{{"from":"gpt","value":"it is {number}"}},{{"from":"human","value":"more"}},{{"from":"gpt","value":"no"}}]}}"#
            ));
        }
        std::fs::write(
            workshop.path("mixed.json"),
            format!("[{}]", records.join(",\n")),
        )
        .unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(
        &self,
        stage: &str,
        json: &str,
        output: &str,
        extra: &str,
        tables: &str,
    ) -> Result<Recipe, TrainError> {
        let model =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../mini-gemini/tests/fixtures/llama");
        let mut text = String::new();
        writeln!(
            text,
            "stage = \"{stage}\"\nmodel = {model:?}\noutput = {:?}\nsave_type = \"f32\"\n{extra}",
            self.path(output)
        )
        .unwrap();
        writeln!(
            text,
            "{tables}\n[data]\njson = [{:?}]\nimage_folder = {:?}",
            self.path(json),
            self.path("")
        )
        .unwrap();
        Recipe::parse(&text, "recipe")
    }

    fn align(&self, output: &str, extra: &str) -> Recipe {
        self.recipe(
            "align",
            "captions.json",
            output,
            &format!("template = \"plain\"\nbatch = 2\naccumulation = 2\n{extra}"),
            "",
        )
        .unwrap()
    }

    fn instruct(&self, output: &str, extra: &str) -> Recipe {
        let extra = format!(
            "template = \"vicuna_v1\"\nbatch = 3\nlearning_rate = 1e-2\nweight_decay = 0.01\nmax_grad_norm = 1.0\nlr_multipliers = {{ mm_projector = 2.0 }}\nfeature_cache = {:?}\n{extra}",
            self.path("cache")
        );
        self.recipe(
            "instruct",
            "mixed.json",
            output,
            &extra,
            "[lora]\nrank = 2\nalpha = 4.0\n",
        )
        .unwrap()
    }
}

struct StopAt<'a>(u64, &'a AtomicBool);

impl ProgressSink for StopAt<'_> {
    fn step(&self, progress: &Progress) {
        if progress.step == self.0 {
            self.1.store(true, Ordering::SeqCst);
        }
    }
}

fn finish(recipe: Recipe) -> Outcome {
    Trainer::new(recipe)
        .unwrap()
        .run(&SilentProgress, &AtomicBool::new(false))
        .unwrap()
}

/// Parameters, moments and result are the same files, bit by bit.
fn same_files(left: &Outcome, right: &Outcome) {
    let checkpoint =
        |outcome: &Outcome, name: &str| std::fs::read(outcome.checkpoint.join(name)).unwrap();
    for name in ["parameters.safetensors", "optimizer.safetensors"] {
        assert!(
            checkpoint(left, name) == checkpoint(right, name),
            "{name} differs"
        );
    }
    assert!(
        std::fs::read(&left.result).unwrap() == std::fs::read(&right.result).unwrap(),
        "the result differs"
    );
}

#[test]
fn interrupted_and_resumed_equals_straight() {
    let workshop = Workshop::new();
    let straight = finish(workshop.align("straight", "steps = 10"));
    assert_eq!(
        (straight.status, straight.step, straight.losses.len()),
        (Status::Finished, 10, 10)
    );

    let stop = AtomicBool::new(false);
    let half = Trainer::new(workshop.align("halves", "steps = 10"))
        .unwrap()
        .run(&StopAt(5, &stop), &stop)
        .unwrap();
    assert_eq!((half.status, half.step), (Status::Interrupted, 5));
    let rest = Trainer::new(workshop.align("halves", "steps = 10"))
        .unwrap()
        .resume(ResumeFrom::Latest)
        .unwrap();
    assert_eq!(rest.state().step, 5);
    let rest = rest.run(&SilentProgress, &AtomicBool::new(false)).unwrap();
    assert_eq!(rest.status, Status::Finished);
    assert_eq!(rest.losses, straight.losses);
    same_files(&rest, &straight);

    let log = std::fs::read_to_string(workshop.path("halves/log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 10);
    // The run moved the parameters at all.
    let initial = std::fs::read(workshop.path("halves/initial.safetensors")).unwrap();
    assert_ne!(initial, std::fs::read(&rest.result).unwrap());
}

#[test]
fn a_crash_costs_only_the_steps_since_the_last_checkpoint() {
    let workshop = Workshop::new();
    let straight = finish(workshop.instruct(
        "straight",
        "epochs = 3\nsave_every = 4\nkeep_checkpoints = 9",
    ));
    assert_eq!(straight.total, 12);
    // A full cache on the second run must not change a bit either.
    assert!(std::fs::read_dir(workshop.path("cache")).unwrap().count() > 0);
    let again = Trainer::new(workshop.instruct("again", "epochs = 3\nsave_every = 4"))
        .unwrap()
        .resume(ResumeFrom::Path(workshop.path("straight/checkpoint-4")))
        .unwrap()
        .run(&SilentProgress, &AtomicBool::new(false))
        .unwrap();
    assert_eq!(again.losses, straight.losses);
    same_files(&again, &straight);
    assert!(
        !workshop.path("again/checkpoint-4").exists()
            && workshop.path("again/checkpoint-8").exists()
    );

    let tensors =
        candle_core::safetensors::load(&straight.result, &candle_core::Device::Cpu).unwrap();
    assert!(tensors.keys().all(|name| name.contains("lora_")
        || name.contains("mm_projector")
        || name.contains("vlm_uni")));
    // Seven targets in each of three layers, two matrices each.
    assert_eq!(
        tensors.keys().filter(|name| name.contains("lora_")).count(),
        42
    );
    let moved = |name: &str| {
        tensors[name]
            .abs()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            > 0.0
    };
    // B starts at zero: every adapter learnt something.
    assert!(
        tensors
            .keys()
            .filter(|name| name.contains("lora_B"))
            .all(|name| moved(name))
    );
}

#[test]
fn it_learns() {
    let workshop = Workshop::new();
    let outcome = finish(workshop.instruct("learns", "steps = 60"));
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&outcome.losses[..4]), mean(&outcome.losses[56..]));
    println!("loss {first} -> {last}");
    assert!(last < 0.7 * first, "{first} -> {last}");
}

#[test]
fn stage_2_goes_on_from_stage_1() {
    let workshop = Workshop::new();
    let first = finish(workshop.align("first", "steps = 3"));
    let start = format!(
        "steps = 1\nwarmup_ratio = 0.0\nstart_from = {:?}",
        first.result
    );
    let recipe = workshop.instruct("second", &start);
    let trainer = Trainer::new(recipe).unwrap();
    let learnt = candle_core::safetensors::load(&first.result, &candle_core::Device::Cpu).unwrap();
    assert_eq!(learnt.len(), 16);
    for (name, tensor) in &learnt {
        let values =
            |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(
            values(tensor),
            values(trainer.parameters()[name].as_tensor()),
            "{name}"
        );
    }
}

#[test]
fn what_goes_wrong_is_said_in_one_line() {
    let workshop = Workshop::new();
    let message = |result: Result<Outcome, TrainError>| {
        let message = result.err().unwrap().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    };
    let run = |recipe: Recipe| {
        Trainer::new(recipe)
            .and_then(|trainer| trainer.run(&SilentProgress, &AtomicBool::new(false)))
    };

    finish(workshop.align("taken", "steps = 1"));
    assert!(
        message(run(workshop.align("taken", "steps = 1")))
            .contains("an earlier run left this checkpoint")
    );
    let other = Trainer::new(workshop.align("taken", "steps = 2"))
        .unwrap()
        .resume(ResumeFrom::Latest)
        .err()
        .unwrap()
        .to_string();
    assert!(
        other.contains("the number of steps was 1, is now 2"),
        "{other}"
    );

    let nothing = message(run(
        workshop.align("a", "steps = 1\ntrainable = [\"mm_projektor\"]")
    ));
    assert!(
        nothing.contains("no parameter's name contains `mm_projektor`"),
        "{nothing}"
    );
    let missing = message(run(
        workshop.align("b", "steps = 1\nstart_from = \"no/such.safetensors\"")
    ));
    assert!(
        missing.contains("start_from: no file at no/such.safetensors"),
        "{missing}"
    );

    std::fs::write(workshop.path("3.bmp"), b"not a picture").unwrap();
    let picture = message(run(workshop.align("c", "steps = 5")));
    assert!(
        picture.contains("record 3 (id \"p3\")") && picture.contains("3.bmp"),
        "{picture}"
    );

    std::fs::write(workshop.path("3.bmp"), picture_bytes(3)).unwrap();
    let diverged = message(run(workshop
        .instruct("d", "steps = 9\nwarmup_ratio = 0.0")
        .with_rate(1e30)));
    assert!(
        diverged.contains("training stopped, no checkpoint was written yet"),
        "{diverged}"
    );
}

trait WithRate {
    fn with_rate(self, rate: f64) -> Self;
}

impl WithRate for Recipe {
    fn with_rate(mut self, rate: f64) -> Self {
        self.learning_rate = Some(rate);
        self
    }
}

//! Painting pictures, for `mgm imagine`, `mgm chat --gen` and `mgm serve`.

mod file;
mod silent;
mod terminal;

use std::path::Path;

use mgm_diffusion::{
    Control, EncodedPrompt, FindOptions, LoraFile, NEGATIVE_PROMPT, PaintRequest, Painter,
    PainterStorage, SchedulerKind,
};
use mgm_image::RgbImage;
use mgm_nn::WeightStorage;
use mini_gemini::ModelSource;

pub(crate) use self::file::PictureFile;
pub(crate) use self::silent::Commission;
pub(crate) use self::terminal::Display;
use crate::cli::{PaintArgs, PainterWeights};
use crate::failure::Failure;
use crate::interrupt::Watch;
use crate::meter;

/// Bytes of a UNet's file from which its weights are kept as Q8_0 if nothing else is asked for: SDXL then fits a machine of 8 GB.
const LARGE_UNET: u64 = 1 << 30;
/// Letters of a cut prompt's end that are shown.
const SHOWN_CUT: usize = 60;

/// The small model that paints and ships with the program.
pub(crate) const BUILT_IN_PAINTER: &str = "emoji-painter";

/// The folder or file of a painter's name.
pub(crate) fn locate(model: &str) -> Result<std::path::PathBuf, Failure> {
    match model {
        BUILT_IN_PAINTER => Ok(mini_gemini::bundled(model, "model_index.json")?),
        path => Ok(ModelSource::Path(path.into()).resolve(None)?),
    }
}

/// A painter and how it is to paint.
pub(crate) struct Studio {
    painter: Painter,
    negative: String,
    request: PaintRequest,
    tiles: bool,
    show: Display,
    /// What the metadata calls the model.
    model: String,
}

/// A finished picture.
pub(crate) struct Painted {
    pub(crate) image: RgbImage,
    /// The PNG file.
    pub(crate) png: Vec<u8>,
    pub(crate) seed: u64,
}

impl Studio {
    /// Opens the model and checks everything that can be checked without painting.
    pub(crate) fn open(model: &str, args: &PaintArgs) -> Result<Self, Failure> {
        let path = locate(model)?;
        let options = FindOptions {
            tokenizer: args.tokenizer.clone(),
            vae: args.vae.clone(),
            full_precision: args.weights == PainterWeights::F32,
        };
        let mut painter = Painter::open(&path, &options, storage(args.weights, &path))?;
        for choice in &args.loras {
            let lora = LoraFile::open(&choice.file)?;
            let found = lora.len();
            painter.add_lora(lora, choice.scale);
            let report = painter.lora_reports()?.pop().unwrap_or_default();
            if report.applied == 0 {
                return Err(Failure::failed(format!(
                    "{}: none of its {found} adapters is for this model",
                    choice.file.display()
                )));
            }
            if report.applied < found {
                note!(
                    "warning: {}: {} of {found} adapters are not for this model and left out",
                    choice.file.display(),
                    found - report.applied
                );
            }
        }
        let defaults = painter.defaults();
        let request = PaintRequest {
            size: args.size.unwrap_or((defaults.side, defaults.side)),
            steps: args
                .steps
                .map_or(defaults.steps, std::num::NonZeroUsize::get),
            guidance: args.guidance.unwrap_or(defaults.guidance),
            scheduler: args.scheduler,
            seeds: vec![0],
            noise: None,
            original_size: None,
            crop: (0, 0),
            target_size: None,
            preview_every: args.preview.map_or(0, std::num::NonZeroUsize::get),
        };
        painter.check(&request)?;
        Ok(Self {
            painter,
            negative: args
                .negative
                .clone()
                .unwrap_or_else(|| NEGATIVE_PROMPT.into()),
            request,
            tiles: args.tiles,
            show: args.show,
            model: model.into(),
        })
    }

    /// Encodes a prompt, and says so if its end does not fit.
    pub(crate) fn encode(&mut self, prompt: &str) -> Result<EncodedPrompt, Failure> {
        let spinner = meter::spinner("loading the text encoders");
        self.painter.load_text_encoders()?;
        spinner.set_message("reading the prompt");
        let encoded = self.painter.encode(prompt, Some(&self.negative))?;
        // Their memory is worth more than the seconds that loading takes.
        self.painter.release_text_encoders();
        spinner.finish_and_clear();
        let window = self.painter.window();
        warn_of_cut("prompt", window, encoded.cut.as_deref());
        // The official negative prompt is too long itself; who does not know it need not hear of it.
        if self.negative != NEGATIVE_PROMPT {
            warn_of_cut("negative prompt", window, encoded.negative_cut.as_deref());
        }
        Ok(encoded)
    }

    /// Paints one picture. `name` says which it is, `last` whether the UNet's memory may be given back before it is decoded.
    pub(crate) fn paint(
        &mut self,
        prompt: &str,
        encoded: &EncodedPrompt,
        seed: u64,
        name: &str,
        last: bool,
        watch: &Watch,
    ) -> Result<Painted, Failure> {
        let spinner = meter::spinner("loading the painter");
        self.painter.load_unet()?;
        spinner.finish_and_clear();
        self.request.seeds = vec![seed];
        let bar = meter::bar(self.request.steps as u64);
        bar.set_message(name.to_string());
        bar.tick();
        let latents = self
            .painter
            .denoise(encoded, &self.request, &mut |progress| {
                bar.set_position(progress.step as u64);
                for preview in progress.previews {
                    bar.suspend(|| self.show.show(preview, None));
                }
                match watch.stopped() && progress.step < progress.steps {
                    true => Control::Stop,
                    false => Control::Continue,
                }
            });
        bar.finish_and_clear();
        let latents = latents?;
        if last {
            self.painter.release_unet();
        }
        let spinner = meter::spinner("developing the picture");
        let tiling = self.tiles.then(|| self.painter.tiling());
        // All steps are done: the picture counts as finished, whatever is pressed now.
        let mut images = self.painter.decode(&latents, tiling, &mut || true)?;
        spinner.finish_and_clear();
        let image = images
            .pop()
            .ok_or_else(|| Failure::failed("the painter gave no picture"))?;
        let png = self.png(prompt, seed, &image)?;
        self.show.show(&image, Some(&png));
        Ok(Painted { image, png, seed })
    }

    /// The picture's file, which tells how to paint it again.
    fn png(&self, prompt: &str, seed: u64, image: &RgbImage) -> Result<Vec<u8>, Failure> {
        let scheduler = match self.request.scheduler {
            Some(kind) => kind,
            None => self.painter.scheduler_config().kind()?,
        };
        let (steps, guidance) = (
            self.request.steps.to_string(),
            self.request.guidance.to_string(),
        );
        let (seed, size) = (
            seed.to_string(),
            format!("{}x{}", image.width, image.height),
        );
        let software = concat!("mgm ", env!("CARGO_PKG_VERSION"));
        let texts = [
            ("Prompt", prompt),
            ("Negative prompt", &self.negative),
            ("Seed", &seed),
            ("Steps", &steps),
            ("Guidance", &guidance),
            ("Scheduler", scheduler.name()),
            ("Size", &size),
            ("Model", &self.model),
            ("Software", software),
        ];
        mgm_image::encode_png(image, &texts).map_err(|error| Failure::from_error(&error))
    }
}

fn warn_of_cut(what: &str, window: usize, cut: Option<&str>) {
    let Some(cut) = cut.map(str::trim) else {
        return;
    };
    let shown: String = cut.chars().take(SHOWN_CUT).collect();
    let dots = if cut.chars().count() > SHOWN_CUT {
        "…"
    } else {
        ""
    };
    note!(
        "warning: the text encoders see {window} tokens of the {what}; cut off from: \"{shown}{dots}\""
    );
}

/// How the parts' weights are kept. The VAE, a small part with fine gradations, stays in full precision unless bf16 is asked for.
fn storage(weights: PainterWeights, model: &Path) -> PainterStorage {
    let mixed = |storage| PainterStorage {
        unet: storage,
        text_encoders: storage,
        vae: WeightStorage::F32,
    };
    match weights {
        PainterWeights::F32 => PainterStorage::all(WeightStorage::F32),
        PainterWeights::Bf16 => PainterStorage::all(WeightStorage::Bf16),
        PainterWeights::Q8_0 => mixed(WeightStorage::Q8_0),
        PainterWeights::Auto if bytes_of(model) >= LARGE_UNET => mixed(WeightStorage::Q8_0),
        PainterWeights::Auto => PainterStorage::all(WeightStorage::F32),
    }
}

/// Bytes of a checkpoint file, or of the files in a model's `unet` folder.
fn bytes_of(model: &Path) -> u64 {
    let unet = model.join("unet");
    if !unet.is_dir() {
        return std::fs::metadata(model).map_or(0, |metadata| metadata.len());
    }
    let entries = std::fs::read_dir(unet).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// A seed nobody chose, short enough to be typed.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
        & 0xffff_ffff
}

/// The scheduler of a command-line name.
pub(crate) fn scheduler(name: &str) -> Result<SchedulerKind, String> {
    SchedulerKind::from_name(name).ok_or_else(|| {
        format!(
            "expected one of {}",
            SchedulerKind::ALL.map(SchedulerKind::name).join(", ")
        )
    })
}

impl From<mgm_diffusion::Error> for Failure {
    fn from(error: mgm_diffusion::Error) -> Self {
        match error {
            mgm_diffusion::Error::Interrupted => {
                Self::interrupted("interrupted: the picture is not finished")
            }
            error => Self::from_error(&error),
        }
    }
}

//! The flags of `mgm imagine`, and those about painting that `mgm chat` has too.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::number;

/// Paint pictures: text in, PNG out.
///
/// Each picture is written when it is finished, with its prompt, seed and settings in its metadata; its path goes to standard output. Ctrl-C
/// keeps the finished ones. See docs/drawing.md.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mgm imagine \"a red apple\" -o apple.png\n  \
    mgm imagine \"a red apple on a wooden table\" --model stable-diffusion-xl-base-1.0 -o apple.png\n  \
    mgm imagine \"a fox\" --model sdxl-turbo -o fox.png --size 512x512 --count 4 --seed 7\n  \
    mgm imagine \"a fox\" --model sdxl.safetensors --tokenizer clip -o fox.png --lora style.safetensors:0.8")]
pub(crate) struct ImagineArgs {
    /// What to paint
    pub(crate) prompt: String,

    /// Where to write; several pictures become NAME-1.png, NAME-2.png, ...
    #[arg(short, long, value_name = "FILE.png", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,

    /// A Stable Diffusion XL model: a folder in the diffusers layout, a downloaded model's name, or a checkpoint file; `emoji-painter` is the
    /// small one that comes with the program
    #[arg(long, value_name = "NAME-OR-PATH", env = PAINTER_VARIABLE, default_value = crate::paint::BUILT_IN_PAINTER, value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,

    /// Number of pictures
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) count: NonZeroUsize,

    /// Makes pictures repeatable; the second of several has the next seed, and so on [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    #[command(flatten)]
    pub(crate) paint: PaintArgs,

    /// CPU threads [default: one per logical core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Print one JSON list of the pictures when all are finished
    #[arg(long)]
    pub(crate) json: bool,
}

/// Environment variable that names the model that paints.
pub(crate) const PAINTER_VARIABLE: &str = "MGM_PAINTER";

/// How pictures are painted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Painting")]
pub(crate) struct PaintArgs {
    /// Steps [default: 50; 4 for distilled models]
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<NonZeroUsize>,

    /// How much the prompt counts against the negative one; up to 1 the negative one is not used [default: 5; the model's own for
    /// distilled models]
    #[arg(long, value_name = "G", value_parser = guidance)]
    pub(crate) guidance: Option<f64>,

    /// Width and height in pixels, multiples of 8 [default: what the model was trained on]
    #[arg(long, value_name = "WxH", value_parser = picture_size)]
    pub(crate) size: Option<(u32, u32)>,

    /// What not to paint [default: the list of flaws of the official code]
    #[arg(long, value_name = "TEXT")]
    pub(crate) negative: Option<String>,

    /// euler, euler-ancestral, ddim, dpm++2m-karras or lcm [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = crate::paint::scheduler)]
    pub(crate) scheduler: Option<mgm_diffusion::SchedulerKind>,

    /// A LoRA adapter to add, with its strength [default: 1]; may be repeated
    #[arg(long = "lora", value_name = "FILE[:STRENGTH]", value_hint = ValueHint::FilePath)]
    pub(crate) loras: Vec<LoraChoice>,

    /// CLIP tokeniser (vocab.json, merges.txt) for a checkpoint file that has none beside it
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) tokenizer: Option<PathBuf>,

    /// Another autoencoder for a model in the diffusers layout
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) vae: Option<PathBuf>,

    /// Form in which the painter's weights are kept in memory
    #[arg(long, value_enum, default_value_t = PainterWeights::Auto)]
    pub(crate) weights: PainterWeights,

    /// Decode the picture in overlapping tiles, as diffusers' VAE tiling does: less memory for large pictures
    #[arg(long)]
    pub(crate) tiles: bool,

    /// Show a small preview in the terminal after every N steps; each takes a quarter of the time of developing the picture
    #[arg(long, value_name = "N")]
    pub(crate) preview: Option<NonZeroUsize>,

    /// How to show the picture in the terminal
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    pub(crate) show: crate::paint::Display,
}

impl PaintArgs {
    /// The first flag that was given, for commands that may not want any.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--steps", self.steps.is_some()),
            ("--guidance", self.guidance.is_some()),
            ("--size", self.size.is_some()),
            ("--negative", self.negative.is_some()),
            ("--scheduler", self.scheduler.is_some()),
            ("--lora", !self.loras.is_empty()),
            ("--tokenizer", self.tokenizer.is_some()),
            ("--vae", self.vae.is_some()),
            ("--weights", self.weights != PainterWeights::Auto),
            ("--tiles", self.tiles),
            ("--preview", self.preview.is_some()),
            ("--show", self.show != crate::paint::Display::Auto),
        ];
        given
            .iter()
            .find(|(_, given)| *given)
            .map(|(flag, _)| *flag)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PainterWeights {
    /// 8-bit blocks for large models, 32-bit floating point for small ones
    Auto,
    /// 32-bit floating point
    F32,
    /// bfloat16
    Bf16,
    /// 8-bit blocks
    #[value(name = "q8_0")]
    Q8_0,
}

/// An adapter file and its strength.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraChoice {
    pub(crate) file: PathBuf,
    pub(crate) scale: f64,
}

impl std::str::FromStr for LoraChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A colon may belong to the file's name: only a number behind the last one is a strength.
        let split = text
            .rsplit_once(':')
            .and_then(|(file, scale)| Some((file, number(scale).ok()?)));
        let (file, scale) = split.unwrap_or((text, 1.0));
        if file.is_empty() {
            return Err("expected a file".into());
        }
        Ok(Self {
            file: file.into(),
            scale,
        })
    }
}

pub(crate) fn guidance(text: &str) -> Result<f64, String> {
    match number(text)? {
        value if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("expected 0 to 100".into()),
    }
}

pub(crate) fn picture_size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once(['x', 'X', '×']);
    let sides = sides.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "expected width and height, as in 1024x768".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_adapters_are_checked() {
        assert_eq!(picture_size("1024x768"), Ok((1024, 768)));
        for bad in ["1024", "x", "-1x5", "1024x", "99999999999x1", "1.5x2"] {
            assert!(picture_size(bad).is_err(), "{bad}");
        }
        let lora = |text: &str| {
            text.parse::<LoraChoice>()
                .map(|lora| (lora.file.display().to_string(), lora.scale))
        };
        assert_eq!(lora("a.safetensors:0.5"), Ok(("a.safetensors".into(), 0.5)));
        assert_eq!(lora("c:a.safetensors"), Ok(("c:a.safetensors".into(), 1.0)));
        assert!(lora("").is_err());
    }
}

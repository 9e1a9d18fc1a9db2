//! The flags as they are written. What they mean together is decided by each command.

mod painting;
mod reading;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub(crate) use self::painting::{
    ImagineArgs, LoraChoice, PAINTER_VARIABLE, PaintArgs, PainterWeights, guidance, picture_size,
};
pub(crate) use self::reading::{OcrArgs, ReadingModels};
use crate::picture::PictureSource;
use crate::serve::ServeArgs;

/// Ask about pictures, train and score Mini-Gemini vision-language models.
#[derive(Debug, Parser)]
#[command(
    name = "mgm",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n\
        Results go to standard output, everything else to standard error."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Chat(ChatArgs),
    Imagine(ImagineArgs),
    // Larger than the others by far.
    Serve(Box<ServeArgs>),
    Ocr(OcrArgs),
    Train(TrainArgs),
    Eval(EvalArgs),
    Embed(EmbedArgs),
    Models(ModelsArgs),
    Bench(BenchArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Which model, and what it runs on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A model's folder, a GGUF file, the name of a downloaded model (organisation/name), or `smol`, the built-in one
    #[arg(long, value_name = "NAME-OR-PATH", default_value = mini_gemini::BUILT_IN_NAME, value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,

    #[command(flatten)]
    pub(crate) files: ModelFiles,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,

    /// Form in which weights are kept in memory
    #[arg(long, value_enum, default_value_t = DtypeChoice::Auto)]
    pub(crate) dtype: DtypeChoice,

    /// Keep the weights as they are packed in a file beside the model (as large as they are in memory), so that the next start with this dtype
    /// maps them instead of packing them again
    #[arg(long)]
    pub(crate) keep_packed: bool,

    /// CPU threads [default: one per logical core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// Where the files of a model are, beyond its own folder.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelFiles {
    /// Folder in which models, and the towers and base models they name, are looked for
    #[arg(long, value_name = "DIR", env = mini_gemini::MODEL_ZOO_VARIABLE, value_hint = ValueHint::DirPath)]
    pub(crate) model_zoo: Option<PathBuf>,

    /// Base model of a stage-1 or adapter folder [default: the one it names]
    #[arg(long, value_name = "NAME-OR-PATH", value_hint = ValueHint::DirPath)]
    pub(crate) model_base: Option<PathBuf>,

    /// A PEFT adapter folder to apply to the model
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) adapter: Option<PathBuf>,

    /// Vision file of a GGUF pair [default: the one beside the language file]
    #[arg(long, value_name = "FILE.gguf", value_hint = ValueHint::FilePath)]
    pub(crate) mmproj: Option<PathBuf>,

    /// The transformers release whose Gemma is computed [default: 4.39, which the authors ran]
    #[arg(long, value_enum, value_name = "RELEASE")]
    pub(crate) gemma_numerics: Option<GemmaNumericsChoice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The best one this build and machine have
    Auto,
    /// The processor
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// An Apple GPU
    Metal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GemmaNumericsChoice {
    /// GELU by the error function
    #[value(name = "4.38")]
    V4_38,
    /// GELU by its tanh form
    #[value(name = "4.39")]
    V4_39,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeChoice {
    /// As stored; what does not fit into memory stays in its files
    Auto,
    /// 32-bit floating point; quantised weights are expanded
    F32,
    /// bfloat16; quantised weights are expanded
    Bf16,
    /// 16-bit floating point, in which the official code runs; quantised weights are expanded
    F16,
    /// 8-bit integers, weights and what they are multiplied with: half the memory of bf16, pictures and prompts up to twice as fast; weights quantised to fewer bits stay so
    Int8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverlongChoice {
    /// Refuse it and tell how many tokens there are and how many fit
    Refuse,
    /// Cut its end off, as the official code does without a word
    Truncate,
}

/// Ask about pictures: one answer, or a conversation.
///
/// With PROMPT or piped input it prints one answer and ends. On a terminal without PROMPT it starts a conversation; /help there
/// lists what can be typed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mgm chat --image photo.jpg \"What is in the picture?\"\n  \
    mgm chat --image before.png --image after.png \"What has changed?\"\n  \
    mgm chat \"Summarise this text.\" < letter.txt\n  \
    mgm chat --image photo.jpg\n  \
    mgm chat --gen -o apple.png \"draw a red apple\"\n  \
    mgm chat --gen --painter stable-diffusion-xl-base-1.0 -o apple.png \"draw a red apple\"")]
pub(crate) struct ChatArgs {
    /// The question; piped input is appended to it, or stands for it
    pub(crate) prompt: Option<String>,

    /// A picture to ask about: a file or an http(s) address; may be repeated
    #[arg(long = "image", value_name = "FILE-OR-URL", value_hint = ValueHint::FilePath)]
    pub(crate) images: Vec<PictureSource>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Randomness of the answer; 0 always takes the likeliest token [default: 0 for the built-in model, otherwise 0.2]
    #[arg(long, value_name = "T", value_parser = temperature, help_heading = "Answer")]
    pub(crate) temperature: Option<f32>,

    /// Sample only from the likeliest tokens that together have this probability [default: 1]
    #[arg(long, value_name = "P", value_parser = probability, help_heading = "Answer")]
    pub(crate) top_p: Option<f32>,

    /// Sample only from this many likeliest tokens [default: 50]
    #[arg(long, value_name = "K", help_heading = "Answer")]
    pub(crate) top_k: Option<NonZeroUsize>,

    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value = "512", help_heading = "Answer")]
    pub(crate) max_new_tokens: NonZeroUsize,

    /// Makes sampled answers repeatable
    #[arg(long, value_name = "N", help_heading = "Answer")]
    pub(crate) seed: Option<u64>,

    /// Conversation template [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = template_names(), help_heading = "Answer")]
    pub(crate) template: Option<String>,

    /// What to do with a prompt that does not fit the model
    #[arg(long, value_enum, default_value_t = OverlongChoice::Refuse, help_heading = "Answer")]
    pub(crate) overlong: OverlongChoice,

    /// Let control strings such as </s> in what is typed or piped steer the model, as in the official code
    #[arg(long, help_heading = "Answer")]
    pub(crate) parse_special: bool,

    /// Read the answer's tokens one by one, also where it repeats what was said before; it is the same answer, later
    #[arg(long, help_heading = "Answer")]
    pub(crate) no_lookup: bool,

    /// Ask for a picture: the model writes a prompt between <h> and </h>, and the painter paints it
    #[arg(long = "gen", help_heading = "Painting")]
    pub(crate) generate: bool,

    /// With --gen, where to write the picture; later ones of a conversation get a number [default: generate.png]
    #[arg(short = 'o', long = "output", value_name = "FILE.png", value_hint = ValueHint::FilePath, help_heading = "Painting")]
    pub(crate) painter_output: Option<PathBuf>,

    /// With --gen, the Stable Diffusion XL model that paints: a folder, a downloaded model's name, or a checkpoint file [default:
    /// emoji-painter, the small one that comes with the program]
    #[arg(long, value_name = "NAME-OR-PATH", env = PAINTER_VARIABLE, value_hint = ValueHint::AnyPath, help_heading = "Painting")]
    pub(crate) painter: Option<String>,

    #[command(flatten)]
    pub(crate) paint: PaintArgs,

    /// Read the text in the pictures and give it to the model with the question
    #[arg(long, help_heading = "Reading")]
    pub(crate) ocr: bool,

    #[command(flatten)]
    pub(crate) reading: ReadingModels,

    /// Print one JSON object (answer, stop, token counts, timings, text read, picture) instead of text
    #[arg(long)]
    pub(crate) json: bool,

    /// Report time to the first token and tokens per second on standard error
    #[arg(long)]
    pub(crate) timings: bool,
}

/// Train a model as a recipe says.
///
/// Ctrl-C saves a checkpoint and ends with exit code 130; --resume goes on from the last checkpoint.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The recipe (TOML); see docs/training.md
    #[arg(value_name = "RECIPE.toml", value_hint = ValueHint::FilePath)]
    pub(crate) recipe: PathBuf,

    /// Go on from the last checkpoint in the recipe's output folder
    #[arg(long)]
    pub(crate) resume: bool,

    /// Stop (and save) at this optimiser step; the learning-rate schedule stays the recipe's
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<NonZeroUsize>,

    /// CPU threads [default: one per logical core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// Score a model on questions with known answers.
///
/// A data file is a JSON array (or one object a line) of {"id", "image", "question", "answers": [...], "match": "exact" or
/// "contains"}. Answers are made greedily and compared after trimming, lower-casing and stripping a final period.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Data files
    #[arg(value_name = "DATA.json", required = true, value_hint = ValueHint::FilePath)]
    pub(crate) data: Vec<PathBuf>,

    /// Where the pictures are [default: beside each data file]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) image_folder: Option<PathBuf>,

    /// At most this many records of each file
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<NonZeroUsize>,

    /// Write every answer to this file as it is made, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl", value_hint = ValueHint::FilePath)]
    pub(crate) answers: Option<PathBuf>,

    /// Keep the answers that the --answers file already holds
    #[arg(long, requires = "answers")]
    pub(crate) resume: bool,

    /// Write the scores as JSON to this file, `-` for standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,

    /// Fail (exit code 1) when the total accuracy is below this percentage
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    pub(crate) fail_under: Option<f64>,

    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value = "32")]
    pub(crate) max_new_tokens: NonZeroUsize,

    /// Score the model with its high-resolution tower left out, to see what it adds
    #[arg(long)]
    pub(crate) without_high_res: bool,

    /// Read the text in the pictures and give it to the model with each question, as `mgm chat --ocr` does
    #[arg(long, help_heading = "Reading")]
    pub(crate) ocr: bool,

    #[command(flatten)]
    pub(crate) reading: ReadingModels,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Write the visual tokens of a picture to a file.
///
/// The file holds one f32 tensor `visual_tokens` [tokens, hidden size]: what the language model sees in place of the picture.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// The picture: a file or an http(s) address
    #[arg(long, value_name = "FILE-OR-URL", value_hint = ValueHint::FilePath)]
    pub(crate) image: PictureSource,

    /// Where to write
    #[arg(short, long, value_name = "FILE.safetensors", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// List, download and inspect model files.
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    List(ListArgs),
    #[cfg(feature = "hub")]
    Pull(PullArgs),
    Inspect(InspectArgs),
    /// Write a model with a LoRA adapter merged into its weights, in the official layout
    Merge(MergeArgs),
    Quantize(QuantizeArgs),
}

/// What a model is, what its files hold, the memory it needs, and what it lacks.
///
/// Nothing is loaded: names, shapes and types tell. A single shard, tower or adapter file is described alone.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model's folder, a downloaded model's name, `smol`, or a weight file
    #[arg(value_name = "NAME-OR-PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) path: PathBuf,

    /// List every tensor with its shape, dtype and file
    #[arg(long)]
    pub(crate) tensors: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) files: ModelFiles,
}

/// A checkpoint with its adapter.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The model, or an adapter folder that names its base
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,

    /// The PEFT adapter folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) adapter: Option<PathBuf>,

    /// The folder to write; must not hold anything yet
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,

    /// Base model of an adapter folder [default: the one it names]
    #[arg(long, value_name = "NAME-OR-PATH", value_hint = ValueHint::DirPath)]
    pub(crate) model_base: Option<PathBuf>,

    /// Folder in which models, and the towers and base models they name, are looked for
    #[arg(long, value_name = "DIR", env = mini_gemini::MODEL_ZOO_VARIABLE, value_hint = ValueHint::DirPath)]
    pub(crate) model_zoo: Option<PathBuf>,
}

/// Write a model as a GGUF pair, smaller: a language file that llama.cpp loads too, and an mmproj file with everything visual
///
/// Adapters are merged. Needs the memory of a few tensors, whatever the size of the model.
#[derive(Debug, Args)]
#[command(
    after_help = "Types, largest first: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0. They are described in docs/formats.md.\n\n\
    Examples:\n  \
    mgm models quantize MGM-2B --type Q4_K_M\n  \
    mgm chat --model MGM-2B-Q4_K_M.gguf --image photo.jpg"
)]
pub(crate) struct QuantizeArgs {
    /// The model: anything --model accepts
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,

    /// What to write
    #[arg(long = "type", value_name = "TYPE", value_parser = scheme)]
    pub(crate) scheme: mini_gemini::pair::Scheme,

    /// The folder to write to
    #[arg(short, long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,

    /// Name of the files in front of the type [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// An importance matrix of the language model, as llama.cpp's llama-imatrix writes it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) imatrix: Option<PathBuf>,

    /// Replace files that are there already
    #[arg(long)]
    pub(crate) force: bool,

    /// A PEFT adapter folder to merge
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) adapter: Option<PathBuf>,

    /// Base model of a stage-1 or adapter folder [default: the one it names]
    #[arg(long, value_name = "NAME-OR-PATH", value_hint = ValueHint::DirPath)]
    pub(crate) model_base: Option<PathBuf>,

    /// Folder in which models, and the towers and base models they name, are looked for
    #[arg(long, value_name = "DIR", env = "MGM_MODEL_ZOO", value_hint = ValueHint::DirPath)]
    pub(crate) model_zoo: Option<PathBuf>,
}

/// The models that are there, and those that can be downloaded.
///
/// Sizes are in units of 1000. Memory is that of the weights and of a full context; buffers add a few hundred megabytes.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Folder of models to list too
    #[arg(long, value_name = "DIR", env = mini_gemini::MODEL_ZOO_VARIABLE, value_hint = ValueHint::DirPath)]
    pub(crate) model_zoo: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Download a model from the Hugging Face hub into its cache.
///
/// Prints the model's folder, once every file has been checked against the hub's checksums. An interrupted download goes on where it was
/// when the command is run again. HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are heeded; see docs/hub.md.
#[cfg(feature = "hub")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mgm models pull mgm-2b\n  \
    mgm models pull YanweiLi/MGM-7B-HD\n  \
    mgm models pull mgm-2b --include '*.json' --include 'tokenizer*'")]
pub(crate) struct PullArgs {
    /// A name that `mgm models list` shows, or a repository (organisation/name)
    #[arg(value_name = "NAME-OR-REPO")]
    pub(crate) name: mgm_hub::Repository,

    /// Branch, tag or commit
    #[arg(long, value_name = "REV", default_value = mgm_hub::MAIN)]
    pub(crate) revision: mgm_hub::Revision,

    /// Only files that match; may be repeated [default: all but other frameworks' weights and torch duplicates of safetensors]
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,

    /// Check the files that are already there too, and replace damaged ones
    #[arg(long)]
    pub(crate) verify: bool,
}

/// Measure each stage's speed on this machine, beside the least time that the machine allows.
///
/// Measures the built-in model, --model, or a released model's --shape with random weights. Before each line it waits until nothing else
/// computes on this machine. "× floor" is the time over the floor: operations at the rate of products between registers, or bytes at the rate
/// at which memory is read; both rates are measured first.
#[derive(Debug, Args)]
#[command(
    after_help = "Stages: picture, preprocess, low-res, high-res, mining, prefill, decode, first-token.\n\n\
    Examples:\n  \
    mgm bench\n  \
    mgm bench --shape 2b --weights Q4_K --json before.json\n  \
    mgm bench --shape 2b --weights Q4_K --compare before.json\n  \
    mgm bench --shape 7b --hd --level avx2 --stage low-res --stage high-res"
)]
pub(crate) struct BenchArgs {
    /// Measure a released model's shape with random weights
    #[arg(long, value_name = "SIZE", value_parser = shape_names(), conflicts_with = "model")]
    pub(crate) shape: Option<String>,

    /// Take the shape's HD configuration
    #[arg(long, requires = "shape")]
    pub(crate) hd: bool,

    /// Type of the language model's matrices of a --shape [default: BF16]
    #[arg(long, value_name = "TYPE", value_parser = weight_format, requires = "shape")]
    pub(crate) weights: Option<mgm_bench::WeightFormat>,

    /// Highest instruction-set level to use
    #[arg(long, value_enum)]
    pub(crate) level: Option<LevelChoice>,

    /// Measure only this stage; may be repeated
    #[arg(long = "stage", value_name = "STAGE", value_parser = stage)]
    pub(crate) stages: Vec<mgm_bench::Stage>,

    /// Prompt lengths in tokens
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "64,640"
    )]
    pub(crate) prefill: Vec<NonZeroUsize>,

    /// Tokens that are there before a decoded one
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "64,640"
    )]
    pub(crate) context: Vec<NonZeroUsize>,

    /// Answers decoded together; more than one only after the first context
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1,2,4,8"
    )]
    pub(crate) batch: Vec<NonZeroUsize>,

    /// Timed runs of each stage, at least
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) runs: NonZeroUsize,

    /// The picture to look at [default: a photograph that the program carries]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) image: Option<PathBuf>,

    /// Do not wait for an idle machine
    #[arg(long)]
    pub(crate) no_gate: bool,

    /// Longest wait for an idle machine before each line, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "120",
        conflicts_with = "no_gate"
    )]
    pub(crate) gate: u64,

    /// Write the report as JSON to this file, `-` for standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,

    /// Compare with the report of an earlier run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) compare: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LevelChoice {
    /// Whatever the compiler target guarantees
    Portable,
    /// AVX2 with FMA
    Avx2,
    /// AVX-512 with VNNI, and bf16 products where the processor has them
    Avx512,
    /// The AMX tile unit
    Amx,
}

/// Print a shell completion script.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print a manual page.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The command to document [default: mgm itself]
    pub(crate) command: Option<String>,
}

pub(crate) fn template_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(mgm_text::Template::names())
}

fn scheme(text: &str) -> Result<mini_gemini::pair::Scheme, String> {
    use mini_gemini::pair::Scheme;
    Scheme::parse(text).ok_or_else(|| {
        let names: Vec<&str> = Scheme::ALL.iter().map(|scheme| scheme.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn shape_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(mgm_bench::Shape::ALL.map(mgm_bench::Shape::name))
}

fn weight_format(text: &str) -> Result<mgm_bench::WeightFormat, String> {
    mgm_bench::WeightFormat::parse(text).ok_or_else(|| {
        let names = mgm_bench::WeightFormat::names();
        format!("expected one of {}", names.join(", "))
    })
}

fn stage(text: &str) -> Result<mgm_bench::Stage, String> {
    mgm_bench::Stage::parse(text).ok_or_else(|| {
        let names = mgm_bench::Stage::ALL.map(mgm_bench::Stage::name);
        format!("expected one of {}", names.join(", "))
    })
}

pub(crate) fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("expected a number".into()),
    }
}

pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    match number(text)? {
        value if (0.0..=10.0).contains(&value) => Ok(value as f32),
        _ => Err("expected 0 to 10".into()),
    }
}

pub(crate) fn probability(text: &str) -> Result<f32, String> {
    match number(text)? {
        value if value > 0.0 && value <= 1.0 => Ok(value as f32),
        _ => Err("expected more than 0 and at most 1".into()),
    }
}

fn fraction(text: &str) -> Result<f32, String> {
    match number(text)? {
        value if (0.0..=1.0).contains(&value) => Ok(value as f32),
        _ => Err("expected 0 to 1".into()),
    }
}

fn percentage(text: &str) -> Result<f64, String> {
    match number(text)? {
        value if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("expected 0 to 100".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(temperature("0.2"), Ok(0.2));
        for bad in ["-1", "nan", "inf", "warm", "", "11"] {
            assert!(temperature(bad).is_err(), "{bad}");
        }
        assert_eq!(probability("1"), Ok(1.0));
        for bad in ["0", "1.1", "-0.5", "nan"] {
            assert!(probability(bad).is_err(), "{bad}");
        }
        assert_eq!(fraction("0"), Ok(0.0));
        for bad in ["1.1", "-0.5", "nan"] {
            assert!(fraction(bad).is_err(), "{bad}");
        }
        assert_eq!(percentage("85"), Ok(85.0));
        assert!(percentage("101").is_err());
    }
}

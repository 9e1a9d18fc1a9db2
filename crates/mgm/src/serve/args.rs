//! The flags of `mgm serve`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use crate::cli::{
    LoraChoice, ModelArgs, PAINTER_VARIABLE, PaintArgs, PainterWeights, guidance, number,
    picture_size, probability, temperature, template_names,
};

/// Serve a model: an OpenAI-compatible API and a web page.
///
/// Prints the address once requests are taken. Ctrl-C or SIGTERM lets running answers finish within --grace; a second one ends at once.
/// docs/server.md describes the API, the limits and how to put the server behind a reverse proxy.
#[derive(Debug, Args)]
#[command(
    after_help = "Sizes are bytes, or have a unit: 512KiB, 32MiB, 2GiB. Times are seconds.\n\n\
    Examples:\n  \
    mgm serve\n  \
    mgm serve --port 0 --api-key-file keys.txt\n  \
    mgm serve --painter sdxl-turbo --painter-size 512x512\n  \
    mgm serve --host 0.0.0.0 --api-key-file keys.txt --cors-origin https://app.example"
)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Conversation template [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = template_names(), help_heading = "Model")]
    pub(crate) template: Option<String>,

    /// A further name under which requests may ask for the model; may be repeated
    #[arg(long = "model-name", value_name = "NAME", help_heading = "Model")]
    pub(crate) model_names: Vec<String>,

    /// Name or address to listen on; 0.0.0.0 or :: for every network this machine is in
    #[arg(
        long,
        value_name = "HOST",
        default_value = "127.0.0.1",
        help_heading = "Access"
    )]
    pub(crate) host: String,

    /// Port to listen on; 0 takes any that is free
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 8080,
        help_heading = "Access"
    )]
    pub(crate) port: u16,

    /// A key of which requests must bring one; may be repeated. Other users of this machine can see it: better use a file
    #[arg(
        long = "api-key",
        value_name = "KEY",
        env = "MGM_API_KEY",
        hide_env_values = true,
        help_heading = "Access"
    )]
    pub(crate) api_keys: Vec<String>,

    /// A file of keys, one a line; may be repeated
    #[arg(long = "api-key-file", value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Access")]
    pub(crate) api_key_files: Vec<PathBuf>,

    /// A name, besides localhost, under which clients reach a server that listens on loopback and has no keys; * for any
    #[arg(long = "allowed-host", value_name = "NAME", help_heading = "Access")]
    pub(crate) allowed_hosts: Vec<String>,

    /// A web origin (https://app.example) whose pages may use the server from a browser; * for all; may be repeated
    #[arg(long = "cors-origin", value_name = "ORIGIN", help_heading = "Access")]
    pub(crate) cors_origins: Vec<String>,

    /// Fetch pictures that requests name by http(s) address; never from private or local addresses
    #[cfg(feature = "http")]
    #[arg(long, help_heading = "Access")]
    pub(crate) allow_remote_images: bool,

    /// Randomness of answers to requests that do not say; 0 takes the likeliest token [default: 0 for the built-in model, otherwise 0.2]
    #[arg(long, value_name = "T", value_parser = temperature, help_heading = "Answers")]
    pub(crate) temperature: Option<f32>,

    /// Share of the probability that is sampled from, for requests that do not say
    #[arg(long, value_name = "P", value_parser = probability, default_value = "1", help_heading = "Answers")]
    pub(crate) top_p: f32,

    /// Number of likeliest tokens that are sampled from, for requests that do not say; 0 for no limit
    #[arg(long, value_name = "K", default_value_t = 50, help_heading = "Answers")]
    pub(crate) top_k: usize,

    /// Longest answer, in tokens, to requests that do not say
    #[arg(
        long,
        value_name = "N",
        default_value = "512",
        help_heading = "Answers"
    )]
    pub(crate) default_max_tokens: NonZeroUsize,

    /// Answers generated together
    #[arg(
        long,
        value_name = "N",
        default_value = "32",
        help_heading = "Capacity"
    )]
    pub(crate) max_concurrent: NonZeroUsize,

    /// Requests that may wait for a place; further ones are refused (429)
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        help_heading = "Capacity"
    )]
    pub(crate) max_queue: usize,

    /// Memory for keys and values of running and remembered conversations [default: a quarter of the free memory]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Capacity")]
    pub(crate) kv_bytes: Option<u64>,

    /// Memory for what was seen in pictures, so that they are not looked at again
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB", help_heading = "Capacity")]
    pub(crate) vision_cache_bytes: u64,

    #[command(flatten)]
    pub(crate) painter: PainterArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// How long running answers may go on once the server is to stop
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30", help_heading = "Limits")]
    pub(crate) grace: Duration,

    /// What is logged on standard error
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info, help_heading = "Log")]
    pub(crate) log_level: LogLevel,

    /// Form of the log
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text, help_heading = "Log")]
    pub(crate) log_format: LogFormat,

    /// Log prompts and answers, too
    #[arg(long, help_heading = "Log")]
    pub(crate) log_content: bool,
}

/// The model that paints, and how. The flags are those of `mgm imagine` with `painter-` before them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Painting")]
pub(crate) struct PainterArgs {
    /// A Stable Diffusion XL model that paints: a folder, a downloaded model's name, a checkpoint file, or `none` [default: with the built-in
    /// model its emoji-painter, otherwise none]
    #[arg(long, value_name = "NAME-OR-PATH", env = PAINTER_VARIABLE, value_hint = ValueHint::AnyPath)]
    pub(crate) painter: Option<String>,

    /// Steps of every picture [default: 50; 4 for distilled models]
    #[arg(long, value_name = "N")]
    pub(crate) painter_steps: Option<NonZeroUsize>,

    /// How much the prompt counts against the negative one; up to 1 the negative one is not used [default: 5; the model's own for
    /// distilled models]
    #[arg(long, value_name = "G", value_parser = guidance)]
    pub(crate) painter_guidance: Option<f64>,

    /// Size of pictures that no request gives one [default: what the model was trained on]
    #[arg(long, value_name = "WxH", value_parser = picture_size)]
    pub(crate) painter_size: Option<(u32, u32)>,

    /// What not to paint [default: the list of flaws of the official code]
    #[arg(long, value_name = "TEXT")]
    pub(crate) painter_negative: Option<String>,

    /// euler, euler-ancestral, ddim, dpm++2m-karras or lcm [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = crate::paint::scheduler)]
    pub(crate) painter_scheduler: Option<mgm_diffusion::SchedulerKind>,

    /// A LoRA adapter to add, with its strength [default: 1]; may be repeated
    #[arg(long = "painter-lora", value_name = "FILE[:STRENGTH]", value_hint = ValueHint::FilePath)]
    pub(crate) painter_loras: Vec<LoraChoice>,

    /// CLIP tokeniser (vocab.json, merges.txt) for a checkpoint file that has none beside it
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) painter_tokenizer: Option<PathBuf>,

    /// Another autoencoder for a model in the diffusers layout
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) painter_vae: Option<PathBuf>,

    /// Form in which the painter's weights are kept in memory
    #[arg(long, value_enum, default_value_t = PainterWeights::Auto)]
    pub(crate) painter_weights: PainterWeights,

    /// Decode pictures in overlapping tiles: less memory for large ones
    #[arg(long)]
    pub(crate) painter_tiles: bool,
}

impl PainterArgs {
    /// The same as flags of `mgm imagine`.
    pub(crate) fn paint_args(&self) -> PaintArgs {
        PaintArgs {
            steps: self.painter_steps,
            guidance: self.painter_guidance,
            size: self.painter_size,
            negative: self.painter_negative.clone(),
            scheduler: self.painter_scheduler,
            loras: self.painter_loras.clone(),
            tokenizer: self.painter_tokenizer.clone(),
            vae: self.painter_vae.clone(),
            weights: self.painter_weights,
            tiles: self.painter_tiles,
            preview: None,
            show: crate::paint::Display::Auto,
        }
    }
}

/// What a server puts up with.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Longest answer, in tokens, that a request may ask for
    #[arg(long, value_name = "N", default_value = "4096")]
    pub(crate) max_tokens: NonZeroUsize,

    /// Answers to one request: `n` times the number of prompts
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) max_choices: NonZeroUsize,

    /// Body of one request
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "32MiB")]
    pub(crate) max_body_bytes: u64,

    /// All bodies that are being received at one moment
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB")]
    pub(crate) max_body_memory: u64,

    /// Pictures in one request
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) max_images: usize,

    /// File of one picture
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "20MiB")]
    pub(crate) max_image_bytes: u64,

    /// Width times height of one picture
    #[arg(long, value_name = "N", default_value_t = 50_000_000)]
    pub(crate) max_image_pixels: u64,

    /// Pictures decoded at one moment
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) max_decoding: NonZeroUsize,

    /// Connections at one moment
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) max_connections: NonZeroUsize,

    /// Head of a request
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "32KiB")]
    pub(crate) max_header_bytes: u64,

    /// Time for a request's head; connections that send none for so long are closed
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(crate) header_timeout: Duration,

    /// Time for a request's body, to which a second is added for every 16 KiB that have come
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "20")]
    pub(crate) body_timeout: Duration,

    /// Time after which a client that reads nothing of its answer counts as gone
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(crate) write_timeout: Duration,

    /// Time for one answer, waiting included
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "600")]
    pub(crate) request_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing
    Off,
    /// What went wrong
    Error,
    /// What may go wrong, too
    Warn,
    /// Every request, too
    Info,
    /// Every connection that ended badly, too
    Debug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line of text for each event
    Text,
    /// A JSON object for each event
    Json,
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("expected bytes, or a number with KiB, MiB or GiB".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "expected bytes, or a number with KiB, MiB or GiB".to_string())?;
    number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number)
        .ok_or_else(|| "larger than any memory".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    match number(text)? {
        value if (0.0..=1e9).contains(&value) => Ok(Duration::from_secs_f64(value)),
        _ => Err("expected seconds, 0 or more".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_checked() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("32MiB"), Ok(32 << 20));
        assert_eq!(size("2 g"), Ok(2 << 30));
        for bad in ["", "MiB", "-1", "1.5M", "1TB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err());
    }
}

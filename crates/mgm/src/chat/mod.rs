//! `mgm chat`: one answer, or a conversation.

mod display;
mod generation;
mod input;
mod interactive;
mod meta;
mod one_shot;
mod reading;

use std::time::Instant;

use mini_gemini::{GenerateOptions, ModelSource, Overlong};

use crate::cli::{ChatArgs, OverlongChoice};
use crate::failure::Failure;
use crate::model;

use self::input::Input;

/// Temperature of models other than the built-in one: what the official command line uses.
const USUAL_TEMPERATURE: f32 = 0.2;

/// Runs the command. `started` is when the program started.
pub(crate) fn run(args: ChatArgs, started: Instant) -> Result<(), Failure> {
    model::prepare(&args.model)?;
    match input::resolve(args.prompt.as_deref())? {
        Input::Once(prompt) => one_shot::run(&args, &prompt, started),
        Input::Conversation if args.json => Err(Failure::usage(
            "--json needs a PROMPT or piped input: it prints one answer",
        )),
        Input::Conversation => interactive::run(&args),
    }
}

/// The user's text, the text read in the pictures, and the request for a picture, in the official command line's order.
fn with_additions(args: &ChatArgs, text: &str, read: Option<&str>) -> String {
    let request = match args.generate {
        true => mgm_text::protocol::GENERATION_REQUEST,
        false => "",
    };
    format!("{text}{}{request}", read.unwrap_or_default())
}

/// Flags and defaults put together.
fn generate_options(args: &ChatArgs) -> GenerateOptions {
    let defaults = GenerateOptions::default();
    let built_in = ModelSource::parse(&args.model.model) == ModelSource::BuiltIn;
    GenerateOptions {
        temperature: args
            .temperature
            .unwrap_or(if built_in { 0.0 } else { USUAL_TEMPERATURE }),
        top_k: args
            .top_k
            .map(std::num::NonZeroUsize::get)
            .or(defaults.top_k),
        top_p: args.top_p.unwrap_or(defaults.top_p),
        max_new_tokens: args.max_new_tokens.get(),
        seed: args.seed,
        overlong: match args.overlong {
            OverlongChoice::Refuse => Overlong::Refuse,
            OverlongChoice::Truncate => Overlong::Truncate,
        },
        parse_special: args.parse_special,
        lookup: !args.no_lookup,
    }
}

//! `mgm`: the Mini-Gemini command line.
//!
//! Flags as parsed ([`cli`]) are turned into resolved options by each command; results go to stdout, everything else to stderr.

#![cfg_attr(test, allow(clippy::unwrap_used))]

/// A line on stderr. That nobody may be reading it is no reason to stop.
macro_rules! note {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

mod bench;
mod chat;
mod cli;
mod embed;
mod eval;
mod failure;
mod imagine;
mod interrupt;
mod meter;
mod model;
mod models;
mod ocr;
mod paint;
mod picture;
mod serve;
mod shell;
mod stdout;
mod train;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

/// Layers allocate and free buffers of megabytes all the time; the system's allocator gives each back to the kernel and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let started = Instant::now();
    // Our kernels have their own pool. candle's second one spins while it waits, which on few cores takes them from ours.
    mgm_kernels::process::set_default_variable("CANDLE_NUM_THREADS", "1");
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help and version are results; clap sends them to stdout and the rest to stderr. A reader that has gone is no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                failure::WRONG_USAGE
            } else {
                failure::DONE
            });
        }
    };
    match run(command, started) {
        Ok(()) => ExitCode::from(failure::DONE),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command, started: Instant) -> Result<(), Failure> {
    interrupt::install()?;
    // Before anything asks for the level.
    if let Command::Bench(args) = &command {
        bench::set_level(args)?;
    }
    if let Some(error) = mgm_kernels::level::level_error() {
        note!("warning: {error}");
    }
    match command {
        Command::Chat(args) => chat::run(args, started),
        Command::Imagine(args) => imagine::run(args),
        Command::Serve(args) => serve::run(*args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Ocr(args) => ocr::run(args),
        Command::Models(args) => models::run(args.command),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

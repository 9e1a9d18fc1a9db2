//! `mgm models pull`.

use indicatif::ProgressBar;
use mgm_hub::{Environment, Error, Options, Progress, Pulled, Selection};

use super::megabytes;
use crate::cli::PullArgs;
use crate::failure::Failure;
use crate::{interrupt, meter, stdout};

/// Downloads the model and prints its folder.
pub(super) fn run(args: &PullArgs) -> Result<(), Failure> {
    let selection =
        Selection::new(&args.include).map_err(|error| Failure::usage(error.to_string()))?;
    let environment = Environment::read().map_err(failure)?;
    let options = Options {
        revision: args.revision.clone(),
        selection,
        verify: args.verify,
        ..Options::default()
    };
    let watch = interrupt::watch();
    let mut display = Display::new(args.name.as_str());
    let pulled = mgm_hub::pull(
        &environment,
        &args.name,
        &options,
        watch.flag(),
        &mut |progress| {
            display.show(progress);
        },
    );
    display.bar.finish_and_clear();
    let Pulled {
        snapshot,
        commit,
        files,
        downloaded,
    } = pulled.map_err(failure)?;
    if environment.offline {
        note!(
            "offline: {} at {commit} as it was last downloaded, not compared with the hub",
            args.name
        );
    } else if downloaded == 0 {
        note!("{} at {commit}: all {files} files were there", args.name);
    } else {
        note!(
            "{} at {commit}: {} downloaded, {files} files in all",
            args.name,
            megabytes(downloaded)
        );
    }
    stdout::write(format!("{}\n", snapshot.display()))
}

/// What is going on, on standard error.
struct Display {
    bar: ProgressBar,
}

impl Display {
    fn new(name: &str) -> Self {
        Self {
            bar: meter::spinner(format!("asking for {name}")),
        }
    }

    fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Found {
                files,
                bytes,
                missing,
            } => {
                self.bar.finish_and_clear();
                note!(
                    "{files} files, {}, of which {} to download",
                    megabytes(bytes),
                    megabytes(missing)
                );
                self.bar = meter::byte_bar(missing);
            }
            Progress::File { name } => self.bar.set_message(name),
            Progress::Bytes(bytes) => self.bar.set_position(bytes),
            Progress::Note(text) => self.bar.suspend(|| note!("{text}")),
            _ => {}
        }
    }
}

fn failure(error: Error) -> Failure {
    let token = "set HF_TOKEN to an access token of an account that may see it";
    match &error {
        Error::Stopped => Failure::interrupted(
            "stopped; what was downloaded is kept, and the same command goes on from there",
        ),
        Error::NoRepository { token: false, .. } => Failure::from_error(&error).hint(format!(
            "check the name; if the repository is private, {token}"
        )),
        Error::NoRepository { .. } => {
            Failure::from_error(&error).hint("check the name, and what the token may see")
        }
        Error::Gated { token: false, .. } => {
            Failure::from_error(&error).hint(format!("accept them, then {token}"))
        }
        Error::Network { .. } => Failure::from_error(&error)
            .hint("the same command goes on from what is there; HF_ENDPOINT names another server"),
        Error::DiskFull { .. } => Failure::from_error(&error)
            .hint("free some, or set HF_HUB_CACHE to a folder on a larger disk"),
        Error::WrongBytes { .. } => Failure::from_error(&error)
            .hint("a proxy or mirror between here and the hub may be changing files"),
        _ => Failure::from_error(&error),
    }
}

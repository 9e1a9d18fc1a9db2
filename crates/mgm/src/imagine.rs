//! `mgm imagine`: pictures from a prompt.

use serde::Serialize;

use crate::cli::ImagineArgs;
use crate::failure::Failure;
use crate::paint::{PictureFile, Studio, random_seed};
use crate::{interrupt, model, stdout};

/// What `--json` prints of each picture.
#[derive(Debug, Serialize)]
struct JsonPicture {
    file: String,
    seed: u64,
    width: u32,
    height: u32,
}

/// Runs the command.
pub(crate) fn run(args: ImagineArgs) -> Result<(), Failure> {
    if args.prompt.trim().is_empty() {
        return Err(Failure::usage("the PROMPT is empty"));
    }
    model::set_threads(args.threads)?;
    let count = args.count.get();
    let files = PictureFile::prepare_all(&args.output, count)?;
    let mut studio = Studio::open(&args.model, &args.paint)?;
    let seed = args.seed.unwrap_or_else(random_seed);
    let watch = interrupt::watch();
    let encoded = studio.encode(&args.prompt)?;
    let mut done = Vec::with_capacity(count);
    for (index, file) in files.iter().enumerate() {
        let seed = seed.wrapping_add(index as u64);
        let name = match count {
            1 => "steps".to_string(),
            _ => format!("steps of picture {} of {count}", index + 1),
        };
        let last = index + 1 == count;
        let interrupted = |failure: Failure| match failure.is_interruption() {
            true => Failure::interrupted(format!(
                "interrupted: {index} of {count} pictures are finished"
            )),
            false => failure,
        };
        if watch.stopped() {
            return Err(interrupted(Failure::interrupted("")));
        }
        let painted = studio
            .paint(&args.prompt, &encoded, seed, &name, last, &watch)
            .map_err(interrupted)?;
        file.write(&painted.png)?;
        if !args.json {
            stdout::write(format!("{}\n", file.path().display()))?;
        }
        done.push(JsonPicture {
            file: file.path().display().to_string(),
            seed: painted.seed,
            width: painted.image.width,
            height: painted.image.height,
        });
    }
    if args.json {
        stdout::write_json(&done)?;
    }
    Ok(())
}

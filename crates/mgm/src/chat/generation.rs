//! `--gen`: the model writes a prompt between `<h>` and `</h>`, the painter paints it.

use std::path::{Path, PathBuf};

use mgm_image::RgbImage;
use mgm_text::protocol;

use crate::cli::ChatArgs;
use crate::failure::Failure;
use crate::interrupt::Watch;
use crate::paint::{BUILT_IN_PAINTER, PictureFile, Studio, random_seed};

/// The painter of a chat, and where its pictures go.
pub(super) struct Generation {
    studio: Studio,
    output: PathBuf,
    seed: u64,
    painted: usize,
    last: Option<RgbImage>,
}

/// A picture that was painted and written.
pub(super) struct Picture {
    pub(super) file: PathBuf,
    pub(super) prompt: String,
    pub(super) seed: u64,
}

impl Generation {
    /// What `--gen` asks for, or `None` without it. Everything that can be checked before the model is loaded is.
    pub(super) fn open(args: &ChatArgs) -> Result<Option<Self>, Failure> {
        if !args.generate {
            let given = args
                .paint
                .first_given()
                .or(args.painter_output.as_ref().map(|_| "--output"));
            return match given {
                Some(flag) => Err(Failure::usage(format!(
                    "{flag} is for pictures: it needs --gen"
                ))),
                None => Ok(None),
            };
        }
        let painter = args.painter.as_deref().unwrap_or(BUILT_IN_PAINTER);
        let output = args
            .painter_output
            .clone()
            .unwrap_or_else(|| "generate.png".into());
        PictureFile::prepare(&output)?;
        Ok(Some(Self {
            studio: Studio::open(painter, &args.paint)?,
            output,
            seed: args.seed.unwrap_or_else(random_seed),
            painted: 0,
            last: None,
        }))
    }

    /// The picture prompt of an answer, if there is one.
    pub(super) fn prompt_of(answer: &str) -> Option<&str> {
        protocol::picture_prompt(answer).filter(|prompt| !prompt.trim().is_empty())
    }

    /// The picture painted last.
    pub(super) fn last(&self) -> Option<&RgbImage> {
        self.last.as_ref()
    }

    /// Paints a prompt, writes the picture and shows it. `only` says that no other will follow.
    pub(super) fn paint(
        &mut self,
        prompt: &str,
        only: bool,
        watch: &Watch,
    ) -> Result<Picture, Failure> {
        let file = PictureFile::prepare(&numbered(&self.output, self.painted))?;
        let encoded = self.studio.encode(prompt)?;
        let seed = self.seed.wrapping_add(self.painted as u64);
        let painted = self
            .studio
            .paint(prompt, &encoded, seed, "steps", only, watch)?;
        file.write(&painted.png)?;
        self.painted += 1;
        self.last = Some(painted.image);
        Ok(Picture {
            file: file.path().to_path_buf(),
            prompt: prompt.to_string(),
            seed,
        })
    }
}

/// The file of a conversation's pictures: the first has the name that was asked for, later ones a number.
fn numbered(path: &Path, before: usize) -> PathBuf {
    match before {
        0 => path.to_path_buf(),
        _ => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{stem}-{}.{extension}", before + 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_pictures_have_numbers() {
        assert_eq!(numbered(Path::new("a/b.png"), 0), Path::new("a/b.png"));
        assert_eq!(numbered(Path::new("a/b.png"), 1), Path::new("a/b-2.png"));
    }

    #[test]
    fn an_empty_prompt_is_none() {
        assert_eq!(
            Generation::prompt_of("Here: <h> a cat </h>"),
            Some(" a cat ")
        );
        assert_eq!(Generation::prompt_of("Here: <h> </h>"), None);
        assert_eq!(Generation::prompt_of("no"), None);
    }
}

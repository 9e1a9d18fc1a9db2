//! `mgm ocr`: the text in pictures; and what other commands need of it.

use std::path::Path;

use mgm_image::RgbImage;
use mgm_ocr::{Line, ModelFiles, OcrError, Page, Reader};
use serde::Serialize;

use crate::cli::OcrArgs;
use crate::failure::Failure;
use crate::interrupt::Watch;
use crate::{interrupt, meter, model, stdout};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct JsonPictures {
    pictures: Vec<JsonPicture>,
}

/// One picture: its size, direction and lines, or why it could not be read.
#[derive(Debug, Serialize)]
struct JsonPicture {
    picture: String,
    #[serde(flatten)]
    outcome: JsonOutcome,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum JsonOutcome {
    Read {
        width: u32,
        height: u32,
        angle: f32,
        lines: Vec<JsonLine>,
    },
    Failed {
        error: String,
    },
}

/// One line of text.
#[derive(Debug, Serialize)]
pub(crate) struct JsonLine {
    text: String,
    confidence: f32,
    corners: [[f32; 2]; 4],
    angle: f32,
}

impl From<Line> for JsonLine {
    fn from(line: Line) -> Self {
        // Hundredths of a pixel and of a degree; the rest is noise.
        let hundredths = |value: f32| (value * 100.0).round() / 100.0;
        Self {
            text: line.text,
            confidence: (line.confidence * 1e5).round() / 1e5,
            corners: line.corners.map(|corner| corner.map(hundredths)),
            angle: hundredths(line.angle),
        }
    }
}

/// Runs the command. A picture that cannot be read does not keep the others from being read.
pub(crate) fn run(args: OcrArgs) -> Result<(), Failure> {
    model::set_threads(args.threads)?;
    let reader = open(args.models.ocr_models.as_deref())?;
    let watch = interrupt::watch();
    let count = args.images.len();
    let mut pictures = Vec::with_capacity(count);
    let mut failed = 0;
    for (index, source) in args.images.iter().enumerate() {
        let name = source.to_string();
        let title = match count {
            1 => "reading the text".to_string(),
            _ => format!("reading picture {} of {count}", index + 1),
        };
        let read = source.load().and_then(|image| {
            let page = read(&reader, &image, title, &watch).map_err(|failure| {
                match failure.is_interruption() {
                    true => failure,
                    false => failure.about(&name),
                }
            })?;
            Ok((image, page))
        });
        let outcome = match read {
            Ok((image, mut page)) => {
                page.lines.retain(|line| line.confidence >= args.threshold);
                if !args.json {
                    print(&name, count, index, &page)?;
                }
                JsonOutcome::Read {
                    width: image.width,
                    height: image.height,
                    angle: (page.angle * 100.0).round() / 100.0,
                    lines: page.lines.into_iter().map(JsonLine::from).collect(),
                }
            }
            Err(failure) if failure.is_interruption() => {
                return Err(Failure::interrupted(format!(
                    "interrupted: {index} of {count} pictures are read"
                )));
            }
            // The only picture: its failure is the command's.
            Err(failure) if count == 1 => return Err(failure),
            Err(failure) => {
                failure.print();
                failed += 1;
                JsonOutcome::Failed {
                    error: failure.message().to_string(),
                }
            }
        };
        pictures.push(JsonPicture {
            picture: name,
            outcome,
        });
    }
    if args.json {
        stdout::write_json(&JsonPictures { pictures })?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::failed(format!(
            "{failed} of {count} pictures could not be read"
        ))),
    }
}

/// The lines, under the picture's name where there are several, as `head` does it.
fn print(name: &str, count: usize, index: usize, page: &Page) -> Result<(), Failure> {
    let mut text = String::new();
    if count > 1 {
        let gap = if index > 0 { "\n" } else { "" };
        text.push_str(&format!("{gap}==> {name} <==\n"));
    }
    for line in &page.lines {
        text.push_str(&line.text);
        text.push('\n');
    }
    if page.lines.is_empty() {
        note!("{name}: no text found");
    }
    stdout::write(text)
}

/// Loads the networks from `models`, or from where they usually are.
pub(crate) fn open(models: Option<&Path>) -> Result<Reader, Failure> {
    Ok(ModelFiles::find(models).and_then(|files| Reader::load(&files))?)
}

/// Reads a picture under a spinner.
pub(crate) fn read(
    reader: &Reader,
    image: &RgbImage,
    title: String,
    watch: &Watch,
) -> Result<Page, Failure> {
    let spinner = meter::spinner(title);
    let page = reader.read(image, watch.flag());
    spinner.finish_and_clear();
    Ok(page?)
}

impl From<OcrError> for Failure {
    fn from(error: OcrError) -> Self {
        let failure = Self::from_error(&error);
        match error {
            OcrError::NotFound { .. } => failure.hint(
                "tools/fetch_ocr.sh brings them there; --ocr-models DIR names another folder",
            ),
            OcrError::Directory { .. } | OcrError::Ambiguous { .. } => {
                failure.hint("tools/fetch_ocr.sh DIR brings them")
            }
            OcrError::Interrupted => Self::interrupted("interrupted"),
            _ => failure,
        }
    }
}

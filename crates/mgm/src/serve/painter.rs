//! The model that paints, as the server uses it.

use std::sync::{Arc, Mutex, PoisonError};

use mgm_server::{PaintError, PaintOrder, PaintProgress, Painter};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::args::PainterArgs;
use crate::failure::Failure;
use crate::paint::{BUILT_IN_PAINTER, Commission, Studio};

/// Name of no painter at all.
const NO_PAINTER: &str = "none";
/// How much painting gives way to answering: a text is waited for word by word, a picture as a whole. Idle cores paint at full speed.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// A painter with threads of its own. In the pool that answers are made with, every token would wait for whole convolutions.
pub(super) struct ServedPainter {
    name: String,
    sizes: Vec<(u32, u32)>,
    steps: usize,
    studio: Mutex<Studio>,
    threads: ThreadPool,
}

impl ServedPainter {
    /// Opens the painter that the flags name, or beside the built-in model the built-in painter, and checks everything that can be checked
    /// without painting.
    pub(super) fn open(
        args: &PainterArgs,
        built_in: bool,
    ) -> Result<Option<Arc<dyn Painter>>, Failure> {
        let paint = args.paint_args();
        let model = match args.painter.as_deref() {
            Some(NO_PAINTER) => None,
            None if built_in => Some(BUILT_IN_PAINTER),
            named => named,
        };
        let Some(model) = model else {
            return match paint.first_given() {
                Some(flag) => Err(Failure::usage(format!(
                    "{} is for pictures: it needs --painter",
                    flag.replacen("--", "--painter-", 1)
                ))),
                None => Ok(None),
            };
        };
        let studio = Studio::open(model, &paint)?;
        let threads = ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|index| format!("painter-{index}"))
            .start_handler(|_| give_way())
            .build()
            .map_err(|error| {
                Failure::failed(format!("the painter's threads cannot be started: {error}"))
            })?;
        let name = model
            .trim_end_matches(['/', '\\'])
            .rsplit(['/', '\\'])
            .next();
        Ok(Some(Arc::new(Self {
            name: name.unwrap_or(model).to_owned(),
            sizes: studio.sizes(),
            steps: studio.steps(),
            studio: Mutex::new(studio),
            threads,
        })))
    }
}

/// Lowers this thread's priority; where the system has no such thing for threads, cores are shared evenly.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        // Without a number Linux takes the calling thread. That it may not is no reason to paint nothing.
        let _ = rustix::process::setpriority_process(None, NICENESS);
    }
}

impl Painter for ServedPainter {
    fn name(&self) -> &str {
        &self.name
    }

    fn sizes(&self) -> &[(u32, u32)] {
        &self.sizes
    }

    fn paint(
        &self,
        order: &PaintOrder,
        cancelled: &(dyn Fn() -> bool + Sync),
        progress: &mut (dyn FnMut(PaintProgress) + Send),
    ) -> Result<Vec<u8>, PaintError> {
        // The studio keeps nothing of a picture that could be half done.
        let mut studio = self.studio.lock().unwrap_or_else(PoisonError::into_inner);
        let studio = &mut *studio;
        let commission = Commission {
            prompt: &order.prompt,
            size: order.size,
            seed: order.seed,
            preview_every: order.preview_every,
        };
        progress(PaintProgress {
            step: 0,
            steps: self.steps,
            preview: None,
        });
        let painted = self.threads.install(|| {
            studio.paint_silently(&commission, cancelled, &mut |told| {
                let preview = told.previews.first();
                progress(PaintProgress {
                    step: told.step,
                    steps: told.steps,
                    // A preview that cannot be written is no reason to lose the picture.
                    preview: preview.and_then(|image| mgm_image::encode_png(image, &[]).ok()),
                });
            })
        });
        match painted {
            Ok(painted) => Ok(painted.png),
            Err(failure) if failure.is_interruption() => Err(PaintError::Cancelled),
            Err(failure) => Err(PaintError::Failed(failure.message().to_string())),
        }
    }
}

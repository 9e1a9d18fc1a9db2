//! `mgm train`: runs a recipe.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use mgm_train::{
    AnyRecipe, Outcome, PainterTrainer, Progress, ProgressSink, ResumeFrom, Status, Trainer,
};

use crate::cli::TrainArgs;
use crate::failure::Failure;
use crate::interrupt::{self, Watch};
use crate::{model, stdout};

/// Steps between two lines when stderr is no terminal.
const LINE_STEPS: u64 = 20;

/// Runs the command.
pub(crate) fn run(args: TrainArgs) -> Result<(), Failure> {
    model::set_threads(args.threads)?;
    let watch = interrupt::watch();
    let meter = Meter::new(&watch, args.steps);
    let outcome: Result<Outcome, _> = match AnyRecipe::from_file(&args.recipe)? {
        AnyRecipe::Model(recipe) => {
            let mut trainer = Trainer::new(*recipe)?;
            if args.resume {
                trainer = trainer.resume(ResumeFrom::Latest)?;
            }
            note!("{}", trainer.describe());
            trainer.run(&meter, watch.flag())
        }
        AnyRecipe::Painter(recipe) => {
            let mut trainer = PainterTrainer::new(*recipe)?;
            if args.resume {
                trainer = trainer.resume()?;
            }
            note!("{}", trainer.describe());
            trainer.run(&meter, watch.flag())
        }
    };
    meter.finish();
    let outcome = outcome?;
    stdout::write(format!(
        "step {} of {}, loss {:.4}, {}\n",
        outcome.step,
        outcome.total,
        outcome.smoothed_loss,
        outcome.result.display()
    ))?;
    match outcome.status {
        Status::Interrupted if !meter.reached_limit.get() => Err(Failure::interrupted(format!(
            "interrupted at step {}; --resume goes on from {}",
            outcome.step,
            outcome.checkpoint.display()
        ))),
        Status::Interrupted | Status::Finished => Ok(()),
    }
}

impl From<mgm_train::TrainError> for Failure {
    fn from(error: mgm_train::TrainError) -> Self {
        Self::from_error(&error)
    }
}

/// A bar on a terminal, a line now and then elsewhere; raises the stop flag when the step limit is reached.
struct Meter<'watch> {
    watch: &'watch Watch,
    limit: Option<u64>,
    reached_limit: Cell<bool>,
    bar: RefCell<Option<ProgressBar>>,
}

impl<'watch> Meter<'watch> {
    fn new(watch: &'watch Watch, limit: Option<NonZeroUsize>) -> Self {
        Self {
            watch,
            limit: limit.map(|limit| limit.get() as u64),
            reached_limit: Cell::new(false),
            bar: RefCell::new(None),
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl ProgressSink for Meter<'_> {
    fn step(&self, progress: &Progress) {
        if self.limit.is_some_and(|limit| progress.step >= limit) && progress.step < progress.total
        {
            self.reached_limit.set(true);
            self.watch.raise();
        }
        let mut bar = self.bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| new_bar(progress.total));
        if !bar.is_hidden() {
            bar.set_message(describe(progress));
            bar.set_position(progress.step);
        } else if progress.step == 1
            || progress.step.is_multiple_of(LINE_STEPS)
            || progress.step == progress.total
        {
            note!(
                "step {}/{} {}",
                progress.step,
                progress.total,
                describe(progress)
            );
        }
    }

    fn note(&self, message: &str) {
        match self.bar.borrow().as_ref() {
            Some(bar) if !bar.is_hidden() => bar.println(message),
            _ => note!("{message}"),
        }
    }
}

fn new_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn describe(progress: &Progress) -> String {
    format!(
        "loss {:.4} (mean {:.4}) · {:.0} {}/s · {} left",
        progress.loss,
        progress.smoothed_loss,
        progress.per_second,
        progress.unit,
        HumanDuration(Duration::from_secs(progress.time_left.as_secs()))
    )
}

//! The stages, one after another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::Tensor;
use mgm_image::{Limits, PreparedImage, RgbImage};
use mini_gemini::decoder::{Context, Decoder, KvCache};
use mini_gemini::{TowerFeatures, Vision};

use crate::ceilings::Ceilings;
use crate::error::{Error, Result};
use crate::gate::{self, Others};
use crate::machine::{Machine, peak_memory};
use crate::options::{Options, Progress, Stage};
use crate::report::{Cell, ModelInfo, Report};
use crate::subject::{Loaded, Subject};
use crate::timing::{Spread, measure, timed};
use crate::work::{Counter, Work};

/// Rows that go through the decoder at once, as in a conversation.
const PREFILL_ROWS: usize = 768;

/// The picture that is looked at unless another is given.
static PICTURE: &[u8] = include_bytes!("../../../examples/coffee.jpg");

/// Loads the model, measures the machine and then every stage. `progress` is told what is being done. When `stop` is raised the report holds
/// what was measured until then.
///
/// # Errors
/// When the model or the picture cannot be loaded, or an option does not fit the model.
pub fn run(
    subject: &Subject,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
    stop: &AtomicBool,
) -> Result<Report> {
    let bytes = match &options.picture {
        None => PICTURE.to_vec(),
        Some(path) => std::fs::read(path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?,
    };
    let picture = mgm_image::decode(&bytes, &Limits::default())?;
    let visual = options.stages.iter().any(|stage| stage.is_visual());
    progress(Progress::Loading("the model"));
    let model = subject.load(visual, &mut |text| progress(Progress::Note(text)))?;
    check_lengths(options, &model)?;

    progress(Progress::Ceilings);
    if let Some(most) = options.gate {
        gate::wait(most, stop);
    }
    let info = ModelInfo {
        name: model.name.clone(),
        weights: model.weights_name.clone(),
        visual_tokens: model.vision().map(Vision::tokens_per_image),
    };
    let report = Report::new(Machine::this(), Ceilings::measure(), info);
    let mut bench = Bench {
        model: &model,
        counter: Counter::new(&model),
        options,
        progress,
        stop,
        report,
    };
    bench.see(&bytes, &picture)?;
    bench.speak()?;
    bench.first_token(&bytes)?;
    let mut report = bench.report;
    report.peak_memory = peak_memory();
    report.interrupted = stop.load(Ordering::SeqCst);
    Ok(report)
}

fn check_lengths(options: &Options, model: &Loaded) -> Result<()> {
    let limit = model.positions();
    let lengths = [
        (Stage::Prefill, "prefill", &options.prefill, 0),
        (Stage::Decode, "a context", &options.context, 1),
    ];
    for (stage, what, lengths, more) in lengths {
        let too_long = lengths.iter().find(|&&length| length + more > limit);
        if let (true, Some(&value)) = (options.stages.contains(&stage), too_long) {
            return Err(Error::TooLong { what, value, limit });
        }
    }
    Ok(())
}

struct Bench<'a> {
    model: &'a Loaded,
    counter: Counter<'a>,
    options: &'a Options,
    progress: &'a mut dyn FnMut(Progress),
    stop: &'a AtomicBool,
    report: Report,
}

impl Bench<'_> {
    fn wants(&self, stage: Stage) -> bool {
        self.options.stages.contains(&stage)
            && !self.stop.load(Ordering::SeqCst)
            && (!stage.is_visual() || self.model.vision().is_some())
    }

    /// Measures `run`, which tells the time to be counted.
    fn cell(
        &mut self,
        name: String,
        work: Option<Work>,
        tokens: Option<usize>,
        run: impl FnMut() -> Result<Duration>,
    ) -> Result<()> {
        if let Some(most) = self.options.gate {
            (self.progress)(Progress::Waiting(&name));
            gate::wait(most, self.stop);
        }
        (self.progress)(Progress::Measuring(&name));
        let stop = self.stop;
        let others = Others::watch();
        let seconds = measure(self.options.runs, &|| !stop.load(Ordering::SeqCst), run)?;
        let Some(time) = Spread::of(&seconds) else {
            return Ok(());
        };
        let cell = Cell {
            name,
            time,
            seconds,
            tokens,
            floor: work.map(|work| work.floor(&self.report.ceilings)),
            others: others.share(),
        };
        (self.progress)(Progress::Done(&cell));
        self.report.cells.push(cell);
        Ok(())
    }

    /// From a picture's bytes to visual tokens.
    fn see(&mut self, bytes: &[u8], picture: &RgbImage) -> Result<()> {
        let Some(vision) = self.model.vision() else {
            return Ok(());
        };
        let preprocess = vision.preprocess();
        let size = format!("{}×{}", picture.width, picture.height);
        if self.wants(Stage::DecodePicture) {
            self.cell(format!("decode picture {size}"), None, None, || {
                timed(|| mgm_image::decode(bytes, &Limits::default()))
            })?;
        }
        if self.wants(Stage::Preprocess) {
            self.cell(format!("preprocess {size}"), None, None, || {
                timed(|| mgm_image::prepare(picture, preprocess))
            })?;
        }
        let visual_stages = [Stage::LowRes, Stage::HighRes, Stage::Mining];
        if !visual_stages.into_iter().any(|stage| self.wants(stage)) {
            return Ok(());
        }
        let prepared = mgm_image::prepare(picture, preprocess)?;
        if self.wants(Stage::LowRes) {
            let work = self.counter.low_res();
            let name = format!("low-res tower {}", preprocess.low_res_size);
            let name = match prepared.views {
                1 => name,
                views => format!("{name}, {views} views"),
            };
            self.cell(name, Some(work), None, || {
                timed(|| vision.low_res_features(&prepared, &mut || Ok(())))
            })?;
        }
        if self.wants(Stage::HighRes) {
            let work = self.counter.high_res();
            let name = format!("high-res tower {}", preprocess.high_res_size);
            self.cell(name, Some(work), None, || {
                timed(|| vision.high_res_features(&prepared, &mut || Ok(())))
            })?;
        }
        if self.wants(Stage::Mining) {
            let work = self.counter.mining();
            let features = vision.tower_features(&prepared)?;
            self.cell("mining + projector".into(), Some(work), None, || {
                timed(|| vision.visual_tokens(&features))
            })?;
        }
        Ok(())
    }

    /// The language model.
    fn speak(&mut self) -> Result<()> {
        let decoder = self.model.decoder();
        if self.wants(Stage::Prefill) {
            for &length in &self.options.prefill {
                let ids = ids(decoder, length);
                let work = self.counter.language(0, length, 1);
                self.cell(
                    format!("prefill {length}"),
                    Some(work),
                    Some(length),
                    || {
                        let mut cache = decoder.new_cache();
                        timed(|| read(decoder, &mut cache, &ids))
                    },
                )?;
            }
        }
        if !self.wants(Stage::Decode) {
            return Ok(());
        }
        for (index, &context) in self.options.context.iter().enumerate() {
            for &batch in &self.options.batch {
                if batch > 1 && index > 0 || !self.wants(Stage::Decode) {
                    continue;
                }
                self.decode(context, batch)?;
            }
        }
        Ok(())
    }

    fn decode(&mut self, context: usize, batch: usize) -> Result<()> {
        let decoder = self.model.decoder();
        let mut caches: Vec<KvCache> = (0..batch).map(|_| decoder.new_cache()).collect();
        let prompt = ids(decoder, context);
        for cache in &mut caches {
            read(decoder, cache, &prompt)?;
        }
        let next = ids(decoder, batch);
        let work = self.counter.language(context, 1, batch);
        let name = match batch {
            1 => format!("decode after {context}"),
            _ => format!("decode {batch} after {context}"),
        };
        self.cell(name, Some(work), Some(batch), || {
            let time = timed(|| {
                let mut rows: Vec<(&mut KvCache, usize)> =
                    caches.iter_mut().map(|cache| (cache, 1)).collect();
                let embedded = decoder.embed(&next)?;
                let hidden = decoder.hidden(&embedded, &mut Context::Cached(&mut rows))?;
                decoder.logits(&hidden)
            });
            for cache in &mut caches {
                cache.truncate(context);
            }
            time
        })
    }

    /// The whole way: a picture's bytes and a question to the first token's logits.
    fn first_token(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(vision) = self.model.vision() else {
            return Ok(());
        };
        if !self.wants(Stage::FirstToken) {
            return Ok(());
        }
        let decoder = self.model.decoder();
        let question = ids(decoder, self.options.question);
        let visual = vision.tokens_per_image();
        let work = self
            .counter
            .low_res()
            .and(self.counter.high_res())
            .and(self.counter.mining())
            .and(self.counter.language(0, visual + question.len(), 1));
        let name = format!("first token: picture + {}", question.len());
        self.cell(name, Some(work), None, || {
            timed(|| {
                let picture = mgm_image::decode(bytes, &Limits::default())?;
                let prepared: PreparedImage = mgm_image::prepare(&picture, vision.preprocess())?;
                let features: TowerFeatures = vision.tower_features(&prepared)?;
                let tokens = vision.visual_tokens(&features)?;
                let mut cache = decoder.new_cache();
                let question = decoder.embed(&question)?;
                let prompt =
                    Tensor::cat(&[&tokens, &question], 0).map_err(mini_gemini::Error::from)?;
                read_rows(decoder, &mut cache, &prompt)
            })
        })
    }
}

/// Ids that differ from each other, as far as there are any.
fn ids(decoder: &Decoder, count: usize) -> Vec<u32> {
    let vocabulary = decoder.config().vocab_size;
    let id = |index: usize| ((index * 7919 + 13) % vocabulary) as u32;
    (0..count).map(id).collect()
}

/// Reads ids behind what the cache holds, up to the logits after the last one.
fn read(decoder: &Decoder, cache: &mut KvCache, ids: &[u32]) -> Result<()> {
    read_rows(decoder, cache, &decoder.embed(ids)?)
}

/// Reads embeddings behind what the cache holds, as a conversation does: up to the logits after the last one.
fn read_rows(decoder: &Decoder, cache: &mut KvCache, embeddings: &Tensor) -> Result<()> {
    let rows = embeddings.dim(0).map_err(mini_gemini::Error::from)?;
    for start in (0..rows).step_by(PREFILL_ROWS) {
        let end = rows.min(start + PREFILL_ROWS);
        let block = embeddings
            .narrow(0, start, end - start)
            .map_err(mini_gemini::Error::from)?;
        let mut caches = [(&mut *cache, end - start)];
        let wanted = usize::from(end == rows);
        let last = decoder.hidden_tails(&block, &mut caches, &[wanted], &mut || Ok(()))?;
        if wanted > 0 {
            decoder.logits(&last)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mini_gemini::{LoadOptions, ModelSource};

    fn built_in() -> Subject {
        Subject::Model {
            source: ModelSource::BuiltIn,
            options: LoadOptions::default(),
        }
    }

    fn few(stages: &[Stage]) -> Options {
        Options {
            stages: stages.to_vec(),
            prefill: vec![8],
            context: vec![4, 6],
            batch: vec![1, 2],
            question: 3,
            runs: 1,
            gate: None,
            picture: None,
        }
    }

    #[test]
    fn every_stage_of_the_built_in_model_is_measured() {
        let mut done = 0;
        let stop = AtomicBool::new(false);
        let report = run(
            &built_in(),
            &few(&Stage::ALL),
            &mut |progress| done += usize::from(matches!(progress, Progress::Done(_))),
            &stop,
        )
        .unwrap();
        let names: Vec<&str> = report.cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "decode picture 600×400",
                "preprocess 600×400",
                "low-res tower 112",
                "high-res tower 256",
                "mining + projector",
                "prefill 8",
                "decode after 4",
                "decode 2 after 4",
                "decode after 6",
                "first token: picture + 3",
            ]
        );
        assert_eq!(done, names.len());
        for cell in &report.cells {
            assert!(cell.time.min > 0.0, "{cell:?}");
            // Nothing is faster than the floor, or the floor is none.
            assert!(
                cell.over_floor().is_none_or(|ratio| ratio > 1.0),
                "{cell:?}"
            );
        }
        assert_eq!(report.cells[7].tokens, Some(2));
        assert!(!report.interrupted && report.peak_memory.is_none_or(|peak| peak > 0));
    }

    #[test]
    fn a_stop_ends_it_and_keeps_what_there_is() {
        let stop = AtomicBool::new(false);
        let mut first = None;
        let report = run(
            &built_in(),
            &few(&[Stage::Preprocess, Stage::Prefill, Stage::Decode]),
            &mut |progress| {
                if let Progress::Done(cell) = progress {
                    first.get_or_insert_with(|| cell.name.clone());
                    stop.store(true, Ordering::SeqCst);
                }
            },
            &stop,
        )
        .unwrap();
        assert!(report.interrupted);
        assert_eq!(report.cells.len(), 1);
        assert_eq!(first.as_deref(), Some("preprocess 600×400"));
    }

    #[test]
    fn lengths_beyond_the_model_are_refused() {
        let mut options = few(&[Stage::Decode]);
        options.context = vec![8192];
        let error = run(&built_in(), &options, &mut |_| {}, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a context of 8192 tokens: the model has 8192 positions"
        );
    }
}

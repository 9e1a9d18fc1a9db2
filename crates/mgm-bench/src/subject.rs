//! The model that is measured.

use mgm_nn::{WeightPolicy, WeightSource};
use mini_gemini::decoder::{Decoder, DecoderConfig};
use mini_gemini::{
    LoadEvent, LoadOptions, MiniGemini, ModelConfig, ModelSource, Precision, Vision,
};

use crate::error::Result;
use crate::shape::{Shape, WeightFormat, tensors};

/// Seed of random weights.
const SEED: u64 = 1;

/// Which model to measure.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A released model's shape with random weights.
    Random {
        /// Which.
        shape: Shape,
        /// Its HD configuration.
        hd: bool,
        /// How the language model's matrices are stored.
        format: WeightFormat,
        /// In what precision they are held.
        precision: Precision,
    },
    /// A model of files.
    Model {
        /// Which.
        source: ModelSource,
        /// How it is loaded.
        options: LoadOptions,
    },
}

/// A loaded model, as far as it is measured.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) weights_name: String,
    pub(crate) precision: Precision,
    parts: Parts,
}

enum Parts {
    Random(Box<RandomParts>),
    Whole(Box<MiniGemini>),
}

struct RandomParts {
    config: ModelConfig,
    decoder: Decoder,
    vision: Option<Vision>,
    weights: WeightSource,
}

impl Subject {
    /// Loads it. `vision` says whether the visual part is wanted at all.
    pub(crate) fn load(&self, vision: bool, note: &mut dyn FnMut(&str)) -> Result<Loaded> {
        match self {
            Self::Random {
                shape,
                hd,
                format,
                precision,
            } => {
                let config = shape.config(*hd).map_err(|error| {
                    mini_gemini::Error::Input(format!("the shape's configuration: {error}"))
                })?;
                let weights = WeightSource::from_random(tensors(&config, format, SEED)?)
                    .with_policy(WeightPolicy {
                        storage: precision.storage(),
                        ..WeightPolicy::default()
                    });
                let sizes = config.decoder("the shape's configuration".as_ref())?;
                let decoder = Decoder::load(sizes, &weights)?;
                let vision = match vision {
                    true => Vision::load(&config, &weights)?,
                    false => None,
                };
                Ok(Loaded {
                    name: shape.release(*hd),
                    weights_name: match precision {
                        Precision::Auto => format!("random {}", format.element_type()),
                        _ => format!("random {} as {}", format.element_type(), name(*precision)),
                    },
                    precision: *precision,
                    parts: Parts::Random(Box::new(RandomParts {
                        config,
                        decoder,
                        vision,
                        weights,
                    })),
                })
            }
            Self::Model { source, options } => {
                let model = MiniGemini::load_with_progress(source, options, &mut |event| {
                    if let LoadEvent::Note(text) = event {
                        note(text);
                    }
                })?;
                Ok(Loaded {
                    name: model.name().to_string(),
                    weights_name: name(options.precision).into(),
                    precision: options.precision,
                    parts: Parts::Whole(Box::new(model)),
                })
            }
        }
    }
}

impl Loaded {
    pub(crate) fn config(&self) -> &ModelConfig {
        match &self.parts {
            Parts::Random(parts) => &parts.config,
            Parts::Whole(model) => model.config(),
        }
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        match &self.parts {
            Parts::Random(parts) => &parts.decoder,
            Parts::Whole(model) => model.decoder(),
        }
    }

    pub(crate) fn sizes(&self) -> &DecoderConfig {
        self.decoder().config()
    }

    pub(crate) fn vision(&self) -> Option<&Vision> {
        match &self.parts {
            Parts::Random(parts) => parts.vision.as_ref(),
            Parts::Whole(model) => model.vision(),
        }
    }

    pub(crate) fn weights(&self) -> &WeightSource {
        match &self.parts {
            Parts::Random(parts) => &parts.weights,
            Parts::Whole(model) => model.weights(),
        }
    }

    /// Positions there are.
    pub(crate) fn positions(&self) -> usize {
        let config = self.config();
        config
            .max_position_embeddings
            .unwrap_or_else(|| config.context_limit())
    }
}

fn name(precision: Precision) -> &'static str {
    match precision {
        Precision::Auto => "as stored",
        Precision::F32 => "F32",
        Precision::Bf16 => "BF16",
        Precision::F16 => "F16",
        Precision::Int8 => "INT8",
    }
}

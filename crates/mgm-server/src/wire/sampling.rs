//! The fields that chat and text completions share.

use std::collections::BTreeMap;

use mgm_engine::Sampling;
use serde::Deserialize;
use serde::de::MapAccess;

use crate::error::ApiError;
use crate::options::{Limits, SamplingDefaults};
use crate::wire::object::{Object, Refusals, Strings, read, skip};

/// Most stop texts, as in OpenAI's API.
const STOP_TEXTS: usize = 4;
/// Longest stop text in bytes.
const STOP_TEXT_BYTES: usize = 1 << 10;
/// Most likeliest tokens told with each token, as in OpenAI's API.
const TOP_LOGPROBS: u64 = 20;

/// What chat and text completions have in common.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) model: Option<String>,
    pub(crate) stream: bool,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
    max_tokens: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Vec<String>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: BTreeMap<String, f32>,
    pub(crate) refusals: Refusals,
}

#[derive(Debug, Default)]
struct StreamOptions {
    include_usage: bool,
}

impl Object for StreamOptions {
    const WHAT: &'static str = "an object";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "include_usage" => self.include_usage = value(map)?.unwrap_or_default(),
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for StreamOptions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

/// A value that may be `null`, which is the same as leaving the field out.
pub(crate) fn value<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    map: &mut A,
) -> Result<Option<T>, A::Error> {
    map.next_value()
}

impl Shared {
    /// Takes a field if it is one of these; whether it was.
    pub(crate) fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<bool, A::Error> {
        match name {
            "model" => self.model = value(map)?,
            "stream" => self.stream = value(map)?.unwrap_or_default(),
            "stream_options" => self.stream_options = value(map)?,
            "n" => self.n = value(map)?,
            // The newer name of the same thing.
            "max_tokens" | "max_completion_tokens" => {
                self.max_tokens = value(map)?.or(self.max_tokens);
            }
            "temperature" => self.temperature = value(map)?,
            "top_p" => self.top_p = value(map)?,
            "top_k" => self.top_k = value(map)?,
            "seed" => self.seed = value(map)?,
            "stop" => {
                let stop: Option<Strings<STOP_TEXTS>> = value(map)?;
                self.stop = stop.map(|stop| stop.0).unwrap_or_default();
            }
            "presence_penalty" => self.presence_penalty = value(map)?,
            "frequency_penalty" => self.frequency_penalty = value(map)?,
            "logit_bias" => self.logit_bias = value(map)?.unwrap_or_default(),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether a streamed answer ends with its usage.
    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage)
    }

    /// Answers wanted to each prompt; `prompts` of them are asked.
    pub(crate) fn choices(&self, prompts: usize, limits: &Limits) -> Result<usize, ApiError> {
        let n = self.n.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::invalid("n", "`n` is 0: expected 1 or more"));
        }
        let total = usize::try_from(n)
            .unwrap_or(usize::MAX)
            .saturating_mul(prompts.max(1));
        if total > limits.choices {
            let message = match prompts {
                0 | 1 => format!(
                    "`n` is {n}: this server gives at most {} answers",
                    limits.choices
                ),
                _ => format!(
                    "`n` is {n} for {prompts} prompts: this server gives at most {} answers",
                    limits.choices
                ),
            };
            return Err(ApiError::invalid("n", message));
        }
        Ok(n as usize)
    }

    /// Everything that the engine's sampling needs; `logprobs` likeliest tokens with each.
    pub(crate) fn sampling(
        &self,
        logprobs: Option<u64>,
        defaults: &SamplingDefaults,
        limits: &Limits,
    ) -> Result<Sampling, ApiError> {
        self.refusals.check()?;
        if self.stream_options.is_some() && !self.stream {
            return Err(ApiError::invalid(
                "stream_options",
                "`stream_options` goes only with `stream: true`",
            ));
        }
        let in_range = |name: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => Err(ApiError::invalid(
                name,
                format!("`{name}` is {value}: expected {low} to {high}"),
            )),
            value => Ok(value),
        };
        let top_p = in_range("top_p", self.top_p, 0.0, 1.0)?;
        Ok(Sampling {
            temperature: in_range("temperature", self.temperature, 0.0, 2.0)?
                .unwrap_or(defaults.temperature),
            // The likeliest token always stays, so 0 means that one alone.
            top_p: top_p.unwrap_or(defaults.top_p).max(f32::MIN_POSITIVE),
            top_k: match self.top_k {
                None => defaults.top_k,
                // Both are customary for no limit.
                Some(0 | -1) => None,
                Some(k) => Some(usize::try_from(k).map_err(|_| {
                    ApiError::invalid(
                        "top_k",
                        format!("`top_k` is {k}: expected 1 or more, or 0 for no limit"),
                    )
                })?),
            },
            // Any 64 bits will do; the sign is one of them.
            seed: self.seed.map(|seed| seed as u64),
            max_new_tokens: Some(self.max_new_tokens(defaults, limits)?),
            stop: self.stop_texts()?,
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            logit_bias: self.biases()?,
            logprobs: match logprobs {
                Some(count) if count > TOP_LOGPROBS => {
                    return Err(ApiError::invalid(
                        "top_logprobs",
                        format!("{count} likeliest tokens: expected at most {TOP_LOGPROBS}"),
                    ));
                }
                logprobs => logprobs.map(|count| count as usize),
            },
            ..Sampling::default()
        })
    }

    fn max_new_tokens(
        &self,
        defaults: &SamplingDefaults,
        limits: &Limits,
    ) -> Result<usize, ApiError> {
        let Some(asked) = self.max_tokens else {
            return Ok(defaults.max_tokens.min(limits.max_tokens));
        };
        match usize::try_from(asked) {
            Ok(asked) if (1..=limits.max_tokens).contains(&asked) => Ok(asked),
            _ => Err(ApiError::invalid(
                "max_tokens",
                format!(
                    "`max_tokens` is {asked}: expected 1 to {}",
                    limits.max_tokens
                ),
            )),
        }
    }

    fn stop_texts(&self) -> Result<Vec<String>, ApiError> {
        match self
            .stop
            .iter()
            .find(|text| text.is_empty() || text.len() > STOP_TEXT_BYTES)
        {
            None => Ok(self.stop.clone()),
            Some(_) => Err(ApiError::invalid(
                "stop",
                format!("a stop text is empty or longer than {STOP_TEXT_BYTES} bytes"),
            )),
        }
    }

    fn biases(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let bias = |(id, bias): (&String, &f32)| {
            let id: u32 = id.parse().map_err(|_| {
                ApiError::invalid(
                    "logit_bias",
                    format!("`{id}` is no token id: expected a whole number"),
                )
            })?;
            if !(-100.0..=100.0).contains(bias) {
                return Err(ApiError::invalid(
                    "logit_bias",
                    format!("the bias of token {id} is {bias}: expected -100 to 100"),
                ));
            }
            Ok((id, *bias))
        };
        self.logit_bias.iter().map(bias).collect()
    }
}

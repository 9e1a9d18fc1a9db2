//! Ranges of options.

use mini_gemini::MiniGemini;

use crate::error::{StartError, SubmitError};
use crate::options::EngineOptions;
use crate::request::Request;

/// Checks an engine's options.
pub(crate) fn options(options: &EngineOptions) -> Result<(), StartError> {
    for (name, value) in [
        ("max_running", options.max_running),
        ("max_queued", options.max_queued),
        ("prefill_rows", options.prefill_rows),
        ("max_choices", options.max_choices),
    ] {
        if value == 0 {
            return Err(StartError::InvalidOption {
                name,
                value: "0".into(),
                expected: "1 or more",
            });
        }
    }
    Ok(())
}

/// Checks a request's options; names are those of OpenAI's API.
pub(crate) fn request(
    request: &Request,
    options: &EngineOptions,
    model: &MiniGemini,
) -> Result<(), SubmitError> {
    let sampling = &request.sampling;
    let refuse = |name, value: String, expected: String| {
        Err(SubmitError::InvalidOption {
            name,
            value,
            expected,
        })
    };
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        let expected = "a number of 0 or more".into();
        return refuse("temperature", sampling.temperature.to_string(), expected);
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        let expected = "a number above 0 and at most 1".into();
        return refuse("top_p", sampling.top_p.to_string(), expected);
    }
    if sampling.top_k == Some(0) {
        return refuse("top_k", "0".into(), "1 or more".into());
    }
    if sampling.max_new_tokens == Some(0) {
        return refuse("max_tokens", "0".into(), "1 or more".into());
    }
    for (name, value) in [
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ] {
        if !(-2.0..=2.0).contains(&value) {
            let expected = "a number from -2 to 2".into();
            return refuse(name, value.to_string(), expected);
        }
    }
    let vocabulary = model.decoder().config().vocab_size;
    for &(id, bias) in &sampling.logit_bias {
        if id as usize >= vocabulary {
            let expected = format!("token ids below {vocabulary}");
            return refuse("logit_bias", id.to_string(), expected);
        }
        if !(-100.0..=100.0).contains(&bias) {
            let expected = "numbers from -100 to 100".into();
            return refuse("logit_bias", bias.to_string(), expected);
        }
    }
    let at_most = |name, value: usize, limit: usize| {
        if value > limit {
            return refuse(name, value.to_string(), format!("at most {limit}"));
        }
        Ok(())
    };
    at_most(
        "top_logprobs",
        sampling.logprobs.unwrap_or(0),
        options.max_logprobs,
    )?;
    if sampling.stop.len() > options.max_stop_texts {
        let expected = format!("at most {} texts", options.max_stop_texts);
        return refuse("stop", sampling.stop.len().to_string(), expected);
    }
    if sampling.stop.iter().any(String::is_empty) {
        return refuse("stop", "an empty text".into(), "texts".into());
    }
    if request.choices == 0 {
        return refuse("n", "0".into(), "1 or more".into());
    }
    at_most(
        "n",
        request.choices,
        options.max_choices.min(options.max_running),
    )
}

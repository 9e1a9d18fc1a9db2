//! Requests to `/v1/completions`.

use std::fmt;

use mgm_engine::Input;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::error::ApiError;
use crate::wire::object::{Object, read, skip};
use crate::wire::sampling::{Shared, value};

/// Most prompts in one request.
const PROMPTS: usize = 64;
/// Most likeliest tokens told with each token, as in OpenAI's API.
const LOGPROBS: u64 = 5;

/// A request to go on with texts.
#[derive(Debug, Default)]
pub(crate) struct CompletionRequest {
    pub(crate) shared: Shared,
    prompt: Option<Prompt>,
    pub(crate) echo: bool,
    logprobs: Option<u64>,
    best_of: Option<u64>,
}

impl Object for CompletionRequest {
    const WHAT: &'static str = "a completion request";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        if name != "max_completion_tokens" && self.shared.field(name, map)? {
            return Ok(());
        }
        match name {
            "prompt" => self.prompt = value(map)?,
            "echo" => self.echo = value(map)?.unwrap_or_default(),
            "logprobs" => self.logprobs = value(map)?,
            "best_of" => self.best_of = value(map)?,
            "suffix" => self.shared.refusals.note_field("suffix", map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for CompletionRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

/// A text, token ids, or several of either.
#[derive(Debug, PartialEq)]
pub(crate) struct Prompt(Vec<OnePrompt>);

#[derive(Debug, PartialEq)]
enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Prompt;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string, a list of token ids, or a list of either")
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt(vec![OnePrompt::Text(text.into())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
                let mut prompts = Vec::new();
                let mut ids = Vec::new();
                while let Some(element) = list.next_element::<Element>()? {
                    match element {
                        Element::Id(id) if prompts.is_empty() => ids.push(id),
                        Element::Prompt(prompt) if ids.is_empty() => {
                            if prompts.len() == PROMPTS {
                                return Err(A::Error::custom(format!(
                                    "more than {PROMPTS} prompts"
                                )));
                            }
                            prompts.push(prompt);
                        }
                        _ => return Err(A::Error::custom("token ids mixed with prompts")),
                    }
                }
                if !ids.is_empty() {
                    prompts.push(OnePrompt::Tokens(ids));
                }
                Ok(Prompt(prompts))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An element of a `prompt` list.
enum Element {
    Id(u32),
    Prompt(OnePrompt),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                u32::try_from(id)
                    .map(Element::Id)
                    .map_err(|_| E::custom(format!("{id} is no token id")))
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Prompt(OnePrompt::Text(text.into())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Prompt(OnePrompt::Tokens(ids)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl CompletionRequest {
    /// How many likeliest tokens are to be told with each token, if any.
    pub(crate) fn logprobs(&self) -> Result<Option<u64>, ApiError> {
        match self.logprobs {
            Some(count) if count > LOGPROBS => Err(ApiError::invalid(
                "logprobs",
                format!("`logprobs` is {count}: expected at most {LOGPROBS}"),
            )),
            Some(_) if self.echo => Err(ApiError::unsupported(
                "logprobs",
                "`logprobs` together with `echo` is not supported: log probabilities of prompts are not computed",
            )),
            logprobs => Ok(logprobs),
        }
    }

    /// The prompts, in order; each has something in it.
    pub(crate) fn inputs(&mut self) -> Result<Vec<Input>, ApiError> {
        let Some(prompt) = self.prompt.take().filter(|prompt| !prompt.0.is_empty()) else {
            return Err(ApiError::invalid("prompt", "a request without a `prompt`"));
        };
        if self.best_of.is_some_and(|best_of| best_of != 1) {
            return Err(ApiError::unsupported(
                "best_of",
                "`best_of` is not supported: use `n`",
            ));
        }
        let several = prompt.0.len() > 1;
        let input = |(index, prompt): (usize, OnePrompt)| match prompt {
            OnePrompt::Text(text) if !text.is_empty() => Ok(Input::Text(text)),
            OnePrompt::Tokens(ids) if !ids.is_empty() => Ok(Input::Tokens(ids)),
            _ => {
                let param = if several {
                    format!("prompt[{index}]")
                } else {
                    "prompt".into()
                };
                Err(ApiError::invalid(param, "an empty prompt"))
            }
        };
        prompt.0.into_iter().enumerate().map(input).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn prompts(prompt: Value) -> Result<Vec<OnePrompt>, String> {
        serde_json::from_str::<Prompt>(&prompt.to_string())
            .map(|prompt| prompt.0)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| OnePrompt::Text(text.into());
        assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
        assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(
            prompts(json!([1, 2])).unwrap(),
            [OnePrompt::Tokens(vec![1, 2])]
        );
        assert_eq!(
            prompts(json!([[1], [2, 3], "a"])).unwrap(),
            [
                OnePrompt::Tokens(vec![1]),
                OnePrompt::Tokens(vec![2, 3]),
                text("a")
            ]
        );
        for bad in [
            json!([1, "a"]),
            json!(["a", 1]),
            json!([-1]),
            json!([1.5]),
            json!([[["a"]]]),
            json!({}),
            json!(1),
            json!([u64::MAX]),
        ] {
            assert!(prompts(bad.clone()).is_err(), "{bad}");
        }
        assert!(
            prompts(json!(vec!["a"; 65]))
                .unwrap_err()
                .contains("more than 64")
        );
    }

    #[test]
    fn empty_prompts_and_what_is_not_supported_are_refused_by_name() {
        for (request, param) in [
            (json!({}), "prompt"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": ["a", ""]}), "prompt[1]"),
            (json!({"prompt": "a", "best_of": 3}), "best_of"),
            (json!({"prompt": "a", "suffix": "b"}), "suffix"),
            (json!({"prompt": "a", "logprobs": 6}), "logprobs"),
            (
                json!({"prompt": "a", "logprobs": 1, "echo": true}),
                "logprobs",
            ),
        ] {
            let mut parsed: CompletionRequest = serde_json::from_str(&request.to_string()).unwrap();
            let error = parsed
                .logprobs()
                .and_then(|_| parsed.shared.refusals.check())
                .and_then(|()| parsed.inputs())
                .unwrap_err();
            assert_eq!(error.body()["error"]["param"], param, "{request}");
        }
    }
}

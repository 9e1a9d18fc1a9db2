//! Requests to `/v1/chat/completions`.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::ApiError;
use crate::wire::message::{Messages, Turn};
use crate::wire::object::{AtMost, Object, Refusals, read, skip};
use crate::wire::sampling::{Shared, value};

/// A request for the next turn of a conversation.
#[derive(Debug, Default)]
pub(crate) struct ChatRequest {
    pub(crate) shared: Shared,
    messages: Messages,
    logprobs: bool,
    top_logprobs: Option<u64>,
    /// Whether `modalities` asks for a picture.
    images: bool,
    painting: Option<PaintingOptions>,
}

/// How the picture that a request asks for is to be painted.
#[derive(Debug, Default)]
pub(crate) struct PaintingOptions {
    pub(crate) size: Option<String>,
    pub(crate) seed: Option<i64>,
    pub(crate) preview_every: Option<u64>,
}

impl Object for PaintingOptions {
    const WHAT: &'static str = "an object with a `size`, a `seed` or `preview_every`";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "size" => self.size = value(map)?,
            "seed" => self.seed = value(map)?,
            "preview_every" => self.preview_every = value(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PaintingOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

impl Object for ChatRequest {
    const WHAT: &'static str = "a chat completion request";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        if self.shared.field(name, map)? {
            return Ok(());
        }
        let refusals = &mut self.shared.refusals;
        match name {
            "messages" => {
                self.messages = map.next_value()?;
            }
            "logprobs" => self.logprobs = value(map)?.unwrap_or_default(),
            "top_logprobs" => self.top_logprobs = value(map)?,
            "tools" => refusals.note_field("tools", map)?,
            "functions" => refusals.note_field("functions", map)?,
            "tool_choice" => refuse_choice(refusals, "tool_choice", map)?,
            "function_call" => refuse_choice(refusals, "function_call", map)?,
            "audio" => refusals.note_field("audio", map)?,
            "prediction" => refusals.note_field("prediction", map)?,
            "web_search_options" => refusals.note_field("web_search_options", map)?,
            "modalities" => {
                let modalities: Option<AtMost<String, 8>> = value(map)?;
                for modality in modalities.map(|list| list.0).unwrap_or_default() {
                    match modality.as_str() {
                        "text" => {}
                        "image" => self.images = true,
                        _ => refusals.note(
                            "modalities",
                            format!("`{modality}` in `modalities`: expected text or image"),
                        ),
                    }
                }
            }
            "painting" => self.painting = value(map)?,
            "response_format" => {
                let format: Option<ResponseFormat> = value(map)?;
                let kind = format.and_then(|format| format.kind);
                if let Some(kind) = kind.filter(|kind| kind != "text") {
                    refusals.note(
                        "response_format",
                        format!(
                            "`response_format` of type `{kind}` is not supported: only `text` is"
                        ),
                    );
                }
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for ChatRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

/// `none` and `auto` say nothing new where there are no tools.
fn refuse_choice<'de, A: MapAccess<'de>>(
    refusals: &mut Refusals,
    param: &'static str,
    map: &mut A,
) -> Result<(), A::Error> {
    struct Choice(bool);
    impl<'de> Deserialize<'de> for Choice {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Harmless;
            impl<'de> Visitor<'de> for Harmless {
                type Value = Choice;

                fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                    formatter.write_str("a string or an object")
                }

                fn visit_unit<E>(self) -> Result<Choice, E> {
                    Ok(Choice(true))
                }

                fn visit_str<E>(self, text: &str) -> Result<Choice, E> {
                    Ok(Choice(matches!(text, "none" | "auto")))
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Choice, A::Error> {
                    while map
                        .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
                        .is_some()
                    {}
                    Ok(Choice(false))
                }
            }
            deserializer.deserialize_any(Harmless)
        }
    }
    if !map.next_value::<Choice>()?.0 {
        refusals.note(param, format!("`{param}` is not supported by this server"));
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl ChatRequest {
    /// How many likeliest tokens are to be told with each token, if any.
    pub(crate) fn logprobs(&self) -> Result<Option<u64>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (false, Some(1..)) => Err(ApiError::invalid(
                "top_logprobs",
                "`top_logprobs` goes only with `logprobs: true`",
            )),
            (false, _) => Ok(None),
            (true, top) => Ok(Some(top.unwrap_or(0))),
        }
    }

    /// How a picture is to be painted, if one is asked for.
    pub(crate) fn painting(&mut self) -> Result<Option<PaintingOptions>, ApiError> {
        match (self.images, self.painting.take()) {
            (true, options) => Ok(Some(options.unwrap_or_default())),
            (false, None) => Ok(None),
            (false, Some(_)) => Err(ApiError::invalid(
                "painting",
                "`painting` goes only with `modalities` that hold `image`",
            )),
        }
    }

    /// The conversation. Everything that system and developer messages say stands in one turn at its beginning.
    pub(crate) fn turns(&mut self) -> Result<Vec<Turn>, ApiError> {
        std::mem::take(&mut self.messages).turns()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use mgm_engine::Role;

    use super::*;
    use crate::options::{Limits, SamplingDefaults};
    use crate::wire::message::{PictureAddress, Piece};

    fn parse(value: Value) -> ChatRequest {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    fn refused(mut value: Value) -> (String, String) {
        value
            .as_object_mut()
            .unwrap()
            .entry("messages")
            .or_insert(json!([{"role": "user", "content": "Hi"}]));
        let mut request = parse(value);
        let limits = Limits::default();
        let error = request
            .logprobs()
            .and_then(|logprobs| {
                request
                    .shared
                    .sampling(logprobs, &SamplingDefaults::default(), &limits)
            })
            .and_then(|_| request.shared.choices(1, &limits))
            .and_then(|_| request.painting())
            .and_then(|_| request.turns())
            .unwrap_err();
        let body = error.body();
        let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_string();
        (text("param"), text("message"))
    }

    #[test]
    fn conversations_keep_the_order_of_their_parts() {
        let mut request = parse(json!({"unknown": [1, {"x": 2}], "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:1", "detail": "high"}},
                {"type": "image_url", "image_url": "data:2"},
                {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "c", "name": "Ann"}]}));
        let turns = request.turns().unwrap();
        let text = |text: &str| Piece::Text(text.into());
        let picture = |url: &str, part: usize| {
            Piece::Picture(PictureAddress {
                url: url.into(),
                param: format!("messages[1].content[{part}].image_url"),
            })
        };
        let turn = |role, pieces| Turn { role, pieces };
        assert_eq!(
            turns,
            [
                turn(Role::System, vec![text("Be brief.\n\nBe kind.")]),
                turn(
                    Role::User,
                    vec![
                        text("a"),
                        picture("data:1", 1),
                        picture("data:2", 2),
                        text("b")
                    ]
                ),
                turn(Role::Assistant, vec![]),
                turn(Role::User, vec![text("c")]),
            ]
        );
    }

    #[test]
    fn pictures_of_answers_are_shown_with_the_next_question() {
        let image = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
        let mut request = parse(json!({"messages": [
            {"role": "user", "content": "Draw."},
            {"role": "assistant", "content": "Here: <h>a</h>", "images": [image("data:1")]},
            {"role": "assistant", "content": [{"type": "text", "text": "And"}, image("data:2")]},
            {"role": "user", "content": [image("data:3"), {"type": "text", "text": "Which?"}]},
            {"role": "assistant", "content": "This.", "images": [image("data:4")]}]}));
        let text = |text: &str| Piece::Text(text.into());
        let picture = |url: &str, param: &str| {
            Piece::Picture(PictureAddress {
                url: url.into(),
                param: param.into(),
            })
        };
        let turn = |role, pieces| Turn { role, pieces };
        assert_eq!(
            request.turns().unwrap(),
            [
                turn(Role::User, vec![text("Draw.")]),
                turn(Role::Assistant, vec![text("Here: <h>a</h>")]),
                turn(Role::Assistant, vec![text("And")]),
                turn(
                    Role::User,
                    vec![
                        picture("data:1", "messages[1].images[0].image_url"),
                        picture("data:2", "messages[2].content[1].image_url"),
                        picture("data:3", "messages[3].content[0].image_url"),
                        text("Which?"),
                    ]
                ),
                turn(Role::Assistant, vec![text("This.")]),
            ]
        );
    }

    #[test]
    fn pictures_are_asked_for() {
        let mut plain = parse(json!({"modalities": ["text"], "painting": null}));
        assert!(plain.painting().unwrap().is_none());
        let mut asks = parse(
            json!({"modalities": ["text", "image"], "painting": {"size": "8x8", "seed": -1, "preview_every": 2, "x": 1}}),
        );
        let painting = asks.painting().unwrap().unwrap();
        assert_eq!(painting.size.as_deref(), Some("8x8"));
        assert_eq!((painting.seed, painting.preview_every), (Some(-1), Some(2)));
        assert!(
            parse(json!({"modalities": ["image"]}))
                .painting()
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (request, param) in [
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"functions": [{}]}), "functions"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"audio": {"voice": "x"}}), "audio"),
            (json!({"painting": {"size": "8x8"}}), "painting"),
            (
                json!({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": "x"}]}]}),
                "messages[0].content[0]",
            ),
            (
                json!({"messages": [{"role": "assistant", "images": [{"type": "image_url"}]}]}),
                "messages[0].images[0].image_url",
            ),
            (
                json!({"messages": [{"role": "tool", "content": "1"}]}),
                "messages[0].role",
            ),
            (
                json!({"messages": [{"role": "king", "content": "1"}]}),
                "messages[0].role",
            ),
            (json!({"messages": [{"content": "1"}]}), "messages[0].role"),
            (
                json!({"messages": [{"role": "user"}]}),
                "messages[0].content",
            ),
            (json!({"messages": []}), "messages"),
            (
                json!({"messages": [{"role": "system", "content": "x"}]}),
                "messages",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
                "messages[0].content[0].type",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content[0].image_url",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "most"}}]}]}),
                "messages[0].content[0].image_url.detail",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}),
                "messages[0].tool_calls",
            ),
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"top_p": 1.5}), "top_p"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"n": 0}), "n"),
            (json!({"n": 9}), "n"),
            (json!({"n": u64::MAX}), "n"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_completion_tokens": 4097}), "max_tokens"),
            (json!({"stop": ""}), "stop"),
            (json!({"presence_penalty": 3}), "presence_penalty"),
            (json!({"frequency_penalty": -3}), "frequency_penalty"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (
                json!({"logprobs": true, "top_logprobs": 21}),
                "top_logprobs",
            ),
            (
                json!({"stream_options": {"include_usage": true}}),
                "stream_options",
            ),
        ] {
            let (found, message) = refused(request.clone());
            assert_eq!(found, param, "{request}: {message}");
            assert!(!message.is_empty(), "{request}");
        }
    }

    #[test]
    fn null_and_empty_are_the_same_as_nothing() {
        let mut request = parse(json!({
            "model": null, "messages": [{"role": "user", "content": "Hi", "tool_calls": null}],
            "tools": [], "tool_choice": "auto", "functions": null, "response_format": {"type": "text"},
            "modalities": ["text"], "audio": null, "stop": null, "seed": null, "n": null, "stream": null,
            "stream_options": null, "logit_bias": null, "logprobs": false, "top_logprobs": 0,
            "max_tokens": null, "max_completion_tokens": 7, "temperature": null, "top_k": 0, "top_p": 0,
            "user": "somebody", "store": true, "metadata": {"a": "b"}, "service_tier": "auto",
        }));
        assert_eq!(request.logprobs().unwrap(), None);
        let sampling = request
            .shared
            .sampling(None, &SamplingDefaults::default(), &Limits::default())
            .unwrap();
        assert_eq!(sampling.max_new_tokens, Some(7));
        assert_eq!(
            sampling.temperature,
            SamplingDefaults::default().temperature
        );
        assert_eq!(sampling.top_k, None);
        assert!(sampling.top_p > 0.0 && sampling.top_p < 1e-30);
        assert_eq!(request.shared.choices(1, &Limits::default()).unwrap(), 1);
        assert_eq!(request.turns().unwrap().len(), 1);
    }

    #[test]
    fn lists_are_limited_while_they_are_read() {
        let parts = vec![json!({"type": "image_url", "image_url": {"url": "x"}}); 10_000];
        let body = json!({"messages": [{"role": "user", "content": parts}]}).to_string();
        let error = serde_json::from_str::<ChatRequest>(&body).unwrap_err();
        assert!(
            error.to_string().contains("more than 1024 elements"),
            "{error}"
        );
        let body = json!({"messages": [], "stop": ["a", "b", "c", "d", "e"]}).to_string();
        assert!(serde_json::from_str::<ChatRequest>(&body).is_err());
    }
}

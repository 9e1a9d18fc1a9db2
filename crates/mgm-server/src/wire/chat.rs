//! Requests to `/v1/chat/completions`.

use std::fmt;

use mgm_engine::Role;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::ApiError;
use crate::wire::object::{AtMost, Object, Something, elements, read, skip};
use crate::wire::sampling::{Shared, value};

/// Most messages in a conversation.
const MESSAGES: usize = 2048;
/// Most parts of a message.
const PARTS: usize = 1024;

/// A request for the next turn of a conversation.
#[derive(Debug, Default)]
pub(crate) struct ChatRequest {
    pub(crate) shared: Shared,
    messages: Vec<RawMessage>,
    logprobs: bool,
    top_logprobs: Option<u64>,
}

/// A turn whose pictures are still addresses.
#[derive(Debug, PartialEq)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) pieces: Vec<Piece>,
}

/// A piece of a turn.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Picture(PictureAddress),
}

/// Where a picture is: a data URL, or an http(s) address.
#[derive(Debug, PartialEq)]
pub(crate) struct PictureAddress {
    pub(crate) url: String,
    /// The field it stands in, for error messages.
    pub(crate) param: String,
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
                self.messages = map.next_value::<AtMost<_, MESSAGES>>()?.0;
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
                    if modality != "text" {
                        refusals.note(
                            "modalities",
                            format!("`{modality}` in `modalities`: this server answers in text"),
                        );
                    }
                }
            }
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
    refusals: &mut crate::wire::object::Refusals,
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

#[derive(Debug, Default)]
struct RawMessage {
    role: Option<String>,
    content: Content,
    calls_tools: bool,
}

impl Object for RawMessage {
    const WHAT: &'static str = "a message";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "role" => self.role = value(map)?,
            "content" => self.content = value(map)?.unwrap_or_default(),
            "tool_calls" | "function_call" => {
                self.calls_tools |= map.next_value::<Something>()?.0;
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RawMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

/// `content`: nothing, a text, or parts.
#[derive(Debug, Default)]
enum Content {
    #[default]
    Nothing,
    Text(String),
    Parts(Vec<RawPart>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.into()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Content, A::Error> {
                elements(list, PARTS).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

#[derive(Debug, Default)]
struct RawPart {
    kind: Option<String>,
    text: Option<String>,
    image_url: Option<ImageUrl>,
}

impl Object for RawPart {
    const WHAT: &'static str = "a part with a `type`";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "type" => self.kind = value(map)?,
            "text" => self.text = value(map)?,
            "image_url" => self.image_url = value(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RawPart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

/// `{"url": …, "detail": …}`, or the address alone.
#[derive(Debug, Default)]
pub(crate) struct ImageUrl {
    pub(crate) url: Option<String>,
    detail: Option<String>,
}

impl Object for ImageUrl {
    const WHAT: &'static str = "an object with a `url`, or a string";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "url" => self.url = value(map)?,
            "detail" => self.detail = value(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for ImageUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectOrString;
        impl<'de> Visitor<'de> for ObjectOrString {
            type Value = ImageUrl;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str(ImageUrl::WHAT)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ImageUrl, E> {
                self.visit_string(text.into())
            }

            fn visit_string<E>(self, text: String) -> Result<ImageUrl, E> {
                Ok(ImageUrl {
                    url: Some(text),
                    detail: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ImageUrl, A::Error> {
                read(serde::de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(ObjectOrString)
    }
}

impl ImageUrl {
    /// The address; `param` is the field it stands in.
    pub(crate) fn address(self, param: String) -> Result<PictureAddress, ApiError> {
        // The model looks at every picture in one and the same resolution; what OpenAI's clients may send is accepted all the same.
        if let Some(detail) = self.detail
            && !matches!(detail.as_str(), "auto" | "low" | "high")
        {
            return Err(ApiError::invalid(
                format!("{param}.detail"),
                format!("`detail` is `{detail}`: expected auto, low or high"),
            ));
        }
        match self.url {
            Some(url) => Ok(PictureAddress { url, param }),
            None => Err(ApiError::invalid(param, "a picture without a `url`")),
        }
    }
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

    /// The conversation. Everything that system and developer messages say stands in one turn at its beginning.
    pub(crate) fn turns(&mut self) -> Result<Vec<Turn>, ApiError> {
        turns(std::mem::take(&mut self.messages))
    }
}

/// Messages as another request brings them.
#[derive(Debug)]
pub(crate) struct Messages(Vec<RawMessage>);

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AtMost::<_, MESSAGES>::deserialize(deserializer).map(|messages| Self(messages.0))
    }
}

impl Messages {
    /// The conversation.
    pub(crate) fn turns(self) -> Result<Vec<Turn>, ApiError> {
        turns(self.0)
    }
}

fn turns(messages: Vec<RawMessage>) -> Result<Vec<Turn>, ApiError> {
    let mut turns = Vec::with_capacity(messages.len() + 1);
    let mut instructions: Vec<String> = Vec::new();
    for (index, message) in messages.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        let role = match message.role.as_deref() {
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some(role @ ("tool" | "function")) => {
                return Err(ApiError::unsupported(
                    format!("{at}.role"),
                    format!(
                        "messages of the role `{role}` are not supported: this server calls no tools"
                    ),
                ));
            }
            Some(role) => {
                return Err(ApiError::invalid(
                    format!("{at}.role"),
                    format!("`{role}` is no role: expected system, developer, user or assistant"),
                ));
            }
            None => {
                return Err(ApiError::invalid(
                    format!("{at}.role"),
                    "a message without a `role`",
                ));
            }
        };
        if message.calls_tools {
            return Err(ApiError::unsupported(
                format!("{at}.tool_calls"),
                "tool calls are not supported by this server",
            ));
        }
        let pieces = match message.content {
            Content::Text(text) => vec![Piece::Text(text)],
            Content::Parts(parts) => pieces(parts, role, &at)?,
            Content::Nothing if role == Role::Assistant => Vec::new(),
            Content::Nothing => {
                return Err(ApiError::invalid(
                    format!("{at}.content"),
                    "a message without `content`",
                ));
            }
        };
        if role == Role::System {
            let texts = pieces.into_iter().filter_map(|piece| match piece {
                Piece::Text(text) => Some(text),
                Piece::Picture(_) => None,
            });
            instructions.extend(texts);
        } else {
            turns.push(Turn { role, pieces });
        }
    }
    if turns.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "`messages` holds nothing to answer: expected at least one message of the role user",
        ));
    }
    if !instructions.is_empty() {
        turns.insert(
            0,
            Turn {
                role: Role::System,
                pieces: vec![Piece::Text(instructions.join("\n\n"))],
            },
        );
    }
    Ok(turns)
}

fn pieces(parts: Vec<RawPart>, role: Role, at: &str) -> Result<Vec<Piece>, ApiError> {
    let mut pieces = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let at = format!("{at}.content[{index}]");
        pieces.push(match part.kind.as_deref() {
            Some("text") => Piece::Text(part.text.ok_or_else(|| {
                ApiError::invalid(format!("{at}.text"), "a part of type text without `text`")
            })?),
            Some("image_url") if role == Role::User => {
                let url = part.image_url.unwrap_or_default();
                Piece::Picture(url.address(format!("{at}.image_url"))?)
            }
            Some("image_url") => {
                return Err(ApiError::invalid(
                    at,
                    "pictures stand only in messages of the role user",
                ));
            }
            Some(kind) => {
                return Err(ApiError::unsupported(
                    format!("{at}.type"),
                    format!("parts of type `{kind}` are not supported: expected text or image_url"),
                ));
            }
            None => {
                return Err(ApiError::invalid(
                    format!("{at}.type"),
                    "a part without a `type`",
                ));
            }
        });
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::options::{Limits, SamplingDefaults};

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
                json!({"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}]}),
                "messages[0].content[0]",
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

//! The messages of a conversation, as requests bring them and as the model gets them.

use std::fmt;

use mgm_engine::Role;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::ApiError;
use crate::wire::object::{AtMost, Object, Something, elements, read, skip};
use crate::wire::sampling::value;

/// Most messages in a conversation.
const MESSAGES: usize = 2048;
/// Most parts of a message.
const PARTS: usize = 1024;

/// Most painted pictures of a message.
const IMAGES: usize = 64;

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

/// Messages as they come.
#[derive(Debug, Default)]
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

#[derive(Debug, Default)]
struct RawMessage {
    role: Option<String>,
    content: Content,
    /// Painted pictures, where answers of this server hold them.
    images: Vec<RawPart>,
    calls_tools: bool,
}

impl Object for RawMessage {
    const WHAT: &'static str = "a message";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "role" => self.role = value(map)?,
            "content" => self.content = value(map)?.unwrap_or_default(),
            "images" => {
                let images: Option<AtMost<RawPart, IMAGES>> = value(map)?;
                self.images = images.map(|images| images.0).unwrap_or_default();
            }
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

fn turns(messages: Vec<RawMessage>) -> Result<Vec<Turn>, ApiError> {
    let mut turns = Vec::with_capacity(messages.len() + 1);
    let mut instructions: Vec<String> = Vec::new();
    // Pictures of answers, which the model sees with the question that follows: no template has a place for them in an answer.
    let mut painted: Vec<Piece> = Vec::new();
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
        let mut pieces = match message.content {
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
        if role == Role::Assistant {
            let (texts, mut pictures): (Vec<_>, Vec<_>) = pieces
                .into_iter()
                .partition(|piece| matches!(piece, Piece::Text(_)));
            pieces = texts;
            for (index, image) in message.images.into_iter().enumerate() {
                let url = image.image_url.unwrap_or_default();
                pictures.push(Piece::Picture(
                    url.address(format!("{at}.images[{index}].image_url"))?,
                ));
            }
            painted.append(&mut pictures);
        } else if role == Role::User {
            pieces.splice(0..0, painted.drain(..));
        }
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
            Some("image_url") if role != Role::System => {
                let url = part.image_url.unwrap_or_default();
                Piece::Picture(url.address(format!("{at}.image_url"))?)
            }
            Some("image_url") => {
                return Err(ApiError::invalid(
                    at,
                    "pictures stand only in messages of the roles user and assistant",
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

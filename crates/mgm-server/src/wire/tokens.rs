//! Requests to `/tokenize`, `/detokenize`, `/v1/mining` and `/v1/images/generations`.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess};

use crate::wire::message::{ImageUrl, Messages};
use crate::wire::object::{AtMost, Object, Refusals, read, skip};
use crate::wire::sampling::value;

/// Most ids to be turned into text at once.
const IDS: usize = 1 << 20;
/// Most patches asked for; more than any model has.
const PATCHES: usize = 1 << 16;

/// A text or a conversation to be turned into token ids.
#[derive(Debug, Default)]
pub(crate) struct TokenizeRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Option<String>,
    pub(crate) messages: Option<Messages>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) return_token_strs: bool,
}

impl Object for TokenizeRequest {
    const WHAT: &'static str = "a request with a `prompt` or `messages`";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "model" => self.model = value(map)?,
            "prompt" => self.prompt = value(map)?,
            "messages" => self.messages = value(map)?,
            "add_special_tokens" => self.add_special_tokens = value(map)?,
            "return_token_strs" => self.return_token_strs = value(map)?.unwrap_or_default(),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Token ids to be turned into text.
#[derive(Debug, Default)]
pub(crate) struct DetokenizeRequest {
    pub(crate) model: Option<String>,
    pub(crate) tokens: Option<AtMost<u32, IDS>>,
}

impl Object for DetokenizeRequest {
    const WHAT: &'static str = "a request with `tokens`";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "model" => self.model = value(map)?,
            "tokens" => self.tokens = value(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// A picture whose mining attention is asked for.
#[derive(Debug, Default)]
pub(crate) struct MiningRequest {
    pub(crate) model: Option<String>,
    pub(crate) image_url: Option<ImageUrl>,
    pub(crate) patches: Option<AtMost<usize, PATCHES>>,
}

impl Object for MiningRequest {
    const WHAT: &'static str = "a request with an `image_url`";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "model" => self.model = value(map)?,
            "image_url" => self.image_url = value(map)?,
            "patches" => self.patches = value(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// A picture to be painted.
#[derive(Debug, Default)]
pub(crate) struct PaintRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Option<String>,
    pub(crate) n: Option<u64>,
    pub(crate) size: Option<String>,
    pub(crate) seed: Option<i64>,
    pub(crate) refusals: Refusals,
}

impl Object for PaintRequest {
    const WHAT: &'static str = "a request with a `prompt`";

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "model" => self.model = value(map)?,
            "prompt" => self.prompt = value(map)?,
            "n" => self.n = value(map)?,
            "size" => self.size = value(map)?,
            "seed" => self.seed = value(map)?,
            "response_format" => {
                if let Some(format) = value::<String, A>(map)?
                    && format != "b64_json"
                {
                    self.refusals.note("response_format", format!("`response_format` is `{format}`: this server keeps no files, only b64_json is supported"));
                }
            }
            "output_format" => {
                if let Some(format) = value::<String, A>(map)?
                    && format != "png"
                {
                    self.refusals.note(
                        "output_format",
                        format!("`output_format` is `{format}`: only png is supported"),
                    );
                }
            }
            "background" => {
                if let Some(background) = value::<String, A>(map)?
                    && background == "transparent"
                {
                    self.refusals
                        .note("background", "transparent backgrounds are not supported");
                }
            }
            "stream" => self.refusals.note_field("stream", map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

macro_rules! deserialize_by_field {
    ($($request:ty),*) => {$(
        impl<'de> Deserialize<'de> for $request {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                read(deserializer)
            }
        }
    )*};
}

deserialize_by_field!(
    TokenizeRequest,
    DetokenizeRequest,
    MiningRequest,
    PaintRequest
);

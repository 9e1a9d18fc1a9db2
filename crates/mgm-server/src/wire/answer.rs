//! Answers, in exactly the shapes of OpenAI's API.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::easel::Sketch;
use crate::painter::PaintProgress;
use crate::painting::size_name;

/// What an answer cost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
}

/// What the prompt consisted of.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PromptDetails {
    /// Positions that earlier requests had read already.
    pub(crate) cached_tokens: usize,
    /// Visual tokens of pictures.
    pub(crate) image_tokens: usize,
}

impl Usage {
    /// The cost of a prompt and of all its answers.
    pub(crate) fn new(prompt: mgm_engine::PromptAccount, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens: prompt.total(),
            completion_tokens,
            total_tokens: prompt.total() + completion_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: prompt.cached_tokens,
                image_tokens: prompt.visual_tokens,
            },
        }
    }

    /// Adds the cost of another prompt.
    pub(crate) fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
        self.prompt_tokens_details.image_tokens += other.prompt_tokens_details.image_tokens;
    }
}

/// A token and how likely it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
}

/// A token of an answer, with the likeliest ones in its place.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ContentLogprob {
    #[serde(flatten)]
    pub(crate) token: TokenLogprob,
    pub(crate) top_logprobs: Vec<TokenLogprob>,
}

/// `logprobs` of a chat choice.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ContentLogprob>,
    pub(crate) refusal: Option<()>,
}

/// A chat answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatCompletion<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: Usage,
    pub(crate) system_fingerprint: &'static str,
}

/// One of the answers to a chat.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: AssistantMessage,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: &'static str,
}

/// What the model said.
#[derive(Debug, Serialize)]
pub(crate) struct AssistantMessage {
    pub(crate) role: &'static str,
    pub(crate) content: String,
    pub(crate) refusal: Option<()>,
    /// Absent where nothing was painted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) images: Vec<PaintedImage>,
}

/// A painted picture, in the shape that OpenRouter gave it.
#[derive(Debug, Serialize)]
pub(crate) struct PaintedImage {
    #[serde(rename = "type")]
    kind: &'static str,
    /// OpenAI's clients put streamed lists together by it.
    index: usize,
    image_url: DataUrl,
    painting: Painting,
}

#[derive(Debug, Serialize)]
struct DataUrl {
    url: String,
}

impl PaintedImage {
    /// The first picture of an answer, a PNG file.
    pub(crate) fn new(png: &[u8], sketch: &Sketch) -> Self {
        Self {
            kind: "image_url",
            index: 0,
            image_url: DataUrl { url: data_url(png) },
            painting: Painting::new(sketch),
        }
    }
}

/// How a picture is painted.
#[derive(Debug, Serialize)]
pub(crate) struct Painting {
    prompt: String,
    seed: u64,
    size: String,
    /// Only while it is being painted.
    #[serde(flatten)]
    progress: Option<Progress>,
}

#[derive(Debug, Serialize)]
struct Progress {
    step: usize,
    /// `null` while it waits.
    steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<String>,
}

impl Painting {
    fn new(sketch: &Sketch) -> Self {
        Self {
            prompt: sketch.prompt.to_string(),
            seed: sketch.seed,
            size: size_name(sketch.size),
            progress: None,
        }
    }

    /// A picture in the making; without progress it waits.
    pub(crate) fn in_progress(sketch: &Sketch, progress: Option<&PaintProgress>) -> Self {
        Self {
            progress: Some(Progress {
                step: progress.map_or(0, |progress| progress.step),
                steps: progress.map(|progress| progress.steps),
                preview: progress
                    .and_then(|progress| progress.preview.as_deref())
                    .map(data_url),
            }),
            ..Self::new(sketch)
        }
    }
}

fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// A piece of a streamed chat answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChunk<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'static str,
    pub(crate) choices: &'a [ChunkChoice<'a>],
    /// Absent unless usage was asked for; then `null` in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// What is new about one of the answers.
#[derive(Debug, Serialize)]
pub(crate) struct ChunkChoice<'a> {
    pub(crate) index: usize,
    pub(crate) delta: Delta<'a>,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    /// Beside the delta and not in it: OpenAI's clients add up what stands in deltas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) painting: Option<Painting>,
}

impl<'a> ChunkChoice<'a> {
    /// Nothing is new but the delta.
    pub(crate) fn new(index: usize, delta: Delta<'a>) -> Self {
        Self {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            painting: None,
        }
    }
}

/// More of a message.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'a str>,
    /// In the first delta only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<Option<()>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) images: Vec<PaintedImage>,
}

/// `logprobs` of a text completion.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct TextLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<f32>,
    pub(crate) top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    pub(crate) text_offset: Vec<usize>,
}

/// A text completion, or a piece of a streamed one.
#[derive(Debug, Serialize)]
pub(crate) struct TextCompletion<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'static str,
    pub(crate) choices: &'a [TextChoice<'a>],
    /// Absent from the pieces of a stream unless usage was asked for; then `null` in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// One of the texts, or more of it.
#[derive(Debug, Serialize)]
pub(crate) struct TextChoice<'a> {
    pub(crate) index: usize,
    pub(crate) text: &'a str,
    pub(crate) logprobs: Option<TextLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

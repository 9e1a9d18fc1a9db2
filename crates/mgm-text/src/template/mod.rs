//! Conversation templates: how turns become one prompt string.

mod render;
mod table;

use crate::{IMAGE_PLACEHOLDER, Prompt, TextError, Tokenizer};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions; replaces the template's own system text.
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
}

/// Which of the `<image>` marks in a text are places of pictures; the others are ordinary text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// Every one, as in the official code.
    Every,
    /// None: nobody gave a picture with the text.
    None,
    /// Those at these byte offsets, rising.
    At(Vec<usize>),
}

impl Places {
    /// The text cut at the places.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        match self {
            Self::Every => text.split(IMAGE_PLACEHOLDER).collect(),
            Self::None => vec![text],
            Self::At(offsets) => {
                let mut pieces = Vec::with_capacity(offsets.len() + 1);
                let mut start = 0;
                for &offset in offsets {
                    let is_mark = |rest: &str| rest.starts_with(IMAGE_PLACEHOLDER);
                    if offset < start || !text.get(offset..).is_some_and(is_mark) {
                        continue;
                    }
                    pieces.push(&text[start..offset]);
                    start = offset + IMAGE_PLACEHOLDER.len();
                }
                pieces.push(&text[start..]);
                pieces
            }
        }
    }
}

/// A piece of what somebody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text in which `<image>` is no place.
    Text(&'a str),
    /// The place of a picture.
    Image,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. `None` on the last assistant message asks for an answer; an empty text counts as `None`, as in the
    /// official code.
    pub text: Option<String>,
    /// Which `<image>` marks in the text are pictures' places.
    pub places: Places,
}

impl Message {
    /// A message in which `<image>` marks places of pictures.
    pub fn new(role: Role, text: Option<String>) -> Self {
        Self {
            role,
            text,
            places: Places::Every,
        }
    }

    /// A message of pieces that stand one after another.
    pub fn from_pieces<'a>(role: Role, pieces: impl IntoIterator<Item = Piece<'a>>) -> Self {
        let (mut text, mut offsets) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Image => {
                    offsets.push(text.len());
                    text.push_str(IMAGE_PLACEHOLDER);
                }
            }
        }
        Self {
            role,
            text: Some(text),
            places: Places::At(offsets),
        }
    }

    /// The same message with `<image>` as ordinary text: nobody gave a picture with it.
    #[must_use]
    pub fn without_images(self) -> Self {
        Self {
            places: Places::None,
            ..self
        }
    }

    /// A system message.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, Some(text.into()))
    }

    /// A user message.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, Some(text.into()))
    }

    /// An answer given earlier.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, Some(text.into()))
    }

    /// The answer asked for.
    pub fn open_answer() -> Self {
        Self::new(Role::Assistant, None)
    }
}

/// The rendering rule (official `SeparatorStyle`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `role: text` with one separator.
    Single,
    /// `role: text` with one separator after the user and another after the assistant.
    Two,
    /// Roles that carry their own markup; the separator ends every message (official `MPT` and `LLAMA_3`).
    Markup,
    /// `[INST] … [/INST]`.
    Instruct,
    /// `<start_of_turn>role`.
    Gemma,
    /// The bare texts.
    Plain,
}

/// One conversation template.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    name: &'static str,
    style: Style,
    /// Put before the system text, also before one that a message brings.
    system_header: &'static str,
    system: &'static str,
    user: &'static str,
    assistant: &'static str,
    separator: &'static str,
    /// After an assistant's text, where that differs.
    answer_separator: &'static str,
    stop_tokens: &'static [&'static str],
    /// An exchange in front of every conversation (LLaVA's first template).
    examples: &'static [(Role, &'static str)],
    /// An exchange that announces the image stands before the first text, which then has no placeholder of its own.
    announces_image: bool,
}

impl Template {
    /// Finds a template by its official key, `smollm2` or `smol`.
    ///
    /// # Errors
    /// [`TextError::UnknownTemplate`] listing the known names.
    pub fn by_name(name: &str) -> Result<&'static Self, TextError> {
        table::KEYS
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, template)| *template)
            .ok_or_else(|| TextError::UnknownTemplate {
                name: name.to_string(),
                known: Self::names().join(", "),
            })
    }

    /// All keys that [`Template::by_name`] knows.
    pub fn names() -> Vec<&'static str> {
        table::KEYS.iter().map(|(key, _)| *key).collect()
    }

    /// The template for a model by its name: the official rule, plus Llama-3 (which the official rule misses) and
    /// SmolLM2. A size such as `2b` does not match inside a larger number (`32b`), as it does in the official code.
    pub fn for_model_name(model_name: &str) -> &'static Self {
        let name = model_name.to_lowercase();
        let size = |size: &str| {
            name.match_indices(size)
                .any(|(at, _)| !name[..at].ends_with(|before: char| before.is_ascii_digit()))
        };
        if name.contains("smollm2") {
            &table::SMOLLM2
        } else if name.contains("smol") {
            &table::SMOL
        } else if name.contains("8x7b") {
            &table::MISTRAL_INSTRUCT
        } else if size("34b") {
            &table::CHATML_DIRECT
        } else if size("8b") || name.contains("llama-3") || name.contains("llama3") {
            &table::LLAMA_3
        } else if size("2b") {
            &table::GEMMA
        } else {
            &table::VICUNA_V1
        }
    }

    /// [`Template::for_model_name`], where the vocabulary size decides if it belongs to one family only (Llama-3
    /// 128,256; Gemma 256,000; Yi 64,000), whatever the directory is called.
    pub fn for_model(model_name: &str, vocab_size: usize) -> &'static Self {
        match vocab_size {
            128_256 => &table::LLAMA_3,
            256_000 => &table::GEMMA,
            64_000 => &table::CHATML_DIRECT,
            _ => Self::for_model_name(model_name),
        }
    }

    /// The template's own name (aliases share one).
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The system text without markup; empty if there is none.
    pub fn system(&self) -> &'static str {
        self.system
    }

    /// Spellings of the tokens that end an answer.
    pub fn stop_token_names(&self) -> &'static [&'static str] {
        self.stop_tokens
    }

    /// Ids that end an answer: the template's stop tokens that this vocabulary has, and its end-of-text id. Sorted.
    pub fn stop_token_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids: Vec<u32> = self
            .stop_tokens
            .iter()
            .filter_map(|token| tokenizer.token_to_id(token))
            .collect();
        ids.extend(tokenizer.eos());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Texts that end an answer, for templates whose end of turn a model may spell as ordinary text.
    pub fn stop_strings(&self) -> Vec<&'static str> {
        let end = match self.style {
            Style::Plain => "",
            Style::Gemma => "<end_of_turn>",
            _ if self.answer_separator.is_empty() => self.separator.trim_end(),
            _ => self.answer_separator.trim_end(),
        };
        if end.is_empty() {
            Vec::new()
        } else {
            vec![end]
        }
    }

    /// Renders a conversation exactly as the official `get_prompt`. The image placeholder `<image>` is part of the
    /// texts; see [`crate::protocol::place_images`].
    ///
    /// A [`Role::System`] message replaces the template's system text. Two families have no place for one: in `gemma` it
    /// then stands at the start of the first user turn, in `plain` at the start of the prompt.
    ///
    /// The parts of the prompt remember whether the template wrote them or somebody said them.
    pub fn prompt(&self, messages: &[Message]) -> Prompt {
        render::render(self, messages)
    }

    /// [`Template::prompt`] as one string, which is what the official code works with.
    pub fn render(&self, messages: &[Message]) -> String {
        self.prompt(messages).to_string()
    }
}

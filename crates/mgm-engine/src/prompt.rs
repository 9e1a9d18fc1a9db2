//! From what a client asks to the positions that the model reads.

use mgm_text::{IMAGE_TOKEN, Message, Piece, Template};
use mini_gemini::{MiniGemini, PictureKey, Slot};

use crate::error::SubmitError;
use crate::event::PromptAccount;
use crate::info::Tokenized;
use crate::picture::Picture;
use crate::request::{ChatMessage, Input, Part, Role};

/// A prompt ready to be read.
#[derive(Debug)]
pub(crate) struct ReadyPrompt {
    pub(crate) slots: Vec<Slot>,
    /// Each picture once.
    pub(crate) pictures: Vec<Picture>,
    pub(crate) account: PromptAccount,
}

impl ReadyPrompt {
    /// Renders and tokenises `input`.
    pub(crate) fn new(
        model: &MiniGemini,
        input: &Input,
        parse_special: bool,
    ) -> Result<Self, SubmitError> {
        let mut pictures = Vec::new();
        let slots = match input {
            Input::Chat { messages, template } => {
                let prompt = rendered(model, messages, template.as_deref(), &mut pictures)?;
                let keys: Vec<PictureKey> = pictures.iter().map(Picture::key).collect();
                model
                    .slots(&prompt, &keys, parse_special)
                    .map_err(|error| invalid(error.to_string()))?
            }
            Input::Text(text) => ids_of_text(model, text, parse_special, true)?
                .into_iter()
                .map(Slot::Text)
                .collect(),
            Input::Tokens(ids) => {
                let vocabulary = model.decoder().config().vocab_size;
                if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
                    return Err(invalid(format!(
                        "token id {id} lies outside the vocabulary of {vocabulary}"
                    )));
                }
                ids.iter().copied().map(Slot::Text).collect()
            }
        };
        if slots.is_empty() {
            return Err(invalid("the prompt is empty".into()));
        }
        let mut unique: Vec<Picture> = Vec::new();
        for picture in pictures {
            if unique.iter().all(|known| known.key() != picture.key()) {
                unique.push(picture);
            }
        }
        let text_tokens = slots.iter().filter(|slot| slot.text().is_some()).count();
        Ok(Self {
            account: PromptAccount {
                text_tokens,
                visual_tokens: slots.len() - text_tokens,
                cached_tokens: 0,
            },
            pictures: unique,
            slots,
        })
    }
}

/// Tokenises `input` as [`ReadyPrompt::new`] would, or a text without the tokeniser's beginning-of-text token.
pub(crate) fn tokenized(
    model: &MiniGemini,
    input: &Input,
    parse_special: bool,
    add_special: bool,
) -> Result<Tokenized, SubmitError> {
    if let (Input::Text(text), false) = (input, add_special) {
        let ids = ids_of_text(model, text, parse_special, false)?;
        let account = PromptAccount {
            text_tokens: ids.len(),
            ..PromptAccount::default()
        };
        let ids = ids.into_iter().map(i64::from).collect();
        return Ok(Tokenized { ids, account });
    }
    let prompt = ReadyPrompt::new(model, input, parse_special)?;
    let mut ids = Vec::with_capacity(prompt.account.text_tokens);
    for slot in &prompt.slots {
        match slot {
            Slot::Text(id) => ids.push(i64::from(*id)),
            Slot::Visual { token: 0, .. } => ids.push(IMAGE_TOKEN),
            Slot::Visual { .. } => {}
        }
    }
    Ok(Tokenized {
        ids,
        account: prompt.account,
    })
}

fn ids_of_text(
    model: &MiniGemini,
    text: &str,
    parse_special: bool,
    add_special: bool,
) -> Result<Vec<u32>, SubmitError> {
    model
        .tokenizer()
        .encode_parse(text, add_special, parse_special)
        .map_err(|error| invalid(error.to_string()))
}

fn rendered(
    model: &MiniGemini,
    messages: &[ChatMessage],
    template: Option<&str>,
    pictures: &mut Vec<Picture>,
) -> Result<mgm_text::Prompt, SubmitError> {
    let template = match template {
        None => model.template(),
        Some(name) => Template::by_name(name).map_err(|error| invalid(error.to_string()))?,
    };
    if messages.iter().all(|message| message.role == Role::System) {
        return Err(invalid("there is no message to answer".into()));
    }
    let mut turns = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        turns.push(turn(message, pictures)?);
    }
    if !pictures.is_empty() && model.vision().is_none() {
        return Err(SubmitError::NoVision);
    }
    turns.push(Message::open_answer());
    Ok(template.prompt(&turns).with_numbered_images())
}

/// One turn: its pictures come before its text, one a line, unless they stand between two texts.
fn turn(message: &ChatMessage, pictures: &mut Vec<Picture>) -> Result<Message, SubmitError> {
    let is_text = |part: &&Part| matches!(part, Part::Text(text) if !text.is_empty());
    let texts = message.parts.iter().filter(is_text).count();
    let mut seen_texts = 0;
    let (mut first, mut in_place) = (Vec::new(), false);
    let mut texts_alone = Vec::new();
    let mut pieces = Vec::new();
    for part in &message.parts {
        match part {
            Part::Text(text) if text.is_empty() => {}
            Part::Text(text) => {
                seen_texts += 1;
                texts_alone.push(text.as_str());
                pieces.push(Piece::Text(text));
            }
            Part::Image(picture) => {
                if message.role != Role::User {
                    return Err(invalid("only the user's messages may hold pictures".into()));
                }
                in_place |= seen_texts > 0 && seen_texts < texts;
                first.push(Piece::Image);
                pieces.push(Piece::Image);
                pictures.push(picture.clone());
            }
        }
    }
    if in_place {
        let lines = separated(pieces);
        return Ok(Message::from_pieces(message.role, lines));
    }
    let said = texts_alone.join("\n");
    let shown = first
        .into_iter()
        .flat_map(|image| [image, Piece::Text("\n")]);
    let pieces: Vec<Piece> = shown.chain([Piece::Text(&said)]).collect();
    Ok(Message::from_pieces(message.role, pieces))
}

/// The pieces, each on a line of its own.
fn separated(pieces: Vec<Piece<'_>>) -> Vec<Piece<'_>> {
    let mut lines = Vec::with_capacity(2 * pieces.len());
    for (index, piece) in pieces.into_iter().enumerate() {
        if index > 0 {
            lines.push(Piece::Text("\n"));
        }
        lines.push(piece);
    }
    lines
}

fn invalid(message: String) -> SubmitError {
    SubmitError::InvalidInput { message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::{ready_picture, tiny};

    fn text_of(parts: Vec<Part>) -> String {
        let message = ChatMessage {
            role: Role::User,
            parts,
        };
        let turn = turn(&message, &mut Vec::new()).expect("a turn");
        turn.text.unwrap_or_default()
    }

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    #[test]
    fn pictures_come_first_unless_they_stand_between_texts() {
        let image = || Part::Image(ready_picture(1));
        assert_eq!(text_of(vec![text("What?"), image()]), "<image>\nWhat?");
        assert_eq!(
            text_of(vec![image(), text("What?"), text("Tell!"), image()]),
            "<image>\n<image>\nWhat?\nTell!"
        );
        assert_eq!(
            text_of(vec![text("Is"), image(), text("in"), image(), text("?")]),
            "Is\n<image>\nin\n<image>\n?"
        );
        assert_eq!(text_of(vec![image()]), "<image>\n");
        assert_eq!(text_of(vec![]), "");
    }

    #[test]
    fn prompts_are_counted_and_typed_marks_are_text() {
        let chat = |parts: Vec<Part>| Input::Chat {
            messages: vec![ChatMessage {
                role: Role::User,
                parts,
            }],
            template: None,
        };
        let ready = |input: &Input| ReadyPrompt::new(tiny(), input, false);
        let image = ready_picture(1);
        let shown = ready(&chat(vec![
            Part::Image(image.clone()),
            Part::Image(image),
            text("an <image> in the air"),
        ]))
        .expect("a prompt");
        assert_eq!(shown.account.visual_tokens, 72);
        assert_eq!(shown.pictures.len(), 1, "the same picture once");
        assert_eq!(shown.slots.len(), shown.account.total());
        let plain = ready(&chat(vec![text("an <image> in the air")])).expect("a prompt");
        assert_eq!(plain.account.visual_tokens, 0);

        let tokenized = tokenized(
            tiny(),
            &chat(vec![Part::Image(ready_picture(2))]),
            false,
            true,
        )
        .expect("tokenised");
        assert_eq!(tokenized.account.visual_tokens, 36);
        let pictures = tokenized.ids.iter().filter(|id| **id == IMAGE_TOKEN);
        assert_eq!(pictures.count(), 1);
        assert_eq!(tokenized.ids.len(), tokenized.account.text_tokens + 1);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |input: Input| {
            ReadyPrompt::new(tiny(), &input, false)
                .expect_err("refused")
                .to_string()
        };
        let chat = |messages: Vec<ChatMessage>, template: Option<&str>| Input::Chat {
            messages,
            template: template.map(Into::into),
        };
        let user = ChatMessage::text(Role::User, "a");
        assert!(refused(chat(vec![], None)).contains("no message"));
        let system = ChatMessage::text(Role::System, "Be good.");
        assert!(refused(chat(vec![system], None)).contains("no message"));
        assert!(refused(chat(vec![user], Some("nothing"))).contains("nothing"));
        let shown = ChatMessage {
            role: Role::Assistant,
            parts: vec![Part::Image(ready_picture(1))],
        };
        assert!(refused(chat(vec![shown], None)).contains("only the user"));
        assert!(refused(Input::Tokens(vec![])).contains("empty"));
        assert!(refused(Input::Tokens(vec![1, 1 << 30])).contains("1073741824"));
    }
}

use mgm_text::{IGNORE_LABEL, IMAGE_TOKEN, Message, Role, Template};

use crate::conversation::{Conversation, IMAGE_PLACEHOLDER};
use crate::error::MaskError;
use crate::mask::{ConversationEncoder, MaskMismatch, MaskRule, mask_rendered};

/// How conversations become ids.
#[derive(Clone)]
pub struct TokeniseSettings {
    /// Name of the template (see [`MaskRule::for_template`] for those that can be trained).
    pub template: String,
    /// Most positions of a sequence, visual tokens included.
    pub max_length: usize,
    /// Positions that one picture takes.
    pub visual_tokens: usize,
    /// What to do when answers cannot be located.
    pub mismatch: MaskMismatch,
}

/// One training sequence: `ids` with -200 for each picture, `labels` with -100 where nothing is learnt (and for pictures).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<i64>,
    /// One label per id.
    pub labels: Vec<i64>,
}

impl Sequence {
    /// Positions after splicing: ids plus the visual tokens of each picture.
    pub fn positions(&self, visual_tokens: usize) -> usize {
        let images = self.images();
        self.ids.len() - images + images * visual_tokens
    }

    /// Number of pictures.
    pub fn images(&self) -> usize {
        self.ids.iter().filter(|&&id| id == IMAGE_TOKEN).count()
    }

    /// Number of positions whose next token is learnt (the label of the first position has no predecessor).
    pub fn supervised(&self) -> usize {
        self.labels
            .iter()
            .skip(1)
            .filter(|&&label| label != IGNORE_LABEL)
            .count()
    }

    /// Cuts the tail so that at most `max_length` positions remain; a picture that does not fit whole goes entirely.
    pub fn truncate(&mut self, max_length: usize, visual_tokens: usize) {
        let mut positions = 0;
        for (index, &id) in self.ids.iter().enumerate() {
            positions += if id == IMAGE_TOKEN { visual_tokens } else { 1 };
            if positions > max_length {
                self.ids.truncate(index);
                self.labels.truncate(index);
                return;
            }
        }
    }
}

/// Renders a conversation, tokenises it, masks everything but the answers, and cuts it to the maximal length.
///
/// # Errors
/// [`MaskError`] when the template cannot be trained, the answers cannot be located, or nothing to learn is left after the cut.
/// Under [`MaskMismatch::MaskWhole`] the last two give a sequence without labels instead.
pub fn tokenise(
    settings: &TokeniseSettings,
    conversation: &Conversation,
    encoder: &dyn ConversationEncoder,
) -> Result<Sequence, MaskError> {
    let rule = MaskRule::for_template(&settings.template).ok_or_else(|| {
        MaskError::Template(format!(
            "template `{}` has no rule for training labels",
            settings.template
        ))
    })?;
    let has_image = conversation.has_image();
    let rendered = if rule == MaskRule::Plain {
        plain_text(conversation)?
    } else {
        render(&settings.template, conversation)?
    };
    let answers = conversation
        .messages
        .iter()
        .filter(|(role, _)| *role == Role::Assistant)
        .count();
    let (ids, labels) = mask_rendered(
        rule,
        &rendered,
        answers,
        has_image,
        encoder,
        settings.max_length,
        settings.mismatch,
    )?;
    let mut sequence = Sequence { ids, labels };
    if sequence.images() != conversation.images.len() {
        return Err(MaskError::Structure(format!(
            "expected {} pictures among the ids, found {}",
            conversation.images.len(),
            sequence.images()
        )));
    }
    let length = sequence.positions(settings.visual_tokens);
    sequence.truncate(settings.max_length, settings.visual_tokens);
    if sequence.supervised() == 0 && settings.mismatch == MaskMismatch::Error {
        return Err(MaskError::NothingToLearn {
            max_length: settings.max_length,
            length,
        });
    }
    Ok(sequence)
}

fn render(template: &str, conversation: &Conversation) -> Result<String, MaskError> {
    let template =
        Template::by_name(template).map_err(|error| MaskError::Template(error.to_string()))?;
    let messages: Vec<Message> = conversation
        .messages
        .iter()
        .map(|(role, text)| Message::new(*role, Some(text.clone())))
        .collect();
    Ok(template.render(&messages))
}

/// Stage 1 of Vicuna, Mixtral and Yi: the question is replaced by the bare placeholder, the caption ends with a newline.
fn plain_text(conversation: &Conversation) -> Result<String, MaskError> {
    match conversation.messages.as_slice() {
        [(_, question), (_, caption)]
            if question.contains(IMAGE_PLACEHOLDER) && conversation.images.len() == 1 =>
        {
            Ok(format!("{IMAGE_PLACEHOLDER}{caption}\n"))
        }
        messages => Err(MaskError::Template(format!(
            "template `plain` needs one picture, one question with `<image>` and one caption, found {} sentences and {} pictures",
            messages.len(),
            conversation.images.len()
        ))),
    }
}

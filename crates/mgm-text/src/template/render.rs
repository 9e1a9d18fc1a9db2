//! The rendering rules.

use super::{Message, Places, Role, Style, Template};
use crate::{IMAGE_PLACEHOLDER, Prompt};

/// The official exchange of the `mmtag` templates.
const IMAGE_ANNOUNCEMENT: (&str, &str) = ("<Image><image></Image>", "Received.");

/// A turn ready to be written.
struct Turn<'a> {
    role: Role,
    text: Option<Text<'a>>,
}

enum Text<'a> {
    /// The template's own words.
    Own(&'static str),
    /// What somebody said, and where pictures stand in it.
    Said(&'a str, &'a Places),
    /// A first text whose placeholders stand in the announcement before it.
    Announced(String),
}

impl Text<'_> {
    fn write(&self, prompt: &mut Prompt) {
        match self {
            Self::Own(text) => {
                for (index, piece) in text.split(IMAGE_PLACEHOLDER).enumerate() {
                    if index > 0 {
                        prompt.content(IMAGE_PLACEHOLDER, &Places::Every);
                    }
                    prompt.markup(piece);
                }
            }
            Self::Said(text, places) => prompt.content(text, places),
            Self::Announced(text) => prompt.content(text, &Places::None),
        }
    }
}

/// The system text: a message's, or else the template's.
enum System<'a> {
    Own(&'static str),
    Said(&'a str),
}

impl System<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Own(text) => text.is_empty(),
            Self::Said(text) => text.is_empty(),
        }
    }

    fn write(&self, prompt: &mut Prompt) {
        match self {
            Self::Own(text) => prompt.markup(text),
            Self::Said(text) => prompt.content(text, &Places::None),
        }
    }
}

/// See [`Template::prompt`].
pub(super) fn render(template: &Template, messages: &[Message]) -> Prompt {
    // The last system message counts.
    let system = messages
        .iter()
        .rev()
        .find(|message| message.role == Role::System)
        .map_or(System::Own(template.system), |message| {
            System::Said(message.text.as_deref().unwrap_or_default())
        });
    let turns = turns(template, messages);
    let mut prompt = Prompt::default();
    match template.style {
        Style::Single | Style::Two => write_named(template, &system, &turns, &mut prompt),
        Style::Markup => write_markup(template, &system, &turns, &mut prompt),
        Style::Instruct => write_instruct(template, &system, &turns, &mut prompt),
        Style::Gemma => write_gemma(template, &system, &turns, &mut prompt),
        Style::Plain => {
            system.write(&mut prompt);
            for text in turns.iter().filter_map(|turn| turn.text.as_ref()) {
                text.write(&mut prompt);
                prompt.markup(template.separator);
            }
        }
    }
    prompt
}

/// The turns with the template's examples, empty texts counted as missing.
fn turns<'a>(template: &Template, messages: &'a [Message]) -> Vec<Turn<'a>> {
    let own = |role, text| Turn {
        role,
        text: Some(Text::Own(text)),
    };
    let mut turns: Vec<Turn<'a>> = template
        .examples
        .iter()
        .map(|(role, text)| own(*role, *text))
        .collect();
    let said = messages
        .iter()
        .filter(|message| message.role != Role::System);
    for (index, message) in said.enumerate() {
        let text = message.text.as_deref().filter(|text| !text.is_empty());
        let announced = index == 0
            && template.announces_image
            && text.is_some_and(|text| message.places.split(text).len() > 1);
        let text = match text {
            Some(text) if announced => {
                turns.push(own(Role::User, IMAGE_ANNOUNCEMENT.0));
                turns.push(own(Role::Assistant, IMAGE_ANNOUNCEMENT.1));
                let rest = message.places.split(text).concat().trim().to_string();
                (!rest.is_empty()).then_some(Text::Announced(rest))
            }
            text => text.map(|text| Text::Said(text, &message.places)),
        };
        turns.push(Turn {
            role: message.role,
            text,
        });
    }
    turns
}

fn role_name(template: &Template, role: Role) -> &'static str {
    if role == Role::Assistant {
        template.assistant
    } else {
        template.user
    }
}

fn separator(template: &Template, role: Role) -> &'static str {
    if role == Role::Assistant && template.style != Style::Single {
        template.answer_separator
    } else {
        template.separator
    }
}

fn write_named(template: &Template, system: &System<'_>, turns: &[Turn<'_>], prompt: &mut Prompt) {
    system.write(prompt);
    prompt.markup(template.separator);
    for Turn { role, text } in turns {
        prompt.markup(role_name(template, *role));
        prompt.markup(":");
        if let Some(text) = text {
            prompt.markup(" ");
            text.write(prompt);
            prompt.markup(separator(template, *role));
        }
    }
}

fn write_markup(template: &Template, system: &System<'_>, turns: &[Turn<'_>], prompt: &mut Prompt) {
    if !system.is_empty() {
        prompt.markup(template.system_header);
        system.write(prompt);
        prompt.markup(template.separator);
    }
    for Turn { role, text } in turns {
        prompt.markup(role_name(template, *role));
        if let Some(text) = text {
            text.write(prompt);
            prompt.markup(template.separator);
        }
    }
}

fn write_instruct(
    template: &Template,
    system: &System<'_>,
    turns: &[Turn<'_>],
    prompt: &mut Prompt,
) {
    let mut first = true;
    for Turn { role, text } in turns {
        let Some(text) = text else { continue };
        if *role == Role::Assistant {
            prompt.markup(" ");
            text.write(prompt);
            prompt.markup(" ");
            prompt.markup(template.answer_separator);
            continue;
        }
        prompt.markup(template.separator);
        prompt.markup("[INST] ");
        if first && !system.is_empty() {
            prompt.markup("<<SYS>>\n");
            system.write(prompt);
            prompt.markup("\n<</SYS>>\n\n");
        }
        first = false;
        text.write(prompt);
        prompt.markup(" [/INST]");
    }
    // Python's lstrip takes a set of characters, not a prefix.
    prompt.strip_start(template.separator);
}

fn write_gemma(template: &Template, system: &System<'_>, turns: &[Turn<'_>], prompt: &mut Prompt) {
    let mut pending_system = Some(system).filter(|system| !system.is_empty());
    for Turn { role, text } in turns {
        prompt.markup("<start_of_turn>");
        prompt.markup(role_name(template, *role));
        prompt.markup("\n");
        let Some(text) = text else { continue };
        if *role != Role::Assistant
            && let Some(system) = pending_system.take()
        {
            system.write(prompt);
            prompt.markup("\n\n");
        }
        text.write(prompt);
        prompt.markup("<end_of_turn>\n");
        prompt.markup(separator(template, *role));
    }
}

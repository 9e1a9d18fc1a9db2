//! The rendering rules.

use std::borrow::Cow;

use super::{Message, Role, Style, Template};
use crate::IMAGE_PLACEHOLDER;

/// The official exchange of the `mmtag` templates.
const IMAGE_ANNOUNCEMENT: (&str, &str) = ("<Image><image></Image>", "Received.");

/// A turn ready to be written: who, and the text if there is one.
type Turn<'a> = (Role, Option<Cow<'a, str>>);

/// See [`Template::render`].
pub(super) fn render(template: &Template, messages: &[Message]) -> String {
    // The last system message counts.
    let system = messages
        .iter()
        .rev()
        .find(|message| message.role == Role::System)
        .map_or(template.system, |message| {
            message.text.as_deref().unwrap_or_default()
        });
    let turns = turns(template, messages);
    let mut prompt = String::new();
    match template.style {
        Style::Single | Style::Two => write_named(template, system, &turns, &mut prompt),
        Style::Markup => write_markup(template, system, &turns, &mut prompt),
        Style::Instruct => write_instruct(template, system, &turns, &mut prompt),
        Style::Gemma => write_gemma(template, system, &turns, &mut prompt),
        Style::Plain => {
            prompt.push_str(system);
            for text in turns.iter().filter_map(|(_, text)| text.as_deref()) {
                prompt.push_str(text);
                prompt.push_str(template.separator);
            }
        }
    }
    prompt
}

/// The turns with the template's examples, empty texts counted as missing.
fn turns<'a>(template: &'a Template, messages: &'a [Message]) -> Vec<Turn<'a>> {
    let mut turns: Vec<Turn<'a>> = template
        .examples
        .iter()
        .map(|(role, text)| (*role, Some(Cow::Borrowed(*text))))
        .collect();
    let said = messages
        .iter()
        .filter(|message| message.role != Role::System);
    for (index, message) in said.enumerate() {
        let text = message.text.as_deref().filter(|text| !text.is_empty());
        match text {
            Some(text)
                if index == 0 && template.announces_image && text.contains(IMAGE_PLACEHOLDER) =>
            {
                turns.push((Role::User, Some(Cow::Borrowed(IMAGE_ANNOUNCEMENT.0))));
                turns.push((Role::Assistant, Some(Cow::Borrowed(IMAGE_ANNOUNCEMENT.1))));
                let rest = text.replace(IMAGE_PLACEHOLDER, "").trim().to_string();
                turns.push((message.role, (!rest.is_empty()).then_some(Cow::Owned(rest))));
            }
            _ => turns.push((message.role, text.map(Cow::Borrowed))),
        }
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

fn write_named(template: &Template, system: &str, turns: &[Turn<'_>], prompt: &mut String) {
    prompt.push_str(system);
    prompt.push_str(template.separator);
    for (role, text) in turns {
        prompt.push_str(role_name(template, *role));
        prompt.push(':');
        if let Some(text) = text {
            prompt.push(' ');
            prompt.push_str(text);
            prompt.push_str(separator(template, *role));
        }
    }
}

fn write_markup(template: &Template, system: &str, turns: &[Turn<'_>], prompt: &mut String) {
    if !system.is_empty() {
        prompt.push_str(template.system_header);
        prompt.push_str(system);
        prompt.push_str(template.separator);
    }
    for (role, text) in turns {
        prompt.push_str(role_name(template, *role));
        if let Some(text) = text {
            prompt.push_str(text);
            prompt.push_str(template.separator);
        }
    }
}

fn write_instruct(template: &Template, system: &str, turns: &[Turn<'_>], prompt: &mut String) {
    let mut first = true;
    for (role, text) in turns {
        let Some(text) = text else { continue };
        if *role == Role::Assistant {
            prompt.push_str(&format!(" {text} {}", template.answer_separator));
            continue;
        }
        prompt.push_str(template.separator);
        prompt.push_str("[INST] ");
        if first && !system.is_empty() {
            prompt.push_str(&format!("<<SYS>>\n{system}\n<</SYS>>\n\n"));
        }
        first = false;
        prompt.push_str(text);
        prompt.push_str(" [/INST]");
    }
    // Python's lstrip takes a set of characters, not a prefix.
    let kept = prompt
        .trim_start_matches(|character| template.separator.contains(character))
        .len();
    prompt.drain(..prompt.len() - kept);
}

fn write_gemma(template: &Template, system: &str, turns: &[Turn<'_>], prompt: &mut String) {
    let mut pending_system = Some(system).filter(|system| !system.is_empty());
    for (role, text) in turns {
        prompt.push_str(&format!("<start_of_turn>{}\n", role_name(template, *role)));
        let Some(text) = text else { continue };
        if *role != Role::Assistant
            && let Some(system) = pending_system.take()
        {
            prompt.push_str(system);
            prompt.push_str("\n\n");
        }
        prompt.push_str(text);
        prompt.push_str("<end_of_turn>\n");
        prompt.push_str(separator(template, *role));
    }
}

//! What can be typed into a conversation: questions, and commands that begin with a slash.

use std::path::Path;

/// One entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing was typed.
    Nothing,
    /// A question for the model.
    Question(String),
    /// `/image`: pictures for the next question.
    Images(Vec<String>),
    /// `/painted`: the picture painted last, for the next question.
    Painted,
    /// `/reset`: forget the conversation.
    Reset,
    /// `/help`.
    Help,
    /// `/exit`.
    Exit,
    /// A slash and a word that means nothing.
    Unknown(String),
}

/// What `/help` prints.
pub(super) const HELP: &str = "\
/image FILE...  show one or more pictures with the next question (files or http(s) addresses)
/painted        show the picture painted last with the next question (with --gen)
/reset          forget the conversation and its pictures
/help           this text
/exit           leave (so does Ctrl-D)
A backslash at the end of a line continues the question on the next one; pasted lines stay together.
Ctrl-C stops an answer. Up and down go through earlier questions.";

/// Understands what was typed. A continued line (backslash, line end) becomes a plain line end.
pub(super) fn parse(text: &str) -> Entry {
    let text = text.replace("\\\n", "\n");
    let text = text.trim();
    let Some(command) = text.strip_prefix('/') else {
        return match text {
            "" => Entry::Nothing,
            text => Entry::Question(text.into()),
        };
    };
    let (name, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    match name {
        "image" => Entry::Images(files(rest.trim())),
        "painted" => Entry::Painted,
        "reset" => Entry::Reset,
        "help" => Entry::Help,
        "exit" | "quit" => Entry::Exit,
        // A path or a fraction is a question, not a mistyped command.
        name if name.chars().all(|c| c.is_ascii_alphabetic()) && rest.is_empty() => {
            Entry::Unknown(format!("/{name}"))
        }
        _ => Entry::Question(text.into()),
    }
}

/// Splits as a shell does (quotes, backslashes), unless the whole text is the name of one existing file.
fn files(text: &str) -> Vec<String> {
    if Path::new(text).exists() {
        return vec![text.into()];
    }
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => {
                word.get_or_insert_default()
                    .push(characters.next().unwrap_or('\\'));
            }
            (mark, Some(open)) if mark == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_questions() {
        assert_eq!(parse("  \n"), Entry::Nothing);
        assert_eq!(parse("What is it?"), Entry::Question("What is it?".into()));
        assert_eq!(parse("one \\\ntwo"), Entry::Question("one \ntwo".into()));
        assert_eq!(parse("/reset"), Entry::Reset);
        assert_eq!(parse("/painted"), Entry::Painted);
        assert_eq!(parse(" /help "), Entry::Help);
        assert_eq!(parse("/exit"), Entry::Exit);
        assert_eq!(parse("/imgae"), Entry::Unknown("/imgae".into()));
        assert_eq!(
            parse("/usr/bin is what?"),
            Entry::Question("/usr/bin is what?".into())
        );
        assert_eq!(parse("/image"), Entry::Images(vec![]));
    }

    #[test]
    fn file_names_are_split_like_words_of_a_shell() {
        assert_eq!(files("a.png  b.png"), ["a.png", "b.png"]);
        assert_eq!(
            files(r#""my cat.png" my\ dog.png 'a "b".png' "c\"d""#),
            ["my cat.png", "my dog.png", "a \"b\".png", "c\"d"]
        );
        assert_eq!(files("\"open quote"), ["open quote"]);
    }
}

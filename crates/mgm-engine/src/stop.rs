//! Texts that end an answer, also when they come in pieces.

/// Watches an answer for stop texts and holds back what may be the beginning of one.
#[derive(Debug)]
pub(crate) struct StopTexts {
    texts: Vec<String>,
    held: String,
}

/// What is certain after another piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Certain {
    /// Text of the answer.
    pub(crate) text: String,
    /// The stop text that came right after it.
    pub(crate) stop: Option<String>,
}

impl StopTexts {
    pub(crate) fn new(texts: &[String]) -> Self {
        Self {
            texts: texts
                .iter()
                .filter(|text| !text.is_empty())
                .cloned()
                .collect(),
            held: String::new(),
        }
    }

    /// Takes the next piece of the answer.
    pub(crate) fn push(&mut self, piece: &str) -> Certain {
        if self.texts.is_empty() {
            return Certain {
                text: piece.to_string(),
                stop: None,
            };
        }
        self.held.push_str(piece);
        let first = self
            .texts
            .iter()
            .filter_map(|text| Some((self.held.find(text.as_str())?, text)))
            .min_by_key(|(start, _)| *start);
        if let Some((start, text)) = first {
            let stop = Some(text.clone());
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Certain { text, stop };
        }
        let kept = self.longest_beginning();
        let rest = self.held.split_off(self.held.len() - kept);
        Certain {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// The answer has ended: what was held back is text after all.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of what is held that some stop text begins with.
    fn longest_beginning(&self) -> usize {
        let longest = self.texts.iter().map(String::len).max().unwrap_or(0);
        (1..longest.min(self.held.len() + 1))
            .rev()
            .find(|length| {
                let start = self.held.len() - length;
                self.held.get(start..).is_some_and(|end| {
                    self.texts
                        .iter()
                        .any(|text| text.len() > *length && text.starts_with(end))
                })
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer and the stop text that `pieces` give, and the largest number of bytes ever held.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>, usize) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut watch = StopTexts::new(&stops);
        let (mut answer, mut held) = (String::new(), 0);
        for piece in pieces {
            let certain = watch.push(piece);
            answer.push_str(&certain.text);
            if certain.stop.is_some() {
                return (answer, certain.stop, held);
            }
            held = held.max(watch.held.len());
        }
        answer.push_str(&watch.finish());
        (answer, None, held)
    }

    #[test]
    fn a_stop_text_ends_the_answer_wherever_it_is_cut() {
        let text = "one two END three";
        for first in 0..text.len() {
            for second in first..text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                let (answer, stop, _) = run(&["END"], &pieces);
                assert_eq!(
                    (answer.as_str(), stop.as_deref()),
                    ("one two ", Some("END"))
                );
            }
        }
    }

    #[test]
    fn beginnings_are_held_and_let_go() {
        let (answer, stop, held) = run(&["\n\nUser:"], &["a\n", "\nUse", "ful\n", "\n"]);
        assert_eq!((answer.as_str(), stop), ("a\n\nUseful\n\n", None));
        assert_eq!(held, "\n\nUse".len());
        // The longest beginning counts, and a beginning inside another one.
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0, "a");
        assert_eq!(run(&["abab!"], &["ababab", "!x"]).0, "ab");
    }

    #[test]
    fn the_earliest_of_several_wins() {
        let (answer, stop, _) = run(&["three", "two"], &["one two three"]);
        assert_eq!((answer.as_str(), stop.as_deref()), ("one ", Some("two")));
        let (answer, stop, _) = run(&["é", "\u{301}"], &["caf", "é au lait"]);
        assert_eq!((answer.as_str(), stop.as_deref()), ("caf", Some("é")));
        assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), None, 0));
    }

    #[test]
    fn characters_are_never_cut() {
        // "é" and "è" share their first byte: no piece ends between their bytes.
        let (answer, stop, held) = run(&["éx"], &["è", "é", "è"]);
        assert_eq!((answer.as_str(), stop, held), ("èéè", None, 2));
    }
}

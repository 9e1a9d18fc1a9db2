//! Comparing an answer with the accepted ones.

use crate::records::{Match, Record};

/// Trims white space, lower-cases, and strips a final period: the form in which answers are compared.
pub fn normalise(answer: &str) -> String {
    answer
        .trim()
        .trim_end_matches('.')
        .trim_end()
        .to_lowercase()
}

/// Whether `answer` is right for `record`.
pub fn is_right(record: &Record, answer: &str) -> bool {
    let answer = normalise(answer);
    record
        .answers
        .iter()
        .map(|accepted| normalise(accepted))
        .any(|accepted| match record.comparison {
            Match::Exact => accepted == answer,
            Match::Contains => contains_words(&answer, &accepted),
        })
}

/// Whether `needle` stands in `text` with no letter or digit touching it on either side, so that `cat` is not found in `category`.
fn contains_words(text: &str, needle: &str) -> bool {
    if needle.is_empty() {
        return false;
    }
    text.match_indices(needle).any(|(start, found)| {
        let before = text[..start].chars().next_back();
        let after = text[start + found.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(answers: &[&str], comparison: Match) -> Record {
        Record {
            id: "1".into(),
            image: None,
            question: "?".into(),
            answers: answers.iter().map(|answer| answer.to_string()).collect(),
            comparison,
            more: Default::default(),
        }
    }

    #[test]
    fn exact_ignores_case_space_and_final_period() {
        let record = record(&["Yes", "tea cup"], Match::Exact);
        for right in ["yes", " YES. ", "Tea Cup.", "yes\n"] {
            assert!(is_right(&record, right), "{right:?}");
        }
        for wrong in ["", "yes, it is", "teacup", "no"] {
            assert!(!is_right(&record, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn contains_wants_whole_words() {
        let record = record(&["cat", "hot dog"], Match::Contains);
        for right in [
            "A cat.",
            "It is a Cat, sleeping",
            "cat",
            "one hot dog",
            "category: cat",
        ] {
            assert!(is_right(&record, right), "{right:?}");
        }
        for wrong in ["category", "concat", "hotdog", "a dog", "", "cat5"] {
            assert!(!is_right(&record, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_accepted_answer_matches_nothing_by_contains() {
        assert!(!is_right(&record(&[" . "], Match::Contains), "anything"));
    }
}

//! Text conventions around the model: where placeholders go, OCR hints, picture requests and picture prompts.

use crate::IMAGE_PLACEHOLDER;

/// Appended to the user's text to ask for a picture prompt. It is plain text in every tokeniser.
pub const GENERATION_REQUEST: &str = " <GEN>";

/// Recognised text lines at or below this confidence are left out of the OCR hint (official value).
pub const OCR_MIN_CONFIDENCE: f32 = 0.1;

/// Puts `count` placeholders, one a line, in front of the user's text, as the official command line does.
pub fn place_images(text: &str, count: usize) -> String {
    let mut out = String::with_capacity(text.len() + count * (IMAGE_PLACEHOLDER.len() + 1));
    for _ in 0..count {
        out.push_str(IMAGE_PLACEHOLDER);
        out.push('\n');
    }
    out.push_str(text);
    out
}

/// The web page's rule for the first message: placeholders anywhere in the text become one at the front.
pub fn move_placeholder_to_front(text: &str) -> String {
    format!(
        "{IMAGE_PLACEHOLDER}\n{}",
        text.replace(IMAGE_PLACEHOLDER, "").trim()
    )
}

/// Number of placeholders in a rendered prompt; must equal the number of images.
pub fn count_placeholders(prompt: &str) -> usize {
    prompt.matches(IMAGE_PLACEHOLDER).count()
}

/// With two or more placeholders each becomes `Image k:<image>`, counted from 1; otherwise the prompt is unchanged.
/// To be applied after rendering.
pub fn number_images(prompt: &str) -> String {
    if count_placeholders(prompt) < 2 {
        return prompt.to_string();
    }
    let mut out = String::with_capacity(prompt.len() + 32);
    for (index, piece) in prompt.split(IMAGE_PLACEHOLDER).enumerate() {
        if index > 0 {
            out.push_str(&format!("Image {index}:{IMAGE_PLACEHOLDER}"));
        }
        out.push_str(piece);
    }
    out
}

/// The OCR hint to append to the user's text, or `None` if no line is confident enough.
///
/// `lines` are (text, confidence 0..=1) in detection order. The capitalisation is the official command line's. A picture that shows the
/// words `<image>` must not be taken for another picture, so the brackets go.
pub fn ocr_suffix<'a>(lines: impl IntoIterator<Item = (&'a str, f32)>) -> Option<String> {
    let kept: Vec<&str> = lines
        .into_iter()
        .filter(|(_, confidence)| *confidence > OCR_MIN_CONFIDENCE)
        .map(|(text, _)| text)
        .collect();
    let joined = kept.join(", ").replace(IMAGE_PLACEHOLDER, "image");
    (!joined.is_empty()).then(|| format!("\nReference OCR Token: {joined}\n"))
}

/// The picture prompt of an answer: what stands between the last `<h>` before the last `</h>` and that `</h>`
/// (the official command line's rule). Not stripped. `None` if a marker is missing.
pub fn picture_prompt(answer: &str) -> Option<&str> {
    if !answer.contains("<h>") {
        return None;
    }
    let before_last_close = &answer[..answer.rfind("</h>")?];
    // The official expression takes the stretch between the last two closing markers, then what follows its last
    // opening marker (the whole stretch if it has none).
    let stretch = before_last_close.rsplit("</h>").next()?;
    stretch.rsplit("<h>").next()
}

/// The web worker's rule: what stands after the first `<h>` up to the next `</h>` (to the end if that is missing).
/// Apply it to the answer alone; over the prompt too, as the worker does, a user's own `<h>` would win.
pub fn first_picture_prompt(answer: &str) -> Option<&str> {
    let (_, after) = answer.split_once("<h>")?;
    after.split("</h>").next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_come_first_one_a_line() {
        assert_eq!(place_images("What?", 2), "<image>\n<image>\nWhat?");
        assert_eq!(place_images("What?", 0), "What?");
        assert_eq!(
            move_placeholder_to_front(" What?\n<image> "),
            "<image>\nWhat?"
        );
    }

    #[test]
    fn images_are_numbered_from_two_on() {
        assert_eq!(number_images("USER: <image>\nQ"), "USER: <image>\nQ");
        assert_eq!(
            number_images("<image>\n<image>\ntext"),
            "Image 1:<image>\nImage 2:<image>\ntext"
        );
        assert_eq!(number_images("text"), "text");
    }

    #[test]
    fn ocr_keeps_confident_lines_in_order() {
        let lines = [("STOP", 0.9), ("noise", 0.1), ("Main St", 0.11)];
        assert_eq!(
            ocr_suffix(lines).as_deref(),
            Some("\nReference OCR Token: STOP, Main St\n")
        );
        assert_eq!(
            ocr_suffix([("an <image> tag", 0.9)]).as_deref(),
            Some("\nReference OCR Token: an image tag\n")
        );
        assert_eq!(ocr_suffix([("noise", 0.05)]), None);
        assert_eq!(ocr_suffix([]), None);
    }

    #[test]
    fn picture_prompts_follow_both_official_rules() {
        assert_eq!(picture_prompt("Sure: <h> a cat </h>."), Some(" a cat "));
        assert_eq!(picture_prompt("<h>a</h> or <h>b</h>"), Some("b"));
        assert_eq!(picture_prompt("<h>a"), None);
        assert_eq!(picture_prompt("a</h>"), None);
        // "<h>a</h>b</h>".split("</h>")[-2] is "b"; it has no opening marker, so all of it is taken.
        assert_eq!(picture_prompt("<h>a</h>b</h>"), Some("b"));
        assert_eq!(first_picture_prompt("<h>a</h> or <h>b</h>"), Some("a"));
        assert_eq!(first_picture_prompt("none"), None);
    }
}

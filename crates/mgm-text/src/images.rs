//! Image-aware tokenisation (the official `tokenizer_image_token`).

use crate::{IMAGE_TOKEN, TextError, Tokenizer};

/// The literal that marks the place of one image in a prompt.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// Encodes a rendered prompt; every literal `<image>` becomes [`IMAGE_TOKEN`].
///
/// As in the official code each piece between placeholders is tokenised as a text of its own, *with* the
/// tokeniser's automatic BOS. If the first piece begins with BOS, one BOS is kept at the start of the whole and the
/// first id of every piece is dropped. A tokeniser that adds no BOS (Yi) keeps every id.
pub fn encode_with_images(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<i64>, TextError> {
    encode_with_images_parse(tokenizer, prompt, true)
}

/// [`encode_with_images`] with a choice whether special strings such as `</s>` become their special ids
/// (`parse_special`, the official behaviour) or stay ordinary text.
pub fn encode_with_images_parse(
    tokenizer: &Tokenizer,
    prompt: &str,
    parse_special: bool,
) -> Result<Vec<i64>, TextError> {
    let mut ids: Vec<i64> = Vec::new();
    // Only the first piece decides whether there is a BOS to strip; pitfall: comparing the id alone would strip a
    // real token from a tokeniser without BOS whose text happens to begin with that id.
    let strip_bos = tokenizer.adds_bos();
    for (index, piece) in prompt.split(IMAGE_PLACEHOLDER).enumerate() {
        let piece_ids = tokenizer.encode_parse(piece, true, parse_special)?;
        let mut rest = piece_ids.as_slice();
        if strip_bos {
            if index == 0 {
                ids.extend(rest.first().map(|&id| i64::from(id)));
            }
            rest = rest.get(1..).unwrap_or_default();
        }
        if index > 0 {
            ids.push(IMAGE_TOKEN);
        }
        ids.extend(rest.iter().map(|&id| i64::from(id)));
    }
    Ok(ids)
}

//! Image-aware tokenisation of prompts that come as one string (the official `tokenizer_image_token`).

use crate::{Prompt, TextError, Tokenizer};

/// The literal that marks the place of one image in a prompt.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// Encodes a rendered prompt as the official code does: every literal `<image>` becomes
/// [`IMAGE_TOKEN`](crate::IMAGE_TOKEN), every control string its control token, whoever typed it. Training and scoring need
/// exactly this; for a conversation with people see [`Prompt::encode`].
///
/// # Errors
/// If the tokeniser refuses the text.
pub fn encode_with_images(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<i64>, TextError> {
    Prompt::from_official(prompt).encode(tokenizer, true)
}

//! What a client may want to know about the model.

use crate::event::PromptAccount;

/// The model behind an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its name: the directory's, or `smol`.
    pub name: String,
    /// Its conversation template.
    pub template: &'static str,
    /// Positions a prompt may fill.
    pub prompt_limit: usize,
    /// Positions prompt and answer may fill together.
    pub context_limit: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Its eyes; absent in a text-only model.
    pub vision: Option<VisionInfo>,
}

/// How a model looks at pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisionInfo {
    /// Visual tokens of one picture.
    pub tokens_per_picture: usize,
    /// Side in pixels of the picture that the low-resolution tower sees.
    pub low_res_size: u32,
    /// Side in pixels of the picture that the high-resolution tower sees.
    pub high_res_size: u32,
    /// Whether patches mine a high-resolution tower, so that there is something to look inside.
    pub mines: bool,
}

/// A tokenised input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// Ids in order; each picture stands as one −200.
    pub ids: Vec<i64>,
    /// Positions the input takes.
    pub account: PromptAccount,
}

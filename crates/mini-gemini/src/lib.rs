//! The Mini-Gemini vision-language model.

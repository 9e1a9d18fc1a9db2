//! An OpenAI-compatible HTTP server and a web page for Mini-Gemini models.
